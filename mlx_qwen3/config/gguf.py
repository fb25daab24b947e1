"""config.json and generation_config.json of a GGUF file, from its metadata and its tensor table.

GGUF has no vocabulary size (rows of the embedding), no flag for a tied head (no `output.weight`), and keeps one end of
text. What the metadata claims is compared with the shapes of the tensors before a model is made of it.
Source: `gguf.constants.Keys` and llama.cpp's `convert_hf_to_gguf.py`.
"""

import math
from pathlib import Path
from typing import Any

from ..checkpoint.gguf import GgufFile
from ..checkpoint.gguf_checkpoint import GgufCheckpoint, open_gguf_checkpoint
from ..checkpoint.gguf_kinds import GROUP
from ..checkpoint.gguf_names import head_counts
from ..errors import CheckpointError, ConfigError, UnsupportedModelError

ARCHITECTURE = "qwen3"
POOLING = {0: None, 1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""`qwen3.pooling_type` -> how a text becomes one vector."""
ENDS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end a text besides the one that the metadata names, where the vocabulary has them."""
_NORMAL = 1


def config_from_gguf(path: str | Path) -> dict[str, Any]:
    """Return the config.json of a GGUF file.

    Raises:
        UnsupportedModelError: another architecture.
        CheckpointError: metadata that is missing, of a wrong type, or contradicts the tensors.
        ConfigError: a rotary scaling that this package does not have.
    """
    from ..checkpoint.gguf_split import open_gguf

    refuse_other_gguf(open_gguf(path))
    checkpoint = open_gguf_checkpoint(path)
    file = checkpoint.file
    layers = file.integer("qwen3.block_count")
    heads, groups, size = head_counts(file)
    embedding = _shape(checkpoint, "model.embed_tokens.weight")
    config: dict[str, Any] = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": embedding[0],
        "hidden_size": file.integer("qwen3.embedding_length"),
        "intermediate_size": file.integer("qwen3.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "max_position_embeddings": file.integer("qwen3.context_length"),
        "rms_norm_eps": float(file.number("qwen3.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(file.number("qwen3.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "lm_head.weight" not in checkpoint,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in checkpoint,
        "dtype": checkpoint.stored_dtype,
        "torch_dtype": checkpoint.stored_dtype,
        **_special_ids(file),
        **_rope_scaling(file),
        **_window(file, layers),
        **_head(checkpoint),
    }
    if checkpoint.formats:
        config["quantization"] = _quantization(checkpoint)
        config["quantization_config"] = config["quantization"]
    _check_sizes(checkpoint, config)
    return config


def refuse_other_gguf(file: GgufFile) -> None:
    """Raise `UnsupportedModelError` for a GGUF file of another architecture, `CheckpointError` for no model."""
    kind = file.text("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{file.path} holds a {kind[:40]!r}, not a model: give the file of a Qwen3 model")
    if file.architecture != ARCHITECTURE:
        raise UnsupportedModelError(
            f"{file.path}: architecture {file.architecture[:40]!r} is not 'qwen3'. Run this file with llama.cpp "
            "(llama-cli -m FILE) or ollama"
        )


def _shape(checkpoint: GgufCheckpoint, name: str) -> tuple[int, ...]:
    """Return the shape of a weight, unpacked."""
    if name not in checkpoint:
        raise CheckpointError(f"{checkpoint.file.path} lacks {name}: download it again")
    shape, path = checkpoint.shape(name), name.removesuffix(".weight")
    if len(shape) != 2:
        raise CheckpointError(f"{checkpoint.file.path}: {name} has the shape {shape}, expected a matrix")
    bits = checkpoint.formats.get(path, (32, ""))[0]
    return shape[0], shape[1] * 32 // bits


def _check_sizes(checkpoint: GgufCheckpoint, config: dict[str, Any]) -> None:
    """Compare the sizes that the metadata claims with the tensors, before layers of these sizes are made."""
    path, layers, width = checkpoint.file.path, config["num_hidden_layers"], config["hidden_size"]
    found_layers = sum(name.endswith(".input_layernorm.weight") for name in checkpoint.names)
    if layers < 1 or layers != found_layers:
        raise CheckpointError(
            f"{path}: metadata qwen3.block_count is {layers}, the file has {found_layers} layers: download it again"
        )
    first = "model.layers.0"
    heads, groups, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    expected = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        f"{first}.self_attn.q_proj.weight": (heads * size, width),
        f"{first}.self_attn.k_proj.weight": (groups * size, width),
        f"{first}.mlp.up_proj.weight": (config["intermediate_size"], width),
    }
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = (config["vocab_size"], width)
    for name, shape in expected.items():
        found = _shape(checkpoint, name)
        if found != shape:
            raise CheckpointError(
                f"{path}: {name} has the shape {found}, the metadata gives {shape}: convert the original model again"
            )
    value_length = checkpoint.file.integer("qwen3.attention.value_length", size)
    if value_length != size:
        raise CheckpointError(f"{path}: heads have keys of {size} and values of {value_length}, which Qwen3 has not")
    if config["max_position_embeddings"] < 1:
        raise CheckpointError(f"{path}: metadata qwen3.context_length is {config['max_position_embeddings']}")


def _special_ids(file: GgufFile) -> dict[str, Any]:
    names = {"eos_token_id": "eos", "bos_token_id": "bos", "pad_token_id": "padding"}
    return {field: file.integer(f"tokenizer.ggml.{name}_token_id", None) for field, name in names.items()}


def _rope_scaling(file: GgufFile) -> dict[str, Any]:
    prefix = "qwen3.rope.scaling"
    kind = file.text(f"{prefix}.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"{file.path}: rotary scaling {kind[:40]!r} is not read from GGUF: expected linear or yarn")
    factor = float(file.number(f"{prefix}.factor"))
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = file.integer(f"{prefix}.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            value = file.number(f"{prefix}.yarn_{name}", None)
            if value is not None:
                scaling[name] = float(value)
        attention_factor = _attention_factor(file, prefix, factor)
        if attention_factor is not None:
            scaling["attention_factor"] = attention_factor
        if file.number(f"{prefix}.yarn_ext_factor", 1.0) not in (1, -1):
            raise ConfigError(f"{file.path}: {prefix}.yarn_ext_factor is not 1, which is not read from GGUF")
    return {"rope_scaling": scaling}


def _attention_factor(file: GgufFile, prefix: str, factor: float) -> float | None:
    """Return the scale that YaRN gives queries and keys, None for YaRN's own (0.1 ln(factor) + 1).

    `attn_factor` multiplies YaRN's own in llama.cpp; `yarn_attn_factor` is the `attention_factor` of config.json, as
    the converter copies it.
    """
    multiplier = file.number(f"{prefix}.attn_factor", None)
    if multiplier is not None:
        return float(multiplier) * yarn_magnitude(factor)
    copied = file.number(f"{prefix}.yarn_attn_factor", None)
    return None if copied is None else float(copied)


def yarn_magnitude(factor: float) -> float:
    """YaRN's own scale of queries and keys for a factor."""
    return 0.1 * math.log(max(factor, 1.0)) + 1.0


def _window(file: GgufFile, layers: int) -> dict[str, Any]:
    window = file.integer("qwen3.attention.sliding_window", 0)
    if not window:
        return {}
    pattern = file.numbers("qwen3.attention.sliding_window_pattern", None)
    config: dict[str, Any] = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    if pattern is not None:
        if len(pattern) != layers:
            raise CheckpointError(f"{file.path}: sliding_window_pattern names {len(pattern)} layers of {layers}")
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return config


def _head(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """Return the pooling of an embedding model, and the head of a reranker or classifier."""
    file = checkpoint.file
    pooling = file.integer("qwen3.pooling_type", 0)
    if pooling not in POOLING:
        raise CheckpointError(f"{file.path}: metadata qwen3.pooling_type is {pooling}, expected 0 to {max(POOLING)}")
    fields: dict[str, Any] = {} if POOLING[pooling] in (None, "rank") else {"pooling": POOLING[pooling]}
    if "score.weight" in checkpoint:
        labels = file.texts("qwen3.classifier.output_labels", [])
        rows = checkpoint.shape("score.weight")[0]
        fields["architectures"] = ["Qwen3ForSequenceClassification"]
        fields["num_labels"] = rows
        if len(labels) == rows > 1:
            fields["id2label"] = {str(index): label for index, label in enumerate(labels)}
    return fields


def _quantization(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """Return the entry of config.json: the most frequent format, and each layer that differs from it."""
    formats = checkpoint.formats
    used = list(formats.values())
    default = max(dict.fromkeys(used), key=used.count)

    def entry(form: tuple[int, str]) -> dict[str, Any]:
        return {"group_size": GROUP, "bits": form[0], "mode": form[1]}

    return {**entry(default), **{path: entry(form) for path, form in formats.items() if form != default}}


def generation_from_gguf(path: str | Path) -> dict[str, Any]:
    """Return the generation_config.json of a GGUF file: the ids that end a text, padding, and sampling.

    Raises:
        CheckpointError: metadata of a wrong type.
    """
    from ..checkpoint.gguf_split import open_gguf

    file = open_gguf(path)
    values: dict[str, Any] = {}
    names = ("eos", "eot", "eom")
    ends = [file.integer(f"tokenizer.ggml.{name}_token_id", None) for name in names]
    tokens, types = file.texts("tokenizer.ggml.tokens", []), file.numbers("tokenizer.ggml.token_type", ())
    for index in range(len(tokens) - 1, -1, -1):  # special tokens are at the end
        if tokens[index] in ENDS and index < len(types) and int(types[index]) != _NORMAL:
            ends.append(index)
    ends = [index for index in dict.fromkeys(ends) if index is not None]
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    padding = file.integer("tokenizer.ggml.padding_token_id", None)
    if padding is not None:
        values["pad_token_id"] = padding
    sampling = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    found = {field: file.number(f"general.sampling.{name}", None) for field, name in sampling.items()}
    repeat = file.number("general.sampling.penalty_repeat", None)
    values |= {field: value for field, value in found.items() if value is not None}
    if repeat is not None:
        values["repetition_penalty"] = repeat
    if any(value is not None for value in found.values()):
        values["do_sample"] = found["temperature"] is None or found["temperature"] > 0
    return values

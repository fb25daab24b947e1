"""Derive config.json and generation_config.json from the metadata and tensor table of a GGUF file.

GGUF stores no vocabulary size (it is the number of rows of the embedding), no flag for a tied head (`output.weight` is
absent then), and only one end-of-text token. The metadata is compared with the shapes of the tensors before a model is
created from it.
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
"""`qwen3.pooling_type` -> how the vectors of the tokens are pooled into one."""
ENDS = ("<|im_end|>", "<|endoftext|>")
"""Further tokens that end an answer, besides the one in the metadata, where the vocabulary contains them."""
_NORMAL = 1


def config_from_gguf(path: str | Path) -> dict[str, Any]:
    """Return the config.json of a GGUF file.

    Raises:
        UnsupportedModelError: the architecture is not Qwen3.
        CheckpointError: metadata is missing, has the wrong type, or contradicts the tensors.
        ConfigError: the RoPE scaling is not supported.
    """
    from ..checkpoint.gguf_split import open_gguf

    refuse_other_gguf(open_gguf(path))
    checkpoint = open_gguf_checkpoint(path)
    file = checkpoint.file
    layers = file.integer("qwen3.block_count")
    heads, groups, size = head_counts(file)
    embedding = _dense_shape(checkpoint, "model.embed_tokens.weight")
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
        **_read_special_ids(file),
        **_read_rope_scaling(file),
        **_read_window(file, layers),
        **_read_head(checkpoint),
    }
    if checkpoint.formats:
        config["quantization"] = _make_quantization_entry(checkpoint)
        config["quantization_config"] = config["quantization"]
    _check_sizes(checkpoint, config)
    return config


def refuse_other_gguf(file: GgufFile) -> None:
    """Check that a GGUF file holds a Qwen3 model.

    Raises:
        CheckpointError: the file does not hold a model.
        UnsupportedModelError: the architecture is not Qwen3.
    """
    kind = file.text("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{file.path} holds a {kind[:40]!r}, not a model. Give a GGUF file of a Qwen3 model.")
    if file.architecture != ARCHITECTURE:
        raise UnsupportedModelError(
            f"{file.path}: architecture {file.architecture[:40]!r} is not 'qwen3'. Run this file with llama.cpp "
            "(llama-cli -m FILE) or ollama."
        )


def _dense_shape(checkpoint: GgufCheckpoint, name: str) -> tuple[int, ...]:
    """Return the shape (rows, columns) of a weight after unpacking."""
    if name not in checkpoint:
        raise CheckpointError(f"{checkpoint.file.path} lacks {name}. Download it again.")
    shape, path = checkpoint.shape(name), name.removesuffix(".weight")
    if len(shape) != 2:
        raise CheckpointError(
            f"{checkpoint.file.path}: {name} has shape {shape}, expected a matrix. Download it again."
        )
    bits = checkpoint.formats.get(path, (32, ""))[0]
    return shape[0], shape[1] * 32 // bits


def _check_sizes(checkpoint: GgufCheckpoint, config: dict[str, Any]) -> None:
    """Compare the sizes in the metadata with the tensors, before layers of these sizes are created."""
    path, layers, width = checkpoint.file.path, config["num_hidden_layers"], config["hidden_size"]
    found_layers = sum(name.endswith(".input_layernorm.weight") for name in checkpoint.names)
    if layers < 1 or layers != found_layers:
        raise CheckpointError(
            f"{path}: metadata qwen3.block_count is {layers}, but the file has {found_layers} layers. Download it "
            "again."
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
        found = _dense_shape(checkpoint, name)
        if found != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {found}, the metadata requires {shape}. Convert the original model again."
            )
    value_length = checkpoint.file.integer("qwen3.attention.value_length", size)
    if value_length != size:
        raise CheckpointError(
            f"{path}: heads have keys of size {size} but values of size {value_length}, which Qwen3 does not support. "
            "Convert the original model again."
        )
    if config["max_position_embeddings"] < 1:
        raise CheckpointError(
            f"{path}: metadata qwen3.context_length is {config['max_position_embeddings']}, expected at least 1. "
            "Convert the original model again."
        )


def _read_special_ids(file: GgufFile) -> dict[str, Any]:
    names = {"eos_token_id": "eos", "bos_token_id": "bos", "pad_token_id": "padding"}
    return {field: file.integer(f"tokenizer.ggml.{name}_token_id", None) for field, name in names.items()}


def _read_rope_scaling(file: GgufFile) -> dict[str, Any]:
    prefix = "qwen3.rope.scaling"
    kind = file.text(f"{prefix}.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"{file.path}: RoPE scaling {kind[:40]!r} is not supported. Expected linear or yarn.")
    factor = float(file.number(f"{prefix}.factor"))
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = file.integer(f"{prefix}.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            value = file.number(f"{prefix}.yarn_{name}", None)
            if value is not None:
                scaling[name] = float(value)
        attention_factor = _read_attention_factor(file, prefix, factor)
        if attention_factor is not None:
            scaling["attention_factor"] = attention_factor
        if file.number(f"{prefix}.yarn_ext_factor", 1.0) not in (1, -1):
            raise ConfigError(
                f"{file.path}: {prefix}.yarn_ext_factor is not 1, which is not supported. Run this file with llama.cpp."
            )
    return {"rope_scaling": scaling}


def _read_attention_factor(file: GgufFile, prefix: str, factor: float) -> float | None:
    """Return the attention factor of YaRN, or None for its default 0.1 ln(factor) + 1.

    In llama.cpp `attn_factor` multiplies the default. `yarn_attn_factor` is the `attention_factor` of config.json,
    which the converter copies.
    """
    multiplier = file.number(f"{prefix}.attn_factor", None)
    if multiplier is not None:
        return float(multiplier) * yarn_magnitude(factor)
    copied = file.number(f"{prefix}.yarn_attn_factor", None)
    return None if copied is None else float(copied)


def yarn_magnitude(factor: float) -> float:
    """Return YaRN's default attention factor, which scales queries and keys, for a scaling factor."""
    return 0.1 * math.log(max(factor, 1.0)) + 1.0


def _read_window(file: GgufFile, layers: int) -> dict[str, Any]:
    window = file.integer("qwen3.attention.sliding_window", 0)
    if not window:
        return {}
    pattern = file.numbers("qwen3.attention.sliding_window_pattern", None)
    config: dict[str, Any] = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    if pattern is not None:
        if len(pattern) != layers:
            raise CheckpointError(
                f"{file.path}: sliding_window_pattern has {len(pattern)} entries, expected {layers}. "
                "Convert the original model again."
            )
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    return config


def _read_head(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """Return the configuration fields for the pooling of an embedding model and the head of a classifier."""
    file = checkpoint.file
    pooling = file.integer("qwen3.pooling_type", 0)
    if pooling not in POOLING:
        raise CheckpointError(
            f"{file.path}: metadata qwen3.pooling_type is {pooling}, expected 0 to {max(POOLING)}. "
            "Convert the original model again."
        )
    fields: dict[str, Any] = {} if POOLING[pooling] in (None, "rank") else {"pooling": POOLING[pooling]}
    if "score.weight" in checkpoint:
        labels = file.texts("qwen3.classifier.output_labels", [])
        rows = checkpoint.shape("score.weight")[0]
        fields["architectures"] = ["Qwen3ForSequenceClassification"]
        fields["num_labels"] = rows
        if len(labels) == rows > 1:
            fields["id2label"] = {str(index): label for index, label in enumerate(labels)}
    return fields


def _make_quantization_entry(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """Return `quantization` of config.json: the most frequent format, and the layers with another format."""
    formats = checkpoint.formats
    used = list(formats.values())
    default = max(dict.fromkeys(used), key=used.count)

    def entry(format: tuple[int, str]) -> dict[str, Any]:
        return {"group_size": GROUP, "bits": format[0], "mode": format[1]}

    return {**entry(default), **{path: entry(format) for path, format in formats.items() if format != default}}


def generation_from_gguf(path: str | Path) -> dict[str, Any]:
    """Return the generation_config.json of a GGUF file: end-of-text and padding tokens, and sampling options.

    Raises:
        CheckpointError: metadata has the wrong type.
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

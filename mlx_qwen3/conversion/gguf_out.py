"""`convert_to_gguf`: convert a checkpoint in any supported format to a GGUF file, a block of rows at a time."""

import logging
import os
import time
from pathlib import Path
from typing import Any, Unpack

import mlx.core as mx

from ..checkpoint import HubArguments, read_hub_arguments
from ..checkpoint.gguf_checkpoint import GgufCheckpoint
from ..checkpoint.gguf_names import gguf_name
from ..checkpoint.gguf_writer import GgufWriter, encode_rows, kind_bytes
from ..config.gguf import generation_from_gguf, yarn_magnitude
from ..config.qwen3 import SLIDING, Qwen3Config
from ..errors import CheckpointError, InputError, QuantizationError, UnsupportedModelError
from ..files import open_atomically, read_json_object
from ..folders import check_target_free
from ..models.weight_names import names_in_memory
from ..tokenizer import AutoTokenizer
from ..tokenizer.gguf_out import gguf_from_tokenizer
from .plan import kept_weights, row_blocks
from .result import Conversion
from .source import Source, SourceWeight, check_downloads, check_unchanged, file_hashes, open_source
from .stream import Progress, is_finite

logger = logging.getLogger(__name__)

GGUF_TYPES = {"f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q4_0": ("Q4_0", 2)}
"""Name -> tensor type of the matrices, and number of the file type in `general.file_type`."""
_CLASSES = ("Qwen3ForCausalLM", "Qwen3Model")


def convert_to_gguf(
    hf_path: str | Path,
    gguf_path: str | Path,
    gguf_type: str = "f16",
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    verify: bool = False,
    **hub_arguments: Unpack[HubArguments],
) -> Conversion:
    """Convert a Qwen3 checkpoint to a GGUF file for llama.cpp, ollama and LM Studio.

    Matrices get the chosen type; vectors stay float32. With `q4_0`, the embedding and the head are Q8_0, because they
    are the most sensitive. A matrix whose rows are not whole blocks of 32 is F16. Packed weights are decoded first.

    Args:
        hf_path: a folder, a Hub id or a GGUF file.
        gguf_path: the file to write, `NAME.gguf`.
        gguf_type: `f16`, `bf16`, `q8_0` or `q4_0`.
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        gguf_file: GGUF file in the folder or repository, by name or quantization.
        force: replace an existing file.
        progress: called with the bytes read so far and the bytes to read.
        verify: compare the sha256 of every source file before and after the conversion, instead of only size and
            modification time, and check the sha256 of downloaded files.
        **hub_arguments: arguments of the Hub as for `load`: `token`, `cache_dir`, `local_files_only` and others.

    Raises:
        InputError: the type is unknown, or the name does not end in .gguf.
        UnsupportedModelError: llama.cpp's qwen3 does not support the model or a setting.
        TokenizerError: GGUF does not support the tokenizer.
        QuantizationError: the type cannot represent a weight.
        CheckpointError, HubError: the source cannot be read, or the target cannot be written.
    """
    if gguf_type not in GGUF_TYPES:
        raise InputError(f"gguf_type is {gguf_type!r}, expected one of {', '.join(GGUF_TYPES)}.")
    if not isinstance(gguf_path, str | os.PathLike) or "\0" in str(gguf_path):
        raise InputError(f"gguf_path is {gguf_path!r}. Give the path of the file to write.")
    target = Path(os.path.abspath(os.path.expanduser(gguf_path)))
    if target.suffix != ".gguf":
        raise InputError(f"the name of the target {gguf_path} does not end in .gguf. Give --mlx-path NAME.gguf.")
    check_target_free(target, force)
    hub = read_hub_arguments(hub_arguments, revision, "convert_to_gguf")
    source = open_source(hf_path, gguf_file=gguf_file, hub=hub)
    if target in (file.resolve() for file in source.checkpoint.files):
        raise CheckpointError(f"the target {target} is the source. Choose another target.")
    config = _check_config(source)
    weights, names, config.tie_word_embeddings = _name_weights(source, config)
    kinds = {name: _choose_kind(name, weight.shape, gguf_type) for name, weight in zip(names, weights, strict=True)}
    metadata = _make_metadata(source, config, target, gguf_type)
    tensors = {name: (weight.shape, kinds[name]) for name, weight in zip(names, weights, strict=True)}
    hashes = file_hashes(source) if verify else None
    check_downloads(hashes or {})
    done, total = 0, sum(weight.nbytes for weight in weights)
    started = time.perf_counter()
    with open_atomically(target) as file:
        writer = GgufWriter(file, metadata, tensors)
        for name, weight in zip(names, weights, strict=True):
            for start, stop in row_blocks(weight) if len(weight.shape) > 1 else [(0, 1)]:
                _write(writer, name, kinds[name], weight, start, stop)
            done += weight.nbytes
            if weight.foreign is not None:
                weight.foreign.release()
            if progress is not None:
                progress(done, total)
        check_unchanged(source, hashes)
    bytes_out, parameters = sum(kind_bytes(*tensor) for tensor in tensors.values()), source.parameters
    return Conversion(
        path=target,
        bytes_in=total,
        bytes_out=bytes_out,
        parameters=parameters,
        bits_per_weight=8 * bytes_out / max(parameters, 1),
        kept=[name for name, kind in kinds.items() if kind == "F16" and gguf_type in ("q8_0", "q4_0")],
        seconds=time.perf_counter() - started,
    )


def _write(writer: GgufWriter, name: str, kind: str, weight: SourceWeight, start: int, stop: int) -> None:
    rows = weight.rows(start, stop) if len(weight.shape) > 1 else weight.checkpoint.read_now(weight.names[0])[None]
    if not mx.issubdtype(rows.dtype, mx.floating):
        raise CheckpointError(f"{weight.name} is stored as {rows.dtype}, expected floating point. Check the source.")
    stored = rows.astype(mx.float16) if kind == "F16" else rows
    if not is_finite(stored):
        if is_finite(rows):
            raise QuantizationError(f"{weight.name} has values that exceed float16. Choose --gguf-type bf16.")
        raise QuantizationError(f"{weight.name} has NaN or infinite values. Check the source.")
    writer.write_rows(name, start, encode_rows(rows, kind))


def _check_config(source: Source) -> Qwen3Config:
    """Return the configuration after checking that llama.cpp supports it."""
    name = source.model.__name__
    if name not in _CLASSES:
        raise UnsupportedModelError(
            f"{source.name} is {name}, but only {' and '.join(_CLASSES)} can be written as GGUF. Convert it to MLX."
        )
    config = Qwen3Config.from_dict({key: value for key, value in source.config.items() if key != "quantization"})
    rope = config.rope_parameters["rope_type"]
    reasons = {
        f"activation {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        "biases in attention": config.attention_bias,
        "sliding window attention": SLIDING in config.layer_types,
        f"RoPE scaling {rope}": rope not in ("default", "linear", "yarn"),
        "attention that is not causal": source.config.get("is_causal") is False,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UnsupportedModelError(
                f"{source.name} has {reason}, which llama.cpp's qwen3 does not support. Convert it to MLX."
            )
    return config


def _name_weights(source: Source, config: Qwen3Config) -> tuple[list[SourceWeight], list[str], bool]:
    """Return the weights to write, their GGUF names, and whether the head is tied."""
    weights, renamed, tied = kept_weights(source)
    rules = source.model.weight_rules
    names = []
    for weight in weights:
        name = renamed.get(weight.name, weight.name)
        found = gguf_name(names_in_memory([name], "model.", rules)[name])
        if found is None:
            raise CheckpointError(f"{source.name}: GGUF has no name for weight {weight.name}. Check the source.")
        names.append(found)
    untied = "output.weight" in names
    if not untied and not config.tie_word_embeddings and source.model.__name__ == "Qwen3ForCausalLM":
        raise CheckpointError(f"{source.name} lacks lm_head.weight. Download it again.")
    return weights, names, not untied if tied is None else tied


def _choose_kind(name: str, shape: tuple[int, ...], gguf_type: str) -> str:
    kind, _ = GGUF_TYPES[gguf_type]
    if len(shape) == 1:
        return "F32"
    if kind.startswith("Q") and shape[-1] % 32:
        return "F16"
    return "Q8_0" if kind == "Q4_0" and name in ("token_embd.weight", "output.weight") else kind


def _make_metadata(source: Source, config: Qwen3Config, target: Path, gguf_type: str) -> dict[str, Any]:
    heads = "qwen3.attention"
    metadata: dict[str, Any] = {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": Path(source.name).name.removesuffix(".gguf") or target.stem,
        "general.file_type": GGUF_TYPES[gguf_type][1],
        "general.quantization_version": 2,
        "qwen3.block_count": config.num_hidden_layers,
        "qwen3.context_length": config.max_position_embeddings,
        "qwen3.embedding_length": config.hidden_size,
        "qwen3.feed_forward_length": config.intermediate_size,
        f"{heads}.head_count": config.num_attention_heads,
        f"{heads}.head_count_kv": config.num_key_value_heads,
        f"{heads}.key_length": config.head_dim,
        f"{heads}.value_length": config.head_dim,
        f"{heads}.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "qwen3.rope.freq_base": float(config.rope_theta),
        **_make_rope_scaling(config),
    }
    sampling = _read_generation_config(source)
    for field, name in (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p")):
        value = sampling.get(field) if sampling.get("do_sample") else None
        if value is not None:
            metadata[f"general.sampling.{name}"] = value if field == "top_k" else float(value)
    metadata |= gguf_from_tokenizer(AutoTokenizer.from_pretrained(source.folder), config.vocab_size)
    if isinstance(config.bos_token_id, int):
        metadata["tokenizer.ggml.bos_token_id"] = config.bos_token_id
    return metadata


def _make_rope_scaling(config: Qwen3Config) -> dict[str, Any]:
    rope, prefix = config.rope_parameters, "qwen3.rope.scaling"
    if rope["rope_type"] == "default":
        return {}
    values: dict[str, Any] = {f"{prefix}.type": rope["rope_type"], f"{prefix}.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        values[f"{prefix}.original_context_length"] = rope["original_max_position_embeddings"]
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name) is not None:
                values[f"{prefix}.yarn_{name}"] = float(rope[name])
        if rope.get("attention_factor") is not None:
            values[f"{prefix}.attn_factor"] = float(rope["attention_factor"]) / yarn_magnitude(float(rope["factor"]))
    return values


def _read_generation_config(source: Source) -> dict[str, Any]:
    if isinstance(source.checkpoint, GgufCheckpoint):
        return generation_from_gguf(source.folder)
    file = source.folder / "generation_config.json"
    return read_json_object(file) if file.is_file() else {}

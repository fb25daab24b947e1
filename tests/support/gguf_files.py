"""GGUF files of tiny Qwen3 models, written with the `gguf` package in the format of llama.cpp's converter."""

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

from mlx_qwen3 import AutoTokenizer
from mlx_qwen3.checkpoint import open_checkpoint
from mlx_qwen3.checkpoint.gguf_names import gguf_name
from tests.support.tiny_checkpoints import write_qwen3

SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}
"""Packed type -> offsets of the float16 scales in its blocks."""


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return random blocks of a type, (rows, bytes per row), with scales in the range of real weights."""
    random = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for start in SCALES[kind]:
        scale = (random.normal(size=len(blocks)) / 64).astype(np.float16)
        blocks[:, start : start + 2] = scale[:, None].view(np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = random.integers(110, 126, len(blocks))
    return blocks.reshape(rows, -1)


def encoded(values: np.ndarray, kind: str) -> np.ndarray:
    """Return float32 values quantized by the `gguf` package."""
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])


def tokenizer_fields(writer: gguf.GGUFWriter, folder: Path, rows: int, **changes: Any) -> None:
    """Write the tokenizer of a folder in the format of llama.cpp's converter."""
    content = json.loads(AutoTokenizer.from_pretrained(folder).backend.to_str())
    tokens = {index: token for token, index in content["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, 1)
    looks_special = ("<|fim_", "<|repo_name|>", "<|file_sep|>")
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3 if token["special"] or token["content"].startswith(looks_special) else 4
    for index in range(rows):
        tokens.setdefault(index, f"[PAD{index}]")
        types.setdefault(index, 5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fields = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": [tokens[index] for index in range(len(tokens))],
        "types": [types[index] for index in range(len(tokens))],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]],
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "add_eos": None,
        "template": tokenizer.chat_template,
        **changes,
    }
    if fields["model"] is not None:
        writer.add_tokenizer_model(fields["model"])
        writer.add_token_list(fields["tokens"])
    if fields["pre"] is not None:
        writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_types(fields["types"])
    writer.add_token_merges(fields["merges"])
    for name, add in (("eos", writer.add_eos_token_id), ("pad", writer.add_pad_token_id)):
        if fields[name] is not None:
            add(fields[name])
    writer.add_add_bos_token(False)
    if fields["add_eos"] is not None:
        writer.add_add_eos_token(fields["add_eos"])
    if fields["template"] is not None:
        writer.add_chat_template(fields["template"])


def write_tokenizer_gguf(path: Path, folder: Path, rows: int, **changes: Any) -> Path:
    """Write a GGUF file with a tokenizer and an embedding of one column."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(4096)
    tokenizer_fields(writer, folder, rows, **changes)
    writer.add_tensor("token_embd.weight", np.zeros((rows, 1), np.float32))
    return _close(writer, path)


def write_model_gguf(
    path: Path,
    folder: Path,
    kind: str = "F32",
    *,
    tensors: dict[str, np.ndarray | None] | None = None,
    kinds: dict[str, str] | None = None,
    fields: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    arch: str = "qwen3",
) -> Path:
    """Write a checkpoint folder as a GGUF file and return its path.

    Args:
        kind: type of the matrices, one that the `gguf` package can quantize to.
        tensors: tensors by GGUF name that replace or extend those of the checkpoint; None omits a tensor.
        kinds: types of the tensors that are given as blocks.
        fields: metadata below `qwen3.`, or with full names, that replace or extend the defaults; None omits a field.
        tokenizer: changed fields of the tokenizer.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, arch)
    rope = config.get("rope_parameters") or {}
    values: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope.get("rope_theta") or config["rope_theta"]),
        **(fields or {}),
    }
    for key, value in values.items():
        if value is not None:
            _add(writer, key if key.startswith(("general.", "tokenizer.")) else f"qwen3.{key}", value)
    tokenizer_fields(writer, folder, config["vocab_size"], **(tokenizer or {}))
    arrays = checkpoint_arrays(folder) | (tensors or {})
    for name, array in arrays.items():
        if array is None:
            continue
        if array.dtype == np.uint8:
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[(kinds or {})[name]])
        elif array.ndim == 1 or kind == "F32":
            writer.add_tensor(name, array)
        else:
            raw = encoded(array, kind)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    return _close(writer, path)


def checkpoint_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return the weights of a folder in float32 by their GGUF names."""
    checkpoint = open_checkpoint(folder)
    arrays: dict[str, np.ndarray] = {}
    for name in checkpoint.names:
        stored = gguf_name(name)
        assert stored is not None, name
        arrays[stored] = np.array(checkpoint.read(name).astype(mx.float32))
    return arrays


def tiny_gguf(folder: Path, kind: str = "F32", **options: Any) -> Path:
    """Write a model of a few thousand weights to `folder`/tiny.gguf, with the original in `folder`/original."""
    config = options.pop("config", {})
    original = write_qwen3(folder / "original", "Qwen3ForCausalLM", **config)
    return write_model_gguf(folder / "tiny.gguf", original, kind, **options)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

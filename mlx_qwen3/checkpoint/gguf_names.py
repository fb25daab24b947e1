"""Translate between GGUF and Hugging Face names of Qwen3 tensors.

llama.cpp permutes the rows of queries and keys only for Llama. Its RoPE for Qwen3 rotates halves, as here, so the rows
of both formats are in the same order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from .gguf import GgufFile, GgufTensor

TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "cls.output": "score",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FUSED = "attn_qkv"
_BLOCK = re.compile(r"^blk\.(0|[1-9]\d{0,4})\.(\w+)\.(weight|bias)$")
_TO_GGUF = {there: here for here, there in TOP.items()} | {there: here for here, there in LAYER.items()}
_IN_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a tensor in the file: all rows, except for fused projections."""

    tensor: GgufTensor
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, rest = self.stop - self.start, self.tensor.shape[1:]
        return (rows, *rest)


def weight_rows(file: GgufFile) -> dict[str, Rows]:
    """Return the rows in the file of every weight, by Hugging Face name.

    Raises:
        CheckpointError: Qwen3 does not have a tensor, or a shape contradicts the metadata.
    """
    found: dict[str, Rows] = {}
    for name, tensor in file.tensors.items():
        for weight, rows in _find_weights(file, name, tensor).items():
            if weight in found:
                raise CheckpointError(
                    f"{file.path} holds {weight} twice, as {found[weight].tensor.name} and as {name}. Download it "
                    "again."
                )
            found[weight] = rows
    return found


def _find_weights(file: GgufFile, name: str, tensor: GgufTensor) -> Mapping[str, Rows]:
    if tensor.shape[2:]:
        raise CheckpointError(
            f"tensor {name!r} in {tensor.file} has shape {tensor.shape}, expected 1 or 2 dimensions. Download it again."
        )
    whole = Rows(tensor, 0, tensor.shape[0])
    path, _, part = name.rpartition(".")
    if path in TOP and part in ("weight", "bias"):
        return {f"{TOP[path]}.{part}": whole}
    match = _BLOCK.match(name)
    if match is not None:
        layer, path, part = match.groups()
        if path in LAYER:
            return {f"model.layers.{layer}.{LAYER[path]}.{part}": whole}
        if path == FUSED:
            return _split_fused(file, tensor, layer, part)
    raise CheckpointError(
        f"{tensor.file} has tensor {name[:80]!r}, which Qwen3 does not have: the file is damaged or holds another "
        "model. Convert the original model again."
    )


def _split_fused(file: GgufFile, tensor: GgufTensor, layer: str, part: str) -> dict[str, Rows]:
    heads, groups, size = head_counts(file)
    if tensor.shape[0] != (heads + 2 * groups) * size:
        raise CheckpointError(
            f"tensor {tensor.name!r} in {tensor.file} has {tensor.shape[0]} rows, expected "
            f"{(heads + 2 * groups) * size} for {heads} heads and 2 x {groups} key/value heads of {size}. "
            "Convert the original model again."
        )
    edges = (0, heads * size, (heads + groups) * size, (heads + 2 * groups) * size)
    return {
        f"model.layers.{layer}.self_attn.{letter}_proj.{part}": Rows(tensor, edges[index], edges[index + 1])
        for index, letter in enumerate("qkv")
    }


def head_counts(file: GgufFile) -> tuple[int, int, int]:
    """Return the numbers of attention heads and key/value heads, and the size of a head, from the metadata.

    Raises:
        CheckpointError: a key is missing, has the wrong type, or is not above 0.
    """
    prefix = f"{file.architecture}.attention"
    heads = file.integer(f"{prefix}.head_count")
    groups = file.integer(f"{prefix}.head_count_kv", heads)
    width = file.integer(f"{file.architecture}.embedding_length")
    size = file.integer(f"{prefix}.key_length", width // max(heads, 1))
    for key, value in (("head_count", heads), ("head_count_kv", groups), ("key_length", size)):
        if value < 1:
            raise CheckpointError(f"{file.path}: metadata {prefix}.{key} is {value}, expected a whole number above 0.")
    return heads, groups, size


def gguf_name(name: str) -> str | None:
    """Return the GGUF name of a Hugging Face weight, or None if GGUF has no such tensor."""
    match = _IN_LAYER.match(name)
    if match is not None:
        layer, path, part = match.groups()
        return f"blk.{layer}.{_TO_GGUF[path]}.{part}" if path in _TO_GGUF else None
    path, _, part = name.rpartition(".")
    return f"{_TO_GGUF[path]}.{part}" if path in _TO_GGUF else None

"""Tensor-parallel models over several processes, agreement between ranks, and distribution of rows."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint import Checkpoint
from ..errors import InputError
from .group import Group, part_of
from .layers import Divisible, SummedLinear, SummedQuantizedLinear, VocabularyEmbedding, VocabularyHead

ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers whose outputs are divided."""

COLUMNS = ("o_proj", "down_proj")
"""Layers whose inputs are divided; their products are summed over the ranks."""

VOCABULARY = ("embed_tokens", "lm_head")
VOCABULARY_BYTES = 64 << 20
"""Bytes of an embedding above which it is sharded: below, two more reductions per token cost more than they save."""

BYTES_AT_ONCE = 64 << 20
"""Bytes of a layer that are read, or decoded, before the columns of other ranks are dropped."""


def check_divides(config: Any, group: Group, groups: Iterable[int] = ()) -> None:
    """Check that the number of ranks divides the heads and columns.

    Args:
        groups: how many groups of packed columns the layers have whose columns are divided.

    Raises:
        InputError: the number of processes does not divide them; the message lists the numbers that do.
    """
    names = ("num_key_value_heads", "num_attention_heads", "intermediate_size")
    sizes = {name: int(getattr(config, name)) for name in names}
    if packed := math.gcd(*groups):
        sizes["the groups of packed columns"] = packed
    wrong = next((name for name, size in sizes.items() if size % group.size()), None)
    if wrong is None:
        return
    most = math.gcd(*sizes.values())
    fitting = " or ".join([f"{n}" for n in range(2, most + 1) if most % n == 0]) or "1"
    smaller = "" if wrong in names else ", or convert it with a smaller group size"
    raise InputError(
        f"{group.size()} processes do not divide {wrong} {sizes[wrong]} of this model. Start {fitting} "
        f"process{'es' if fitting != '1' else ''}{smaller}"
    )


def packed_groups(checkpoint: Checkpoint, weights: Mapping[str, str]) -> set[int]:
    """Return how many groups a row has, for each packed layer whose columns are divided.

    Args:
        weights: name in memory → name on disk.
    """
    found = {disk for name, disk in weights.items() if name.endswith(".scales") and _layer_of(name) in COLUMNS}
    return {checkpoint.shape(disk)[1] for disk in found}


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def divided_by(name: str, vocabulary: bool) -> str | None:
    """Return how a weight of this name is divided: "rows", "columns", or None for whole on every rank.

    Args:
        vocabulary: whether embedding and output head are divided.
    """
    layer = _layer_of(name)
    if layer in ROWS:
        return "rows"
    if layer in COLUMNS:
        return None if name.endswith(".bias") else "columns"
    return "rows" if vocabulary and layer in VOCABULARY else None


def read_parts(
    checkpoint: Checkpoint, disks: Mapping[str, str], how: str | None, group: Group, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """Read this rank's part of a layer's matrices, which have as many rows each.

    Args:
        disks: name of the parameter ("weight", "scales", "biases") → name on disk.
        how: as `divided_by` says.
        dtype: what floats become.
    """
    rows = checkpoint.shape(next(iter(disks.values())))[0]
    first, last = part_of(rows, group) if how == "rows" else (0, rows)
    row_bytes = sum(_row_bytes(checkpoint, disk) for disk in disks.values())
    whole = how != "columns" and not any(checkpoint.is_decoded(disk) for disk in disks.values())
    step = max(last - first, 1) if whole else max(1, BYTES_AT_ONCE // max(row_bytes, 1))
    blocks: dict[str, list[mx.array]] = {leaf: [] for leaf in disks}
    for start in range(first, last, step):
        for leaf, disk in disks.items():
            block = checkpoint.read_rows(disk, start, min(start + step, last))
            if how == "columns":
                left, right = part_of(block.shape[1], group)
                block = mx.contiguous(block[:, left:right])
            blocks[leaf].append(_cast(block, dtype))
            mx.eval(blocks[leaf][-1])
    checkpoint.release(next(iter(disks.values())))
    parts = {}
    for leaf, found in blocks.items():
        parts[leaf] = mx.concatenate(found) if len(found) > 1 else found[0]
        mx.eval(parts[leaf])
        found.clear()
    return parts


def _row_bytes(checkpoint: Checkpoint, disk: str) -> int:
    return math.prod(checkpoint.shape(disk)[1:]) * checkpoint.dtype(disk).size


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def load_divided(model: Any, checkpoint: Checkpoint, weights: Mapping[str, str], dtype: mx.Dtype, group: Group) -> None:
    """Read this rank's part of every weight into `model`, one layer at a time, and divide its layers.

    Args:
        model: a Qwen3 model with plain or packed layers, under an adapter or not; its arrays are replaced.
        weights: name in memory → name on disk.
        dtype: what floats become.
    """
    sizes = [checkpoint.nbytes(disk) for name, disk in weights.items() if name.endswith("embed_tokens.weight")]
    vocabulary = sum(sizes) >= VOCABULARY_BYTES and model.config.vocab_size % group.size() == 0
    vocabulary = vocabulary and model.adapter is None
    modules = dict(model.named_modules())
    for path, disks in _by_layer(checkpoint, weights):
        module = modules[path]
        while "base_layer" in module:  # under an adapter
            module = module.base_layer
        matrices = {leaf: disk for leaf, disk in disks.items() if len(checkpoint.shape(disk)) > 1}
        if matrices:
            how = divided_by(f"{path}.{next(iter(matrices))}", vocabulary)
            module.update(read_parts(checkpoint, matrices, how, group, dtype))
        for leaf, disk in disks.items():
            if leaf not in matrices:
                how = divided_by(f"{path}.{leaf}", vocabulary)
                rows = part_of(checkpoint.shape(disk)[0], group) if how == "rows" else None
                vector = checkpoint.read_now(disk) if rows is None else checkpoint.read_rows(disk, *rows)
                module[leaf] = _cast(vector, dtype)
        mx.eval(module.parameters())
    _divide_layers(model, group, vocabulary)


def _by_layer(checkpoint: Checkpoint, weights: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return (path of a layer, {parameter: name on disk}), in the order of the file."""
    found: dict[str, dict[str, str]] = {}
    for name, disk in weights.items():
        path, _, leaf = name.rpartition(".")
        found.setdefault(path, {})[leaf] = disk

    def position(item: tuple[str, dict[str, str]]) -> tuple[str, int]:
        entries = [checkpoint.entry(disk) for disk in item[1].values()]
        return min((str(entry.file), entry.offset) for entry in entries)

    return sorted(found.items(), key=position)


def _divide_layers(model: Any, group: Group, vocabulary: bool) -> None:
    decoder = model.base_model
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.heads //= group.size()
        attention.kv_heads //= group.size()
        for owner, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj"))):
            for name in names:
                if isinstance(owner[name], Divisible):
                    owner[name].divide_rows(group)
        attention.o_proj, mlp.down_proj = _with_sum(attention.o_proj, group), _with_sum(mlp.down_proj, group)
    if vocabulary:
        decoder.embed_tokens = VocabularyEmbedding(decoder.embed_tokens, group)
        if "lm_head" in model:
            model.lm_head = VocabularyHead(model.lm_head, group)


def _with_sum(layer: Any, group: Group) -> nn.Module:
    if isinstance(layer, Divisible):
        return layer.divide_columns(group)
    cls = SummedQuantizedLinear if isinstance(layer, nn.QuantizedLinear) else SummedLinear
    divided = cls.__new__(cls)
    nn.Module.__init__(divided)
    for name, array in layer.items():
        divided[name] = array
    if isinstance(layer, nn.QuantizedLinear):
        divided.group_size, divided.bits, divided.mode = layer.group_size, layer.bits, layer.mode
    divided._group = group
    return divided

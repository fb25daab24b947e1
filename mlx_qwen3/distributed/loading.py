"""Load the shard of a checkpoint that belongs to this rank."""

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
"""Layers that are sharded along their outputs."""

COLUMNS = ("o_proj", "down_proj")
"""Layers that are sharded along their inputs; their products are summed over the ranks."""

VOCABULARY = ("embed_tokens", "lm_head")
VOCABULARY_BYTES = 64 << 20
"""Size in bytes from which an embedding is sharded. Below, two more reductions per token cost more than they save."""

BYTES_AT_ONCE = 64 << 20
"""Bytes of a layer that are read, or decoded, at once before the columns of other ranks are dropped."""


def check_divides(config: Any, group: Group, groups: Iterable[int] = ()) -> None:
    """Check that heads and columns can be divided equally among the ranks. Several ranks may share a key/value head.

    Args:
        groups: numbers of quantization groups per row of the packed layers in `COLUMNS`.

    Raises:
        InputError: the number of processes does not divide them; the message lists the numbers that do.
    """
    kv_heads = int(config.num_key_value_heads)
    sizes = {name: int(getattr(config, name)) for name in ("num_attention_heads", "intermediate_size")}
    if packed := math.gcd(*groups):
        sizes["the groups of packed columns"] = packed

    def find_undivided(count: int) -> str | None:
        if kv_heads % count and count % kv_heads:
            return "num_key_value_heads"
        return next((name for name, size in sizes.items() if size % count), None)

    wrong = find_undivided(group.size())
    if wrong is None:
        return
    largest = math.gcd(*sizes.values())
    fitting = " or ".join([f"{n}" for n in range(2, largest + 1) if find_undivided(n) is None]) or "1"
    smaller = ", or convert it with a smaller group size" if "packed" in wrong else ""
    raise InputError(
        f"{group.size()} processes do not divide {wrong} {sizes.get(wrong, kv_heads)} of this model. Start {fitting} "
        f"process{'es' if fitting != '1' else ''}{smaller}."
    )


def rows_of(name: str, rows: int, kv_heads: int, group: Group) -> tuple[int, int]:
    """Return the first row of this rank's shard of a layer with `rows` rows, and the row after its last.

    If there are more ranks than key/value heads, several ranks hold the same head.
    """
    if _get_layer_name(name) in ("k_proj", "v_proj") and group.size() > kv_heads:
        head, share = group.rank() * kv_heads // group.size(), rows // kv_heads
        return head * share, (head + 1) * share
    return part_of(rows, group)


def packed_groups(checkpoint: Checkpoint, weights: Mapping[str, str]) -> set[int]:
    """Return the numbers of quantization groups per row that occur in the packed layers of `COLUMNS`.

    Args:
        weights: name in memory → name on disk.
    """
    found = {disk for name, disk in weights.items() if name.endswith(".scales") and _get_layer_name(name) in COLUMNS}
    return {checkpoint.shape(disk)[1] for disk in found}


def _get_layer_name(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def divided_by(name: str, vocabulary: bool) -> str | None:
    """Return axis a weight is sharded: "rows", "columns", or None if every rank holds all of it.

    Args:
        vocabulary: whether embedding and output head are sharded.
    """
    layer = _get_layer_name(name)
    if layer in ROWS:
        return "rows"
    if layer in COLUMNS:
        return None if name.endswith(".bias") else "columns"
    return "rows" if vocabulary and layer in VOCABULARY else None


def read_parts(
    checkpoint: Checkpoint, disks: Mapping[str, str], rows: tuple[int, int], columns: Group | None, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """Read this rank's shard of the matrices of a layer, which have equal numbers of rows.

    Args:
        disks: name of the parameter ("weight", "scales", "biases") → name on disk.
        rows: first row, and the row after the last.
        columns: group that the columns are divided among; None for all columns.
        dtype: dtype of floating-point arrays after loading.
    """
    first, last = rows
    row_bytes = sum(_count_row_bytes(checkpoint, disk) for disk in disks.values())
    whole = columns is None and not any(checkpoint.is_decoded(disk) for disk in disks.values())
    step = max(last - first, 1) if whole else max(1, BYTES_AT_ONCE // max(row_bytes, 1))
    blocks: dict[str, list[mx.array]] = {leaf: [] for leaf in disks}
    for start in range(first, last, step):
        for leaf, disk in disks.items():
            block = checkpoint.read_rows(disk, start, min(start + step, last))
            if columns is not None:
                left, right = part_of(block.shape[1], columns)
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


def _count_row_bytes(checkpoint: Checkpoint, disk: str) -> int:
    return math.prod(checkpoint.shape(disk)[1:]) * checkpoint.dtype(disk).size


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def load_divided(model: Any, checkpoint: Checkpoint, weights: Mapping[str, str], dtype: mx.Dtype, group: Group) -> None:
    """Read this rank's shard of every weight into `model`, one layer at a time, and shard its layers.

    Args:
        model: a Qwen3 model with plain or packed layers, with or without an adapter. It is changed in place.
        weights: name in memory → name on disk.
        dtype: dtype of floating-point arrays after loading.
    """
    sizes = [checkpoint.nbytes(disk) for name, disk in weights.items() if name.endswith("embed_tokens.weight")]
    vocabulary = sum(sizes) >= VOCABULARY_BYTES and model.config.vocab_size % group.size() == 0
    vocabulary = vocabulary and model.adapter is None
    modules, kv_heads = dict(model.named_modules()), model.config.num_key_value_heads
    for path, disks in _group_by_layer(checkpoint, weights):
        module = modules[path]
        while "base_layer" in module:  # the layer is wrapped by an adapter
            module = module.base_layer
        for leaf, disk in disks.items():
            if len(checkpoint.shape(disk)) == 1:
                vector, name = checkpoint.read_now(disk), f"{path}.{leaf}"
                if divided_by(name, vocabulary) == "rows":
                    first, last = rows_of(name, len(vector), kv_heads, group)
                    vector = mx.contiguous(vector[first:last])
                module[leaf] = _cast(vector, dtype)
        matrices = {leaf: disk for leaf, disk in disks.items() if len(checkpoint.shape(disk)) > 1}
        if matrices:
            name = f"{path}.{next(iter(matrices))}"
            axis, count = divided_by(name, vocabulary), checkpoint.shape(next(iter(matrices.values())))[0]
            rows = rows_of(name, count, kv_heads, group) if axis == "rows" else (0, count)
            columns = group if axis == "columns" else None
            module.update(read_parts(checkpoint, matrices, rows, columns, dtype))
        mx.eval(module.parameters())
    _divide_layers(model, group, vocabulary)


def _group_by_layer(checkpoint: Checkpoint, weights: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return (path of a layer, {parameter: name on disk}), sorted by file and offset, to read sequentially."""
    found: dict[str, dict[str, str]] = {}
    for name, disk in weights.items():
        path, _, leaf = name.rpartition(".")
        found.setdefault(path, {})[leaf] = disk

    def find_position(item: tuple[str, dict[str, str]]) -> tuple[str, int]:
        entries = [checkpoint.entry(disk) for disk in item[1].values()]
        return min((str(entry.file), entry.offset) for entry in entries)

    return sorted(found.items(), key=find_position)


def _divide_layers(model: Any, group: Group, vocabulary: bool) -> None:
    decoder, kv_heads = model.base_model, model.config.num_key_value_heads
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.heads //= group.size()
        attention.kv_heads = max(kv_heads // group.size(), 1)
        for owner, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj"))):
            for name in names:
                projection = owner[name]
                if isinstance(projection, Divisible):
                    projection.keep_rows(*rows_of(f"{name}.weight", projection.outputs, kv_heads, group))
        attention.o_proj, mlp.down_proj = _make_summed(attention.o_proj, group), _make_summed(mlp.down_proj, group)
    if vocabulary:
        decoder.embed_tokens = VocabularyEmbedding(decoder.embed_tokens, group)
        if "lm_head" in model:
            model.lm_head = VocabularyHead(model.lm_head, group)


def _make_summed(layer: Any, group: Group) -> nn.Module:
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

"""Several processes as one: tensor-parallel models, agreement between ranks, and rows that ranks share.

The rows of q, k, v, gate and up and the columns of o and down are divided, so that a layer needs one sum over the ranks
for its attention and one for its MLP (Megatron-LM, Shoeybi et al. 2019). Embedding and output head are divided by
vocabulary where the number of ranks divides it. Every rank reads its own part of each tensor and nothing else of it.
"""

import base64
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .checkpoint import Checkpoint
from .errors import CheckpointError, DistributedError, InputError

Group = mx.distributed.Group
T = TypeVar("T")

ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers whose outputs are divided."""

COLUMNS = ("o_proj", "down_proj")
"""Layers whose inputs are divided; their products are summed over the ranks."""

VOCABULARY = ("embed_tokens", "lm_head")
VOCABULARY_BYTES = 64 << 20
"""Bytes of an embedding from which on it is divided: below, two more sums per token would cost more than they save."""

BYTES_AT_ONCE = 64 << 20
"""Bytes of a tensor that are read before the columns of other ranks are dropped."""


# the group


def find_group(distributed: bool | Group) -> Group | None:
    """Return the group that a caller asks for, None for a single process.

    Args:
        distributed: True for all processes that `mlx.launch` started, or a group of `mx.distributed`.

    Raises:
        DistributedError: the processes cannot be connected.
    """
    if distributed is False or distributed is None:
        return None
    if distributed is True:
        try:
            group = mx.distributed.init()
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"the processes cannot be connected: {error}. Check the host file, and that its ports are free"
            ) from None
    elif isinstance(distributed, Group):
        group = distributed
    else:
        raise InputError(f"distributed is {distributed!r}, expected True, False or an mx.distributed.Group")
    return group if group.size() > 1 else None


def send_bytes(content: bytes | None, group: Group) -> bytes:
    """Return rank 0's `content` on every rank."""
    own = content is not None and group.rank() == 0
    length = int(np.array(_summed(mx.array([len(content or b"") if own else 0], mx.int32), group))[0])
    if not length:
        return b""
    payload = np.frombuffer(content or b"", np.uint8) if own else np.zeros(length, np.uint8)
    return np.array(_summed(mx.array(payload.astype(np.int32)), group)).astype(np.uint8).tobytes()


def gather_bytes(content: bytes, group: Group) -> list[bytes]:
    """Return every rank's `content`, in the order of the ranks, on every rank."""
    lengths = np.array(mx.distributed.all_gather(mx.array([len(content)], mx.int32), group=group))
    payload = np.zeros(max(int(lengths.max()), 1), np.int32)
    payload[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.array(mx.distributed.all_gather(mx.array(payload)[None], group=group))
    return [rows[rank, : lengths[rank]].astype(np.uint8).tobytes() for rank in range(group.size())]


def agree_on_seed(group: Group) -> int:
    """Draw a seed on rank 0, seed MLX with it on every rank, and return it."""
    seed = int.from_bytes(send_bytes(os.urandom(4), group), "little")
    mx.random.seed(seed)
    return seed


def any_rank(value: bool, group: Group) -> bool:
    """Return whether `value` is true on any rank; every rank must ask."""
    return bool(_summed(mx.array([int(value)], mx.int32), group).item())


TOKENS_BETWEEN_CHECKS = 8
_stop_requested = False


def request_stop() -> None:
    """Ask all ranks to stop their answer: within eight tokens each raises `KeyboardInterrupt`; see `stoppable`."""
    global _stop_requested
    _stop_requested = True


def stoppable(steps: Generator[T, None, None], group: Group | None) -> Generator[T, None, None]:
    """Yield from `steps`; raise `KeyboardInterrupt` on every rank at the same step once one was asked to stop."""
    global _stop_requested
    try:
        for count, step in enumerate(steps):
            if group is not None and count % TOKENS_BETWEEN_CHECKS == 0 and any_rank(_stop_requested, group):
                _stop_requested = False
                raise KeyboardInterrupt
            yield step
    finally:
        steps.close()


def check_same(group: Group, what: str, *content: Any) -> None:
    """Compare `content` (JSON) over the ranks.

    Raises:
        CheckpointError: some rank has something else.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).digest()
    others = [rank for rank, found in enumerate(gather_bytes(digest, group)) if found != digest]
    if others:
        raise CheckpointError(
            f"rank {others[0]} has another {what} than rank {group.rank()}: copy the same files and install the same "
            "version on every machine"
        )


def _summed(array: mx.array, group: Group) -> mx.array:
    total = mx.distributed.all_sum(array, group=group)
    mx.eval(total)
    return total


# what is divided


def check_divides(config: Any, group: Group) -> None:
    """Check that every rank gets as many heads and columns as the others.

    Raises:
        InputError: the number of processes does not divide them; the message says which numbers do.
    """
    fields = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = {name: getattr(config, name) for name in fields}
    wrong = next((name for name in ("num_key_value_heads", *fields) if sizes[name] % group.size()), None)
    if wrong is None:
        return
    fitting = [n for n in range(1, 257) if all(size % n == 0 for size in sizes.values())]
    raise InputError(
        f"{group.size()} processes do not divide {wrong} {sizes[wrong]} of this model. Start one of "
        f"{', '.join(map(str, fitting))} processes"
    )


def part_of(size: int, group: Group) -> tuple[int, int]:
    """Return where this rank's part of `size` rows begins and ends."""
    share = size // group.size()
    return group.rank() * share, (group.rank() + 1) * share


def divided_by(name: str, vocabulary: bool) -> str | None:
    """Return how a weight of this name is divided: "rows", "columns", or None for whole on every rank.

    Args:
        vocabulary: whether embedding and output head are divided.
    """
    layer, _, leaf = name.rpartition(".")
    layer = layer.rpartition(".")[2]
    if layer in ROWS:
        return "rows"
    if layer in COLUMNS:
        return None if leaf == "bias" else "columns"
    return "rows" if vocabulary and layer in VOCABULARY else None


def read_part(checkpoint: Checkpoint, disk: str, how: str | None, group: Group) -> mx.array:
    """Read this rank's part of a tensor, in pieces of at most `BYTES_AT_ONCE`.

    Raises:
        InputError: the number of processes does not divide the packed columns.
    """
    shape = checkpoint.shape(disk)
    if how is None:
        return checkpoint.read_now(disk)
    if how == "rows":
        first, last = part_of(shape[0], group)
        return checkpoint.read_rows(disk, first, last)
    if shape[1] % group.size():
        raise InputError(
            f"{group.size()} processes do not divide the {shape[1]} packed columns of {disk!r}: its groups are too "
            "wide. Start fewer processes, or convert the model with a smaller group size"
        )
    first, last = part_of(shape[1], group)
    step = max(1, BYTES_AT_ONCE // max(checkpoint.nbytes(disk) // max(shape[0], 1), 1))
    parts = []
    for row in range(0, shape[0], step):
        part = mx.contiguous(checkpoint.read_rows(disk, row, min(row + step, shape[0]))[:, first:last])
        mx.eval(part)
        parts.append(part)
    return mx.concatenate(parts) if len(parts) > 1 else parts[0]


# divided layers


def _summed_product(product: mx.array, layer: Any) -> mx.array:
    total = mx.distributed.all_sum(product, group=layer._group)
    return total + layer["bias"] if "bias" in layer else total


class SummedLinear(nn.Linear):
    """A linear layer that holds this rank's columns: the products are summed over the ranks, then the bias added."""

    _group: Group

    def __call__(self, x: mx.array) -> mx.array:
        return _summed_product(x @ self["weight"].T, self)


class SummedQuantizedLinear(nn.QuantizedLinear):
    """The same with packed weights."""

    _group: Group

    def __call__(self, x: mx.array) -> mx.array:
        parts = (self["weight"], self["scales"], self.get("biases"))
        settings = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        return _summed_product(mx.quantized_matmul(x, *parts, transpose=True, **settings), self)


class VocabularyHead(nn.Module):
    """The output head's rows of this rank: x (..., M) → the logits (..., V) of all ranks."""

    def __init__(self, layer: Any, group: Group):
        super().__init__()
        self._layer, self._group = layer, group
        for name, array in layer.items():
            self[name] = array

    def __call__(self, x: mx.array) -> mx.array:
        return gathered(self._layer(x), self._group)


def gathered(part: mx.array, group: Group) -> mx.array:
    """Join the last axis (..., V/N) of all ranks: (..., V)."""
    columns = mx.contiguous(part.reshape(-1, part.shape[-1]).T)
    return mx.distributed.all_gather(columns, group=group).T.reshape(*part.shape[:-1], -1)


class VocabularyEmbedding(nn.Module):
    """The embedding's rows of this rank: ids are looked up where they lie, and the vectors summed over the ranks."""

    def __init__(self, layer: Any, group: Group):
        super().__init__()
        self._layer, self._group = layer, group
        for name, array in layer.items():
            self[name] = array
        self._first = part_of(layer["weight"].shape[0] * group.size(), group)[0]
        self._rows = layer["weight"].shape[0]

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up ids (...) → vectors (..., M)."""
        local = ids.astype(mx.int32) - self._first
        here = (local >= 0) & (local < self._rows)
        rows = self._layer(mx.where(here, local, 0))
        return mx.distributed.all_sum(mx.where(here[..., None], rows, 0), group=self._group)

    def as_linear(self, x: mx.array) -> mx.array:
        """Multiply x (..., M) by the embedding: the logits (..., V) of all ranks."""
        return gathered(self._layer.as_linear(x), self._group)


def load_divided(model: Any, checkpoint: Checkpoint, weights: Mapping[str, str], dtype: mx.Dtype, group: Group) -> None:
    """Read this rank's part of every weight into `model`, one tensor at a time, and divide its layers.

    Args:
        model: a Qwen3 model with plain or packed layers; its arrays are replaced.
        weights: name in memory → name on disk.
        dtype: what floats become.
    """
    sizes = [checkpoint.nbytes(disk) for name, disk in weights.items() if name.endswith("embed_tokens.weight")]
    vocabulary = sum(sizes) >= VOCABULARY_BYTES and model.config.vocab_size % group.size() == 0
    for name, disk in _in_file_order(checkpoint, weights):
        array = read_part(checkpoint, disk, divided_by(name, vocabulary), group)
        if mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
        mx.eval(array)
        path, _, leaf = name.rpartition(".")
        module = model
        for step in path.split(".") if path else ():
            module = module[int(step)] if isinstance(module, list) else module[step]
        module[leaf] = array
        del array
    decoder = model.base_model
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.heads //= group.size()
        attention.kv_heads //= group.size()
        attention.o_proj, mlp.down_proj = _with_sum(attention.o_proj, group), _with_sum(mlp.down_proj, group)
    if vocabulary:
        decoder.embed_tokens = VocabularyEmbedding(decoder.embed_tokens, group)
        if "lm_head" in model:
            model.lm_head = VocabularyHead(model.lm_head, group)


def _in_file_order(checkpoint: Checkpoint, weights: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    def place(item: tuple[str, str]) -> tuple[str, int]:
        entry = checkpoint.entry(item[1])
        return str(entry.file), entry.offset

    yield from sorted(weights.items(), key=place)


def _with_sum(layer: Any, group: Group) -> nn.Module:
    cls = SummedQuantizedLinear if isinstance(layer, nn.QuantizedLinear) else SummedLinear
    divided = cls.__new__(cls)
    nn.Module.__init__(divided)
    for name, array in layer.items():
        divided[name] = array
    if isinstance(layer, nn.QuantizedLinear):
        divided.group_size, divided.bits, divided.mode = layer.group_size, layer.bits, layer.mode
    divided._group = group
    return divided


# rows that ranks share


def shared_rows(lengths: list[int], group: Group) -> list[int]:
    """Return the indices of this rank's rows: dealt by length, so that every rank gets as much to do."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return sorted(order[group.rank() :: group.size()])


def gather_rows(own: Mapping[int, Any], count: int, group: Group) -> list[Any]:
    """Return the results of all rows in their order, on every rank.

    Args:
        own: index → this rank's result, of the types of JSON.
    """
    packed = json.dumps(list(own.items())).encode()
    results: list[Any] = [None] * count
    for content in gather_bytes(packed, group):
        for index, result in json.loads(content):
            results[index] = result
    return results


def to_json(result: Any) -> Any:
    """Return a result as JSON can hold it: arrays as their bytes."""
    if isinstance(result, mx.array | np.ndarray):
        array = np.asarray(result, np.float32)
        kind = "mlx" if isinstance(result, mx.array) else "numpy"
        return {"__array__": base64.b64encode(array.tobytes()).decode(), "shape": array.shape, "kind": kind}
    return result


def from_json(result: Any) -> Any:
    """Return what `to_json` was given."""
    if not (isinstance(result, dict) and "__array__" in result):
        return result
    array = np.frombuffer(base64.b64decode(result["__array__"]), np.float32).reshape(result["shape"])
    return mx.array(array) if result["kind"] == "mlx" else array.copy()

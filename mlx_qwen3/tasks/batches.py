"""Run a model over rows of ids in batches of similar length, and return its outputs in the order of the rows.

Rows are sorted by length and padded on the right. A decoder then needs no mask: causal attention never reaches right
padding. A bidirectional model (`causal` is false) gets a mask. A prefix that all rows share is computed once. The
next batch is prepared while the device computes the previous one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..generation.continuous_batch import common_prefix
from ..layers.devices import on_cuda
from ..memory import machine_memory
from .prefix import shared_cache, tight_cache

TOKENS_A_BATCH = 8192
"""Padded tokens per batch if the number of rows is not given."""

ROWS_A_BATCH = 256

PLANNED_ROWS = [*range(1, 9), 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
"""Batch sizes used on CUDA: cuDNN plans attention anew for every batch size and width, which takes some 50 ms."""

COMPILED_TOKENS = 256
"""Padded tokens up to which a batch is limited by the host, so that compiling helps (benchmarks/RESULTS.md)."""

SHORTEST_PREFIX = 8
"""Tokens below which a shared prefix is not worth a separate forward pass."""

IDLE_SHARE = 4
"""MLX's buffer cache may hold at most 1/IDLE_SHARE of memory: buffers of one batch width are not reusable for
another.
"""

Compute = Callable[[dict[str, Any], mx.array], tuple[mx.array, ...]]
"""Compute arrays with one entry per row from (arguments of the model's call, index of each row's last token (B,))."""


@dataclass
class Piece:
    """One row for the model: ids, token types if the model has them, and data that the task attaches (`memo`)."""

    ids: list[int]
    type_ids: list[int] | None = None
    memo: Any = None


@dataclass
class Runner:
    """Run a model over pieces.

    Args:
        model: any model of this package; `compute` decides which part of it is called.
        pad_token_id: the id that pads a row; no result depends on it.
        compiled: whether a call is compiled once its shape has been seen before; None: on a GPU, up to
            `COMPILED_TOKENS` padded tokens. Larger batches are evaluated layer by layer, which a compiled call does
            not allow.
        shares_prefix: whether a prefix that all rows share is computed once; False if `compute` needs its states.
    """

    model: Any
    pad_token_id: int = 0
    compiled: bool | None = None
    shares_prefix: bool = True
    _functions: dict[Any, Any] = field(default_factory=dict)
    _shapes: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.base_model = self.model.base_model
        self.causal: bool = self.base_model.causal
        self._on_gpu = mx.default_device().type == mx.DeviceType.gpu

    def run(
        self,
        pieces: Sequence[Piece],
        compute: Compute,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        per_token: bool = False,
        padding_side: str = "right",
        finished: Callable[[list[int]], None] = lambda indices: None,
    ) -> list[tuple[np.ndarray, ...]]:
        """Return the outputs of `compute` for each piece, float32; the padding of outputs per token is removed.

        Args:
            batch_size: rows per batch; None for as many as `batch_tokens` allow.
            batch_tokens: padded tokens per batch; None for 8192.
            per_token: whether the second axis of the outputs is the token.
            finished: called after each batch with the indices of its pieces.
        """
        if not pieces:
            return []
        self._check_ids(pieces)
        left = padding_side == "left" and self.causal  # an encoder counts positions from the first slot
        may_share = self.causal and not left and self.shares_prefix
        shared = common_prefix([piece.ids for piece in pieces], SHORTEST_PREFIX) if may_share else 0
        wanted = compute if per_token else None
        prefix, ahead = self._prefix(pieces[0].ids[:shared], wanted) if shared else ([], ())
        results: list[tuple[np.ndarray, ...]] = [()] * len(pieces)
        waiting: deque[tuple[list[int], tuple[mx.array, ...]]] = deque()
        idle_bytes = machine_memory() // IDLE_SHARE

        def collect() -> None:
            indices, outputs = waiting.popleft()
            arrays = [np.array(output) for output in outputs]
            for row, index in enumerate(indices):
                parts = [array[row] for array in arrays]
                if per_token:
                    kept = len(pieces[index].ids) - shared
                    parts = [part[-kept:] if left else part[:kept] for part in parts]
                    if shared:
                        parts = [np.concatenate(both) for both in zip(ahead, parts, strict=True)]
                results[index] = tuple(parts)
            if mx.get_cache_memory() > idle_bytes:
                mx.clear_cache()
            finished(indices)

        planned = on_cuda() and batch_size is None
        lengths = [len(piece.ids) - shared for piece in pieces]
        for indices in batches_by_length(lengths, batch_size, batch_tokens, planned):
            rows = [pieces[i] for i in indices]
            if planned:  # the outputs of repeated rows are not read
                rows += rows[-1:] * (min(n for n in PLANNED_ROWS if n >= len(rows)) - len(rows))
            inputs, last = self._inputs(rows, shared, left)
            outputs = self._outputs(compute, inputs, last, prefix)
            mx.async_eval(outputs)
            waiting.append((indices, outputs))
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()
        return results

    def _inputs(self, pieces: list[Piece], shared: int, left: bool) -> tuple[dict[str, mx.array], mx.array]:
        lengths = np.array([len(piece.ids) - shared for piece in pieces], dtype=np.int32)
        width = self._width(int(lengths.max()))
        slots = np.arange(width)[None]
        real = slots >= width - lengths[:, None] if left else slots < lengths[:, None]
        ids = np.full(real.shape, self.pad_token_id, dtype=np.int32)
        ids[real] = np.concatenate([np.asarray(piece.ids[shared:], dtype=np.int32) for piece in pieces])
        inputs = {"input_ids": mx.array(ids)}
        if pieces[0].type_ids is not None:
            types = np.zeros(real.shape, dtype=np.int32)
            types[real] = np.concatenate([piece.type_ids[shared:] for piece in pieces if piece.type_ids])
            inputs["token_type_ids"] = mx.array(types)
        if (left or not self.causal) and not real.all():
            inputs["attention_mask"] = mx.array(real.astype(np.int32))
        return inputs, mx.array(np.full_like(lengths, width - 1) if left else lengths - 1)

    def _width(self, longest: int) -> int:
        """Return the padded length, rounded up on a GPU, where every new length costs a compilation or a plan."""
        if not (self._on_gpu if self.compiled is None else self.compiled):
            return longest
        step = 8 if longest <= 64 else 16 if longest <= 256 else 64
        width = -(-longest // step) * step
        limit = getattr(self.model.config, "max_position_embeddings", width)
        return width if width <= limit else longest

    def _prefix(self, ids: list[int], compute: Compute | None) -> tuple[list[mx.array], tuple[np.ndarray, ...]]:
        """Return the keys and values of the shared prefix, layer by layer, and the outputs of `compute`, if given."""
        cache = tight_cache(len(self.base_model.layers))
        inputs = {"input_ids": mx.array([ids], dtype=mx.int32), "past_key_values": cache}
        call = self._call(inputs)
        if compute is None:
            self.base_model(**call)
            outputs: tuple[mx.array, ...] = ()
        else:
            outputs = compute(call, mx.array([len(ids) - 1]))
        arrays = [array for pair in cache.to_legacy_cache() for array in pair if array is not None]
        mx.eval(arrays, outputs)
        return arrays, tuple(np.array(output)[0] for output in outputs)

    def _call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # `run` has checked the ids; with embeddings the model skips its own check, which waits for the device
        inputs = dict(inputs)
        inputs["inputs_embeds"] = self.model.get_input_embeddings()(inputs.pop("input_ids"))
        return {"use_cache": False, "return_dict": True, **inputs}

    def _outputs(
        self, compute: Compute, inputs: dict[str, mx.array], last: mx.array, prefix: list[mx.array]
    ) -> tuple[mx.array, ...]:
        def function(inputs: dict[str, mx.array], last: mx.array, prefix: list[mx.array]) -> tuple[mx.array, ...]:
            call = self._call(inputs)
            if prefix:
                call["past_key_values"] = shared_cache(prefix, last.shape[0])
            return compute(call, last)

        shape = (compute, inputs["input_ids"].shape, len(inputs), prefix[0].shape if prefix else ())
        small = self._on_gpu and inputs["input_ids"].size <= COMPILED_TOKENS
        if not (small if self.compiled is None else self.compiled) or shape not in self._shapes:
            self._shapes.add(shape)  # compiling a shape that occurs only once costs more than it saves
            return function(inputs, last, prefix)
        if compute not in self._functions:
            self._functions[compute] = mx.compile(function, inputs=[self.model.state])
        return self._functions[compute](inputs, last, prefix)

    def _check_ids(self, pieces: Sequence[Piece]) -> None:
        size = self.model.config.vocab_size
        for piece in pieces:
            if not piece.ids:
                raise InputError("a row has no tokens.")
            if max(piece.ids) >= size:
                raise InputError(
                    f"the tokenizer gives id {max(piece.ids)}, the model has {size} ids. Load the model's own "
                    "tokenizer."
                )


def batches_by_length(
    lengths: Sequence[int],
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    planned: bool = False,
) -> list[list[int]]:
    """Return the row indices of each batch, grouped by similar length, longest first.

    The longest rows run first, so that a batch that exceeds the memory fails at once. With `planned`, the size of a
    full batch is one of `PLANNED_ROWS`.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches, start = [], 0
    while start < len(order):
        longest = max(lengths[order[start]], 1)
        rows = batch_size or max(1, min(ROWS_A_BATCH, (batch_tokens or TOKENS_A_BATCH) // longest))
        if planned:
            rows = max(n for n in PLANNED_ROWS if n <= rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches

"""Forward pass and losses for training: without cache and input checks, with low memory use.

Losses are sums, so that accumulated minibatches of different sizes give the mean over all of their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..adapters.layers import KeyedDropout
from ..layers.masks import Mask, decoder_mask

ROWS_PER_CHUNK = 128
"""Number of rows whose logits over the vocabulary are in memory at the same time."""


def hidden_states(base: Any, ids: mx.array, checkpoint: bool = False) -> mx.array:
    """Compute the last hidden states (B, L, M) of ids (B, L) that are padded on the right.

    Args:
        checkpoint: keep only the inputs of the layers for the backward pass and recompute everything else. Recomputing
            parts of every layer without this option saved no memory on an H100 and cost a quarter of the speed.
    """
    x = base.embed_tokens(ids)
    length = ids.shape[1]
    rotation = base._rotary.at(0, length, x.dtype)
    masks: dict[Any, Mask] = {}
    for layer in base.layers:
        window = base.config.sliding_window if layer.self_attn.sliding else None
        if window not in masks:
            masks[window] = decoder_mask(length, 0, ((0, length),), window, None, None, 0, x.dtype)
        x = _run_layer(layer, x, rotation, masks[window], checkpoint)
    return base.norm(x)


def _run_layer(layer: Any, x: mx.array, rotation: Any, mask: Mask, checkpoint: bool) -> mx.array:
    """Compute the output of a decoder layer; with `checkpoint` recompute it in the backward pass."""
    # attention dropout has no keys, so it could not be repeated
    if checkpoint and layer.training and not layer.self_attn.dropout:
        return _make_recomputed([layer], lambda x: layer(x, rotation, mask)[0])(x)
    return layer(x, rotation, mask)[0]


def _make_recomputed(modules: Sequence[nn.Module], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with intermediates that are recomputed in the backward pass, with the same dropout.

    Values that the backward pass does not use are not recomputed, because MLX is lazy: of y = W·f(x) only f(x) is.

    Args:
        modules: modules whose parameters `function` uses.
    """
    inner = [m for module in modules for m in module.modules()] if modules[0].training else []
    dropouts = [m for m in inner if isinstance(m, KeyedDropout) and m.drops]
    keys = [mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32) for _ in dropouts]  # drawn outside the call

    def call(parameters: Sequence[mx.array], *arrays: mx.array) -> Any:
        for module, names, first in groups:
            held = zip(names, parameters[first : first + len(names)], strict=True)
            module.update(tree_unflatten(list(held)))
        for dropout, key in zip(dropouts, keys, strict=True):
            dropout.set_key(key)
        return function(*arrays)

    groups: list[tuple[nn.Module, list[str], int]] = []
    values: list[mx.array] = []
    for module in modules:
        named: Any = tree_flatten(module.trainable_parameters())
        groups.append((module, [name for name, _ in named], len(values)))
        values += [value for _, value in named]

    def recomputed(*arrays: mx.array) -> Any:
        count = len(arrays)

        @mx.custom_function
        def run(*leaves: mx.array) -> Any:
            return call(leaves[count:], *leaves[:count])

        @run.vjp
        def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
            given = [cotangents] if isinstance(cotangents, mx.array) else list(cotangents)

            def compute_again(*leaves: mx.array) -> list[mx.array]:
                found = call(leaves[count:], *leaves[:count])
                return [found] if isinstance(found, mx.array) else list(found)

            # Wait for the gradient: otherwise the intermediates of all layers would be in memory at the same time.
            return tuple(mx.vjp(compute_again, mx.depends(list(primals), given), given)[1])

        return run(*arrays, *values)

    return recomputed


def summed_cross_entropy(logits: mx.array, labels: mx.array, weights: mx.array) -> mx.array:
    """Compute the sum of weights · −log softmax(logits)[label]; logits (N, C), labels and weights (N,)."""
    logits = logits.astype(mx.float32)
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return mx.sum(losses * weights)


def chunked_cross_entropy(
    head: Callable[[mx.array], mx.array],
    rows: mx.array,
    labels: mx.array,
    weights: mx.array,
    trained: nn.Module | None = None,
    marks: list[mx.array] | None = None,
) -> mx.array:
    """Compute the summed cross entropy of head(rows) without keeping the logits of all rows in memory.

    With a frozen head, the gradient of the rows is computed together with the loss, chunk by chunk, and nothing is
    recomputed. With a trained head, each chunk is recomputed in the backward pass.

    Args:
        head: maps rows (n, M) to logits (n, V).
        rows: hidden states (N, M).
        labels: label ids (N,).
        weights: weights (N,).
        trained: the layer whose parameters `head` uses if it is trained; None for a frozen head.
        marks: receives one array per chunk of a frozen head, computed together with the chunk.
    """
    if trained is None:
        return _compute_frozen_head_loss(head, rows, labels, weights, [] if marks is None else marks)
    total = mx.array(0.0)
    for x, y, w in _split_chunks(rows, labels, weights):

        def chunk(x: mx.array, y: mx.array = y, w: mx.array = w) -> mx.array:
            return summed_cross_entropy(head(x), y, w)

        total = total + _make_recomputed([trained], chunk)(x)
    return total


def _split_chunks(*arrays: mx.array) -> list[tuple[mx.array, ...]]:
    borders = list(range(ROWS_PER_CHUNK, arrays[0].shape[0], ROWS_PER_CHUNK))
    return list(zip(*(mx.split(array, borders) for array in arrays), strict=True))


def _compute_frozen_head_loss(
    head: Callable[[mx.array], mx.array],
    rows: mx.array,
    labels: mx.array,
    weights: mx.array,
    marks: list[mx.array],
) -> mx.array:
    @mx.custom_function
    def loss_and_gradient(x: mx.array, y: mx.array, w: mx.array) -> tuple[mx.array, mx.array]:
        logits = head(x)
        scores = logits.astype(mx.float32)
        top = mx.logsumexp(scores, axis=-1, keepdims=True)
        total = mx.sum((top - mx.take_along_axis(scores, y[:, None], axis=-1))[:, 0] * w)
        chosen = mx.arange(logits.shape[-1], dtype=y.dtype) == y[:, None]
        change = (mx.exp(scores - top) - chosen) * w[:, None]
        return total, mx.vjp(lambda x: [head(x)], [x], [change.astype(logits.dtype)])[1][0]

    @loss_and_gradient.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return outputs[1] * cotangents[0].astype(outputs[1].dtype), *map(mx.zeros_like, primals[1:])

    total, previous = mx.array(0.0), None
    for x, y, w in _split_chunks(rows, labels, weights):
        if previous is not None:  # compute chunks sequentially, so that the logits of only one are in memory
            x = mx.depends([x], [previous])[0]
        loss, gradient = cast(Any, loss_and_gradient(x, y, w))
        total = total + loss
        previous = mx.stop_gradient(gradient)
        marks.append(previous)
    return total

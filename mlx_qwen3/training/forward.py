"""The forward pass and the losses of training: no cache, checks done beforehand, little memory.

Losses are sums over what counts, so that accumulated minibatches of different sizes give the mean of their union.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..adapters.layers import KeyedDropout
from ..layers.masks import Mask, decoder_mask

ROWS_PER_CHUNK = 256
"""Rows whose logits over the vocabulary exist at one time."""


def hidden_states(base: Any, ids: mx.array, checkpoint: bool = False) -> mx.array:
    """Return the last hidden states (B, L, M) of rows that are padded on the right, ids (B, L).

    Args:
        checkpoint: keep only the layers' inputs for the backward pass, and recompute everything else. Recomputing
            parts of every layer otherwise saved no memory on an H100 and cost a quarter of the speed.
    """
    x = base.embed_tokens(ids)
    length = ids.shape[1]
    rotation = base._rotary.at(0, length, x.dtype)
    masks: dict[Any, Mask] = {}
    for layer in base.layers:
        window = base.config.sliding_window if layer.self_attn.sliding else None
        if window not in masks:
            masks[window] = decoder_mask(length, 0, ((0, length),), window, None, None, 0, x.dtype)
        x = _layer(layer, x, rotation, masks[window], checkpoint)
    return base.norm(x)


def _layer(layer: Any, x: mx.array, rotation: Any, mask: Mask, checkpoint: bool) -> mx.array:
    """Return the output of a decoder layer, recomputed in the backward pass with `checkpoint`."""
    # dropped attention weights could not be drawn again
    if checkpoint and layer.training and not layer.self_attn.dropout:
        return _recomputed([layer], lambda x: layer(x, rotation, mask)[0])(x)
    return layer(x, rotation, mask)[0]


def _recomputed(modules: Sequence[nn.Module], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` such that its intermediates are recomputed in the backward pass, with the same dropout.

    What the backward pass does not use is not recomputed: of y = W·f(x) only f(x), because MLX is lazy.

    Args:
        modules: those whose parameters `function` uses.
    """
    inner = [m for module in modules for m in module.modules()] if modules[0].training else []
    dropouts = [m for m in inner if isinstance(m, KeyedDropout) and m.drops]
    keys = [mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32) for _ in dropouts]  # drawn outside the call

    def call(parameters: Sequence[mx.array], *arrays: mx.array) -> Any:
        for module, names, first in places:
            held = zip(names, parameters[first : first + len(names)], strict=True)
            module.update(tree_unflatten(list(held)))
        for dropout, key in zip(dropouts, keys, strict=True):
            dropout.set_key(key)
        return function(*arrays)

    places: list[tuple[nn.Module, list[str], int]] = []
    values: list[mx.array] = []
    for module in modules:
        named: Any = tree_flatten(module.trainable_parameters())
        places.append((module, [name for name, _ in named], len(values)))
        values += [value for _, value in named]

    def recomputed(*arrays: mx.array) -> Any:
        count = len(arrays)

        @mx.custom_function
        def run(*leaves: mx.array) -> Any:
            return call(leaves[count:], *leaves[:count])

        @run.vjp
        def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
            given = [cotangents] if isinstance(cotangents, mx.array) else list(cotangents)

            def again(*leaves: mx.array) -> list[mx.array]:
                found = call(leaves[count:], *leaves[:count])
                return [found] if isinstance(found, mx.array) else list(found)

            # not before the gradient arrives: recomputed at once, all layers' intermediates would be in memory
            return tuple(mx.vjp(again, mx.depends(list(primals), given), given)[1])

        return run(*arrays, *values)

    return recomputed


def summed_cross_entropy(logits: mx.array, labels: mx.array, weights: mx.array) -> mx.array:
    """Return the sum of weights · −log softmax(logits)[label]; logits (N, C), labels and weights (N,)."""
    logits = logits.astype(mx.float32)
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return mx.sum(losses * weights)


def chunked_cross_entropy(
    head: Callable[[mx.array], mx.array],
    rows: mx.array,
    labels: mx.array,
    weights: mx.array,
    trained: nn.Module | None = None,
) -> mx.array:
    """Return the summed cross entropy of head(rows) without ever holding the logits of all rows.

    With a frozen head the gradient of the rows is computed together with the loss, chunk by chunk, so that nothing is
    computed twice; with a trained one each chunk is computed again in the backward pass.

    Args:
        head: rows (n, M) -> logits (n, V).
        rows: (N, M). labels, weights: (N,).
        trained: the layer whose parameters `head` uses, where it is trained; None for a frozen head.
    """
    if trained is None:
        return _frozen_head_loss(head, rows, labels, weights)
    total = mx.array(0.0)
    for x, y, w in _chunks(rows, labels, weights):

        def chunk(x: mx.array, y: mx.array = y, w: mx.array = w) -> mx.array:
            return summed_cross_entropy(head(x), y, w)

        total = total + _recomputed([trained], chunk)(x)
    return total


def _chunks(*arrays: mx.array) -> list[tuple[mx.array, ...]]:
    count = arrays[0].shape[0]
    return [tuple(a[i : i + ROWS_PER_CHUNK] for a in arrays) for i in range(0, count, ROWS_PER_CHUNK)]


def _frozen_head_loss(
    head: Callable[[mx.array], mx.array], rows: mx.array, labels: mx.array, weights: mx.array
) -> mx.array:
    def loss_and_gradient(rows: mx.array) -> tuple[mx.array, mx.array]:
        total, gradients = mx.array(0.0), []
        for x, y, w in _chunks(rows, labels, weights):
            if gradients:  # one chunk after the other: side by side all their logits would be in memory
                x = mx.depends([x], [gradients[-1]])[0]
            logits = head(x)
            scores = logits.astype(mx.float32)
            top = mx.logsumexp(scores, axis=-1, keepdims=True)
            total = total + mx.sum((top - mx.take_along_axis(scores, y[:, None], axis=-1))[:, 0] * w)
            chosen = mx.arange(logits.shape[-1], dtype=y.dtype) == y[:, None]
            change = (mx.exp(scores - top) - chosen) * w[:, None]
            gradients.append(mx.vjp(lambda x: [head(x)], [x], [change.astype(logits.dtype)])[1][0])
        return total, mx.concatenate(gradients)

    @mx.custom_function
    def loss(rows: mx.array) -> tuple[mx.array, mx.array]:
        return loss_and_gradient(rows)

    @loss.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return outputs[1] * cotangents[0].astype(outputs[1].dtype)

    total: Any = loss(rows)
    return total[0]

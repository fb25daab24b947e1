"""The forward pass and the losses of training: no cache, checks done beforehand, little memory.

Losses are sums over what counts, so that accumulated minibatches of different sizes give the mean of their union.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint as checkpointed

from ..layers.masks import Mask, decoder_mask

ROWS_PER_CHUNK = 1024
"""Rows whose logits over the vocabulary exist at one time."""


def hidden_states(base: Any, ids: mx.array, checkpoint: bool = False) -> mx.array:
    """Return the last hidden states (B, L, M) of rows that are padded on the right, ids (B, L).

    Args:
        checkpoint: compute the layers' intermediates again in the backward pass instead of keeping them.
    """
    x = base.embed_tokens(ids)
    length = ids.shape[1]
    rotation = base._rotary.at(0, length, x.dtype)
    masks: dict[Any, Mask] = {}
    for layer in base.layers:
        window = base.config.sliding_window if layer.self_attn.sliding else None
        if window not in masks:
            masks[window] = decoder_mask(length, 0, ((0, length),), window, None, None, 0, x.dtype)
        x = _layer(layer, rotation, masks[window], checkpoint)(x)
    return base.norm(x)


def _layer(layer: Any, rotation: Any, mask: Mask, checkpoint: bool) -> Callable[[mx.array], mx.array]:
    def call(x: mx.array) -> mx.array:
        return layer(x, rotation, mask)[0]

    return checkpointed(layer, call) if checkpoint else call


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

        total = total + checkpointed(trained, chunk)(x)
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
            logits = head(x)
            scores = logits.astype(mx.float32)
            top = mx.logsumexp(scores, axis=-1, keepdims=True)
            chosen = mx.take_along_axis(scores, y[:, None], axis=-1)
            total = total + mx.sum((top - chosen)[:, 0] * w)
            change = mx.exp(scores - top)
            change = mx.put_along_axis(change, y[:, None], mx.exp(chosen - top) - 1, axis=-1) * w[:, None]
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

"""The losses of the heads, in float32.

Source: transformers 5.23 `loss/loss_utils.py`; torch's definitions of cross entropy, BCE with logits and MSE.
"""

import mlx.core as mx

from ..errors import InputError
from ..layers.arguments import check_range

IGNORED = -100
"""The label of ignored positions."""


def cross_entropy(
    logits: mx.array, labels: mx.array, ignored: int = IGNORED, num_items: float | mx.array | None = None
) -> mx.array:
    """Return the mean of −log softmax(logits)[label] over the labels that are not ignored; NaN if all are.

    Args:
        logits: (..., C). labels: (...) integers below C, or `ignored`.
        num_items: divide the sum by this instead of the number of labels that are not ignored.
    """
    classes = logits.shape[-1]
    logits, labels = logits.reshape(-1, classes).astype(mx.float32), labels.reshape(-1)
    if logits.shape[0] != labels.shape[0]:
        raise InputError(f"labels has {labels.shape[0]} entries, the logits have {logits.shape[0]}.")
    if mx.issubdtype(labels.dtype, mx.unsignedinteger):  # the dtype of argmax; it cannot be compared with −100
        labels = labels.astype(mx.int32)
    check_range(labels, 0, classes, "labels", f"the {classes} classes", ignored)
    counts = labels != ignored
    chosen = mx.where(counts, labels, 0)
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    total = mx.sum(mx.where(counts, losses, 0.0))
    return total / (mx.sum(counts) if num_items is None else num_items)


def shifted_cross_entropy(
    logits: mx.array,
    labels: mx.array,
    shift_labels: mx.array | None = None,
    num_items: float | mx.array | None = None,
) -> mx.array:
    """Return the language-modelling loss: position i predicts label i + 1.

    Args:
        logits: (B, L, V). labels: (B, L).
        shift_labels: (B, L) labels that are already shifted; used instead.
    """
    if shift_labels is None:
        if labels.shape != logits.shape[:2]:
            raise InputError(f"labels has shape {tuple(labels.shape)}, the logits {tuple(logits.shape[:2])}.")
        # the last position has no label; ignored rather than cut, so that a single token has a loss (NaN, as the
        # reference)
        none = mx.full((labels.shape[0], 1), IGNORED)
        shift_labels = mx.concatenate([labels[:, 1:], none], axis=1)
    return cross_entropy(logits, shift_labels, num_items=num_items)


def mean_squared_error(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the mean of (logit − label)²."""
    logits, labels = logits.astype(mx.float32), labels.astype(mx.float32)
    if logits.size != labels.size:
        raise InputError(f"labels has shape {tuple(labels.shape)}, expected {tuple(logits.shape)}.")
    return mx.mean(mx.square(logits - labels.reshape(logits.shape)))


def binary_cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the mean of −[y·log σ(x) + (1−y)·log(1−σ(x))], as max(x, 0) − x·y + log(1 + e^−|x|)."""
    if logits.shape != labels.shape:
        raise InputError(f"labels has shape {tuple(labels.shape)}, expected {tuple(logits.shape)}.")
    x, y = logits.astype(mx.float32), labels.astype(mx.float32)
    return mx.mean(mx.maximum(x, 0) - x * y + mx.log1p(mx.exp(-mx.abs(x))))


def span_loss(start_logits: mx.array, end_logits: mx.array, starts: mx.array, ends: mx.array) -> mx.array:
    """Return the mean of both cross entropies; positions are clamped to 0 … L, and L (beyond the sequence) is ignored.

    Args:
        start_logits, end_logits: (B, L). starts, ends: (B,) or (B, 1).
    """
    length = start_logits.shape[1]

    def side(logits: mx.array, positions: mx.array) -> mx.array:
        positions = positions[:, 0] if positions.ndim == 2 and positions.shape[1] == 1 else positions
        if mx.issubdtype(positions.dtype, mx.unsignedinteger):
            positions = positions.astype(mx.int32)
        return cross_entropy(logits, mx.clip(positions, 0, length), ignored=length)

    return (side(start_logits, starts) + side(end_logits, ends)) / 2

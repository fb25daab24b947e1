"""Sampling settings as logits processors over the whole vocabulary, in the reference's order.

`RandomSampler` computes temperature, top-k, top-p and min-p faster. The processors are used for settings that it does
not implement, and to return the `scores` that tokens were sampled from.

Source: transformers 5.23 `generation/logits_process.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..errors import InputError
from .checks import check_number
from .processors import LogitsProcessor
from .sampling import RandomSampler

TOP_H_CANDIDATES = 100
"""Number of best tokens that top-h considers."""


class Warper(LogitsProcessor):
    """A processor that depends only on the scores: a function of scores (B, V) that returns scores (B, V)."""

    def __init__(self, function: Callable[[mx.array], mx.array]):
        self.function = function

    def __call__(self, input_ids: mx.array, scores: mx.array) -> mx.array:
        return self.function(scores)


def make_warpers(config: Any) -> list[LogitsProcessor]:
    """Return the warpers for the sampling fields of a `GenerationConfig`, without a final log-softmax.

    Raises:
        InputError: a value is out of range.
    """
    chosen: list[Callable[[mx.array], mx.array]] = []
    temperature = 1.0 if config.temperature is None else config.temperature
    if temperature != 1:
        chosen.append(lambda scores: _scale(scores, temperature))
    if config.top_h is not None:
        check_number("top_h", config.top_h, above=0, most=1)
        chosen.append(lambda scores: top_h(scores, config.top_h))
    cuts = RandomSampler(1.0, config.top_k or 0, _replace_none(config.top_p, 1.0), config.min_p or 0.0)
    if cuts.top_k or cuts.top_p < 1 or cuts.min_p:
        chosen.append(lambda scores: _apply_cuts(cuts, scores))
    if config.typical_p is not None and config.typical_p < 1:
        check_number("typical_p", config.typical_p, above=0, most=1)
        chosen.append(lambda scores: typical(scores, config.typical_p))
    for name, function in (("epsilon_cutoff", epsilon_cutoff), ("eta_cutoff", eta_cutoff)):
        value = getattr(config, name)
        if value:
            if not 0 < value < 1:
                raise InputError(f"{name} is {value!r}, expected a number between 0 and 1.")
            chosen.append(lambda scores, f=function, v=value: f(scores, v))
    return [Warper(function) for function in chosen]


def log_softmax(scores: mx.array) -> mx.array:
    """Convert scores (B, V) to log-probabilities (B, V)."""
    return scores - mx.logsumexp(scores, axis=-1, keepdims=True)


def typical(scores: mx.array, mass: float) -> mx.array:
    """Keep the tokens whose information content is closest to the entropy, with total probability `mass`.

    Source: locally typical sampling, arXiv 2202.00666.
    """
    logs = log_softmax(scores)
    p = mx.exp(logs)
    entropy = -mx.sum(mx.where(p > 0, logs * p, 0.0), axis=-1, keepdims=True)
    distance = mx.abs(-logs - entropy)
    order = mx.argsort(distance, axis=-1)
    ordered = mx.take_along_axis(distance, order, axis=-1)
    cumulative = mx.cumsum(mx.take_along_axis(p, order, axis=-1), axis=-1)
    last = mx.minimum(mx.sum(cumulative < mass, axis=-1, keepdims=True), scores.shape[-1] - 1)
    border = mx.maximum(mx.take_along_axis(ordered, last, axis=-1), ordered[:, :1])
    return mx.where(distance > border, -math.inf, scores)


def epsilon_cutoff(scores: mx.array, epsilon: float) -> mx.array:
    """Drop tokens with a probability below `epsilon`, except for the best one (arXiv 2210.15191)."""
    low = mx.softmax(scores, axis=-1) < epsilon
    return mx.where(low & _below_best(scores), -math.inf, scores)


def eta_cutoff(scores: mx.array, epsilon: float) -> mx.array:
    """Drop tokens with a probability below min(ε, √ε · exp(−entropy)), except for the best one (arXiv 2210.15191)."""
    p = mx.softmax(scores, axis=-1)
    entropy = -mx.sum(mx.where(p > 0, p * log_softmax(scores), 0.0), axis=-1, keepdims=True)
    eta = mx.minimum(epsilon, math.sqrt(epsilon) * mx.exp(-entropy))
    return mx.where((p < eta) & _below_best(scores), -math.inf, scores)


def top_h(scores: mx.array, share: float) -> mx.array:
    """Keep the best tokens while their contribution to the entropy is at most `share` of the total (arXiv 2509.02510).

    Both are computed over the `TOP_H_CANDIDATES` best tokens.
    """
    count = min(TOP_H_CANDIDATES, scores.shape[-1])
    order = mx.argsort(-scores, axis=-1)[:, :count]
    p = mx.softmax(mx.take_along_axis(scores, order, axis=-1), axis=-1)
    terms = mx.where(p > 0, -p * mx.log(mx.maximum(p, 1e-45)), 0.0)
    kept = mx.cumsum(terms, axis=-1) <= share * mx.sum(terms, axis=-1, keepdims=True)
    kept[:, 0] = True
    mask = mx.put_along_axis(mx.zeros(scores.shape, dtype=mx.bool_), order, kept, axis=-1)
    return mx.where(mask, scores, -math.inf)


def _scale(scores: mx.array, temperature: float) -> mx.array:
    check_number("temperature", temperature, above=0, hint="0 means greedy")
    return scores / temperature


def _apply_cuts(cuts: RandomSampler, scores: mx.array) -> mx.array:
    """Return scores (B, V) with −inf for the tokens that the sampler's top-k, top-p and min-p drop."""
    weights, ids = cuts.candidates(scores)
    if ids is None:
        return mx.where(weights == -math.inf, -math.inf, scores)
    kept = mx.put_along_axis(mx.zeros(scores.shape, dtype=mx.bool_), ids, weights > -math.inf, axis=-1)
    return mx.where(kept, scores, -math.inf)


def _below_best(scores: mx.array) -> mx.array:
    return scores < mx.max(scores, axis=-1, keepdims=True)


def _replace_none(value: Any, default: float) -> float:
    return default if value is None else value

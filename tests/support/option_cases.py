"""Generation options and their effect on greedy decoding, computed with NumPy as the reference defines it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

TOKENS = 8
"""New tokens of a case that sets no length."""

Rule = Callable[[list[int], np.ndarray, int], np.ndarray]
"""Ids so far, scores (V,) and the prompt's length → scores (V,)."""


def unchanged(ids: list[int], scores: np.ndarray, prompt: int) -> np.ndarray:
    return scores


@dataclass(frozen=True)
class Case:
    """Generation options and their expected effect.

    Attributes:
        options: keywords of the generation functions.
        rule: function that applies the options to the scores.
        eos: additional ids that end the text.
        tokens: maximum number of new tokens.
        batches: whether `batch_generate` supports the options.
        reference: whether transformers supports them.
        extra: further keywords that have no effect on the scores.
    """

    name: str
    options: dict[str, Any]
    rule: Rule = unchanged
    eos: tuple[int, ...] = ()
    tokens: int = TOKENS
    batches: bool = True
    reference: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


def greedy_tokens(model: Any, prompt: list[int], case: Case, eos: list[int]) -> list[int]:
    """Return the new tokens after a prompt, including the ending one, computed without a cache."""
    ids = list(prompt)
    for _ in range(case.tokens):
        logits = np.array(model(mx.array([ids])).logits[0, -1].astype(mx.float32)).astype(np.float64)
        ids.append(int(np.argmax(case.rule(ids, logits, len(prompt)))))
        if ids[-1] in (*eos, *case.eos):
            break
    return ids[len(prompt) :]


def repetition(penalty):
    def rule(ids, scores, prompt):
        seen = sorted(set(ids))
        changed = scores.copy()
        changed[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        return changed

    return rule


def presence(once, each):
    def rule(ids, scores, prompt):
        counts = np.bincount(ids[prompt:], minlength=len(scores))[: len(scores)]
        return scores - once * (counts > 0) - each * counts

    return rule


def no_repeat(size):
    def rule(ids, scores, prompt):
        changed = scores.copy()
        grams = {tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)}
        for token in range(len(scores)):
            if tuple([*ids, token][-size:]) in grams:
                changed[token] = -np.inf
        return changed

    return rule


def biased(pairs):
    def rule(ids, scores, prompt):
        changed = scores.copy()
        for sequence, bias in pairs.items():
            if tuple(ids[len(ids) - len(sequence) + 1 :]) == sequence[:-1] or len(sequence) == 1:
                changed[sequence[-1]] += bias
        return changed

    return rule


def without(tokens, at=None, until=None):
    def rule(ids, scores, prompt):
        new = len(ids) - prompt
        if (at is not None and new != at) or (until is not None and new >= until):
            return scores
        changed = scores.copy()
        changed[list(tokens)] = -np.inf
        return changed

    return rule


def forced(token, at):
    def rule(ids, scores, prompt):
        if len(ids) - prompt != at:
            return scores
        changed = np.full_like(scores, -np.inf)
        changed[token] = 0
        return changed

    return rule


def decay(start, factor, eos):
    def rule(ids, scores, prompt):
        count = len(ids) - prompt - start
        changed = scores.copy()
        if count > 0:
            changed[eos] += np.abs(scores[eos]) * (factor**count - 1)
        return changed

    return rule


def most_typical(ids, scores, prompt):
    logs = scores - scores.max()
    logs = logs - np.log(np.exp(logs).sum())
    return -np.abs(-logs + (np.exp(logs) * logs).sum())


def cases(free: list[int]) -> list[Case]:
    """Return the cases; `free` is the greedy answer, which supplies the tokens that options are applied to."""
    a, b, c = free[0], free[1], free[3]
    sampled = {"do_sample": True}
    return [
        Case("nothing", {}),
        Case("max_new_tokens", {"max_new_tokens": 3}, tokens=3),
        Case("eos_token_id", {"eos_token_id": [b]}, eos=(b,)),
        Case("min_new_tokens", {"min_new_tokens": 5, "eos_token_id": [a, b]}, without([a, b], until=5), (a, b)),
        Case("repetition_penalty", {"repetition_penalty": 1.9}, repetition(1.9)),
        Case("presence_penalty", {"presence_penalty": 4.0}, presence(4.0, 0.0), reference=False),
        Case("frequency_penalty", {"frequency_penalty": 3.0}, presence(0.0, 3.0), reference=False),
        Case("no_repeat_ngram_size", {"no_repeat_ngram_size": 2}, no_repeat(2)),
        Case("no_repeat_ngram_size 1", {"no_repeat_ngram_size": 1}, no_repeat(1)),
        Case("bad_words_ids", {"bad_words_ids": [[a], [b, c]]}, biased({(a,): -np.inf, (b, c): -np.inf})),
        Case("sequence_bias", {"sequence_bias": {(a,): -3.0, (a, b): 9.0}}, biased({(a,): -3.0, (a, b): 9.0})),
        Case("suppress_tokens", {"suppress_tokens": [a, b]}, without([a, b])),
        Case("begin_suppress_tokens", {"begin_suppress_tokens": [a]}, without([a], at=0)),
        Case("forced_eos_token_id", {"forced_eos_token_id": 7}, forced(7, TOKENS - 1)),
        Case(
            "exponential_decay",
            {"exponential_decay_length_penalty": (1, 3.0), "eos_token_id": [c]},
            decay(1, 3.0, c),
            (c,),
        ),
        Case("remove_invalid_values", {"remove_invalid_values": True}),
        Case("renormalize_logits", {"renormalize_logits": True}),
        Case("top_k", {**sampled, "top_k": 1}),
        Case("temperature", {**sampled, "temperature": 1e-9}, extra={"top_k": 0}),
        Case("temperature near 0", {**sampled, "temperature": 1e-44}, extra={"top_k": 0}, reference=False),
        Case("top_p", {**sampled, "top_p": 1e-6}),
        Case("min_p", {**sampled, "min_p": 1.0}),
        Case("top_h", {**sampled, "top_h": 1e-6}),
        Case("typical_p", {**sampled, "typical_p": 1e-6, "top_k": 0, "top_p": 1.0, "temperature": 1.0}, most_typical),
        Case("epsilon_cutoff", {**sampled, "epsilon_cutoff": 0.999}),
        Case("eta_cutoff", {**sampled, "eta_cutoff": 0.999, "top_k": 0, "temperature": 1e-6}),
        Case("do_sample", {"do_sample": False}),
        Case("max_time", {"max_time": 1e-9}, tokens=1),
        Case("prompt_lookup_num_tokens", {"prompt_lookup_num_tokens": 3}, batches=False),
        Case("neutral values", {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "penalty_alpha": None}),
    ]

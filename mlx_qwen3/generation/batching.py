"""`batch_generate`: many prompts in, as many texts out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..errors import InputError
from .config import GenerationConfig
from .context import tokens_left
from .rows import RowToken, decode_rows
from .sampling import Sampler
from .steps import checked_prompt
from .stopping import StopStrings
from .stream import TextCodec, chosen_sampler, ending_ids, prompt_ids


@dataclass(frozen=True)
class BatchStats:
    """prompt_tokens, generation_tokens: of all sequences together, with seconds and tokens a second; peak_memory in GB.

    The time of the prompts ends with the first token of all; what joins later counts as generation.
    """

    prompt_tokens: int
    prompt_time: float
    prompt_tps: float
    generation_tokens: int
    generation_time: float
    generation_tps: float
    peak_memory: float


@dataclass(frozen=True)
class BatchResponse:
    """What `batch_generate` gives, each list in the order of the prompts.

    texts: the answers. token_ids: their ids, ending tokens left out. finish_reasons: "stop" or "length".
    """

    texts: list[str]
    token_ids: list[list[int]]
    finish_reasons: list[str]
    stats: BatchStats


@dataclass
class _Answer:
    """One sequence on its way."""

    detokenizer: Any
    stops: StopStrings
    ends: set[int]
    budget: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = "length"

    def take(self, token: int) -> bool:
        """Adds a token; true when the answer is over."""
        if token in self.ends:
            self.reason = "stop"
            return self._close()
        self.tokens.append(token)
        self.detokenizer.add_token(token)
        piece, found = self.stops.feed(self.detokenizer.last_segment)
        self.text += piece
        if found:
            self.reason = "stop"
            return True
        return self._close() if len(self.tokens) == self.budget else False

    def _close(self) -> bool:
        self.detokenizer.finalize()
        piece, found = self.stops.feed(self.detokenizer.last_segment)
        self.text += piece if found else piece + self.stops.flush()
        return True


def batch_generate(
    model: Any,
    tokenizer: TextCodec,
    prompts: Sequence[Any],
    max_tokens: int | Sequence[int] = 128,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    sampler: Sampler | Sequence[Sampler] | None = None,
    stop: str | Sequence[str] | None = None,
    stops: Sequence[str | Sequence[str] | None] | None = None,
    eos_token_ids: Sequence[int] | None = None,
    enable_thinking: bool | None = None,
    completion_batch_size: int = 32,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 0,
) -> BatchResponse:
    """The answers to many prompts, computed together. Greedy answers are those of single runs, but for scores that
    tie to within rounding.

    Args:
        prompts: texts as they are, ids (L,), or lists of messages, of any lengths.
        max_tokens: tokens to generate at most, for all or for each.
        temperature, top_k, top_p, min_p, seed: as in `stream_generate`, for all.
        sampler: logits (B, V) → tokens (B,), in place of the sampling arguments; or one for each prompt.
        stop: strings that end an answer and are not part of it; stops: other ones for each prompt.
        eos_token_ids: ids that end an answer; by default those of the generation_config and of the tokenizer.
        completion_batch_size: sequences in a pass; further prompts take the places of those that have ended,
            where the cache keeps all tokens unpacked, and wait for all of them elsewhere.
        kv_bits, kv_group_size, quantized_kv_start: of the cache.

    Raises:
        InputError: an empty prompt, lists of other lengths than `prompts`, a value out of range.
        ContextError: a prompt that fills the context.
    """
    if completion_batch_size < 1:
        raise InputError(f"completion_batch_size is {completion_batch_size}, expected a whole number above 0")
    config = getattr(model, "generation_config", None) or GenerationConfig()
    ids = _checked(model, tokenizer, prompts, enable_thinking)
    budgets = _each(max_tokens, len(ids), "max_tokens") if not isinstance(max_tokens, int) else [max_tokens] * len(ids)
    if any(budget < 1 for budget in budgets):
        raise InputError(f"max_tokens is {min(budgets)}, expected a whole number above 0")
    budgets = [tokens_left(model.config, 0, len(row), budget) for row, budget in zip(ids, budgets, strict=True)]
    if sampler is None:
        sampler = chosen_sampler(config, temperature, top_k, top_p, min_p, seed)
    samplers = [sampler] * len(ids) if callable(sampler) else _each(sampler, len(ids), "sampler")
    ends = ending_ids(config, tokenizer) if eos_token_ids is None else set(eos_token_ids)
    own_stops = [stop] * len(ids) if stops is None else _each(stops, len(ids), "stops")
    answers = [
        _Answer(tokenizer.make_detokenizer(), StopStrings(texts), ends, budget)
        for texts, budget in zip(own_stops, budgets, strict=True)
    ]

    def ended(found: RowToken) -> bool:
        return answers[found.row].take(found.token)

    start, first = time.perf_counter(), None
    for _ in decode_rows(
        model.for_inference() if hasattr(model, "for_inference") else model,
        ids,
        budgets,
        samplers,
        ended,
        wave_size=completion_batch_size,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        quantized_kv_start=quantized_kv_start,
    ):
        first = first or time.perf_counter()
    stats = _stats(ids, answers, start, first or time.perf_counter())
    return BatchResponse(
        [answer.text for answer in answers],
        [answer.tokens for answer in answers],
        [answer.reason for answer in answers],
        stats,
    )


def _checked(model: Any, tokenizer: Any, prompts: Sequence[Any], thinking: bool | None) -> list[list[int]]:
    if isinstance(prompts, str):
        raise InputError("prompts is a text, expected a list of prompts; pass [text] for one")
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            found = checked_prompt(prompt_ids(tokenizer, prompt, enable_thinking=thinking), model.config.vocab_size)
        except InputError as error:
            raise type(error)(f"prompt {number}: {error}") from None
        rows.append(found[0].tolist())
    return rows


def _each(values: Sequence[Any], count: int, name: str) -> list[Any]:
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} entries for {count} prompts; give one for each, or one for all")
    return list(values)


def _stats(ids: list[list[int]], answers: list[_Answer], start: float, first: float) -> BatchStats:
    stop = time.perf_counter()
    prompt, generated = sum(map(len, ids)), sum(len(answer.tokens) for answer in answers)
    before, after = max(first - start, 1e-9), max(stop - first, 1e-9)
    return BatchStats(prompt, before, prompt / before, generated, after, generated / after, mx.get_peak_memory() / 1e9)

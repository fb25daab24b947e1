"""The loop behind `model.generate`: a batch whose rows grow together until all are finished.

The model is called through one step function. The next step is already queued on the device while the tokens of the
previous one are read.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..cache import Cache
from ..errors import InputError
from ..layers.arguments import as_array, check_range
from .criteria import StoppingCriteriaList
from .decoding import NOTHING_ALLOWED
from .options import GenerationOptions
from .processors import apply_processors
from .results import GenerateOutput
from .sampling import INVALID, RandomSampler, Sampler, mark_invalid, sample_rows

logger = logging.getLogger(__name__)


@dataclass
class BatchPrompt:
    """The checked prompts of a `generate` call.

    Attributes:
        ids: (B, L), or None.
        embeds: (B, L, M) or None; used by the first pass instead of the ids.
        mask: (B, cached + L) int32 if there is padding, else None.
        positions: (B, L) if the caller passed them, else None.
        cached: number of tokens that are in the cache but not in the ids.
        extra: further keywords for the model's call, each with one row per sequence.
    """

    ids: mx.array | None
    embeds: mx.array | None
    mask: mx.array | None
    positions: mx.array | None = None
    cached: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> mx.array:
        """The input of the first pass, ids or embeddings."""
        found = self.ids if self.embeds is None else self.embeds
        assert found is not None
        return found

    @property
    def length(self) -> int:
        """Positions per row."""
        return self.source.shape[1]

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return self.source.shape[0]

    @property
    def left_padding(self) -> mx.array | None:
        """Number of padding tokens at the start of each row (B,), or None if it is unknown or there is no padding."""
        return None if self.mask is None or self.ids is None or self.cached else mx.argmax(self.mask, axis=1)

    @classmethod
    def of(
        cls,
        vocab_size: int,
        options: GenerationOptions,
        input_ids: Any,
        embeds: Any,
        mask: Any,
        positions: Any,
        past: int,
        extra: dict[str, Any],
    ) -> "BatchPrompt":
        """Check the arguments of a call and return its prompts, repeated `num_return_sequences` times.

        Args:
            past: number of tokens in the cache.
            extra: further keywords for the model's call.

        Raises:
            InputError: there is no prompt, an argument has the wrong shape, or an id is outside the vocabulary.
        """
        ids, embeds = as_array(input_ids, "input_ids"), as_array(embeds, "inputs_embeds")
        if ids is None and embeds is None:
            raise InputError("there is no prompt. Pass input_ids or inputs_embeds.")
        for name, given, sides in (
            ("input_ids", ids, "batch, length"),
            ("inputs_embeds", embeds, "batch, length, width"),
        ):
            wrong = given is not None and (given.ndim != sides.count(",") + 1 or not given.size)
            if given is not None and wrong and not (name == "input_ids" and embeds is not None):
                raise InputError(f"{name} has shape {tuple(given.shape)}, expected ({sides}).")
        if ids is not None and ids.size:
            check_range(ids, 0, vocab_size, "input_ids", f"the vocabulary of {vocab_size}")
            ids = ids.astype(mx.int32)
        elif embeds is not None:
            ids = None
        prompt = cls(ids, embeds, None, extra=extra)
        if ids is not None and ids.shape[0] != prompt.rows:
            raise InputError(
                f"input_ids has {ids.shape[0]} rows and inputs_embeds {prompt.rows}. Pass the same number of rows."
            )
        prompt._set_mask(as_array(mask, "attention_mask"), past, options)
        prompt._set_positions(as_array(positions, "position_ids"))
        copies = options.config.num_return_sequences or 1
        if copies > 1 and not options.samples:
            raise InputError(f"num_return_sequences is {copies} but greedy search finds one. Pass do_sample=True.")
        return prompt._repeat(copies) if copies > 1 else prompt

    def _set_mask(self, mask: mx.array | None, past: int, options: GenerationOptions) -> None:
        shape = (self.rows, self.length)
        pad = options.config.pad_token_id
        if mask is None:
            if self.embeds is not None or pad is None or pad in options.eos_token_ids:
                return
            mask = self.ids != pad  # pyright: ignore[reportAssignmentType]
        elif past and tuple(mask.shape) == (self.rows, past + self.length):
            self.cached = past
        elif tuple(mask.shape) != shape:
            raise InputError(f"attention_mask has shape {tuple(mask.shape)}, expected {shape}.")
        assert mask is not None
        mask = (mask != 0).astype(mx.int32)
        if mx.all(mask).item():
            return
        self.mask = mask
        if mx.any(mask[:, -1] == 0).item():
            logger.warning(
                "the prompts are padded on the right, so new tokens follow padding. Pad them on the left "
                "(padding_side='left')"
            )

    def _set_positions(self, positions: mx.array | None) -> None:
        if positions is None:
            return
        if positions.ndim != 2 or positions.shape[0] not in (1, self.rows) or positions.shape[1] != self.length:
            raise InputError(f"position_ids has shape {tuple(positions.shape)}, expected ({self.rows}, {self.length}).")
        self.positions = mx.broadcast_to(positions.astype(mx.int32), (self.rows, self.length))

    def _repeat(self, copies: int) -> "BatchPrompt":
        ids, embeds, mask, positions = (
            None if a is None else mx.repeat(a, copies, axis=0)
            for a in (self.ids, self.embeds, self.mask, self.positions)
        )
        extra = {
            name: mx.repeat(value, copies, axis=0)
            if isinstance(value, mx.array) and value.ndim and value.shape[0] == self.rows
            else value
            for name, value in self.extra.items()
        }
        return BatchPrompt(ids, embeds, mask, positions, self.cached, extra)


@dataclass
class GenerateLoop:
    """The loop of one `generate` call.

    Args:
        step: see `GenerationMixin._generation_step`.
        processors: functions of ids (B, S) and float32 scores (B, V).
        warpers: processors for the sampling settings; needed for `collect_scores`, and for `sample_warped`.
        sampler: function of scores (B, V) that returns tokens (B,).
        criteria: stopping criteria besides `eos_token_ids`.
        streamer: its `put(array)` and `end()` are called; None for none.
        positions_from_mask: whether position ids are computed from the mask.
        prefill_chunk_size: prompt tokens per forward pass; None for all.
        collect_scores, collect_logits: whether to return the scores after and the logits before processing.
        keep_cache: whether the caller uses the cache afterwards; then no step is computed ahead.
        sample_warped: whether to sample from the result of the warpers, because the sampler lacks a setting.
    """

    step: Callable[..., Any]
    processors: Sequence[Callable[[mx.array, mx.array], mx.array]]
    warpers: Sequence[Callable[[mx.array, mx.array], mx.array]]
    sampler: Sampler
    max_new_tokens: int
    eos_token_ids: Sequence[int]
    pad_token_id: int | None
    criteria: StoppingCriteriaList
    streamer: Any
    positions_from_mask: bool
    prefill_chunk_size: int | None = None
    collect_scores: bool = False
    collect_logits: bool = False
    keep_cache: bool = False
    sample_warped: bool = False

    def __call__(self, prompt: BatchPrompt, past: Any, use_cache: bool) -> GenerateOutput:
        """Generate until every row is finished or has `max_new_tokens` new tokens.

        Raises:
            InputError: no token is allowed in one of the rows.
        """
        self._output = GenerateOutput(scores=(), logits=(), attentions=(), hidden_states=())
        self._mask, self._use_cache, self._cached = prompt.mask, use_cache, prompt.cached
        self._positions = self._compute_positions(prompt)
        rows = prompt.rows
        own = self.sampler
        self._samplers = [own.for_row(row) if isinstance(own, RandomSampler) else own for row in range(rows)]
        ids = mx.zeros((rows, 0), dtype=mx.int32) if prompt.ids is None else prompt.ids
        if self.streamer is not None:
            self.streamer.put(ids)
        finished = mx.zeros((rows,), dtype=mx.bool_)
        logits, past = self._prefill(prompt, past)
        for count in range(1, self.max_new_tokens + 1):
            tokens, finished = self._choose(ids, logits, finished)
            before, ids = finished, mx.concatenate([ids, tokens[:, None]], axis=1)
            last = count == self.max_new_tokens
            ahead = not (last or self.keep_cache or self.criteria)
            if ahead:
                mx.async_eval(tokens, before)
                logits, past = self._next(ids, tokens, prompt, past)
                mx.async_eval(logits)
            if self.streamer is not None:
                mx.eval(tokens)  # the streamer may read them in another thread
                self.streamer.put(tokens)
            if self.criteria:
                finished = before | mx.array(self.criteria(ids, self._output.scores or None))
            all_finished, invalid = mx.stack([mx.all(finished), mx.any(tokens == INVALID)]).tolist()  # type: ignore
            if invalid:
                raise InputError(NOTHING_ALLOWED)
            if last or all_finished:
                break
            if not ahead:
                logits, past = self._next(ids, tokens, prompt, past)
        if self.streamer is not None:
            self.streamer.end()
        self._output.sequences = ids
        self._output.past_key_values = past if use_cache else None
        evaluate_tree(self._output)
        for name in ("scores", "logits", "attentions", "hidden_states"):
            setattr(self._output, name, getattr(self._output, name) or None)
        return self._output

    def _compute_positions(self, prompt: BatchPrompt) -> mx.array | None:
        """Return position ids (B, cached + L), or None if the model's own are correct."""
        counted = None
        if prompt.mask is not None and self.positions_from_mask:
            counted = mx.where(prompt.mask == 0, 0, mx.cumsum(prompt.mask, axis=1) - 1)
        if prompt.positions is None:
            return counted
        missing = mx.zeros((prompt.rows, prompt.cached), dtype=mx.int32)
        return mx.concatenate([missing, prompt.positions], axis=1)

    def _choose(self, ids: mx.array, logits: mx.array, finished: mx.array) -> tuple[mx.array, mx.array]:
        """Return the tokens of this step (B,) and which rows are finished after it (B,)."""
        scores = logits
        if self.processors or self.warpers or self.collect_scores or self.collect_logits:
            scores = logits = logits.astype(mx.float32)
        scores = apply_processors(self.processors, ids, scores)
        output, warped = self._output, apply_processors(self.warpers, ids, scores)
        if self.collect_scores:
            output.scores = (*(output.scores or ()), warped)
        scores = warped if self.sample_warped else scores
        if self.collect_logits:
            output.logits = (*(output.logits or ()), logits)
        tokens = mark_invalid(sample_rows(scores, self._samplers), scores)
        if self.eos_token_ids and self.pad_token_id is not None:
            tokens = mx.where(finished, self.pad_token_id, tokens)
        for eos in self.eos_token_ids:
            finished = finished | (tokens == eos)
        return tokens, finished

    def _prefill(self, prompt: BatchPrompt, past: Any) -> tuple[mx.array, Any]:
        start = 0 if prompt.cached else cached_tokens(past if self._use_cache else None)
        if start >= prompt.length:
            raise InputError(
                f"past_key_values has {start} tokens already and input_ids only {prompt.length}. Pass the "
                "whole text, including new tokens, or the new tokens with an attention_mask over all tokens."
            )
        size = self.prefill_chunk_size if past is not None and self._use_cache else None
        while size is not None and prompt.length - start > size:
            _, past = self._run(prompt, start, start + size, past)
            mx.eval([array for layer in past for array in layer if array is not None])
            start += size
        return self._run(prompt, start, prompt.length, past)

    def _run(self, prompt: BatchPrompt, start: int, stop: int, past: Any) -> tuple[mx.array, Any]:
        ids = None if prompt.ids is None or prompt.embeds is not None else prompt.ids[:, start:stop]
        embeds = None if prompt.embeds is None else prompt.embeds[:, start:stop]
        cached = self._cached
        mask = None if self._mask is None else self._mask[:, : cached + stop]
        positions = None if self._positions is None else self._positions[:, cached + start : cached + stop]
        return self._call(ids, embeds, mask, positions, past)

    def _next(self, ids: mx.array, tokens: mx.array, prompt: BatchPrompt, past: Any) -> tuple[mx.array, Any]:
        if self._mask is not None:
            one = mx.ones((tokens.shape[0], 1), dtype=mx.int32)
            self._mask = mx.concatenate([self._mask, one], axis=1)
        if self._positions is not None:  # continue from the last token, which may be padding in the prompt
            self._positions = mx.concatenate([self._positions, self._positions[:, -1:] + 1], axis=1)
        if past is not None:
            newest = None if self._positions is None else self._positions[:, -1:]
            return self._call(tokens[:, None], None, self._mask, newest, past)
        if prompt.embeds is not None:
            raise InputError("inputs_embeds is not supported with use_cache=False. Omit use_cache.")
        return self._call(ids, None, self._mask, self._positions, None)

    def _call(
        self,
        ids: mx.array | None,
        embeds: mx.array | None,
        mask: mx.array | None,
        positions: mx.array | None,
        past: Any,
    ) -> tuple[mx.array, Any]:
        """Run one step of the model; return the newest logits (B, V) and the cache."""
        output = self.step(ids, embeds, mask, positions, past, self._use_cache)
        kept = self._output
        for name in ("attentions", "hidden_states"):
            value = getattr(output, name, None)
            if value is not None:
                setattr(kept, name, (*(getattr(kept, name) or ()), value))
        return output.logits[:, -1], output.past_key_values


def evaluate_tree(value: Any) -> None:
    """Evaluate every array in a result, including its cache, so that any thread may read it."""
    if isinstance(value, mx.array):
        mx.eval(value)
    elif isinstance(value, Cache):
        mx.eval(value.arrays)
    elif isinstance(value, Mapping):
        evaluate_tree(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            evaluate_tree(part)


def cached_tokens(past: Any) -> int:
    """Return the number of tokens in a cache; 0 for None."""
    return past.get_seq_length() if past is not None and hasattr(past, "get_seq_length") else 0

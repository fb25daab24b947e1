"""The loop behind `model.generate`: a batch of rows that grow together until each has ended.

Knows the model as one function; the next step is on its way to the device while the last one's tokens are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..cache import Cache
from ..errors import InputError
from ..layers.arguments import as_array, check_range
from .processors import Processor
from .results import GenerateOutput
from .sampling import Sampler


@dataclass
class BatchPrompt:
    """What `generate` starts from, checked: ids (B, L) or embeds (B, L, M), and a mask (B, L) where there is padding.

    extra: further keywords for the model's call, each with one row a sequence.
    """

    ids: mx.array | None
    embeds: mx.array | None
    mask: mx.array | None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Positions in a row."""
        source = self.ids if self.embeds is None else self.embeds
        assert source is not None
        return source.shape[1]

    @property
    def left_padding(self) -> mx.array | None:
        """How many tokens of padding each row starts with (B,), or None when every token counts."""
        return None if self.mask is None or self.ids is None else mx.argmax(self.mask, axis=1)

    @classmethod
    def of(cls, vocab_size: int, config: Any, input_ids: Any, embeds: Any, mask: Any, extra: dict[str, Any]) -> Any:
        """The prompt of a call with a `GenerationConfig`, repeated for `num_return_sequences`."""
        ids, embeds = as_array(input_ids, "input_ids"), as_array(embeds, "inputs_embeds")
        if (ids is None) == (embeds is None):
            raise InputError("give either input_ids or inputs_embeds, and not both")
        source = ids if embeds is None else embeds
        assert source is not None
        if source.ndim != (2 if embeds is None else 3) or not source.size:
            what = "input_ids has shape" if embeds is None else "inputs_embeds has shape"
            raise InputError(
                f"{what} {tuple(source.shape)}, expected (batch, length{', width' * (embeds is not None)})"
            )
        if ids is not None:
            check_range(ids, 0, vocab_size, "input_ids", f"the vocabulary of {vocab_size}")
            ids = ids.astype(mx.int32)
        prompt = cls(ids, embeds, _padding(ids, source.shape[:2], as_array(mask, "attention_mask"), config), extra)
        copies = config.num_return_sequences or 1
        if copies > 1:
            if not config.do_sample:
                raise InputError(f"num_return_sequences is {copies} but greedy search finds one; pass do_sample=True")
            prompt = prompt._repeated(copies)
        return prompt

    def _repeated(self, copies: int) -> "BatchPrompt":
        ids, embeds, mask = (
            None if a is None else mx.repeat(a, copies, axis=0) for a in (self.ids, self.embeds, self.mask)
        )
        rows = (self.ids if self.embeds is None else self.embeds).shape[0]  # type: ignore[union-attr]
        extra = {
            name: mx.repeat(value, copies, axis=0)
            if isinstance(value, mx.array) and value.ndim and value.shape[0] == rows
            else value
            for name, value in self.extra.items()
        }
        return BatchPrompt(ids, embeds, mask, extra)


def _padding(ids: mx.array | None, shape: tuple[int, ...], mask: mx.array | None, config: Any) -> mx.array | None:
    """The mask as int32 (B, L), or None when every token counts."""
    pad, eos = config.pad_token_id, config.eos_token_ids
    if mask is None:
        if ids is None or pad is None or pad in eos:
            return None
        mask = ids != pad
    elif tuple(mask.shape) != tuple(shape):
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, expected {tuple(shape)}")
    mask = (mask != 0).astype(mx.int32)
    return None if mx.all(mask).item() else mask


@dataclass
class BatchRun:
    """One call of `generate`.

    step: see `GenerationMixin._generation_step`.
    stop: which rows (B, S) of ids have come to a stop string, or None.
    keep_cache: the cache outlives the call, so no step may be computed ahead.
    """

    step: Callable[..., Any]
    processors: Sequence[Processor]
    sampler: Sampler
    max_new_tokens: int
    eos_token_ids: Sequence[int]
    pad_token_id: int | None
    stop: Callable[[mx.array], np.ndarray] | None
    streamer: Any
    positions_from_mask: bool
    prefill_chunk_size: int | None = None
    collect_scores: bool = False
    collect_logits: bool = False
    keep_cache: bool = False

    def __call__(self, prompt: BatchPrompt, past: Any, use_cache: bool) -> GenerateOutput:
        """Runs until every row has ended or is full."""
        self._output = GenerateOutput(scores=(), logits=(), attentions=(), hidden_states=())
        self._mask, self._use_cache = prompt.mask, use_cache
        self._positions = None
        if prompt.mask is not None and self.positions_from_mask:
            self._positions = mx.where(prompt.mask == 0, 0, mx.cumsum(prompt.mask, axis=1) - 1)
        rows = (prompt.ids if prompt.embeds is None else prompt.embeds).shape[0]  # type: ignore[union-attr]
        ids = mx.zeros((rows, 0), dtype=mx.int32) if prompt.ids is None else prompt.ids
        if self.streamer is not None:
            self.streamer.put(ids)
        ended = mx.zeros((rows,), dtype=mx.bool_)
        logits, past = self._prefill(prompt, past)
        for count in range(1, self.max_new_tokens + 1):
            tokens, ended = self._choose(ids, logits, ended)
            before, ids = ended, mx.concatenate([ids, tokens[:, None]], axis=1)
            last = count == self.max_new_tokens
            ahead = not (last or self.keep_cache or self.stop is not None)
            if ahead:
                mx.async_eval(tokens, before)
                logits, past = self._next(ids, tokens, prompt, past)
                mx.async_eval(logits)
            if self.streamer is not None:
                mx.eval(tokens)  # a streamer may read them in another thread
                self.streamer.put(tokens)
            if self.stop is not None:
                ended = before | mx.array(self.stop(ids))
            if last or mx.all(ended).item():
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

    def _choose(self, ids: mx.array, logits: mx.array, ended: mx.array) -> tuple[mx.array, mx.array]:
        """The tokens of this step (B,), and which rows have ended with it."""
        scores = logits
        if self.processors or self.collect_scores or self.collect_logits:
            scores = logits = logits.astype(mx.float32)
        for process in self.processors:
            scores = process(ids, scores)
        output = self._output
        if self.collect_scores:
            output.scores = (*(output.scores or ()), scores)
        if self.collect_logits:
            output.logits = (*(output.logits or ()), logits)
        tokens = self.sampler(scores).astype(mx.int32)
        if self.pad_token_id is not None:
            tokens = mx.where(ended, self.pad_token_id, tokens)
        for eos in self.eos_token_ids:
            ended = ended | (tokens == eos)
        return tokens, ended

    def _prefill(self, prompt: BatchPrompt, past: Any) -> tuple[mx.array, Any]:
        start = past.get_seq_length() if past is not None and self._use_cache and hasattr(past, "get_seq_length") else 0
        if start >= prompt.length:
            raise InputError(
                f"past_key_values holds {start} tokens already and input_ids has {prompt.length}; "
                "pass the whole text, with at least one token that is not cached"
            )
        size = self.prefill_chunk_size if past is not None and self._use_cache else None
        while size is not None and prompt.length - start > size:
            _, past = self._run(prompt, start, start + size, past)
            mx.eval([array for layer in past for array in layer if array is not None])
            start += size
        return self._run(prompt, start, prompt.length, past)

    def _run(self, prompt: BatchPrompt, start: int, stop: int, past: Any) -> tuple[mx.array, Any]:
        ids = None if prompt.ids is None else prompt.ids[:, start:stop]
        embeds = None if prompt.embeds is None else prompt.embeds[:, start:stop]
        mask = None if self._mask is None else self._mask[:, :stop]
        positions = None if self._positions is None else self._positions[:, start:stop]
        return self._call(None if embeds is not None else ids, embeds, mask, positions, past)

    def _next(self, ids: mx.array, tokens: mx.array, prompt: BatchPrompt, past: Any) -> tuple[mx.array, Any]:
        if self._mask is not None:
            one = mx.ones((tokens.shape[0], 1), dtype=mx.int32)
            self._mask = mx.concatenate([self._mask, one], axis=1)
        if self._positions is not None:  # counted on from the last token, which in the prompt may be padding
            self._positions = mx.concatenate([self._positions, self._positions[:, -1:] + 1], axis=1)
        if past is not None:
            newest = None if self._positions is None else self._positions[:, -1:]
            return self._call(tokens[:, None], None, self._mask, newest, past)
        if prompt.embeds is not None:
            raise InputError("inputs_embeds needs the cache to go on from; leave use_cache on")
        return self._call(ids, None, self._mask, self._positions, None)

    def _call(
        self,
        ids: mx.array | None,
        embeds: mx.array | None,
        mask: mx.array | None,
        positions: mx.array | None,
        past: Any,
    ) -> tuple[mx.array, Any]:
        """Runs the model; its newest logits (B, V) and its cache."""
        output = self.step(ids, embeds, mask, positions, past, self._use_cache)
        kept = self._output
        for name in ("attentions", "hidden_states"):
            value = getattr(output, name, None)
            if value is not None:
                setattr(kept, name, (*(getattr(kept, name) or ()), value))
        return output.logits[:, -1], output.past_key_values


def evaluate_tree(value: Any) -> None:
    """Evaluate every array in a result, its cache included, so that any thread may read it."""
    if isinstance(value, mx.array):
        mx.eval(value)
    elif isinstance(value, Cache):
        mx.eval(value.arrays)
    elif isinstance(value, Mapping):
        evaluate_tree(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            evaluate_tree(part)


def stop_check(stop_strings: str | Sequence[str] | None, tokenizer: Any, prompt_length: int) -> Any:
    """A function of ids (B, S) that tells which rows (B,) hold a stop string in their generated text, or None."""
    if not stop_strings:
        return None
    if tokenizer is None:
        raise InputError("stop_strings needs the tokenizer: pass tokenizer=…")
    texts = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)

    def check(ids: mx.array) -> np.ndarray:
        rows = tokenizer.batch_decode(np.asarray(ids[:, prompt_length:]).tolist())
        return np.array([any(text in row for text in texts) for row in rows])

    return check

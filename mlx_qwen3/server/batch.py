"""Sequences that are decoded together: rows of one cache that join and leave at token boundaries."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..cache import Cache, RowSource
from ..errors import MlxQwen3Error
from ..generation.options import resolve_options
from ..generation.sampling import RandomSampler, greedy
from ..generation.token_masks import apply_masks
from .answers import Answer
from .errors import ApiError
from .jobs import TextJob, TokenLogprob
from .passes import Passes

logger = logging.getLogger(__name__)

MOST_TOP_LOGPROBS = 20


@dataclass
class Row:
    """One choice of a request in a batch.

    Attributes:
        length: its tokens in the cache.
        sampler: scores (B, V) → tokens (B,); rows with the same object are sampled together.
        processors: functions of its ids (1, S) and its scores (1, V).
        matcher: the state of its constraint.
        reserved: bytes of cache that it may come to need.
        counted: its tokens that the request's usage includes.
        error: why it has failed, where the request is at fault.
    """

    job: TextJob
    answer: Answer
    length: int
    sampler: Any
    processors: list[Any] = field(default_factory=list)
    matcher: Any = None
    reserved: int = 0
    failed: bool = False
    counted: int = 0
    error: ApiError | None = None

    @property
    def controlled(self) -> bool:
        """Whether the scores of its next token depend on the tokens before."""
        return bool(self.processors) or self.matcher is not None

    def fail(self, error: BaseException) -> None:
        """Let the row leave the batch with an error."""
        self.failed = True
        if isinstance(error, MlxQwen3Error):
            self.error = ApiError(400, str(error))
        else:
            logger.error("a request failed", exc_info=error)

    @property
    def done(self) -> bool:
        """Whether it leaves the batch."""
        return self.failed or self.job.cancelled or self.answer.finish_reason is not None


_SHARED: dict[tuple[Any, ...], RandomSampler] = {}


def sampler_for(sampling: dict[str, Any] | None, index: int) -> Any:
    """Return the sampler of a choice: its own one with a seed, else one for all rows with the same options."""
    if sampling is None:
        return greedy
    if sampling.get("seed") is not None:
        return RandomSampler(**{**sampling, "seed": (sampling["seed"] + index) % (1 << 64)})
    key = tuple(sorted(sampling.items()))
    if key not in _SHARED:
        if len(_SHARED) > 256:
            _SHARED.clear()
        _SHARED[key] = RandomSampler(**sampling)
    return _SHARED[key]


@dataclass
class Chosen:
    """The next token of each row, on its way from the device.

    logprobs: row index → (log-probability of the token, ids of the likeliest tokens, their log-probabilities).
    """

    tokens: mx.array
    logprobs: dict[int, tuple[mx.array, mx.array, mx.array]] = field(default_factory=dict)

    def start(self) -> "Chosen":
        """Start the computation."""
        mx.async_eval(self.tokens, [array for arrays in self.logprobs.values() for array in arrays])
        return self

    def kept(self, rows: Sequence[int]) -> "Chosen":
        """Return the tokens of some rows, in this order."""
        order = {row: place for place, row in enumerate(rows)}
        own = {order[row]: found for row, found in self.logprobs.items() if row in order}
        return Chosen(self.tokens[mx.array(list(rows))], own)

    def joined(self, other: "Chosen") -> "Chosen":
        """Return these tokens followed by others."""
        shift = self.tokens.shape[0]
        moved = {row + shift: found for row, found in other.logprobs.items()}
        return Chosen(mx.concatenate([self.tokens, other.tokens]), {**self.logprobs, **moved})

    def read(self, rows: Sequence[Row]) -> list[tuple[int, TokenLogprob | None]]:
        """Wait for the tokens: an id for each row, and its log-probabilities where the request wants them."""
        tokens = cast(list[int], self.tokens.tolist())
        found: list[tuple[int, TokenLogprob | None]] = []
        for place, token in enumerate(tokens):
            logprob = None
            if place in self.logprobs:
                own, ids, values = self.logprobs[place]
                count = rows[place].job.options.logprobs or 0
                pairs = zip(cast(list[int], ids.tolist()), cast(list[float], values.tolist()), strict=True)
                logprob = TokenLogprob(token, finite(own.item()), tuple((i, finite(x)) for i, x in [*pairs][:count]))
            found.append((token, logprob))
        return found


def finite(value: Any) -> float:
    """Return a log-probability as JSON can hold it: OpenAI writes -9999.0 for what is not finite."""
    return float(value) if np.isfinite(value) else -9999.0


def choose(logits: mx.array, rows: Sequence[Row]) -> Chosen:
    """Choose the next token of each row from logits (B, V). A row whose constraint or processor fails is marked."""
    logprobs: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
    scores = logits
    if any(row.processors for row in rows):
        parts = mx.split(logits.astype(mx.float32), len(rows), axis=0)
        scores = mx.concatenate([_processed(row, part) for row, part in zip(rows, parts, strict=True)], axis=0)
    masks = [_mask(row) for row in rows]
    if any(mask is not None for mask in masks):
        scores = apply_masks(scores, masks)
    tokens = _sample(scores, [row.sampler for row in rows])
    for place, row in enumerate(rows):
        if row.job.options.logprobs is not None:
            logprobs[place] = _logprobs(scores[place], tokens[place])
    return Chosen(tokens, logprobs)


def _processed(row: Row, scores: mx.array) -> mx.array:
    """Return the scores (1, V) of a row's next token after its penalties and biases."""
    if not row.processors or row.done:
        return scores
    try:
        ids = mx.array([[*row.job.prompt, *row.answer.tokens]], dtype=mx.int32)
        for process in row.processors:
            scores = process(ids, scores)
    except Exception as error:  # noqa: BLE001 - this request alone fails
        row.fail(error)
    return scores


def _mask(row: Row) -> Any:
    """Return the tokens that a row's constraint allows next; None where it has none."""
    if row.matcher is None or row.done:
        return None
    try:
        return row.matcher.mask()
    except Exception as error:  # noqa: BLE001 - this request alone fails
        row.fail(error)
        return None


def _logprobs(scores: mx.array, token: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return the log-probabilities of a token and of the likeliest ones, from scores (V,)."""
    values = scores.astype(mx.float32)
    values = values - mx.logsumexp(values)
    count = min(MOST_TOP_LOGPROBS, values.shape[0])
    top = mx.argpartition(-values, kth=count - 1)[:count]
    top = top[mx.argsort(-values[top])]
    return values[token], top, values[top]


def _sample(scores: mx.array, samplers: Sequence[Any]) -> mx.array:
    """Return one token per row (B,), each by its own sampler."""
    places: dict[int, list[int]] = {}
    for place, sampler in enumerate(samplers):
        places.setdefault(id(sampler), []).append(place)
    if len(places) == 1:
        return samplers[0](scores).astype(mx.int32)
    order: list[int] = []
    tokens: list[mx.array] = []
    for own in places.values():
        tokens.append(samplers[own[0]](scores[mx.array(own)]).astype(mx.int32))
        order += own
    return mx.concatenate(tokens)[mx.array(np.argsort(order))]


def make_row(job: TextJob, index: int, served: Any, budget: int, reserved: int) -> Row:
    """Return the row of a request's choice, before its first token."""
    options = job.options
    answer = Answer(served.tokenizer, options, served.ends, budget, index)
    own = resolve_options(None, options.processors, streaming=True) if options.processors else None
    processors = own.processors(len(job.prompt)) if own is not None else []
    matcher = None if options.constraint is None else options.constraint()
    return Row(job, answer, len(job.prompt), sampler_for(options.sampling, index), processors, matcher, reserved)


class Batch:
    """Rows that share a cache and every pass of the model; each ends at the cache's last slot.

    Args:
        passes: of the model.
        deliver: takes a row and the deltas of a step.
        finished: takes a row that leaves and a function that gives a cache of this row alone.
    """

    def __init__(self, passes: Passes, deliver: Callable[[Row, list[Any]], None], finished: Callable[..., None]):
        self.passes, self.deliver, self.finished = passes, deliver, finished
        self.rows: list[Row] = []
        self.cache: Cache | None = None
        self.chosen: Chosen | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def padding_with(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Return the slots of padding, and of real tokens, that the cache would have with further rows."""
        own = [row.length for row in self.rows] + list(lengths)
        return max(own) * len(own) - sum(own), sum(own)

    def join(self, rows: Sequence[Row], cache: Cache, chosen: Chosen) -> None:
        """Add rows with their cache, which is not used any more, and their first tokens."""
        if self.cache is None or self.chosen is None:
            self.rows, self.cache, self.chosen = list(rows), cache, chosen
            return
        sources = [
            RowSource(self.cache, range(len(self.rows)), self.cache.offset),
            RowSource(cache, range(len(rows)), cache.offset),
        ]
        self.cache = self.passes.join_rows(sources)
        self.chosen = self.chosen.joined(chosen)
        self.rows += rows

    def step(self) -> int:
        """Compute one token more of every row, and deliver the tokens of the last step; their number."""
        self.drop_finished()
        if not self.rows or self.chosen is None:
            return 0
        rows, chosen = self.rows, self.chosen
        logits = self._pass(chosen.tokens)
        controlled = any(row.controlled for row in rows)
        following = None if controlled else choose(logits, rows).start()
        if following is None:
            mx.async_eval(logits)
        for row, (token, logprob) in zip(rows, chosen.read(rows), strict=True):
            row.length += 1
            self._take(row, token, logprob)
        self.chosen = choose(logits, rows).start() if following is None else following
        self.drop_finished()
        return len(rows)

    def _take(self, row: Row, token: int, logprob: TokenLogprob | None) -> None:
        if row.done:
            return
        try:
            if row.matcher is not None:
                row.matcher.accept(token)
            deltas = row.answer.take(token, logprob, row.matcher)
        except Exception as error:  # noqa: BLE001 - this request alone fails
            row.fail(error)
            return
        self.deliver(row, deltas)

    def _pass(self, tokens: mx.array) -> mx.array:
        """Run the model over one token per row (B,); logits (B, V)."""
        assert self.cache is not None
        slot = self.cache.offset
        lengths = np.array([row.length for row in self.rows], dtype=np.int32)
        padding = slot - lengths
        mask = positions = None
        if padding.any():
            mask = (mx.arange(slot + 1)[None] >= mx.array(padding)[:, None]).astype(mx.int32)
            positions = mx.array(lengths)[:, None]
        return self.passes.step_logits(tokens[:, None], self.cache, 1, mask, positions)[:, -1]

    def drop_finished(self) -> None:
        """Remove rows that have finished, and the padding that only they needed."""
        if not any(row.done for row in self.rows):
            return
        cache, chosen, rows = self.cache, self.chosen, self.rows
        assert cache is not None
        assert chosen is not None
        kept = [place for place, row in enumerate(rows) if not row.done]
        for place, row in enumerate(rows):
            if row.done:
                self.finished(row, lambda place=place, row=row: self._alone(cache, place, row))
        self.rows = [rows[place] for place in kept]
        if not kept:
            self.cache = self.chosen = None
            return
        self.cache = self.passes.join_rows([RowSource(cache, kept, max(row.length for row in self.rows))])
        self.chosen = chosen.kept(kept)

    def _alone(self, cache: Cache, place: int, row: Row) -> Cache:
        return self.passes.join_rows([RowSource(cache, [place], row.length)], room=False)

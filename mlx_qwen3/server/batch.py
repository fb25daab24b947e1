"""Batches of sequences that share a cache; rows join and leave between two tokens."""

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..cache import Cache, RowSource
from ..errors import MlxQwen3Error
from ..generation.options import GenerationOptions
from ..generation.sampling import greedy
from ..generation.token_masks import apply_masks
from .answers import Answer
from .errors import ApiError
from .jobs import TextJob, TokenLogprob
from .passes import Passes

logger = logging.getLogger(__name__)

MOST_TOP_LOGPROBS = 20

MOST_LEFT = 4
"""A batch is copied without its finished rows once they and their padding are 1 / MOST_LEFT of its slots: until then
computing them takes less time than the copy.
"""


@dataclass
class Row:
    """One choice of a request in a batch.

    Attributes:
        length: number of its tokens in the cache.
        sampler: function of scores (B, V) that returns tokens (B,). Rows with the same object are sampled in one call.
        processors: functions of ids (1, S) and scores (1, V) that return scores (1, V).
        matcher: state of the constraint; None without one.
        reserved: bytes of cache reserved for the row.
        counted: number of its tokens that are already in the request's usage.
        ahead: whether the newest sampled token was delivered before its step.
        left: whether the row has finished and is only computed until the batch is next copied.
        error: the error for the client if the request is invalid; None for a failure of the server.
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
    ahead: bool = False
    left: bool = False
    error: ApiError | None = None

    @property
    def controlled(self) -> bool:
        """Whether the previous token must be known on the host before the next one can be sampled."""
        return bool(self.processors) or self.matcher is not None

    def fail(self, error: BaseException) -> None:
        """Mark the row as failed, so that it leaves the batch with an error."""
        self.failed = True
        if isinstance(error, MlxQwen3Error):
            self.error = ApiError(400, str(error))
        else:
            logger.error("a request failed", exc_info=error)

    @property
    def done(self) -> bool:
        """Whether the row must leave the batch."""
        return self.failed or self.job.cancelled or self.answer.finish_reason is not None


Deliver = Callable[[Row, list[Any]], None]

_SHARED: dict[tuple[Any, ...], Any] = {}


def sampler_for(options: GenerationOptions, index: int) -> Any:
    """Return the sampler of a choice: a new one if it has a seed, else one shared by all rows with these options."""
    if not options.samples:
        return greedy
    applied = options.needs_warpers
    if options.seed is not None:
        return replace(options, seed=(options.seed + index) % (1 << 64)).sampler(applied)
    config = options.config
    key = () if applied else (config.temperature, config.top_k, config.top_p, config.min_p)
    if key not in _SHARED:
        if len(_SHARED) > 256:
            _SHARED.clear()
        _SHARED[key] = options.sampler(applied)
    return _SHARED[key]


@dataclass
class NextTokens:
    """The sampled token of each row, possibly still being computed.

    Attributes:
        tokens: ids (B,).
        logprobs: row index → (log-probability of the token, ids of the most likely tokens, their log-probabilities).
    """

    tokens: mx.array
    logprobs: dict[int, tuple[mx.array, mx.array, mx.array]] = field(default_factory=dict)

    def start(self) -> "NextTokens":
        """Start the computation asynchronously and return self."""
        mx.async_eval(self.tokens, [array for arrays in self.logprobs.values() for array in arrays])
        return self

    def select(self, rows: Sequence[int]) -> "NextTokens":
        """Return the tokens of the rows with these indices, in this order."""
        order = {row: index for index, row in enumerate(rows)}
        own = {order[row]: found for row, found in self.logprobs.items() if row in order}
        return NextTokens(self.tokens[mx.array(list(rows))], own)

    def concatenate(self, other: "NextTokens") -> "NextTokens":
        """Return these tokens followed by those of `other`."""
        shift = self.tokens.shape[0]
        moved = {row + shift: found for row, found in other.logprobs.items()}
        return NextTokens(mx.concatenate([self.tokens, other.tokens]), {**self.logprobs, **moved})

    def read(self, rows: Sequence[Row]) -> list[tuple[int, TokenLogprob | None]]:
        """Wait for the tokens and return (id, log-probabilities or None) per row."""
        tokens = cast(list[int], self.tokens.tolist())
        found: list[tuple[int, TokenLogprob | None]] = []
        for index, token in enumerate(tokens):
            logprob = None
            if index in self.logprobs:
                own, ids, values = self.logprobs[index]
                count = rows[index].job.options.logprobs or 0
                top = array("f", map(finite, cast(list[float], values.tolist())[:count]))
                likely = array("i", cast(list[int], ids.tolist())[:count])
                logprob = TokenLogprob(token, finite(own.item()), likely, top)
            found.append((token, logprob))
        return found


def finite(value: Any) -> float:
    """Return a log-probability as a float that JSON can represent: -9999.0 if it is not finite, as in OpenAI's API."""
    return float(value) if np.isfinite(value) else -9999.0


def choose(logits: mx.array, rows: Sequence[Row]) -> NextTokens:
    """Sample the next token of each row from logits (B, V). Rows whose constraint or processor raises fail."""
    logprobs: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
    scores = logits
    if any(row.processors for row in rows if not row.left):
        parts = mx.split(logits.astype(mx.float32), len(rows), axis=0)
        scores = mx.concatenate([_process_scores(row, part) for row, part in zip(rows, parts, strict=True)], axis=0)
    masks = [_compute_mask(row) for row in rows]
    if any(mask is not None for mask in masks):
        scores = apply_masks(scores, masks)
    tokens = _sample(scores, [row.sampler for row in rows])
    for index, row in enumerate(rows):
        if row.job.options.logprobs is not None and not row.left:
            logprobs[index] = _compute_logprobs(scores[index], tokens[index])
    return NextTokens(tokens, logprobs)


def _process_scores(row: Row, scores: mx.array) -> mx.array:
    """Return the scores (1, V) of a row's next token after penalties and biases."""
    if not row.processors or row.done:
        return scores
    try:
        ids = mx.array([[*row.job.prompt, *row.answer.tokens]], dtype=mx.int32)
        for process in row.processors:
            scores = process(ids, scores)
    except Exception as error:  # noqa: BLE001 - only this request fails
        row.fail(error)
    return scores


def _compute_mask(row: Row) -> Any:
    """Return the bit mask of the tokens that a row's constraint allows next; None without a constraint."""
    if row.matcher is None or row.done:
        return None
    try:
        return row.matcher.mask()
    except Exception as error:  # noqa: BLE001 - only this request fails
        row.fail(error)
        return None


def _compute_logprobs(scores: mx.array, token: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return the log-probability of a token, and the ids and log-probabilities of the most likely ones.

    Args:
        scores: (V,). token: id, a scalar array.
    """
    values = scores.astype(mx.float32)
    values = values - mx.logsumexp(values)
    count = min(MOST_TOP_LOGPROBS, values.shape[0])
    top = mx.argpartition(-values, kth=count - 1)[:count]
    top = top[mx.argsort(-values[top])]
    return values[token], top, values[top]


def _sample(scores: mx.array, samplers: Sequence[Any]) -> mx.array:
    """Return one token per row (B,), each from its own sampler."""
    indices: dict[int, list[int]] = {}
    for index, sampler in enumerate(samplers):
        indices.setdefault(id(sampler), []).append(index)
    if len(indices) == 1:
        return samplers[0](scores).astype(mx.int32)
    order: list[int] = []
    tokens: list[mx.array] = []
    for own in indices.values():
        tokens.append(samplers[own[0]](scores[mx.array(own)]).astype(mx.int32))
        order += own
    return mx.concatenate(tokens)[mx.array(np.argsort(order))]


def make_row(job: TextJob, index: int, served: Any, budget: int, reserved: int) -> Row:
    """Return the row of one choice of a request, before its first token."""
    options = job.options
    answer = Answer(served.tokenizer, options, served.ends, budget, index)
    generation, length = options.generation, len(job.prompt)
    processors = generation.processors(length, length + budget)
    if generation.needs_warpers:
        processors += generation.warpers()
    matcher = None if options.constraint is None else options.constraint()
    return Row(job, answer, length, sampler_for(generation, index), processors, matcher, reserved)


def accept_token(row: Row, token: int, logprob: TokenLogprob | None, deliver: Deliver) -> None:
    """Add a sampled token to the answer of a row and deliver the resulting deltas."""
    if row.done:
        return
    try:
        if row.matcher is not None:
            row.matcher.accept(token)
        deltas = row.answer.take(token, logprob, row.matcher)
    except Exception as error:  # noqa: BLE001 - only this request fails
        row.fail(error)
        return
    deliver(row, deltas)


class Batch:
    """Rows that share a cache and every forward pass; each row is padded on the left.

    Args:
        passes: the forward passes of the model.
        deliver: called with a row and the deltas of a step.
        finished: called with a row that leaves and a function that returns a cache of this row alone.
    """

    def __init__(self, passes: Passes, deliver: Deliver, finished: Callable[..., None]):
        self.passes, self.deliver, self.finished = passes, deliver, finished
        self.rows: list[Row] = []
        """The rows of the cache, including those that have left."""
        self.cache: Cache | None = None
        self.chosen: NextTokens | None = None

    @property
    def running(self) -> list[Row]:
        """The rows that have not left."""
        return [row for row in self.rows if not row.left]

    def __len__(self) -> int:
        return len(self.running)

    def padding_with(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Return the numbers of padding slots and of tokens in the cache if rows of these lengths joined."""
        own = [row.length for row in self.running] + list(lengths)
        return max(own) * len(own) - sum(own), sum(own)

    def join(self, rows: Sequence[Row], cache: Cache, chosen: NextTokens) -> None:
        """Add rows with their cache and their first tokens. The caller must not use the cache afterwards."""
        if self.cache is None or self.chosen is None or not self.running:
            self.rows, self.cache, self.chosen = list(rows), cache, chosen
            return
        kept = [index for index, row in enumerate(self.rows) if not row.left]
        longest = max(row.length for row in self.running)
        sources = [RowSource(self.cache, kept, longest), RowSource(cache, range(len(rows)), cache.offset)]
        self.cache = self.passes.join_rows(sources)
        self.chosen = self.chosen.select(kept).concatenate(chosen)
        self.rows = [*self.running, *rows]

    def step(self) -> int:
        """Compute one more token per row, deliver those of the previous step, and return the number of running rows."""
        self.drop_finished()
        if not self.rows or self.chosen is None:
            return 0
        rows, chosen = self.rows, self.chosen
        logits = self._run_model(chosen.tokens)
        controlled = any(row.controlled for row in rows if not row.left)
        following = None if controlled else choose(logits, rows).start()
        if following is None:
            mx.async_eval(logits)
        for row, (token, logprob) in zip(rows, chosen.read(rows), strict=True):
            row.length += 1
            if not row.ahead:
                accept_token(row, token, logprob, self.deliver)
            row.ahead = False
        self.chosen = choose(logits, rows).start() if following is None else following
        self.drop_finished()
        return len(self)

    def _run_model(self, tokens: mx.array) -> mx.array:
        """Run the model over one token per row (B,) and return the logits (B, V)."""
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
        """Let finished rows leave; once they hold many slots, remove them and the padding that only they needed."""
        if all(row.left or not row.done for row in self.rows):
            return
        cache, chosen, rows = self.cache, self.chosen, self.rows
        assert cache is not None
        assert chosen is not None
        for index, row in enumerate(rows):
            if row.done and not row.left:
                self.finished(row, lambda index=index, row=row: self._extract_row(cache, index, row))
                row.left = True
        kept = [index for index, row in enumerate(rows) if not row.left]
        if not kept:
            self.rows, self.cache, self.chosen = [], None, None
            return
        longest = max(rows[index].length for index in kept)
        slots = len(rows) * cache.offset
        if MOST_LEFT * (slots - len(kept) * longest) >= slots:
            self.rows = [rows[index] for index in kept]
            self.cache = self.passes.join_rows([RowSource(cache, kept, longest)])
            self.chosen = chosen.select(kept)

    def _extract_row(self, cache: Cache, index: int, row: Row) -> Cache:
        return self.passes.join_rows([RowSource(cache, [index], row.length)], room=False)

"""Speculative decoding: a proposer drafts several tokens, one pass of the model verifies them.

A drafted token stays if the model, by its own sampler, chooses the same token there; the first that it does not choose
is replaced by what it chose. So the tokens are those of one pass per token, sampled ones with a seed included.
(Leviathan et al., arXiv 2211.17192, with a draft that is certain.)

Drafting has to pay: a gate counts seconds and tokens, and decodes plainly where drafts cost more than they save.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import mlx.core as mx

from ..errors import InputError
from .context import MOVING_FREQUENCIES
from .decoding import CLEAR_EVERY, NOTHING_ALLOWED, DecodeRun, PlainDecoding, Step, read_token, start_evaluation
from .sampling import INVALID, RandomSampler, mark_invalid, needs_logprobs

LONGEST_DRAFT = 16
"""Tokens proposed at once, at most."""

FIRST_DRAFT = 6
"""Tokens proposed at once before anything is known."""


class Proposer(Protocol):
    """Drafts what comes next."""

    @property
    def confidence(self) -> int:
        """How many of the newest tokens, in a row, it would have proposed."""
        ...

    def start(self, history: Sequence[int]) -> None:
        """The ids before the first token."""
        ...

    def observe(self, token: int) -> None:
        """Take the next token, drafted or not."""
        ...

    def propose(self, count: int) -> list[int]:
        """At most `count` tokens that may come next; none where it has no proposal."""
        ...


@dataclass
class Gate:
    """Decides when drafts are tried and when they stop.

    Args:
        patience: how many tokens in a row must have been proposed right before drafts are tried. It doubles after
            each attempt that lost time, up to `most_patience`, and is reset by one that gained time.
    """

    patience: int = 3
    most_patience: int = 48
    plain_seconds: float | None = None
    _needed: int = field(init=False)
    _seconds: float = field(init=False, default=0.0)
    _tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._needed = self.patience

    def opens(self, confidence: int) -> bool:
        """Return whether to try drafts now."""
        return confidence >= self._needed and self.plain_seconds is not None

    def saw_plain(self, seconds: float) -> None:
        """Record the time of a plain token."""
        known = self.plain_seconds
        # one slow token, as when memory is given back, must not make drafts look good
        self.plain_seconds = seconds if known is None else 0.9 * known + 0.1 * min(seconds, 2 * known)

    def begin(self) -> None:
        """Begin an attempt."""
        self._seconds, self._tokens = 0.0, 0

    def saw_pass(self, seconds: float, tokens: int) -> None:
        """Record a pass of the attempt: its time and its tokens."""
        self._seconds += seconds
        self._tokens += tokens

    def pays(self) -> bool:
        """Return whether the attempt is ahead of one token per pass so far."""
        assert self.plain_seconds is not None
        return self._seconds <= self._tokens * self.plain_seconds

    def end(self) -> None:
        """End the attempt; its balance sets the patience of the next one."""
        self._needed = self.patience if self.pays() else min(2 * self._needed, self.most_patience)


class Pace:
    """How many tokens to propose: as many as give the most tokens per second where all of them are right.

    On a GPU a pass over 17 tokens takes little longer than one over 7; on a CPU it takes four times as long.
    """

    def __init__(self, longest: int):
        self.longest = longest
        self.length = min(FIRST_DRAFT, longest)
        self._best, self._rate, self._passes = self.length, 0.0, 0

    def saw(self, proposed: int, tokens: int, seconds: float) -> None:
        """A pass over so many proposed tokens gave so many and took so long."""
        if tokens <= proposed:
            self.length = max(1, min(2 * tokens + 2, self._best))
            return
        rate = tokens / max(seconds, 1e-9)
        if proposed == self._best:
            # the usual length: now and then a longer one gets another chance
            self._rate, self._passes = rate, self._passes + 1
            longer = self._passes == 1 or self._passes % 16 == 0
            self.length = min(2 * proposed + 2, self.longest) if longer else proposed
        elif rate > self._rate:
            self._best, self._rate, self._passes = proposed, rate, 1
            self.length = min(2 * proposed + 2, self.longest)
        else:
            self.length = self._best


class Speculation:
    """A `Decoding` that verifies drafts while the gate says that they pay, and otherwise is `PlainDecoding`.

    Args:
        proposer: drafts tokens. longest: tokens that it may propose at once.
    """

    def __init__(self, proposer: Proposer, longest: int = LONGEST_DRAFT, gate: Gate | None = None):
        self.proposer, self.longest = proposer, longest
        self.gate = gate or Gate()
        self.pace = Pace(longest)

    def __call__(self, run: DecodeRun) -> Iterator[Step]:
        rope = getattr(run.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in MOVING_FREQUENCIES:
            # there a pass over several tokens rotates them by other frequencies than passes over one
            yield from PlainDecoding()(run)
            return
        history, left = list(run.history), run.max_tokens
        self.proposer.start(history)
        # as in `PlainDecoding`, the first token waits for its own pass alone
        past = mx.array(history) if run.choose.processors else None
        chosen, logprobs = run.choose(run.logits(run.pending), past)
        start_evaluation(chosen, logprobs)
        token, left = read_token(chosen), left - 1
        history.append(token)
        self.proposer.observe(token)
        yield Step(token, logprobs)
        pending = mx.array([[token]])
        while left:
            for step in self._plain(run, pending, history, left):
                token, left = step.token, left - 1
                yield step
            if not left:
                return
            self.gate.begin()
            while left:
                steps = self._drafted(run, history, token, left)
                if not steps:
                    break
                for step in steps:
                    token, left = step.token, left - 1
                    yield step
                if len(steps) == 1 or not self.gate.pays():
                    break
            self.gate.end()
            pending = mx.array([[token]])

    def _plain(self, run: DecodeRun, pending: mx.array, history: list[int], left: int) -> Iterator[Step]:
        """Yield tokens one by one, a pass ahead, until the gate opens; then none is on its way and the cache lacks
        one.
        """
        watched = bool(run.choose.processors)
        token, logprobs = run.choose(run.logits(pending), mx.array(history) if watched else None)
        start_evaluation(token, logprobs)
        opened, active = False, 0.0
        for count in range(1, left + 1):
            began = time.perf_counter()
            ahead: tuple[mx.array, mx.array | None] | None = None
            if count < left and not opened:
                past = mx.concatenate([mx.array(history, dtype=token.dtype), token]) if watched else None
                ahead = run.choose(run.logits(token[None]), past)
                start_evaluation(*ahead)
            found = read_token(token)
            active = time.perf_counter() - began
            if count > 2 and not opened:
                self.gate.saw_plain(active)
            history.append(found)
            self.proposer.observe(found)
            yield Step(found, logprobs)
            if ahead is None:
                return
            opened = self.gate.opens(self.proposer.confidence) and room_for_draft(run.cache, 1) > 0
            token, logprobs = ahead
            if count % CLEAR_EVERY == 0:
                mx.clear_cache()

    def _drafted(self, run: DecodeRun, history: list[int], token: int, left: int) -> list[Step]:
        """Verify a draft after `token` in one pass; no steps where there is no draft."""
        began = time.perf_counter()
        draft = self.proposer.propose(min(self.pace.length, left - 1, room_for_draft(run.cache, self.longest)))
        if not draft:
            return []
        logits = run.logits(mx.array([[token, *draft]]), len(draft) + 1)
        steps = self._chosen(run, logits, history, draft)
        # what was computed for rejected tokens is removed before the caller sees the others
        run.cache.trim(len(draft) + 1 - len(steps))
        for step in steps:
            history.append(step.token)
            self.proposer.observe(step.token)
        seconds = time.perf_counter() - began
        self.gate.saw_pass(seconds, len(steps))
        self.pace.saw(len(draft), len(steps), seconds)
        return steps

    def _chosen(self, run: DecodeRun, logits: mx.array, history: list[int], draft: list[int]) -> list[Step]:
        """Return the drafted tokens that the model chooses too, and the token that it chooses after them."""
        choose = run.choose
        if not (choose.processors or choose.logprobs or needs_logprobs(choose.sampler)):
            chosen = cast(list[int], mark_invalid(choose.sampler(logits), logits).tolist())
            agreed = next((i for i, proposed in enumerate(draft) if chosen[i] != proposed), len(draft))
            if isinstance(choose.sampler, RandomSampler):
                choose.sampler.give_back(len(draft) - agreed)
            if INVALID in chosen[: agreed + 1]:
                raise InputError(NOTHING_ALLOWED)
            return [Step(found, None, i < agreed) for i, found in enumerate(chosen[: agreed + 1])]
        steps: list[Step] = []
        for i, row in enumerate(mx.split(logits, len(draft) + 1)):
            past = mx.array([*history, *draft[:i]]) if choose.processors else None
            token, logprobs = choose(row, past)
            found = read_token(token)
            steps.append(Step(found, logprobs, i < len(draft) and found == draft[i]))
            if not steps[-1].from_draft:
                break
        return steps


def room_for_draft(cache: Any, most: int) -> int:
    """Return how many drafted tokens the cache can hold and remove again without a trace, at most `most`.

    Rejected tokens of the newest pass can always be taken back. Tokens that are packed stay packed, so a pass must
    not cross the length from which a cache packs.
    """
    for layer in cache.layers:
        if layer.format is not None and layer.offset < layer.packed_from:
            most = min(most, layer.packed_from - layer.offset - 1)
    return max(most, 0)

"""Speculative decoding: a proposer drafts several tokens, and one forward pass of the model verifies them.

A drafted token is accepted if the model's sampler chooses the same token at that position. The first token that differs
is replaced by the model's choice. The output is therefore the same as with one pass per token, including output that is
sampled with a seed. (Leviathan et al., arXiv 2211.17192, for the special case of a deterministic draft.)

A gate measures time and tokens, and turns speculation off while it costs more than it saves.
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
"""Maximum number of tokens per draft."""

FIRST_DRAFT = 6
"""Number of tokens of the first draft, before there are measurements."""


class Proposer(Protocol):
    """Drafts the next tokens of a text."""

    @property
    def confidence(self) -> int:
        """How many of the newest tokens, without a gap, it would have proposed correctly."""
        ...

    def start(self, history: Sequence[int]) -> None:
        """Start a new text with the ids before the first new token."""
        ...

    def observe(self, token: int) -> None:
        """Add the next token of the text, drafted or not."""
        ...

    def propose(self, count: int) -> list[int]:
        """Return a draft of at most `count` tokens; empty if there is no proposal."""
        ...


@dataclass
class Gate:
    """Decides when to try drafts and when to stop.

    Args:
        patience: number of consecutive tokens that the proposer must have predicted before drafts are tried. It is
            doubled after each attempt that lost time, up to `most_patience`, and reset after one that saved time.
        plain_seconds: time per token without drafts; None until it is measured.
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

    def record_plain(self, seconds: float) -> None:
        """Record the time of a token that was decoded without drafts."""
        known = self.plain_seconds
        # limit outliers, for example when memory is released: they would make drafts look too good
        self.plain_seconds = seconds if known is None else 0.9 * known + 0.1 * min(seconds, 2 * known)

    def begin(self) -> None:
        """Begin an attempt at drafting."""
        self._seconds, self._tokens = 0.0, 0

    def record_pass(self, seconds: float, tokens: int) -> None:
        """Record a pass of the attempt: its time and the number of tokens it generated."""
        self._seconds += seconds
        self._tokens += tokens

    def pays(self) -> bool:
        """Return whether the attempt has been at least as fast as plain decoding so far."""
        assert self.plain_seconds is not None
        return self._seconds <= self._tokens * self.plain_seconds

    def end(self) -> None:
        """End the attempt; whether it saved time determines the patience before the next one."""
        self._needed = self.patience if self.pays() else min(2 * self._needed, self.most_patience)


class Pace:
    """Adapts the length of drafts to the one that gives the most tokens per second if all of its tokens are accepted.

    On a GPU, a pass over 17 tokens takes little longer than one over 7; on a CPU, it takes four times as long.
    """

    def __init__(self, longest: int):
        self.longest = longest
        self.length = min(FIRST_DRAFT, longest)
        self._best, self._rate, self._passes = self.length, 0.0, 0

    def record(self, proposed: int, tokens: int, seconds: float) -> None:
        """Record a pass.

        Args:
            proposed: length of the draft.
            tokens: number of tokens generated, at most `proposed + 1`.
            seconds: time of the pass.
        """
        if tokens <= proposed:
            self.length = max(1, min(2 * tokens + 2, self._best))
            return
        rate = tokens / max(seconds, 1e-9)
        if proposed == self._best:
            # the usual length was fully accepted: try a longer one from time to time
            self._rate, self._passes = rate, self._passes + 1
            longer = self._passes == 1 or self._passes % 16 == 0
            self.length = min(2 * proposed + 2, self.longest) if longer else proposed
        elif rate > self._rate:
            self._best, self._rate, self._passes = proposed, rate, 1
            self.length = min(2 * proposed + 2, self.longest)
        else:
            self.length = self._best


class Speculation:
    """A `Decoding` that verifies drafts while the gate finds them worthwhile, and otherwise works like `PlainDecoding`.

    Args:
        proposer: drafts tokens.
        longest: maximum number of tokens per draft.
        gate: decides when to draft; by default with the default patience.
    """

    def __init__(self, proposer: Proposer, longest: int = LONGEST_DRAFT, gate: Gate | None = None):
        self.proposer, self.longest = proposer, longest
        self.gate = gate or Gate()
        self.pace = Pace(longest)

    def __call__(self, run: DecodeRun) -> Iterator[Step]:
        rope = getattr(run.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in MOVING_FREQUENCIES:
            # a pass over several tokens would rotate with different frequencies than single-token passes
            yield from PlainDecoding()(run)
            return
        history, left = list(run.history), run.max_tokens
        self.proposer.start(history)
        # as in `PlainDecoding`, the pipeline starts after the first token to minimize its latency
        past = mx.array(history) if run.choose.processors else None
        chosen, logprobs = run.choose(run.logits(run.pending), past)
        start_evaluation(chosen, logprobs)
        token, left = read_token(chosen), left - 1
        history.append(token)
        self.proposer.observe(token)
        yield Step(token, logprobs)
        pending = mx.array([[token]])
        while left:
            for step in self._decode_plainly(run, pending, history, left):
                token, left = step.token, left - 1
                yield step
            if not left:
                return
            self.gate.begin()
            while left:
                steps = self._verify_draft(run, history, token, left)
                if not steps:
                    break
                for step in steps:
                    token, left = step.token, left - 1
                    yield step
                if len(steps) == 1 or not self.gate.pays():
                    break
            self.gate.end()
            pending = mx.array([[token]])

    def _decode_plainly(self, run: DecodeRun, pending: mx.array, history: list[int], left: int) -> Iterator[Step]:
        """Yield tokens with one pass per token, pipelined one step ahead, until the gate opens.

        Then no pass is pending, and the cache lacks only the last token.
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
                self.gate.record_plain(active)
            history.append(found)
            self.proposer.observe(found)
            yield Step(found, logprobs)
            if ahead is None:
                return
            opened = self.gate.opens(self.proposer.confidence) and room_for_draft(run.cache, 1) > 0
            token, logprobs = ahead
            if count % CLEAR_EVERY == 0:
                mx.clear_cache()

    def _verify_draft(self, run: DecodeRun, history: list[int], token: int, left: int) -> list[Step]:
        """Verify a draft after `token` in one pass and return the steps; no steps if there is no draft."""
        began = time.perf_counter()
        draft = self.proposer.propose(min(self.pace.length, left - 1, room_for_draft(run.cache, self.longest)))
        if not draft:
            return []
        logits = run.logits(mx.array([[token, *draft]]), len(draft) + 1)
        steps = self._accept_draft(run, logits, history, draft)
        # remove the rejected tokens from the cache before the caller sees the accepted ones
        run.cache.trim(len(draft) + 1 - len(steps))
        for step in steps:
            history.append(step.token)
            self.proposer.observe(step.token)
        seconds = time.perf_counter() - began
        self.gate.record_pass(seconds, len(steps))
        self.pace.record(len(draft), len(steps), seconds)
        return steps

    def _accept_draft(self, run: DecodeRun, logits: mx.array, history: list[int], draft: list[int]) -> list[Step]:
        """Return the accepted prefix of a draft and the token that the model chooses after it."""
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
    """Return how many drafted tokens can be added to the cache and removed again without side effects, at most `most`.

    Rejected tokens of the newest pass can always be removed. Quantization cannot be undone, so a pass must not cross
    the length from which a cache quantizes its tokens.
    """
    for layer in cache.layers:
        if layer.format is not None and layer.offset < layer.packed_from:
            most = min(most, layer.packed_from - layer.offset - 1)
    return max(most, 0)

"""Decode under a constraint: mask the scores, insert forced tokens, and check drafts.

The mask of a token is computed on the CPU while the model's forward pass runs on its device. Forced tokens, which have
no alternative, share one pass and need no scores. All decoding strategies apply the same masks to the same tokens, so
greedy answers are the same with all of them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import mlx.core as mx

from .after_thinking import TokenMatcher
from .context import MOVING_FREQUENCIES
from .decoding import CLEAR_EVERY, DecodeRun, Step, read_token
from .speculation import Speculation, room_for_draft
from .token_masks import allows, certain_logprobs


@dataclass
class ConstrainedDecoding:
    """A `Decoding` under a constraint.

    Args:
        matcher: tracks the answer.
        draft: supplies the proposer and the gate of speculative decoding; None for no drafts.
        forced_together: whether forced tokens share a forward pass.
    """

    matcher: TokenMatcher
    draft: Speculation | None = None
    forced_together: bool = True
    _history: list[int] = field(default_factory=list, init=False)

    def __call__(self, run: DecodeRun) -> Iterator[Step]:
        rope = getattr(run.model.config, "rope_parameters", None) or {}
        together = self.forced_together
        if rope.get("rope_type") in MOVING_FREQUENCIES:  # the length of a pass would change the result
            together = False
        self._history = list(run.history)
        return self._decode_drafts(run, together) if self.draft and together else self._decode_plainly(run, together)

    def _decode_plainly(self, run: DecodeRun, together: bool) -> Iterator[Step]:
        """Yield steps with one pass per chosen token, which also computes the tokens forced after it."""
        left, ids = run.max_tokens, run.pending
        forced = self._accept_forced(run, left) if together else []
        yield from forced
        left -= len(forced)
        if forced and (not left or self.matcher.finished):
            return
        logits = run.logits(
            mx.concatenate([ids, mx.array([[step.token for step in forced]], ids.dtype)], axis=1) if forced else ids
        )
        mx.async_eval(logits)
        count = 0
        while left:
            token, logprobs = self._choose(run, logits)
            mx.async_eval(token)
            if left > 1:  # queue the pass over the token before the token is read
                logits = run.logits(token[None])
                mx.async_eval(logits)
            step = self._accept(read_token(token), logprobs)
            yield step
            left -= 1
            if not left or step.finished:
                return
            forced = self._accept_forced(run, left) if together else []
            if forced:
                left -= len(forced)
                ended = not left or forced[-1].finished
                if not ended:
                    logits = run.logits(mx.array([[step.token for step in forced]]))
                    mx.async_eval(logits)
                yield from forced
                if ended:
                    return
            count += 1
            if count % CLEAR_EVERY == 0:
                mx.clear_cache()

    def _decode_drafts(self, run: DecodeRun, together: bool) -> Iterator[Step]:
        """Yield steps with passes that verify drafts; tokens forced before a draft share its pass."""
        assert self.draft is not None
        proposer, gate, pace = self.draft.proposer, self.draft.gate, self.draft.pace
        proposer.start(self._history)
        left, fed = run.max_tokens, run.pending
        trying = False
        while True:
            began = time.perf_counter()
            forced = self._accept_forced(run, left)
            left -= len(forced)
            yield from forced
            if not left or self.matcher.finished:
                return
            draft: list[int] = []
            if trying and left > 1:
                most = min(pace.length, left - 1, room_for_draft(run.cache, self.draft.longest))
                draft = self._limit_draft(proposer.propose(most)) if most > 0 else []
            following = mx.array([[*(step.token for step in forced), *draft]], mx.int32)
            ids = mx.concatenate([fed.astype(mx.int32), following], axis=1) if following.size else fed
            rows = mx.split(run.logits(ids, len(draft) + 1), len(draft) + 1)
            mx.async_eval(rows)
            steps: list[Step] = []
            for i, row in enumerate(rows):
                token, logprobs = self._choose(run, row)
                found = read_token(token)
                steps.append(self._accept(found, logprobs, i < len(draft) and found == draft[i]))
                if not steps[-1].from_draft or self.matcher.finished:
                    break
            used = sum(step.from_draft for step in steps)
            if len(steps) == used and used:  # the constraint ended inside the draft
                used -= 1
            run.cache.trim(len(draft) - used)
            left -= len(steps)
            seconds = time.perf_counter() - began
            if draft:
                gate.record_pass(seconds, len(steps))
                pace.record(len(draft), len(steps), seconds)
                if len(steps) == 1 or not gate.pays():
                    gate.end()
                    trying = False
            else:
                if not forced:
                    gate.record_plain(seconds)
                if trying:
                    gate.end()
                    trying = False
                if gate.opens(proposer.confidence):
                    gate.begin()
                    trying = True
            yield from steps
            if not left or self.matcher.finished:
                return
            fed = mx.array([[steps[-1].token]])

    def _limit_draft(self, draft: list[int]) -> list[int]:
        """Return the longest prefix of a draft that the constraint allows."""
        kept: list[int] = []
        for token in draft:
            mask = self.matcher.mask()
            if self.matcher.finished or not allows(mask, token):
                break
            self.matcher.accept(token)
            kept.append(token)
        self.matcher.rollback(len(kept))
        return kept

    def _choose(self, run: DecodeRun, logits: mx.array) -> tuple[mx.array, mx.array | None]:
        mask = self.matcher.mask()
        history = mx.array(self._history) if run.choose.processors else None
        return run.choose(logits, history, [mask])

    def _accept(self, token: int, logprobs: mx.array | None, from_draft: bool = False) -> Step:
        self.matcher.accept(token)
        self._history.append(token)
        if self.draft is not None:
            self.draft.proposer.observe(token)
        return Step(token, logprobs, from_draft, self.matcher.complete, self.matcher.finished)

    def _accept_forced(self, run: DecodeRun, left: int) -> list[Step]:
        """Accept the forced tokens, at most `left`, and return their steps."""
        steps: list[Step] = []
        while len(steps) < left and (tokens := self.matcher.forced()):
            for token in tokens[: left - len(steps)]:
                logprobs = certain_logprobs(token, run.model.config.vocab_size) if run.choose.logprobs else None
                steps.append(self._accept(token, logprobs, from_draft=True))
        return steps

"""Rows that leave a batch do not change the tokens of the others, whenever the batch is copied without them."""

from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_qwen3.cache import PrefixCache
from mlx_qwen3.generation.sampling import greedy
from mlx_qwen3.server import batch as batches
from mlx_qwen3.server.batch import Batch, Row, accept_token, choose
from mlx_qwen3.server.passes import Passes
from tests.support import tiny


class CountedAnswer:
    """Collects tokens and finishes after `budget` of them."""

    def __init__(self, budget):
        self.budget, self.tokens, self.finish_reason = budget, [], None

    def take(self, token, logprob, matcher):
        self.tokens.append(token)
        self.finish_reason = "length" if len(self.tokens) == self.budget else None
        return []


def make_rows(count, length, budgets):
    job = SimpleNamespace(cancelled=False, options=SimpleNamespace(logprobs=None))
    return [Row(job, CountedAnswer(budgets[i]), length, greedy) for i in range(count)]


class CountedPasses(Passes):
    copies = 0

    def join_rows(self, sources, room=True):
        self.copies += room
        return super().join_rows(sources, room)


def run(prompts, budgets, joining=()):
    """Decode prompts of one length together, and others that join after two steps; return tokens, caches, copies."""
    model = tiny.model()
    passes = CountedPasses(model.for_inference(), {}, PrefixCache(0))
    lengths = {}
    batch = Batch(passes, lambda row, deltas: None, lambda row, extract: lengths.update({id(row): extract().offset}))
    rows = []

    def start(some):
        cache = passes.new_cache()
        logits = passes.step_logits(mx.array(some), cache, 1)[:, -1]
        new = make_rows(len(some), len(some[0]), budgets[len(rows) :])
        chosen = choose(logits, new).start()
        for row, (token, logprob) in zip(new, chosen.read(new), strict=True):
            accept_token(row, token, logprob, batch.deliver)
            row.ahead = True
        batch.join(new, cache, chosen)
        rows.extend(new)

    start(prompts)
    for step in range(100):
        if step == 2 and joining:
            start(joining)
        if not batch.step():
            break
    assert not batch.rows
    return [row.answer.tokens for row in rows], [lengths[id(row)] for row in rows], passes.copies


@pytest.mark.parametrize("most_left", [0, 2, 10_000])
def test_tokens_are_those_of_single_rows(monkeypatch, most_left):
    monkeypatch.setattr(batches, "MOST_LEFT", most_left)
    first = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4]]
    later = [[6, 2, 6, 4, 3, 3, 8]]
    budgets = [1, 3, 12, 6, 5]
    alone = [run([prompt], [budget]) for prompt, budget in zip([*first, *later], budgets, strict=True)]
    tokens, lengths, copies = run(first, budgets, later)
    assert tokens == [found[0][0] for found in alone]
    # the last token of an answer is not in the cache, except where a step had already computed it
    assert lengths == [found[1][0] for found in alone]
    assert copies == {0: 1, 2: 3, 10_000: 5}[most_left]


def test_padding_of_a_finished_long_row_is_removed_at_once():
    model = tiny.model()
    passes = CountedPasses(model.for_inference(), {}, PrefixCache(0))
    batch = Batch(passes, lambda row, deltas: None, lambda row, extract: None)
    for prompts, budgets in (([[3] * 60], [3]), ([[5, 8, 9]] * 7, [20] * 7)):
        cache = passes.new_cache()
        rows = make_rows(len(prompts), len(prompts[0]), budgets)
        logits = passes.step_logits(mx.array(prompts), cache, 1)[:, -1]
        batch.join(rows, cache, choose(logits, rows).start())
    assert batch.step() == 8
    while batch.step() == 8:
        pass
    assert len(batch) == 7
    assert batch.cache is not None
    assert batch.cache.offset == max(row.length for row in batch.running)

"""Speculative decoding changes neither tokens nor distributions, and turns itself off if it saves no time."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import InputError, generate_step
from mlx_qwen3.generation import RandomSampler
from mlx_qwen3.generation.context import new_cache
from mlx_qwen3.generation.decoding import Chooser
from mlx_qwen3.generation.draft_model import DraftModel, draft_with
from mlx_qwen3.generation.prompt_lookup import PromptLookup, prompt_lookup
from mlx_qwen3.generation.speculation import Gate, Pace, Speculation
from mlx_qwen3.generation.steps import decode_steps
from tests.support import tiny
from tests.support.scripted import ScriptedModel

SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


class AlwaysOpen(Gate):
    """A gate that always allows drafts, so that timing does not affect a test."""

    def opens(self, confidence: int) -> bool:
        return True

    def pays(self) -> bool:
        return True


def eager(longest: int = 7) -> Speculation:
    return Speculation(PromptLookup(1), longest, AlwaysOpen())


def repeating(length: int, period: int, vocab: int = 61) -> list[int]:
    return np.resize(np.random.default_rng(2).integers(1, vocab, period), length).tolist()


def decode_with_drafts(model, prompt, decoding, max_tokens, **options) -> tuple[list[int], int]:
    """Return the tokens and the number of correctly drafted ones."""
    cache = options.pop("cache", None) or new_cache(model.config, **options)
    steps = list(
        decode_steps(
            model, prompt, cache, Chooser(lambda x: mx.argmax(x, axis=-1)), max_tokens=max_tokens, decoding=decoding
        )
    )
    return [step.token for step in steps], sum(step.from_draft for step in steps)


@pytest.mark.parametrize("fields", [{}, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("options", [{}, {"kv_bits": 8, "kv_group_size": 32}], ids=["plain", "8 bits"])
def test_greedy_tokens_equal_those_of_one_pass_per_token(fields, options):
    for seed in range(2):
        model = tiny.model(seed=seed, head_dim=32, **fields)
        prompt = repeating(20, 5)
        expected_tokens = list(generate_step(model, prompt, max_tokens=60, **options))
        for longest in (1, 5, 16):
            assert (
                list(generate_step(model, prompt, max_tokens=60, decoding=eager(longest), **options)) == expected_tokens
            )


def test_a_cache_that_becomes_quantized_gives_the_same_tokens():
    model, prompt = tiny.model(head_dim=32), repeating(20, 5)
    options = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 33}
    expected_tokens = list(generate_step(model, prompt, max_tokens=40, **options))
    assert list(generate_step(model, prompt, max_tokens=40, decoding=eager(), **options)) == expected_tokens


def test_copied_text_is_accepted_several_tokens_at_a_time():
    text = list(range(10, 40))
    model = ScriptedModel(lambda ids: text[(ids[-1] - 10 + 1) % 30])
    tokens, right = decode_with_drafts(
        model, [*text, 10, 11, 12, 13], Speculation(PromptLookup(), 16, AlwaysOpen()), 26
    )
    assert tokens == text[4:]  # 14 … 39
    assert right >= 20


def test_rejected_tokens_are_removed_from_a_rotated_window():
    # the scripted cache contains the ids themselves: a wrong one left in it would change the output
    model = ScriptedModel(lambda ids: (7 * ids[-1] + 3 * ids[-2] + ids[-5]) % 50, window=6)
    prompt = repeating(30, 4, 50)
    expected_tokens = list(generate_step(model, prompt, max_tokens=80))
    assert list(generate_step(model, prompt, max_tokens=80, decoding=eager())) == expected_tokens


def test_the_cache_ends_with_yielded_tokens():
    model = tiny.model()
    cache = new_cache(model.config)
    prompt = repeating(20, 5)
    steps = generate_step(model, prompt, cache, max_tokens=30, decoding=eager())
    seen = [next(steps) for _ in range(9)]
    steps.close()
    assert len(prompt) + 8 <= cache.offset <= len(prompt) + 9
    rest = [*prompt, *seen][cache.offset :] or None
    if rest is None:
        cache.trim(1)
        rest = seen[-1:]
    assert list(generate_step(model, rest, cache, max_tokens=6)) == list(
        generate_step(model, [*prompt, *seen], max_tokens=6)
    )


def test_processors_see_the_text_before_their_position():
    model, prompt = tiny.model(), repeating(20, 5)
    looked_at: list[list[int]] = []

    def look(tokens, logits):
        looked_at.append(tokens.tolist())
        return mx.where(mx.arange(logits.shape[-1]) == tokens[-1], -1e9, logits)

    options = {"max_tokens": 12, "logits_processors": [look]}
    expected_tokens = list(generate_step(model, prompt, **options))
    texts = {tuple(text) for text in looked_at}
    looked_at.clear()
    got = list(generate_step(model, prompt, decoding=eager(), **options))
    assert got == expected_tokens
    assert texts <= {tuple(text) for text in looked_at}


def test_sampling_keeps_its_distribution():
    """A chi-squared test over pairs of tokens detects drafts that are accepted too often or too rarely."""
    table = mx.log(mx.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.1, 0.4]]))

    class Chain:
        """A Markov chain over three tokens."""

        config = ScriptedModel(lambda ids: 0).config

        def step_logits(self, ids, cache, keep=1):
            cache.layers[0].update(*[mx.zeros((1, 1, ids.shape[1], 1))] * 2)
            return table[ids[:, -keep:]]

        def fill_cache(self, ids, cache):
            self.step_logits(ids, cache)

    chain = Chain()
    chain.config.vocab_size = 3
    counts = np.zeros((3, 3))
    tokens = list(
        generate_step(chain, [0, 1, 2, 0, 1, 2], max_tokens=3000, sampler=RandomSampler(seed=5), decoding=eager(4))
    )
    for one, two in itertools.pairwise(tokens):
        counts[one, two] += 1
    expected = counts.sum(axis=1, keepdims=True) * np.exp(np.array(table))
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # 6 degrees of freedom, 1 in 1000


def test_speculation_turns_itself_off_if_drafts_cost_more_than_they_save():
    gate = Gate(patience=3)
    assert not gate.opens(99)  # the time of a plain token is not known yet
    gate.record_plain(1.0)
    assert gate.opens(3)
    assert not gate.opens(2)
    gate.begin()
    gate.record_pass(4.0, 2)
    assert not gate.pays()
    gate.end()
    assert not gate.opens(5)
    assert gate.opens(6)
    gate.begin()
    gate.record_pass(2.0, 8)
    gate.end()
    assert gate.opens(3)


def test_the_draft_length_with_the_most_tokens_per_second_is_found():
    for slope, best in ((0.0, 16), (1.0, 6)):
        pace = Pace(16)
        for _ in range(8):
            pace.record(pace.length, pace.length + 1, 1 + slope * pace.length**2)
        assert pace.length == best
    pace.record(6, 2, 1.0)
    assert pace.length == 6
    pace.record(6, 1, 1.0)
    assert pace.length == 4


def test_free_text_is_not_drafted():
    draw = np.random.default_rng(0).integers(0, 250, 400).tolist()
    model = ScriptedModel(lambda ids: draw[len(ids) % 400])
    calls = model.computed
    tokens, right = decode_with_drafts(model, draw[:20], prompt_lookup(), 200)
    assert right == 0
    assert len(tokens) == 200
    assert model.computed - calls == 20 + 199


def test_prompt_lookup_follows_a_passage():
    lookup = PromptLookup(2)
    lookup.start([1, 2, 3, 4, 5, 9, 1, 2])
    assert lookup.propose(3) == [3, 4, 5]
    lookup.observe(3)
    assert (lookup.confidence, lookup.propose(2)) == (1, [4, 5])
    lookup.observe(8)
    assert (lookup.confidence, lookup.propose(2)) == (0, [])
    lookup.start([7, 7, 7, 7])
    assert lookup.propose(5) == [7] * 5


@pytest.mark.parametrize("seed", [0, 9], ids=["the same", "another"])
def test_a_draft_model_does_not_change_the_tokens(seed):
    model, small = tiny.model(), tiny.model(seed=seed)
    prompt = repeating(12, 12)
    expected_tokens = list(generate_step(model, prompt, max_tokens=30))
    decoding = Speculation(DraftModel(small), 4, AlwaysOpen())
    tokens, right = decode_with_drafts(model, prompt, decoding, 30)
    assert tokens == expected_tokens
    if seed == 0:
        assert right >= 20


def test_a_draft_model_with_another_vocabulary_is_refused():
    with pytest.raises(InputError, match="same family"):
        draft_with(tiny.model(vocab_size=60), tiny.model())

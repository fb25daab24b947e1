"""Samplers, penalties and biases: candidates, probabilities, seeds, argument checks."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import InputError, make_sampler
from mlx_qwen3.generation import RandomSampler, greedy
from mlx_qwen3.generation.processors import LogitBias, MinimumLength, PresencePenalty, RepetitionPenalty


def distribution(sampler, scores):
    """Return the probability of each token according to the sampler's candidates."""
    weights, ids = sampler.candidates(scores)
    chances = np.array(mx.softmax(weights, axis=-1))
    result = np.zeros(scores.shape)
    for row in range(scores.shape[0]):
        names = range(scores.shape[1]) if ids is None else ids[row].tolist()
        for token, chance in zip(names, chances[row], strict=True):
            result[row, token] += chance
    return result


def expected(scores, temperature, top_k, top_p, min_p):
    """Return the same, computed by applying each rule to the sorted row."""
    result = np.zeros_like(scores)
    for row, values in enumerate(scores / temperature):
        order = np.argsort(-values)[: top_k or None]
        chances = np.exp(values[order] - values[order].max())
        chances /= chances.sum()
        kept = np.cumsum(chances) - chances < top_p if top_p < 1 else np.full(len(order), True)
        kept[0] = True
        kept &= chances >= min_p * chances[0]
        result[row, order[kept]] = chances[kept] / chances[kept].sum()
    return result


@pytest.mark.parametrize("top_k", [0, 1, 5, 40, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.05])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_candidates_follow_the_reference_order(top_k, top_p, min_p):
    scores = mx.random.normal((2, 40), key=mx.random.key(top_k)) * 2
    got = distribution(RandomSampler(0.7, top_k, top_p, min_p), scores)
    np.testing.assert_allclose(got, expected(np.array(scores), 0.7, top_k, top_p, min_p), atol=1e-5)


def test_draws_follow_the_distribution():
    scores = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    sampler = RandomSampler(top_k=3, seed=3)
    drawn = np.array(sampler(mx.broadcast_to(scores, (20000, 4))))
    counts = np.bincount(drawn, minlength=4) / 20000
    np.testing.assert_allclose(counts, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.015)


def test_a_seed_is_reproducible_and_leaves_the_global_state_unchanged():
    scores = mx.random.normal((64, 50), key=mx.random.key(0))

    def draws(seed):
        sampler = RandomSampler(seed=seed)
        return [sampler(scores).tolist() for _ in range(2)]

    before = mx.random.state[0].tolist()
    first, second = draws(5)
    assert [first, second] == draws(5)
    assert first != second
    assert draws(6) != [first, second]
    assert mx.random.state[0].tolist() == before


def test_temperature_zero_is_greedy():
    assert make_sampler() is greedy
    assert make_sampler(temp=0.5) is not greedy


def test_top_k_does_not_sort_the_vocabulary(monkeypatch):
    sizes = []
    sort = mx.argsort
    monkeypatch.setattr(mx, "argsort", lambda a, *args, **kw: sizes.append(a.shape[-1]) or sort(a, *args, **kw))
    RandomSampler(0.6, 20, 0.95)(mx.random.normal((1, 1000)))
    assert sizes == [20]


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 1.5}, {"min_p": -0.1}],
)
def test_values_out_of_range_are_reported(options):
    with pytest.raises(InputError, match=next(iter(options))):
        RandomSampler(**options)


def test_repetition_penalty_divides_and_multiplies():
    scores = mx.array([[2.0, -2.0, 1.0, -1.0]])
    got = RepetitionPenalty(2.0)(mx.array([[0, 1, 0]]), scores)
    assert got.tolist() == [[1.0, -4.0, 1.0, -1.0]]
    assert RepetitionPenalty(2.0, context_size=1)(mx.array([[1, 0]]), scores).tolist() == [[1.0, -2.0, 1.0, -1.0]]


def test_presence_and_frequency_count_generated_tokens_only():
    scores = mx.zeros((2, 4))
    got = PresencePenalty(1.0, 0.5, prompt_length=1)(mx.array([[3, 1, 1], [3, 2, 0]]), scores)
    np.testing.assert_allclose(got, [[0, -2.0, 0, 0], [-1.5, 0, -1.5, 0]])
    assert PresencePenalty(1.0, 0.5, prompt_length=1)(mx.array([[3], [3]]), scores).tolist() == scores.tolist()


def test_logit_bias_adds_and_minimum_length_forbids_ending_tokens():
    scores = mx.zeros((1, 3))
    assert LogitBias({2: -math.inf, 0: 1.5})(mx.array([[0]]), scores).tolist() == [[1.5, 0.0, -math.inf]]
    minimum = MinimumLength(2, [1])
    assert minimum(mx.array([[0]]), scores).tolist() == [[0, -math.inf, 0]]
    assert minimum(mx.array([[0, 0]]), scores).tolist() == [[0, 0, 0]]
    with pytest.raises(InputError, match="token id 7"):
        LogitBias({7: 1.0})(mx.array([[0]]), scores)

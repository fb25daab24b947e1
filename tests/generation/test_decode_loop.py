"""The decode loop: pipelining, limits, and a consistent cache after every way to stop."""

import itertools

import mlx.core as mx
import pytest

from mlx_qwen3 import ContextError, InputError, generate_step
from mlx_qwen3.generation.context import context_length, new_cache
from mlx_qwen3.generation.prompt_lookup import prompt_lookup
from tests.support.scripted import ScriptedModel, repeating
from tests.support.tiny import ids as random_ids
from tests.support.tiny import model as tiny_model


def cached_ids(cache):
    return [int(value) for value in cache.layers[0].state[0].flatten().tolist()] if cache.offset else []


PROMPT = [7, 8, 9]
SCRIPT = [20, 21, 22, 23, 24, 25, 26]


@pytest.fixture
def scripted():
    return ScriptedModel(repeating(SCRIPT, len(PROMPT)))


def test_no_more_than_the_limit_is_yielded_and_computed(scripted):
    assert list(generate_step(scripted, PROMPT, max_tokens=5)) == SCRIPT[:5]
    assert scripted.computed == len(PROMPT) + 4  # the fifth token is chosen but not processed


def test_the_last_prompt_token_has_no_separate_pass(scripted):
    passes = []
    plain = scripted.step_logits
    scripted.step_logits = lambda ids, *rest: passes.append(ids.shape[1]) or plain(ids, *rest)
    list(generate_step(scripted, PROMPT, max_tokens=2))
    assert passes == [3, 1]


def test_one_pass_is_computed_ahead_from_the_second_token_on(scripted):
    steps = generate_step(scripted, PROMPT, max_tokens=5)
    ahead = []
    for taken, _ in enumerate(steps):
        ahead.append(scripted.computed - len(PROMPT) - taken)
    assert ahead == [0, 1, 1, 1, 0]


def test_the_first_token_needs_only_its_own_pass_with_speculation(scripted):
    steps = generate_step(scripted, PROMPT, max_tokens=5, decoding=prompt_lookup())
    next(steps)
    assert scripted.computed == len(PROMPT)


@pytest.mark.parametrize("taken", range(1, 8))
def test_closing_leaves_only_yielded_tokens_in_the_cache(scripted, taken):
    cache = new_cache(scripted.config)
    steps = generate_step(scripted, PROMPT, cache, max_tokens=7)
    got = list(itertools.islice(steps, taken))
    steps.close()
    known = [*PROMPT, *got]
    assert known[: cache.offset] == cached_ids(cache)
    assert cache.offset >= len(known) - 1


@pytest.mark.parametrize("window", [None, 5])
def test_ctrl_c_while_waiting_for_a_token_removes_the_pass_ahead_from_the_cache(monkeypatch, window):
    script = [*SCRIPT * 3]
    model = ScriptedModel(repeating(script, len(PROMPT)), window=window)
    model.reply = lambda seen: 30
    cache = new_cache(model.config)
    steps = generate_step(model, PROMPT, cache, max_tokens=40)
    got = list(itertools.islice(steps, 20))

    def interrupted(array):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_qwen3.generation.decoding.mx.async_eval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert cache.offset == len(PROMPT) + len(got)


def test_ctrl_c_in_the_middle_of_a_pass_leaves_an_empty_cache(scripted):
    cache = new_cache(scripted.config)
    steps = generate_step(scripted, PROMPT, cache, max_tokens=5)
    next(steps)

    def interrupted(ids, cache, keep=1):
        raise KeyboardInterrupt

    scripted.step_logits = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert cache.offset == 0


def test_ctrl_c_between_chunks_keeps_computed_chunks(scripted):
    cache = new_cache(scripted.config)

    def progress(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(generate_step(scripted, list(range(10)), cache, prefill_step_size=2, prompt_progress_callback=progress))
    assert cached_ids(cache) == [0, 1, 2, 3]


def test_the_progress_callback_counts_prompt_tokens(scripted):
    seen = []
    steps = generate_step(
        scripted,
        list(range(7)),
        max_tokens=2,
        prefill_step_size=3,
        prompt_progress_callback=lambda *counts: seen.append(counts),
    )
    next(steps)
    assert seen == [(0, 7), (3, 7), (6, 7), (7, 7)]


def test_a_second_call_continues_from_the_cache():
    model, prompt = tiny_model(), random_ids(1, 9)[0]
    whole = list(generate_step(model, prompt, max_tokens=8))
    cache = new_cache(model.config)
    first = list(generate_step(model, prompt, cache, max_tokens=3))
    rest = mx.array([*prompt.tolist(), *first][cache.offset :])
    assert [*first, *generate_step(model, rest, cache, max_tokens=5)] == whole


@pytest.mark.parametrize("fields", [{}, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}])
@pytest.mark.parametrize("step", [1, 2, 5, 64])
def test_chunked_prefill_and_cached_decoding_equal_whole_passes(fields, step):
    model, prompt = tiny_model(**fields), random_ids(1, 13)
    got = list(generate_step(model, prompt, max_tokens=10, prefill_step_size=step))
    text = prompt
    for token in got:
        logits = model(text, use_cache=False).logits[0, -1]
        assert logits.max().item() - logits[token].item() < 1e-4
        text = mx.concatenate([text, mx.array([[token]])], axis=1)


def test_processors_see_every_token_so_far(scripted):
    seen = []

    def look(tokens, logits):
        seen.append(tokens.tolist())
        return logits

    list(generate_step(scripted, PROMPT, max_tokens=3, logits_processors=[look]))
    assert seen == [PROMPT, [*PROMPT, 20], [*PROMPT, 20, 21]]


def test_custom_samplers_get_log_probabilities(scripted):
    sums = []

    def sampler(logprobs):
        sums.append(mx.exp(logprobs).sum().item())
        return mx.argmax(logprobs, axis=-1)

    assert list(generate_step(scripted, PROMPT, max_tokens=2, sampler=sampler)) == SCRIPT[:2]
    assert sums == pytest.approx([1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "empty"), ([[1], [2]], "one text at a time"), ([300], "outside"), ([1.5], "whole numbers")],
)
def test_invalid_prompts_are_refused(scripted, prompt, words):
    with pytest.raises(InputError, match=words):
        next(generate_step(scripted, prompt))


@pytest.mark.parametrize("option", [{"max_tokens": 0}, {"prefill_step_size": 0}])
def test_invalid_options_are_refused(scripted, option):
    with pytest.raises(InputError, match=next(iter(option))):
        next(generate_step(scripted, PROMPT, **option))


def test_generation_ends_at_the_context_length(scripted):
    scripted.config.max_position_embeddings = 6
    assert len(list(generate_step(scripted, PROMPT, max_tokens=None))) == 3
    with pytest.raises(ContextError, match="6 tokens and the model holds 6"):
        next(generate_step(scripted, PROMPT * 2))


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, 100),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 80}, 320),
        ({"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 80}, 100),
        ({"rope_type": "dynamic", "factor": 2.0}, 200),
    ],
)
def test_rotary_scaling_extends_the_context(scripted, rope, expected):
    scripted.config.max_position_embeddings, scripted.config.rope_parameters = 100, rope
    assert context_length(scripted.config) == expected

"""Using one cache or one conversation for two answers at the same time is an error."""

import mlx.core as mx
import pytest

from mlx_qwen3 import ChatSession, InputError, batch_generate, generate_step, stream_generate
from mlx_qwen3.generation.context import new_cache
from tests.support import tiny
from tests.support.scripted import ScriptedModel, byte_tokenizer, saying

TOKENIZER = byte_tokenizer()


def test_a_second_generation_over_a_cache_in_use_is_refused():
    model = tiny.model(vocab_size=300)
    cache = new_cache(model.config)
    first = stream_generate(model, TOKENIZER, "abc", 9, prompt_cache=cache)
    next(first)
    with pytest.raises(InputError, match="in use by another generation"):
        next(stream_generate(model, TOKENIZER, "def", 9, prompt_cache=cache))
    assert len(list(first)) == 8
    assert len(list(stream_generate(model, TOKENIZER, "def", 3, prompt_cache=cache))) == 3


def test_a_closed_or_dropped_generation_releases_its_cache():
    model = tiny.model()
    cache = new_cache(model.config)
    for close in (True, False):
        steps = generate_step(model, [1, 2, 3], cache, max_tokens=9)
        next(steps)
        if close:
            steps.close()
        del steps
        assert len(list(generate_step(model, [4], cache, max_tokens=2))) == 2


def test_a_cache_that_was_changed_by_something_else_is_an_error():
    model = tiny.model()
    cache = new_cache(model.config)
    steps = generate_step(model, [1, 2, 3], cache, max_tokens=9)
    next(steps)
    model(mx.array([[4, 5]]), past_key_values=cache)
    held = cache.offset
    with pytest.raises(InputError, match="something else has written to it"):
        next(steps)
    assert cache.offset == held


def test_a_message_during_an_answer_is_refused_without_data_loss():
    session = ChatSession(ScriptedModel(saying(TOKENIZER, "one", "two")), TOKENIZER, thinking=False)
    answer = session.send("first")
    parts = [next(answer)]
    with pytest.raises(InputError, match="an answer is being generated"):
        next(session.send("second"))
    parts += list(answer)
    assert "".join(part.text for part in parts) == "one"
    assert [message["content"] for message in session.messages] == ["first", "one"]
    assert "".join(part.text for part in session.send("second")) == "two"


def test_the_argument_order_of_mlx_lm_is_reported():
    with pytest.raises(InputError, match=r"takes \(model, ids\)"):
        next(generate_step([1, 2], tiny.model()))


def test_two_prompts_of_a_batch_cannot_share_a_cache():
    model, tokenizer = tiny.model(seed=6, vocab_size=261), byte_tokenizer()
    cache = model.make_cache()
    with pytest.raises(InputError, match="one cache twice"):
        batch_generate(model, tokenizer, ["a", "b"], 1, prompt_caches=[cache, cache])
    assert cache.offset == 0

"""Streamed text: stop strings, finish reasons, types of prompts, and the fields of a response."""

import mlx.core as mx
import pytest

from mlx_qwen3 import GenerationConfig, InputError, TokenizerError, generate, stream_generate
from mlx_qwen3.generation import StopStrings
from tests.support.scripted import ScriptedModel, byte_tokenizer, repeating, saying
from tests.support.tiny import model as tiny_model

TOKENIZER = byte_tokenizer()


def model_saying(text, prompt="p"):
    script = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
    return ScriptedModel(repeating(script, len(TOKENIZER.encode(prompt))))


def test_text_is_streamed_until_the_ending_token():
    responses = list(stream_generate(model_saying("häßlich 😀"), TOKENIZER, "p"))
    assert "".join(r.text for r in responses) == "häßlich 😀"
    last = responses[-1]
    assert (last.finish_reason, last.token) == ("stop", TOKENIZER.eos_token_id)
    assert last.generation_tokens == len(responses) == len("häßlich 😀".encode()) + 1
    assert {r.finish_reason for r in responses[:-1]} == {None}
    assert last.prompt_tokens == 1
    assert last.prompt_tps > 0
    assert last.generation_tps > 0
    assert last.peak_memory >= 0
    assert last.logprobs is None
    assert not last.from_draft


def test_max_tokens_below_minus_one_is_refused():
    with pytest.raises(InputError, match="max_tokens"):
        list(stream_generate(model_saying("a"), TOKENIZER, "p", max_tokens=-2))


def test_max_tokens_ends_with_length_and_flushes_incomplete_characters():
    responses = list(stream_generate(model_saying("a😀"), TOKENIZER, "p", max_tokens=3))
    assert [r.finish_reason for r in responses] == [None, None, "length"]
    assert "".join(r.text for r in responses) == "a\ufffd"


@pytest.mark.parametrize("stop", ["two", ["zzz", "two", "wo th"], ["one two three four", " two"]])
def test_stop_strings_span_tokens_and_are_not_part_of_the_text(stop):
    responses = list(stream_generate(model_saying("one two three"), TOKENIZER, "p", stop=stop))
    assert "".join(r.text for r in responses).rstrip() == "one"
    assert responses[-1].finish_reason == "stop"
    assert responses[-1].generation_tokens < len("one two three")


def test_text_that_only_begins_like_a_stop_string_is_returned():
    assert generate(model_saying("abcabd"), TOKENIZER, "p", stop="abcabx") == "abcabd"
    assert generate(model_saying("aab"), TOKENIZER, "p", stop="aax") == "aab"


def test_stop_strings_hold_back_only_possible_beginnings():
    stops = StopStrings(["END", "\n\n"])
    assert [stops.feed(text) for text in ("one", " E", "N", "O\n", "x")] == [
        ("one", False),
        (" ", False),
        ("", False),
        ("ENO", False),
        ("\nx", False),
    ]
    assert stops.feed("EN") == ("", False)
    assert stops.flush() == "EN"
    assert stops.feed("aENDb\n\n") == ("a", True)
    with pytest.raises(InputError, match="not empty"):
        StopStrings(["a", ""])


def test_additional_ending_tokens_end_the_answer():
    token = TOKENIZER.encode("n")[0]
    assert generate(model_saying("one"), TOKENIZER, "p", eos_token_ids=[token]) == "o"
    model = model_saying("one")
    model.generation_config = GenerationConfig(eos_token_id=[token, 299])
    assert generate(model, TOKENIZER, "p") == "o"


def test_prompts_may_be_ids_texts_or_messages():
    assert generate(model_saying("yes"), TOKENIZER, TOKENIZER.encode("p")) == "yes"
    assert generate(model_saying("yes"), TOKENIZER, mx.array(TOKENIZER.encode("p"))) == "yes"
    chat = ScriptedModel(saying(TOKENIZER, "yes"))
    assert generate(chat, TOKENIZER, [{"role": "user", "content": "p"}]) == "yes"


def test_enable_thinking_is_passed_to_the_chat_template():
    seen = []

    def reply(ids):
        seen.append(ids)
        return TOKENIZER.eos_token_id

    message = [{"role": "user", "content": "p"}]
    for thinking in (None, True, False):
        generate(ScriptedModel(reply), TOKENIZER, message, enable_thinking=thinking, max_tokens=1)
    texts = [TOKENIZER.decode(ids) for ids in seen]
    assert texts[0] == texts[1] == "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    assert texts[2] == texts[0] + "<think>\n\n</think>\n\n"


def test_invalid_prompts_are_refused():
    for prompt in ("", [], mx.zeros((0,), dtype=mx.int32)):
        with pytest.raises(InputError, match="empty"):
            generate(model_saying("x"), TOKENIZER, prompt)
    with pytest.raises(InputError, match="unknown role"):
        generate(model_saying("x"), TOKENIZER, [{"role": "boss", "content": "p"}])
    with pytest.raises(TokenizerError, match="no chat template"):
        generate(model_saying("x"), byte_tokenizer(None), [{"role": "user", "content": "p"}])


def test_log_probabilities_are_returned_on_request():
    responses = list(stream_generate(model_saying("ab"), TOKENIZER, "p", logprobs=True))
    for response in responses:
        assert response.logprobs.shape == (300,)
        assert mx.exp(response.logprobs).sum().item() == pytest.approx(1, abs=1e-4)
        assert mx.argmax(response.logprobs).item() == response.token


def test_the_generation_config_applies_and_arguments_override_it():
    model = tiny_model(vocab_size=300)
    prompt = TOKENIZER.encode("some prompt")

    def tokens(**options):
        return [r.token for r in stream_generate(model, TOKENIZER, prompt, 12, eos_token_ids=[], **options)]

    greedy = tokens()
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.5)
    assert tokens(seed=1) == tokens(seed=1)
    assert tokens(seed=1) != greedy
    assert tokens(temperature=0) == greedy
    assert tokens(top_k=1) == greedy
    assert len({tuple(tokens(seed=seed)) for seed in range(4)}) > 1
    model.generation_config = GenerationConfig(repetition_penalty=50.0)
    assert len(set(tokens())) == 12
    model.generation_config = GenerationConfig()
    assert len(set(tokens(presence_penalty=1000.0))) == 12
    assert greedy[0] not in tokens(logit_bias={greedy[0]: -1000.0})


def test_generation_continues_from_a_prompt_cache():
    from mlx_qwen3.generation.context import new_cache

    model = model_saying("abc", prompt="prompt")
    cache = new_cache(model.config)
    ids = TOKENIZER.encode("prompt")
    model.fill_cache(mx.array([ids[:4]]), cache)
    model.computed = 0
    responses = list(stream_generate(model, TOKENIZER, ids[4:], prompt_cache=cache, history=ids[:4]))
    assert "".join(r.text for r in responses) == "abc"
    assert responses[-1].prompt_tokens == 2
    assert model.computed <= 2 + 4

"""Values of the wrong type raise a one-line error that names the argument, in every generation function."""

import inspect
from collections.abc import Iterable
from typing import Any, cast, get_args, get_type_hints

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import (
    ChatSession,
    ConfigError,
    GenerationConfig,
    InputError,
    batch_generate,
    pipeline,
    stream_generate,
)
from mlx_qwen3.generation import LogitsProcessorList
from mlx_qwen3.generation.config import IGNORED, NOT_SUPPORTED
from mlx_qwen3.generation.keywords import GenerationKeywords
from mlx_qwen3.generation.options import ELSEWHERE, is_option
from tests.support import tiny
from tests.support.scripted import byte_tokenizer

TOKENIZER = byte_tokenizer()
MODEL: Any = tiny.model(seed=6, vocab_size=261, head_dim=32, max_position_embeddings=512)
IDS = mx.array([[5, 9, 3]])


def by_generate(**options):
    return MODEL.generate(**{"input_ids": IDS, "max_new_tokens": 2, "tokenizer": TOKENIZER, **options})


def by_stream(**options):
    options = {"model": MODEL, "tokenizer": TOKENIZER, "prompt": "ab", "max_tokens": 2, **options}
    return list(cast(Any, stream_generate)(**options))


def by_batch(**options):
    options = {"model": MODEL, "tokenizer": TOKENIZER, "prompts": ["ab", "c"], "max_tokens": 2, **options}
    return cast(Any, batch_generate)(**options)


def by_chat(**options):
    return list(cast(Any, ChatSession)(MODEL, TOKENIZER, **{"max_tokens": 2, **options}).send("hello"))


def by_pipeline(**options):
    made = pipeline("text-generation", model=MODEL, tokenizer=TOKENIZER)
    return made("hello", **{"max_new_tokens": 2, **options})


FUNCTIONS = [by_generate, by_stream, by_batch, by_chat, by_pipeline]


@pytest.mark.parametrize(
    ("run", "name", "value"),
    [
        *[(run, "forced_eos_token_id", []) for run in FUNCTIONS],
        *[(run, "eos_token_ids", "x") for run in FUNCTIONS],
        *[(run, "prefix_allowed_tokens_fn", lambda row, ids: 1) for run in FUNCTIONS],
        *[(run, "temperature", float("nan")) for run in FUNCTIONS],
        *[(run, "top_k", 1.5) for run in FUNCTIONS],
        *[(run, "seed", [1]) for run in FUNCTIONS],
        *[(run, "stop_strings", [1]) for run in FUNCTIONS],
        *[(run, "generation_config", {"top_k": 1}) for run in FUNCTIONS],
        (by_generate, "input_ids", {"a": 1}),
        (by_generate, "logits_processor", 5),
        (by_generate, "logits_processor", [5]),
        (by_generate, "streamer", True),
        (by_generate, "logits_to_keep", 3),
        (by_generate, "return_dict", False),
        (by_generate, "labels", IDS),
        *[(run, "tokenizer", "name/of-it") for run in (by_stream, by_batch)],
        *[(run, "model", "name/of-it") for run in (by_stream, by_batch)],
        *[(run, "logits_processors", 5) for run in (by_stream, by_batch)],
        *[(run, "max_kv_size", "8") for run in (by_stream, by_batch)],
        *[(run, "max_tokens", 1.5) for run in (by_stream, by_batch, by_chat)],
        *[(run, "num_return_sequences", 2) for run in (by_stream, by_batch, by_chat)],
        *[(run, "output_scores", True) for run in (by_stream, by_batch, by_chat)],
        *[(by_stream, name, 5) for name in ("sampler", "prompt_cache", "history", "decoding", "matcher")],
        (by_stream, "prompt_progress_callback", 5),
        (by_stream, "quantized_kv_start", "0"),
        *[(run, "prefill_step_size", "8") for run in (by_stream, by_chat)],
        *[(by_batch, name, 5) for name in ("sampler", "stops", "prompt_caches", "histories", "prompts")],
        *[(by_chat, name, "x") for name in ("sampling", "tools", "cache_options", "decoding", "confirm")],
        (by_chat, "cache_options", {"kv_bit": 8}),
        (by_chat, "thinking_budget", "5"),
        (by_chat, "system", 5),
        (by_pipeline, "prefix", 5),
    ],
)
def test_a_wrong_type_is_reported_in_one_line(run, name, value):
    with pytest.raises((InputError, ConfigError)) as caught:
        run(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert name.removesuffix("s").replace("prompt_cache", "cache") in message or "the prompt is a mapping" in message


def test_invalid_results_of_user_functions_are_reported():
    for run in (by_stream, by_batch):
        with pytest.raises(InputError, match="a sampler returned an int"):
            run(sampler=lambda scores: 5)
        with pytest.raises(InputError, match="a logits processor returned None"):
            run(logits_processors=[lambda ids, scores: None])
    with pytest.raises(InputError, match=r"a logits processor returned shape \(1, 5\)"):
        by_generate(logits_processor=[lambda ids, scores: scores[:, :5]])


def test_numbers_and_ids_may_be_arrays():
    free = by_generate(max_new_tokens=5, eos_token_id=None)[0, 3:].tolist()
    for ids in (mx.array(free[2:3]), np.array(free[2:3]), np.int64(free[2])):
        found = by_generate(max_new_tokens=np.int32(5), eos_token_id=ids, temperature=np.float32(0.5))
        assert found[0, 3:].tolist() == free[: free.index(free[2]) + 1]
    assert len(by_stream(max_tokens=np.int64(3), top_k=np.int64(1), do_sample=True, seed=np.int64(1))) == 3
    assert by_generate(repetition_penalty=10**30).shape == (1, 5)


def test_a_logits_processor_list_has_the_signature_of_transformers():
    shapes = []

    def watch(ids, scores):
        shapes.append(ids.shape)
        return scores

    for run in (by_stream, by_batch):
        run(logits_processors=LogitsProcessorList([watch]))
    by_generate(logits_processor=LogitsProcessorList([watch]))
    assert {len(shape) for shape in shapes} == {2}
    by_stream(logits_processors=watch)
    assert len(shapes[-1]) == 1


def test_without_a_prompt_the_text_starts_with_the_bos_token():
    assert (
        MODEL.generate(max_new_tokens=3, bos_token_id=7).tolist()
        == by_generate(input_ids=[[7]], max_new_tokens=3).tolist()
    )
    with pytest.raises(InputError, match="there is no prompt"):
        MODEL.generate(max_new_tokens=3, bos_token_id=None)


def test_keywords_are_typed_as_the_fields_of_a_configuration():
    fields, keywords = get_type_hints(GenerationConfig), get_type_hints(GenerationKeywords)
    generate = inspect.signature(MODEL.generate).parameters
    for name in GenerationConfig.fields:
        if name in keywords:
            accepted, own = kinds(keywords[name]), kinds(fields[name])
            assert own <= accepted, name
        else:
            assert name in MODEL_GENERATE_ONLY
    assert set(keywords) - set(GenerationConfig.fields) - set(generate) == NOT_IN_A_FILE


MODEL_GENERATE_ONLY = {
    *("use_cache", "num_return_sequences", "prefill_chunk_size", "bos_token_id", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}

NOT_IN_A_FILE = {
    *("stop", "temp", "logit_bias", "prefix_allowed_tokens_fn", "stopping_criteria", "assistant_model"),
    *("draft_model", "num_draft_tokens", "eos_token_ids", "num_beams", "seed"),
}


def kinds(hint: Any) -> set[type]:
    """Return the classes in a union; lists and tuples count as sequences."""
    found: set[type] = set()
    for part in cast(Iterable[Any], get_args(hint) or (hint,)):
        origin = getattr(part, "__origin__", part)
        found.add(str if origin in (list, tuple) or "Sequence" in str(origin) or origin is Any else origin)
    return found - {type(None)}


@pytest.mark.reference
def test_every_field_and_argument_of_transformers_is_supported_or_refused_by_name():
    transformers = pytest.importorskip("transformers")
    fields = [name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")]
    unknown = [name for name in fields if not GenerationConfig.knows(name)]
    assert not unknown
    arguments = set(inspect.signature(transformers.GenerationMixin.generate).parameters) - {"self", "kwargs"}
    own = inspect.signature(MODEL.generate).parameters
    assert not [name for name in arguments if name not in own and not is_option(name)]


def test_errors_for_unsupported_options_contain_advice():
    for name, (_, advice) in {**NOT_SUPPORTED, **ELSEWHERE}.items():
        assert advice[:1].isupper(), name
        with pytest.raises(InputError, match=f"{name} is not supported") as caught:
            by_generate(**{name: "odd"})
        assert advice in str(caught.value)
    for name, reason in IGNORED.items():
        assert reason
        assert by_generate(**{name: 3}).shape == (1, 5)


@pytest.mark.parametrize("value", [[], [[]], [[5], []], "ab", [5]], ids=str)
def test_bad_words_are_lists_of_ids_that_are_not_empty(value):
    with pytest.raises((InputError, ConfigError), match=r"bad_words_ids is .*none of them empty"):
        by_generate(bad_words_ids=value)

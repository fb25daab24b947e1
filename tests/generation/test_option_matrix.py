"""Every option has the same effect in every generation function and from every source.

The expected tokens come from NumPy and from transformers.
"""

from functools import cache

import mlx.core as mx
import pytest

from mlx_qwen3 import (
    ChatSession,
    GenerationConfig,
    InputError,
    Qwen3ForCausalLM,
    batch_generate,
    pipeline,
    stream_generate,
)
from tests.support import tiny
from tests.support.option_cases import TOKENS, Case, cases, greedy_tokens
from tests.support.scripted import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = int(TOKENIZER.eos_token_id or 0)
PROMPTS = ["abcab", "x", "hello hello hello"]
SHAPE = {"vocab_size": 261, "head_dim": 32, "max_position_embeddings": 512}


def plain_model():
    model = tiny.model(seed=6, **SHAPE)
    model.generation_config = GenerationConfig(eos_token_id=[EOS])
    return model


MODEL = plain_model()
FREE = greedy_tokens(MODEL, TOKENIZER.encode(PROMPTS[0]), Case("", {}), [EOS])
CASES = cases(FREE)


def by_generate(model, options):
    found = []
    for prompt in PROMPTS:
        ids = TOKENIZER.encode(prompt)
        found.append(model.generate(mx.array([ids]), **options)[0, len(ids) :].tolist())
    return found


def by_stream(model, options):
    return [[r.token for r in stream_generate(model, TOKENIZER, prompt, **options)] for prompt in PROMPTS]


def by_batches_of_one(model, options):
    return [batch_generate(model, TOKENIZER, [prompt], **options).token_ids[0] for prompt in PROMPTS]


def by_one_batch(model, options):
    return batch_generate(model, TOKENIZER, PROMPTS, **options).token_ids


def by_pipeline(model, options):
    made = pipeline("text-generation", model=model, tokenizer=TOKENIZER)
    results = made(PROMPTS, batch_size=1, return_tensors=True, **options)
    return [
        result[0]["generated_token_ids"][len(TOKENIZER.encode(prompt)) :]
        for result, prompt in zip(results, PROMPTS, strict=True)
    ]


FUNCTIONS = [by_generate, by_stream, by_batches_of_one, by_one_batch, by_pipeline]
BATCHES = (by_batches_of_one, by_one_batch)


def options_from(source: str, case: Case):
    """Return a model and keywords, with the options in the model's configuration, in the user's, or in the keywords."""
    own = {"max_new_tokens": TOKENS, **case.extra, **case.options}
    if source == "keywords":
        return MODEL, own
    if source == "user":
        return MODEL, {"generation_config": GenerationConfig(**own)}
    model = plain_model()
    model.generation_config = GenerationConfig(**{"eos_token_id": [EOS], **own})
    return model, {}


@cache
def expected_tokens(name: str) -> list[list[int]]:
    case = next(case for case in CASES if case.name == name)
    return [greedy_tokens(MODEL, TOKENIZER.encode(prompt), case, [EOS]) for prompt in PROMPTS]


@pytest.mark.parametrize("source", ["keywords", "user", "model"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_option_has_the_same_effect_in_every_function(case, source):
    model, options = options_from(source, case)
    expected = expected_tokens(case.name)
    ends = {EOS, *case.eos}
    for run in FUNCTIONS:
        if run in BATCHES and not case.batches:
            with pytest.raises(InputError, match="not supported in batches"):
                run(model, options)
            continue
        found = run(model, options)
        wanted = [[t for t in row if t not in ends] for row in expected] if run in BATCHES else expected
        assert found == wanted, run.__name__


@pytest.mark.parametrize("source", ["keywords", "user"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_option_has_the_same_effect_in_a_chat(case, source):
    model, options = options_from(source, case)
    if not case.options.get("do_sample"):
        options = {**options, "temperature": 0.0}
    session = ChatSession(model, TOKENIZER, **options)
    found = {part.response.generation_tokens: part.response.token for part in session.send("abcab")}
    prompt = TOKENIZER.apply_chat_template([{"role": "user", "content": "abcab"}], add_generation_prompt=True)
    assert list(found.values()) == greedy_tokens(MODEL, list(prompt), case, [EOS])


def test_stop_strings_end_the_text_in_every_function():
    free = TOKENIZER.decode(FREE)
    stop = free[2:4]
    expected = by_generate(MODEL, {"max_new_tokens": TOKENS, "stop_strings": stop, "tokenizer": TOKENIZER})[0]
    assert stop in TOKENIZER.decode(expected)
    assert stop not in TOKENIZER.decode(expected[:-1])
    options = {"max_new_tokens": TOKENS, "stop_strings": stop}
    for run in FUNCTIONS[1:]:
        assert run(MODEL, options)[0] == expected, run.__name__


def test_a_stop_string_may_begin_in_the_prompt():
    letter = {"logit_bias": {TOKENIZER.encode("Z")[0]: 100.0}}
    stop = PROMPTS[0][-2:] + "Z"
    for options in ({"stop": stop}, {"generation_config": GenerationConfig(stop_strings=[stop])}):
        responses = list(stream_generate(MODEL, TOKENIZER, PROMPTS[0], 5, **letter, **options))
        assert [response.finish_reason for response in responses] == ["stop"]
        assert responses[0].text == ""
        answer = batch_generate(MODEL, TOKENIZER, PROMPTS[:1], 5, **letter, **options)
        assert (answer.texts, answer.finish_reasons) == ([""], ["stop"])
    ids = mx.array([TOKENIZER.encode(PROMPTS[0])])
    output = MODEL.generate(ids, max_new_tokens=5, stop_strings=stop, tokenizer=TOKENIZER, **letter)
    assert output.shape[1] == ids.shape[1] + 1


def test_the_pipeline_truncates_prompts_on_request():
    made = pipeline("text-generation", model=MODEL, tokenizer=TOKENIZER)
    options = {"max_new_tokens": 3, "return_full_text": False}
    cut = made("hello hello", truncation=True, max_length=5, add_special_tokens=False, **options)
    assert cut == made("hello", **options)
    assert made("hello", truncation=False, **options) == made("hello", **options)
    with pytest.raises(InputError, match="tokenizer_encode_kwargs is not supported"):
        made("hello", tokenizer_encode_kwargs={"max_length": 2})


def test_none_as_a_keyword_disables_a_field():
    model = plain_model()
    model.generation_config = GenerationConfig(
        eos_token_id=[FREE[1]], repetition_penalty=5.0, suppress_tokens=[FREE[0]], no_repeat_ngram_size=1
    )
    off = {"eos_token_id": None, "repetition_penalty": None, "suppress_tokens": None, "no_repeat_ngram_size": None}
    for run in FUNCTIONS:
        assert run(model, {"max_new_tokens": TOKENS, **off})[0] == FREE, run.__name__


def test_fields_not_set_by_the_user_come_from_the_models_configuration():
    model = plain_model()
    model.generation_config = GenerationConfig(eos_token_id=[FREE[2]], repetition_penalty=1.0)
    for run in FUNCTIONS:
        found = run(model, {"generation_config": GenerationConfig(max_new_tokens=TOKENS)})[0]
        assert found == FREE[: 2 if run in BATCHES else 3], run.__name__


@pytest.mark.parametrize("option", ["num_beams", "num_beam_groups", "penalty_alpha", "guidance_scale", "dola_layers"])
def test_unsupported_options_are_refused_by_name_in_every_function(option):
    for run in FUNCTIONS:
        with pytest.raises(InputError, match=f"{option} is not supported"):
            run(MODEL, {option: 3})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": "1"}, "temperature is '1'"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"stop": 5}, "stop is 5"),
        ({"logit_bias": [3]}, r"logit_bias is \[3\]"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias holds NaN"),
        ({"verbose": True}, "verbose is not supported"),
        ({"temprature": 1.0}, "Did you mean 'temperature'"),
        ({"suppress_tokens": list(range(261))}, "no token may follow"),
    ],
)
def test_errors_for_invalid_values_are_one_line_in_every_function(options, named):
    for run in (by_stream, by_batches_of_one):
        with pytest.raises(InputError, match=named) as caught:
            run(MODEL, {**options, "max_new_tokens": 2})
        assert "\n" not in str(caught.value)


def test_option_names_of_mlx_lm_are_accepted():
    draft = {"draft_model": MODEL, "num_draft_tokens": 2, "temp": 0.0}
    assert by_stream(MODEL, {"max_new_tokens": TOKENS, **draft})[0] == FREE
    encoding = TOKENIZER(PROMPTS[0], return_tensors="np")
    assert [r.token for r in stream_generate(MODEL, TOKENIZER, encoding, TOKENS)] == FREE


def test_seeded_rows_do_not_depend_on_other_rows():
    options = {"temperature": 1.0, "seed": 3}
    alone = [r.token for r in stream_generate(MODEL, TOKENIZER, PROMPTS[0], TOKENS, **options)]
    assert batch_generate(MODEL, TOKENIZER, PROMPTS[:1], TOKENS, **options).token_ids == [alone]
    assert batch_generate(MODEL, TOKENIZER, PROMPTS, TOKENS, **options).token_ids[0] == alone
    drafted = [
        r.token for r in stream_generate(MODEL, TOKENIZER, PROMPTS[0], TOKENS, prompt_lookup_num_tokens=3, **options)
    ]
    assert drafted == alone
    copies = batch_generate(MODEL, TOKENIZER, PROMPTS[:1] * 3, TOKENS, **options).token_ids
    assert len({tuple(row) for row in copies}) == 3


def test_batches_support_processors_logprobs_caches_and_a_bounded_cache():
    def no_a(tokens, logits):
        assert tokens.ndim == 1
        return mx.where(mx.arange(logits.shape[1]) == FREE[0], -float("inf"), logits)

    expected = by_stream(MODEL, {"max_new_tokens": TOKENS, "logits_processors": [no_a]})
    assert by_one_batch(MODEL, {"max_new_tokens": TOKENS, "logits_processors": [no_a]}) == expected
    own = [[no_a], [], []]
    free = by_stream(MODEL, {"max_new_tokens": TOKENS})
    found = batch_generate(MODEL, TOKENIZER, PROMPTS, TOKENS, logits_processors=own, logprobs=True)
    assert found.token_ids == [expected[0], *free[1:]]
    singles = [
        [r.logprobs[r.token].item() for r in stream_generate(MODEL, TOKENIZER, p, TOKENS, logprobs=True)]
        for p in PROMPTS[1:]
    ]
    assert found.logprobs is not None
    for ours, single in zip(found.logprobs[1:], singles, strict=True):
        assert ours == pytest.approx(single, abs=1e-4)
    caches = [MODEL.make_cache(), None, MODEL.make_cache()]
    ids = [TOKENIZER.encode(prompt) for prompt in PROMPTS]
    for own_cache, row in ((caches[0], ids[0]), (caches[2], ids[2])):
        MODEL.fill_cache(mx.array([row[:-1]]), own_cache)
    rest = [ids[0][-1:], ids[1], ids[2][-1:]]
    before = [ids[0][:-1], [], ids[2][:-1]]
    cached = batch_generate(
        MODEL, TOKENIZER, rest, TOKENS, prompt_caches=caches, histories=before, repetition_penalty=1.9
    )
    assert cached.token_ids == by_stream(MODEL, {"max_new_tokens": TOKENS, "repetition_penalty": 1.9})
    bounded = {"max_new_tokens": TOKENS, "max_kv_size": 8}
    assert by_one_batch(MODEL, bounded) == by_stream(MODEL, bounded)


def test_criteria_and_allowed_tokens_apply_in_every_function():
    seen = []

    def after_three(ids, scores, **options):
        seen.append(ids.shape)
        return ids.shape[1] >= 8

    for run in FUNCTIONS:
        found = run(MODEL, {"max_new_tokens": TOKENS, "stopping_criteria": [after_three]})
        assert found[0] == FREE[:3], run.__name__
    allowed = {"prefix_allowed_tokens_fn": lambda row, ids: [65 + ids.size % 3]}
    for run in FUNCTIONS:
        assert all(token in (65, 66, 67) for row in run(MODEL, {"max_new_tokens": 4, **allowed}) for token in row)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same model in this package and in transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pair")
    MODEL.save_pretrained(folder)
    return Qwen3ForCausalLM.from_pretrained(folder), transformers.Qwen3ForCausalLM.from_pretrained(folder).eval()


@pytest.mark.reference
@pytest.mark.parametrize("case", [case for case in CASES if case.reference], ids=lambda case: case.name)
def test_tokens_equal_those_of_transformers(pair, case):
    import torch

    ours, theirs = pair
    options = {"max_new_tokens": TOKENS, "pad_token_id": EOS, **case.extra, **case.options}
    if case.name == "neutral values":
        options = {name: options[name] for name in ("max_new_tokens", "pad_token_id", "num_beams")}
    for prompt in PROMPTS:
        ids = TOKENIZER.encode(prompt)
        want = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **options)
        assert ours.generate(mx.array([ids]), **options).tolist() == want.tolist()
    if case.batches:
        width = max(map(len, map(TOKENIZER.encode, PROMPTS)))
        rows = [TOKENIZER.encode(prompt) for prompt in PROMPTS]
        ids = [[EOS] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        want = theirs.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **options)
        got = ours.generate(mx.array(ids), attention_mask=mx.array(mask), **options)
        assert got.tolist() == want.tolist()

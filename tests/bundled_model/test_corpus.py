"""The corpus: reproducible by seed, held-out phrasings, made-up names, Qwen3's format."""

import json

import pytest

from mlx_qwen3 import AutoTokenizer
from mlx_qwen3.bundled import bundled_model_path
from tools.bundled_model import facts, phrasings, questions, tokenizer
from tools.bundled_model.corpus import Corpus
from tools.bundled_model.typing_habits import quoted


@pytest.fixture(scope="module")
def corpus():
    return Corpus(facts.load())


@pytest.fixture(scope="module")
def samples(corpus):
    return [corpus.sample(0, index) for index in range(4000)]


def test_the_corpus_has_thousands_of_names_with_one_sentence_each(corpus):
    assert len(corpus.facts) >= 4000
    assert len({fact.name for fact in corpus.facts}) == len(corpus.facts)
    assert all(0 < len(fact.sentence) <= 160 and "\n" not in fact.sentence for fact in corpus.facts)
    assert {fact.name for fact in corpus.facts} <= corpus.real


def test_the_same_seed_gives_the_same_conversations(corpus, samples):
    again = Corpus(facts.load())
    assert [again.sample(0, index) for index in (0, 7, 1234)] == [samples[index] for index in (0, 7, 1234)]
    assert corpus.sample(1, 0) != samples[0]


def test_held_out_phrasings_are_never_trained(samples):
    for mine, held_out in (
        (phrasings.DESCRIBE + list(phrasings.describe_templates()), phrasings.HELD_OUT_DESCRIBE),
        (phrasings.signature_templates(), phrasings.HELD_OUT_SIGNATURE),
        (phrasings.where_templates(), phrasings.HELD_OUT_WHERE),
    ):
        assert not {phrasings.plain(template) for template in mine} & {phrasings.plain(t) for t in held_out}
    asked = [message["content"] for sample in samples for message in sample.messages if message["role"] == "user"]
    starts = [t.split("{n}")[0] for t in phrasings.HELD_OUT_DESCRIBE if len(t.split("{n}")[0]) > 12]
    for start in starts:
        ending = phrasings.HELD_OUT_DESCRIBE[[t.startswith(start) for t in phrasings.HELD_OUT_DESCRIBE].index(True)]
        ending = ending.split("{n}")[1]
        same = [
            q
            for q in asked
            if q.startswith(start) and q.endswith(ending) and q.count(" ") == ending.count(" ") + start.count(" ")
        ]
        assert same == []


def test_made_up_names_are_not_real_and_those_of_the_test_set_are_not_trained(corpus, samples):
    made_up = corpus.made_up.several(2000, seed="test")
    assert not set(made_up) & corpus.real
    assert not set(made_up) & corpus.made_up.held_out
    asked = " ".join(sample.messages[-1]["content"] for sample in samples)
    assert not [name for name in corpus.made_up.held_out if "." in name and f" {name} " in asked]
    assert not corpus.made_up.held_out & corpus.real


def test_the_test_set_has_the_documented_questions(corpus):
    known, unknown = list(questions.known(corpus)), list(questions.unknown(corpus))
    assert (len(known), len(unknown)) == (500, 200)
    assert all(answer == phrasings.UNKNOWN for _, answer, _ in unknown)
    assert known == list(questions.known(corpus))


def test_conversations_are_rendered_like_the_chat_template(samples):
    reader = AutoTokenizer.from_pretrained(bundled_model_path())
    for sample in samples[:200]:
        prompt, completion = tokenizer.render(sample)
        given = list(sample.messages)
        shown = reader.apply_chat_template(
            given, add_generation_prompt=True, enable_thinking=sample.enable_thinking, tokenize=False
        )
        assert shown == prompt
        reasoning = f"<think>\n{sample.thinking or ''}\n</think>\n\n"
        answered = [*given, {"role": "assistant", "content": reasoning + sample.answer}]
        whole = reader.apply_chat_template(answered, tokenize=False)
        assert whole == prompt + completion + "\n"


def test_the_template_renders_the_format_of_qwen3(qwen3_renderings):
    reader = AutoTokenizer.from_pretrained(bundled_model_path())
    for case in qwen3_renderings:
        switch = {} if case["enable_thinking"] is None else {"enable_thinking": case["enable_thinking"]}
        shown = reader.apply_chat_template(
            case["messages"],
            tools=case["tools"],
            add_generation_prompt=case["add_generation_prompt"],
            tokenize=False,
            **switch,
        )
        assert shown == case["text"], case["name"]


@pytest.fixture(scope="module")
def qwen3_renderings():
    from .conftest import ROOT

    return json.loads((ROOT / "tests/data/qwen3_tokenizer/chat_renders.json").read_text(encoding="utf-8"))


def test_names_are_quoted_in_all_usual_ways():
    import random

    rng = random.Random(0)
    assert {quoted(rng, "len", True) for _ in range(200)} >= {"len", "`len`", '"len"', "'len'", "len()"}

"""Zero-shot classification after reasoning: reasoning of a limited length, then one of the labels."""

import json

import pytest

import mlx_qwen3
from mlx_qwen3.cli.main import main
from mlx_qwen3.errors import InputError, RowError
from mlx_qwen3.generation.after_thinking import AfterThinking, Reasoning
from mlx_qwen3.generation.constraints import compile_constraint

LABELS = ["files", "network access", "json"]


@pytest.fixture(scope="module")
def classify():
    return mlx_qwen3.pipeline("zero-shot-classification", candidate_labels=LABELS, think=True, thinking_budget=12)


def test_a_label_follows_the_reasoning(classify):
    texts = ["os.path.join joins {labels}", "json.loads parses a text"]
    found = classify(texts)
    for text, row in zip(texts, found, strict=True):
        assert row["sequence"] == text
        assert len(row["labels"]) == len(row["scores"]) == 1
        assert row["labels"][0] in LABELS
        assert 0 < row["scores"][0] <= 1
        assert row["reasoning"]
        assert "<think>" not in row["reasoning"]
    assert classify(texts[0])["labels"] == found[0]["labels"]


def test_options_incompatible_with_reasoning_are_refused(classify):
    with pytest.raises(InputError, match="multi_label"):
        classify("x", multi_label=True)
    with pytest.raises(InputError, match="thinking_budget"):
        classify("x", thinking_budget=0)
    with pytest.raises(RowError, match="leave room to reason"):
        classify(["os.getcwd", "word " * 5000])


def test_the_budget_ends_the_reasoning():
    _, tokenizer = mlx_qwen3.load()
    constraint = compile_constraint("choices", ["yes"], tokenizer)
    reasoning = Reasoning.for_tokenizer(tokenizer, opened=True, budget=3)
    matcher = AfterThinking(constraint.matcher(), reasoning, len(constraint.tables.tokens), [])
    word = tokenizer.encode(" a")[0]
    for _ in range(3):
        assert not matcher.forced()
        matcher.accept(word)
    assert matcher.forced() == [reasoning.close, *reasoning.then]
    matcher.rollback(1)
    assert not matcher.forced()
    matcher.accept(word)
    for token in [reasoning.close, *reasoning.then, *tokenizer.encode("yes")]:
        assert matcher.forced()[:1] == [token]
        matcher.accept(token)
    assert matcher.finished


def test_a_thinking_budget_requires_a_constraint_per_row():
    model, tokenizer = mlx_qwen3.load()
    with pytest.raises(InputError, match="thinking_budget"):
        mlx_qwen3.batch_generate(model, tokenizer, ["a", "b"], 5, thinking_budget=3, regex=["a", None])


def test_the_command_line_shows_the_reasoning(capsys):
    flags = ["--labels", "json,files", "--think", "--thinking-budget", "8", "--format", "json"]
    assert main(["classify", "json.loads", *flags]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["labels"][0]["label"] in ("json", "files")
    assert record["reasoning"]
    assert main(["classify", "x", "--labels", "a,b", "--thinking-budget", "8"]) == 2
    assert main(["classify", "x", "--think"]) == 2

"""Zero-shot classification: the label tree gives the scores of one prompt per label; calibration, multiple labels."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3 import InputError, RowError, ZeroShotClassification
from mlx_qwen3.tasks.batches import Piece, Runner
from mlx_qwen3.tasks.label_scores import LabelScorer, LabelTree

LABELS = ["fox", "fox and world", "quick brown world", "weather"]
TEXTS = ["the quick brown fox was quick", "hello", "it was fine there, isn't it? the weather was fine"]


@pytest.fixture(scope="module")
def classify(folders):
    return ZeroShotClassification(folders["causal"])


def likelihood(model, prompt, ids):
    """Return log P(ids | prompt), computed by a separate call."""
    logits = model([[*prompt, *ids]], use_cache=False).logits[0, len(prompt) - 1 : -1]
    chances = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return sum(chances[place, token].item() for place, token in enumerate(ids))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(0, 12),
)
def test_the_tree_scores_every_continuation_completely(classify, continuations, lengths, shared):
    model, draw = classify.model, np.random.default_rng(len(lengths))
    start = draw.integers(0, 400, shared).tolist()
    prompts = [start + draw.integers(0, 400, n).tolist() for n in lengths]
    scorer = LabelScorer(model, LabelTree(continuations))
    rows = Runner(model).run([Piece(ids) for ids in prompts], scorer)
    for prompt, (scores,) in zip(prompts, rows, strict=True):
        expected = [likelihood(model, prompt, ids) for ids in continuations]
        np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_the_tree_shares_prefixes_and_omits_last_tokens():
    tree = LabelTree([[1, 2, 3], [1, 2, 4], [5], [1]])
    assert tree.tokens.tolist() == [1, 2]
    assert tree.depths.tolist() == [0, 1]
    assert tree.sees.tolist() == [[True, False], [True, True]]
    assert len(LabelTree([[1], [2], [3]])) == 0


def test_vocabulary_logits_in_parts_give_the_same_scores(classify, monkeypatch):
    before = classify(TEXTS, LABELS, calibrate=False)
    monkeypatch.setattr("mlx_qwen3.tasks.label_scores.LOGITS_AT_ONCE", 1)
    for one, other in zip(before, classify(TEXTS, LABELS, calibrate=False), strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)


def test_scores_are_label_likelihoods_corrected_by_a_content_free_text(classify):
    template = "hello there, it is about {} and so on"
    found = classify(TEXTS[0], LABELS, hypothesis_template=template, content_free=["N/A", "x"])
    encode = classify.tokenizer.encode
    ids = [encode(f" {label} and so on") for label in LABELS]

    def scores(text):
        prompt = encode(f"{text}\nhello there, it is about")
        return np.array([likelihood(classify.model, prompt, label) for label in ids])

    prior = np.log(np.mean([np.exp(scores("N/A")), np.exp(scores("x"))], axis=0))
    gains = scores(TEXTS[0]) - prior
    expected = np.exp(gains) / np.exp(gains).sum()
    assert found["sequence"] == TEXTS[0]
    assert dict(zip(found["labels"], found["scores"], strict=True)) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=1e-4
    )
    assert found["scores"] == sorted(found["scores"], reverse=True)
    several = classify(TEXTS[0], LABELS, hypothesis_template=template, content_free=["N/A", "x"], multi_label=True)
    assert dict(zip(several["labels"], several["scores"], strict=True)) == pytest.approx(
        dict(zip(LABELS, 1 / (1 + np.exp(-gains)), strict=True)), abs=1e-4
    )
    plain = classify(TEXTS[0], LABELS, hypothesis_template=template, calibrate=False, multi_label=True)
    assert dict(zip(plain["labels"], plain["scores"], strict=True)) == pytest.approx(
        dict(zip(LABELS, np.exp(scores(TEXTS[0])), strict=True)), abs=1e-4
    )


def test_a_content_free_text_has_equal_scores(classify):
    found = classify("N/A", LABELS, content_free=["N/A"])
    assert found["scores"] == pytest.approx([0.25] * 4, abs=1e-4)


def test_batches_streams_and_label_strings_agree(classify):
    together = classify(TEXTS, ", ".join(LABELS))
    streamed = list(classify(iter(TEXTS), LABELS, batch_size=1))
    for text, one, two in zip(TEXTS, together, streamed, strict=True):
        alone = classify(text, LABELS)
        assert alone["labels"] == one["labels"] == two["labels"]
        assert alone["scores"] == pytest.approx(one["scores"], abs=1e-4)
        assert alone["scores"] == pytest.approx(two["scores"], abs=1e-4)


def test_sliding_window_layers_give_the_likelihoods(folders):
    classify = ZeroShotClassification(folders["sliding"])
    found = classify(TEXTS[:2], LABELS, calibrate=False, multi_label=True)
    for text, result in zip(TEXTS, found, strict=False):
        prompt = classify.tokenizer.encode(f"{text}\nThis text is about")
        for label, score in zip(result["labels"], result["scores"], strict=True):
            ids = classify.tokenizer.encode(f" {label}")
            assert np.log(score) == pytest.approx(likelihood(classify.model, prompt, ids), abs=1e-3)


def test_a_long_text_is_truncated_before_the_template(folders, caplog):
    classify = ZeroShotClassification(folders["causal"], max_length=60, candidate_labels=LABELS)
    assert classify("hello world " * 90)["labels"] == classify("hello world " * 80)["labels"]
    assert sum("texts are cut" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (None, {}, "candidate_labels is missing"),
        ([], {}, "at least one label"),
        (["fox", "fox"], {}, "candidate label 'fox' is given twice"),
        (["fox", ""], {}, "candidate label 1 is empty"),
        (["fox", 3], {}, "candidate label 1 must be a string"),
        (["fox"], {"hypothesis_template": "about it"}, "with one {}"),
        (["fox"], {"content_free": []}, "content_free is empty"),
    ],
)
def test_invalid_labels_are_reported(classify, labels, options, message):
    with pytest.raises(InputError, match=message):
        classify("hello", labels, **options)


def test_bad_rows_are_reported(classify):
    with pytest.raises(RowError, match="row 1: text is empty"):
        classify(["hello", " "], LABELS)

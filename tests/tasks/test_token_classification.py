"""Token classification: strategies, offsets, windows over long texts, rows of words."""

import itertools

import pytest

from mlx_qwen3 import InputError, RowError, TokenClassification
from mlx_qwen3.tasks.token_classification import without_overlaps

TEXT = "the quick brown fox was 你好 there, isn't it?"
STRATEGIES = ("none", "simple", "first", "average", "max")


@pytest.fixture(scope="module")
def tag(folders):
    return TokenClassification(folders["token"], ignore_labels=[])


def test_tokens_have_a_label_a_score_and_offsets(tag):
    found = tag(TEXT)
    ids = tag.tokenizer.encode(TEXT)
    logits = tag.model([ids]).logits[0]
    assert [entity["index"] for entity in found] == list(range(len(ids)))
    for entity, row in zip(found, logits.tolist(), strict=True):
        assert entity["entity"] == tag.model.config.id2label[row.index(max(row))]
        assert list(entity) == ["entity", "score", "index", "word", "start", "end"]
    covered = "".join(TEXT[e["start"] : e["end"]] for e in found if "Ġ" in e["word"] or e["word"].isascii())
    assert covered.startswith("the quick")


def test_ignored_labels_are_omitted(folders):
    kept = TokenClassification(folders["token"])(TEXT)
    assert all(entity["entity"] != "O" for entity in kept)
    every = TokenClassification(folders["token"], ignore_labels=[])(TEXT)
    assert len(kept) == sum(entity["entity"] != "O" for entity in every)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_groups_cover_the_text_in_order(tag, strategy):
    groups = tag(TEXT, aggregation_strategy=strategy)
    assert list(groups[0]) == ["entity_group", "score", "word", "start", "end"]
    assert groups[0]["start"] == 0
    assert groups[-1]["end"] == len(TEXT)
    for one, two in itertools.pairwise(groups):
        assert one["end"] == two["start"]
    # the offsets select the labelled part of the text
    assert "".join(TEXT[g["start"] : g["end"]] for g in groups) == TEXT
    if strategy != "simple":
        for group in groups[1:]:
            assert " " in TEXT[group["start"] - 1 : group["start"] + 1]


def test_a_batch_equals_single_texts(tag):
    texts = [TEXT, "hello", "the fox " * 9]
    for strategy in STRATEGIES:
        for text, row in zip(texts, tag(texts, aggregation_strategy=strategy), strict=True):
            alone = tag(text, aggregation_strategy=strategy)
            assert [{**e, "score": pytest.approx(e["score"], abs=1e-4)} for e in alone] == row


def test_word_pieces_form_words(folders):
    tag = TokenClassification(folders["bert token"], ignore_labels=[])
    words = tag("unaffable foxs is the world", aggregation_strategy="first")
    assert words[0]["word"].startswith("unaffable")
    assert words[0]["start"] == 0
    tokens = tag("unaffable")
    assert [token["word"] for token in tokens] == ["un", "##aff", "##able"]
    assert [(token["start"], token["end"]) for token in tokens] == [(0, 2), (2, 5), (5, 9)]


def test_offsets_of_split_words_refer_to_the_joined_text(folders):
    tag = TokenClassification(folders["bert token"], ignore_labels=[])
    tokens = tag(["hello", "unaffable", "world"], is_split_into_words=True)[0]
    text = "hello unaffable world"
    assert [text[t["start"] : t["end"]] for t in tokens] == ["hello", "un", "aff", "able", "world"]
    assert len(tag([["hello"], ["the", "fox"]], is_split_into_words=True)) == 2


def test_a_long_text_is_read_in_windows_to_its_end(folders, caplog):
    tag = TokenClassification(folders["token"], ignore_labels=[], aggregation_strategy="first")
    text = "hello world the fox " * 12
    cut = tag(text, max_length=20)
    assert cut[-1]["end"] < len(text) // 2
    assert "stride= reads them whole" in caplog.text
    whole = tag(text, max_length=20, stride=6)
    assert whole[-1]["end"] == len(text.rstrip()) or whole[-1]["end"] == len(text)
    for one, two in itertools.pairwise(whole):
        assert two["start"] >= one["end"]


def test_the_longest_of_overlapping_entities_is_kept():
    def entity(start, end, score):
        return {"start": start, "end": end, "score": score}

    kept = without_overlaps([entity(0, 4, 0.5), entity(2, 8, 0.1), entity(8, 9, 0.2), entity(8, 9, 0.9)])
    assert [(e["start"], e["score"]) for e in kept] == [(2, 0.1), (8, 0.9)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation_strategy": "most"}, "aggregation_strategy is 'most', expected one of 'none', 'simple'"),
        ({"stride": 3}, "Choose another aggregation_strategy"),
        ({"stride": -1, "aggregation_strategy": "first"}, "stride is -1"),
        ({"ignore_labels": "O"}, "ignore_labels is a string"),
    ],
)
def test_invalid_options_are_reported(tag, options, message):
    with pytest.raises(InputError, match=message):
        tag(TEXT, **options)


def test_bad_rows_are_reported(tag):
    with pytest.raises(RowError, match="row 1: text must be a string, not int"):
        tag(["hello", 3])
    with pytest.raises(InputError, match="list of words"):
        tag([["a"], [3]], is_split_into_words=True)

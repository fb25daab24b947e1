"""The quality report of a classifier is measured on whole texts."""

from pathlib import Path

import pytest

from mlx_qwen3 import InputError, convert
from mlx_qwen3.conversion.quality import read_samples
from tests.support.tiny_checkpoints import write_qwen3, write_tokenizer


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'label,text\na,"one, two"\nb,\nc,three\n'),
        ("rows.tsv", "text\tlabel\none, two\ta\nthree\tb\n"),
        ("rows.jsonl", '{"text": "one, two"}\n\n{"text": "three", "label": 1}\n'),
        ("rows.txt", "one, two\n\nthree\n"),
    ],
)
def test_every_row_of_a_file_is_a_sample(tmp_path: Path, name: str, content: str):
    folder, file = write_tokenizer(tmp_path / "tokenizer"), tmp_path / name
    file.write_text(content)
    samples, shown, tokens = read_samples(folder, 416, file, "report", whole_texts=True)
    assert (len(samples), shown, tokens) == (2, name, sum(len(sample.ids) for sample in samples))


@pytest.mark.parametrize(
    ("name", "content"), [("rows.csv", "body\none\n"), ("rows.jsonl", '{"text": 3}\n'), ("rows.jsonl", "{\n")]
)
def test_rows_without_a_text_are_reported(tmp_path: Path, name: str, content: str):
    folder, file = write_tokenizer(tmp_path / "tokenizer"), tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError, match=rf"{name}, line"):
        read_samples(folder, 416, file, "report", whole_texts=True)


def test_the_report_of_a_classifier_counts_sentences_and_label_agreement(tmp_path: Path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForSequenceClassification", num_labels=3)
    quality = convert(source, tmp_path / "target", quantize=True, q_group_size=32).quality
    assert quality is not None
    assert quality["texts"] > 40
    assert quality["positions"] == quality["texts"]
    assert 0 <= quality["label_agreement"] <= 1

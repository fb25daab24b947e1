"""The example heads in the package, and the examples that use them."""

import runpy
from pathlib import Path

import pytest

import mlx_qwen3
from mlx_qwen3 import CheckpointError
from mlx_qwen3.tasks.bundled_heads import NOTES, load_bundled_head

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize("name", NOTES)
def test_every_head_loads_and_logs_its_purpose(name, caplog):
    model, tokenizer = load_bundled_head(name, dtype="float32")
    assert NOTES[name] in caplog.text
    assert "random weights" not in caplog.text
    assert not model.training
    assert model.config.architectures == [type(model).__name__]
    assert tokenizer.encode("hello")


def test_a_missing_head_is_reported_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="there is no head; train it with"):
        load_bundled_head("library-chapters", folder=tmp_path)


def test_pipelines_without_a_model_use_the_bundled_heads():
    classify = mlx_qwen3.pipeline("text-classification")
    found = classify(["Return the arc cosine of x.", "A lock for threads; wait until it is released."])
    assert [row["label"] for row in found] == ["numbers", "concurrency"]
    tag = mlx_qwen3.pipeline("ner")
    kinds = {entity["word"].strip("Ġ"): entity["entity"] for entity in tag("def area(r): return 3 * r")}
    assert kinds["def"] == "keyword"
    assert kinds["3"] == "number"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classify", "numbers"),
        ("tag", "comment"),
        ("answer", "Axis along which the sum is taken"),
        ("zero_shot", "'labels': ['math'"),
        ("embed", "Delete a file."),
        ("fine_tune_head", "'label': 'thread'"),
    ],
)
def test_the_examples_print_the_expected_result(name, expected, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert expected in capsys.readouterr().out

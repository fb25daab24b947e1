"""Estimators take the containers and options that scikit-learn's tools pass, and report unusable ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_qwen3 import CheckpointError, InputError, TextClassifier, TextRegressor
from tests.support.tiny_checkpoints import write_qwen3

TEXTS = [f"{word} is number {i}" for i in range(8) for word in ("apple", "stone")]
LABELS = ["fruit", "rock"] * 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("base"), "Qwen3ForCausalLM")


@pytest.fixture(scope="module")
def fitted(base: Path) -> TextClassifier:
    return TextClassifier(base, pooling="last").fit(TEXTS, LABELS)


def pandas_series(values: list[Any]) -> Any:
    return pytest.importorskip("pandas").Series(values, index=range(100, 100 + len(values)))


def pandas_frame(values: list[Any]) -> Any:
    return pytest.importorskip("pandas").DataFrame({"text": values})


def polars_frame(values: list[Any]) -> Any:
    return pytest.importorskip("polars").DataFrame({"text": values})


CONTAINERS = [np.array, iter, pandas_series, pandas_frame, polars_frame, lambda values: np.array(values)[:, None]]


@pytest.mark.parametrize("container", CONTAINERS)
def test_arrays_series_and_frames_with_one_column_are_lists_of_rows(base: Path, container: Any):
    classifier = TextClassifier(base, pooling="last").fit(container(TEXTS), container(LABELS))
    assert classifier.predict(container(TEXTS)).tolist() == LABELS
    assert classifier.score(container(TEXTS), container(LABELS)) == 1


@pytest.mark.parametrize(
    ("texts", "named"),
    [(set(TEXTS), "X is set"), ("a text", "X is str"), (np.array([TEXTS, TEXTS]).T, "row 0 of X is list")],
)
def test_texts_without_an_order_or_with_several_columns_are_refused(fitted: TextClassifier, texts: Any, named: str):
    with pytest.raises(InputError, match=named):
        fitted.predict(texts)


def test_a_frame_with_several_columns_is_refused(fitted: TextClassifier):
    frame = pytest.importorskip("pandas").DataFrame({"text": TEXTS, "label": LABELS})
    with pytest.raises(InputError, match="X has 2 columns"):
        fitted.predict(frame)


def test_a_matrix_of_zeros_and_ones_gives_several_labels_per_row(base: Path):
    matrix = np.array([[1, 0], [0, 1]] * 8)
    classifier = TextClassifier(base, pooling="last").fit(TEXTS, matrix, eval_set=(TEXTS[:2], matrix[:2]))
    assert classifier.predict(TEXTS).tolist() == matrix.tolist()
    assert classifier.score(TEXTS, matrix) == 1
    assert classifier.score(TEXTS, [{0}, {1}] * 8) == 1
    with pytest.raises(InputError, match="3 columns"):
        classifier.score(TEXTS, np.eye(3, dtype=int)[[0, 1] * 8])
    with pytest.raises(InputError, match="one label per row"):
        classifier.score(TEXTS, LABELS)


@pytest.mark.parametrize("eval_set", [TEXTS, (TEXTS, LABELS, LABELS), {"X": TEXTS}, 3, ([], [])])
def test_an_eval_set_that_is_not_a_pair_is_refused(base: Path, eval_set: Any):
    with pytest.raises(InputError, match="eval_set"):
        TextClassifier(base).fit(TEXTS, LABELS, eval_set=eval_set)


def test_an_eval_set_may_be_a_list_with_one_pair(base: Path):
    report = TextClassifier(base, pooling="last").fit(TEXTS, LABELS, eval_set=[(TEXTS, LABELS)]).report_
    assert report.metrics["accuracy"] == 1


def test_sample_weights_count_as_repeated_rows(base: Path):
    weights = [3.0, 1.0] * 8
    repeated = TEXTS + TEXTS[::2] * 2, LABELS + LABELS[::2] * 2
    classifier = TextRegressor(base, pooling="last")
    with pytest.raises(InputError, match="row 0 of sample_weight is 0"):
        classifier.fit(TEXTS, range(16), sample_weight=[0] * 16)
    with pytest.raises(InputError, match="sample_weight has 2"):
        classifier.fit(TEXTS, range(16), sample_weight=[1, 2])
    assert TextClassifier(base, pooling="last").fit(TEXTS, LABELS, sample_weight=weights).score(*repeated) == 1
    scores = classifier.fit(TEXTS, range(16))
    share = scores.score(TEXTS, range(16), sample_weight=weights)
    np.testing.assert_allclose(share, scores.score(repeated[0], [*range(16), *[*range(16)][::2] * 2]), rtol=1e-6)


def test_options_may_be_numbers_of_numpy(base: Path, tmp_path: Path):
    options: dict[str, Any] = {"max_length": np.int64(9), "random_state": np.int64(3), "weight_decay": np.float32(0.5)}
    classifier = TextClassifier(base, pooling="last", **options).fit(TEXTS, LABELS)
    classifier.save(tmp_path / "saved")
    assert TextClassifier.load(tmp_path / "saved").max_length == 9


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([{"a"}] * 16, "same labels"),
        ([float(i % 15) for i in range(15)] + [0.5], "fractions"),
        ([1e300] * 16, "Scale"),
        ([None] * 16, "row 0"),
    ],
)
def test_targets_without_information_or_out_of_range_are_refused(base: Path, labels: list[Any], named: str):
    estimator = TextRegressor(base) if named in ("Scale", "row 0") else TextClassifier(base)
    with pytest.raises(InputError, match=named):
        estimator.fit(TEXTS, labels)


@pytest.mark.parametrize("y", [None, [], LABELS[:3]])
def test_scoring_without_a_label_per_row_is_refused(fitted: TextClassifier, y: Any):
    with pytest.raises(InputError):
        fitted.score(TEXTS if y is None or len(y) else [], y)


@pytest.mark.parametrize(
    ("field", "value"),
    [("classes", None), ("classes", ["a"]), ("parameters", 3), ("problem_type", None), ("metrics", 1)],
)
def test_a_damaged_record_of_training_is_reported(fitted: TextClassifier, tmp_path: Path, field: str, value: Any):
    fitted.save(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    config = json.loads(file.read_text())
    config["training"][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="record of training"):
        TextClassifier.load(tmp_path / "saved")


def test_tools_of_scikit_learn_accept_the_estimators(base: Path):
    selection = pytest.importorskip("sklearn.model_selection")
    search = selection.GridSearchCV(TextClassifier(base, pooling="last"), {"max_length": np.arange(8, 10)}, cv=2)
    search.fit(pandas_series(TEXTS), pandas_series(LABELS), sample_weight=np.ones(16))
    assert search.best_estimator_.score(TEXTS, LABELS) == 1
    folds = selection.cross_val_score(TextClassifier(base), TEXTS, np.array([[1, 0], [0, 1]] * 8), cv=2)
    assert folds.shape == (2,)

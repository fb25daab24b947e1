"""`TextClassifier` and `TextRegressor`: estimators with the API of scikit-learn, which need not be installed."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, InputError
from ..files import read_json_object
from .datasets import encode_texts, match_labels
from .files import rows_hash
from .fitting import Base, Fitted, fit, load_base, make_objective, token_limit
from .frozen_features import BATCH_TOKENS
from .labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    Labels,
    check_labels,
    check_numbers,
    check_sample_weight,
    check_texts,
    class_weights,
    describe_imbalance,
)
from .options import TrainingOptions
from .output import write_output
from .report import TrainingReport
from .train import label_fields, plain_scalar, text_examples, training_options


class NotFittedError(InputError, AttributeError):
    """An estimator was used before `fit`."""


class _TextEstimator:
    """Base of both estimators: parameters, fitting, saving.

    Args:
        model: a folder or Hub repository; None for the bundled model.
        method: "head" fits a linear head on frozen features, in one pass over the texts; "lora" and "dora" train an
            adapter, "full" all weights.
        pooling: input of the head: the hidden state of the last token with "last", as in transformers, or the mean over
            the tokens with "mean". "auto" selects the better one by cross-validation for "head", and "last" for the
            other methods.
        random_state: the seed; None for 0.
        The other arguments are those of `TrainingOptions`.
    """

    _estimator_type = ""
    _task = ""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        method: str = "head",
        pooling: str = "auto",
        epochs: int = 3,
        batch_size: int = 16,
        accumulation: int = 1,
        learning_rate: float | None = None,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        weight_decay: float = 0.01,
        patience: int | None = None,
        max_length: int | None = None,
        class_weights: Any = None,
        dtype: str | None = None,
        random_state: int | None = None,
    ):
        self.model = model
        self.method = method
        self.pooling = pooling
        self.epochs = epochs
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.learning_rate = learning_rate
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.patience = patience
        self.max_length = max_length
        self.class_weights = class_weights
        self.dtype = dtype
        self.random_state = random_state

    # parameters

    @classmethod
    def _list_parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in self._list_parameters()}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters.

        Raises:
            InputError: an unknown name.
        """
        for name in parameters:
            if name not in self._list_parameters():
                known = ", ".join(self._list_parameters())
                raise InputError(f"unknown parameter {name!r} of {type(self).__name__}. Use one of {known}.")
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{n}={v!r}" for n, v in self.get_params().items() if v != defaults[n].default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        """Return the estimator tags that scikit-learn requires."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifier = self._estimator_type == "classifier"
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=ClassifierTags() if classifier else None,
            regressor_tags=None if classifier else RegressorTags(),
            input_tags=InputTags(two_d_array=False, string=True),
        )

    # fitting

    def _make_options(self) -> TrainingOptions:
        names = ("method", "epochs", "batch_size", "accumulation", "learning_rate", "rank", "alpha", "dropout")
        names = (*names, "weight_decay", "patience", "max_length", "class_weights")
        if self.pooling not in ("auto", "last", "mean"):
            raise InputError(f"pooling is {self.pooling!r}, expected 'auto', 'last' or 'mean'.")
        seed = 0 if self.random_state is None else self.random_state
        return training_options({**{name: getattr(self, name) for name in names}, "seed": seed})

    def _check_targets(self, y: Any, rows: int, least: int = 2, classes: list[Any] | None = None) -> Labels:
        raise NotImplementedError

    def fit(self, X: Any, y: Any, eval_set: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Fit the estimator to texts.

        Args:
            X: a list, a NumPy array, or a Series or one-column frame of pandas or polars, with N texts.
            y: N labels (strings or ints), N collections of labels, an array (N, labels) of zeros and ones, or N
                numbers.
            eval_set: held-out (X, y). Metrics are measured on them, and training keeps the weights with the lowest
                held-out loss.
            sample_weight: N weights of the texts in the loss; default: equal weights.

        Raises:
            InputError: a row is invalid; the message has the index of the first one.
        """
        options = self._make_options()
        texts = check_texts(X)
        labels = self._check_targets(y, len(texts))
        weights = class_weights(labels, options.class_weights)
        weights = [a * b for a, b in zip(weights, check_sample_weight(sample_weight, len(texts)), strict=True)]
        held = None
        if eval_set is not None:
            held_texts, held_targets = _check_eval_set(eval_set)
            held_labels = self._check_targets(held_targets, len(held_texts), least=1, classes=labels.classes)
            held = held_texts, match_labels(held_labels, labels, "eval_set")
        base = load_base(self.model, self._task, options.method, self.dtype, **label_fields(labels))
        limit = token_limit(base, options)
        train = text_examples(base, texts, labels, weights, limit)
        valid = [] if held is None else text_examples(base, held[0], held[1], None, limit)
        report = TrainingReport(self._task, options.method, base.source, len(train))
        report.labels = labels.names if labels.problem != REGRESSION else []
        report.remarks += [
            remark for remark in [describe_imbalance(labels, options.class_weights is not None)] if remark
        ]
        report.data_sha256 = rows_hash([texts, labels.targets])
        objective = make_objective(base, self._task, labels.names, labels.problem)
        fitted = fit(base, objective, train, valid, options, report, pooling=self.pooling)
        self._set_fitted(fitted, labels.problem, labels.classes)
        return self

    def _set_fitted(self, fitted: Fitted, problem: str, classes: list[Any]) -> None:
        self._fitted, self._problem, self._labels = fitted, problem, classes
        self.report_ = fitted.report
        if problem != REGRESSION:
            self.classes_ = np.array(classes)

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether `fit` has been called."""
        return hasattr(self, "_fitted")

    def _check_fitted(self) -> Base:
        if not hasattr(self, "_fitted"):
            message = f"this {type(self).__name__} is not fitted yet. Call fit(X, y) first."
            raise _make_not_fitted_error(message)
        return self._fitted.base

    def _compute_logits(self, X: Any) -> np.ndarray:  # noqa: N803
        base = self._check_fitted()
        texts = check_texts(X)
        if not texts:
            return np.zeros((0, base.model.config.num_labels), np.float32)
        from ..tasks.batches import Piece, Runner

        rows = encode_texts(base.tokenizer, texts, token_limit(base, self._make_options()))
        mean = getattr(base.model.config, "classifier_pooling", None) == "mean"
        runner = Runner(base.model, shares_prefix=not mean)

        def compute(call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
            return (base.model(**call, last_positions=last).logits.astype(mx.float32),)

        tokens = BATCH_TOKENS[mx.default_device().type.name]
        outputs = runner.run([Piece(ids) for ids in rows], compute, batch_tokens=tokens)
        return np.stack([row[0] for row in outputs])

    # files

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Save the fitted model as a checkpoint folder ("head", "full") or a PEFT adapter ("lora", "dora").

        `mlx_qwen3.load`, `pipeline` and the command line can load it.

        Args:
            force: replace an existing folder.

        Raises:
            NotFittedError: `fit` has not been called.
            CheckpointError: the folder exists and `force` is false, or it cannot be written.
        """
        self._check_fitted()
        parameters = {name: plain_scalar(value) for name, value in self.get_params().items() if name != "model"}
        extra = {"classes": self._labels, "problem_type": self._problem, "parameters": parameters}
        write_output(self._fitted, path, extra=extra, force=force)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Load an estimator from a folder written by `save` or `mlx-qwen3 train`.

        Args:
            **options: arguments of `mlx_qwen3.load`, such as `dtype`.

        Raises:
            CheckpointError: the folder has no record of a training of this estimator's task.
        """
        from ..loading import load

        folder = Path(os.path.expanduser(path))
        adapter = folder / "training.json"
        training: Any = None
        if adapter.is_file():
            training = read_json_object(adapter)
        elif (folder / "config.json").is_file():
            training = read_json_object(folder / "config.json").get("training")
        if not isinstance(training, dict) or training.get("task") != cls._task:
            raise CheckpointError(f"{path} is not a saved {cls.__name__}. Load it with mlx_qwen3.load or pipeline.")
        _check_record(training, str(path))
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        model, tokenizer = load(path, **{"unpack": on_cpu, **options})
        parameters = {k: v for k, v in (training.get("parameters") or {}).items() if k in cls._list_parameters()}
        self = cls(**{"method": training["method"], **parameters})
        base = Base(model, tokenizer, str(training.get("base_model")), folder, False)
        report = TrainingReport(cls._task, training["method"], base.source, training.get("rows", 0))
        report.metrics, report.baselines = training.get("metrics") or {}, training.get("baselines") or {}
        if len(training["classes"]) != (0 if training["problem_type"] == REGRESSION else model.config.num_labels):
            raise CheckpointError(f"{path}: the record of training has other labels than the model. Save it again.")
        self._set_fitted(Fitted(base, report), training["problem_type"], training["classes"])
        return self


def _check_eval_set(eval_set: Any) -> tuple[list[str], Any]:
    """Return the texts and targets of a pair (X, y), or of a list with one such pair."""
    if isinstance(eval_set, list | tuple) and len(eval_set) == 1:
        eval_set = eval_set[0]
    if not isinstance(eval_set, list | tuple) or len(eval_set) != 2:
        raise InputError(f"eval_set is {eval_set!r:.60}, expected a pair of texts and labels. Pass eval_set=(X, y).")
    texts = check_texts(eval_set[0], "eval_set")
    if not texts:
        raise InputError("eval_set has no rows. Give texts and labels, or omit it.")
    return texts, eval_set[1]


def _check_record(training: dict[str, Any], path: str) -> None:
    """Raise CheckpointError for a record of training without the fields that an estimator needs."""
    expected = {
        "method": str,
        "problem_type": str,
        "classes": list,
        "parameters": dict | None,
        "metrics": dict | None,
        "baselines": dict | None,
    }
    for name, kind in expected.items():
        if not isinstance(training.get(name), kind):
            raise CheckpointError(f"{path}: field {name!r} of the record of training is malformed. Save it again.")


def _make_not_fitted_error(message: str) -> Exception:
    """Create the error of an unfitted estimator; if scikit-learn is imported, it is also scikit-learn's error."""
    import sys

    if "sklearn" not in sys.modules:
        return NotFittedError(message)
    from sklearn.exceptions import NotFittedError as SklearnNotFittedError

    class BothNotFittedError(NotFittedError, SklearnNotFittedError):
        """NotFittedError of both packages."""

    return BothNotFittedError(message)


class TextClassifier(_TextEstimator):
    """Classify texts; a scikit-learn estimator for pipelines, grid searches and cross-validation.

    >>> classifier = TextClassifier().fit(["good", "bad", "fine", "poor"], [1, 0, 1, 0])  # doctest: +SKIP
    >>> classifier.predict(["great"])  # doctest: +SKIP
    array([1])
    """

    _estimator_type = "classifier"
    _task = "text-classification"
    classes_: np.ndarray

    def _check_targets(self, y: Any, rows: int, least: int = 2, classes: list[Any] | None = None) -> Labels:
        return check_labels(y, rows, least=least, classes=classes)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return probabilities (N, labels): softmax, or independent sigmoids with several labels per text."""
        logits = self._compute_logits(X).astype(np.float64)
        if self._problem == MULTI:
            return np.exp(-np.logaddexp(0, -logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the label of each text (N,), or zeros and ones (N, labels) with several labels per text."""
        probabilities = self.predict_proba(X)
        if self._problem == MULTI:
            return (probabilities > 0.5).astype(np.int64)
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the accuracy; with several labels per text, the share of texts with exactly the right labels.

        Args:
            sample_weight: N weights of the texts; default: equal weights.
        """
        predicted = self.predict(X)
        labels = self._check_targets(y, len(predicted), least=1, classes=self._labels)
        if (labels.problem == SINGLE) != (self._problem == SINGLE):
            raise InputError("y has one label per row where the model predicts several, or the reverse. Correct y.")
        if labels.problem == SINGLE:
            right = [labels.classes[target] == value for target, value in zip(labels.targets, predicted, strict=True)]
        else:
            known = list(self._labels)
            right = []
            for target, row in zip(labels.targets, predicted, strict=True):
                expected = {label for label, held in zip(labels.classes, target, strict=True) if held}
                right.append(expected == {label for label, held in zip(known, row, strict=True) if held})
        return float(np.average(right, weights=check_sample_weight(sample_weight, len(right))))


class TextRegressor(_TextEstimator):
    """Predict a number for each text; a scikit-learn estimator like `TextClassifier`."""

    _estimator_type = "regressor"
    _task = "text-regression"

    def _check_targets(self, y: Any, rows: int, least: int = 2, classes: list[Any] | None = None) -> Labels:
        return check_numbers(y, rows)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the predicted numbers (N,)."""
        return self._compute_logits(X)[:, 0].astype(np.float64)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the coefficient of determination R².

        Args:
            sample_weight: N weights of the texts; default: equal weights.
        """
        predicted = self.predict(X)
        expected = np.array([row[0] for row in check_numbers(y, len(predicted)).targets])
        weights = np.array(check_sample_weight(sample_weight, len(expected)))
        spread = float(weights @ np.square(expected - np.average(expected, weights=weights)))
        return 1 - float(weights @ np.square(predicted - expected)) / spread if spread else 0.0

"""Check labels of users, and detect the problem: one label per row, several labels, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
MANY_VALUES = 20
"""Number of different numeric labels above which they are taken for numbers to predict."""
MAX_NUMBER = 1e15
"""Largest number to predict: the squares of errors stay finite in float32."""


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        problem: `problem_type` of the configuration.
        classes: sorted labels in their original type (strings, ints or booleans); empty for regression.
        targets: one target per row: a label id, zeros and ones, or a number.
    """

    problem: str
    classes: list[Any]
    targets: list[Any]

    @property
    def names(self) -> list[str]:
        """The labels as strings, for config.json."""
        return [str(label) for label in self.classes] or ["LABEL_0"]


def as_list(values: Any, name: str) -> list[Any]:
    """Convert a list, a tuple, an array, a pandas or polars Series, or a frame with one column to a list.

    Raises:
        InputError: another type, such as a single text, or a frame with several columns.
    """
    if isinstance(values, str | bytes | dict | set | frozenset) or values is None:
        raise InputError(f"{name} is {type(values).__name__}, expected a list of rows. Put it in a list.")
    if _is_frame(values):
        if len(values.columns) != 1:
            raise InputError(f"{name} has {len(values.columns)} columns, expected one. Select a column.")
        values = values[values.columns[0]]
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    for method in ("to_list", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name} is {type(values).__name__}, expected a list of rows. Put it in a list.") from None


def _is_frame(values: Any) -> bool:
    """Return whether `values` is a DataFrame of pandas or polars."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy") and getattr(values, "ndim", 2) == 2


def _expand_indicators(values: Any, classes: list[Any] | None, name: str) -> Any:
    """Convert a matrix of zeros and ones (N, labels) to the labels of each row; return other values unchanged.

    The labels are `classes`, else the columns of a frame, else 0, 1, ….
    """
    matrix = values.to_numpy() if _is_frame(values) else values
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.shape[1] < 2 or matrix.dtype.kind not in "biuf":
        return values
    if not np.isin(matrix, (0, 1)).all():
        if matrix.dtype.kind == "f":
            raise InputError(f"{name} is a matrix with values other than 0 and 1. Give one number or label per row.")
        return values
    named = [str(column) for column in values.columns] if _is_frame(values) else list(range(matrix.shape[1]))
    labels = named if classes is None else classes
    if len(labels) != matrix.shape[1]:
        raise InputError(f"{name} has {matrix.shape[1]} columns, the training data {len(labels)} labels. Use the same.")
    return [[label for label, held in zip(labels, row, strict=True) if held] for row in matrix.tolist()]


def check_texts(texts: Any, name: str = "X", locations: Sequence[str] | None = None) -> list[str]:
    """Check texts and return them as a list.

    Args:
        locations: location of each row for messages; default: its index.

    Raises:
        InputError: a row is empty, missing or not a text; the message has its location.
    """
    rows = as_list(texts, name)
    for index, text in enumerate(rows):
        location = locations[index] if locations else f"row {index}"
        if text is None or (isinstance(text, float) and math.isnan(text)):
            raise InputError(f"{location} of {name} is missing. Remove the row, or give its text.")
        if not isinstance(text, str):
            raise InputError(f"{location} of {name} is {type(text).__name__}, not a text: {text!r}. Give a string.")
        if not text.strip():
            raise InputError(f"{location} of {name} is empty. Remove the row, or give its text.")
    return rows


def check_labels(
    values: Any,
    rows: int,
    name: str = "y",
    locations: Sequence[str] | None = None,
    least: int = 2,
    classes: list[Any] | None = None,
) -> Labels:
    """Detect the problem that labels define, and assign label ids in sorted order.

    Args:
        rows: number of texts.
        least: minimum number of different labels; with several labels per row, of different rows.
        classes: labels of the columns if `values` is a matrix of zeros and ones.

    Raises:
        InputError: the number of labels differs from that of the rows, a label is missing, there are too few different
            labels, or the labels look like numbers to predict.
    """
    given = as_list(_expand_indicators(values, classes, name), name)
    if len(given) != rows:
        raise InputError(f"X has {rows} rows and {name} has {len(given)}. Give one label per row.")
    if not given:
        raise InputError("there are no rows to train on. Give at least two texts with different labels.")
    where = [locations[i] if locations else f"row {i}" for i in range(rows)]
    if any(isinstance(label, list | tuple | set | frozenset) for label in given):
        return _check_label_lists(given, where, name, least)
    for location, label in zip(where, given, strict=True):
        if label is None or (isinstance(label, float) and math.isnan(label)) or label == "":
            raise InputError(f"{location} of {name} has no label. Remove the row, or give its label.")
        if not isinstance(label, str | int | float | bool):
            raise InputError(
                f"{location} of {name} is {type(label).__name__}, expected a string or a whole number. Correct it."
            )
    fractions = [label for label in given if isinstance(label, float) and not label.is_integer()]
    if fractions:
        raise InputError(
            f"the labels are numbers with fractions ({fractions[0]!r}; {len(set(given))} different values). Use "
            "TextRegressor or --regression to predict numbers, or give labels as strings."
        )
    decimals = any(isinstance(label, float) for label in given)
    given = [int(label) if isinstance(label, float) else label for label in given]
    if len({type(label) for label in given}) > 1 and any(isinstance(label, str) for label in given):
        raise InputError(f"{name} mixes strings and numbers. Give labels of one type.")
    classes = sorted(set(given))
    if len(classes) < least:
        raise InputError(f"there is only one label: {classes[0]!r}. Give rows with at least two labels.")
    if len(classes) > MANY_VALUES and (decimals or len(classes) == len(given)) and not isinstance(classes[0], str):
        raise InputError(
            f"the labels are {len(classes)} different numbers. Use TextRegressor or --regression to predict numbers, "
            "or give labels as strings."
        )
    number = {label: index for index, label in enumerate(classes)}
    return Labels(SINGLE, classes, [number[label] for label in given])


def _check_label_lists(given: list[Any], where: list[str], name: str, least: int) -> Labels:
    for location, labels in zip(where, given, strict=True):
        if not isinstance(labels, list | tuple | set | frozenset):
            raise InputError(
                f"{location} of {name} is {labels!r}, other rows have lists of labels. Give a list for each row."
            )
        if not all(isinstance(label, str | int) for label in labels):
            raise InputError(f"{location} of {name} has an invalid label: {labels!r}. Use strings or whole numbers.")
    classes = sorted({label for labels in given for label in labels}, key=lambda label: (str(type(label)), label))
    if not classes and least > 1:
        raise InputError("no row has a label. Give rows with labels.")
    if least > 1 and all(set(labels) == set(classes) for labels in given):
        raise InputError(f"every row has the same labels: {classes!r:.80}. Give rows with different labels.")
    targets = [[float(label in labels) for label in classes] for labels in map(set, given)]
    return Labels(MULTI, classes, targets)


def check_numbers(values: Any, rows: int, name: str = "y", locations: Sequence[str] | None = None) -> Labels:
    """Check numbers to predict.

    Raises:
        InputError: the number of values differs from that of the rows, or a value is missing or not finite.
    """
    given = as_list(values, name)
    if len(given) != rows:
        raise InputError(f"X has {rows} rows and {name} has {len(given)}. Give one number per row.")
    if not given:
        raise InputError("there are no rows to train on. Give texts with one number each.")
    numbers = []
    for index, value in enumerate(given):
        location = locations[index] if locations else f"row {index}"
        if value is None or value == "":
            raise InputError(f"{location} of {name} has no number. Remove the row, or give its number.")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{location} of {name} is {value!r}, expected a number. Correct it.") from None
        if not math.isfinite(number):
            raise InputError(f"{location} of {name} is {value!r}. Remove the row, or give its number.")
        if abs(number) > MAX_NUMBER:
            raise InputError(f"{location} of {name} is {value!r}, expected at most ±{MAX_NUMBER:g}. Scale the numbers.")
        numbers.append([number])
    return Labels(REGRESSION, [], numbers)


def class_weights(labels: Labels, option: Any) -> list[float]:
    """Return the weight of each row.

    Args:
        option: None for equal weights, "balanced" for N / (labels · rows of the label), or a dict of weights by label.

    Raises:
        InputError: an invalid option, an unknown label, or a problem without class weights.
    """
    count = len(labels.targets)
    if option is None:
        return [1.0] * count
    if labels.problem != SINGLE:
        raise InputError("class_weights needs one label per row. Omit it.")
    sizes = np.bincount(np.array(labels.targets), minlength=len(labels.classes))
    if option == "balanced":
        by_label = count / (len(sizes) * np.maximum(sizes, 1))
        return [float(by_label[target]) for target in labels.targets]
    if not isinstance(option, dict):
        raise InputError(f"class_weights is {option!r}, expected 'balanced' or a dict of weights by label.")
    named = {str(label): index for index, label in enumerate(labels.classes)}
    weights = np.ones(len(sizes))
    for label, weight in option.items():
        if str(label) not in named:
            raise InputError(f"class_weights has the label {label!r}, which no row has. Use {', '.join(named)}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise InputError(f"class_weights: the weight of {label!r} is {weight!r}, expected a number above 0.")
        weights[named[str(label)]] = weight
    return [float(weights[target]) for target in labels.targets]


def check_sample_weight(values: Any, rows: int) -> list[float]:
    """Check the weights of rows; None gives equal weights.

    Raises:
        InputError: the number of weights differs from that of the rows, or one is not a number above 0.
    """
    if values is None:
        return [1.0] * rows
    weights = as_list(values, "sample_weight")
    if len(weights) != rows:
        raise InputError(f"X has {rows} rows and sample_weight has {len(weights)}. Give one weight per row.")
    for index, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < MAX_NUMBER:
            raise InputError(f"row {index} of sample_weight is {weight!r}, expected a number above 0. Correct it.")
    return [float(weight) for weight in weights]


def describe_imbalance(labels: Labels, weighted: bool) -> str:
    """Return a remark on labels with only one row or very different numbers of rows; "" if there is nothing to report.

    Args:
        weighted: whether rows are already weighted by label.
    """
    if labels.problem != SINGLE:
        return ""
    sizes = np.bincount(np.array(labels.targets), minlength=len(labels.classes))
    rare = [str(labels.classes[i]) for i in np.flatnonzero(sizes == 1)]
    remarks = []
    if rare:
        remarks.append(f"only 1 example of {', '.join(rare[:5])}{' and others' if len(rare) > 5 else ''}")
    if sizes.max() >= 5 * sizes.min():
        most, least = labels.classes[int(sizes.argmax())], labels.classes[int(sizes.argmin())]
        advice = "" if weighted else "; consider class_weights='balanced' (--class-weights balanced)"
        remarks.append(f"labels are unbalanced: {sizes.max()} rows of {most}, {sizes.min()} of {least}{advice}")
    return "; ".join(remarks)

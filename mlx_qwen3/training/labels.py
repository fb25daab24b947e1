"""Labels as people give them, checked, and what they mean: one label, several, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
MANY_VALUES = 20
"""Different floats from which on a label column looks like numbers to predict."""


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        problem: the configuration's `problem_type`.
        classes: the sorted labels, as they were given: strings, ints or booleans; empty for regression.
        targets: one per row: a label id, zeros and ones, or a number.
    """

    problem: str
    classes: list[Any]
    targets: list[Any]

    @property
    def names(self) -> list[str]:
        """The labels as strings, as they stand in config.json."""
        return [str(label) for label in self.classes] or ["LABEL_0"]


def as_list(values: Any, name: str) -> list[Any]:
    """Return a list, a tuple, an array or a pandas Series as a list.

    Raises:
        InputError: something else, such as a single text.
    """
    if isinstance(values, str | bytes | dict) or values is None:
        raise InputError(f"{name} is {type(values).__name__}, expected a list of rows. Put it in a list")
    if hasattr(values, "to_list"):
        return values.to_list()
    if hasattr(values, "tolist"):
        return values.tolist() if isinstance(values, np.ndarray) else list(values.tolist())
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name} is {type(values).__name__}, expected a list of rows. Put it in a list") from None


def check_texts(texts: Any, name: str = "X", places: Sequence[str] | None = None) -> list[str]:
    """Return the texts as a list.

    Args:
        places: what each row is called in messages; by default its index.

    Raises:
        InputError: a row that is empty, missing or no text; names it.
    """
    rows = as_list(texts, name)
    for index, text in enumerate(rows):
        place = places[index] if places else f"row {index}"
        if text is None or (isinstance(text, float) and math.isnan(text)):
            raise InputError(f"{place} of {name} is missing. Remove the row, or give its text")
        if not isinstance(text, str):
            raise InputError(f"{place} of {name} is {type(text).__name__}, not a text: {text!r}. Give a string")
        if not text.strip():
            raise InputError(f"{place} of {name} is empty. Remove the row, or give its text")
    return rows


def check_labels(
    values: Any, rows: int, name: str = "y", places: Sequence[str] | None = None, least: int = 2
) -> Labels:
    """Decide what labels mean, and number them in sorted order.

    Args:
        least: how many different labels there must be, unless rows have several.

    Raises:
        InputError: as many labels as rows are not there, one is missing, there is only one, or they look like numbers.
    """
    given = as_list(values, name)
    if len(given) != rows:
        raise InputError(f"X has {rows} rows and {name} has {len(given)}. Give one label per row")
    if not given:
        raise InputError("there are no rows to train on. Give at least two labels with a text each")
    where = [places[i] if places else f"row {i}" for i in range(rows)]
    if any(isinstance(label, list | tuple | set | frozenset) for label in given):
        return _several(given, where, name)
    for place, label in zip(where, given, strict=True):
        if label is None or (isinstance(label, float) and math.isnan(label)) or label == "":
            raise InputError(f"{place} of {name} has no label. Remove the row, or give its label")
        if not isinstance(label, str | int | float | bool):
            raise InputError(f"{place} of {name} is {type(label).__name__}, expected a string or a whole number")
    fractions = [label for label in given if isinstance(label, float) and not label.is_integer()]
    if fractions:
        raise InputError(
            f"the labels are numbers with fractions ({fractions[0]!r}; {len(set(given))} different values). Use "
            "TextRegressor or --regression to predict numbers, or give labels as strings"
        )
    given = [int(label) if isinstance(label, float) else label for label in given]
    if len({type(label) for label in given}) > 1 and any(isinstance(label, str) for label in given):
        raise InputError(f"{name} mixes strings and numbers. Give labels of one type")
    classes = sorted(set(given))
    if len(classes) < least:
        raise InputError(f"there is only one label: {classes[0]!r}. Give rows of at least two labels")
    if len(classes) > MANY_VALUES and len(classes) == len(given) and not isinstance(classes[0], str):
        raise InputError(
            f"every row has another number as its label ({len(classes)} values). Use TextRegressor or --regression to "
            "predict numbers"
        )
    number = {label: index for index, label in enumerate(classes)}
    return Labels(SINGLE, classes, [number[label] for label in given])


def _several(given: list[Any], where: list[str], name: str) -> Labels:
    for place, labels in zip(where, given, strict=True):
        if not isinstance(labels, list | tuple | set | frozenset):
            raise InputError(f"{place} of {name} is {labels!r}, others are sets of labels. Give a list for each row")
        if not all(isinstance(label, str | int) for label in labels):
            raise InputError(f"{place} of {name} holds something other than strings and whole numbers: {labels!r}")
    classes = sorted({label for labels in given for label in labels}, key=lambda label: (str(type(label)), label))
    if not classes:
        raise InputError("no row has a label. Give rows with labels")
    targets = [[float(label in labels) for label in classes] for labels in map(set, given)]
    return Labels(MULTI, classes, targets)


def check_numbers(values: Any, rows: int, name: str = "y", places: Sequence[str] | None = None) -> Labels:
    """Return numbers to predict.

    Raises:
        InputError: as many as rows are not there, or one is missing or not finite.
    """
    given = as_list(values, name)
    if len(given) != rows:
        raise InputError(f"X has {rows} rows and {name} has {len(given)}. Give one number per row")
    if not given:
        raise InputError("there are no rows to train on. Give texts with a number each")
    numbers = []
    for index, value in enumerate(given):
        place = places[index] if places else f"row {index}"
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{place} of {name} is {value!r}, expected a number") from None
        if not math.isfinite(number):
            raise InputError(f"{place} of {name} is {value!r}. Remove the row, or give its number")
        numbers.append([number])
    return Labels(REGRESSION, [], numbers)


def class_weights(labels: Labels, option: Any) -> list[float]:
    """Return the weight of each row.

    Args:
        option: None for equal ones, "balanced" for N / (labels · rows of the label), or label -> weight.

    Raises:
        InputError: another word, an unknown label, or labels that have no weights.
    """
    count = len(labels.targets)
    if option is None:
        return [1.0] * count
    if labels.problem != SINGLE:
        raise InputError("class_weights needs one label per row. Leave it out")
    sizes = np.bincount(np.array(labels.targets), minlength=len(labels.classes))
    if option == "balanced":
        by_label = count / (len(sizes) * np.maximum(sizes, 1))
        return [float(by_label[target]) for target in labels.targets]
    if not isinstance(option, dict):
        raise InputError(f"class_weights is {option!r}, expected 'balanced' or a map of labels to weights")
    named = {str(label): index for index, label in enumerate(labels.classes)}
    weights = np.ones(len(sizes))
    for label, weight in option.items():
        if str(label) not in named:
            raise InputError(f"class_weights names {label!r}, which no row has. Its labels are {', '.join(named)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise InputError(f"class_weights gives {label!r} the weight {weight!r}, expected a number above 0")
        weights[named[str(label)]] = weight
    return [float(weights[target]) for target in labels.targets]


def imbalance(labels: Labels, weighted: bool) -> str:
    """Return a remark on labels with few rows or very different numbers of them; "" where there is none.

    Args:
        weighted: whether rows have weights by label already.
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

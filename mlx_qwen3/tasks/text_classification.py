"""Text classification: the labels of a text, or of a pair of texts, with their scores."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, overload

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.heads import SequenceClassification
from .batches import Piece
from .rows import check_choice, check_count, check_text, paired
from .task import Options, Task

FUNCTIONS = ("sigmoid", "softmax", "none")


class LabelScore(TypedDict):
    """A label and its score."""

    label: str
    score: float


@dataclass(frozen=True)
class TextClassificationOptions(Options):
    """Besides the options of every task:

    top_k: how many labels, best first; None for all. If not given, the best one, not wrapped in a list.
    function_to_apply: "sigmoid", "softmax" or "none"; None for the one that the problem type implies.
    """

    top_k: int | str | None = ""
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k not in ("", None):
            check_count("top_k", self.top_k)
        if self.function_to_apply is not None:
            check_choice("function_to_apply", self.function_to_apply, FUNCTIONS)


class TextClassification(Task[TextClassificationOptions, "LabelScore | list[LabelScore]"]):
    """Classify texts: `{"label", "score"}` for each.

    Results have the shape of those of transformers: a single text gives a list with one result; with `top_k` a result
    is itself a list, best label first. A pair is {"text": …, "text_pair": …}, a tuple, or given by `text_pair`.

    >>> classify = TextClassification("my-classifier")  # doctest: +SKIP
    >>> classify("I like you")  # doctest: +SKIP
    [{'label': 'POSITIVE', 'score': 0.99}]
    """

    options_class = TextClassificationOptions
    heads = (SequenceClassification,)
    needs = "sequence classification head"
    instead = "name labels of your own (--labels; the task zero-shot-classification)"
    bundled_head = "library-chapters"

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: str | dict[str, str], text_pair: str | None = None, **options: Any
    ) -> list[LabelScore]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: Collection[Any], text_pair: Any = None, *, top_k: int | None, **options: Any
    ) -> list[list[LabelScore]]: ...
    @overload
    def __call__(self, inputs: Collection[Any], text_pair: Any = None, **options: Any) -> list[LabelScore]: ...
    @overload
    def __call__(self, inputs: Iterable[Any], text_pair: None = None, **options: Any) -> Iterator[LabelScore]: ...
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Any, text_pair: Any = None, **options: Any
    ) -> Any:
        """Return the labels of a text or a pair, of a list of them, or of an iterator.

        Raises:
            InputError: something other than texts, lists of different lengths, an unknown option.
            RowError: rows that are empty or not texts; it names them and holds the results of the others.
        """
        if text_pair is not None:
            inputs = paired(inputs, text_pair, "text", "text_pair")
        results = super().__call__(inputs, **options)
        if isinstance(inputs, str) and "top_k" not in options:
            return [results]  # like transformers, which wraps the result of a single text in a list
        return results

    def _check_row(self, row: Any, options: TextClassificationOptions) -> Any:
        if isinstance(row, dict):
            unknown = set(row) - {"text", "text_pair"}
            if unknown or "text" not in row:
                raise InputError(f"a row has the keys {sorted(row)}, expected 'text' and perhaps 'text_pair'.")
            if row.get("text_pair") is None:
                return check_text(row["text"])
            return check_text(row["text"]), check_text(row["text_pair"], "text_pair")
        if isinstance(row, list | tuple):
            if len(row) != 2:
                raise InputError(f"a row has {len(row)} parts; a pair of texts has 2.")
            return check_text(row[0]), check_text(row[1], "text_pair")
        return check_text(row)

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self.model(**call, last_positions=last).logits.astype(mx.float32),)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: TextClassificationOptions,
    ) -> Any:
        scores = self._scores(outputs[0][0], options)
        if options.top_k == "":
            best = int(scores.argmax())
            return {"label": self._label(best), "score": float(scores[best])}
        ranked = np.argsort(-scores, kind="stable")[: options.top_k]  # pyright: ignore[reportArgumentType]
        return [{"label": self._label(int(index)), "score": float(scores[index])} for index in ranked]

    def _scores(self, logits: np.ndarray, options: TextClassificationOptions) -> np.ndarray:
        config = self.model.config
        function = options.function_to_apply
        if function is None and config.problem_type == "regression":
            function = "none"
        elif function is None:
            several = config.problem_type == "multi_label_classification" or config.num_labels == 1
            function = "sigmoid" if several else "softmax"
        if function == "sigmoid":
            return sigmoid(logits)
        return softmax(logits) if function == "softmax" else logits


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1/(1 + e⁻ˣ), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)

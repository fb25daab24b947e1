"""One vector a text, for search and clustering, as Qwen3-Embedding makes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .batches import Piece
from .rows import check_count, check_text, is_batch
from .task import Options, Task


@dataclass(frozen=True)
class EmbeddingOptions(Options):
    """Besides the options of every task:

    instruction: what a query is for; it goes before queries, and never before the documents that they look for.
    dimensions: how many of the vector's numbers are kept; None for all.
    normalize: whether vectors have length 1, so that a dot product is the cosine.
    pooling: "last" token, or "mean" of all tokens for encoders that were trained so.
    """

    instruction: str | None = None
    dimensions: int | None = None
    normalize: bool = True
    pooling: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("last", "mean"):
            raise InputError(f"pooling is {self.pooling!r}, expected 'last' or 'mean'")
        if self.instruction is not None:
            check_text(self.instruction, "instruction")
        if self.dimensions is not None:
            check_count("dimensions", self.dimensions)


class Embedding(Task[EmbeddingOptions]):
    """A vector (M,) for a text, a matrix (N, M) for a list, an iterator of vectors for a stream; float32.

    The state of the last token, normed to length 1. A query with an instruction reads
    `Instruct: {instruction}\\nQuery:{query}`. Source: the model card of Qwen/Qwen3-Embedding-0.6B.

    >>> embed = Embedding("Qwen/Qwen3-Embedding-0.6B")  # doctest: +SKIP
    >>> queries = embed(["capital of China"], instruction="Given a question, find its answer")  # doctest: +SKIP
    >>> queries @ embed(["Beijing is the capital of China."]).T  # doctest: +SKIP
    """

    options_class = EmbeddingOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The vectors of a text, of a list of texts, or of a stream.

        Raises:
            InputError: an unknown option, more dimensions than the model has. RowError: rows that are no text.
        """
        results = super().__call__(inputs, **options)
        if is_batch(inputs) and results and all(isinstance(row, np.ndarray) for row in results):
            return np.stack(results)
        return results

    def _checked(self, row: Any, options: EmbeddingOptions) -> str:
        width = self.model.config.hidden_size
        if options.dimensions is not None and options.dimensions > width:
            raise InputError(f"dimensions is {options.dimensions}, the model has {width}")
        text = check_text(row)
        return text if options.instruction is None else f"Instruct: {options.instruction}\nQuery:{text}"

    def _run(self, pieces: list[Piece], options: EmbeddingOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        mean = options.pooling == "mean"
        return self._runner.run(
            pieces,
            self._compute_all if mean else self._compute,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            per_token=mean,
            padding_side=options.padding_side,
            finished=finished,
        )

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        states = self._runner.base_model(**call).last_hidden_state
        return (states[mx.arange(states.shape[0]), last].astype(mx.float32),)

    def _compute_all(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self._runner.base_model(**call).last_hidden_state.astype(mx.float32),)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: EmbeddingOptions,
    ) -> np.ndarray:
        vector = outputs[0][0]
        if options.pooling == "mean":
            vector = vector.mean(axis=0)
        vector = vector[: options.dimensions]
        if not options.normalize:
            return vector
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

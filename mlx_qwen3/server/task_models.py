"""Embedding, reranking and classification tasks, split into the parts that the server runs separately.

`pieces` encodes rows to ids; it runs no model and may be called from any thread. `compute` runs the model in the
engine's thread and converts its outputs to results.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..tasks import Embedding, Reranker, TextClassification, ZeroShotClassification
from ..tasks.batches import Piece


class ServedTask:
    """Base of the tasks that the engine runs.

    Args:
        task: a task of `mlx_qwen3.tasks`.
    """

    def __init__(self, task: Any):
        self.task = task

    def options(self, **options: Any) -> Any:
        """Return the options of the task with the given ones replaced."""
        return self.task.options.replaced(options)

    def pieces(self, rows: Sequence[Any], options: Any) -> list[list[Piece]]:
        """Return the encoded pieces of each row.

        Raises:
            InputError: an invalid row; the message starts with its index.
        """
        checked = []
        for index, row in enumerate(rows):
            try:
                checked.append(self.task._check_row(row, options))
            except InputError as error:
                raise InputError(f"row {index}: {error}") from error
        found = list(self._make_pieces(checked, options)) if checked else []
        for index, pieces in enumerate(found):
            if isinstance(pieces, InputError):
                raise InputError(f"row {index}: {pieces}")
        return found

    def _make_pieces(self, rows: list[Any], options: Any) -> Sequence[Any]:
        return self.task._pieces(rows, options)

    def compute(self, rows: Sequence[tuple[Any, list[Piece]]], options: Any) -> list[Any]:
        """Return the result of each (row, pieces)."""
        outputs = self.task._run([piece for _, pieces in rows for piece in pieces], options, lambda indices: None)
        results, start = [], 0
        for row, pieces in rows:
            results.append(self.task._result(row, pieces, outputs[start : start + len(pieces)], options))
            start += len(pieces)
        return results


class ServedEmbedding(ServedTask):
    """An embedding model. A row is a text, or a list of token ids, to which no special tokens are added."""

    task: Embedding

    def pieces(self, rows: Sequence[Any], options: Any) -> list[list[Piece]]:
        """Return one piece per row; rows longer than the limit of the model are refused.

        Raises:
            InputError: a row that is empty, too long, or has an id outside the vocabulary.
        """
        task = self.task
        self.check_dimensions(options)
        texts = [index for index, row in enumerate(rows) if isinstance(row, str)]
        found: list[list[Piece]] = [[] for _ in rows]
        checked = []
        for index in texts:
            try:
                checked.append(task._check_row(rows[index], options))
            except InputError as error:
                raise InputError(f"row {index}: {error}") from error
        if checked:
            encoded = task.tokenizer(checked, return_attention_mask=False)["input_ids"]
            for index, ids in zip(texts, encoded, strict=True):
                found[index] = [Piece(ids)]
        prompt = task._prompt(options)
        before = task.tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
        size, limit = task.model.config.vocab_size, task.limit(options)
        for index, row in enumerate(rows):
            if not isinstance(row, str):
                wrong = [token for token in row if not 0 <= token < size]
                if wrong or not row:
                    what = f"token id {wrong[0]} is outside the vocabulary of {size}" if wrong else "it has no tokens"
                    raise InputError(f"row {index}: {what}. Use this model's tokenizer.")
                found[index] = [Piece([*before, *row])]
            count = len(found[index][0].ids)
            if count > limit:
                raise InputError(f"row {index}: it has {count} tokens, more than the limit of {limit}. Split the text.")
        return found

    def check_dimensions(self, options: Any) -> int:
        """Return the number of dimensions; raise `InputError` if the options request more than the model has."""
        return self.task._width(options) or self.task.model.config.hidden_size


class ServedReranker(ServedTask):
    """A reranking model. A row is a (query, document) pair, its result a score."""

    task: Reranker


class ServedClassifier(ServedTask):
    """A model with a classification head. A row is a text, its result a list of labels with scores, best first."""

    task: TextClassification


class ServedZeroShot(ServedTask):
    """A causal model that scores the labels of the request. A row is a text."""

    task: ZeroShotClassification

    def _make_pieces(self, rows: list[Any], options: Any) -> Sequence[Any]:
        return self.task._contexts(rows, options)  # the scores of the labels alone are computed with the first batch

"""Fill-mask: the most likely tokens at a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..qdq.heads import QDQBertForMaskedLM
from .batches import Piece
from .rows import check_count, check_text, is_batch
from .task import Options, Task
from .text_classification import softmax


class Filling(TypedDict):
    """A token for the mask, its probability, and the whole text with the mask filled."""

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True)
class FillMaskOptions(Options):
    """Besides the options of every task:

    top_k: how many words, best first.
    targets: a word or words to choose from; None for the whole vocabulary.
    """

    top_k: int = 5
    targets: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("top_k", self.top_k)


class FillMask(Task[FillMaskOptions, "list[Filling] | list[list[Filling]]"]):
    """Fill masks: `[{"score", "token", "token_str", "sequence"}]`, best first; one such list per mask if several."""

    options_class = FillMaskOptions
    heads = (QDQBertForMaskedLM,)
    needs = "masked language model head"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Return the fillings of a text, or of each text of a container or an iterator.

        A list of one text gives the result of that text alone, as transformers does.

        Raises:
            InputError: an unknown option, a target that is not a word. RowError: rows without a mask.
        """
        results = super().__call__(inputs, **options)
        return results[0] if isinstance(results, list) and is_batch(inputs) and len(results) == 1 else results

    def _check_model(self, source: Any) -> None:
        super()._check_model(source)
        if self.tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token. Pass the tokenizer of a masked language model.")

    def _check_row(self, row: Any, options: FillMaskOptions) -> str:
        text = check_text(row)
        if str(self.tokenizer.mask_token) not in text:
            raise InputError(f"text has no mask. Write {self.tokenizer.mask_token} where a word is missing.")
        return text

    def _pieces(self, rows: list[Any], options: FillMaskOptions) -> list[list[Piece] | InputError]:
        pieces: list[list[Piece] | InputError] = []
        for ids, types in self._encode_rows(rows, options):
            places = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
            beyond = InputError(f"the mask lies beyond the {self.limit(options)} tokens that the model reads.")
            pieces.append([Piece(ids, types, places)] if places else beyond)
        return pieces

    def _run(self, pieces: list[Piece], options: FillMaskOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        # compute logits over the vocabulary at the masks only
        results: list[Any] = self._runner.run(
            pieces,
            self._compute,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            per_token=True,
            padding_side=options.padding_side,
            finished=finished,
        )
        for index, piece in enumerate(pieces):
            states = mx.array(results[index][0][piece.memo]).astype(self.model.dtype)
            results[index] = (np.array(self.model.logits(states).astype(mx.float32)),)
        return results

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self._runner.base_model(**call).last_hidden_state.astype(mx.float32),)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: FillMaskOptions,
    ) -> Any:
        piece, scores = pieces[0], softmax(outputs[0][0])
        targets = self._target_ids(options.targets)
        alone = len(piece.memo) == 1
        results = []
        for place, chances in zip(piece.memo, scores, strict=True):
            ranked = np.argsort(-chances[targets], kind="stable")[: options.top_k]
            found = []
            for index in ranked:
                token = int(np.arange(len(chances))[targets][index])
                ids = [*piece.ids[:place], token, *piece.ids[place + 1 :]]
                found.append(
                    {
                        "score": float(chances[token]),
                        "token": token,
                        "token_str": self.tokenizer.decode([token]),
                        "sequence": self.tokenizer.decode(ids, skip_special_tokens=alone),
                    }
                )
            results.append(found)
        return results[0] if alone else results

    def _target_ids(self, targets: str | Sequence[str] | None) -> Any:
        """Return the sorted candidate ids, or a slice that selects the whole vocabulary."""
        if targets is None:
            return slice(None)
        vocabulary, ids = self.tokenizer.get_vocab(), []
        for target in [targets] if isinstance(targets, str) else targets:
            if target in vocabulary:
                ids.append(vocabulary[target])
                continue
            pieces = self.tokenizer.encode(check_text(target, "targets"), add_special_tokens=False)
            if not pieces:
                raise InputError(f"target {target!r} is not in the vocabulary. Omit it.")
            self._warn_once(f"target {target}", "target %r is not a single token; its first token is used", target)
            ids.append(pieces[0])
        if not ids:
            raise InputError("targets is empty. Pass at least one word, or None.")
        return sorted(set(ids))

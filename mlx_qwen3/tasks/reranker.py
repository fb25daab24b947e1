"""Reranking: score how well documents answer a query by the probability of "yes" against "no" (Qwen3-Reranker)."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, overload

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.heads import CausalLM, SequenceClassification
from .batches import Piece
from .rows import as_rows, check_choice, check_count, check_text, is_batch
from .task import Options, Task
from .text_classification import sigmoid

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
OPENING = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
CLOSING = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class Ranked(TypedDict):
    """A document's index in the given list, its score, and, if requested, the document."""

    index: int
    score: float
    document: NotRequired[str]


@dataclass(frozen=True)
class RerankerOptions(Options):
    """Besides the options of every task:

    instruction: the retrieval task that documents are judged by.
    top_k: how many documents are returned; None for all.
    return_documents: whether each result includes the document.
    activation: "sigmoid" for scores from 0 to 1, or "none" for the raw logit.
    """

    instruction: str = INSTRUCTION
    top_k: int | None = None
    return_documents: bool = False
    activation: str = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self.instruction, "instruction")
        check_choice("activation", self.activation, ("sigmoid", "none"))
        if self.top_k is not None:
            check_count("top_k", self.top_k)


class Reranker(Task[RerankerOptions, float]):
    """Score documents for a query, 0 to 1.

    `rerank(query, documents)` returns `[{"index", "score"}]`, best first; `index` refers to the given list.
    `rerank(pairs)`, with (query, document) tuples, returns one score per pair, in their order. The checkpoint is a
    causal one with the tokens "yes" and "no", or one with a sequence classification head of a single label.
    Source: the model card of Qwen/Qwen3-Reranker-0.6B.
    """

    options_class = RerankerOptions
    heads = (CausalLM, SequenceClassification)
    needs = "language model head, nor a sequence classification head"

    def _load_model(self, model: Any, tokenizer: Any, model_options: dict[str, Any]) -> Any:
        if model is None:
            raise InputError('no reranker comes with this package. Name one: model="Qwen/Qwen3-Reranker-0.6B".')
        return super()._load_model(model, tokenizer, model_options)

    def _check_model(self, source: Any) -> None:
        super()._check_model(source)
        self._has_label = isinstance(self.model, SequenceClassification)
        if self._has_label:
            if self.model.config.num_labels != 1:
                raise InputError(f"a reranker has 1 label, this checkpoint has {self.model.config.num_labels}.")
            return
        self._answers = [self._token(word) for word in ("no", "yes")]

    def _token(self, word: str) -> int:
        ids = self.tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(f"the tokenizer has no token for {word!r}; a reranker needs one for 'yes' and for 'no'.")
        return ids[0]

    @overload
    def __call__(self, inputs: str, documents: Collection[str], **options: Any) -> list[Ranked]: ...
    @overload
    def __call__(self, inputs: dict[str, str], documents: None = None, **options: Any) -> float: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, inputs: Collection[Any], documents: None = None, **options: Any) -> list[float]: ...
    @overload
    def __call__(self, inputs: Iterable[Any], documents: None = None, **options: Any) -> Iterator[float]: ...
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Any, documents: Any = None, **options: Any
    ) -> Any:
        """Return the ranking of `documents` for the query `inputs`, or the scores of pairs.

        Raises:
            InputError: an unknown option, documents that are not a list. RowError: rows that cannot be used.
        """
        if documents is None:
            return super().__call__(inputs, **options)
        chosen: RerankerOptions = self.options.replaced(options)
        query = check_text(inputs, "query")
        if not is_batch(documents):
            raise InputError(f"documents must be a list of texts, not {type(documents).__name__}.")
        documents = as_rows(documents)
        scores = self._list_results([(query, document) for document in documents], chosen)
        if not all(isinstance(score, float) for score in scores):
            bad = [score for score in scores if not isinstance(score, float)]
            ranked = [index for index, score in enumerate(scores) if isinstance(score, float)]
        else:
            bad, ranked = [], list(range(len(scores)))
        ranked = sorted(ranked, key=lambda index: -scores[index])[: chosen.top_k]
        results: list[Any] = [{"index": index, "score": scores[index]} for index in ranked]
        if chosen.return_documents:
            for result in results:
                result["document"] = documents[result["index"]]
        return results + bad

    def rank(self, query: str, documents: Any, **options: Any) -> list[Ranked]:
        """Return the ranking of `documents` for `query`, like a call; the method of sentence-transformers."""
        return self(query, documents, **options)

    def _check_row(self, row: Any, options: RerankerOptions) -> tuple[str, str]:
        if isinstance(row, dict) and set(row) == {"query", "document"}:
            row = row["query"], row["document"]
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise InputError("a row must be a pair of query and document.")
        return check_text(row[0], "query"), check_text(row[1], "document")

    def _pieces(self, rows: list[Any], options: RerankerOptions) -> list[list[Piece]]:
        opening = self.tokenizer.encode(OPENING, add_special_tokens=False)
        closing = self.tokenizer.encode(CLOSING, add_special_tokens=False)
        room = self.limit(options) - len(opening) - len(closing)
        if room < 1:
            raise InputError(f"max_length={self.limit(options)} leaves no room beside the prompt. Raise it.")
        texts = [f"<Instruct>: {options.instruction}\n<Query>: {query}\n<Document>: {doc}" for query, doc in rows]
        pieces = []
        for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]:
            if len(ids) > room:
                self._warn_once("truncation", "pairs of more than %d tokens are cut", room)
            pieces.append([Piece([*opening, *ids[:room], *closing])])
        return pieces

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        if self._has_label:
            return (self.model(**call, last_positions=last).logits[:, 0].astype(mx.float32),)
        states = self._runner.base_model(**call).last_hidden_state
        self.model.require_head()
        logits = self.model.logits(states[mx.arange(states.shape[0]), last])
        no, yes = (logits[:, token].astype(mx.float32) for token in self._answers)
        return (yes - no,)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: RerankerOptions,
    ) -> float:
        logit = outputs[0][0]
        return float(sigmoid(logit) if options.activation == "sigmoid" else logit)

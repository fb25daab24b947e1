"""Extractive question answering: find the span of a text that answers a question.

Results have the shape of those of the pipeline that transformers had until 5.3. Source of the rules: transformers 4.57
`pipelines/question_answering.py`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, overload

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.heads import QuestionAnswering as QuestionAnsweringHead
from .batches import Piece
from .rows import check_count, check_text, is_batch, paired
from .task import Options, Task
from .text_classification import softmax


class Answer(TypedDict):
    """An answer, its score (0 to 1), and its start and end in the context (characters, end excluded)."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class QuestionAnsweringOptions(Options):
    """Besides the options of every task:

    top_k: how many answers; more than one are returned as a list.
    max_answer_len: maximum tokens of an answer.
    max_seq_len: tokens of question and context that the model sees at once; a longer context is split into windows.
    doc_stride: tokens by which two windows overlap.
    max_question_len: maximum tokens of a question; the rest is cut off.
    handle_impossible_answer: whether "" (no answer) is a possible answer.
    align_to_words: whether an answer is extended to whole words.
    """

    top_k: int = 1
    max_answer_len: int = 15
    max_seq_len: int = 384
    doc_stride: int = 128
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            check_count(name, getattr(self, name))
        check_count("doc_stride", self.doc_stride, 0)


@dataclass
class Window:
    """A part of the context as the model sees it: its encoding, which tokens may be in an answer, the null token."""

    encoding: Any
    allowed: np.ndarray
    null: int


class QuestionAnswering(Task[QuestionAnsweringOptions, "Answer | list[Answer]"]):
    """Answer questions: `{"score", "start", "end", "answer"}`.

    `context[start:end]` is the answer, without surrounding white space. Call it as `answer(question=…, context=…)`,
    each a text or a list, or with rows {"question": …, "context": …}.
    """

    options_class = QuestionAnsweringOptions
    heads = (QuestionAnsweringHead,)
    needs = "question answering head"
    bundled_head = "docstring-answers"
    per_token = True

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, question: str, context: str, *, top_k: int, **options: Any
    ) -> list[Answer]: ...
    @overload
    def __call__(self, question: str, context: str, **options: Any) -> Answer: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, question: Collection[str], context: str | Collection[str], **options: Any) -> list[Answer]: ...
    @overload
    def __call__(self, question: dict[str, str], **options: Any) -> Answer: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, question: Collection[dict[str, str]], **options: Any
    ) -> list[Answer]: ...
    @overload
    def __call__(self, question: Iterable[dict[str, str]], **options: Any) -> Iterator[Answer]: ...
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *arguments: Any, question: Any = None, context: Any = None, inputs: Any = None, **options: Any
    ) -> Any:
        """Return the answer to a question, or the answers to a list or an iterator of them.

        Args:
            question: a question or several, with `context`; or rows {"question": …, "context": …}.
            context: the text to read, one for all questions or one for each.
            inputs: rows; the argument's name in transformers.
            **options: see the class; with `top_k` above 1 each answer is a list, best first.

        Raises:
            InputError: a missing question or context, lists of different lengths, an unknown option.
            RowError: rows that cannot be used; it names them and holds the results of the others.
        """
        if len(arguments) > 2:
            raise InputError(f"{len(arguments)} arguments are given; expected a question and a context, or rows.")
        if len(arguments) == 2:
            if question is not None or context is not None:
                raise InputError("question and context are given twice. Give each once.")
            question, context = arguments
        elif arguments and (isinstance(arguments[0], str) or context is not None) and question is None:
            question = arguments[0]
        elif arguments:
            inputs = arguments[0]
        if inputs is None:
            if question is None or context is None:
                raise InputError("question or context is missing. Give both, or rows with 'question' and 'context'.")
            if is_batch(question) and isinstance(context, str):
                context = [context] * len(question)
            inputs = paired(question, context, "question", "context")
        elif question is not None or context is not None:
            raise InputError("rows are given and question= or context= as well. Give only one of the two.")
        return super().__call__(inputs, **options)

    def _check_row(self, row: Any, options: QuestionAnsweringOptions) -> Any:
        if not isinstance(row, dict) or set(row) != {"question", "context"}:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(f"a row must have the keys 'question' and 'context', not {found}.")
        return check_text(row["question"], "question"), check_text(row["context"], "context")

    def _pieces(self, rows: list[Any], options: QuestionAnsweringOptions) -> list[list[Piece]]:
        length = min(options.max_seq_len, self.limit(options))
        question_length = min(options.max_question_len, max(1, length // 2))
        encoded = self.tokenizer([question for question, _ in rows], add_special_tokens=False)
        questions = []
        for (question, _), encoding in zip(rows, encoded.encodings or [], strict=True):
            if len(encoding.ids) > question_length:
                self._warn_once("question", "questions of more than %d tokens are cut", question_length)
                question = question[: encoding.offsets[question_length - 1][1]]
            questions.append(question)
        special = self.tokenizer.num_special_tokens_to_add(True)
        room = length - special - min(max(len(e.ids) for e in encoded.encodings or []), question_length)
        if room < 1:
            raise InputError(f"max_seq_len={length} leaves no room for a context beside the question. Raise it.")
        inputs = self.tokenizer(
            questions,
            [context for _, context in rows],
            truncation="only_second",
            max_length=length,
            stride=min(options.doc_stride, max(0, room // 2)),
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        types = inputs.get("token_type_ids") or [None] * len(inputs["input_ids"])
        pieces: list[list[Piece]] = [[] for _ in rows]
        for position, owner in enumerate(inputs["overflow_to_sample_mapping"]):
            ids, encoding = inputs["input_ids"][position], inputs[position]
            # a byte-level tokenizer marks the context as sequence 1 in the first window only
            tokens = zip(encoding.sequence_ids, encoding.special_tokens_mask, strict=True)
            allowed = np.array([sequence != 0 and not special for sequence, special in tokens])
            cls = self.tokenizer.cls_token_id
            null = ids.index(cls) if cls in ids else 0
            pieces[owner].append(Piece(ids, types[position], Window(encoding, allowed, null)))
        return pieces

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        output = self.model(**call)
        return output.start_logits.astype(mx.float32), output.end_logits.astype(mx.float32)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: QuestionAnsweringOptions,
    ) -> Any:
        context = row[1]
        answers: dict[str, dict[str, Any]] = {}
        null_score = 1.0
        wanted = options.top_k * 2 + 10 if options.align_to_words else options.top_k
        for piece, (start, end) in zip(pieces, outputs, strict=True):
            window: Window = piece.memo
            null, starts, ends = probabilities(start, end, window, options.handle_impossible_answer)
            null_score = min(null_score, null)
            for first, last, score in best_spans(starts, ends, wanted, options.max_answer_len):
                if not (window.allowed[first] and window.allowed[last]):
                    continue
                a, b = _characters(window, first, last, options.align_to_words)
                text = context[a:b]
                a, b = a + len(text) - len(text.lstrip()), b - len(text) + len(text.rstrip())
                if a >= b:
                    continue
                if context[a:b] in answers:  # another window or span gave the same text
                    answers[context[a:b]]["score"] += score
                else:
                    answers[context[a:b]] = {"score": score, "start": a, "end": b, "answer": context[a:b]}
        found = list(answers.values())
        if options.handle_impossible_answer:
            found.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        ranked = sorted(found, key=lambda answer: answer["score"], reverse=True)[: options.top_k]
        if options.top_k > 1:
            return ranked
        return ranked[0] if ranked else {"score": 0.0, "start": 0, "end": 0, "answer": ""}


def probabilities(
    start: np.ndarray, end: np.ndarray, window: Window, impossible: bool
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the score of "no answer", and start and end probabilities (L,), 0 for tokens outside the context.

    "No answer" is the span of the class token, or of the first token if there is no class token.
    """
    allowed = window.allowed.copy()
    if impossible or window.encoding.special_tokens_mask[window.null]:
        allowed[window.null] = True
    start, end = softmax(np.where(allowed, start, -10000.0)), softmax(np.where(allowed, end, -10000.0))
    null = float(start[window.null] * end[window.null])
    start[window.null] = end[window.null] = 0.0
    return null, start, end


def best_spans(start: np.ndarray, end: np.ndarray, count: int, longest: int) -> list[tuple[int, int, float]]:
    """Return the `count` most likely spans of at most `longest` tokens, as (first token, last token, score)."""
    scores = np.tril(np.triu(np.outer(start, end)), longest - 1).ravel()
    if count < len(scores):
        top = np.argpartition(-scores, count)[:count]
        top = top[np.argsort(-scores[top], kind="stable")]
    else:
        top = np.argsort(-scores, kind="stable")
    return [(int(index) // len(end), int(index) % len(end), float(scores[index])) for index in top]


def _characters(window: Window, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Return the characters (start, end) of tokens first … last in the context, extended to whole words if wanted."""
    words, allowed = window.encoding.word_ids, window.allowed
    if align_to_words:
        while first > 0 and allowed[first - 1] and words[first] is not None and words[first - 1] == words[first]:
            first -= 1
        while (
            last + 1 < len(words) and allowed[last + 1] and words[last] is not None and words[last + 1] == words[last]
        ):
            last += 1
    return window.encoding.offsets[first][0], window.encoding.offsets[last][1]

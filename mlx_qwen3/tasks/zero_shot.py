"""Zero-shot classification: score labels that the model was not trained on by their likelihood after the text.

A label's likelihood after the text is divided by its likelihood after a text without content, so that frequent words
are not favoured. Sources: Zhao et al. 2021, "Calibrate Before Use" (arXiv 2102.09690); Holtzman et al. 2021, "Surface
Form Competition" (arXiv 2104.08315).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, cast, overload

import numpy as np

from ..errors import InputError
from ..generation.prompts import prompt_ids
from ..models.heads import CausalLM
from .batches import Piece
from .label_scores import LabelScorer, LabelTree, RowScorer
from .reasoned_labels import check_reasons, choose_labels, label_room, question
from .rows import as_rows, check_count, check_text, is_batch
from .task import Options, Task
from .text_classification import sigmoid, softmax

TEMPLATE = "This text is about {}"
CONTENT_FREE = ("N/A", "[MASK]", "Text")


class ZeroShotResult(TypedDict):
    """A text, its labels, best first, and their scores in the same order; with `think`, the reasoning."""

    sequence: str
    labels: list[str]
    scores: list[float]
    reasoning: NotRequired[str]


@dataclass(frozen=True)
class ZeroShotOptions(Options):
    """Besides the options of every task:

    candidate_labels: the labels, as a list or as text with commas between them.
    hypothesis_template: the sentence with {} in place of the label; text after {} is scored as well.
    multi_label: whether labels are independent (each has its own score) or exclusive (the scores add up to 1).
    calibrate: whether scores are divided by the labels' likelihood after the `content_free` texts.
    content_free: texts without content, such as "N/A", used to calibrate.
    think: let the model reason about each text and then choose one label, which is the only one in the result; slower.
    thinking_budget: maximum tokens of reasoning.
    """

    candidate_labels: str | Sequence[str] | None = None
    hypothesis_template: str = TEMPLATE
    multi_label: bool = False
    calibrate: bool = True
    content_free: Sequence[str] = CONTENT_FREE
    think: bool = False
    thinking_budget: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.hypothesis_template, str):
            kind = type(self.hypothesis_template).__name__
            raise InputError(f"hypothesis_template must be a text with one {{}}, not {kind}. Omit it.")
        if self.hypothesis_template.count("{}") != 1:
            raise InputError(f"hypothesis_template is {self.hypothesis_template!r}, expected a text with one {{}}.")
        if self.candidate_labels is not None:
            object.__setattr__(self, "candidate_labels", check_labels(self.candidate_labels))
        if self.calibrate and not self.content_free:
            raise InputError("content_free is empty. Pass at least one text, or calibrate=False.")
        check_count("thinking_budget", self.thinking_budget)
        if self.think and self.multi_label:
            raise InputError("think chooses one label and multi_label several. Leave one of them out.")


@dataclass
class Labels:
    """The labels of a call: their ids, their scorer, and their log-likelihood after texts without content."""

    ids: list[list[int]]
    scorer: LabelScorer
    prior: np.ndarray | float = field(default=0.0)


class ZeroShotClassification(Task[ZeroShotOptions, "ZeroShotResult"]):
    """Classify by any labels with a causal checkpoint: `{"sequence", "labels", "scores"}`, the best label first.

    >>> classify = ZeroShotClassification("Qwen/Qwen3-0.6B")  # doctest: +SKIP
    >>> classify("The match ended 2:1.", candidate_labels=["sport", "politics"])  # doctest: +SKIP
    """

    options_class = ZeroShotOptions
    heads = (CausalLM,)
    needs = "language model head"

    def _check_model(self, source: Any) -> None:
        super()._check_model(source)
        self._labels: dict[Any, Labels] = {}
        if not self.model.base_model.causal:
            raise InputError("zero-shot classification needs a decoder; this model is a bidirectional encoder.")

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: str, candidate_labels: str | Collection[str] | None = None, **options: Any
    ) -> ZeroShotResult: ...
    @overload
    def __call__(
        self, inputs: Collection[Any], candidate_labels: str | Collection[str] | None = None, **options: Any
    ) -> list[ZeroShotResult]: ...
    @overload
    def __call__(
        self, inputs: Iterable[Any], candidate_labels: str | Collection[str] | None = None, **options: Any
    ) -> Iterator[ZeroShotResult]: ...
    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Return the labels of a text, of a list of texts, or of an iterator, with their scores.

        Raises:
            InputError: no labels, the same one twice, a template without {}, an unknown option.
            RowError: rows that are not texts; it names them and holds the results of the others.
        """
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        if self.options.replaced(options).candidate_labels is None:
            raise InputError("candidate_labels is missing. Pass a list of labels.")
        return super().__call__(inputs, **options)

    def _pieces(self, rows: list[Any], options: ZeroShotOptions) -> Sequence[list[Piece] | InputError]:
        if options.think:
            return self._questions(rows, options)
        return self._contexts(rows, options)

    def _contexts(self, rows: list[Any], options: ZeroShotOptions) -> list[list[Piece]]:
        """Return the ids of each text with the template, short enough for the labels; it runs no model."""
        longest = max(map(len, self._label_ids(options)))
        return [[Piece(ids)] for ids in self._prompts(rows, options, self.limit(options) - longest)]

    def _label_ids(self, options: ZeroShotOptions) -> list[list[int]]:
        before, _, after = options.hypothesis_template.partition("{}")
        space = " " if before.endswith(" ") else ""
        texts = [f"{space}{label}{after}" for label in options.candidate_labels or ()]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _questions(self, rows: list[Any], options: ZeroShotOptions) -> list[list[Piece] | InputError]:
        check_reasons(self.tokenizer)
        limit = self.limit(options) - options.thinking_budget - label_room(options.candidate_labels or ())
        found: list[list[Piece] | InputError] = []
        for row in rows:
            messages = question(row, options.candidate_labels or ())
            ids = list(prompt_ids(cast(Any, self.tokenizer), messages, enable_thinking=True))
            long = InputError(f"the text with its labels has {len(ids)} tokens, at most {limit} leave room to reason.")
            found.append([Piece(ids, memo=messages)] if len(ids) <= limit else long)
        return found

    def _prompts(self, texts: Sequence[str], options: ZeroShotOptions, room: int) -> list[list[int]]:
        """Return the ids of each text followed by the template; only the text is truncated, never the template."""
        ending = "\n" + options.hypothesis_template.partition("{}")[0].rstrip()
        encoded = self.tokenizer([text.rstrip() + ending for text in texts], add_special_tokens=False)
        prompts = encoded["input_ids"]
        for index, ids in enumerate(prompts):
            if len(ids) <= room:
                continue
            self._warn_once("truncation", "texts are cut so that they and their labels have %d tokens", room)
            kept = room - len(self.tokenizer.encode(ending, add_special_tokens=False)) - 1
            if kept < 1:
                raise InputError(f"{room} tokens leave no room for a text beside the template. Raise max_length.")
            cut = texts[index][: encoded[index].offsets[kept - 1][1]]
            prompts[index] = self.tokenizer.encode(cut.rstrip() + ending, add_special_tokens=False)[-room:]
        return prompts

    def _run(self, pieces: list[Piece], options: ZeroShotOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        if options.think:
            prompts, labels = [piece.memo for piece in pieces], options.candidate_labels or ()
            chosen = choose_labels(
                self.model,
                self.tokenizer,
                prompts,
                labels,
                options.thinking_budget,
                options.batch_size,
                finished,
            )
            return [(np.array(one.label), np.array(one.probability), np.array(one.reasoning)) for one in chosen]
        return [(scores,) for scores in self._scores(pieces, self._label_set(options), options, finished)]

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: ZeroShotOptions,
    ) -> dict[str, Any]:
        if options.think:
            label, probability, reasoning = outputs[0]
            scores = [float(probability)]
            return {"sequence": row, "labels": [str(label)], "scores": scores, "reasoning": str(reasoning)}
        scores = outputs[0][0] - self._label_set(options).prior
        names = list(options.candidate_labels or ())
        if options.multi_label or len(names) == 1:
            # how far the text raises the label's odds; without a prior, the plain likelihood
            scores = sigmoid(scores) if options.calibrate else np.exp(scores)
        else:
            scores = softmax(scores)
        order = np.argsort(-scores, kind="stable")
        return {
            "sequence": row,
            "labels": [names[index] for index in order],
            "scores": [float(scores[index]) for index in order],
        }

    def _label_set(self, options: ZeroShotOptions) -> Labels:
        """Return the tokenized labels of a call, their scorer and prior, computed once per labels and template."""
        key = (
            tuple(options.candidate_labels or ()),
            options.hypothesis_template,
            options.calibrate,
            tuple(options.content_free),
        )
        if key not in self._labels:
            ids = self._label_ids(options)
            labels = Labels(ids, LabelScorer(self.model, LabelTree(ids)))
            if options.calibrate:
                room = self.limit(options) - max(map(len, ids))
                empty = [Piece(prompt) for prompt in self._prompts(list(options.content_free), options, room)]
                chances = np.stack(self._scores(empty, labels, options, lambda indices: None))
                labels.prior = np.logaddexp.reduce(chances, axis=0) - np.log(len(chances))
            self._labels = {key: labels}
        return self._labels[key]

    def _scores(self, pieces: list[Piece], labels: Labels, options: ZeroShotOptions, finished: Any) -> list[np.ndarray]:
        """Return log P of every label after each piece, shape (labels,) per piece."""
        window = self._window_size()
        longest = max(len(piece.ids) for piece in pieces) + len(labels.scorer.tree)
        if window is not None and longest > window:
            return self._scores_by_row(pieces, labels, options, finished)
        outputs = self._runner.run(
            pieces,
            labels.scorer,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            finished=finished,
        )
        return [scores for (scores,) in outputs]

    def _window_size(self) -> int | None:
        """Return the window of the sliding-window layers; None if there are none."""
        config = self.model.config
        return config.sliding_window if "sliding_attention" in config.layer_types else None

    def _scores_by_row(
        self, pieces: list[Piece], labels: Labels, options: ZeroShotOptions, finished: Any
    ) -> list[np.ndarray]:
        scorer = RowScorer(self.model)
        results = []
        for index, piece in enumerate(pieces):
            rows = [Piece([*piece.ids, *ids]) for ids in labels.ids]
            outputs = self._runner.run(
                rows, scorer, batch_size=options.batch_size, batch_tokens=options.batch_tokens, per_token=True
            )
            scores = [
                scorer.score(states, row.ids, len(ids))
                for (states,), row, ids in zip(outputs, rows, labels.ids, strict=True)
            ]
            results.append(np.array(scores, dtype=np.float32))
            finished([index])
        return results


def check_labels(labels: Any) -> tuple[str, ...]:
    """Return the labels as a tuple; raise `InputError` if there are none, one is empty, or one is given twice."""
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    labels = as_rows(labels) if is_batch(labels) else labels
    if not isinstance(labels, list | tuple) or not labels:
        raise InputError(f"candidate_labels is {labels!r}, expected a list of at least one label.")
    checked = tuple(check_text(label, f"candidate label {index}") for index, label in enumerate(labels))
    for index, label in enumerate(checked):
        if label in checked[:index]:
            raise InputError(f"candidate label {label!r} is given twice. Give it once.")
    return checked

"""Token classification: the labels of a text's tokens, or of the words and spans that they form, with positions.

Source of the strategies: transformers 5.23 `pipelines/token_classification.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.heads import TokenClassification as TokenClassificationHead
from .batches import Piece
from .rows import check_choice, check_count, check_text
from .task import Options, Task
from .text_classification import softmax

STRATEGIES = ("none", "simple", "first", "average", "max")

Entity = dict[str, Any]
"""Keys: `entity`, `score`, `index`, `word`, `start`, `end` with the strategy "none"; otherwise `entity_group` instead
of `entity`, and no `index`.
"""


@dataclass(frozen=True)
class TokenClassificationOptions(Options):
    """Besides the options of every task:

    aggregation_strategy: "none": one result per token; "simple": adjacent tokens with the same label are joined;
        "first", "average", "max": a word has the label of its first token, of its mean scores, or of its highest
        score, and adjacent words with the same label are joined.
    ignore_labels: labels that are left out of the results.
    stride: tokens by which windows overlap if a text exceeds the limit; None to cut such a text.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        if isinstance(self.ignore_labels, str):
            raise InputError("ignore_labels is a string, expected a list of labels.")
        if self.stride is not None:
            check_count("stride", self.stride, 0)
            if self.aggregation_strategy == "none":
                raise InputError(
                    "stride joins entities and aggregation_strategy is 'none'. Choose another aggregation_strategy."
                )


class TokenClassification(Task[TokenClassificationOptions, list[Entity]]):
    """Label the tokens or entities of texts; each result is a list of dictionaries.

    With the strategy "none": `entity`, `score`, `index` (of the token), `word` (the token), `start`, `end`; with the
    others `entity_group`, `score`, `word`, `start`, `end`. `text[start:end]` is the labelled part. With
    `is_split_into_words=True` a row is a list of words; positions then refer to the words joined by a space.
    """

    options_class = TokenClassificationOptions
    heads = (TokenClassificationHead,)
    needs = "token classification head"
    bundled_head = "token-kinds"
    per_token = True

    def __call__(self, inputs: Any, *, is_split_into_words: bool = False, **options: Any) -> Any:
        """Return the entities of a text, of a list of texts, or of a stream.

        Raises:
            InputError: an unknown option or strategy. RowError: rows that are not texts.
        """
        if is_split_into_words:
            alone = isinstance(inputs, list) and all(isinstance(word, str) for word in inputs)
            inputs = [Words(inputs)] if alone else [Words(row) for row in inputs]
        return super().__call__(inputs, **options)

    def _check_row(self, row: Any, options: TokenClassificationOptions) -> Any:
        if not isinstance(row, Words):
            return check_text(row)
        for index, word in enumerate(row.words):
            check_text(word, f"word {index}")
        check_text(row.text)
        return row

    def _pieces(self, rows: list[Any], options: TokenClassificationOptions) -> list[list[Piece]]:
        limit, stride = self.limit(options), options.stride
        pieces: list[list[Piece]] = [[] for _ in rows]
        for split in (False, True):
            indices = [i for i, row in enumerate(rows) if isinstance(row, Words) is split]
            if not indices:
                continue
            inputs = self.tokenizer(
                [rows[i].words if split else rows[i] for i in indices],
                truncation=True,
                max_length=limit,
                stride=stride or 0,
                is_split_into_words=split,
                return_overflowing_tokens=True,
                return_attention_mask=False,
            )
            types = inputs.get("token_type_ids") or [None] * len(inputs["input_ids"])
            for position, owner in enumerate(inputs["overflow_to_sample_mapping"]):
                index = indices[owner]
                if pieces[index] and stride is None:
                    self._warn_once(
                        "truncation", "texts of more than %d tokens are cut; stride= reads them whole", limit
                    )
                    continue
                ids = inputs["input_ids"][position]
                pieces[index].append(Piece(ids, types[position], inputs[position]))
        return pieces

    def _compute(self, call: dict[str, Any], last: mx.array) -> tuple[mx.array, ...]:
        return (self.model(**call).logits.astype(mx.float32),)

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: TokenClassificationOptions,
    ) -> list[Entity]:
        entities = []
        for piece, (logits,) in zip(pieces, outputs, strict=True):
            tokens = self._tokens(row, piece, softmax(logits))
            found = self._aggregate(tokens, options.aggregation_strategy)
            entities += [e for e in found if e.get("entity", e.get("entity_group")) not in options.ignore_labels]
        return without_overlaps(entities) if len(pieces) > 1 else entities

    def _tokens(self, row: Any, piece: Piece, scores: np.ndarray) -> list[Entity]:
        """Return each token of the text with its scores, its position, and whether it continues a word (`sub`)."""
        encoding, tokens = piece.memo, []
        text = row.text if isinstance(row, Words) else row
        by_word = getattr(self.tokenizer.backend.model, "continuing_subword_prefix", None)
        for index, special in enumerate(encoding.special_tokens_mask):
            if special:
                continue
            start, end = encoding.offsets[index]
            if isinstance(row, Words):
                shift = row.starts[encoding.word_ids[index]]
                start, end = start + shift, end + shift
            word = encoding.tokens[index]
            if by_word:
                subword = len(word) != end - start
            else:
                # the vocabulary marks no subwords: a token continues a word if no space separates them
                subword = start > 0 and " " not in text[start - 1 : start + 1]
            if piece.ids[index] == self.tokenizer.unk_token_id:
                word, subword = text[start:end], False
            tokens.append(
                {"word": word, "scores": scores[index], "start": start, "end": end, "index": index, "sub": subword}
            )
        return tokens

    def _aggregate(self, tokens: list[Entity], strategy: str) -> list[Entity]:
        if strategy in ("none", "simple"):
            entities = []
            for token in tokens:
                best = int(token["scores"].argmax())
                entities.append(
                    {
                        "entity": self._label(best),
                        "score": float(token["scores"][best]),
                        "index": token["index"],
                        "word": token["word"],
                        "start": token["start"],
                        "end": token["end"],
                    }
                )
            return entities if strategy == "none" else self._group_entities(entities)
        words: list[list[Entity]] = []
        for token in tokens:
            if words and token["sub"]:
                words[-1].append(token)
            else:
                words.append([token])
        return self._group_entities([self._word(word, strategy) for word in words])

    def _word(self, tokens: list[Entity], strategy: str) -> Entity:
        if strategy == "first":
            scores = tokens[0]["scores"]
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token["scores"].max())["scores"]
        else:
            scores = np.mean([token["scores"] for token in tokens], axis=0)
        best = int(scores.argmax())
        return {
            "entity": self._label(best),
            "score": float(scores[best]),
            "word": self.tokenizer.convert_tokens_to_string([token["word"] for token in tokens]),
            "start": tokens[0]["start"],
            "end": tokens[-1]["end"],
        }

    def _group_entities(self, entities: list[Entity]) -> list[Entity]:
        """Join adjacent entities with the same label; "B-" begins a new one."""
        groups: list[list[Entity]] = []
        for entity in entities:
            begins, name = _tag(entity["entity"])
            if groups and not begins and name == _tag(groups[-1][-1]["entity"])[1]:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([entity["score"] for entity in group])),
                "word": self.tokenizer.convert_tokens_to_string([entity["word"] for entity in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]


class Words:
    """A text given as words: the words, the text that they form, and the start of each word in it."""

    def __init__(self, words: Any):
        if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) for word in words):
            raise InputError("is_split_into_words needs a list of words for each row.")
        self.words = list(words)
        self.text = " ".join(words)
        self.starts = [sum(len(word) + 1 for word in words[:index]) for index in range(len(words))]


def without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Return the entities without overlaps: the longest of overlapping ones, or among equals the highest score.

    Overlaps arise from the windows of one text.
    """
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda e: e["start"]):
        if kept and kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            size, other = entity["end"] - entity["start"], kept[-1]["end"] - kept[-1]["start"]
            if (size, entity["score"]) > (other, kept[-1]["score"]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _tag(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity ("B-"), and the entity's name."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label

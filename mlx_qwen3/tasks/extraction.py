"""Structured extraction: one JSON value per text, always valid under a JSON Schema."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import InputError
from ..generation.batching import batch_generate
from ..generation.constrained_answer import parse_answer
from ..generation.constraints import compile_constraint, schema_of
from ..generation.prompts import prompt_ids
from ..models.heads import CausalLM
from .batches import Piece
from .rows import check_text
from .task import Options, Task

ROWS_AT_ONCE = 16

INSTRUCTION = "Extract what the JSON schema asks for from the text. Answer with JSON only.\n\nJSON schema:\n{schema}"


def extraction_messages(text: str, schema: Any, instruction: str = INSTRUCTION) -> list[dict[str, str]]:
    """Return the messages that ask for a value of `schema`, which replaces {schema} in the instruction."""
    system = instruction.replace("{schema}", json.dumps(schema, ensure_ascii=False))
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


@dataclass(frozen=True)
class _Cut:
    """An answer that reached `max_new_tokens` and is incomplete."""

    text: str


@dataclass(frozen=True)
class ExtractionOptions(Options):
    """Besides the options of every task:

    schema: a JSON Schema (a dict, JSON text, or a pydantic model class); required.
    instruction: the system message; {schema} in it is replaced by the schema.
    max_new_tokens: maximum tokens per answer; a row whose answer is longer is reported as an error.
    temperature: 0 for greedy decoding.
    seed: the random seed; makes sampled answers repeatable.
    parse: return instances of the pydantic model class instead of JSON values.
    """

    schema: Any = None
    instruction: str = INSTRUCTION
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = None
    parse: bool = False


class Extraction(Task[ExtractionOptions, Any]):
    """Extract one JSON value per text, valid under `schema`."""

    options_class = ExtractionOptions
    heads = (CausalLM,)
    needs = "language model head"

    def _check_row(self, row: Any, options: ExtractionOptions) -> Any:
        return check_text(row)

    def _pieces(self, rows: list[Any], options: ExtractionOptions) -> Sequence[list[Piece] | InputError]:
        if options.schema is None:
            raise InputError("extraction needs a schema. Pass schema=.")
        compile_constraint("schema", options.schema, self.tokenizer)
        schema = schema_of(options.schema)
        limit = self.limit(options) - options.max_new_tokens
        pieces: list[list[Piece] | InputError] = []
        for row in rows:
            messages = extraction_messages(row, schema, options.instruction)
            ids = list(prompt_ids(cast(Any, self.tokenizer), messages, enable_thinking=False))
            found = InputError(f"the text with its schema has {len(ids)} tokens, at most {limit} leave room to answer.")
            pieces.append([Piece(ids)] if len(ids) <= limit else found)
        return pieces

    def _run(self, pieces: list[Piece], options: ExtractionOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        found = batch_generate(
            self.model,
            cast(Any, self.tokenizer),
            [piece.ids for piece in pieces],
            options.max_new_tokens,
            schema=options.schema,
            temperature=options.temperature,
            seed=options.seed,
            completion_batch_size=options.batch_size or ROWS_AT_ONCE,
        )
        finished([*range(len(pieces))])
        return [
            (np.array(text), np.array(reason)) for text, reason in zip(found.texts, found.finish_reasons, strict=True)
        ]

    def _result(
        self, row: Any, pieces: Sequence[Piece], outputs: Sequence[tuple[np.ndarray, ...]], options: ExtractionOptions
    ) -> Any:
        text, reason = (str(part) for part in outputs[0])
        if reason == "length":
            return _Cut(text)
        return parse_answer(options.schema, text) if options.parse else json.loads(text)

    def _window(
        self,
        start: int,
        rows: list[Any],
        bad: dict[int, str],
        options: ExtractionOptions,
        errors: dict[int, str],
        bar: Any = None,
    ) -> Iterator[Any]:
        for index, result in enumerate(super()._window(start, rows, bad, options, errors, bar), start):
            if not isinstance(result, _Cut):
                yield result
                continue
            errors[index] = f"the answer was cut after {options.max_new_tokens} tokens. Raise max_new_tokens"
            yield {"error": errors[index], "row": index} if options.on_error == "record" else None


def extract(text: Any, schema: Any, model: Any = None, tokenizer: Any = None, **options: Any) -> Any:
    """Extract the value that a JSON Schema describes from one text, or from each of several; it is always valid.

    Args:
        text: one text, or several, as for every pipeline.
        schema: a JSON Schema (a dict, JSON text, or a pydantic model class).
        model, tokenizer: as in `pipeline`.
        **options: those of `Extraction`, such as `max_new_tokens` and `parse`.

    Raises:
        InputError: an unknown option, an empty text, an answer that was cut off.
        ConstraintError: a schema that cannot be enforced.
        RowError: some of several rows cannot be used.
    """
    return Extraction(model, tokenizer, schema=schema, **options)(text)

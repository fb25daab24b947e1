"""Text that goes on, for one prompt or many, as the pipeline of transformers gives it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..models.heads import CausalLM
from .batches import Piece, batches_by_length
from .rows import check_text
from .task import Options, Task

ROWS_AT_ONCE = 16


class GeneratedText(TypedDict):
    """The generated text; for a chat, its messages with the answer added."""

    generated_text: Any


@dataclass(frozen=True)
class TextGenerationOptions(Options):
    """Besides the options of every task:

    return_full_text: whether a result begins with its prompt; for a chat, with its messages.
    generate: what goes to `model.generate`: `max_new_tokens`, `do_sample`, `temperature`, …; also given directly.
    template: what goes to the chat template, such as {"enable_thinking": False}.
    """

    return_full_text: bool = True
    generate: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)

    def replaced(self, keywords: dict[str, Any], others: Sequence[str] = ()) -> Any:
        """These options with some replaced; a name that is none of them goes to `model.generate`."""
        known = {option.name for option in dataclasses.fields(self)}
        own = {name: value for name, value in keywords.items() if name in known}
        rest = {name: value for name, value in keywords.items() if name not in known}
        return dataclasses.replace(self, **{**own, "generate": {**own.get("generate", self.generate), **rest}})


class TextGeneration(Task[TextGenerationOptions, "list[GeneratedText]"]):
    """`[{"generated_text": …}]` for a prompt or a chat (a list of messages with 'role' and 'content')."""

    options_class = TextGenerationOptions
    heads = (CausalLM,)
    needs = "language model head"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """What follows a prompt, each of a list, or each of a stream.

        Raises:
            InputError: an option that `model.generate` refuses. RowError: rows that are neither text nor chat.
        """
        if _is_chat(inputs):
            return self._single(inputs, self.options.replaced(options))
        return super().__call__(inputs, **options)

    def _checked(self, row: Any, options: TextGenerationOptions) -> Any:
        return row if _is_chat(row) else check_text(row)

    def _pieces(self, rows: list[Any], options: TextGenerationOptions) -> list[list[Piece] | InputError]:
        pieces: list[list[Piece] | InputError] = []
        for row in rows:
            if _is_chat(row):
                ids = self.tokenizer.apply_chat_template(row, add_generation_prompt=True, **options.template)
            else:
                ids = self.tokenizer.encode(row)
            limit = self.limit(options)
            pieces.append(
                [Piece(ids)] if len(ids) < limit else InputError(f"the prompt has {len(ids)} tokens of {limit}")
            )
        return pieces

    def _run(self, pieces: list[Piece], options: TextGenerationOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        results: list[tuple[np.ndarray, ...]] = [()] * len(pieces)
        pad = self.tokenizer.pad_token_id or 0
        for indices in batches_by_length([len(piece.ids) for piece in pieces], options.batch_size or ROWS_AT_ONCE):
            width = max(len(pieces[index].ids) for index in indices)
            ids = np.full((len(indices), width), pad, dtype=np.int32)
            mask = np.zeros_like(ids)
            for row, index in enumerate(indices):
                own = pieces[index].ids
                ids[row, width - len(own) :], mask[row, width - len(own) :] = own, 1
            output = self.model.generate(mx.array(ids), attention_mask=mx.array(mask), **options.generate)
            output = getattr(output, "sequences", output)
            copies = output.shape[0] // len(indices)
            new = np.array(output[:, width:])
            for row, index in enumerate(indices):
                results[index] = tuple(new[row * copies : (row + 1) * copies])
            finished(indices)
        return results

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: TextGenerationOptions,
    ) -> list[dict[str, Any]]:
        return [{"generated_text": self._text(row, ids.tolist(), options)} for ids in outputs[0]]

    def _text(self, row: Any, ids: list[int], options: TextGenerationOptions) -> Any:
        # a model may have more ids than the tokenizer has tokens; a detokenizer gives those no text
        detokenizer = self.tokenizer.make_detokenizer(skip_special_tokens=True)
        for token in ids:
            detokenizer.add_token(token)
        detokenizer.finalize()
        text = detokenizer.text
        if not options.return_full_text:
            return text
        return [*row, {"role": "assistant", "content": text}] if _is_chat(row) else row + text


def _is_chat(row: Any) -> bool:
    return isinstance(row, list | tuple) and bool(row) and all(isinstance(m, dict) and "role" in m for m in row)

"""Text generation for one or several prompts, with results like those of the pipeline of transformers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..generation.after_thinking import TokenMatcher
from ..generation.constrained_answer import matcher_for
from ..generation.constraint_processors import BatchConstraint
from ..generation.constraints import KINDS, Constraint, chosen_constraint
from ..generation.mixin import DEFAULT_NEW_TOKENS
from ..generation.prompts import ends_with_assistant, prompt_ids
from ..generation.stream import check_model_and_tokenizer
from ..models.heads import CausalLM
from .batches import Piece, batches_by_length
from .keywords import drop_harmless
from .rows import check_choice, check_text
from .task import Options, Task

ROWS_AT_ONCE = 16

ANSWER_STARTS = ("<|im_start|>assistant", "<think>", "</think>")
"""Endings of prompts that a chat template has rendered."""


class GeneratedText(TypedDict):
    """The generated text; for a chat, its messages with the answer appended."""

    generated_text: Any


LONG_PROMPTS = (None, "hole")

SET_HERE = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
"""Arguments of `model.generate` that the pipeline sets; None is accepted."""

NO_OPTIONS = ("truncation", "add_special_tokens", "tokenizer_encode_kwargs", "enable_thinking", *SET_HERE)
"""Keywords of transformers that are not passed to `model.generate`; Qwen3's tokenizers add no special tokens."""


@dataclass(frozen=True)
class TextGenerationOptions(Options):
    """Besides the options of every task:

    return_full_text: whether a result begins with its prompt; for a chat, with its messages.
    return_tensors: return {"generated_token_ids": ids of prompt and answer} instead of a text.
    continue_final_message: whether a chat's last message is continued; by default if it is the assistant's.
    tools: JSON schemas of functions, for the chat template.
    prefix: text put before each prompt.
    skip_special_tokens: whether special tokens are left out of results.
    truncation: cut prompts to `max_length` tokens, or to the context minus the answer if it is not given, on the
        tokenizer's `truncation_side`.
    handle_long_generation: "hole" cuts the beginning of a prompt if prompt and answer exceed the context.
    schema, regex, choices, grammar (among `generate`): at most one constraint on every answer, as in `stream_generate`;
        the pipeline raises `IncompleteOutputError` if `max_new_tokens` cuts an answer off.
    generate: options of `model.generate`, such as `max_new_tokens`, `do_sample`, `temperature`; also given directly.
        `stop_sequence` is an alias of `stop_strings`; `max_length` counts prompt and answer.
    template: variables of the chat template, such as {"enable_thinking": False}.
    """

    return_full_text: bool = True
    return_tensors: bool = False
    continue_final_message: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    prefix: str | None = None
    skip_special_tokens: bool = True
    truncation: bool = False
    handle_long_generation: str | None = None
    generate: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix:
            check_text(self.prefix, "prefix")
        check_choice("handle_long_generation", self.handle_long_generation, LONG_PROMPTS)

    def replaced(self, keywords: dict[str, Any], others: Sequence[str] = ()) -> Any:
        """Return these options with some replaced; other names are passed on to `model.generate`."""
        keywords, encode = dict(keywords), dict(keywords.get("tokenizer_encode_kwargs") or {})
        for given in (keywords, encode):
            if "enable_thinking" in given:
                keywords = {**keywords, "template": {**keywords.get("template", self.template), **_pop_thinking(given)}}
        if encode:
            raise InputError("tokenizer_encode_kwargs is not supported. Pass truncation=True with max_length.")
        for name in SET_HERE:
            if keywords.get(name) is not None:
                raise InputError(f"{name} is not an option of the pipeline, which encodes the texts itself. Omit it.")
        cut = keywords.get("truncation") not in (None, False, "do_not_truncate")
        keywords = drop_harmless({name: v for name, v in keywords.items() if name not in NO_OPTIONS})
        if cut:
            keywords["truncation"] = True
        if "stop_sequence" in keywords:
            keywords["stop_strings"] = keywords.pop("stop_sequence")
        if keywords.pop("return_text", True) is False:
            raise InputError("return_text=False is not supported. Pass return_tensors=True for ids.")
        known = {option.name for option in dataclasses.fields(self)} - {"max_length"}
        own = {name: value for name, value in keywords.items() if name in known}
        rest = {name: value for name, value in keywords.items() if name not in known}
        return dataclasses.replace(self, **{**own, "generate": {**own.get("generate", self.generate), **rest}})


class TextGeneration(Task[TextGenerationOptions, "list[GeneratedText]"]):
    """Generate `[{"generated_text": …}]` for a prompt or a chat (a list of messages with 'role' and 'content')."""

    options_class = TextGenerationOptions
    heads = (CausalLM,)
    needs = "language model head"

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """Return the texts generated for a prompt, for each of a list, or for each of a stream.

        `text_inputs` is an alias of `inputs`, and `enable_thinking` a variable of the chat template.

        Raises:
            InputError: an option that `model.generate` refuses. RowError: rows that are neither text nor chat.
        """
        if "text_inputs" in options:
            if inputs is not None:
                raise InputError("text_inputs is an alias of inputs and both are given. Pass one of them.")
            inputs = options.pop("text_inputs")
        if _is_chat(inputs):
            return self._single_result(inputs, self.options.replaced(options))
        return super().__call__(inputs, **options)

    def _check_model(self, source: Any) -> None:
        super()._check_model(source)
        check_model_and_tokenizer(self.model, self.tokenizer)

    def _check_row(self, row: Any, options: TextGenerationOptions) -> Any:
        return row if _is_chat(row) else check_text(row)

    def _pieces(self, rows: list[Any], options: TextGenerationOptions) -> list[list[Piece] | InputError]:
        pieces: list[list[Piece] | InputError] = []
        for row in rows:
            prompt = row if _is_chat(row) else (options.prefix or "") + row
            ids = list(
                prompt_ids(
                    cast(Any, self.tokenizer),
                    prompt,
                    tools=options.tools,
                    continue_final_message=options.continue_final_message,
                    template=options.template,
                )
            )
            limit = self.limit(options)
            if options.handle_long_generation == "hole":
                room = limit - self._new_tokens(options)
                if room < 1:
                    raise InputError(f"max_new_tokens leaves no room for a prompt in {limit} tokens. Lower it.")
                ids = ids[-room:]
            if options.truncation:
                room = options.generate.get("max_length") or limit - self._new_tokens(options)
                ids = ids[:room] if self.tokenizer.truncation_side == "right" else ids[max(len(ids) - room, 0) :]
            pieces.append([Piece(ids)] if len(ids) < limit else _too_long(len(ids), limit))
        return pieces

    def _run(self, pieces: list[Piece], options: TextGenerationOptions, finished: Any) -> list[tuple[np.ndarray, ...]]:
        results: list[tuple[np.ndarray, ...]] = [()] * len(pieces)
        generate = {name: value for name, value in options.generate.items() if name not in KINDS}
        given = {name: options.generate.get(name) for name in KINDS}
        constraint = chosen_constraint(self.tokenizer, **given)
        pad = self.tokenizer.pad_token_id or 0
        for indices in batches_by_length([len(piece.ids) for piece in pieces], options.batch_size or ROWS_AT_ONCE):
            width = max(len(pieces[index].ids) for index in indices)
            ids = np.full((len(indices), width), pad, dtype=np.int32)
            mask = np.zeros_like(ids)
            for row, index in enumerate(indices):
                own = pieces[index].ids
                ids[row, width - len(own) :], mask[row, width - len(own) :] = own, 1
            follower = None
            if constraint is not None:
                copies = options.generate.get("num_return_sequences") or 1
                rows = [
                    self._matcher(constraint, pieces[index].ids, options) for index in indices for _ in range(copies)
                ]
                follower = BatchConstraint(rows, width)
            output = self.model.generate(
                mx.array(ids),
                attention_mask=mx.array(mask),
                tokenizer=self.tokenizer,
                **(generate if follower is None else _with_processor(generate, follower)),
            )
            output = getattr(output, "sequences", output)
            if follower is not None:
                follower.finish(output, constraint.kind if constraint is not None else "")
            copies = output.shape[0] // len(indices)
            new = np.array(output[:, width:])
            for row, index in enumerate(indices):
                results[index] = tuple(new[row * copies : (row + 1) * copies])
            finished(indices)
        return results

    def _matcher(self, constraint: Constraint, ids: Sequence[int], options: TextGenerationOptions) -> TokenMatcher:
        """Return the matcher that enforces a constraint on one answer; for a chat it starts after the reasoning."""
        config = getattr(self.model, "generation_config", None)
        ends = sorted({*(config.eos_token_ids if config is not None else ()), *_ids_of(self.tokenizer.eos_token_id)})
        text = self.tokenizer.decode(list(ids)).rstrip()
        rendered = text if text.endswith(ANSWER_STARTS) else None
        return matcher_for(constraint, self.tokenizer, ends, rendered, options.template.get("enable_thinking"))

    def _new_tokens(self, options: TextGenerationOptions) -> int:
        own = self.model.generation_config.max_new_tokens
        return options.generate.get("max_new_tokens") or own or DEFAULT_NEW_TOKENS

    def _result(
        self,
        row: Any,
        pieces: Sequence[Piece],
        outputs: Sequence[tuple[np.ndarray, ...]],
        options: TextGenerationOptions,
    ) -> list[dict[str, Any]]:
        if options.return_tensors:
            return [{"generated_token_ids": [*pieces[0].ids, *ids.tolist()]} for ids in outputs[0]]
        return [{"generated_text": self._text(row, ids.tolist(), options)} for ids in outputs[0]]

    def _text(self, row: Any, ids: list[int], options: TextGenerationOptions) -> Any:
        # a model may have more ids than the tokenizer has tokens; the detokenizer skips those
        detokenizer = self.tokenizer.make_detokenizer(skip_special_tokens=options.skip_special_tokens)
        for token in ids:
            detokenizer.add_token(token)
        detokenizer.finalize()
        text = detokenizer.text
        if not options.return_full_text:
            return text
        if not _is_chat(row):
            return row + text
        continued = options.continue_final_message
        if ends_with_assistant(row) if continued is None else continued:
            return [*row[:-1], {**row[-1], "content": row[-1]["content"] + text}]
        return [*row, {"role": "assistant", "content": text}]


def _pop_thinking(given: dict[str, Any]) -> dict[str, Any]:
    """Remove `enable_thinking` from keywords; return it as variables of the chat template, none if it is None."""
    value = given.pop("enable_thinking")
    return {} if value is None else {"enable_thinking": value}


def _too_long(tokens: int, limit: int) -> InputError:
    return InputError(
        f"the prompt has {tokens} tokens and the model holds {limit}. Shorten it, or pass truncation=True."
    )


def _ids_of(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _with_processor(generate: dict[str, Any], processor: Any) -> dict[str, Any]:
    """Return the options of `model.generate` with `processor` appended to its logits processors."""
    return {**generate, "logits_processor": [*(generate.get("logits_processor") or ()), processor]}


def _is_chat(row: Any) -> bool:
    return isinstance(row, list | tuple) and bool(row) and all(isinstance(m, dict) and "role" in m for m in row)

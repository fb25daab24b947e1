"""Turn prompts (texts, token ids, tokenizer outputs, lists of messages) into token ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core as mx

from ..errors import InputError
from .checks import plain, type_name


class TextCodec(Protocol):
    """The methods of a tokenizer that streaming needs."""

    def encode(self, text: str, /, **options: Any) -> Any: ...

    def apply_chat_template(self, conversation: Sequence[Any], /, **options: Any) -> Any: ...

    def make_detokenizer(self) -> Any: ...


def render_prompt(
    tokenizer: TextCodec,
    prompt: Any,
    enable_thinking: bool | None,
    tools: Sequence[Mapping[str, Any]] | None,
    continue_final_message: bool | None,
) -> str | None:
    """Return the rendered text of a list of messages, or None for other prompts, which have no reasoning."""
    if not is_conversation(prompt):
        return None
    variables: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    turn = template_turn(prompt, continue_final_message)
    return tokenizer.apply_chat_template(prompt, tools=tools, tokenize=False, **turn, **variables)


def prompt_ids(
    tokenizer: TextCodec,
    prompt: Any,
    *,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool | None = None,
    template: Mapping[str, Any] | None = None,
) -> Any:
    """Return the ids of a prompt: texts are encoded, messages rendered by the chat template, ids returned unchanged.

    Args:
        template: further variables of the chat template.
        continue_final_message: as in `stream_generate`.

    Raises:
        InputError: the prompt is an empty text, or a mapping without `input_ids`.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("the prompt is empty. Pass at least one token.")
        return tokenizer.encode(prompt)
    if isinstance(prompt, Mapping):
        return _unmasked_ids(prompt)
    if is_conversation(prompt):
        variables: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        variables.update(template or {})
        turn = template_turn(prompt, continue_final_message)
        found = tokenizer.apply_chat_template(prompt, tools=tools, **turn, **variables)
        return found["input_ids"] if isinstance(found, Mapping) else found
    if prompt is None or isinstance(prompt, bytes | Path):
        raise InputError(f"the prompt is {type_name(prompt)}. Pass a text, ids or a list of messages.")
    if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], str):
        raise InputError("the prompt is a list of texts. Pass one text, or pass the list to batch_generate.")
    return prompt


def _unmasked_ids(prompt: Mapping[str, Any]) -> Any:
    """Return the ids of a tokenizer's output, without the padding."""
    if "input_ids" not in prompt:
        raise InputError("the prompt is a mapping without input_ids. Pass a text, ids or a list of messages.")
    ids, mask = plain(prompt["input_ids"]), plain(prompt.get("attention_mask"))
    single = isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list)
    if not isinstance(mask, list) or not (single or isinstance(ids, list)):
        return ids
    row, kept = (ids[0], mask[0] if mask else mask) if single else (ids, mask)
    if not isinstance(kept, list) or len(kept) != len(row):
        raise InputError("the attention_mask and the input_ids of the prompt differ in shape. Pass one value per id.")
    return [token for token, keep in zip(row, kept, strict=True) if keep]


def is_conversation(prompt: Any) -> bool:
    """Return whether a prompt is a list of messages."""
    return (
        isinstance(prompt, Sequence) and not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)
    )


def template_turn(messages: Sequence[Any], continue_final_message: bool | None) -> dict[str, bool]:
    """Return the keywords of `apply_chat_template` that start or continue the assistant's turn."""
    if continue_final_message is None:
        continue_final_message = ends_with_assistant(messages)
    return {"continue_final_message": True} if continue_final_message else {"add_generation_prompt": True}


def ends_with_assistant(messages: Sequence[Any]) -> bool:
    """Return whether the last message is the assistant's and has a text that can be continued."""
    last = messages[-1]
    if not isinstance(last, Mapping):
        return False  # the chat template refuses it
    return last.get("role") == "assistant" and isinstance(last.get("content"), str) and bool(last["content"])


def prompt_tail(tokenizer: TextCodec, prompt: Any, ids: mx.array, stops: Sequence[str]) -> str:
    """Return the end of a prompt's text, in which a stop string may begin; "" for messages."""
    if not stops or is_conversation(prompt):
        return ""
    longest = max(len(stop.encode()) for stop in stops)
    if isinstance(prompt, str):
        return prompt[-longest:]
    detokenizer = tokenizer.make_detokenizer()
    for token in list_ids(ids)[-longest:]:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return detokenizer.text


def list_ids(ids: mx.array) -> list[int]:
    """Return ids (1, L) as a list."""
    return cast(list[int], ids[0].tolist())

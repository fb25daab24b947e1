"""Distinguish control tokens in user input from those that a chat template writes.

As in `apply_chat_template(sanitize_control_tokens=True)` of transformers 5.23, control tokens in messages, tools,
documents and template variables are enclosed in two private-use characters before rendering, and encoded as plain text
afterwards.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .backend import backend_errors
from .batch import BatchEncoding

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_START, _END = "\U000f0000", "\U000f0001"


def control_tokens(added_tokens: Sequence[Any], template_text: str) -> list[str]:
    """Return the special tokens and the added tokens that the template contains, longest first."""
    found = [
        token.content
        for token in added_tokens
        if token.special or (token.content in template_text and not token.content.isspace())
    ]
    return sorted(found, key=len, reverse=True)


def mark_control_tokens(value: Any, tokens: Sequence[str]) -> Any:
    """Return a copy of `value` in which control tokens in strings are enclosed in the two marks.

    Dict keys are not changed.
    """
    return _mark(value, re.compile("|".join(map(re.escape, tokens)) or "(?!)"))


def _mark(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(f"{_START}\\g<0>{_END}", value.replace(_START, "").replace(_END, ""))
    if isinstance(value, dict):
        return {key: _mark(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(item, pattern) for item in value]
    return value


def encode_marked(
    text: str, tokens: Sequence[str], encode: Callable[..., list[int]], token_id: Callable[[str], int | None]
) -> list[int]:
    """Encode a rendered chat; text between marks is encoded as plain text.

    Args:
        tokens: all added tokens, longest first.
        encode: maps a text and `split_special_tokens` to ids, without adding special tokens.
        token_id: maps a token to its id.

    Raises:
        InputError: the vocabulary encodes plain text as a control token.
    """
    alternatives = "|".join(map(re.escape, tokens)) or "(?!)"
    pieces = re.split(f"{_START}({alternatives}){_END}|[{_START}{_END}]", text)
    newline = encode("\n", split_special_tokens=False)
    ids = encode(pieces[0], split_special_tokens=False) if pieces[0] else []
    for index, piece in enumerate(pieces[1:], 1):
        if not piece:
            continue
        plain = index % 2 == 1
        # Encode after a newline, so that vocabularies that prefix texts with a space do not add one in the middle.
        found = encode("\n" + piece, split_special_tokens=plain)
        matches = found[: len(newline)] == newline
        found = found[len(newline) :] if matches else encode(piece, split_special_tokens=plain)
        if plain and token_id(piece) in found:
            raise InputError(f"sanitize_control_tokens: {piece!r} cannot be encoded as plain text. Remove it.")
        ids += found
    return ids


def encode_sanitized(tokenizer: "Tokenizer", texts: str | list[str], **options: Any) -> BatchEncoding:
    """Encode rendered chats with marked control tokens; return the model inputs.

    Args:
        **options: keyword arguments of a tokenizer call.

    Raises:
        InputError: an unsupported keyword, or a control token that cannot be encoded as plain text.
    """
    added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)

    def encode(text: str, split_special_tokens: bool) -> list[int]:
        return (
            _encode_plain(tokenizer, text) if split_special_tokens else tokenizer.encode(text, add_special_tokens=False)
        )

    lengths = {name: options.pop(name, None) for name in ("padding", "truncation", "max_length", "return_tensors")}
    options.pop("add_special_tokens")
    unknown = sorted(set(options) - {"pad_to_multiple_of", "padding_side", "return_attention_mask"})
    if unknown:
        raise InputError(f"sanitize_control_tokens excludes {unknown[0]!r} in tokenizer_kwargs. Leave one out.")
    batch = [texts] if isinstance(texts, str) else texts
    rows = [encode_marked(text, added, encode, tokenizer.backend.token_to_id) for text in batch]
    limit = tokenizer.model_max_length if lengths["max_length"] is None else lengths["max_length"]
    if lengths["truncation"] not in (None, False, "do_not_truncate"):
        right = tokenizer.truncation_side == "right"
        rows = [row[:limit] if right else row[max(len(row) - limit, 0) :] for row in rows]
    alone = isinstance(texts, str) and lengths["return_tensors"] is None
    return tokenizer.pad(
        {"input_ids": rows[0] if alone else rows},
        lengths["padding"],
        lengths["max_length"],
        return_tensors=lengths["return_tensors"],
        **options,
    )


def _encode_plain(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Encode a text without matching added tokens, special or not."""
    backend = tokenizer.backend
    text = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    split = backend.pre_tokenizer
    pieces = [text] if split is None else [piece for piece, _ in split.pre_tokenize_str(text)]
    with backend_errors("the text cannot be encoded", InputError):
        return [token.id for piece in pieces for token in backend.model.tokenize(piece)]

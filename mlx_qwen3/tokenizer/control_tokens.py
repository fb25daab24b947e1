"""Keep the control tokens that a user's text contains apart from those that a chat template writes.

The rules are those of `apply_chat_template(sanitize_control_tokens=True)` in transformers 5.23: control tokens in
messages, tools, documents and template variables are enclosed in two private characters before rendering, and encoded
as plain text afterwards.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InputError

_START, _END = "\U000f0000", "\U000f0001"


def control_tokens(added_tokens: Sequence[Any], template_text: str) -> list[str]:
    """Return the special tokens, and the added tokens that the template itself contains, the longest first."""
    found = [
        token.content
        for token in added_tokens
        if token.special or (token.content in template_text and not token.content.isspace())
    ]
    return sorted(found, key=len, reverse=True)


def mark_control_tokens(value: Any, tokens: Sequence[str]) -> Any:
    """Return a copy of `value` in which every control token in a string stands between the two characters.

    Dict keys stay as they are.
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
    """Return the ids of a rendered chat; what stands between marks is encoded as plain text.

    Args:
        tokens: every added token, the longest first.
        encode: text and `split_special_tokens` -> ids, without special tokens added.

    Raises:
        InputError: the vocabulary makes a control token out of plain text.
    """
    alternatives = "|".join(map(re.escape, tokens)) or "(?!)"
    pieces = re.split(f"{_START}({alternatives}){_END}|[{_START}{_END}]", text)
    newline = encode("\n", split_special_tokens=False)
    ids = encode(pieces[0], split_special_tokens=False) if pieces[0] else []
    for index, piece in enumerate(pieces[1:], 1):
        if not piece:
            continue
        plain = index % 2 == 1
        # After a newline, so that a vocabulary that puts a space before a text does not do so in the middle.
        found = encode("\n" + piece, split_special_tokens=plain)
        matches = found[: len(newline)] == newline
        found = found[len(newline) :] if matches else encode(piece, split_special_tokens=plain)
        if plain and token_id(piece) in found:
            raise InputError(f"sanitize_control_tokens: the vocabulary makes {piece!r} out of plain text. Remove it")
        ids += found
    return ids

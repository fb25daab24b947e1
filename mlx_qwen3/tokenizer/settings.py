"""Check the types of the values in `tokenizer_config.json` before they are used."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from .lengths import NO_LENGTH
from .vocabulary import NAMED_TOKENS

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SIDES = ("padding_side", "truncation_side")
_SWITCHES = (
    *("clean_up_tokenization_spaces", "split_special_tokens", "add_prefix_space"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars"),
)


def check_settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings with tokens as strings, integer keys in `added_tokens_decoder`, and integer lengths.

    Raises:
        TokenizerError: a value has the wrong type; the message names the field.
    """
    checked = dict(config)
    for name in NAMED_TOKENS:
        if name in checked:
            checked[name] = _read_token(folder, name, checked[name])
    for name in ("extra_special_tokens", "additional_special_tokens"):
        if checked.get(name) is not None:
            checked[name] = _read_tokens(folder, name, checked[name])
    if checked.get("added_tokens_decoder") is not None:
        checked["added_tokens_decoder"] = _read_added_tokens(folder, checked["added_tokens_decoder"])
    for name in ("model_max_length", "max_len"):
        if checked.get(name) is not None:
            checked[name] = _read_length(folder, name, checked[name])
    _expect(folder, checked, "tokenizer_class", str, "a string")
    _expect(folder, checked, "model_input_names", list | tuple, "a list of strings")
    if not all(isinstance(name, str) for name in checked.get("model_input_names") or ()):
        raise _make_error(folder, "model_input_names", checked["model_input_names"], "a list of strings")
    for name in _SIDES:
        if checked.get(name) is not None and checked[name] not in ("left", "right"):
            raise _make_error(folder, name, checked[name], "'left' or 'right'")
    for name in _SWITCHES:
        _expect(folder, checked, name, bool, "true or false")
    return checked


def _expect(folder: Path, config: dict[str, Any], name: str, kind: Any, what: str) -> None:
    if config.get(name) is not None and not isinstance(config[name], kind):
        raise _make_error(folder, name, config[name], what)


def _make_error(folder: Path, name: str, value: Any, expected: str) -> TokenizerError:
    shown = repr(value) if len(repr(value)) < 60 else f"a {type(value).__name__}"
    return TokenizerError(f"{folder}: {name} in the tokenizer's configuration is {shown}. It must be {expected}.")


def _read_token(folder: Path, name: str, value: Any) -> str | None:
    """Return the text of a token, given as a string or as an object with a `content`."""
    if isinstance(value, Mapping) and "content" not in value:
        raise _make_error(folder, name, value, "a string or an object with a string as its content")
    content = value["content"] if isinstance(value, Mapping) else value
    if content is not None and not isinstance(content, str):
        content = getattr(content, "content", None)  # an AddedToken
        if not isinstance(content, str):
            raise _make_error(folder, name, value, "a string or an object with a string as its content")
    return content or None  # an empty string means no token


def _read_tokens(folder: Path, name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple | Mapping):
        raise _make_error(folder, name, value, "a list of tokens")
    tokens = [_read_token(folder, name, token) for token in (value.values() if isinstance(value, Mapping) else value)]
    return [token for token in tokens if token is not None]


def _read_added_tokens(folder: Path, value: Any) -> dict[int, dict[str, Any]]:
    name = "added_tokens_decoder"
    if not isinstance(value, Mapping):
        raise _make_error(folder, name, value, "an object of tokens by id")
    added = {}
    for index, fields in value.items():
        if not (str(index).isdecimal() and int(index) < 2**32):
            raise _make_error(folder, f"an id in {name}", index, "a whole number")
        if isinstance(fields, str):
            fields = {"content": fields}
        if not isinstance(fields, Mapping) or not isinstance(fields.get("content"), str) or not fields["content"]:
            raise _make_error(folder, f"{name}[{index}]", fields, "an object with a string as its content")
        for flag in _FLAGS:
            if not isinstance(fields.get(flag, False), bool):
                raise _make_error(folder, f"{flag} of {name}[{index}]", fields[flag], "true or false")
        added[int(index)] = {key: fields[key] for key in ("content", *_FLAGS) if key in fields}
    return added


def _read_length(folder: Path, name: str, value: Any) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not number or value <= 0:
        raise _make_error(folder, name, value, "a number of tokens above 0")
    return NO_LENGTH if value >= NO_LENGTH else int(value)

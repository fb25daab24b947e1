"""Resolve `padding`, `truncation` and `max_length` by the rules of transformers, and pad and truncate rows."""

import logging
import operator
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Encoding

from ..errors import InputError

logger = logging.getLogger(__name__)

NO_LENGTH = int(1e30)
"""`model_max_length` of a tokenizer whose configuration does not set it, as in transformers."""

UNLIMITED_TOKENS = 2**31
"""Lengths from this value on, such as a `model_max_length` of 1e30 in transformers, are treated as unlimited."""

_PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass(frozen=True)
class Lengths:
    """Resolved lengths of a call, in tokens.

    `padding` is 'longest', 'max_length' or None; `truncation` is a strategy or None.
    """

    padding: str | None
    truncation: str | None
    max_length: int | None
    stride: int
    pad_to_multiple_of: int | None

    def truncate(self, backend: tokenizers.Tokenizer, special: int, pair: bool, side: str) -> None:
        """Configure the backend to truncate rows that contain `special` special tokens.

        Raises:
            InputError: `max_length` leaves no room for text, or `stride` leaves none for new tokens.
        """
        if self.truncation is None or self.max_length is None:
            return
        room = self.max_length - special
        if room < 0:
            raise InputError(
                f"max_length={self.max_length} is less than the {special} special tokens. Use a larger one."
            )
        if self.stride and self.stride >= room:
            raise InputError(
                f"stride={self.stride} is too large. Use less than the {room} text tokens that max_length leaves."
            )
        if self.truncation == "only_second" and not pair:
            raise InputError("truncation='only_second' needs a pair. Pass text_pair.")
        backend.enable_truncation(self.max_length, stride=self.stride, strategy=self.truncation, direction=side)

    def pad(self, rows: list[Encoding], token: str, token_id: int, type_id: int, side: str) -> None:
        """Pad rows in place to the longest one or to `max_length`."""
        if self.padding is None:
            return
        length = max(map(len, rows), default=0) if self.padding == "longest" else self.max_length or 0
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        for row in rows:
            row.pad(length, direction=side, pad_id=token_id, pad_type_id=type_id, pad_token=token)


def resolve_lengths(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    pad_to_multiple_of: int | None,
    model_max_length: int,
) -> Lengths:
    """Resolve the arguments of a call.

    `max_length` without `padding` and `truncation` truncates, and its default is the model's length. If the model has
    no length either, padding and truncation to `max_length` have no effect. Source:
    `_get_padding_truncation_strategies` of transformers.

    Raises:
        InputError: an unknown strategy or an invalid length.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = True
    pad = _check_choice("padding", "longest" if padding is True else padding or "do_not_pad", _PADDINGS)
    cut = _check_choice(
        "truncation", "longest_first" if truncation is True else truncation or "do_not_truncate", _TRUNCATIONS
    )
    pads, cuts = pad != "do_not_pad", cut != "do_not_truncate"
    if pad == "longest" and max_length is not None and not cuts:
        logger.warning("max_length is ignored when padding to the longest row without truncation")
    max_length = _check_length("max_length", max_length)
    stride = _check_length("stride", stride) or 0
    pad_to_multiple_of = _check_length("pad_to_multiple_of", pad_to_multiple_of)
    if max_length is not None and max_length >= UNLIMITED_TOKENS:
        if pad == "max_length":
            raise InputError(f"max_length={max_length} is too long to pad to. Use less than {UNLIMITED_TOKENS}.")
        max_length, cuts = None, False
        pads = pad == "longest"
    if max_length is None and (cuts or pad == "max_length"):
        if model_max_length >= NO_LENGTH:
            cuts, pads = False, pads and pad != "max_length"
        else:
            max_length = model_max_length
    if pads and cuts and pad_to_multiple_of and max_length is not None and max_length % pad_to_multiple_of:
        raise InputError(
            f"max_length={max_length} is not a multiple of pad_to_multiple_of={pad_to_multiple_of}. "
            "Use a multiple, so that truncated rows can be padded."
        )
    return Lengths(pad if pads else None, cut if cuts else None, max_length, stride, pad_to_multiple_of)


def _check_length(name: str, value: Any) -> int | None:
    """Return a number of tokens, which may be an integer of NumPy, as an int; None stays None."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InputError(f"{name}={value!r} is not an integer. Pass a number of tokens.")
    if number < 0:
        raise InputError(f"{name}={value} is negative. Use 0 or more.")
    return number


def check_side(name: str, side: str) -> str:
    """Return `side` if it is 'left' or 'right'; raise InputError otherwise."""
    return _check_choice(name, side, ("left", "right"))


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name}={value!r} is unknown. Use one of {', '.join(map(repr, allowed))}.")
    return value

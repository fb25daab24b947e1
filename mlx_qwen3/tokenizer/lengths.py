"""What `padding`, `truncation` and `max_length` of a call mean, by the reference's rules, and the padding
itself.
"""

import logging
from dataclasses import dataclass

import tokenizers
from tokenizers import Encoding

from ..errors import InputError

logger = logging.getLogger(__name__)

NO_LENGTH = int(1e30)
"""`model_max_length` of a tokenizer whose configuration names none, as in the reference."""

MOST_TOKENS = 2**31
"""A length from here on, such as the reference's `model_max_length` of 1e30, limits nothing."""

_PADDINGS = ("longest", "max_length", "do_not_pad")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass(frozen=True)
class Lengths:
    """The lengths that a call asks for: `padding` 'longest', 'max_length' or None; `truncation` a strategy
    or None.
    """

    padding: str | None
    truncation: str | None
    max_length: int | None
    stride: int
    pad_to_multiple_of: int | None

    def truncate(self, backend: tokenizers.Tokenizer, special: int, pair: bool, side: str) -> None:
        """Set the backend to truncate rows of `special` special tokens.

        Raises InputError when no text can fit, or nothing is left to move on by.
        """
        if self.truncation is None or self.max_length is None:
            return
        room = self.max_length - special
        if room < 0:
            raise InputError(f"max_length={self.max_length} leaves no room beside {special} special tokens")
        if self.stride and self.stride >= room:
            raise InputError(f"stride={self.stride} must be less than the {room} text tokens that max_length leaves")
        if self.truncation == "only_second" and not pair:
            raise InputError("truncation='only_second' needs text_pair")
        backend.enable_truncation(self.max_length, stride=self.stride, strategy=self.truncation, direction=side)

    def pad(self, rows: list[Encoding], token: str, token_id: int, type_id: int, side: str) -> None:
        """Pad rows in place, to the longest of them or to `max_length`."""
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
    """Return the meaning of a call's arguments: `max_length` alone truncates, and defaults to the model's length.

    Without any length, padding and truncation to it do nothing, as in the reference's
    `_get_padding_truncation_strategies`. Raises InputError for an unknown strategy or a length that cannot
    be.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = True
    pad = _choice("padding", "longest" if padding is True else padding or "do_not_pad", _PADDINGS)
    cut = _choice(
        "truncation", "longest_first" if truncation is True else truncation or "do_not_truncate", _TRUNCATIONS
    )
    pads, cuts = pad != "do_not_pad", cut != "do_not_truncate"
    if pad == "longest" and max_length is not None and not cuts:
        logger.warning("max_length is ignored when padding to the longest row without truncation")
    for name, value in (
        ("max_length", max_length),
        ("stride", stride),
        ("pad_to_multiple_of", pad_to_multiple_of),
    ):
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{name}={value!r} is not a whole number")
        if value < 0:
            raise InputError(f"{name}={value} is negative")
    if max_length is not None and max_length >= MOST_TOKENS:
        if pad == "max_length":
            raise InputError(f"max_length={max_length} is too long to pad to. Give less than {MOST_TOKENS}")
        max_length, cuts = None, False
        pads = pad == "longest"
    if max_length is None and (cuts or pad == "max_length"):
        if model_max_length >= NO_LENGTH:
            cuts, pads = False, pads and pad != "max_length"
        else:
            max_length = model_max_length
    if pads and cuts and pad_to_multiple_of and max_length is not None and max_length % pad_to_multiple_of:
        raise InputError(
            f"max_length={max_length} is not a multiple of pad_to_multiple_of={pad_to_multiple_of}, "
            "so a truncated row could not be padded"
        )
    return Lengths(pad if pads else None, cut if cuts else None, max_length, stride, pad_to_multiple_of)


def check_side(name: str, side: str) -> str:
    """`side`, 'left' or 'right'; raises InputError for anything else."""
    return _choice(name, side, ("left", "right"))


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name}={value!r} is unknown; use one of {', '.join(map(repr, allowed))}")
    return value

"""Gather the RoPE settings from every spelling that config.json has had.

Older files have `rope_theta` and `rope_scaling`, newer ones a single mapping `rope_parameters`.
Source: transformers 5.23 `modeling_rope_utils.py` (standardize and validate).
"""

import logging
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .fields import positive_number, shown

logger = logging.getLogger(__name__)

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
DEFAULT_THETA = 10000.0

_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_HAS_ORIGINAL_LENGTH = ("yarn", "longrope", "llama3")


def gather_rope_settings(rest: dict[str, Any], max_position_embeddings: int, head_dim: int) -> dict[str, Any]:
    """Return a mapping with `rope_type`, `rope_theta` and the other settings of the type.

    A non-empty `rope_scaling` replaces `rope_parameters`. `rope_theta` inside the mapping takes precedence over the
    separate field.

    Args:
        rest: fields of config.json. `rope_parameters`, `rope_scaling` and `rope_theta` are removed from it.
        max_position_embeddings: default for `original_max_position_embeddings`.
        head_dim: size of an attention head.

    Raises:
        ConfigError: the type is unknown, or a key is missing or invalid.
    """
    parameters, scaling = rest.pop("rope_parameters", None), rest.pop("rope_scaling", None)
    theta = rest.pop("rope_theta", None)
    source, name = (scaling, "rope_scaling") if scaling else (parameters, "rope_parameters")
    if source is not None and not isinstance(source, dict):
        raise ConfigError(f"config field {name!r} is {shown(source)}, expected a mapping or null.")
    settings = dict(source or {})
    for key, value in settings.items():
        if isinstance(value, dict):
            raise ConfigError(
                f"config field '{name}.{key}' is {shown(value)}, expected one set of settings for all layers."
            )
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ConfigError(f"config field '{name}.rope_type' is {shown(kind)}, expected one of {', '.join(ROPE_TYPES)}.")
    if kind == "default" and settings.get("factor") not in (None, 1, 1.0):
        logger.warning(
            "config field '%s' has factor %s but no rope_type that uses it, so positions are not scaled",
            name,
            settings["factor"],
        )
    settings["rope_type"] = kind
    if settings.get("rope_theta") is None:
        settings["rope_theta"] = DEFAULT_THETA if theta is None else theta
    if kind in _HAS_ORIGINAL_LENGTH and settings.get("original_max_position_embeddings") is None:
        settings["original_max_position_embeddings"] = max_position_embeddings
    _check(settings, name, head_dim)
    return settings


def _check(settings: dict[str, Any], name: str, head_dim: int) -> None:
    def refuse(key: str, expected: str) -> None:
        raise ConfigError(f"config field '{name}.{key}' is {shown(settings.get(key))}, expected {expected}.")

    kind = settings["rope_type"]
    for key in _REQUIRED[kind]:
        if key not in settings:
            raise ConfigError(f"config field '{name}' has rope_type {kind!r} but no {key!r}. Add it.")

    def number(key: str, good: Callable[[Any], bool], expected: str, *, may_be_null: bool = True) -> None:
        value = settings.get(key)
        if value is None and may_be_null:
            return
        if positive_number(value) is not None or not good(value):
            refuse(key, expected)

    if kind == "dynamic" and head_dim == 2:
        raise ConfigError(
            "config field 'head_dim' is 2, which rope_type 'dynamic' does not support. Expected at least 4."
        )
    number("rope_theta", lambda v: v > 0, "a number above 0", may_be_null=False)
    number("original_max_position_embeddings", lambda v: v > 0, "a whole number above 0")
    if kind in ("linear", "dynamic", "llama3"):
        number("factor", lambda v: v >= 1, "a number of at least 1", may_be_null=False)
    number("factor", lambda v: v > 0, "a number above 0")
    number("attention_factor", lambda v: v > 0, "a number above 0")
    for key in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"):
        number(key, lambda v: v > 0, "a number above 0", may_be_null=key not in _REQUIRED[kind])
    if kind == "llama3" and settings["high_freq_factor"] <= settings["low_freq_factor"]:
        refuse("high_freq_factor", "a number above low_freq_factor")
    for key in ("short_factor", "long_factor") if kind == "longrope" else ():
        value = settings[key]
        if not isinstance(value, list | tuple) or not all(positive_number(v) is None for v in value):
            refuse(key, "a list of numbers above 0")
        if len(value) != head_dim // 2:
            raise ConfigError(f"config field '{name}.{key}' has {len(value)} numbers, expected {head_dim // 2}.")
    if settings.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        refuse("partial_rotary_factor", "1, because Qwen3 rotates the whole head")

"""`Qwen3Config`: the fields of a Qwen3 config.json, their defaults, and how some are derived from others.

Source: transformers 5.23 `models/qwen3/configuration_qwen3.py` and the published class page.
"""

from typing import Any, ClassVar

from ..errors import ConfigError
from .fields import (
    Field,
    anything,
    boolean,
    layer_count,
    natural_int,
    natural_number,
    optional,
    positive_int,
    positive_number,
    probability,
    shown,
    token_id,
    token_ids,
)
from .pretrained import PretrainedConfig
from .rope_settings import gather_rope_settings


def _as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


FULL, SLIDING = "full_attention", "sliding_attention"


class Qwen3Config(PretrainedConfig):
    """The configuration of a Qwen3 model. The defaults are similar to Qwen3-8B.

    Some fields are derived from others:

    - `num_key_value_heads`: null means `num_attention_heads`; a missing field means 32.
    - `sliding_window`: null unless `use_sliding_window` is true.
    - `layer_types`: by default, layers from `max_window_layers` on use sliding window attention if there is a window.
    - `rope_parameters`: holds the RoPE settings of every spelling. `rope_theta` and `rope_scaling` read from it.

    >>> Qwen3Config(num_hidden_layers=2).layer_types
    ['full_attention', 'full_attention']
    """

    model_type: ClassVar[str] = "qwen3"
    accepted_model_types: ClassVar[tuple[str, ...]] = ("qwen3",)
    fields: ClassVar[dict[str, Field]] = {
        "vocab_size": Field(151936, positive_int),
        "hidden_size": Field(4096, positive_int),
        "intermediate_size": Field(22016, positive_int),
        "num_hidden_layers": Field(32, layer_count),
        "num_attention_heads": Field(32, positive_int),
        "num_key_value_heads": Field(32, optional(positive_int)),
        "head_dim": Field(128, positive_int),
        "hidden_act": Field("silu", anything),
        "max_position_embeddings": Field(32768, positive_int),
        "initializer_range": Field(0.02, natural_number),
        "rms_norm_eps": Field(1e-6, positive_number),
        "use_cache": Field(True, boolean),
        "tie_word_embeddings": Field(False, boolean),
        "attention_bias": Field(False, boolean),
        "is_causal": Field(True, boolean),
        "use_sliding_window": Field(False, boolean),
        "sliding_window": Field(4096, optional(positive_int)),
        "max_window_layers": Field(28, natural_int),
        "layer_types": Field(None, anything),
        "attention_dropout": Field(0.0, probability),
        "pad_token_id": Field(None, optional(token_id)),
        "bos_token_id": Field(None, optional(token_ids)),
    }

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: Any
    max_position_embeddings: int
    initializer_range: float
    rms_norm_eps: float
    use_cache: bool
    tie_word_embeddings: bool
    attention_bias: bool
    is_causal: bool
    use_sliding_window: bool
    sliding_window: int | None
    max_window_layers: int
    layer_types: list[str]
    attention_dropout: float
    pad_token_id: int | None
    bos_token_id: int | list[int] | None
    eos_token_id: int | list[int] | None
    rope_parameters: dict[str, Any]

    def __init__(self, vocab_size: int = 151936, **fields: Any):
        super().__init__(vocab_size=vocab_size, **fields)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> "Qwen3Config":
        """Return the configuration in `values`. A RoPE setting in `overrides` replaces those of the file."""
        if "rope_parameters" in overrides or "rope_scaling" in overrides:
            drop = ("rope_parameters", "rope_scaling", "rope_theta")
            theta = values.get("rope_theta") or _as_mapping(values.get("rope_parameters")).get("rope_theta")
            values = {k: v for k, v in values.items() if k not in drop}
            if "rope_scaling" in overrides and theta is not None:
                overrides.setdefault("rope_theta", theta)  # only the scaling is replaced
        elif "rope_theta" in overrides:
            values = {
                k: {**v, "rope_theta": overrides["rope_theta"]} if k.startswith("rope_") and isinstance(v, dict) else v
                for k, v in values.items()
            }
        layer_types = overrides.get("layer_types") or values.get("layer_types")
        if (
            overrides.get("sliding_window") is not None
            and isinstance(layer_types, list | tuple)
            and SLIDING in layer_types
        ):
            overrides.setdefault("use_sliding_window", True)  # otherwise the given window would be ignored
        return super().from_dict(values, **overrides)

    def _derive(self, rest: dict[str, Any]) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            self.layer_types = [
                SLIDING if self.sliding_window is not None and i >= self.max_window_layers else FULL
                for i in range(self.num_hidden_layers)
            ]
        if self.head_dim % 2:
            raise ConfigError(f"config field 'head_dim' is {self.head_dim}, expected an even number.")
        self._check_layer_types()
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"config field 'pad_token_id' is {self.pad_token_id}, outside the vocabulary of {self.vocab_size}."
            )
        if callable(self.hidden_act) is False and not isinstance(self.hidden_act, str):
            raise ConfigError(f"config field 'hidden_act' is {shown(self.hidden_act)}, expected a name or a function.")
        self.rope_parameters = gather_rope_settings(rest, self.max_position_embeddings, self.head_dim)

    def _check_layer_types(self) -> None:
        names = self.layer_types
        if not isinstance(names, list | tuple) or any(name not in (FULL, SLIDING) for name in names):
            raise ConfigError(
                f"config field 'layer_types' is {shown(self.layer_types)}, expected a list of {FULL}, {SLIDING}."
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"config field 'layer_types' names {len(self.layer_types)} layers, "
                f"'num_hidden_layers' is {self.num_hidden_layers}."
            )
        self.layer_types = list(self.layer_types)

    def check_model(self) -> None:
        """Raise `ConfigError` if no model can be created from the configuration."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config field 'num_key_value_heads' is {self.num_key_value_heads}, "
                f"which does not divide 'num_attention_heads' {self.num_attention_heads}."
            )
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise ConfigError(
                f"config field 'layer_types' holds {SLIDING!r} but 'sliding_window' is null. "
                "Set sliding_window and use_sliding_window."
            )
        self._check_layer_types()

    @property
    def rope_theta(self) -> float:
        """The base of the RoPE frequencies."""
        return self.rope_parameters["rope_theta"]

    @rope_theta.setter
    def rope_theta(self, value: float) -> None:
        self.rope_parameters = {**self.rope_parameters, "rope_theta": value}

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The RoPE settings, or None if `rope_type` is "default"."""
        return None if self.rope_parameters["rope_type"] == "default" else self.rope_parameters

    @rope_scaling.setter
    def rope_scaling(self, value: dict[str, Any] | None) -> None:
        rest = {"rope_scaling": value, "rope_theta": self.rope_theta}
        self.rope_parameters = gather_rope_settings(rest, self.max_position_embeddings, self.head_dim)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values for JSON. RoPE settings are also written in the older spelling for mlx-lm."""
        values = super().to_dict()
        scaling = {k: v for k, v in self.rope_parameters.items() if k != "rope_theta"}
        if self.is_causal:
            del values["is_causal"]  # transformers has no such field, so only encoders write it
        values["rope_theta"] = self.rope_theta
        values["rope_scaling"] = None if self.rope_scaling is None else scaling
        return values

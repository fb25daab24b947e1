"""Detect configurations for which stock mlx-lm silently computes wrong outputs, and make it refuse them.

The Qwen3 of mlx-lm supports causal attention with SiLU and ignores other settings. A checkpoint with such a setting
gets a `model_file` in config.json that names a missing file, so mlx-lm refuses to load it. This package accepts that
value.
Source: mlx-lm 0.32.2 `models/qwen3.py`, `models/rope_utils.py`, `utils.load_model`.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError

MODEL_FILE = "load_with_mlx_qwen3_not_with_mlx_lm.py"
"""The only value of `model_file` that this package writes and accepts. No such file exists."""


def silently_different(config: Mapping[str, Any]) -> list[str]:
    """Return the settings of a Qwen3 config.json that stock mlx-lm ignores or computes differently.

    Settings for which mlx-lm raises an error (biases, heads other than causal) are not included.
    """
    if config.get("model_type", "qwen3") != "qwen3":
        return []
    reasons = []
    layer_types = config.get("layer_types")
    slides = config.get("use_sliding_window") and config.get("sliding_window") and not layer_types
    late_enough = config.get("max_window_layers", 28) < config.get("num_hidden_layers", 32)
    if "sliding_attention" in (layer_types or ()) or (slides and late_enough):
        reasons.append("sliding window attention")
    if config.get("is_causal") is False:
        reasons.append("attention in both directions")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        reasons.append(f"the activation {activation}")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    reasons.extend(_find_rope_differences(rope))
    return reasons


def _find_rope_differences(rope: Mapping[str, Any]) -> list[str]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "longrope":
        return ["longrope positions"]
    if rope.get("type", kind) != kind:
        return [f"rotary positions named both {kind} and {rope['type']}"]
    if kind != "yarn":
        return []
    reasons = []
    if rope.get("attention_factor") is not None:
        reasons.append("YaRN's attention_factor")
    if rope.get("truncate") is False:
        reasons.append("YaRN without truncation")
    if bool(rope.get("mscale")) != bool(rope.get("mscale_all_dim")):
        reasons.append("YaRN with only one of mscale and mscale_all_dim")
    if rope.get("original_max_position_embeddings") is None:
        reasons.append("YaRN without original_max_position_embeddings")
    return reasons


def check_model_file(config: Mapping[str, Any], source: str) -> None:
    """Raise `CheckpointError` if config.json names a file with code, unless it is `MODEL_FILE`."""
    value = config.get("model_file")
    if value is not None and value != MODEL_FILE:
        raise CheckpointError(
            f"{source}: model_file in config.json is {value!r}, and code from checkpoints is never run. "
            "Remove model_file if the weights are a plain Qwen3 model."
        )

"""Reference implementations of the kernels in NumPy and float64, independent of this package's layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Apply RoPE to x (..., L, D) at positions (L,) or (..., L)."""
    half = x.shape[-1] // 2
    angles = positions[..., None] / theta ** (np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    """Divide x by its root mean square along the last axis, and multiply by `weight`."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Normalize x to mean 0 and variance 1 along the last axis, multiply by `weight` and add `bias`."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + eps) * weight + bias


def attention(queries: Array, keys: Array, values: Array, scale: float, allowed: Array) -> Array:
    """Return softmax(q·kᵀ·scale)·v (B, H, L, D) over the allowed keys. Query head h uses key head h // (H/K)."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, groups, axis=1), np.repeat(values, groups, axis=1)
    scores = np.where(allowed, queries @ keys.swapaxes(-1, -2) * scale, -1e300)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ values


def allowed_keys(length: int, past: int, window: int | None = None, hidden: int = 0) -> Array:
    """Return a boolean mask (L, past + L), true for the keys that each query attends to.

    The mask is causal, limited to `window` keys if given, and excludes the first `hidden` keys. A query without any
    key attends to itself.
    """
    queries, keys = np.arange(past, past + length)[:, None], np.arange(past + length)[None]
    visible = (keys <= queries) & (keys >= hidden)
    if window is not None:
        visible &= keys > queries - window
    return visible | (~visible.any(axis=-1, keepdims=True) & (keys == queries))


def decoder_logits(weights: Mapping[str, Array], config: Any, ids: Array, window: int | None = None) -> Array:
    """Return the logits (L, V) of a Qwen3 causal model for ids (L,).

    Args:
        weights: parameters by their Hugging Face names.
        config: a `Qwen3Config`.
        window: sliding window of all layers; None for full attention.
    """
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    theta, eps = float(config.rope_parameters["rope_theta"]), config.rms_norm_eps
    positions = np.arange(len(ids))
    allowed = allowed_keys(len(ids), 0, window)
    x = weights["model.embed_tokens.weight"][ids]
    for index in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"model.layers.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{index}.")
        }
        normalized = rms_norm(x, layer["input_layernorm.weight"], eps)
        q, k, v = (
            (normalized @ layer[f"self_attn.{name}_proj.weight"].T).reshape(len(ids), count, size).swapaxes(0, 1)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q = rotate(rms_norm(q, layer["self_attn.q_norm.weight"], eps), positions, theta)
        k = rotate(rms_norm(k, layer["self_attn.k_norm.weight"], eps), positions, theta)
        mixed = attention(q[None], k[None], v[None], size**-0.5, allowed)[0].swapaxes(0, 1).reshape(len(ids), -1)
        x = x + mixed @ layer["self_attn.o_proj.weight"].T
        normalized = rms_norm(x, layer["post_attention_layernorm.weight"], eps)
        gate = normalized @ layer["mlp.gate_proj.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (normalized @ layer["mlp.up_proj.weight"].T))
            @ layer["mlp.down_proj.weight"].T
        )
    return rms_norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T


def next_token_loss(logits: Array, ids: Array) -> float:
    """Return the mean cross entropy of logits (L, V) as predictions of the next token of ids (L,)."""
    scores = logits[:-1]
    highest = scores.max(axis=-1)
    log_sum = np.log(np.exp(scores - highest[:, None]).sum(axis=-1)) + highest
    return float((log_sum - scores[np.arange(len(scores)), ids[1:]]).mean())


def fake_quantize(x: Array, amax: Array, low: float, high: float) -> Array:
    """Round float32 x to multiples of amax/high (half to even), clipped to `low`…`high` steps."""
    scale = (np.float32(high) / amax.astype(np.float32)).astype(np.float32)
    return (np.clip(np.rint(x * scale), low, high) / scale).astype(np.float32)

"""Small random QDQBert models: a millisecond per call on a CPU."""

from typing import Any

import mlx.core as mx

import mlx_qwen3

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def model(name: str = "QDQBertModel", seed: int = 0, **fields: Any) -> Any:
    """Return a tiny model of any QDQBert class, in evaluation mode."""
    mx.random.seed(seed)
    made = getattr(mlx_qwen3, name)(mlx_qwen3.QDQBertConfig(**{**SHAPE, **fields}))
    made.eval()
    mx.eval(made.parameters())
    return made


def ids(batch: int = 3, length: int = 7, seed: int = 1) -> mx.array:
    """Return random token ids (B, L)."""
    return mx.random.randint(1, SHAPE["vocab_size"], (batch, length), key=mx.random.key(seed))


def calibrated(name: str = "QDQBertModel", seed: int = 0, **fields: Any) -> Any:
    """Return a tiny model that is calibrated on three batches."""
    made = model(name, seed, **fields)
    mlx_qwen3.calibrate(made, [{"input_ids": ids(seed=s)} for s in range(3)])
    return made

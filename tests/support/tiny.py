"""Small random Qwen3 models: a millisecond per call on a CPU."""

from typing import Any

import mlx.core as mx

import mlx_qwen3

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def config(**fields: Any) -> mlx_qwen3.Qwen3Config:
    """Return a tiny configuration; fields change it."""
    return mlx_qwen3.Qwen3Config(**{**SHAPE, **fields})


def model(name: str = "Qwen3ForCausalLM", seed: int = 0, **fields: Any) -> Any:
    """Return a tiny model of any Qwen3 class, in evaluation mode."""
    mx.random.seed(seed)
    made = getattr(mlx_qwen3, name)(config(**fields))
    made.eval()
    mx.eval(made.parameters())
    return made


def ids(batch: int = 2, length: int = 7, seed: int = 1, vocab: int = 61) -> mx.array:
    """Return random token ids (B, L)."""
    return mx.random.randint(1, vocab, (batch, length), key=mx.random.key(seed))

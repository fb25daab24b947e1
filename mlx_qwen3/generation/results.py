"""Results of generation: the reference's batch output, and streamed responses with mlx_lm's field names."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..outputs import ModelOutput


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """Result of `model.generate(…, return_dict_in_generate=True)`. Tuples have one entry per new token.

    Attributes:
        sequences: (B, S) ids of the prompt and the new tokens.
        scores: float32 scores (B, V) after the logits processors and the sampling settings.
        logits: float32 scores (B, V) before them.
        attentions: attention weights per layer.
        hidden_states: hidden states per layer; num_layers + 1 entries, of which the last is after the final norm.
        past_key_values: the cache, if one was used.
    """

    sequences: mx.array | None = None
    scores: tuple[mx.array, ...] | None = None
    logits: tuple[mx.array, ...] | None = None
    attentions: tuple[tuple[mx.array, ...], ...] | None = None
    hidden_states: tuple[tuple[mx.array, ...], ...] | None = None
    past_key_values: Any = None


@dataclass(frozen=True)
class GenerationResponse:
    """One token of a streamed answer.

    Attributes:
        text: the new text; empty while a character or a possible stop string is incomplete.
        token: the token id; the last one may be an ending token.
        from_draft: whether the token was drafted, or forced by a constraint.
        prompt_tokens: prompt tokens processed by this call, without those in the cache.
        prompt_tps: prompt tokens per second until the first new token.
        generation_tokens: new tokens so far.
        generation_tps: new tokens per second since the first.
        peak_memory: peak memory of MLX in GB (1e9 bytes).
        finish_reason: None until the last response, then "stop" or "length".
        logprobs: log-probabilities (V,) of the position, if requested.
    """

    text: str
    token: int
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None
    logprobs: mx.array | None = None

"""What generation returns: the batch form of the reference, and the streamed form with mlx_lm's field names."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..outputs import ModelOutput


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """What `model.generate(…, return_dict_in_generate=True)` gives; tuples have one entry per new token.

    `sequences` (B, S); `scores` after and `logits` before processing, (B, V) each, in float32.
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

    text: what can be shown now; may be empty while a character or a stop string is not complete.
    token: the id, the ending one included.
    from_draft: whether a draft proposed it.
    prompt_tokens: tokens of the prompt that were computed now; prompt_tps: tokens per second until the first new one.
    generation_tokens: tokens so far; generation_tps: tokens per second since the first.
    peak_memory: GB that MLX has used at most (1e9 bytes).
    finish_reason: None until the last response, then "stop" or "length".
    logprobs: (V,) log-probabilities of the position, when they were asked for.
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

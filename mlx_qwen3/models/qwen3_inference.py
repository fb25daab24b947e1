"""Qwen3 for the decode loop: the causal model's two steps, over the fused decoder."""

from typing import Any

import mlx.core as mx

from ..backbones.qwen3_fused import FusedDecoder


class FusedQwen3:
    """What generation asks of a model, by the fast way. It holds for one generation: weights that change afterwards
    do not reach it.
    """

    def __init__(self, model: Any, decoder: FusedDecoder):
        self.config = model.config
        self._embed = model.backbone.embed_tokens
        self._decoder = decoder
        self._logits = model.logits

    def for_inference(self) -> "FusedQwen3":
        """Itself."""
        return self

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Logits (B, keep, V) of the newest positions of ids (B, L), whose keys and values go into the cache."""
        newest = self._decoder(self._embed(ids), cache, attention_mask, position_ids, keep)
        rows = newest.reshape(-1, newest.shape[-1])  # as in the decoder: weights are read once for all of them
        return self._logits(rows).reshape(*newest.shape[:2], -1)

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Puts the keys and values of ids (B, L) into the cache, lazily; no logits are computed."""
        self._decoder(self._embed(ids), cache)

"""The Qwen3 classes: the decoder, and the decoder under each head."""

import logging
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ..backbones.qwen3 import Qwen3Decoder
from ..backbones.qwen3_fused import FusedDecoder, can_fuse
from ..checkpoint import Checkpoint
from ..config.qwen3 import Qwen3Config
from ..errors import InputError
from ..generation.mixin import DecoderGenerationMixin
from ..heads import CausalLM, QuestionAnswering, SequenceClassification, TokenClassification
from ..heads.backbone import OnBackbone
from .pretrained import PreTrainedModel, initialise
from .qwen3_inference import FusedQwen3

logger = logging.getLogger(__name__)


class Qwen3PreTrainedModel(PreTrainedModel):
    """What all Qwen3 classes share: their configuration, their first weights and their embedding."""

    config_class = Qwen3Config

    def __init__(self, config: Qwen3Config):
        super().__init__(config)  # type: ignore[call-arg]  # nn.Module's stub hides the next class in line
        initialise(self, config.initializer_range, config.pad_token_id)

    @property
    def _decoder(self) -> Any:
        return self.backbone if isinstance(self, OnBackbone) else self

    def get_input_embeddings(self) -> nn.Module:
        """The layer that turns token ids into vectors."""
        return self._decoder.embed_tokens

    def set_input_embeddings(self, layer: nn.Module) -> None:
        """Puts another layer in its place; a tied output head follows."""
        self._decoder.embed_tokens = layer

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Module:
        """Cuts or grows the vocabulary, the output head included; new rows start as fresh weights do.

        Returns:
            The embedding layer.
        """
        if not isinstance(new_num_tokens, int) or new_num_tokens < 1:
            raise InputError(f"new_num_tokens is {new_num_tokens!r}, expected a whole number above 0")
        layers = [self._decoder.embed_tokens, *([self["lm_head"]] if "lm_head" in self else [])]
        for layer in layers:
            if not isinstance(layer, nn.Embedding | nn.Linear):
                raise InputError("a quantized vocabulary cannot be resized: resize before converting")
            missing = new_num_tokens - layer.weight.shape[0]
            weight = layer.weight[:new_num_tokens]
            if missing > 0:
                rows = mx.random.normal((missing, weight.shape[1])) * self.config.initializer_range
                weight = mx.concatenate([weight, rows.astype(weight.dtype)])
            layer.weight = weight
        self.config.vocab_size = new_num_tokens
        return self.get_input_embeddings()

    def make_cache(self, **options: Any) -> Any:
        """An empty cache for this model; options as in `mlx_qwen3.cache.make_cache`."""
        return Qwen3Decoder.make_cache(self._decoder, **options)

    def _tie(self, by_name: dict[str, str], checkpoint: Checkpoint, source: str) -> None:
        if not self.config.tie_word_embeddings or "lm_head.weight" not in by_name:
            return
        embedding = f"{self.backbone_prefix()}embed_tokens.weight"
        if embedding not in by_name:
            by_name[embedding] = by_name.pop("lm_head.weight")
            return
        if not isinstance(self, CausalLM) or "lm_head.scales" in by_name:
            return
        rows, head = checkpoint.read(by_name[embedding]), checkpoint.read(by_name["lm_head.weight"])
        if rows.shape != head.shape or not mx.array_equal(rows, head).item():
            # transformers 5 keeps both when a file says "tied" and holds two different matrices
            logger.warning("%s: embedding and output head differ though the config ties them; both are kept", source)
            self.config.tie_word_embeddings = False
            self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)


class Qwen3Model(Qwen3PreTrainedModel, Qwen3Decoder):
    """The bare decoder: token ids → hidden states."""


class Qwen3ForCausalLM(DecoderGenerationMixin, Qwen3PreTrainedModel, CausalLM):
    """Qwen3 that predicts the next token."""

    backbone_class: ClassVar[Any] = Qwen3Model
    _fused: FusedDecoder | None = None

    def for_inference(self) -> Any:
        """This model for one generation: over joined matrices where all its layers are plain ones, else itself.

        The parameters become views of the joined matrices; call it again after weights or layers have changed.
        """
        if self.training:
            return self
        if self._fused is None or not self._fused.is_current(self.backbone):
            self._fused = FusedDecoder(self.backbone) if can_fuse(self.backbone) else None
        return self if self._fused is None else FusedQwen3(self, self._fused)

    def train(self, mode: bool = True) -> Self:
        """Sets training mode and lets the joined matrices go."""
        if mode:
            self._fused = None
        super().train(mode)
        return self

    def update(self, parameters: Any, strict: bool = True) -> Self:
        """Replaces parameters, as in `nn.Module`, and lets the joined matrices go."""
        self._fused = None
        super().update(parameters, strict)
        return self


class Qwen3ForSequenceClassification(Qwen3PreTrainedModel, SequenceClassification):
    """Qwen3 that labels a sequence by its last token."""

    backbone_class: ClassVar[Any] = Qwen3Model


class Qwen3ForTokenClassification(Qwen3PreTrainedModel, TokenClassification):
    """Qwen3 that labels every token."""

    backbone_class: ClassVar[Any] = Qwen3Model


class Qwen3ForQuestionAnswering(Qwen3PreTrainedModel, QuestionAnswering):
    """Qwen3 that marks the span of an answer."""

    backbone_class: ClassVar[Any] = Qwen3Model
    backbone_name = "transformer"

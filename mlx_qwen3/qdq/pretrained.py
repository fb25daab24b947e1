"""Base of all QDQBert classes: checkpoints with quantizer ranges, packing, and the vocabulary.

On disk the range of a quantizer is stored with its layer as `<quantizer>._amax`; in memory it is
state of the quantizer, which optimizers do not see. BERT checkpoints of any age load.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint import Checkpoint
from ..config.qdqbert import QDQBertConfig
from ..errors import CheckpointError, InputError
from ..models.content import PACKED_PARTS, Content, same_tensor, settle_tie
from ..models.initial_weights import init_weights
from ..models.pretrained import MAX_SHARD_BYTES, PreTrainedModel
from ..models.weight_names import BERT_WEIGHTS
from ..quantization.packing import unpack_quantized
from .calibration import named_quantizers, switch_quantizers
from .fake_quantizer import TensorQuantizer
from .linear import PackedLinear
from .packing import PackReport, pack_calibrated

logger = logging.getLogger(__name__)

AMAX = "._amax"


class QDQBertPreTrainedModel(PreTrainedModel):
    """Base of all QDQBert classes: configuration, quantizers, and checkpoints with ranges."""

    config_class = QDQBertConfig
    weight_rules = BERT_WEIGHTS

    base_model_prefix = "bert"

    def post_init(self) -> None:
        """Initialize the weights and name the quantizers; every class calls this at the end of its constructor."""
        config = self.config
        init_weights(self, config.initializer_range)
        words = self.base_model.embeddings.word_embeddings
        if config.pad_token_id is not None:
            row = mx.arange(config.vocab_size)[:, None] == config.pad_token_id % config.vocab_size
            words.weight = mx.where(row, 0.0, words.weight)
        for name, quantizer in self.named_quantizers():
            quantizer.name = name
        for pattern in config.disabled_quantizers or []:
            self.disable_quantizers(pattern)

    # quantizers

    def named_quantizers(self) -> list[tuple[str, TensorQuantizer]]:
        """Return every fake quantizer with its name on disk, in the order of the layers."""
        return named_quantizers(self)

    def disable_quantizers(self, pattern: str) -> list[str]:
        """Disable the quantizers whose name contains a match of the regular expression; return their names."""
        return switch_quantizers(self, pattern, enabled=False)

    def enable_quantizers(self, pattern: str) -> list[str]:
        """Enable the quantizers whose name contains a match of the regular expression; return their names."""
        return switch_quantizers(self, pattern, enabled=True)

    def pack(self, bits: int = 8) -> PackReport:
        """Store the weights of calibrated layers in `bits` bits, exactly as their fake quantizers round them.

        Raises:
            QuantizationError: a quantizer has no range yet, or `bits` is not 8, 6, 5 or 4.
        """
        return pack_calibrated(self, bits)

    def unpack(self) -> int:
        """Replace packed layers by plain ones, which a CPU multiplies faster; return their number."""
        count = unpack_quantized(self, self.dtype)
        if hasattr(self.config, "quantization"):
            del self.config.quantization
        return count

    # files

    @classmethod
    def _take_options(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        return {name: overrides.pop(name) for name in ("add_pooling_layer",) if name in overrides}

    def tie_from(self, checkpoint: Checkpoint, by_name: dict[str, str], left_out: list[str], source: str) -> bool:
        bias, alias = "cls.predictions.bias", "cls.predictions.decoder.bias"
        if bias in by_name and alias in by_name:
            if not same_tensor(checkpoint, by_name[bias], by_name[alias]):
                raise CheckpointError(
                    f"{source} holds the same weight twice: {by_name[bias]!r} and {by_name[alias]!r} differ. "
                    "Remove the one that is stale."
                )
            left_out.append(by_name.pop(alias))
        elif alias in by_name:
            by_name[bias] = by_name.pop(alias)
        words, decoder = f"{self.weight_prefix()}embeddings.word_embeddings", "cls.predictions.decoder"
        if not self.config.tie_word_embeddings:
            return False
        predicts = "predictions" in self.get("cls", {})
        if not predicts and f"{words}.weight" in by_name:
            return False  # the head of another class
        if settle_tie(checkpoint, by_name, words, decoder, left_out):
            logger.warning(
                "%s: embedding and decoder differ although the config ties them: the embedding is used. "
                "Pass tie_word_embeddings=False to keep both",
                source,
            )
            for part in PACKED_PARTS:
                if f"{decoder}.{part}" in by_name:
                    left_out.append(by_name.pop(f"{decoder}.{part}"))
        return False

    def check_state(self, content: Content, source: str) -> dict[str, TensorQuantizer]:
        """Return the quantizers by name; raise `CheckpointError` for a range that belongs to none of them."""
        quantizers = dict(self.named_quantizers())
        packed = {path for path, module in self.named_modules() if isinstance(module, PackedLinear)}
        for name, disk in content.state.items():
            path = name.removesuffix(AMAX)
            known = path in quantizers or path.rpartition(".")[0] in packed or self.weight_rules.is_ignored(name)
            if not known:
                raise CheckpointError(
                    f"{source}: range {disk!r} does not belong to a quantizer of {type(self).__name__}. Check the "
                    "config."
                )
        return quantizers

    def _load_state(self, checkpoint: Checkpoint, content: Content, source: str) -> None:
        quantizers = self.check_state(content, source)
        for name, disk in content.state.items():
            if name.removesuffix(AMAX) in quantizers:
                quantizers[name.removesuffix(AMAX)].amax = checkpoint.read(disk)
        missing = [name for name, quantizer in quantizers.items() if quantizer.amax is None and quantizer.enabled]
        if content.state and missing:
            logger.warning(
                "%s has no range for %s (and %d more): these quantizers use the range of each input",
                source,
                missing[0],
                len(missing) - 1,
            )
        packed = {path for path, module in self.named_modules() if isinstance(module, PackedLinear)}
        for path in packed:  # exact scales are float32 in every computing dtype
            layer = self._module(path)
            for part in ("scales", "biases"):
                disk = content.weights.get(f"{path}.{part}")
                if disk is not None and checkpoint.dtype(disk) == mx.float32:
                    setattr(layer, part, checkpoint.read(disk))

    def _module(self, path: str) -> nn.Module:
        return dict(self.named_modules())[path]

    def _to_disk(self) -> Iterator[tuple[str, mx.array]]:
        yield from super()._to_disk()
        for name, quantizer in self.named_quantizers():
            if quantizer.amax is not None:
                yield name + AMAX, quantizer.amax

    def save_pretrained(
        self, folder: str | Path, max_shard_size: int | str = MAX_SHARD_BYTES, *, merge: bool = False, **keywords: Any
    ) -> None:
        """Write config.json, the weights and the quantizers' ranges, and record which quantizers are disabled."""
        names = self.named_quantizers()
        off = [name.removeprefix(self.weight_prefix()) for name, quantizer in names if not quantizer.enabled]
        everything = bool(off) and len(off) == len(names)
        self.config.disabled_quantizers = [""] if everything else [f"{re.escape(name)}$" for name in off] or None
        self.config.dtype = str(self.dtype).rpartition(".")[2]  # conversion needs it to keep exact scales
        super().save_pretrained(folder, max_shard_size, merge=merge, **keywords)

    # common methods

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding layer."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, layer: nn.Module) -> None:
        """Replace the input embedding; a tied decoder follows."""
        self.base_model.embeddings.word_embeddings = layer

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Module:
        """Resize the vocabulary, decoder and bias included; new rows are initialized like new weights."""
        if not isinstance(new_num_tokens, int) or isinstance(new_num_tokens, bool) or new_num_tokens < 1:
            raise InputError(f"new_num_tokens is {new_num_tokens!r}, expected a whole number above 0.")
        words: Any = self.get_input_embeddings()
        if isinstance(words, nn.QuantizedEmbedding):
            raise InputError("a packed vocabulary cannot be resized. Resize before converting.")
        words.weight = self._resize(words.weight, new_num_tokens)
        if "predictions" in self.get("cls", {}):
            predictions = self["cls"].predictions
            missing = max(new_num_tokens - predictions.bias.size, 0)
            zeros = mx.zeros((missing,), predictions.bias.dtype)
            predictions.bias = mx.concatenate([predictions.bias[:new_num_tokens], zeros])
            if "decoder" in predictions:
                predictions.decoder.weight = self._resize(predictions.decoder.weight, new_num_tokens)
        self.config.vocab_size = new_num_tokens
        return words

    def _resize(self, weight: mx.array, rows: int) -> mx.array:
        missing = max(rows - weight.shape[0], 0)
        fresh = mx.random.normal((missing, weight.shape[1])) * self.config.initializer_range
        return mx.concatenate([weight[:rows], fresh.astype(weight.dtype)])

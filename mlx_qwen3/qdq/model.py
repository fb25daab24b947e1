"""QDQBert without a head: token ids → hidden states, with a fake quantizer at every matrix input and residual add.

Source: transformers 4.50 `models/deprecated/qdqbert/modeling_qdqbert.py`. Module names are the reference's,
so every weight and every quantizer has its name on disk.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..config.qdqbert import QDQBertConfig
from ..distributed import check_not_forked
from ..errors import ContextError, InputError
from ..layers.activations import activation
from ..layers.arguments import as_array, check_range
from ..layers.pipelining import Pipeline
from ..outputs import BaseModelOutputWithPoolingAndCrossAttentions
from .attention import KeysAndValues, QuantSelfAttention
from .fake_quantizer import QuantDescriptor, TensorQuantizer
from .linear import LayerDescriptors, QuantLinear
from .pretrained import QDQBertPreTrainedModel


class LayerCaches(tuple):
    """The cache: (keys, values) or (keys, values, cross keys, cross values) per layer, (B, H, S, D) each."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that the layer has seen."""
        return self[layer_idx][0].shape[2] if self else 0


class QDQBertEmbeddings(nn.Module):
    """Word, token type and (absolute) position embeddings, summed and normalized."""

    def __init__(self, config: QDQBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.absolute = config.position_embedding_type == "absolute"

    def __call__(self, inputs_embeds: mx.array, token_type_ids: mx.array, position_ids: mx.array) -> mx.array:
        x = inputs_embeds + self.token_type_embeddings(token_type_ids)
        if self.absolute:
            x = x + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


class QDQBertResidual(nn.Module):
    """A dense layer, then LayerNorm over its output plus the residual, both fake-quantized before the sum."""

    def __init__(self, config: QDQBertConfig, width: int):
        super().__init__()
        descriptors = descriptors_of(config)
        self.dense = QuantLinear(width, config.hidden_size, descriptors)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.add_local_input_quantizer = TensorQuantizer(descriptors.input)
        self.add_residual_input_quantizer = TensorQuantizer(descriptors.input)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        local = self.add_local_input_quantizer(self.dropout(self.dense(x)))
        return self.LayerNorm(local + self.add_residual_input_quantizer(residual))


class QDQBertAttention(nn.Module):
    """Attention and the residual around it."""

    def __init__(self, config: QDQBertConfig):
        super().__init__()
        # the attribute is named `self` as in the reference, and so on disk
        self.self = QuantSelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
            config.position_embedding_type,
            config.max_position_embeddings,
            descriptors_of(config),
        )
        self.output = QDQBertResidual(config, config.hidden_size)

    def __call__(self, x: mx.array, mask: mx.array | None, **options: Any):
        mixed, weights, cached = self.self(x, mask, **options)
        return self.output(mixed, x), weights, cached


class QDQBertIntermediate(nn.Module):
    """The wide half of the feed-forward block."""

    def __init__(self, config: QDQBertConfig):
        super().__init__()
        self.dense = QuantLinear(config.hidden_size, config.intermediate_size, descriptors_of(config))
        self.activation = activation(config.hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        return self.activation(self.dense(x))


class QDQBertLayer(nn.Module):
    """Self attention, cross attention if configured, and the feed-forward block."""

    def __init__(self, config: QDQBertConfig):
        super().__init__()
        self.attention = QDQBertAttention(config)
        if config.add_cross_attention:
            self.crossattention = QDQBertAttention(config)
        self.intermediate = QDQBertIntermediate(config)
        self.output = QDQBertResidual(config, config.intermediate_size)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None,
        encoder_hidden_states: mx.array | None,
        encoder_mask: mx.array | None,
        past: Sequence[mx.array] | None,
        **options: Any,
    ) -> tuple[mx.array, mx.array | None, mx.array | None, tuple[mx.array, ...]]:
        """Return the layer's output, its self and cross attention weights, and its cache."""
        own: KeysAndValues | None = None if past is None else (past[0], past[1])
        x, weights, cached = self.attention(x, mask, past=own, **options)
        if encoder_hidden_states is None:
            return self._feed_forward(x), weights, None, cached
        crossed = None if past is None or len(past) < 4 else (past[2], past[3])
        x, cross_weights, cross_cached = self.crossattention(
            x, encoder_mask, encoder_hidden_states=encoder_hidden_states, past=crossed, **options
        )
        return self._feed_forward(x), weights, cross_weights, (*cached, *cross_cached)

    def _feed_forward(self, x: mx.array) -> mx.array:
        return self.output(self.intermediate(x), x)


class QDQBertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: QDQBertConfig):
        super().__init__()
        self.layer = [QDQBertLayer(config) for _ in range(config.num_hidden_layers)]


class QDQBertPooler(nn.Module):
    """tanh of a dense layer over the first token's state; not quantized."""

    def __init__(self, config: QDQBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, hidden_states: mx.array) -> mx.array:
        return mx.tanh(self.dense(hidden_states[:, 0]))


class QDQBertModel(QDQBertPreTrainedModel):
    """The model without a head: embeddings, layers and (optionally) the pooler.

    Args:
        config: `is_decoder` makes attention causal, `add_cross_attention` adds cross attention.
        add_pooling_layer: whether `pooler_output` is computed.

    Raises:
        ConfigError: fields that contradict one another.
        QuantizationError: an invalid quantization descriptor.
    """

    base_model_prefix = ""
    causal: ClassVar[bool] = False
    """Padding must be masked; for a decoder the mask is redundant."""

    def __init__(self, config: QDQBertConfig, add_pooling_layer: bool = True):
        config.check_model()
        super().__init__(config)
        self.embeddings = QDQBertEmbeddings(config)
        self.encoder = QDQBertEncoder(config)
        if add_pooling_layer:
            self.pooler = QDQBertPooler(config)
        self.add_pooling_layer = add_pooling_layer
        self.post_init()

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Return the hidden states.

        Args:
            input_ids: (B, L) token ids; or `inputs_embeds` (B, L, M) instead.
            attention_mask: (B, past + L), 1 for real tokens; or (B, L, S), used unchanged, not causal.
            token_type_ids: (B, L); 0 by default.
            position_ids: (B, L) or (1, L); the past length onwards by default.
            head_mask: (H,) or (layers, H), 1 where a head is kept.
            encoder_hidden_states: (B, S, M), and `encoder_attention_mask` (B, S) or (B, L, S): the states that
                a decoder with cross attention attends to. An encoder ignores them, as in the reference.
            past_key_values: the cache of an earlier call, or tuples of 2 or 4 arrays per layer.
            use_cache: whether a decoder returns `past_key_values`.
            cache_position: accepted and ignored: the cache knows its length.

        Raises:
            InputError: conflicting arguments, where the message names the argument, or a forked process.
            ContextError: more tokens than `max_position_embeddings`.
        """
        if unknown:
            raise InputError(f"unknown argument: {next(iter(unknown))!r}. See help({QDQBertModel.__name__}.__call__).")
        check_not_forked()
        config: Any = self.config
        embeds = self._embed(as_array(input_ids, "input_ids"), as_array(inputs_embeds, "inputs_embeds"))
        batch, length, _ = embeds.shape
        past = self._check_past(past_key_values, batch)
        offset = 0 if past is None else past[0][0].shape[2]
        if offset + length > config.max_position_embeddings and (
            position_ids is None or config.position_embedding_type != "absolute"
        ):
            raise ContextError(
                f"{offset + length} tokens are more than config field 'max_position_embeddings' "
                f"{config.max_position_embeddings}. Shorten the text."
            )
        token_types = self._ids("token_type_ids", token_type_ids, batch, length, "type_vocab_size")
        if token_types is None:
            token_types = mx.zeros((1, length), dtype=mx.int32)
        positions = self._ids("position_ids", position_ids, batch, length, "max_position_embeddings")
        if positions is None:
            positions = mx.arange(offset, offset + length)[None]
        x = self.embeddings(embeds, token_types, positions)
        mask = self._self_mask(as_array(attention_mask, "attention_mask"), batch, length, offset, x.dtype)
        states = as_array(encoder_hidden_states, "encoder_hidden_states") if config.is_decoder else None
        encoder_mask = self._encoder_mask(states, as_array(encoder_attention_mask, "encoder_attention_mask"), x)
        head_masks = self._head_masks(as_array(head_mask, "head_mask"), x.dtype)
        want_attentions = config.output_attentions if output_attentions is None else output_attentions
        want_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        all_states, weights, cross_weights, caches = [x], [], [], []
        evaluate = Pipeline(batch * length, x.shape[-1], length, self.training)
        for i, layer in enumerate(self.encoder.layer):
            x, own, cross, cached = layer(
                x,
                mask,
                states,
                encoder_mask,
                None if past is None else past[i],
                head_mask=None if head_masks is None else head_masks[i],
                offset=offset,
                need_weights=want_attentions,
            )
            evaluate(x)
            if want_states:
                all_states.append(x)
            weights.append(own)
            cross_weights.append(cross)
            caches.append(cached)
        keep_cache = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.add_pooling_layer else None,
            past_key_values=LayerCaches(caches) if keep_cache else None,
            hidden_states=tuple(all_states) if want_states else None,
            attentions=tuple(weights) if want_attentions else None,
            cross_attentions=tuple(cross_weights) if want_attentions and states is not None else None,
        )
        if config.return_dict if return_dict is None else return_dict:
            return output
        # the reference's plain tuple has the cache before the hidden states, its output object after them
        order = ("last_hidden_state", "pooler_output", "past_key_values", *output)
        return tuple(output[name] for name in dict.fromkeys(order) if name in output)

    def _embed(self, ids: mx.array | None, embeds: mx.array | None) -> mx.array:
        if (ids is None) == (embeds is None):
            raise InputError("pass either input_ids or inputs_embeds, not both.")
        if ids is not None:
            if ids.ndim != 2 or not ids.size:
                raise InputError(f"input_ids has shape {tuple(ids.shape)}, expected (batch, length), not empty.")
            check_range(ids, 0, self.config.vocab_size, "input_ids", f"the vocabulary of {self.config.vocab_size}")
            return self.embeddings.word_embeddings(ids)
        assert embeds is not None
        if embeds.ndim != 3 or embeds.shape[-1] != self.config.hidden_size or not embeds.size:
            raise InputError(
                f"inputs_embeds has shape {tuple(embeds.shape)}, expected (batch, length, {self.config.hidden_size})."
            )
        return embeds

    def _ids(self, name: str, value: Any, batch: int, length: int, field: str) -> mx.array | None:
        ids, count = as_array(value, name), getattr(self.config, field)
        if ids is None:
            return None
        ids = ids[None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != length:
            raise InputError(f"{name} has shape {tuple(ids.shape)}, expected {(batch, length)}.")
        check_range(ids, 0, count, name, f"config field {field!r}, {count}")
        return ids

    def _check_past(self, past: Any, batch: int) -> Sequence[Sequence[mx.array]] | None:
        if past is None:
            return None
        if not self.config.is_decoder:
            raise InputError("past_key_values is given but config field 'is_decoder' is false. Set is_decoder=True.")
        layers = self.config.num_hidden_layers
        if not isinstance(past, Sequence) or len(past) != layers or any(len(entry) not in (2, 4) for entry in past):
            raise InputError(f"past_key_values is not a tuple of 2 or 4 arrays for each of the {layers} layers.")
        heads = self.config.num_attention_heads
        expected = (batch, heads, self.config.hidden_size // heads)
        for index, entry in enumerate(past):
            shapes: list[Any] = [tuple(getattr(array, "shape", ())) for array in entry]
            if any(len(shape) != 4 or (*shape[:2], shape[3]) != expected for shape in shapes):
                raise InputError(
                    f"past_key_values holds {shapes} in layer {index}, "
                    f"expected ({batch}, {heads}, tokens, {expected[2]}) each."
                )
        return past

    def _self_mask(
        self, mask: mx.array | None, batch: int, length: int, offset: int, dtype: mx.Dtype
    ) -> mx.array | None:
        total = offset + length
        if mask is not None and mask.ndim == 3:
            if mask.shape[0] not in (1, batch) or mask.shape[1] not in (1, length) or mask.shape[2] != total:
                raise InputError(f"attention_mask has the shape {mask.shape}, expected {(batch, length, total)}.")
            return hidden_by(mask[:, None], dtype)
        if mask is not None and (mask.ndim != 2 or mask.shape[0] not in (1, batch) or mask.shape[1] != total):
            raise InputError(
                f"attention_mask has the shape {mask.shape}, expected {(batch, total)} "
                f"({offset} cached tokens and {length} new ones)."
            )
        if not self.config.is_decoder or length == 1:
            return None if mask is None else hidden_by(mask[:, None, None], dtype)
        causal = mx.arange(total)[None] <= mx.arange(offset, total)[:, None]
        seen = causal[None, None] if mask is None else causal * mask[:, None, None].astype(dtype)
        return hidden_by(seen, dtype)

    def _encoder_mask(self, states: mx.array | None, mask: mx.array | None, x: mx.array) -> mx.array | None:
        if states is None:
            return None
        config, batch, length = self.config, x.shape[0], x.shape[1]
        if not config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states is given but config field 'add_cross_attention' is false. "
                "Load the model with add_cross_attention=True."
            )
        if states.ndim != 3 or states.shape[0] != batch or states.shape[2] != config.hidden_size:
            raise InputError(
                f"encoder_hidden_states has the shape {states.shape}, expected ({batch}, S, {config.hidden_size})."
            )
        if mask is None:
            return None
        size = states.shape[1]
        if mask.ndim == 2 and mask.shape[0] in (1, batch) and mask.shape[1] == size:
            return hidden_by(mask[:, None, None], x.dtype)
        if mask.ndim == 3 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, length) and mask.shape[2] == size:
            return hidden_by(mask[:, None], x.dtype)
        raise InputError(f"encoder_attention_mask has the shape {mask.shape}, expected {(batch, size)}.")

    def _head_masks(self, mask: mx.array | None, dtype: mx.Dtype) -> mx.array | None:
        """Return the mask as (layers, 1, H, 1, 1), or None."""
        if mask is None:
            return None
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        mask = mask.astype(dtype)
        if mask.shape == (heads,):
            return mx.broadcast_to(mask[None, None, :, None, None], (layers, 1, heads, 1, 1))
        if mask.shape == (layers, heads):
            return mask[:, None, :, None, None]
        if mask.ndim == 5 and mask.shape[0] == layers and mask.shape[2] in (1, heads):
            return mask
        raise InputError(f"head_mask has the shape {mask.shape}, expected {(heads,)} or {(layers, heads)}.")


def descriptors_of(config: QDQBertConfig) -> LayerDescriptors:
    """Return the quantization of the config: by default 8 bits, one range per activation and per row of a weight."""
    return LayerDescriptors(
        QuantDescriptor.merged(config.quant_desc_input, "quant_desc_input"),
        QuantDescriptor.merged(config.quant_desc_weight, "quant_desc_weight", axis=0),
    )


def hidden_by(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return the additive mask: 0 where `seen` is 1, the lowest finite number where it is 0.

    Finite, so that a fully masked row attends uniformly, as in the reference, instead of being NaN.
    """
    return (1 - seen.astype(dtype)) * mx.array(mx.finfo(dtype).min, dtype)

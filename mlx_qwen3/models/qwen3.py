"""Qwen3 top-down: attention, MLP, layer, `Qwen3Model`, and the classes with a head.

Source of every rule: transformers 5.23 `models/qwen3/modeling_qwen3.py`.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, Self, overload

import mlx.core as mx
import mlx.nn as nn

from ..cache import Cache, LayerCache, make_cache
from ..cache.layers import step_for
from ..checkpoint import Checkpoint
from ..config.qwen3 import SLIDING, Qwen3Config
from ..distributed import check_not_forked
from ..errors import InputError
from ..generation.mixin import DecoderGenerationMixin
from ..layers.activations import Activation, activation
from ..layers.arguments import ArrayLike, as_array, check_ids, check_positions, refuse_unknown
from ..layers.attention import attend, attend_with_weights
from ..layers.masks import Mask, check_padding_mask, decoder_mask, packed_segments
from ..layers.parameters import Identity
from ..layers.pipelining import Pipeline
from ..layers.rotary import ConsecutivePositions, RotaryPositions, Rotation, SinglePosition
from ..outputs import BaseModelOutputWithPast
from .content import Content, settle_tie
from .heads import CausalLM, QuestionAnswering, SequenceClassification, TokenClassification, classifier_dropout
from .initial_weights import init_weights, resize_rows
from .pretrained import PreTrainedModel
from .qwen3_fused import FUSING, FusedDecoder, FusedQwen3, can_fuse

logger = logging.getLogger(__name__)


class Qwen3Attention(nn.Module):
    """Grouped-query attention; queries and keys are normalized per head, then rotated (RoPE)."""

    def __init__(self, config: Qwen3Config, layer_idx: int):
        super().__init__()
        width, size, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            size,
        )
        self.scale = size**-0.5
        self.dropout = config.attention_dropout
        self.sliding = config.layer_types[layer_idx] == SLIDING
        self.q_proj = nn.Linear(width, self.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(self.heads * size, width, bias=bias)
        self.q_norm = nn.RMSNorm(size, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, eps=config.rms_norm_eps)

    def __call__(
        self,
        x: mx.array,
        rotation: Rotation | ConsecutivePositions | SinglePosition,
        mask: Mask,
        cache: LayerCache | None = None,
        output_weights: bool = False,
    ) -> tuple[mx.array, mx.array | None]:
        """Map x (B, L, M) to (B, L, M), and return the weights (B, H, L, S) if requested."""
        batch, length, _ = x.shape
        queries = self.q_norm(self.q_proj(x).reshape(batch, length, self.heads, -1)).swapaxes(1, 2)
        keys = self.k_norm(self.k_proj(x).reshape(batch, length, self.kv_heads, -1)).swapaxes(1, 2)
        values = self.v_proj(x).reshape(batch, length, self.kv_heads, -1).swapaxes(1, 2)
        queries, keys = rotation(queries), rotation(keys)
        weights = None
        if cache is not None:
            keys, values = cache.update(keys, values)
        dropout = self.dropout if self.training else 0.0
        if output_weights or dropout:
            if cache is not None:
                keys, values = cache.unpack(keys, values)
            mixed, weights = attend_with_weights(queries, keys, values, self.scale, mask, dropout)
        elif cache is not None:
            mixed = cache.attend(queries, keys, values, self.scale, mask)
        else:
            mixed = attend(queries, keys, values, self.scale, mask)
        return self.o_proj(mixed.swapaxes(1, 2).reshape(batch, length, -1)), weights


class Qwen3MLP(nn.Module):
    """The gated MLP, down(act(gate(x)) · up(x))."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self._hidden_act = config.hidden_act

    @property
    def act_fn(self) -> Activation:
        """The activation; looked up each time, because a model holding a compiled function cannot be copied."""
        return activation(self._hidden_act)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Qwen3DecoderLayer(nn.Module):
    """Attention, then the MLP, each with pre-normalization and a residual connection."""

    def __init__(self, config: Qwen3Config, layer_idx: int):
        super().__init__()
        self.self_attn = Qwen3Attention(config, layer_idx)
        self.mlp = Qwen3MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self,
        x: mx.array,
        rotation: Rotation | ConsecutivePositions | SinglePosition,
        mask: Mask,
        cache: LayerCache | None = None,
        output_weights: bool = False,
        halfway: Callable[[mx.array], None] = lambda x: None,
    ) -> tuple[mx.array, mx.array | None]:
        mixed, weights = self.self_attn(self.input_layernorm(x), rotation, mask, cache, output_weights)
        x = x + mixed
        halfway(x)
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class Qwen3PreTrainedModel(PreTrainedModel):
    """Base of all Qwen3 classes: configuration, initial weights, caches, and the vocabulary."""

    config_class = Qwen3Config
    config: Qwen3Config

    def post_init(self) -> None:
        """Initialize the weights; every class calls this at the end of its constructor."""
        init_weights(self, self.config.initializer_range, self.config.pad_token_id)

    def make_cache(self, **options: Any) -> Cache:
        """Return an empty cache for this model; options as in `mlx_qwen3.cache.make_cache`."""
        options = {"step": step_for(self.config), **options}
        cache = make_cache(self.config.layer_types, self.config.sliding_window, **options)
        for layer in cache.layers:
            if layer.format is not None:
                layer.format.check_head_dim(self.config.head_dim)
        return cache

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding layer."""
        return self.base_model.embed_tokens

    def set_input_embeddings(self, layer: nn.Module) -> None:
        """Replace the input embedding; a tied output head follows."""
        self.base_model.embed_tokens = layer

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Module:
        """Resize the vocabulary, output head included, and return the embedding; new rows get initial weights."""
        if not isinstance(new_num_tokens, int) or new_num_tokens < 1:
            raise InputError(f"new_num_tokens is {new_num_tokens!r}, expected a whole number above 0.")
        layers = [self.base_model.embed_tokens, *([self["lm_head"]] if "lm_head" in self else [])]
        for layer in layers:
            resize_rows(layer, new_num_tokens, self.config.initializer_range)
        self.config.vocab_size = new_num_tokens
        return self.get_input_embeddings()

    def tie_from(self, checkpoint: Checkpoint, by_name: dict[str, str], left_out: list[str], source: str) -> bool:
        if not self.config.tie_word_embeddings:
            return False
        embedding = f"{self.weight_prefix()}embed_tokens"
        if not isinstance(self, CausalLM) and f"{embedding}.weight" in by_name:
            return False  # the head of another class
        if not settle_tie(checkpoint, by_name, embedding, "lm_head", left_out):
            return False
        # transformers 5 keeps both when the config ties them and the file holds two different matrices
        logger.warning("%s: embedding and output head differ although the config ties them: both are kept", source)
        self.config.tie_word_embeddings = False
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        return True


class Qwen3Model(Qwen3PreTrainedModel):
    """The decoder without a head; bidirectional if `is_causal` is false in the configuration, as in the reference."""

    base_model_prefix = ""

    def __init__(self, config: Qwen3Config):
        config.check_model()
        activation(config.hidden_act)  # layers look it up when called: reject an unknown name here
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Qwen3DecoderLayer(config, i) for i in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rotary = RotaryPositions(
            config.rope_parameters,
            config.head_dim,
            config.max_position_embeddings,
            getattr(config, "original_max_position_embeddings", None),
        )
        self.post_init()

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **kwargs: Any) -> tuple[Any, ...]: ...
    @overload
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        past_key_values: Any = None,
        inputs_embeds: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast: ...
    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        past_key_values: Any = None,
        inputs_embeds: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the hidden states of a batch, as `BaseModelOutputWithPast` (a tuple when `return_dict` is false).

        Args:
            input_ids: (B, L) token ids; or `inputs_embeds` (B, L, M), not both.
            attention_mask: (B, past + L), nonzero for real tokens; or (B, 1, L, S), booleans or additive numbers.
            position_ids: (B, L), (1, L) or (L,); by default counted from the cached length, padding included.
                Without a mask and a cache, a step other than 1 starts another packed sequence.
            past_key_values: a `Cache`, or legacy (keys, values) tuples.
            use_cache: return the cache; by default `config.use_cache`.
            cache_position: accepted and ignored: the cache knows its length.

        Raises:
            InputError: conflicting arguments, ids outside the vocabulary, wrong shapes, or a forked process.
        """
        refuse_unknown(kwargs, "Qwen3Model")
        check_not_forked()
        config: Any = self.config
        use_cache = bool(config.use_cache if use_cache is None else use_cache)
        want_weights = bool(config.output_attentions if output_attentions is None else output_attentions)
        want_states = bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        x = self._embed(as_array(input_ids, "input_ids"), as_array(inputs_embeds, "inputs_embeds"))
        cache = self._cache(past_key_values, use_cache, x.shape[0])
        mask = as_array(attention_mask, "attention_mask")
        positions = as_array(position_ids, "position_ids")
        x, states, weights = self.run(x, cache, mask, positions, want_states, want_weights)
        output = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache if use_cache else None,
            hidden_states=states,
            attentions=weights,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @property
    def causal(self) -> bool:
        """Whether attention is causal, so that right padding needs no mask."""
        return self.config.is_causal

    def run(
        self,
        x: mx.array,
        cache: Cache | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[mx.array, tuple[mx.array, ...] | None, tuple[mx.array, ...] | None]:
        """Run the layers on embedded tokens x (B, L, M); return last hidden state, hidden states, attentions.

        Unchecked entry point for callers that have validated their input.
        """
        batch, length, _ = x.shape
        past = cache.offset if cache is not None else 0
        if attention_mask is not None:
            check_padding_mask(attention_mask, batch, past, length)
        segments = None
        if position_ids is None:
            rotation = self._rotary.at(past, length, x.dtype)
        else:
            check_positions(position_ids, batch, length)
            rotation = self._rotary.at_positions(position_ids, x.dtype)
            if cache is None and attention_mask is None and length > 1:
                segments = packed_segments(position_ids)
        masks: dict[tuple[Any, ...], Mask] = {}
        states: list[mx.array] = []
        weights: list[mx.array] = []
        evaluate = Pipeline(batch * length, x.shape[-1], length, self.training)
        for index, layer in enumerate(self.layers):
            store = cache.layers[index] if cache is not None else None
            ranges = store.slot_ranges(length) if store is not None else ((0, length),)
            window, sinks = self.config.sliding_window if layer.self_attn.sliding else None, 0
            if store is not None and store.window is not None:
                window, sinks = min(store.window, window or store.window), store.sinks
            kind = ranges, window, sinks
            if kind not in masks:
                masks[kind] = decoder_mask(
                    length, past, ranges, window, attention_mask, segments, sinks, x.dtype, self.causal
                )
            if output_hidden_states:
                states.append(x)
            x, weight = layer(x, rotation, masks[kind], store, output_attentions, evaluate.halfway)
            evaluate(x)
            if weight is not None and output_attentions:
                weights.append(weight)
        x = self.norm(x)
        if output_hidden_states:
            states.append(x)
        return x, tuple(states) if output_hidden_states else None, tuple(weights) if output_attentions else None

    def _embed(self, ids: mx.array | None, embeds: mx.array | None) -> mx.array:
        if (ids is None) == (embeds is None):
            raise InputError("pass either input_ids or inputs_embeds, not both.")
        if ids is not None:
            check_ids(ids, self.config.vocab_size)
            return self.embed_tokens(ids)
        assert embeds is not None
        if embeds.ndim != 3 or embeds.shape[-1] != self.config.hidden_size or not embeds.shape[1]:
            raise InputError(
                f"inputs_embeds has shape {tuple(embeds.shape)}, expected (batch, length, {self.config.hidden_size})."
            )
        return embeds

    def _cache(self, past: Any, use_cache: bool, batch: int) -> Cache | None:
        if isinstance(past, Cache):
            if len(past) != len(self.layers):
                raise InputError(f"past_key_values holds {len(past)} layers, the model has {len(self.layers)}.")
            if past.batch_size not in (None, batch):
                raise InputError(f"past_key_values holds {past.batch_size} rows, the input has {batch}.")
            return past
        if past is not None:
            cache = Cache.from_legacy(past, self.config.layer_types, self.config.sliding_window)
            expected = (batch, self.config.num_key_value_heads, self.config.head_dim)
            for index, (keys, _) in enumerate(cache):
                if keys is not None and (*keys.shape[:2], keys.shape[3]) != expected:
                    raise InputError(
                        f"past_key_values holds keys {tuple(keys.shape)} in layer {index}, "
                        f"expected ({expected[0]}, {expected[1]}, tokens, {expected[2]})."
                    )
            return cache
        return self.make_cache() if use_cache else None


class Qwen3ForCausalLM(DecoderGenerationMixin, CausalLM, Qwen3PreTrainedModel):
    """Qwen3 with a language-modelling head."""

    config: Qwen3Config
    _fused: FusedDecoder | None = None
    _is_random_head: Callable[[Any], bool] = staticmethod(lambda weight: False)

    def __init__(self, config: Qwen3Config):
        super().__init__(config)
        self.model: Qwen3Model = Qwen3Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def logits(self, hidden: mx.array) -> mx.array:
        """Map hidden states (..., M) to logits (..., V); a tied model multiplies with its embedding."""
        return self.lm_head(hidden) if "lm_head" in self else self.model.embed_tokens.as_linear(hidden)

    def require_head(self) -> None:
        """Raise `InputError` if the checkpoint had no output head and none was trained or loaded since."""
        if "lm_head" in self and self._is_random_head(self.lm_head.get("weight")):
            raise InputError(
                "the checkpoint has no output head (lm_head.weight): this model can embed texts but not generate. "
                "Load a checkpoint with a head, or pass tie_word_embeddings=True if its embedding is the head."
            )

    def _load(self, checkpoint: Checkpoint, content: Content, dtype: mx.Dtype, source: str) -> None:
        super()._load(checkpoint, content, dtype, source)
        if "lm_head.weight" in content.fresh:
            self._is_random_head = Identity(self.lm_head.weight)  # trained or loaded weights are other arrays

    def for_inference(self) -> Any:
        """Return the fused model for one generation if all layers are plain, else this model.

        The parameters become views of the fused matrices; call it again after changing weights or layers.
        """
        self.require_head()
        if not self.config.is_causal:
            raise InputError("this model is an encoder ('is_causal' in config.json is false). Use it for embeddings.")
        if self.training:
            return self
        with FUSING:
            fused = self._fused
            if fused is None or not fused.is_current(self.model):
                self._fused = fused = FusedDecoder(self.model) if can_fuse(self.model) else None
        return self if fused is None else FusedQwen3(self, fused)

    def train(self, mode: bool = True) -> Self:
        """Set training mode and drop the fused matrices."""
        if mode:
            self._fused = None
        super().train(mode)
        return self

    def update(self, parameters: Any, strict: bool = True) -> Self:
        """Replace parameters, as in `nn.Module`, and drop the fused matrices."""
        self._fused = None
        super().update(parameters, strict)
        return self


class Qwen3ForSequenceClassification(SequenceClassification, Qwen3PreTrainedModel):
    """Qwen3 that classifies a sequence by its last token."""

    def __init__(self, config: Qwen3Config):
        super().__init__(config)
        self.model: Qwen3Model = Qwen3Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.dropout = nn.Dropout(0.0)
        self.post_init()


class Qwen3ForTokenClassification(TokenClassification, Qwen3PreTrainedModel):
    """Qwen3 that classifies every token."""

    def __init__(self, config: Qwen3Config):
        super().__init__(config)
        self.model: Qwen3Model = Qwen3Model(config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class Qwen3ForQuestionAnswering(QuestionAnswering, Qwen3PreTrainedModel):
    """Qwen3 that predicts the span of an answer. The reference names its decoder `transformer`."""

    base_model_prefix = "transformer"
    model: Any = property(lambda self: self.transformer)
    """The decoder, as `heads.py` expects it."""

    def __init__(self, config: Qwen3Config):
        super().__init__(config)
        self.transformer = Qwen3Model(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

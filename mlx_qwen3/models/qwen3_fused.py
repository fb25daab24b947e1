"""Qwen3's decoder for inference with fewer and larger operations: the fast version of `Qwen3Model.run`.

The rows of q/k/v and of gate/up are fused into one matrix each, and queries and keys share one RMSNorm and one RoPE
call. The model's own parameters become views of the fused matrices: they keep their names, nothing is stored twice,
and saving, adapters and quantization are unaffected.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..cache import Cache
from ..layers.devices import on_cuda, variants
from ..layers.masks import Mask, as_bias, check_padding_mask, decoder_mask
from ..layers.packed_products import packed_product
from ..layers.pipelining import Marks, Pipeline

logger = logging.getLogger(__name__)

Linear = Callable[[mx.array], mx.array]

ARRAYS = ("weight", "scales", "biases", "bias")
"""Arrays of a linear layer; each has one row per output."""

swiglu = mx.compile(lambda gate, up: nn.silu(gate) * up, shapeless=True)


FUSING = threading.Lock()
"""Held while matrices are fused: two threads that start generating must not replace the same arrays."""


class FusedDecoder:
    """The layers and the final norm of a `Qwen3Model`, for inference only: no dropout, no gradients.

    It is valid as long as the decoder holds the arrays it was built from; see `is_current`.

    Args:
        decoder: a `Qwen3Model` for which `can_fuse` holds; its parameters become views.
    """

    def __init__(self, decoder: Any):
        config = decoder.config
        attention = decoder.layers[0].self_attn  # fewer heads than in the config if the model is sharded
        self._heads, self._kv_heads = attention.heads, attention.kv_heads
        self._head_dim, self._eps, self._scale = config.head_dim, config.rms_norm_eps, config.head_dim**-0.5
        self._rotary = decoder._rotary
        sliding = [bool(layer.self_attn.sliding) for layer in decoder.layers]
        self._windows = [config.sliding_window if slides else None for slides in sliding]
        self._first_alike = [sliding.index(slides) for slides in sliding]
        self._layers = [self._fuse_layer(layer) for layer in decoder.layers]
        self._norm = decoder.norm
        self._sources = _sources(decoder)

    def is_current(self, decoder: Any) -> bool:
        """Return whether the decoder still has the layers and arrays that were fused."""
        now = _sources(decoder)
        return len(now) == len(self._sources) and all(a is b for a, b in zip(now, self._sources, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        # a copied model has its own arrays and fuses them when it first generates
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # likewise a model that is unpickled

    def __call__(
        self,
        x: mx.array,
        cache: Cache,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        keep: int | None = None,
    ) -> mx.array:
        """Map embedded tokens x (B, L, M) to hidden states of the newest `keep` tokens, (B, keep, M); default all.

        They equal those of `Qwen3Model.run`. The last layer skips attention and MLP of the other tokens.
        """
        batch, length, _ = x.shape
        past = cache.offset
        if position_ids is None:
            rotation = self._rotary.at(past, length, x.dtype)
        else:
            rotation = self._rotary.at_positions(position_ids, x.dtype)
        masks = self._masks(cache, past, batch, length, attention_mask, x.dtype)
        heads, head_dim, eps, scale = self._heads, self._head_dim, self._eps, self._scale
        turned = heads + self._kv_heads
        all_heads, width = turned + self._kv_heads, heads * head_dim
        rms_norm, split = mx.fast.rms_norm, mx.split
        evaluate = Pipeline(batch * length, x.shape[-1], length)
        chosen = variants()
        separate = chosen.head_norms == "separate" or (chosen.head_norms == "mixed" and length > 1)
        mark = Marks(len(self._layers), chosen.decode_parts, cache.marks) if length == 1 else None
        # one row per token: kernels for packed weights read those once for all rows of a matrix, not for a batch of
        # them
        x = x.reshape(batch * length, -1)
        for index, (layer, store, mask) in enumerate(zip(self._layers, cache.layers, masks, strict=True)):
            norm, project, qk_weight, q_weight, k_weight, output, mlp_norm, mlp = layer
            joined = project(rms_norm(x, norm, eps))
            if separate:
                parts = split(joined.reshape(batch, length, all_heads, head_dim), (heads, turned), 2)
                queries, keys, values = (part.swapaxes(1, 2) for part in parts)
                queries = rotation(rms_norm(queries, q_weight, eps))
                keys = rotation(rms_norm(keys, k_weight, eps))
            elif length == 1:
                # the heads of a single token are already rows: no transpose needed
                queries_keys, values = split(joined.reshape(batch, all_heads, 1, head_dim), (turned,), 1)
                queries, keys = split(rotation(rms_norm(queries_keys, None, eps) * qk_weight), (heads,), 1)
            else:
                # normalizing the values as well is cheaper than slicing the rest
                joined = joined.reshape(batch, length, all_heads, head_dim)
                values = joined[:, :, turned:].swapaxes(1, 2)
                queries_keys = rms_norm(joined, None, eps)[:, :, :turned].swapaxes(1, 2) * qk_weight
                queries, keys = split(rotation(queries_keys), (heads,), 1)
            keys, values = store.update(keys, values)
            if keep is not None and 0 < keep < length and layer is self._layers[-1]:
                x, queries, mask = _select_newest(keep, x.reshape(batch, length, -1), queries, mask)
                length = keep
            mixed = store.attend(queries, keys, values, scale, mask)
            if length > 1:
                mixed = mixed.swapaxes(1, 2)
            x = x + output(mixed.reshape(batch * length, width))
            evaluate.halfway(x)
            x = x + mlp(rms_norm(x, mlp_norm, eps))
            evaluate(x)
            if mark is not None:
                mark(index, x)
        return self._norm(x).reshape(batch, length, -1)

    def _masks(
        self,
        cache: Cache,
        past: int,
        batch: int,
        length: int,
        attention_mask: mx.array | None,
        dtype: mx.Dtype,
    ) -> list[Mask]:
        """Return one mask per layer; layers of one type share theirs."""
        if attention_mask is not None:
            check_padding_mask(attention_mask, batch, past, length)
        made: dict[int, Mask] = {}
        for index in set(self._first_alike):
            store, window = cache.layers[index], self._windows[index]
            if store.window is not None:
                window = min(store.window, window or store.window)
            ranges = store.slot_ranges(length)
            mask = decoder_mask(length, past, ranges, window, attention_mask, None, store.sinks, dtype)
            if length == 1 and isinstance(mask, mx.array) and on_cuda():
                mask = as_bias(mask, dtype)  # once for all layers
            made[index] = mask
        return [made[index] for index in self._first_alike]

    def _fuse_layer(self, layer: Any) -> tuple[Any, ...]:
        attention = layer.self_attn
        q_weight, k_weight = attention.q_norm["weight"], attention.k_norm["weight"]
        qk_weight = mx.concatenate(
            [
                mx.broadcast_to(q_weight, (1, self._heads, 1, self._head_dim)),
                mx.broadcast_to(k_weight, (1, self._kv_heads, 1, self._head_dim)),
            ],
            axis=1,
        )
        mx.eval(qk_weight)
        return (
            layer.input_layernorm["weight"],
            _projection([attention.q_proj, attention.k_proj, attention.v_proj]),
            qk_weight,
            q_weight,
            k_weight,
            _product(attention.o_proj),
            layer.post_attention_layernorm["weight"],
            _fused_mlp(layer.mlp),
        )


def _select_newest(keep: int, x: mx.array, queries: mx.array, mask: Mask) -> tuple[mx.array, mx.array, Mask]:
    """Return the newest rows of x (B, L, M) as (B·keep, M), with their queries (B, H, keep, D) and mask.

    A single query gets the mask and strides of a decoded token: otherwise cuDNN would build a plan for each L (about
    40 ms).
    """
    if isinstance(mask, mx.array):
        mask = mask[..., -keep:, :]
    elif keep == 1:
        mask = None  # the newest token sees everything
    return x[:, -keep:].reshape(-1, x.shape[-1]), mx.contiguous(queries[:, :, -keep:]), mask


def can_fuse(decoder: Any) -> bool:
    """Return whether all layers are plain and can be fused: no adapters, no other classes."""
    for layer in decoder.layers:
        attention = layer.self_attn
        norms = (layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm)
        if any(type(norm) is not nn.RMSNorm for norm in norms) or type(decoder.norm) is not nn.RMSNorm:
            return False
        queries, keys, values = attention.q_proj, attention.k_proj, attention.v_proj
        if not (_are_alike([queries, keys]) and type(values) in (nn.Linear, nn.QuantizedLinear)):
            return False
        if ("bias" in queries) != ("bias" in values):
            return False
    return True


def _sources(decoder: Any) -> list[Any]:
    """Return the layers and arrays that a `FusedDecoder` is built from."""
    found: list[Any] = [decoder.norm]
    for layer in decoder.layers:
        attention, mlp = layer["self_attn"], layer["mlp"]
        modules = [attention[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
        modules += [mlp[name] for name in ("gate_proj", "up_proj", "down_proj")]
        modules += [layer[name] for name in ("input_layernorm", "post_attention_layernorm")]
        found += modules
        found += [module.get(name) for module in modules for name in ARRAYS]
    return found


def _are_alike(layers: list[Any]) -> bool:
    """Return whether layers are plain linear ones of one class, format and dtype."""
    first = layers[0]
    if type(first) not in (nn.Linear, nn.QuantizedLinear):
        return False
    return all(_signature(layer) == _signature(first) for layer in layers[1:])


def _signature(layer: Any) -> tuple[Any, ...]:
    settings = [getattr(layer, name, None) for name in ("group_size", "bits", "mode")]
    held = [layer.get(name) for name in ARRAYS]
    return (type(layer), *settings, *(None if a is None else (a.dtype, a.shape[1:]) for a in held))


def _fuse_layers(layers: list[Any]) -> Linear:
    """Fuse layers with one input into one matrix: x (..., M) → their concatenated outputs.

    The arrays of the layers become views of the fused ones.
    """
    rows = [layer["weight"].shape[0] for layer in layers]
    borders = [sum(rows[: i + 1]) for i in range(len(rows) - 1)]
    arrays: dict[str, mx.array | None] = {}
    for name in ARRAYS:
        arrays[name] = None
        if layers[0].get(name) is not None:
            arrays[name] = joined = mx.concatenate([layer[name] for layer in layers])
            views = mx.split(joined, borders)
            mx.eval(joined, views)
            for layer, view in zip(layers, views, strict=True):
                layer[name] = view
    return _multiply(layers[0], arrays)


def _product(layer: Any) -> Linear:
    """Return the forward function of a layer without its module; a layer of another class is returned unchanged."""
    if type(layer) not in (nn.Linear, nn.QuantizedLinear):
        return layer
    return _multiply(layer, {name: layer.get(name) for name in ARRAYS})


def _multiply(like: Any, arrays: dict[str, Any]) -> Linear:
    weight, scales, biases, bias = (arrays[name] for name in ARRAYS)
    if scales is not None:
        settings = (like.group_size, like.bits, like.mode)
        quantized_matmul = mx.quantized_matmul

        def multiply_packed(x: mx.array) -> mx.array:
            if x.shape[0] > 1:
                y = packed_product(x, weight, scales, biases, *settings)
            else:  # the same for a decoded token, without the cost of choosing (up to 4 % of 0.6B's time per token)
                y = quantized_matmul(x, weight, scales, biases, True, *settings)
            return y if bias is None else y + bias

        return multiply_packed
    turned = weight.T
    if bias is None:
        return lambda x: x @ turned
    return lambda x: mx.addmm(bias, x, turned)


def _projection(layers: list[Any]) -> Linear:
    """Return q, k and v as one product, or as two if the values are packed in another format."""
    if _are_alike(layers):
        return _fuse_layers(layers)
    queries_keys, values = _fuse_layers(layers[:2]), _product(layers[2])
    return lambda x: mx.concatenate([queries_keys(x), values(x)], axis=-1)


def _fused_mlp(mlp: Any) -> Linear:
    """Return down(act(gate(x)) · up(x)), gate and up as one product if possible."""
    gate, up, down, act = mlp.gate_proj, mlp.up_proj, _product(mlp.down_proj), mlp.act_fn
    both: Callable[[mx.array, mx.array], mx.array] = swiglu
    if act is not nn.silu:
        both = lambda a, b: act(a) * b  # noqa: E731
    if not _are_alike([gate, up]):
        one, other = _product(gate), _product(up)
        return lambda x: down(both(one(x), other(x)))
    joined, split = _fuse_layers([gate, up]), mx.split

    def mlp_of(x: mx.array) -> mx.array:
        found = joined(x)
        if x.shape[0] > 1:
            return down(both(*split(found, 2, -1)))
        # halves of a single row have the strides of that row: MLX would copy their product before multiplying it
        return down(both(*split(found.reshape(2, -1), 2)))

    return mlp_of


class FusedQwen3:
    """The fused model of one generation. Later changes of the weights do not affect it."""

    def __init__(self, model: Any, decoder: FusedDecoder):
        self.config = model.config
        self._embed = model.model.embed_tokens
        self._decoder = decoder
        self._logits = model.logits

    def for_inference(self) -> "FusedQwen3":
        """Return itself."""
        return self

    def step_logits(
        self,
        ids: mx.array,
        cache: Any,
        keep: int = 1,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Return logits (B, keep, V) of the newest positions of ids (B, L), and add their keys and values to the
        cache.
        """
        newest = self._decoder(self._embed(ids), cache, attention_mask, position_ids, keep)
        rows = newest.reshape(-1, newest.shape[-1])  # as in the decoder: weights are read once for all rows
        return self._logits(rows).reshape(*newest.shape[:2], -1)

    def fill_cache(self, ids: mx.array, cache: Any) -> None:
        """Add the keys and values of ids (B, L) to the cache, lazily, without computing logits."""
        self._decoder(self._embed(ids), cache)

"""Adapted layers: LoRA and DoRA for linear layers and embeddings, and retrained embedding rows.

Parameters have PEFT's names, so that files are read and written without renaming. mlx-lm's layers are not used for
three reasons. Importing any part of mlx_lm imports transformers, which takes seconds. They store A and B transposed. A
tied output head always uses the adapted embedding there, which it does not in PEFT.

Sources: Hu et al. 2021 (LoRA, https://arxiv.org/abs/2106.09685); Liu et al. 2024 (DoRA,
https://arxiv.org/abs/2402.09353); PEFT 0.21 for names and scales.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..distributed.group import Group, part_of, summed


class KeyedDropout(nn.Dropout):
    """Dropout with an explicit random key, so that a recomputation drops the same entries."""

    def __init__(self, p: float):
        super().__init__(p)
        self._key: mx.array | None = None

    @property
    def drops(self) -> bool:
        """Whether anything is dropped in training."""
        return self._p_1 < 1

    def set_key(self, key: mx.array) -> None:
        """Use `key` in the next call only."""
        self._key = key

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training or not self.drops:
            return x
        key, self._key = self._key, None
        kept = mx.random.bernoulli(self._p_1, x.shape, key=key)
        return (1 / self._p_1) * kept * x


class AdaptedLayer(nn.Module):
    """A layer that changes the output of `base_layer`; `merged` returns an equivalent plain layer."""

    base_layer: Any

    def merged(self) -> nn.Module:
        """Return a plain layer with the same outputs."""
        raise NotImplementedError


class LoRALinear(AdaptedLayer):
    """A linear layer with LoRA or DoRA.

    LoRA computes y = W·x + b + scale·B·A·x. DoRA computes y = m / ‖W + scale·B·A‖ · (W + scale·B·A)·x + b with norms
    per row.

    Args:
        base_layer: `nn.Linear` or `nn.QuantizedLinear`, which is not changed.
        r: rank of A (r, in) and B (out, r).
        scale: alpha / r, or alpha / √r for rank-stabilized LoRA.
        dropout: probability that an input of A is dropped in training.
        dora: whether to learn the magnitude m (out,) of the rows, initialized to ‖W‖.
        lora_bias: whether B has a bias, which is scaled as well.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        r: int,
        scale: float,
        *,
        dropout: float = 0.0,
        dora: bool = False,
        lora_bias: bool = False,
    ):
        super().__init__()
        out_size, in_size = dense_shape(base_layer)
        self.base_layer = base_layer
        self.lora_A = nn.Linear(in_size, r, bias=False)
        self.lora_B = nn.Linear(r, out_size, bias=lora_bias)
        self.lora_B.weight = mx.zeros_like(self.lora_B.weight)
        if lora_bias:
            self.lora_B.bias = mx.zeros_like(self.lora_B.bias)
        self.lora_dropout = KeyedDropout(dropout)
        self.scale = scale
        if dora:
            self.lora_magnitude_vector = mx.linalg.norm(dense_weight(base_layer).astype(mx.float32), axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        """Map x (..., in) to (..., out)."""
        y = self.base_layer(x)
        seen = self.lora_dropout(x)
        change = self.change(seen).astype(y.dtype)
        if "lora_magnitude_vector" not in self:
            return y + change
        # The norm is a constant for the gradient (section 4.3 of the DoRA paper).
        norm = mx.stop_gradient(mx.linalg.norm(self.changed_weight(), axis=1))
        ratio = (self.lora_magnitude_vector / norm).astype(y.dtype)
        if self.training and self.lora_dropout.drops:  # as in PEFT, dropout also applies to the base product
            plain = self.base_layer(seen)
            plain = plain - self.base_layer.bias if "bias" in self.base_layer else plain
            return y + (ratio - 1) * plain + ratio * change
        if "bias" in self.base_layer:
            bias = self.base_layer.bias
            return ratio * (y - bias + change) + bias
        return ratio * (y + change)

    def change(self, x: mx.array) -> mx.array:
        """Return scale·B·A·x (..., out) for x (..., in)."""
        # A and B may be float32 for training; the products are computed in the dtype of x.
        low = self.scale * (x @ self.lora_A.weight.T.astype(x.dtype))
        high = low @ self.lora_B.weight.T.astype(x.dtype)
        return high + (self.scale * self.lora_B.bias).astype(x.dtype) if "bias" in self.lora_B else high

    def changed_weight(self) -> mx.array:
        """Return W + scale·B·A (out, in) in float32."""
        weight = dense_weight(self.base_layer).astype(mx.float32)
        change = self.lora_B.weight.astype(mx.float32) @ self.lora_A.weight.astype(mx.float32)
        return weight + self.scale * change

    @property
    def outputs(self) -> int:
        """Number of rows of B."""
        return self.lora_B.weight.shape[0]

    def keep_rows(self, first: int, last: int) -> None:
        """Keep rows `first` to `last` of B, its bias and the magnitude. The base layer must have them already."""
        self.lora_B.weight = mx.contiguous(self.lora_B.weight[first:last])
        if "bias" in self.lora_B:
            self.lora_B.bias = mx.contiguous(self.lora_B.bias[first:last])
        if "lora_magnitude_vector" in self:
            self.lora_magnitude_vector = mx.contiguous(self.lora_magnitude_vector[first:last])
        mx.eval(self.parameters())

    def divide_columns(self, group: Group) -> "SummedLoRALinear":
        """Keep this rank's columns of A, and return a layer that sums the products over the ranks."""
        left, right = part_of(self.lora_A.weight.shape[1], group)
        self.lora_A.weight = mx.contiguous(self.lora_A.weight[:, left:right])
        mx.eval(self.parameters())
        return SummedLoRALinear(self, group)

    def merged(self) -> nn.Module:
        """Return an `nn.Linear` with the same outputs. Its weight is computed in float32."""
        weight = self.changed_weight()
        if "lora_magnitude_vector" in self:
            norm = mx.linalg.norm(weight, axis=1)
            weight = (self.lora_magnitude_vector.astype(mx.float32) / norm)[:, None] * weight
        bias = self.base_layer.bias if "bias" in self.base_layer else None
        if "bias" in self.lora_B:
            added = self.scale * self.lora_B.bias
            if "lora_magnitude_vector" in self:
                added = added * self.lora_magnitude_vector / mx.linalg.norm(self.changed_weight(), axis=1)
            bias = added if bias is None else bias + added.astype(bias.dtype)
        return plain_linear(weight.astype(layer_dtype(self.base_layer)), bias)


class SummedLoRALinear(nn.Module):
    """A `LoRALinear` with this rank's columns of W and A.

    The products with W and B·A are added before a single all-reduce over the ranks. The DoRA magnitude and the bias
    are applied after it.
    """

    def __init__(self, layer: LoRALinear, group: Group):
        super().__init__()
        self.layer, self._group = layer, group
        if "bias" in layer.lora_B and group.rank():
            layer.lora_B.bias = mx.zeros_like(layer.lora_B.bias)  # only rank 0 adds it, so that it is summed once
        self._ratio = None
        if "lora_magnitude_vector" in layer:
            squares = summed(mx.square(layer.changed_weight()).sum(axis=1), group)
            self._ratio = layer.lora_magnitude_vector / mx.sqrt(squares)
            mx.eval(self._ratio)

    def __call__(self, x: mx.array) -> mx.array:
        """Map this rank's part of x (..., in/N) to the output (..., out) summed over all ranks."""
        base = self.layer.base_layer
        product = base(x)
        bias = base.bias if "bias" in base else None
        if bias is not None:
            product = product - bias
        total = mx.distributed.all_sum(product + self.layer.change(x).astype(product.dtype), group=self._group)
        if self._ratio is not None:
            total = self._ratio.astype(total.dtype) * total
        return total if bias is None else total + bias


class LoRAEmbedding(AdaptedLayer):
    """An embedding with LoRA or DoRA: rows of W + scale·(B·A)ᵀ with A (r, vocabulary) and B (width, r).

    Args:
        base_layer: `nn.Embedding` or `nn.QuantizedEmbedding`, which is not changed.
        r: rank of A and B.
        scale: alpha / r, or alpha / √r for rank-stabilized LoRA.
        dora: "" for LoRA; "columns" for PEFT's magnitude (width,), "rows" for mlx-lm's (vocabulary,).
        head_follows: whether a tied output head uses the adapted rows, as in mlx-lm, instead of the base rows.
    """

    def __init__(self, base_layer: nn.Module, r: int, scale: float, *, dora: str = "", head_follows: bool = False):
        super().__init__()
        rows, width = dense_shape(base_layer)
        self.base_layer = base_layer
        self.lora_embedding_A = mx.zeros((r, rows))
        self.lora_embedding_B = mx.random.normal((width, r))
        self.scale = scale
        self.head_follows = head_follows
        self._axis = {"": None, "columns": 0, "rows": 1}[dora]
        if self._axis is not None:
            weight = dense_weight(base_layer).astype(mx.float32)
            self.lora_magnitude_vector = mx.linalg.norm(weight, axis=self._axis)

    def __call__(self, x: mx.array) -> mx.array:
        """Return the rows (..., width) of token ids (...)."""
        y = self.base_layer(x)
        change = self.scale * (self.lora_embedding_A.T[x] @ self.lora_embedding_B.T)
        changed = y + change.astype(y.dtype)
        if self._axis is None:
            return changed
        if self._axis == 0:
            norm = mx.linalg.norm(self.changed_weight(), axis=0)
            return changed * (self.lora_magnitude_vector / mx.stop_gradient(norm)).astype(y.dtype)
        norm = mx.stop_gradient(mx.linalg.norm(changed.astype(mx.float32), axis=-1, keepdims=True))
        return changed * (self.lora_magnitude_vector[x][..., None] / norm).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits (..., vocabulary) of a tied output head for hidden states (..., width)."""
        if not self.head_follows:
            return self.base_layer.as_linear(x)
        if self._axis is not None:
            return x @ self._merged_weight().T.astype(x.dtype)
        change = self.scale * ((x @ self.lora_embedding_B) @ self.lora_embedding_A)
        return self.base_layer.as_linear(x) + change.astype(x.dtype)

    def changed_weight(self) -> mx.array:
        """Return W + scale·(B·A)ᵀ (vocabulary, width) in float32."""
        change = (self.lora_embedding_B.astype(mx.float32) @ self.lora_embedding_A.astype(mx.float32)).T
        return dense_weight(self.base_layer).astype(mx.float32) + self.scale * change

    def _merged_weight(self) -> mx.array:
        weight = self.changed_weight()
        if self._axis is not None:
            norm = mx.linalg.norm(weight, axis=self._axis, keepdims=True)
            magnitude = mx.expand_dims(self.lora_magnitude_vector.astype(mx.float32), self._axis)
            weight = magnitude / norm * weight
        return weight

    def merged(self) -> nn.Module:
        """Return an `nn.Embedding` with the same rows."""
        return plain_embedding(self._merged_weight().astype(layer_dtype(self.base_layer)))


class TokenAdapter(nn.Module):
    """The retrained rows (tokens, width) of an embedding."""

    def __init__(self, rows: mx.array):
        super().__init__()
        self.trainable_tokens_delta = rows


class RetrainedRows(AdaptedLayer):
    """An embedding or output head with some rows replaced.

    Args:
        base_layer: an embedding or linear layer, plain or packed.
        tokens: token ids of the replaced rows, in the order of `rows`.
        rows: the new rows (tokens, width).
    """

    def __init__(self, base_layer: nn.Module, tokens: list[int], rows: mx.array):
        super().__init__()
        self.base_layer = base_layer
        self.token_adapter = TokenAdapter(rows)
        size = dense_shape(base_layer)[0]
        positions = [0] * size
        for position, token in enumerate(tokens):
            positions[token] = position
        # MLX does not count attributes with an underscore as parameters.
        self._tokens = mx.array(tokens)
        self._positions = mx.array(positions)
        self._replaced = mx.zeros(size, dtype=mx.bool_).at[self._tokens].add(True)

    def __call__(self, x: mx.array) -> mx.array:
        """Return the rows of token ids for an embedding, or the logits of hidden states for an output head."""
        if isinstance(self.base_layer, nn.Linear | nn.QuantizedLinear):
            return self._logits(self.base_layer(x), x)
        rows = self.token_adapter.trainable_tokens_delta[self._positions[x]]
        y = self.base_layer(x)
        return mx.where(self._replaced[x][..., None], rows.astype(y.dtype), y)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits (..., vocabulary) of a tied output head, which uses the replaced rows as well."""
        return self._logits(self.base_layer.as_linear(x), x)

    def _logits(self, logits: mx.array, x: mx.array) -> mx.array:
        own = (x @ self.token_adapter.trainable_tokens_delta.T.astype(x.dtype))[..., self._positions]
        return mx.where(self._replaced, own.astype(logits.dtype), logits)

    def merged(self) -> nn.Module:
        """Return a plain layer whose weight has the replaced rows."""
        weight = dense_weight(self.base_layer).astype(layer_dtype(self.base_layer))
        rows = self.token_adapter.trainable_tokens_delta.astype(weight.dtype)
        weight = mx.where(self._replaced[:, None], rows[self._positions], weight)
        if isinstance(self.base_layer, nn.Linear | nn.QuantizedLinear):
            return plain_linear(weight, self.base_layer.bias if "bias" in self.base_layer else None)
        return plain_embedding(weight)


# weights of the base layers


def is_packed(layer: nn.Module) -> bool:
    """Return whether the layer's weight is quantized."""
    return isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)


def dense_shape(layer: Any) -> tuple[int, int]:
    """Return (rows, columns) of the unpacked weight of a layer."""
    rows, columns = layer.weight.shape
    return rows, columns * 32 // layer.bits if is_packed(layer) else columns


def dense_weight(layer: Any) -> mx.array:
    """Return the weight (rows, columns) of a layer, dequantized if it is packed."""
    if not is_packed(layer):
        return layer.weight
    biases = layer.get("biases")
    return mx.dequantize(
        layer.weight, layer.scales, biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )


def layer_dtype(layer: Any) -> mx.Dtype:
    """Return the floating-point dtype of a layer's weight, or the dtype it gets when it is unpacked."""
    if not is_packed(layer):
        return layer.weight.dtype
    scales = layer.scales.dtype
    return scales if mx.issubdtype(scales, mx.floating) else mx.float32


def plain_linear(weight: mx.array, bias: mx.array | None) -> nn.Linear:
    """Return an `nn.Linear` with these arrays."""
    layer = nn.Linear(1, 1, bias=bias is not None)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    layer.eval()
    return layer


def plain_embedding(weight: mx.array) -> nn.Embedding:
    """Return an `nn.Embedding` with these rows."""
    layer = nn.Embedding(1, 1)
    layer.weight = weight
    layer.eval()
    return layer


def set_module(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Replace the module at the dotted `path`, in which list indices are numbers, by `layer`."""
    owner: Any = model
    *parents, last = path.split(".")
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, list) else owner[name]
    if isinstance(owner, list):
        owner[int(last)] = layer
    else:
        owner[last] = layer


def lora_scale(alpha: float, r: int, rank_stabilized: bool) -> float:
    """Return the scale of the update: alpha / r, or alpha / √r if rank-stabilized (https://arxiv.org/abs/2312.03732)."""
    return alpha / math.sqrt(r) if rank_stabilized else alpha / r

"""Replace a model's layers by packed ones, and back.

Loading first replaces the layers and then fills them with the packed arrays; `quantize_model` packs a
model in memory.
"""

import copyreg
import logging
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import CheckpointError
from .formats import PackedFormat, infer_format

logger = logging.getLogger(__name__)

Choose = Callable[[str, tuple[int, ...]], PackedFormat | None]
"""(layer path, shape of its weight) -> its format, or None to leave it unpacked."""


class PackedEmbedding(nn.QuantizedEmbedding):
    """An `nn.QuantizedEmbedding` that returns rows in a chosen dtype.

    MLX returns bfloat16 for the modes without biases, which would round the activations of a float32 model.
    """

    output_dtype: mx.Dtype | None = None

    def __call__(self, x: mx.array) -> mx.array:
        rows = super().__call__(x)
        return rows if self.output_dtype is None else rows.astype(self.output_dtype)


def dtype_named(name: str) -> mx.Dtype:
    """Return MLX's dtype with a name such as "float32"."""
    return getattr(mx, name)


# MLX's dtypes cannot be copied or pickled, so that a model with a packed embedding could not either
copyreg.pickle(mx.Dtype, lambda dtype: (dtype_named, (str(dtype).rpartition(".")[2],)))  # pyright: ignore


def _pack_layer(module: nn.Module, fmt: PackedFormat, dtype: mx.Dtype | None) -> nn.Module:
    """Return an empty packed layer with the sizes of `module`; its arrays are lazy until they are replaced."""
    rows, columns = module["weight"].shape
    settings = {"group_size": fmt.group_size, "bits": fmt.bits, "mode": fmt.mode}
    if isinstance(module, nn.Embedding):
        packed = PackedEmbedding(rows, columns, **settings)
        packed.output_dtype = dtype
        return packed
    plain = nn.QuantizedLinear(columns, rows, bias="bias" in module, **settings)
    around: Callable[[nn.Module], nn.Module] | None = getattr(module, "packed_around", None)
    return plain if around is None else around(plain)


def _packable_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]


def prepare_quantized(
    model: nn.Module,
    quantization: Mapping[str, Any] | None,
    weights: Mapping[str, Any],
    dtype: mx.Dtype | None = None,
) -> list[str]:
    """Replace each layer that has `<path>.scales` among the weights by an empty packed layer.

    Call it before `load_weights`. Formats are inferred from the shapes; an entry for the layer in the config must
    agree.

    Args:
        model: a model with plain `nn.Linear` and `nn.Embedding` layers.
        quantization: the config's `quantization`; per-layer entries by path.
        weights: by the model's own parameter names; anything with a shape and a dtype, MLX's or safetensors'.
        dtype: dtype of embedding outputs; default that of MLX.

    Returns:
        The paths of the replaced layers.

    Raises:
        CheckpointError: packed arrays that belong to no layer, or contradict the config or the layer's size.
        QuantizationError: packed arrays in a format that MLX does not have.
    """
    packed_paths = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    replacements: list[tuple[str, nn.Module]] = []
    for path, module in _packable_layers(model):
        if path not in packed_paths:
            continue
        packed_paths.discard(path)
        rows, columns = module["weight"].shape
        weight, scales = weights.get(f"{path}.weight"), weights[f"{path}.scales"]
        if weight is None or weight.dtype not in (mx.uint32, "U32"):
            raise CheckpointError(f"{path}.scales exists without a packed {path}.weight. Convert the model again.")
        fmt = infer_format(path, columns, tuple(weight.shape), tuple(scales.shape), scales.dtype in (mx.uint8, "U8"))
        if weight.shape[0] != rows or scales.shape[0] != rows:
            raise CheckpointError(
                f"{path}.weight has {weight.shape[0]} packed rows, the model's configuration gives {rows}."
            )
        if fmt.has_biases and f"{path}.biases" not in weights:
            raise CheckpointError(f"{path}.biases is missing. Convert the model again.")
        _check_entry(path, fmt, quantization)
        replacements.append((path, _pack_layer(module, fmt, dtype)))
    if packed_paths:
        raise CheckpointError(f"{min(packed_paths)}.scales belongs to no layer of this model that can be packed.")
    if replacements:
        model.update_modules(tree_unflatten(replacements))
    return [path for path, _ in replacements]


apply_quantization = prepare_quantized


def _check_entry(path: str, fmt: PackedFormat, quantization: Mapping[str, Any] | None) -> None:
    entry = (quantization or {}).get(path)
    if isinstance(entry, Mapping) and PackedFormat.from_config(entry) != fmt:
        raise CheckpointError(
            f"config.json says that {path} is {dict(entry)}, its arrays are {fmt.to_config()}: convert it again."
        )


def quantize_model(model: nn.Module, choose: Choose | PackedFormat) -> dict[str, Any]:
    """Pack the layers of a model in memory, in place.

    Args:
        model: a model with plain `nn.Linear` and `nn.Embedding` layers.
        choose: one format for every layer, or a function from path and shape to a format or None. A layer
            whose rows the group size does not divide stays as it is.

    Returns:
        The `quantization` entry for the config: the first format, and an entry for each layer that differs.
    """
    formats: dict[str, PackedFormat | None] = {}
    replacements: list[tuple[str, nn.Module]] = []
    for path, module in _packable_layers(model):
        weight = module["weight"]
        fmt = choose if isinstance(choose, PackedFormat) else choose(path, tuple(weight.shape))
        formats[path] = fmt = fmt if fmt is not None and fmt.divides(tuple(weight.shape)) else None
        if fmt is None:
            continue
        packed = _pack_layer(module, fmt, weight.dtype)
        for name, array in fmt.quantize(weight).items():
            setattr(packed, name, array)
        if "bias" in module:
            packed.bias = module["bias"]
        mx.eval(packed.parameters())
        replacements.append((path, packed))
    model.update_modules(tree_unflatten(replacements))
    return quantization_entry(formats, choose if isinstance(choose, PackedFormat) else None)


def quantization_entry(
    formats: Mapping[str, PackedFormat | None], default: PackedFormat | None = None
) -> dict[str, Any]:
    """Return a config's `quantization`: the default format, and an entry per layer that differs.

    The default is the given format or else the most frequent. Unpacked layers need no entry: both mlx-lm and
    this package recognize them by their missing scales.
    """
    used = [fmt for fmt in formats.values() if fmt is not None]
    default = default or (max(used, key=used.count) if used else PackedFormat())
    entry = default.to_config()
    entry.update({path: fmt.to_config() for path, fmt in formats.items() if fmt not in (None, default) and fmt})
    return entry


def unpack_quantized(model: nn.Module, dtype: mx.Dtype = mx.float32) -> int:
    """Replace packed layers by plain ones of `dtype`, in place; return their number.

    On a CPU MLX multiplies plain float32 weights several times faster than packed ones.
    """
    plain: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            continue
        fmt = PackedFormat(module.bits, module.group_size, module.mode)
        packed = {name: module[name] for name in ("weight", "scales", "biases") if module.get(name) is not None}
        weight = fmt.dequantize(packed, dtype)
        rows, columns = weight.shape
        if isinstance(module, nn.QuantizedEmbedding):
            layer: nn.Module = nn.Embedding(rows, columns)
        elif (unpacked := getattr(module, "unpacked", None)) is not None:
            layer = unpacked(weight)
        else:
            layer = nn.Linear(columns, rows, bias="bias" in module)
            if "bias" in module:
                layer.bias = module["bias"].astype(dtype)
        layer.weight = weight
        plain.append((path, layer))
    if plain:
        model.update_modules(tree_unflatten(plain))
    return len(plain)

"""The conversion plan: decide for every weight whether it is copied, quantized or repacked, before any is read."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from ..checkpoint.writer import Spec, planned_bytes
from ..errors import QuantizationError
from ..quantization.formats import AFFINE_BITS, PackedFormat
from ..quantization.recipes import Recipe
from .source import Source, SourceWeight

logger = logging.getLogger(__name__)

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True)
class Step:
    """The conversion of one weight.

    Attributes:
        weight: the source weight.
        name: name of the result as a plain weight.
        format: packed format of the result, or None for a plain weight.
        reuses_codes: whether the codes of the source are reused instead of being computed from the weight.
        outputs: `{name: (shape, dtype)}` of the tensors to write.
        dtype: dtype to cast to before packing or writing, or None to keep the dtype.
    """

    weight: SourceWeight
    name: str
    format: PackedFormat | None
    reuses_codes: bool
    outputs: dict[str, Spec]
    dtype: mx.Dtype | None


@dataclass
class Plan:
    """All steps of a conversion, and what the result reports about them.

    Attributes:
        steps: one step per weight.
        formats: layer path -> packed format.
        default: packed format of the recipe.
        kept: layers that stay in full precision because the group size does not divide their rows.
        requantized: layer path -> why its codes cannot be reused.
        dtype: dtype of scales and unpacked weights, or None to keep it.
        tied: value of `tie_word_embeddings`, or None to keep it.
        requantize_bits: bits of GPTQ and AWQ layers whose codes cannot be reused.
    """

    steps: list[Step] = field(default_factory=list)
    formats: dict[str, PackedFormat | None] = field(default_factory=dict)
    default: PackedFormat | None = None
    kept: list[str] = field(default_factory=list)
    requantized: dict[str, str] = field(default_factory=dict)
    dtype: mx.Dtype | None = None
    tied: bool | None = None
    requantize_bits: int = 8

    @property
    def outputs(self) -> dict[str, Spec]:
        """All tensors to write, as `{name: (shape, dtype)}`."""
        return {name: spec for step in self.steps for name, spec in step.outputs.items()}

    @property
    def bytes_in(self) -> int:
        """Size of the weights of the source."""
        return sum(step.weight.nbytes for step in self.steps)

    @property
    def bytes_out(self) -> int:
        """Size of the weights to write."""
        return sum(planned_bytes(spec) for spec in self.outputs.values())

    @property
    def parameters(self) -> int:
        """Number of parameters, counted before quantization."""
        return sum(step.weight.size for step in self.steps if mx.issubdtype(step.weight.dtype, mx.floating))

    @property
    def bits_per_weight(self) -> float:
        """Bits to write per parameter, including scales and unpacked weights."""
        return 8 * self.bytes_out / max(self.parameters, 1)


def make_plan(
    source: Source,
    recipe: Recipe | None,
    *,
    dequantize: bool = False,
    dtype: str | None = None,
    explicit_format: bool = False,
    requantize_bits: int = 8,
) -> Plan:
    """Decide how every weight of the source is converted.

    Args:
        source: the checkpoint to convert.
        recipe: the packed format of each layer, or None to pack no further layers.
        dequantize: unpack all weights.
        dtype: dtype of scales and unpacked weights. By default the dtype in the configuration, or the dtype of the
            scales if codes are reused.
        explicit_format: whether the user chose a format. Otherwise codes are reused in their own format.
        requantize_bits: bits of GPTQ and AWQ layers whose codes cannot be reused.

    Raises:
        QuantizationError: MLX already packed the source, or no weight can be packed.
    """
    if recipe is not None and source.method == "mlx":
        raise QuantizationError(
            f"{source.name} is already quantized. Convert the original, or dequantize it first with -d."
        )
    if requantize_bits not in AFFINE_BITS:
        raise QuantizationError(f"requantize_bits is {requantize_bits!r}, expected one of {AFFINE_BITS}.")
    plan = Plan(dtype=_choose_dtype(source, dtype, dequantize), requantize_bits=requantize_bits)
    weights, renamed, plan.tied = kept_weights(source)
    kept = {weight.name for weight in weights}
    dropped = [weight.name for weight in source.weights if weight.name not in kept]
    if dropped:
        logger.warning(
            "%d weights of heads that %s does not have are omitted, first %s. "
            "Set 'architectures' in config.json to the class of that head to keep them",
            len(dropped),
            source.model.__name__,
            dropped[0],
        )
    if recipe is not None:
        layers = {weight.path: weight.shape for weight in weights if weight.is_layer}
        plan.formats = recipe.formats(layers, source.is_head)
        plan.default = recipe.default
    for weight in weights:
        name = renamed.get(weight.name, weight.name)
        plan.steps.append(_plan_step(plan, source, weight, name, dequantize, explicit_format))
    if recipe is not None and not any(step.format for step in plan.steps):
        raise QuantizationError(f"no layer of {source.name} can be packed as {recipe.default}. Choose another format.")
    if plan.kept:
        logger.warning("%d layers stay in full precision, first %s", len(plan.kept), plan.kept[0])
    return plan


def _choose_dtype(source: Source, dtype: str | None, dequantize: bool) -> mx.Dtype | None:
    if dtype is not None:
        if dtype not in DTYPES:
            raise QuantizationError(f"dtype is {dtype!r}, which is unknown. Use one of {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    foreign = [weight.foreign for weight in source.weights if weight.foreign is not None]
    if foreign and source.method in ("gptq", "awq") and not dequantize:
        # Scales keep their dtype. The other weights get the same, because mixing 16-bit dtypes gives float32.
        return foreign[0].stored_dtype
    named = DTYPES.get(str(source.config.get("dtype") or source.config.get("torch_dtype")).rpartition(".")[2])
    if named is None and source.method is not None:
        return foreign[0].stored_dtype if foreign else mx.bfloat16
    return named


def kept_weights(source: Source) -> tuple[list[SourceWeight], dict[str, str], bool | None]:
    """Return the weights that are kept, their new names, and the new `tie_word_embeddings` (None: unchanged)."""
    alone = source.model.__name__ == "Qwen3ForCausalLM"  # stock mlx-lm refuses weights of other heads
    weights = [weight for weight in source.weights if not (alone and weight.name in source.content.other_heads)]
    return weights, {}, False if source.content.untied else None


def row_blocks(weight: SourceWeight, block_bytes: int = 16 << 20) -> list[tuple[int, int]]:
    """Return ranges of rows that take about `block_bytes` each in float32."""
    if not weight.shape:
        return [(0, 1)]
    rows = weight.shape[0]
    row_bytes = 4 * max(weight.size // max(rows, 1), 1)
    # Multiples of 128 rows consist of whole FP8 blocks and whole AWQ words.
    count = max(block_bytes // row_bytes // 128 * 128, 128)
    return [(start, min(start + count, rows)) for start in range(0, rows, count)]


def _plan_step(
    plan: Plan, source: Source, weight: SourceWeight, name: str, dequantize: bool, explicit_format: bool
) -> Step:
    path = name.removesuffix(".weight")
    format = plan.formats.get(weight.path)
    cast = plan.dtype if mx.issubdtype(weight.dtype, mx.floating) and not name.endswith("_amax") else None
    if weight.format is not None and not dequantize:
        return _plan_copy(weight, plan.dtype if weight.format.has_biases else None)
    own = weight.foreign.affine_format if weight.foreign is not None else None
    if weight.foreign is not None and source.method in ("gptq", "awq") and not dequantize:
        if own is not None and (not explicit_format or (format and format == PackedFormat(*own))):
            reuses_codes = PackedFormat(*own)
            plan.formats[path] = reuses_codes
            scale_dtype = plan.dtype or weight.foreign.stored_dtype
            outputs = _plan_outputs(path, reuses_codes, weight.shape, scale_dtype)
            return Step(weight, name, reuses_codes, True, outputs, scale_dtype)
        if format is None and not explicit_format and path not in plan.formats:
            size = next((size for size in (128, 64, 32) if weight.shape[1] % size == 0), None)
            format = PackedFormat(plan.requantize_bits, size) if size else None
        reason = weight.foreign.kept_apart or "another format was requested"
        plan.requantized[path] = reason if format else f"{reason}; stored unpacked"
    if format is not None and not format.divides(weight.shape):
        plan.kept.append(path)
        format = None
    plan.formats.pop(weight.path, None)
    dtype = cast or weight.dtype
    if format is None:
        return Step(weight, name, None, False, {name: (weight.shape, dtype)}, cast)
    plan.formats[path] = format
    return Step(weight, name, format, False, _plan_outputs(path, format, weight.shape, dtype), cast)


def _plan_outputs(path: str, format: PackedFormat, shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, Spec]:
    return {f"{path}.{part}": spec for part, spec in format.packed_specs(shape, dtype).items()}


def _plan_copy(weight: SourceWeight, dtype: mx.Dtype | None) -> Step:
    outputs: dict[str, Spec] = {}
    for name in weight.names:
        stored = weight.checkpoint.dtype(name)
        floating = mx.issubdtype(stored, mx.floating)
        outputs[name] = (weight.checkpoint.shape(name), dtype if dtype and floating else stored)
    return Step(weight, weight.name, weight.format, True, outputs, dtype)


def formats_by_path(plan: Plan) -> Mapping[str, PackedFormat | None]:
    """Return path -> format of all layers that the result packs."""
    return {step.name.removesuffix(".weight"): step.format for step in plan.steps if step.format is not None}

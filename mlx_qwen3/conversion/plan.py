"""The conversion plan: per weight, copy, quantize or repack, decided before any is read."""

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
        weight: where it comes from.
        name: of the plain weight that results.
        form: the packed format that results, None for a plain weight.
        mapped: its codes are reused; else they are computed from the weight.
        outputs: `{name: (shape, dtype)}` of what is written.
        dtype: the dtype it is cast to before it is packed or written, None to leave it.
    """

    weight: SourceWeight
    name: str
    form: PackedFormat | None
    mapped: bool
    outputs: dict[str, Spec]
    dtype: mx.Dtype | None


@dataclass
class Plan:
    """All steps, and what the user should hear about them."""

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
        return {name: spec for step in self.steps for name, spec in step.outputs.items()}

    @property
    def bytes_in(self) -> int:
        return sum(step.weight.nbytes for step in self.steps)

    @property
    def bytes_out(self) -> int:
        return sum(planned_bytes(spec) for spec in self.outputs.values())

    @property
    def parameters(self) -> int:
        return sum(step.weight.size for step in self.steps if mx.issubdtype(step.weight.dtype, mx.floating))

    @property
    def bits_per_weight(self) -> float:
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
        recipe: which layers are packed how; None to pack none that is not packed already.
        dequantize: unpack everything.
        dtype: of what is not packed, and of scales; default the configuration's, for reused codes the
            scales'.
        explicit_format: the recipe's format was asked for; else codes are reused in their own format.
        requantize_bits: of GPTQ and AWQ layers whose codes cannot be reused.

    Raises:
        QuantizationError: the source is packed by MLX already, or no weight could be packed.
    """
    if recipe is not None and source.method == "mlx":
        raise QuantizationError(
            f"{source.name} is quantized already: convert the original, or dequantize it first with -d"
        )
    if requantize_bits not in AFFINE_BITS:
        raise QuantizationError(f"requantize_bits is {requantize_bits!r}, expected one of {AFFINE_BITS}")
    plan = Plan(dtype=_target_dtype(source, dtype, dequantize), requantize_bits=requantize_bits)
    weights, renamed, plan.tied = kept_weights(source)
    kept = {weight.name for weight in weights}
    dropped = [weight.name for weight in source.weights if weight.name not in kept]
    if dropped:
        logger.warning(
            "%d weights of heads that %s does not have are left out, first %s. "
            "Name the class of that head in 'architectures' to keep it",
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
        plan.steps.append(_step(plan, source, weight, name, dequantize, explicit_format))
    if recipe is not None and not any(step.form for step in plan.steps):
        raise QuantizationError(f"no layer of {source.name} can be packed as {recipe.default}: choose another format")
    if plan.kept:
        logger.warning("%d layers stay in full precision, first %s", len(plan.kept), plan.kept[0])
    return plan


def _target_dtype(source: Source, dtype: str | None, dequantize: bool) -> mx.Dtype | None:
    if dtype is not None:
        if dtype not in DTYPES:
            raise QuantizationError(f"dtype {dtype!r} is unknown: use one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    foreign = [weight.foreign for weight in source.weights if weight.foreign is not None]
    if foreign and source.method in ("gptq", "awq") and not dequantize:
        # Scales keep their own precision; the other weights follow, because mixed 16-bit types make float32.
        return foreign[0].stored_dtype
    named = DTYPES.get(str(source.config.get("dtype") or source.config.get("torch_dtype")).rpartition(".")[2])
    if named is None and source.method is not None:
        return foreign[0].stored_dtype if foreign else mx.bfloat16
    return named


def kept_weights(source: Source) -> tuple[list[SourceWeight], dict[str, str], bool | None]:
    """Return the weights that are kept, new names, and what the config must say of tying (None: as it does)."""
    alone = source.model.__name__ == "Qwen3ForCausalLM"  # stock mlx-lm loads nothing with the weights of other heads
    weights = [weight for weight in source.weights if not (alone and weight.name in source.content.other_heads)]
    return weights, {}, False if source.content.untied else None


def row_blocks(weight: SourceWeight, block_bytes: int = 16 << 20) -> list[tuple[int, int]]:
    """Row ranges of about `block_bytes` each, counted in float32."""
    if not weight.shape:
        return [(0, 1)]
    rows = weight.shape[0]
    row_bytes = 4 * max(weight.size // max(rows, 1), 1)
    # Whole FP8 blocks and whole AWQ words: multiples of 128 rows.
    count = max(block_bytes // row_bytes // 128 * 128, 128)
    return [(start, min(start + count, rows)) for start in range(0, rows, count)]


def _step(plan: Plan, source: Source, weight: SourceWeight, name: str, dequantize: bool, explicit_format: bool) -> Step:
    path = name.removesuffix(".weight")
    form = plan.formats.get(weight.path)
    cast = plan.dtype if mx.issubdtype(weight.dtype, mx.floating) and not name.endswith("_amax") else None
    if weight.form is not None and not dequantize:
        return _copy_packed(weight, plan.dtype if weight.form.has_biases else None)
    own = weight.foreign.affine_format if weight.foreign is not None else None
    if weight.foreign is not None and source.method in ("gptq", "awq") and not dequantize:
        if own is not None and (not explicit_format or (form and form == PackedFormat(*own))):
            mapped = PackedFormat(*own)
            plan.formats[path] = mapped
            scale_dtype = plan.dtype or weight.foreign.stored_dtype
            outputs = _packed_outputs(path, mapped, weight.shape, scale_dtype)
            return Step(weight, name, mapped, True, outputs, scale_dtype)
        if form is None and not explicit_format and path not in plan.formats:
            size = next((size for size in (128, 64, 32) if weight.shape[1] % size == 0), None)
            form = PackedFormat(plan.requantize_bits, size) if size else None
        reason = weight.foreign.kept_apart or "another format was asked for"
        plan.requantized[path] = reason if form else f"{reason}; stored unpacked"
    if form is not None and not form.divides(weight.shape):
        plan.kept.append(path)
        form = None
    plan.formats.pop(weight.path, None)
    dtype = cast or weight.dtype
    if form is None:
        return Step(weight, name, None, False, {name: (weight.shape, dtype)}, cast)
    plan.formats[path] = form
    return Step(weight, name, form, False, _packed_outputs(path, form, weight.shape, dtype), cast)


def _packed_outputs(path: str, form: PackedFormat, shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, Spec]:
    return {f"{path}.{part}": spec for part, spec in form.packed_specs(shape, dtype).items()}


def _copy_packed(weight: SourceWeight, dtype: mx.Dtype | None) -> Step:
    outputs: dict[str, Spec] = {}
    for name in weight.names:
        stored = weight.checkpoint.dtype(name)
        floating = mx.issubdtype(stored, mx.floating)
        outputs[name] = (weight.checkpoint.shape(name), dtype if dtype and floating else stored)
    return Step(weight, weight.name, weight.form, True, outputs, dtype)


def formats_by_path(plan: Plan) -> Mapping[str, PackedFormat | None]:
    """Return path -> format of every layer that ends up packed."""
    return {step.name.removesuffix(".weight"): step.form for step in plan.steps if step.form is not None}

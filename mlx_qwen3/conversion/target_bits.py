"""Choose the format of each layer by its measured sensitivity, for a target size."""

import logging
from functools import partial
from pathlib import Path

import mlx.core as mx

from ..errors import InputError, QuantizationError
from ..quantization.formats import PackedFormat
from ..quantization.recipes import Recipe
from ..quantization.sensitivity import allocate, measure_layers
from .plan import kept_weights
from .quality import Measuring, has_tokenizer, log_measuring, read_samples, reference_model, vocabulary_size
from .source import Source, SourceWeight

logger = logging.getLogger(__name__)


def check_target(source: Source, target_bpw: float) -> None:
    """Check the requirements of a search for formats before the conversion starts.

    Raises:
        InputError: the target is not between 2 and 16, or the model has no output head.
        QuantizationError: there is no tokenizer to measure with.
    """
    if not isinstance(target_bpw, int | float) or not 2 <= target_bpw <= 16:
        raise InputError(f"target_bpw is {target_bpw!r}. Give bits per weight between 2 and 16, such as 4.5.")
    if "lm_head.weight" in source.content.fresh:
        raise InputError(
            f"{source.name} has no output head, which target_bpw needs to measure layers. Use quantize with q_bits."
        )
    if not has_tokenizer(source.folder):
        raise QuantizationError(
            f"{source.folder} has no tokenizer, which target_bpw needs to measure layers. Use quantize with q_bits."
        )


def formats_for_target(
    source: Source,
    recipe: Recipe,
    target_bpw: float,
    text: str | Path | None = None,
    measuring: Measuring | None = None,
) -> dict[str, PackedFormat | None]:
    """Return the format of each layer, so that the whole model takes at most `target_bpw` bits per weight.

    Layers that match an override of the recipe are not measured. Their size is subtracted from the budget.

    Args:
        source: the checkpoint to convert.
        recipe: the recipe with the overrides.
        target_bpw: bits per weight.
        text: a text file for measuring, or None for the calibration text in the package.
        measuring: called after every layer, first with 0.

    Raises:
        QuantizationError: the target cannot be reached.
    """
    vocab_size = vocabulary_size(source)
    samples, _, _ = read_samples(source.folder, vocab_size, text, "calibration")
    weights, _, _ = kept_weights(source)
    given = recipe.formats({w.path: w.shape for w in weights if w.is_layer}, source.is_head)
    layers = [path for path, format in given.items() if format is not None and not recipe.overridden(path)]
    report_progress = partial(measuring or log_measuring, "layers")
    report_progress(0, len(layers))
    sensitivity = measure_layers(reference_model(source), samples, layers, report_progress)
    numbers = [w for w in weights if mx.issubdtype(w.dtype, mx.floating)]
    fixed = sum(w.size * _count_bits(w, given.get(w.path)) for w in numbers if w.path not in layers)
    budget = target_bpw * sum(w.size for w in numbers) - fixed
    chosen = allocate({path: sensitivity[path] for path in layers}, budget)
    logger.info("chose formats for %d layers at %.2f bits per weight", len(chosen), target_bpw)
    return dict(chosen)


def _count_bits(weight: SourceWeight, format: PackedFormat | None) -> float:
    """Return the bits per weight of a weight that is not part of the search; 16 if it is not packed."""
    return format.bits_per_weight() if format is not None and format.divides(weight.shape) else 16

"""Bits where they matter: the format of each layer from measured sensitivity, for a wanted size."""

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
    """Look at what a search for formats needs, before any work is done.

    Raises:
        InputError: the target is not between 2 and 16, or the model has no output head.
        QuantizationError: there is no tokenizer to measure with.
    """
    if not isinstance(target_bpw, int | float) or not 2 <= target_bpw <= 16:
        raise InputError(f"target_bpw is {target_bpw!r}: give bits per weight between 2 and 16, such as 4.5")
    if "lm_head.weight" in source.content.fresh:
        raise InputError(
            f"{source.name} has no output head, so target_bpw cannot measure its layers. Use quantize with q_bits"
        )
    if not has_tokenizer(source.folder):
        raise QuantizationError(f"{source.folder} has no tokenizer: target_bpw needs one to measure layers")


def formats_for_target(
    source: Source,
    recipe: Recipe,
    target_bpw: float,
    text: str | Path | None = None,
    measuring: Measuring | None = None,
) -> dict[str, PackedFormat | None]:
    """Return the format of each layer so that the whole model takes at most `target_bpw` bits per weight.

    Layers that an override of the recipe names are not measured: what they take is taken off the budget.

    Args:
        text: a file to measure on instead of the calibration text that comes with the package.
        measuring: called as the layers are done, from 0 on.

    Raises:
        QuantizationError: the target cannot be reached.
    """
    vocab_size = vocabulary_size(source)
    samples, _, _ = read_samples(source.folder, vocab_size, text, "calibration")
    weights, _, _ = kept_weights(source)
    given = recipe.formats({w.path: w.shape for w in weights if w.is_layer}, source.is_head)
    layers = [path for path, form in given.items() if form is not None and not recipe.overridden(path)]
    heard = partial(measuring or log_measuring, "layers")
    heard(0, len(layers))
    sensitivity = measure_layers(reference_model(source), samples, layers, heard)
    numbers = [w for w in weights if mx.issubdtype(w.dtype, mx.floating)]
    fixed = sum(w.size * _bits(w, given.get(w.path)) for w in numbers if w.path not in layers)
    budget = target_bpw * sum(w.size for w in numbers) - fixed
    chosen = allocate({path: sensitivity[path] for path in layers}, budget)
    logger.info("chose formats for %d layers at %.2f bits per weight", len(chosen), target_bpw)
    return dict(chosen)


def _bits(weight: SourceWeight, form: PackedFormat | None) -> float:
    """Return bits per weight of one that is not searched for; 16 where it stays plain."""
    return form.bits_per_weight() if form is not None and form.divides(weight.shape) else 16

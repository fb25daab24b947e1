"""Bits where they matter: the format of each layer from measured sensitivity, for a wanted size."""

import logging
from pathlib import Path

import mlx.core as mx

from ..errors import InputError, QuantizationError
from ..quantization.formats import PackedFormat
from ..quantization.recipes import Recipe
from ..quantization.sensitivity import allocate, measure_layers
from .quality import has_tokenizer, read_samples, reference_model
from .source import Source

logger = logging.getLogger(__name__)


def formats_for_target(
    source: Source, recipe: Recipe, target_bpw: float, text: str | Path | None = None
) -> dict[str, PackedFormat | None]:
    """The format of each layer so that the whole model takes at most `target_bpw` bits per weight.

    Args:
        text: a file to measure on instead of the calibration text that comes with the package.

    Raises:
        InputError: the target is not between 2 and 16.
        QuantizationError: the target cannot be reached, or there is no tokenizer to measure with.
    """
    if not 2 <= target_bpw <= 16:
        raise InputError(f"target_bpw is {target_bpw}: give bits per weight between 2 and 16, such as 4.5")
    if not has_tokenizer(source.folder):
        raise QuantizationError(f"{source.folder} has no tokenizer: target_bpw needs one to measure layers")
    vocab_size = int(source.config.get("vocab_size", 151936))
    samples, _, _ = read_samples(source.folder, vocab_size, text, "calibration")
    model = reference_model(source)
    layers = {w.path: w.shape for w in source.weights if w.is_layer and (recipe.heads or not source.is_head(w.path))}
    paths = {path: source.path_in_memory(path) for path in layers}
    sensitivity = measure_layers(model, samples, [paths[path] for path in layers])
    rest = sum(w.size for w in source.weights if w.path not in layers and mx.issubdtype(w.dtype, mx.floating))
    total = source.parameters
    budget = target_bpw * total - 16 * rest
    chosen = allocate({path: sensitivity[paths[path]] for path in layers}, budget)
    logger.info("chose formats for %d layers at %.2f bits per weight", len(chosen), target_bpw)
    return dict(chosen)

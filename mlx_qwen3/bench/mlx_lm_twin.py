"""mlx-lm's own Qwen3 over the very arrays of a model here. Imports mlx_lm, which takes seconds, when it is called."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .measure import Runner


def mlx_lm_model(config: Any, weights: Mapping[str, mx.array], formats: Mapping[str, Mapping[str, Any]]) -> Any:
    """mlx-lm's model with these weights.

    Args:
        config: a `Qwen3Config`.
        weights: by their Hugging Face names.
        formats: path of each packed layer -> its group_size, bits and mode.

    Raises:
        ImportError: mlx-lm is not installed.
    """
    module = importlib.import_module("mlx_lm.models.qwen3")
    fields = {**config.to_dict(), "model_type": "qwen3", "rope_theta": config.rope_parameters["rope_theta"]}
    fields.pop("rope_scaling", None)
    model = module.Model(module.ModelArgs.from_dict(fields))
    if formats:
        nn.quantize(model, class_predicate=lambda path, _: dict(formats[path]) if path in formats else False)
    model.load_weights(list(weights.items()))
    model.eval()
    return model


def mlx_lm_runner(model: Any) -> Runner:
    """mlx-lm's `generate_step` as a `Runner`."""
    generate = importlib.import_module("mlx_lm.generate")

    def run(prompt: list[int], max_tokens: int) -> Iterator[int]:
        # its own stream was made for the device that was the default when mlx_lm was first imported
        stream = mx.default_stream(mx.default_device())
        for token, _ in generate.generate_step(mx.array(prompt), model, stream, max_tokens=max_tokens):
            yield int(token)

    return run

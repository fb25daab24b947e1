"""mlx-lm's own Qwen3 over the very arrays of a model here. Imports mlx_lm, which takes seconds, when it is called."""

import importlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .measure import Runner


def mlx_lm_model(own: Any, dtype: mx.Dtype | None = None) -> Any:
    """mlx-lm's model over the arrays of a causal model here.

    Its matrices are joined for inference first: joined later, both the joined and the single ones would stay in memory.

    Args:
        own: a `Qwen3ForCausalLM`.
        dtype: what numbers are brought to; by default they stay as they are, and are shared.

    Raises:
        ImportError: mlx-lm is not installed.
    """
    own.for_inference()
    config = own.config
    parameters: Any = tree_flatten(own.parameters())
    weights = {
        name: array.astype(dtype) if dtype and mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in parameters
    }
    formats = {
        path: {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        for path, layer in own.named_modules()
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
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

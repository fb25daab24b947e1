"""mlx-lm's Qwen3 on the arrays of a model of this package.

mlx_lm is imported inside the functions, because the import takes seconds.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .measure import Runner


def mlx_lm_model(own: Any, dtype: mx.Dtype | None = None) -> Any:
    """Return mlx-lm's model on the arrays of a causal model of this package.

    The projections of `own` are joined for inference first. If they were joined later, mlx-lm would keep the separate
    matrices in memory as well.

    Args:
        own: a `Qwen3ForCausalLM`.
        dtype: dtype of mlx-lm's floating-point arrays; None shares the arrays of `own`.

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
    """Return a `Runner` that calls mlx-lm's `generate_step`."""
    generate = importlib.import_module("mlx_lm.generate")

    def run(prompt: list[int], max_tokens: int) -> Iterator[int]:
        # mlx_lm creates its stream at import, for the default device of that moment
        stream = mx.default_stream(mx.default_device())
        for token, _ in generate.generate_step(mx.array(prompt), model, stream, max_tokens=max_tokens):
            yield int(token)

    return run

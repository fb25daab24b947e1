"""Translate mlx-lm adapters to the names, ranks and orientation of PEFT.

Source: mlx-lm 0.32 `tuner/utils.py` (linear_to_lora_layers, load_adapters), `tuner/lora.py`, `tuner/dora.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, UnsupportedModelError
from .folder import Adapter

PARTS = {"lora_a", "lora_b", "m"}


@dataclass(frozen=True)
class MlxLmPlan:
    """The layers that an mlx-lm adapter changes, and how.

    Attributes:
        paths: names of the adapted layers.
        r: rank.
        scale: scale of the update.
        dropout: dropout probability in training.
        dora: whether it is DoRA instead of LoRA.
        weights: arrays of the adapter by PEFT's names.
    """

    paths: list[str]
    r: int
    scale: float
    dropout: float
    dora: bool
    weights: dict[str, mx.array]


def plan_mlx_lm(adapter: Adapter, modules: Mapping[str, nn.Module], layers: int) -> MlxLmPlan:
    """Return what an mlx-lm adapter of type lora or dora changes in a causal model.

    Args:
        modules: modules of the model by name.
        layers: number of transformer blocks in the model.

    Raises:
        UnsupportedModelError: an option or the type is unknown.
        CheckpointError: a setting is missing, or the tensors do not belong to the layers that the settings name.
    """
    source, config = adapter.source, adapter.config
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UnsupportedModelError(f"{source}: fine_tune_type {kind!r} is not supported. Expected lora, dora or full.")
    settings = config.get("lora_parameters")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{source}: lora_parameters is missing. Copy adapter_config.json again.")
    for name in ("rank", "scale"):
        value = settings.get(name)
        least = 1 if name == "rank" else -(2**31)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 2**31:
            found = " (mlx-lm does not read 'alpha')" if "alpha" in settings else ""
            raise CheckpointError(f"{source}: lora_parameters has no {name!r}{found}. Add it to adapter_config.json.")
    unknown = sorted(set(settings) - {"rank", "scale", "dropout", "keys", "alpha"})
    if unknown:
        raise UnsupportedModelError(f"{source}: lora_parameters field {unknown[0]!r} is not supported. Remove it.")
    count = config.get("num_layers")
    if not isinstance(count, int) or isinstance(count, bool):
        raise CheckpointError(
            f"{source}: num_layers is {count!r}, expected a whole number. Correct adapter_config.json."
        )
    paths = _find_paths(settings.get("keys"), modules, layers, count, source)
    return MlxLmPlan(
        paths,
        int(settings["rank"]),
        float(settings["scale"]),
        float(settings.get("dropout") or 0.0),
        kind == "dora",
        _translate_weights(adapter, paths, modules, kind == "dora"),
    )


def _find_paths(keys: Any, modules: Mapping[str, nn.Module], layers: int, count: int, source: str) -> list[str]:
    adaptable = {path: layer for path, layer in modules.items() if hasattr(layer, "weight") and _is_adaptable(layer)}
    blocks = range(layers)[-max(count, 0) :]
    inside = {f"model.layers.{index}.": index for index in blocks}
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise CheckpointError(f"{source}: lora_parameters field 'keys' is {keys!r}, expected a list. Correct it.")
    found = []
    for path in adaptable:
        prefix = next((prefix for prefix in inside if path.startswith(prefix)), None)
        in_block = prefix is not None and (keys is None or path.removeprefix(prefix) in keys)
        if in_block or (keys is not None and path in keys):
            found.append(path)
    if not found:
        raise CheckpointError(
            f"{source}: lora_parameters field 'keys' matches no layer of the model: {keys}. Correct it."
        )
    return found


def _is_adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.QuantizedLinear | nn.Embedding | nn.QuantizedEmbedding)


def _translate_weights(
    adapter: Adapter, paths: list[str], modules: Mapping[str, nn.Module], dora: bool
) -> dict[str, mx.array]:
    expected = {f"{path}.{part}" for path in paths for part in (PARTS if dora else PARTS - {"m"})}
    missing, extra = sorted(expected - set(adapter.weights)), sorted(set(adapter.weights) - expected)
    if missing:
        raise CheckpointError(f"{adapter.source}: tensor {missing[0]!r} is missing. Copy the adapter again.")
    if extra:
        raise CheckpointError(
            f"{adapter.source}: tensor {extra[0]!r} does not belong to a layer that adapter_config.json names. Correct "
            "num_layers or keys."
        )
    weights = {}
    for path in paths:
        embedding = isinstance(modules[path], nn.Embedding | nn.QuantizedEmbedding)
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        weights[f"{path}.{a}"] = adapter.weights[f"{path}.lora_a"].T
        weights[f"{path}.{b}"] = adapter.weights[f"{path}.lora_b"].T
        if dora:
            weights[f"{path}.lora_magnitude_vector"] = adapter.weights[f"{path}.m"]
    return weights

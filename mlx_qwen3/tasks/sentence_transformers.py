"""Settings of a sentence-transformers folder: the steps from hidden states to one vector per text.

`modules.json` lists the steps after the encoder; each step has its own folder. Files beside it set the prompts, the
maximum length and the similarity function. Every setting is applied, or refused with an error that names it.
Source: sentence-transformers 6.2, `base/model.py`, `sentence_transformer/modules/pooling.py`, `base/modules/dense.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModelError
from ..files import read_json, read_json_object

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    "SiLU": lambda x: x * np.exp(-np.logaddexp(0, -x)),
    "GELU": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2))),
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

Step = Callable[[np.ndarray], np.ndarray]
"""A function from a vector (D,) to a vector (E,)."""


@dataclass(frozen=True)
class SentenceSettings:
    """The settings of one folder.

    encoder: the folder of the model itself.
    pooling: pooling modes whose vectors are concatenated, in this order.
    include_prompt: whether the prompt's tokens are pooled too.
    steps: functions applied in turn to the pooled vector.
    dimensions: output dimensions of the last Dense step, before truncation; None without one.
    normalized: whether the last step normalizes to length 1.
    """

    encoder: Path
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Step, ...] = ()
    dimensions: int | None = None
    normalized: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    max_seq_length: int | None = None
    do_lower_case: bool = False
    truncate_dim: int | None = None
    similarity: str = "cosine"

    def check_width(self, hidden_size: int) -> None:
        """Raise `CheckpointError` if the steps do not accept the vectors of a model of this width."""
        vector = np.ones(hidden_size * len(self.pooling), np.float32)
        try:
            for step in self.steps:
                vector = step(vector)
        except ValueError as problem:
            raise CheckpointError(
                f"{self.encoder}: a step of modules.json does not take vectors of {len(vector)} numbers: {problem}. "
                "Download the model again."
            ) from None


def read_sentence_settings(folder: Path) -> SentenceSettings | None:
    """Return the settings of a sentence-transformers folder; None for a folder without `modules.json`.

    Raises:
        CheckpointError: a settings file is missing or invalid.
        UnsupportedModelError: a step, a pooling mode or a setting is not supported; the message names it.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = read_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / 'modules.json'} does not list modules. Download the model again.")
    modules = sorted(modules, key=lambda module: module.get("idx", 0) if isinstance(module.get("idx"), int) else 0)
    values: dict[str, Any] = {"pooling": None}
    steps: list[Step] = []
    for position, module in enumerate(modules):
        kind, path = str(module.get("type", "")).rpartition(".")[2], module.get("path", "")
        location = _module_folder(folder, path)
        if position == 0:
            if kind != "Transformer":
                raise UnsupportedModelError(
                    f"{folder}: the first module is {kind!r}, expected a Transformer. Use sentence-transformers."
                )
            values["encoder"] = location
        elif kind == "Pooling":
            values |= _pooling(location)
        elif kind == "Dense":
            step, values["dimensions"] = _dense(location)
            steps.append(step)
        elif kind == "Normalize":
            steps.append(unit_length)
        elif kind == "LayerNorm":
            steps.append(_layer_norm(location))
        elif kind != "Dropout":  # dropout has no effect after training
            raise UnsupportedModelError(
                f"{folder}: the module {kind!r} of modules.json is not supported. Use sentence-transformers."
            )
        if kind != "Dropout":
            values["normalized"] = kind == "Normalize"
    if "encoder" not in values:
        raise CheckpointError(f"{folder / 'modules.json'} is empty. Download the model again.")
    if values["pooling"] is None:
        raise UnsupportedModelError(f"{folder}: modules.json lists no Pooling. Use sentence-transformers.")
    return SentenceSettings(steps=tuple(steps), **values, **_prompts(folder), **_limits(values["encoder"]))


def unit_length(vector: np.ndarray) -> np.ndarray:
    """Return the vector divided by its length."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def pool(states: np.ndarray, mode: str, skip: int = 0) -> np.ndarray:
    """Return one vector (M,) for the hidden states (L, M) of a text.

    Args:
        mode: one of `POOLING_MODES`.
        skip: number of leading tokens, those of the prompt, that are not pooled.
    """
    kept = states[skip:] if skip < len(states) else states[-1:]
    if mode == "cls":
        return kept[0]
    if mode == "lasttoken":
        return kept[-1]
    if mode == "max":
        return kept.max(axis=0)
    if mode == "weightedmean":
        weights = np.arange(len(states) - len(kept) + 1, len(states) + 1, dtype=np.float32)[:, None]
        return (kept * weights).sum(axis=0) / weights.sum()
    count = len(kept)
    return kept.sum(axis=0) / (count if mode == "mean" else math.sqrt(count))


def _module_folder(folder: Path, path: Any) -> Path:
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{folder / 'modules.json'} names the path {path!r}, which lies outside the folder.")
    return folder / path


def _pooling(folder: Path) -> dict[str, Any]:
    config = read_json_object(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    known = isinstance(modes, list) and all(mode in POOLING_MODES for mode in modes) and modes
    unknown = [key for key in config if key.startswith("pooling_mode_") and key not in LEGACY_POOLING and config[key]]
    if not known or unknown:
        raise UnsupportedModelError(
            f"{folder / 'config.json'}: pooling {unknown or modes} is not supported, only {', '.join(POOLING_MODES)}. "
            "Use sentence-transformers."
        )
    return {
        "pooling": tuple(modes),
        "include_prompt": bool(config.get("include_prompt", True)),
    }


def _weights(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder}: there is no model.safetensors. Pickled weights are never read: save the model again with "
            "safe_serialization=True."
        )
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        weights = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'model.safetensors'} cannot be read: {error}. Download it again.") from None
    return {name: array.astype(np.float32) for name, array in weights.items()}


def _dense(folder: Path) -> tuple[Step, int]:
    config, weights = read_json_object(folder / "config.json"), _weights(folder)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{folder}: activation_function {name!r} is not supported, only {', '.join(ACTIVATIONS)}. "
            "Use sentence-transformers."
        )
    places = {config.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name")} - {None}
    if places != {"sentence_embedding"}:
        raise UnsupportedModelError(
            f"{folder}: a Dense step over {places} is not supported. Use sentence-transformers."
        )
    weight, bias = weights.get("linear.weight"), weights.get("linear.bias")
    shape = (config.get("out_features"), config.get("in_features"))
    if weight is None or weight.shape != shape or (bias is None) == bool(config.get("bias", True)):
        raise CheckpointError(f"{folder}: the weights do not fit config.json. Download the model again.")
    residual = weights.get("residual.weight")
    use_residual, activation = bool(config.get("use_residual", False)), ACTIVATIONS[name]
    if use_residual and residual is None and shape[0] != shape[1]:
        raise CheckpointError(f"{folder}: residual.weight is missing. Download the model again.")

    def step(vector: np.ndarray) -> np.ndarray:
        result = activation(weight @ vector + (0 if bias is None else bias))
        if use_residual:
            result = result + (vector if residual is None else residual @ vector)
        return result

    return step, weight.shape[0]


def _layer_norm(folder: Path) -> Step:
    weights = _weights(folder)
    weight, bias = weights.get("norm.weight"), weights.get("norm.bias")
    if weight is None or bias is None:
        raise CheckpointError(f"{folder}: norm.weight or norm.bias is missing. Download the model again.")
    return lambda vector: (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5) * weight + bias


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    config = read_json_object(path) if path.is_file() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"{path}: 'prompts' is not a mapping of names to texts. Correct it.")
    default, similarity = config.get("default_prompt_name"), config.get("similarity_fn_name") or "cosine"
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name {default!r} is not one of the prompts {sorted(prompts)}.")
    if similarity not in SIMILARITIES:
        raise UnsupportedModelError(
            f"{path}: similarity_fn_name {similarity!r} is not supported, only {', '.join(SIMILARITIES)}."
        )
    truncate = config.get("truncate_dim")
    if truncate is not None and (not isinstance(truncate, int) or isinstance(truncate, bool) or truncate < 1):
        raise CheckpointError(f"{path}: truncate_dim is {truncate!r}, expected a whole number above 0.")
    return {
        "prompts": {name: text or "" for name, text in prompts.items()},
        "default_prompt_name": default,
        "similarity": similarity,
        "truncate_dim": truncate,
    }


def _limits(folder: Path) -> dict[str, Any]:
    path = folder / "sentence_bert_config.json"
    config = read_json_object(path) if path.is_file() else {}
    longest = config.get("max_seq_length")
    if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool) or longest < 1):
        raise CheckpointError(f"{path}: max_seq_length is {longest!r}, expected a whole number above 0.")
    return {"max_seq_length": longest, "do_lower_case": bool(config.get("do_lower_case", False))}

"""Recognize and read adapter folders of PEFT and mlx-lm, and write PEFT folders.

Both write an adapter_config.json; the field `peft_type` distinguishes them. Weights in pickle files are never opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..bundled import bundled_model_path, is_bundled_path
from ..checkpoint import Checkpoint, HubOptions, read_header, resolve_checkpoint, write_checkpoint
from ..errors import CheckpointError, HubError, UnsupportedModelError
from ..files import json_text, read_json_object
from ..folders import update_folder
from .peft_config import adapter_class_name

CONFIG_NAME = "adapter_config.json"
PEFT_WEIGHTS, MLX_LM_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
TRAINING_NAME = "training.json"
"""File that training writes next to an adapter, for label names and other values that PEFT has no field for."""
PREFIX = "base_model.model."
MAX_FILE_BYTES = 1 << 50


@dataclass
class Adapter:
    """The content of an adapter folder.

    Attributes:
        source: the path or Hub id as the user gave it, for messages.
        config: content of adapter_config.json.
        weights: parameter name in the model -> array; mlx-lm's own names for its adapters.
        is_mlx_lm: whether mlx-lm wrote the adapter.
        base: folder or Hub repository of the base model that the adapter names, or None.
        class_name: the class that the adapter is for; None if the base model decides.
        folder: where the files are.
        training: content of training.json, empty without that file.
    """

    source: str
    config: dict[str, Any]
    weights: dict[str, mx.array]
    is_mlx_lm: bool
    base: str | None
    class_name: str | None
    folder: Path
    training: dict[str, Any] = field(default_factory=dict)

    def needs_base(self) -> str:
        """Return the base model that the adapter names.

        Raises:
            CheckpointError: the adapter names no base model.
        """
        if self.base is None:
            name = "model" if self.is_mlx_lm else "base_model_name_or_path"
            raise CheckpointError(
                f"{self.source}: the adapter names no base model (field {name!r} is empty). Load the base and pass "
                "adapter=, or --adapter."
            )
        return self.base

    def base_folder(self, hub: HubOptions | None = None) -> Path:
        """Return the folder of the base model that the adapter names.

        Args:
            hub: how to download the base model. Its `revision` and `subfolder` are not used: the revision is the
                one in adapter_config.json.

        Raises:
            CheckpointError: the adapter names no base model.
            CheckpointError, HubError: the base model is not found; the message names the adapter.
        """
        base = self.needs_base()
        try:
            options = (hub or HubOptions()).for_other_repository(self.config.get("revision"))
            return resolve_checkpoint(base, hub=options)
        except (CheckpointError, HubError) as error:
            raise type(error)(f"{self.source} is an adapter for {base}, which cannot be loaded: {error}") from None

    def heads(self) -> frozenset[str]:
        """Return the names of the head weights that the adapter stores completely."""
        return frozenset(name for name in self.weights if name.startswith(("score.", "qa_outputs.", "classifier.")))

    def config_overrides(self, base_labels: int | None) -> dict[str, Any]:
        """Return the configuration fields of the base model that the adapter replaces, mainly the labels.

        Args:
            base_labels: number of labels that the base model names; None if it names none.
        """
        overrides = dict(self.training.get("config") or {})
        rows = [
            array.shape[0] for name, array in self.weights.items() if name == "score.weight" and len(array.shape) == 2
        ]
        if rows and "id2label" not in overrides and base_labels != rows[0]:
            overrides["num_labels"] = rows[0]
        return overrides


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder holds an adapter but no complete model."""
    if not (folder / CONFIG_NAME).is_file():
        return False
    return not ((folder / "config.json").is_file() and any(folder.glob("model*.safetensors")))


def refuse_outer_folder(folder: Path, source: str) -> None:
    """Raise for a folder without a model or adapter whose subfolders hold adapters.

    Raises:
        CheckpointError: the message names the adapters and how to load the first one.
    """
    if (folder / "config.json").is_file() or (folder / CONFIG_NAME).is_file():
        return
    named = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    if named:
        raise CheckpointError(
            f"{source} has no {CONFIG_NAME}, only the subfolders {', '.join(named)} with adapters. "
            f"Load {source}/{named[0]}."
        )


def read_adapter(path_or_id: str | Path, revision: str | None = None, *, hub: HubOptions | None = None) -> Adapter:
    """Read the adapter of PEFT or mlx-lm in a folder or Hub repository. Weights are read when they are first used.

    Args:
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        hub: the other options of the download, such as the token.

    Raises:
        CheckpointError: there is no adapter, a file is damaged, or the weights are in a pickle file.
        UnsupportedModelError: the task of the adapter is not supported.
        HubError: the repository cannot be downloaded.
    """
    source = str(path_or_id)
    folder = resolve_checkpoint(path_or_id, revision=revision, hub=hub)
    if not (folder / CONFIG_NAME).is_file():
        refuse_outer_folder(folder, source)
        raise CheckpointError(f"{source} has no {CONFIG_NAME}. Give the folder of an adapter.")
    config = read_json_object(folder / CONFIG_NAME)
    is_mlx_lm = "peft_type" not in config and ("fine_tune_type" in config or "lora_parameters" in config)
    if not is_mlx_lm and "peft_type" not in config:
        raise UnsupportedModelError(
            f"{source}: adapter field 'peft_type' is missing in {CONFIG_NAME}. Load an adapter of PEFT or mlx-lm."
        )
    if not is_mlx_lm and config["peft_type"] != "LORA":
        from .peft_config import parse_peft_config

        parse_peft_config(config, source)  # raises for the type before any other field is checked
    base = config.get("model" if is_mlx_lm else "base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise CheckpointError(
            f"{source}: adapter field 'base_model_name_or_path' is not a string. Correct {CONFIG_NAME}."
        )
    if base and is_bundled_path(base) and not os.path.isdir(base):  # trained with another installation of the package
        base = str(bundled_model_path())
    training = _read_training(folder / TRAINING_NAME)
    weights = _read_weights(folder, MLX_LM_WEIGHTS if is_mlx_lm else PEFT_WEIGHTS, source)
    if not is_mlx_lm:
        weights = {name.removeprefix(PREFIX): array for name, array in weights.items()}
    class_name = "Qwen3ForCausalLM" if is_mlx_lm else adapter_class_name(config, source)
    return Adapter(source, config, weights, is_mlx_lm, base or None, class_name, folder, training)


def _read_training(file: Path) -> dict[str, Any]:
    """Return the content of training.json after checking the fields that are used; empty without that file."""
    if not file.is_file():
        return {}
    training = read_json_object(file)
    config = training.get("config") or {}
    labels = config.get("id2label") or {} if isinstance(config, dict) else None
    if not isinstance(labels, dict) or not all(str(key).isdecimal() for key in labels):
        raise CheckpointError(f"{file}: field 'config' is malformed: {config!r:.80}. Copy the adapter again.")
    return training


def _read_weights(folder: Path, name: str, source: str) -> dict[str, mx.array]:
    file = folder / name
    if not file.is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{source}: the adapter's weights are in a pickle file ({pickles[0]}), which can run code and is never "
                "opened. Save the adapter with PEFT and safe_serialization=True."
            )
        raise CheckpointError(f"{source} has no {name}. Download or save the adapter again.")
    entries, metadata = read_header(file)
    return Checkpoint(folder, entries, metadata, [file]).read_all()


# writing


def is_adapter_file(name: str) -> bool:
    """Return whether a file of this name belongs to an adapter."""
    return name in (CONFIG_NAME, PEFT_WEIGHTS, MLX_LM_WEIGHTS, TRAINING_NAME, "adapter_model.bin")


def write_adapter(
    folder: str | Path,
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
    *,
    training: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write an adapter folder in PEFT's format. All files are replaced together.

    Args:
        config: content of adapter_config.json.
        weights: parameter name in the model -> array.
        training: content of training.json; no file is written if it is empty.
        card: content of README.md; a short card by default, which does not replace an existing file.

    Raises:
        CheckpointError: the folder holds a model or cannot be written, or the disk is full.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        # With a config.json, transformers would look for the base model's weights in the adapter folder.
        raise CheckpointError(f"{folder} holds a model, so an adapter cannot be saved there. Choose another folder.")
    with update_folder(folder, replaces=is_adapter_file) as staging:
        named = {PREFIX + name: array for name, array in sorted(weights.items())}
        write_checkpoint(staging, named, {"format": "pt"}, MAX_FILE_BYTES)
        os.rename(staging / "model.safetensors", staging / PEFT_WEIGHTS)
        (staging / "model.safetensors.index.json").unlink()
        (staging / CONFIG_NAME).write_text(json_text(dict(sorted(config.items()))), encoding="utf-8")
        if training:
            (staging / TRAINING_NAME).write_text(json_text(dict(training)), encoding="utf-8")
        if card is not None or not (folder / "README.md").exists():
            (staging / "README.md").write_text(card or _make_card(config), encoding="utf-8")


def _make_card(config: Mapping[str, Any]) -> str:
    base = config.get("base_model_name_or_path")
    named = f"base_model: {base}\n" if base else ""
    return (
        f"---\n{named}library_name: peft\ntags:\n- lora\n- mlx\n---\n\n# LoRA adapter\n\n"
        "Load it with `mlx_qwen3.load(FOLDER)` or with PEFT.\n"
    )

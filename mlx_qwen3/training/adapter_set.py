"""Several adapters over one base model, selected per call, without copying the base."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn

from .. import models
from ..adapters import Adapter, read_adapter
from ..adapters.attach import attach_adapter
from ..adapters.layers import plain_linear
from ..checkpoint import resolve_checkpoint, take_hub_options
from ..errors import InputError
from ..loading import base_of, load
from ..tokenizer import Tokenizer


class AdapterSet:
    """Several adapters by name over one base model.

    Each adapter has its own model with its own class, head and low-rank matrices. All models share the arrays of the
    base, so an additional adapter needs only the memory of its own weights. Calls with different adapters are
    independent.

    Args:
        adapters: folders or Hub repositories of adapters, by name.
        model: the base; default: the base of the first adapter.
        **options: arguments of `mlx_qwen3.load` for the base, such as `dtype`. Arguments of the Hub such as `token`
            also apply to the adapters, except `revision` and `subfolder`.

    Raises:
        InputError: no adapters are given.
        CheckpointError, UnsupportedModelError: an adapter does not fit the base.

    >>> adapters = AdapterSet({"mood": "mood-adapter", "topic": "topic-adapter"})  # doctest: +SKIP
    >>> adapters("mood", input_ids).logits  # doctest: +SKIP
    """

    def __init__(self, adapters: Mapping[str, str | Path], model: str | Path | None = None, **options: Any):
        if not adapters:
            raise InputError("an AdapterSet needs at least one adapter. Give name -> folder.")
        hub = take_hub_options(options, type(self).__name__)
        self._hub = hub.for_other_repository()
        found = {name: read_adapter(path, hub=self._hub) for name, path in adapters.items()}
        base = next(iter(found.values())).needs_base() if model is None else model
        folder = base_of(resolve_checkpoint(base, hub=hub), self._hub)[0]
        self.base, self.tokenizer = load(folder, **options)
        self.tokenizer: Tokenizer
        self._models: dict[str, Any] = {}
        self._tasks: dict[tuple[str, str], Any] = {}
        for name, adapter in found.items():
            self._models[name] = self._build_model(adapter)

    def __len__(self) -> int:
        return len(self._models)

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def model(self, adapter: str | None = None) -> Any:
        """Return the model with an adapter, or the base for None.

        Raises:
            InputError: the name is unknown.
        """
        if adapter is None:
            return self.base
        if adapter not in self._models:
            raise InputError(f"there is no adapter {adapter!r}. Use one of {', '.join(self._models)}.")
        return self._models[adapter]

    def __call__(self, adapter: str | None = None, *arguments: Any, **keywords: Any) -> Any:
        """Call the model with an adapter; the arguments are those of the model."""
        return self.model(adapter)(*arguments, **keywords)

    def pipeline(self, task: str, inputs: Any, *, adapter: str | None = None, **options: Any) -> Any:
        """Run a task with an adapter and return its results; the task is kept for later calls.

        Args:
            task: name of the task, as for `mlx_qwen3.pipeline`.
            inputs, **options: arguments of the task.
        """
        from ..tasks import pipeline

        key = task, adapter or ""
        if key not in self._tasks:
            make: Any = pipeline  # its overloads need the name of the task as a literal
            self._tasks[key] = make(task, self.model(adapter), self.tokenizer)
        return self._tasks[key](inputs, **options)

    def add(self, name: str, adapter: str | Path) -> None:
        """Load another adapter; replace an adapter of the same name."""
        self._models[name] = self._build_model(read_adapter(adapter, hub=self._hub))
        self._tasks = {key: task for key, task in self._tasks.items() if key[1] != name}

    def remove(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            InputError: the name is unknown.
        """
        self.model(name)
        del self._models[name]
        self._tasks = {key: task for key, task in self._tasks.items() if key[1] != name}

    def _build_model(self, adapter: Adapter) -> Any:
        cls = getattr(models, adapter.class_name or type(self.base).__name__)
        config = self.base.config
        labels = config.num_labels if "id2label" in config.__dict__ else None
        fields = adapter.config_overrides(labels)
        if type(self.base) is cls and not adapter.heads():
            model = share(self.base)
            model.config = type(config).from_dict(config.to_dict(), **fields)
        else:
            model = cls(type(config).from_dict(config.to_dict(), **fields))
            if cls.base_model_prefix:
                model[cls.base_model_prefix] = share(self.base.base_model)
            else:
                model = share(self.base.base_model)
            if "lm_head" in model:
                head = self.base.get("lm_head")
                rows = self.base.base_model.embed_tokens
                model.lm_head = share(head) if head is not None else plain_linear(rows.weight, None)
        attach_adapter(model, adapter)
        model.eval()
        return model


def share(module: Any) -> Any:
    """Copy a tree of modules that shares its arrays, so that layers can be replaced in the copy only."""
    copied = copy.copy(module)
    for name, value in list(copied.items()):
        copied[name] = _share_value(value)
    return copied


def _share_value(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return share(value)
    if isinstance(value, list):
        return [_share_value(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _share_value(entry) for name, entry in value.items()}
    return value

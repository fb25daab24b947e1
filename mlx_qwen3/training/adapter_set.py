"""Several adapters over one base model, chosen per call, without a copy of the base."""

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
from ..checkpoint import resolve_checkpoint
from ..errors import InputError
from ..loading import base_of, load
from ..tokenizer import Tokenizer


class AdapterSet:
    """Adapters by name over one base model.

    Every adapter has a model of its own class, with its own head and its own low-rank matrices; the arrays of the base
    are shared by all, so that one more adapter costs what its file holds. Calls for different adapters do not disturb
    one another.

    Args:
        adapters: name -> folder or Hub repository of an adapter.
        model: the base; by default the one that the first adapter names.
        **options: what `mlx_qwen3.load` takes for the base, such as `dtype`.

    Raises:
        InputError: no adapters.
        CheckpointError, UnsupportedModelError: an adapter that does not fit the base.

    >>> adapters = AdapterSet({"mood": "mood-adapter", "topic": "topic-adapter"})  # doctest: +SKIP
    >>> adapters("mood", input_ids).logits  # doctest: +SKIP
    """

    def __init__(self, adapters: Mapping[str, str | Path], model: str | Path | None = None, **options: Any):
        if not adapters:
            raise InputError("an AdapterSet needs at least one adapter. Give name -> folder")
        found = {name: read_adapter(path) for name, path in adapters.items()}
        base = next(iter(found.values())).needs_base() if model is None else model
        self.base, self.tokenizer = load(base_of(resolve_checkpoint(base))[0], **options)
        self.tokenizer: Tokenizer
        self._models: dict[str, Any] = {}
        self._tasks: dict[tuple[str, str], Any] = {}
        for name, adapter in found.items():
            self._models[name] = self._adapted(adapter)

    def __len__(self) -> int:
        return len(self._models)

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def model(self, adapter: str | None = None) -> Any:
        """Return the model with an adapter, or the base for None.

        Raises:
            InputError: no adapter has this name.
        """
        if adapter is None:
            return self.base
        if adapter not in self._models:
            raise InputError(f"there is no adapter {adapter!r}. Expected one of {', '.join(self._models)}")
        return self._models[adapter]

    def __call__(self, adapter: str | None = None, *arguments: Any, **keywords: Any) -> Any:
        """Call the model with an adapter, as the model itself is called."""
        return self.model(adapter)(*arguments, **keywords)

    def pipeline(self, task: str, inputs: Any, *, adapter: str | None = None, **options: Any) -> Any:
        """Return the results of a task with an adapter; tasks are kept for later calls.

        Args:
            task: as for `mlx_qwen3.pipeline`. inputs, **options: as for the task.
        """
        from ..tasks import pipeline

        key = task, adapter or ""
        if key not in self._tasks:
            make: Any = pipeline  # its overloads want the name of a task, which is known at run time only
            self._tasks[key] = make(task, self.model(adapter), self.tokenizer)
        return self._tasks[key](inputs, **options)

    def add(self, name: str, adapter: str | Path) -> None:
        """Read one more adapter; an adapter of the same name is replaced."""
        self._models[name] = self._adapted(read_adapter(adapter))
        self._tasks = {key: task for key, task in self._tasks.items() if key[1] != name}

    def remove(self, name: str) -> None:
        """Drop an adapter.

        Raises:
            InputError: no adapter has this name.
        """
        self.model(name)
        del self._models[name]
        self._tasks = {key: task for key, task in self._tasks.items() if key[1] != name}

    def _adapted(self, adapter: Adapter) -> Any:
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
    """Return a copy of a module's tree whose arrays are the same ones: layers can be replaced in it alone."""
    copied = copy.copy(module)
    for name, value in list(copied.items()):
        copied[name] = _shared(value)
    return copied


def _shared(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return share(value)
    if isinstance(value, list):
        return [_shared(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _shared(entry) for name, entry in value.items()}
    return value

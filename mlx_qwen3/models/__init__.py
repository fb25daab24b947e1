"""Qwen3 model classes, loading and saving, and the registry of all model classes."""

import importlib
from typing import Any

_HOME = {
    "PreTrainedModel": "pretrained",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3ForQuestionAnswering": "qwen3",
    "Qwen3ForSequenceClassification": "qwen3",
    "Qwen3ForTokenClassification": "qwen3",
    "Qwen3Model": "qwen3",
    "model_class": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

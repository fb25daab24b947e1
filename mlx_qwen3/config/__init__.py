"""config.json ↔ `Qwen3Config`, `QDQBertConfig`: Hugging Face field names, defaults and derived rules."""

from .pretrained import PretrainedConfig
from .qwen3 import Qwen3Config

__all__ = ["PretrainedConfig", "QDQBertConfig", "Qwen3Config"]


def __getattr__(name: str):
    if name == "QDQBertConfig":
        from .qdqbert import QDQBertConfig

        return QDQBertConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

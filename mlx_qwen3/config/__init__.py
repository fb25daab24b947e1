"""config.json ↔ `Qwen3Config`, `QDQBertConfig`: Hugging Face field names, defaults and derived rules."""

from .pretrained import PretrainedConfig
from .qdqbert import QDQBertConfig
from .qwen3 import Qwen3Config

__all__ = ["PretrainedConfig", "QDQBertConfig", "Qwen3Config"]

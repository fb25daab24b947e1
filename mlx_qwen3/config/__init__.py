"""Model configurations: `Qwen3Config` and `QDQBertConfig` with Hugging Face's fields, defaults and derivation rules."""

from .pretrained import PretrainedConfig
from .qdqbert import QDQBertConfig
from .qwen3 import Qwen3Config

__all__ = ["PretrainedConfig", "QDQBertConfig", "Qwen3Config"]

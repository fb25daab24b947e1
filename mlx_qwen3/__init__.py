"""Qwen3, complete and exact, in MLX. Every public name, imported when it is first used."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    # errors
    "CacheError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "ContextError": "errors",
    "HubError": "errors",
    "InputError": "errors",
    "MemoryFitError": "errors",
    "MlxQwen3Error": "errors",
    "QuantizationError": "errors",
    "RowError": "errors",
    "TokenizerError": "errors",
    "UnsupportedModelError": "errors",
    # configuration
    "QDQBertConfig": "config",
    "Qwen3Config": "config",
    # tokenizer
    "AutoTokenizer": "tokenizer",
    "BatchEncoding": "tokenizer",
    "Tokenizer": "tokenizer",
    # models
    "QDQBertForMaskedLM": "models",
    "QDQBertForMultipleChoice": "models",
    "QDQBertForNextSentencePrediction": "models",
    "QDQBertForQuestionAnswering": "models",
    "QDQBertForSequenceClassification": "models",
    "QDQBertForTokenClassification": "models",
    "QDQBertLMHeadModel": "models",
    "QDQBertModel": "models",
    "Qwen3ForCausalLM": "models",
    "Qwen3ForQuestionAnswering": "models",
    "Qwen3ForSequenceClassification": "models",
    "Qwen3ForTokenClassification": "models",
    "Qwen3Model": "models",
    # fake quantization
    "QuantDescriptor": "layers.fake_quantizer",
    "TensorQuantizer": "layers.fake_quantizer",
    "calibrate": "quantization.calibration",
    # chat
    "ChatSession": "chat",
    # caches
    "Cache": "cache",
    "PrefixCache": "cache",
    "cache_bytes": "cache",
    "load_cache": "cache",
    "make_cache": "cache",
    "save_cache": "cache",
    # generation
    "BatchResponse": "generation",
    "GenerateOutput": "generation",
    "GenerationConfig": "generation",
    "GenerationResponse": "generation",
    "batch_generate": "generation",
    "generate": "generation",
    "generate_step": "generation",
    "make_sampler": "generation",
    "stream_generate": "generation",
    # conversion
    "Conversion": "conversion",
    "convert": "conversion",
    # loading
    "load": "loading",
    # tasks
    "Embedding": "tasks",
    "FeatureExtraction": "tasks",
    "FillMask": "tasks",
    "QuestionAnswering": "tasks",
    "Reranker": "tasks",
    "TextClassification": "tasks",
    "TextGeneration": "tasks",
    "TokenClassification": "tasks",
    "ZeroShotClassification": "tasks",
    "pipeline": "tasks",
}
"""Public name -> the module of this package that defines it."""

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from .errors import MlxQwen3Error as MlxQwen3Error


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_qwen3' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

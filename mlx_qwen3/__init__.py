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

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:  # the same names for editors and type checkers
    from .cache import (
        Cache as Cache,
    )
    from .cache import (
        PrefixCache as PrefixCache,
    )
    from .cache import (
        cache_bytes as cache_bytes,
    )
    from .cache import (
        load_cache as load_cache,
    )
    from .cache import (
        make_cache as make_cache,
    )
    from .cache import (
        save_cache as save_cache,
    )
    from .chat import ChatSession as ChatSession
    from .config import (
        QDQBertConfig as QDQBertConfig,
    )
    from .config import (
        Qwen3Config as Qwen3Config,
    )
    from .conversion import (
        Conversion as Conversion,
    )
    from .conversion import (
        convert as convert,
    )
    from .errors import (
        CacheError as CacheError,
    )
    from .errors import (
        CheckpointError as CheckpointError,
    )
    from .errors import (
        ConfigError as ConfigError,
    )
    from .errors import (
        ContextError as ContextError,
    )
    from .errors import (
        HubError as HubError,
    )
    from .errors import (
        InputError as InputError,
    )
    from .errors import (
        MemoryFitError as MemoryFitError,
    )
    from .errors import (
        MlxQwen3Error as MlxQwen3Error,
    )
    from .errors import (
        QuantizationError as QuantizationError,
    )
    from .errors import (
        RowError as RowError,
    )
    from .errors import (
        TokenizerError as TokenizerError,
    )
    from .errors import (
        UnsupportedModelError as UnsupportedModelError,
    )
    from .generation import (
        BatchResponse as BatchResponse,
    )
    from .generation import (
        GenerateOutput as GenerateOutput,
    )
    from .generation import (
        GenerationConfig as GenerationConfig,
    )
    from .generation import (
        GenerationResponse as GenerationResponse,
    )
    from .generation import (
        batch_generate as batch_generate,
    )
    from .generation import (
        generate as generate,
    )
    from .generation import (
        generate_step as generate_step,
    )
    from .generation import (
        make_sampler as make_sampler,
    )
    from .generation import (
        stream_generate as stream_generate,
    )
    from .layers.fake_quantizer import (
        QuantDescriptor as QuantDescriptor,
    )
    from .layers.fake_quantizer import (
        TensorQuantizer as TensorQuantizer,
    )
    from .loading import load as load
    from .models import (
        QDQBertForMaskedLM as QDQBertForMaskedLM,
    )
    from .models import (
        QDQBertForMultipleChoice as QDQBertForMultipleChoice,
    )
    from .models import (
        QDQBertForNextSentencePrediction as QDQBertForNextSentencePrediction,
    )
    from .models import (
        QDQBertForQuestionAnswering as QDQBertForQuestionAnswering,
    )
    from .models import (
        QDQBertForSequenceClassification as QDQBertForSequenceClassification,
    )
    from .models import (
        QDQBertForTokenClassification as QDQBertForTokenClassification,
    )
    from .models import (
        QDQBertLMHeadModel as QDQBertLMHeadModel,
    )
    from .models import (
        QDQBertModel as QDQBertModel,
    )
    from .models import (
        Qwen3ForCausalLM as Qwen3ForCausalLM,
    )
    from .models import (
        Qwen3ForQuestionAnswering as Qwen3ForQuestionAnswering,
    )
    from .models import (
        Qwen3ForSequenceClassification as Qwen3ForSequenceClassification,
    )
    from .models import (
        Qwen3ForTokenClassification as Qwen3ForTokenClassification,
    )
    from .models import (
        Qwen3Model as Qwen3Model,
    )
    from .quantization.calibration import calibrate as calibrate
    from .tasks import (
        Embedding as Embedding,
    )
    from .tasks import (
        FeatureExtraction as FeatureExtraction,
    )
    from .tasks import (
        FillMask as FillMask,
    )
    from .tasks import (
        QuestionAnswering as QuestionAnswering,
    )
    from .tasks import (
        Reranker as Reranker,
    )
    from .tasks import (
        TextClassification as TextClassification,
    )
    from .tasks import (
        TextGeneration as TextGeneration,
    )
    from .tasks import (
        TokenClassification as TokenClassification,
    )
    from .tasks import (
        ZeroShotClassification as ZeroShotClassification,
    )
    from .tasks import (
        pipeline as pipeline,
    )
    from .tokenizer import (
        AutoTokenizer as AutoTokenizer,
    )
    from .tokenizer import (
        BatchEncoding as BatchEncoding,
    )
    from .tokenizer import (
        Tokenizer as Tokenizer,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_qwen3' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

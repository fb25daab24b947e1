"""The exported names are a promise: this list changes together with the changelog."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_qwen3

INIT = Path(mlx_qwen3.__file__)
NAMES = [
    "AutoTokenizer",
    "BatchEncoding",
    "BatchResponse",
    "Cache",
    "CacheError",
    "ChatSession",
    "CheckpointError",
    "ConfigError",
    "ContextError",
    "Conversion",
    "Embedding",
    "FeatureExtraction",
    "FillMask",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationResponse",
    "HubError",
    "InputError",
    "MemoryFitError",
    "MlxQwen3Error",
    "PrefixCache",
    "QDQBertConfig",
    "QDQBertForMaskedLM",
    "QDQBertForMultipleChoice",
    "QDQBertForNextSentencePrediction",
    "QDQBertForQuestionAnswering",
    "QDQBertForSequenceClassification",
    "QDQBertForTokenClassification",
    "QDQBertLMHeadModel",
    "QDQBertModel",
    "QuantDescriptor",
    "QuantizationError",
    "QuestionAnswering",
    "Qwen3Config",
    "Qwen3ForCausalLM",
    "Qwen3ForQuestionAnswering",
    "Qwen3ForSequenceClassification",
    "Qwen3ForTokenClassification",
    "Qwen3Model",
    "Reranker",
    "RowError",
    "TensorQuantizer",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "Tokenizer",
    "TokenizerError",
    "UnsupportedModelError",
    "ZeroShotClassification",
    "batch_generate",
    "cache_bytes",
    "calibrate",
    "convert",
    "generate",
    "generate_step",
    "load",
    "load_cache",
    "make_cache",
    "make_sampler",
    "pipeline",
    "save_cache",
    "stream_generate",
]


def test_the_exported_names():
    assert sorted(mlx_qwen3._HOME) == sorted(NAMES)
    assert set(mlx_qwen3.__all__) == {"__version__", *NAMES} <= set(dir(mlx_qwen3))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name):
    assert getattr(mlx_qwen3, name).__name__ == name


def test_editors_see_the_same_names():
    tree = ast.parse(INIT.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    assert {(alias.name, node.module) for node in imports for alias in node.names} == set(mlx_qwen3._HOME.items())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Qwen4"):
        mlx_qwen3.Qwen4  # noqa: B018


def test_importing_is_light():
    code = (
        "import sys, mlx_qwen3; heavy = {'torch', 'transformers', 'mlx_lm', 'huggingface_hub', 'rich', 'mlx'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "from mlx_qwen3 import Qwen3ForCausalLM, AutoTokenizer, load, stream_generate, pipeline;"
        "assert not {'torch', 'transformers', 'mlx_lm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

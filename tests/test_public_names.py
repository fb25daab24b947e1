"""The exported names are the public API: change this list together with the changelog."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_qwen3

INIT = Path(mlx_qwen3.__file__)
NAMES = [
    "AdapterSet",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BatchEncoding",
    "BatchResponse",
    "Cache",
    "CacheError",
    "ChatSession",
    "CheckpointError",
    "ConfigError",
    "Constraint",
    "ConstraintError",
    "ContextError",
    "Conversion",
    "DistributedError",
    "Embedding",
    "Extraction",
    "FeatureExtraction",
    "FillMask",
    "GenerateOutput",
    "GenerationConfig",
    "GenerationResponse",
    "HubError",
    "IncompleteOutputError",
    "InputError",
    "LogitsProcessor",
    "HistogramCalibrator",
    "LogitsProcessorList",
    "MaxCalibrator",
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
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TensorQuantizer",
    "TextClassification",
    "TextClassifier",
    "TextGeneration",
    "TextRegressor",
    "TokenClassification",
    "Tokenizer",
    "TokenizerError",
    "TrainingError",
    "TrainingOptions",
    "TrainingReport",
    "UnsupportedModelError",
    "ZeroShotClassification",
    "batch_generate",
    "cache_bytes",
    "calibrate",
    "compile_constraint",
    "convert",
    "convert_to_gguf",
    "extract",
    "generate",
    "generate_step",
    "load",
    "load_cache",
    "make_cache",
    "make_sampler",
    "pipeline",
    "save_cache",
    "stream_generate",
    "train",
]


def test_the_exported_names_equal_the_list():
    assert sorted(mlx_qwen3.__all__) == sorted(["__version__", *NAMES])
    assert set(NAMES) <= set(dir(mlx_qwen3))


@pytest.mark.parametrize("name", NAMES)
def test_every_exported_name_is_importable(name):
    assert getattr(mlx_qwen3, name).__name__ == name


def test_type_checkers_see_each_name_as_a_plain_alias():
    tree = ast.parse(INIT.with_suffix(".pyi").read_text(encoding="utf-8"))
    aliases = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert [alias.name for alias in aliases if alias.asname != alias.name] == []
    assert sorted(alias.name for alias in aliases) == sorted(NAMES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Qwen4"):
        mlx_qwen3.Qwen4  # noqa: B018


def test_importing_loads_no_large_package():
    code = (
        "import sys, mlx_qwen3; heavy = {'torch', 'transformers', 'mlx_lm', 'huggingface_hub', 'rich', 'mlx'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "from mlx_qwen3 import Qwen3ForCausalLM, AutoTokenizer, load, stream_generate, pipeline;"
        "assert not {'torch', 'transformers', 'mlx_lm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

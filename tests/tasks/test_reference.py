"""The pipelines of transformers give the same results on the same checkpoints and texts."""

import warnings

import pytest

import mlx_qwen3
from tests.support.tiny_checkpoints import write_bert, write_qwen3

pytestmark = pytest.mark.reference

TEXTS = ["hello world", "the quick brown fox was quick, isn't it?", "it is fine 你好 there"]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def approximately(value):
    """Return the same structure with its floats compared to 1e-4."""
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(float(value), abs=1e-4) if hasattr(value, "is_integer") or hasattr(value, "dtype") else value


def both(transformers, task, folder, **options):
    model = {"sentiment-analysis": "text-classification", "ner": "token-classification"}.get(task, task)
    theirs = transformers.pipeline(model, str(folder), device="cpu", dtype="float32", **options)
    return mlx_qwen3.pipeline(task, folder, **options), theirs


@pytest.mark.parametrize("name", ["Qwen3ForSequenceClassification"])
@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_text_classification_equals_transformers(transformers, tmp_path, name, problem):
    folder = write_qwen3(tmp_path / "m", name, num_labels=3, problem_type=problem)
    mine, theirs = both(transformers, "text-classification", folder)
    for options in ({}, {"top_k": 2}, {"top_k": None}, {"function_to_apply": "none", "top_k": 1}):
        assert mine(TEXTS, **options) == approximately(theirs(TEXTS, **options)), options
        assert mine(TEXTS[0], **options) == approximately(theirs(TEXTS[0], **options)), options
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert mine(pair) == approximately(theirs(pair))


@pytest.mark.parametrize("kind", ["qwen3", "bert"])
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification_equals_transformers(transformers, tmp_path, strategy, kind):
    labels = {0: "O", 1: "B-FOX", 2: "I-FOX", 3: "X"}
    if kind == "qwen3":
        folder = write_qwen3(tmp_path / "m", "Qwen3ForTokenClassification", id2label=labels)
    else:
        folder = as_plain_bert(write_bert(tmp_path / "m", "QDQBertForTokenClassification", id2label=labels))
    mine, theirs = both(transformers, "ner", folder, aggregation_strategy=strategy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns that byte-level vocabularies have no words
        for ignored in (["O"], []):
            theirs_options = {"ignore_labels": ignored}
            assert mine(TEXTS, **theirs_options) == approximately(theirs(TEXTS, **theirs_options))
            assert mine(TEXTS[1], **theirs_options) == approximately(theirs(TEXTS[1], **theirs_options))
        if strategy in ("first", "average", "max"):
            text = "the quick brown fox was it. " * 3
            theirs.tokenizer.model_max_length = 16
            mine.tokenizer.model_max_length = 16
            options = {"stride": 4, "ignore_labels": []}
            assert mine(text, **options) == approximately(theirs(text, **options))


def test_feature_extraction_equals_transformers(transformers, tmp_path):
    folder = write_qwen3(tmp_path / "m", "Qwen3Model")
    mine, theirs = both(transformers, "feature-extraction", folder)
    assert mine(TEXTS) == approximately(theirs(TEXTS))


def test_fill_mask_equals_transformers(transformers, tmp_path):
    folder = as_plain_bert(write_bert(tmp_path / "m", "QDQBertForMaskedLM"))
    mine, theirs = both(transformers, "fill-mask", folder)
    for options in ({}, {"top_k": 2}, {"targets": ["fox", "world"]}):
        assert mine("hello [MASK] fox", **options) == approximately(theirs("hello [MASK] fox", **options))
    assert mine("[MASK] the [MASK]", top_k=2) == approximately(theirs("[MASK] the [MASK]", top_k=2))
    texts = ["hello [MASK]", "the quick [MASK] was it"]
    assert mine(texts) == approximately(theirs(texts))


def test_text_generation_equals_transformers(transformers, tmp_path):
    folder = write_qwen3(tmp_path / "m", "Qwen3ForCausalLM")
    mine, theirs = both(transformers, "text-generation", folder)
    options = {"max_new_tokens": 6, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for inputs in (TEXTS[0], TEXTS, [{"role": "user", "content": "hello"}]):
            assert mine(inputs, **options) == theirs(inputs, **options)
        assert mine(TEXTS[0], return_full_text=False, **options) == theirs(TEXTS[0], return_full_text=False, **options)


def as_plain_bert(folder):
    """Return the checkpoint as plain BERT without quantizers, which transformers can load."""
    import json

    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [config["architectures"][0].removeprefix("QDQ")]
    config["model_type"] = "bert"
    (folder / "config.json").write_text(json.dumps(config))
    return folder

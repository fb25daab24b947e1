"""The examples of the published QDQBert page, line by line, with a small BERT checkpoint instead of the Hub's."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen3 import (
    AutoTokenizer,
    QDQBertConfig,
    QDQBertForMaskedLM,
    QDQBertForNextSentencePrediction,
    QDQBertForSequenceClassification,
    QDQBertLMHeadModel,
    QDQBertModel,
)
from tests.support import tiny_bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","]
WORDS += ["the", "capital", "of", "france", "is", "paris", "hello", "my", "dog", "cute", "sky", "blue", "##s"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder like the repository of bert-base-uncased: a pretraining model, its old config and vocab.txt."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.model("QDQBertForMaskedLM", vocab_size=len(WORDS)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="bert", architectures=["BertForMaskedLM"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def test_the_configuration_example_runs():
    configuration = QDQBertConfig(num_hidden_layers=1, hidden_size=24, intermediate_size=24, vocab_size=9)
    model = QDQBertModel(configuration)
    assert model.config is configuration


def test_the_causal_language_model_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = QDQBertConfig.from_pretrained(base)
    config.is_decoder = True
    model = QDQBertLMHeadModel.from_pretrained(base, config=config)
    inputs = tokenizer("Hello, my dog is cute", return_tensors="mlx")
    outputs = model(**inputs)
    prediction_logits = outputs.logits
    assert prediction_logits.shape == (*inputs.input_ids.shape, len(WORDS))
    model.disable_quantizers("")  # without a range, quantizers would depend on later tokens
    beginning = model(**{name: array[:, :3] for name, array in inputs.items()})
    difference = mx.abs(beginning.logits - model(**inputs).logits[:, :3])
    assert difference.max().item() < 1e-5


def test_the_masked_language_model_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = QDQBertForMaskedLM.from_pretrained(base)
    inputs = tokenizer("The capital of France is [MASK].", return_tensors="mlx")
    logits = model(**inputs).logits
    mask_token_index = [i for i, id_ in enumerate(inputs.input_ids[0].tolist()) if id_ == tokenizer.mask_token_id]
    predicted_token_id = logits[0, mask_token_index[0]].argmax(axis=-1)
    assert 0 <= predicted_token_id.item() < len(WORDS)

    labels = tokenizer("The capital of France is Paris.", return_tensors="mlx")["input_ids"]
    labels = mx.where(inputs.input_ids == tokenizer.mask_token_id, labels, -100)
    outputs = model(**inputs, labels=labels)
    row = logits[0, mask_token_index[0]]
    expected = mx.logsumexp(row) - row[WORDS.index("paris")]
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_next_sentence_prediction_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = QDQBertForNextSentencePrediction.from_pretrained(base)
    encoding = tokenizer("The capital of France is Paris.", "The sky is blue.", return_tensors="mlx")
    assert set(encoding.token_type_ids[0].tolist()) == {0, 1}
    outputs = model(**encoding, labels=mx.array([1]))
    assert outputs.logits.shape == (1, 2)
    assert outputs.loss.item() == model(**encoding, next_sentence_label=mx.array([1])).loss.item()


def test_the_single_label_classification_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = QDQBertForSequenceClassification.from_pretrained(base)
    inputs = tokenizer("Hello, my dog is cute", return_tensors="mlx")
    logits = model(**inputs).logits
    predicted_class_id = logits.argmax().item()
    assert predicted_class_id in model.config.id2label

    num_labels = len(model.config.id2label)
    model = QDQBertForSequenceClassification.from_pretrained(base, num_labels=num_labels)
    labels = mx.array([1])
    output = model(**inputs, labels=labels)
    expected = mx.logsumexp(output.logits) - output.logits[0, 1]
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_multi_label_classification_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = QDQBertForSequenceClassification.from_pretrained(base, problem_type="multi_label_classification")
    inputs = tokenizer("Hello, my dog is cute", return_tensors="mlx")
    logits = model(**inputs).logits
    predicted_class_ids = [i for i, p in enumerate(mx.sigmoid(logits)[0].tolist()) if p > 0.5]

    num_labels = len(model.config.id2label)
    model = QDQBertForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, problem_type="multi_label_classification"
    )
    labels = mx.array([[float(i in predicted_class_ids) for i in range(num_labels)]])
    output = model(**inputs, labels=labels)
    chances = mx.sigmoid(output.logits)
    expected = -(labels * mx.log(chances) + (1 - labels) * mx.log(1 - chances)).mean()
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


# the project's own examples


def run(*command: object) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_training_example_regains_accuracy():
    accuracy = {line.split()[0]: float(line.split()[-1]) for line in run("examples/qdqbert_training.py").splitlines()}
    assert accuracy["float"] > 0.95
    assert accuracy["calibrated"] < accuracy["retrained"] - 0.1
    assert accuracy["packed"] == pytest.approx(accuracy["retrained"], abs=0.01)


def test_the_deployment_example_runs(base, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("Hello, my dog is cute\nThe sky is blue.\n", encoding="utf-8")
    out = run("examples/qdqbert_deploy.py", base, texts, tmp_path / "packed", "--method", "max")
    assert out.startswith("12 layers packed, 0 not packed")
    assert float(out.split()[-1]) > 0.9
    assert (tmp_path / "packed" / "vocab.txt").is_file() or (tmp_path / "packed" / "tokenizer.json").is_file()

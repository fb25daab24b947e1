"""The head examples of the published Qwen3 page, line by line, with small checkpoints instead of Qwen/Qwen3-8B."""

import logging

import mlx.core as mx
import pytest

from mlx_qwen3 import (
    AutoTokenizer,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
)
from tests.support.tiny_checkpoints import write_qwen3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("base"), "Qwen3ForCausalLM")


def test_the_single_label_classification_example_runs(base, caplog):
    tokenizer = AutoTokenizer.from_pretrained(base)
    with caplog.at_level(logging.WARNING):
        model = Qwen3ForSequenceClassification.from_pretrained(base)
    assert [r.message for r in caplog.records if "random weights" in r.message] == [
        f"{base} has no score.weight: the head is initialized with random weights. Train it."
    ]

    inputs = tokenizer("Hello, my dog is cute", return_tensors="mlx")
    logits = model(**inputs).logits
    predicted_class_id = mx.argmax(logits).item()
    assert model.config.id2label[predicted_class_id] in ("LABEL_0", "LABEL_1")

    num_labels = len(model.config.id2label)
    model = Qwen3ForSequenceClassification.from_pretrained(base, num_labels=num_labels)
    labels = mx.array([1])
    output = model(**inputs, labels=labels)
    expected = mx.logsumexp(output.logits) - output.logits[0, 1]
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_multi_label_classification_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Qwen3ForSequenceClassification.from_pretrained(base, problem_type="multi_label_classification")
    inputs = tokenizer("Hello, my dog is cute", return_tensors="mlx")
    logits = model(**inputs).logits
    predicted = [i for i, p in enumerate(mx.sigmoid(logits)[0].tolist()) if p > 0.5]

    num_labels = len(model.config.id2label)
    model = Qwen3ForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, problem_type="multi_label_classification"
    )
    labels = mx.array([[1.0 if i in predicted else 0.0 for i in range(num_labels)]])
    output = model(**inputs, labels=labels)
    chances = mx.sigmoid(output.logits)
    expected = -mx.mean(labels * mx.log(chances) + (1 - labels) * mx.log(1 - chances))
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_token_classification_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Qwen3ForTokenClassification.from_pretrained(base)
    inputs = tokenizer(
        "HuggingFace is a company based in Paris and New York", add_special_tokens=False, return_tensors="mlx"
    )
    logits = model(**inputs).logits
    predicted_token_class_ids = mx.argmax(logits, axis=-1)
    predicted_tokens_classes = [model.config.id2label[t] for t in predicted_token_class_ids[0].tolist()]
    assert len(predicted_tokens_classes) == inputs["input_ids"].shape[1]

    labels = predicted_token_class_ids
    loss = model(**inputs, labels=labels).loss
    best = mx.max(mx.softmax(logits, axis=-1), axis=-1)
    assert loss.item() == pytest.approx(-mx.mean(mx.log(best)).item(), abs=1e-5)


def test_the_question_answering_example_runs(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Qwen3ForQuestionAnswering.from_pretrained(base)
    question, text = "Who was Jim Henson?", "Jim Henson was a nice puppet"
    inputs = tokenizer(question, text, return_tensors="mlx")
    outputs = model(**inputs)
    answer_start_index = mx.argmax(outputs.start_logits).item()
    answer_end_index = mx.argmax(outputs.end_logits).item()
    predict_answer_tokens = inputs.input_ids[0, answer_start_index : answer_end_index + 1]
    assert isinstance(tokenizer.decode(predict_answer_tokens, skip_special_tokens=True), str)

    target_start_index, target_end_index = mx.array([14]), mx.array([15])
    outputs = model(**inputs, start_positions=target_start_index, end_positions=target_end_index)
    start, end = outputs.start_logits[0], outputs.end_logits[0]
    expected = (mx.logsumexp(start) - start[14] + mx.logsumexp(end) - end[15]) / 2
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    "cls", [Qwen3ForSequenceClassification, Qwen3ForTokenClassification, Qwen3ForQuestionAnswering]
)
def test_every_head_accepts_all_arguments_of_a_call(base, cls):
    model = cls.from_pretrained(base)
    ids = [[3, 4, 5, 6]]
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (1, 4, 4, 4)
    plain = model(ids, use_cache=False, return_dict=False)
    assert isinstance(plain, tuple)
    embeds = model.get_input_embeddings()(mx.array(ids))
    same = model(inputs_embeds=embeds, use_cache=False, return_dict=False)
    for one, other in zip(plain, same, strict=True):
        assert mx.allclose(one, other, atol=1e-5)

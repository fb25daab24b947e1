"""Losses of the heads: included and ignored tokens, and refused labels."""

import math

import mlx.core as mx
import pytest

from mlx_qwen3 import (
    InputError,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
)
from tests.support.tiny_checkpoints import QWEN3

IDS = [[5, 6, 7], [8, 9, 10]]


def make(cls, **config):
    model = cls(Qwen3Config(**{**QWEN3, "pad_token_id": 0, **config}))
    model.eval()
    return model


def test_the_regression_loss_is_the_mean_of_squares():
    model = make(Qwen3ForSequenceClassification, num_labels=1)
    output = model(IDS, labels=[0.5, -1.0])
    logits = output.logits[:, 0].tolist()
    assert output.loss.item() == pytest.approx(((logits[0] - 0.5) ** 2 + (logits[1] + 1) ** 2) / 2, abs=1e-5)


def test_regression_supports_several_numbers():
    model = make(Qwen3ForSequenceClassification, num_labels=3, problem_type="regression")
    targets = mx.array([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    output = model(IDS, labels=targets)
    assert output.loss.item() == pytest.approx(mx.mean(mx.square(output.logits - targets)).item(), abs=1e-5)


def test_the_dtype_of_the_labels_selects_the_problem_type_if_none_is_set():
    model = make(Qwen3ForSequenceClassification, num_labels=3)
    one = model(IDS, labels=[2, 0])
    expected = mx.mean(mx.logsumexp(one.logits, axis=-1) - mx.stack([one.logits[0, 2], one.logits[1, 0]]))
    assert one.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    several = model(IDS, labels=[[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert several.loss.item() != pytest.approx(one.loss.item(), abs=1e-3)
    assert model.config.problem_type is None


def test_ignored_tokens_do_not_change_the_loss():
    model = make(Qwen3ForTokenClassification, num_labels=3)
    whole = model(IDS, labels=[[0, 1, 2], [-100, -100, -100]])
    row = model(IDS[:1], labels=[[0, 1, 2]])
    assert whole.loss.item() == pytest.approx(row.loss.item(), abs=1e-5)
    assert math.isnan(model(IDS, labels=[[-100] * 3] * 2).loss.item())


def test_positions_beyond_the_text_are_ignored_and_negative_ones_are_zero():
    model = make(Qwen3ForQuestionAnswering)
    kept = model(IDS[:1], start_positions=[0], end_positions=[2]).loss.item()
    assert model(IDS[:1], start_positions=[-7], end_positions=[2]).loss.item() == pytest.approx(kept, abs=1e-6)
    both = model([IDS[0], IDS[0]], start_positions=[0, 99], end_positions=[2, 99]).loss.item()
    assert both == pytest.approx(kept, abs=1e-5)
    assert model(IDS[:1], start_positions=[0]).loss is None
    assert model(IDS[:1], start_positions=[[0]], end_positions=[[2]]).loss.item() == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize(
    ("cls", "labels", "message"),
    [
        (Qwen3ForSequenceClassification, [0, 3], "labels holds 3, outside the 3 classes"),
        (Qwen3ForSequenceClassification, [-1, 0], "labels holds -1"),
        (Qwen3ForSequenceClassification, [0], "labels has 1 entries"),
        (Qwen3ForTokenClassification, [[0, 1, 7], [0, 0, 0]], "labels holds 7"),
        (Qwen3ForTokenClassification, [[0, 1], [0, 0]], "labels has 4 entries"),
        (Qwen3ForTokenClassification, [[0.5, 1, 2], [0, 0, 0]], "labels holds float32, expected whole numbers"),
    ],
)
def test_invalid_labels_are_reported(cls, labels, message):
    with pytest.raises(InputError, match=message):
        make(cls, num_labels=3)(IDS, labels=labels)


def test_invalid_shapes_of_multi_label_targets_are_reported():
    model = make(Qwen3ForSequenceClassification, num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(InputError, match=r"labels has shape \(2, 2\), expected \(2, 3\)"):
        model(IDS, labels=[[1.0, 0.0], [0.0, 1.0]])


def test_a_batch_without_a_padding_token_is_refused_and_one_row_is_not():
    model = make(Qwen3ForSequenceClassification, pad_token_id=None)
    assert model(IDS[:1]).logits.shape == (1, 2)
    with pytest.raises(InputError, match="without a padding token"):
        model(IDS)
    assert model(IDS, last_positions=[2, 1]).logits.shape == (2, 2)


def test_the_last_position_can_be_given():
    model = make(Qwen3ForSequenceClassification)
    given = model([[5, 6, 7, 0], [8, 0, 0, 0]], last_positions=[2, 0]).logits
    assert mx.allclose(given, model([[5, 6, 7, 0], [8, 0, 0, 0]]).logits)
    # a padding id inside the text counts as text
    inside = model([[5, 6, 0]], last_positions=[2]).logits
    assert not mx.allclose(inside, model([[5, 6, 0]]).logits)


def test_a_single_token_has_no_loss():
    model = make(Qwen3ForCausalLM)
    assert math.isnan(model([[5]], labels=[[5]]).loss.item())
    assert model([[5]], labels=[[5]], num_items_in_batch=3).loss.item() == 0

"""Saved checkpoints load in transformers with the same outputs and losses, and vice versa."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from tests.support.tiny_checkpoints import write_qwen3

pytestmark = pytest.mark.reference

CASES = [
    ("Qwen3ForSequenceClassification", {"num_labels": 3}, {"labels": [2, 0]}),
    ("Qwen3ForSequenceClassification", {"num_labels": 1}, {"labels": [0.5, -0.5]}),
    (
        "Qwen3ForSequenceClassification",
        {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "multi_label_classification"},
        {"labels": [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]},
    ),
    ("Qwen3ForTokenClassification", {"num_labels": 4}, {"labels": [[0, 3, -100, 1], [-100, 2, 2, 0]]}),
    ("Qwen3ForQuestionAnswering", {}, {"start_positions": [1, 9], "end_positions": [2, 3]}),
]
IDS = [[9, 5, 6, 7], [0, 8, 9, 10]]
MASK = [[1, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(("name", "config", "labels"), CASES)
def test_saved_checkpoints_load_in_transformers(tmp_path, name, config, labels):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write_qwen3(tmp_path / "m", name, pad_token_id=0, **config)
    mine = getattr(mlx_qwen3, name).from_pretrained(folder)
    theirs, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == mine.config.id2label
    ours = mine(IDS, attention_mask=MASK, **labels)
    with torch.no_grad():
        expected = theirs.eval()(
            torch.tensor(IDS),
            attention_mask=torch.tensor(MASK),
            **{key: torch.tensor(value) for key, value in labels.items()},
        )
    assert ours.loss.item() == pytest.approx(expected.loss.item(), abs=1e-4)
    real = np.array(MASK, dtype=bool)
    for key in ("logits", "start_logits", "end_logits"):
        if key in expected:
            a, b = np.array(ours[key]), expected[key].numpy()
            if a.shape[:2] == real.shape and name != "Qwen3ForSequenceClassification":
                a, b = a[real], b[real]
            np.testing.assert_allclose(a, b, atol=1e-4)
    theirs.save_pretrained(tmp_path / "back")
    again = getattr(mlx_qwen3, name).from_pretrained(tmp_path / "back")
    assert not again.fresh_weights
    assert mx.allclose(again(IDS, attention_mask=MASK, **labels).loss, ours.loss, atol=1e-6)

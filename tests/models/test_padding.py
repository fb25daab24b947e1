"""A padded row equals the single row for every side, dtype and head, without NaN."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_qwen3 import (
    Qwen3Config,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
)
from tests.support.tiny_checkpoints import QWEN3

HEADS = [Qwen3ForSequenceClassification, Qwen3ForTokenClassification, Qwen3ForQuestionAnswering]
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
WIDTH = 9


def results(model, ids, mask=None):
    """Return the arrays of the head in float32, with the token axis second if there is one."""
    output = model(mx.array(ids), attention_mask=None if mask is None else mx.array(mask), use_cache=False)
    arrays = (
        [output.start_logits, output.end_logits] if isinstance(model, Qwen3ForQuestionAnswering) else [output.logits]
    )
    return [np.array(array.astype(mx.float32)) for array in arrays]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "4 bit"])
@pytest.mark.parametrize("cls", HEADS)
def test_a_padded_row_equals_a_single_row(cls, kind, side, window):
    mx.random.seed(1)
    options = {} if window is None else {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    model = cls(Qwen3Config(**{**QWEN3, "pad_token_id": 0, **options}))
    model.eval()
    if kind == "bfloat16":
        model.set_dtype(mx.bfloat16)
    if kind == "4 bit":
        nn.quantize(model, group_size=32, bits=4, class_predicate=lambda path, m: "layers" in path and "proj" in path)
    tolerance = {"float32": 1e-4, "bfloat16": 0.15, "4 bit": 1e-4}[kind]
    ids, mask = np.zeros((len(ROWS), WIDTH), dtype=np.int32), np.zeros((len(ROWS), WIDTH), dtype=np.int32)
    for row, text in enumerate(ROWS):
        place = slice(WIDTH - len(text), None) if side == "left" else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    for index, batch in enumerate(results(model, ids, mask)):
        assert np.isfinite(batch).all()
        for row, text in enumerate(ROWS):
            alone = results(model, [text])[index][0]
            own = batch[row]
            if cls is not Qwen3ForSequenceClassification:
                own = own[-len(text) :] if side == "left" else own[: len(text)]
            np.testing.assert_allclose(own, alone, atol=tolerance, rtol=0.05 if kind == "bfloat16" else 1e-4)


@pytest.mark.parametrize("cls", HEADS)
def test_padding_on_the_right_needs_no_mask(cls):
    mx.random.seed(1)
    model = cls(Qwen3Config(**{**QWEN3, "pad_token_id": 0}))
    model.eval()
    padded = [[5, 6, 7, 0, 0]]
    for with_mask, without in zip(results(model, padded, [[1, 1, 1, 0, 0]]), results(model, padded), strict=True):
        if cls is not Qwen3ForSequenceClassification:
            with_mask, without = with_mask[:, :3], without[:, :3]
        np.testing.assert_allclose(with_mask, without, atol=1e-5)

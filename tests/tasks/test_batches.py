"""Batches: grouping of rows, inputs of the model, and results that do not depend on them."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3 import InputError, Qwen3Config, Qwen3ForCausalLM
from mlx_qwen3.generation.continuous_batch import common_prefix
from mlx_qwen3.tasks import batches
from mlx_qwen3.tasks.batches import PLANNED_ROWS, Piece, Runner, batches_by_length
from tests.support.tiny_checkpoints import QWEN3


@pytest.fixture(scope="module")
def model():
    mx.random.seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**QWEN3))
    model.eval()
    return model


class Spy:
    """Computes last hidden states and records the calls."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, call, last):
        self.calls.append({**call, "past": call["past_key_values"].offset if "past_key_values" in call else 0})
        states = self.model.base_model(**call).last_hidden_state
        return (states[mx.arange(states.shape[0]), last],)

    def every(self, call, last):
        return (self.model.base_model(**call).last_hidden_state,)


@given(st.lists(st.integers(1, 600), max_size=60), st.none() | st.integers(1, 9))
def test_batches_contain_every_row_once_in_descending_length(lengths, batch_size):
    found = batches_by_length(lengths, batch_size)
    order = [index for batch in found for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) <= (batch_size or 256)
        assert batch_size or len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 8192


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=5))
def test_the_common_prefix_excludes_the_last_id_of_every_row(rows):
    expected = 0
    while len(rows) > 1 and all(len(row) > expected + 1 and row[expected] == rows[0][expected] for row in rows):
        expected += 1
    assert common_prefix(rows, 0) == expected
    assert common_prefix(rows, 3) == (expected if expected >= 3 else 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(1, 12), min_size=1, max_size=6), st.sampled_from(["left", "right"]))
def test_a_row_in_a_batch_equals_the_single_row(model, shared, lengths, side):
    draw = np.random.default_rng(sum(lengths))
    start = draw.integers(0, 400, shared).tolist()
    pieces = [Piece(start + draw.integers(0, 400, n).tolist()) for n in lengths]
    runner, spy = Runner(model), Spy(model)
    last = runner.run(pieces, spy, padding_side=side, batch_size=4)
    every = runner.run(pieces, spy.every, padding_side=side, per_token=True)
    for piece, (end,), (states,) in zip(pieces, last, every, strict=True):
        alone = np.array(model.base_model([piece.ids]).last_hidden_state)[0]
        np.testing.assert_allclose(states, alone, atol=1e-4)
        np.testing.assert_allclose(end, alone[-1], atol=1e-4)


def test_only_left_padding_needs_a_mask(model):
    pieces = [Piece([5, 6, 7, 8]), Piece([9])]
    spy = Spy(model)
    Runner(model).run(pieces, spy)
    assert "attention_mask" not in spy.calls[0]
    Runner(model).run(pieces, spy, padding_side="left")
    assert spy.calls[1]["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]


def test_a_shared_prefix_is_computed_once(model):
    start = list(range(10, 30))
    spy = Spy(model)
    Runner(model).run([Piece([*start, n, n + 1]) for n in range(40, 48)], spy, batch_size=4)
    assert [(call["past"], call["inputs_embeds"].shape[:2]) for call in spy.calls] == [(20, (4, 2))] * 2


def test_compiled_calls_give_the_same_results(model):
    pieces = [Piece(list(range(3, 3 + n))) for n in (4, 9, 17)]
    plain, spy, runner = Runner(model, compiled=False).run(pieces, Spy(model)), Spy(model), Runner(model, compiled=True)
    for calls in (1, 2, 2):  # the first is not compiled, the second is traced, the third reuses the trace
        for (one,), (other,) in zip(plain, runner.run(pieces, spy), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        assert len(spy.calls) == calls
    model.model.norm.weight = model.model.norm.weight * 2
    for (one,), (other,) in zip(plain, runner.run(pieces, spy), strict=True):
        np.testing.assert_allclose(2 * one, other, atol=1e-4)
    model.model.norm.weight = model.model.norm.weight / 2


@pytest.mark.parametrize(("rows", "compiled"), [(4, True), (60, False)])
def test_on_a_gpu_only_small_batches_are_compiled(model, monkeypatch, rows, compiled):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    spy, runner = Spy(model), Runner(model)
    monkeypatch.undo()
    pieces = [Piece([1, 2, 3, 4, row % 9 + 1]) for row in range(rows)]
    for _ in range(3):
        found = runner.run(pieces, spy, batch_size=rows)
    assert bool(runner._functions) is compiled
    plain = Runner(model, compiled=False).run(pieces, spy, batch_size=rows)
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_unused_memory_is_released(model, monkeypatch):
    pieces = [Piece(list(range(3, 3 + n))) for n in range(4, 40, 5)]
    unused = {}
    for share in (1e12, 1e-12):
        monkeypatch.setattr(batches, "IDLE_SHARE", share)
        mx.clear_cache()
        Runner(model).run(pieces, Spy(model).every, batch_size=1, per_token=True)
        unused[share] = mx.get_cache_memory()
    assert unused[1e12] < unused[1e-12] / 2


def test_an_id_outside_the_vocabulary_is_reported(model):
    with pytest.raises(InputError, match="id 416, the model has 416"):
        Runner(model).run([Piece([3, 416])], Spy(model))


@pytest.mark.parametrize("rows", [1, 13, 40, 300])
def test_planned_batches_use_few_shapes_and_give_the_same_results(model, monkeypatch, rows):
    lengths = np.random.default_rng(rows).integers(1, 40, rows)
    pieces = [Piece([*range(1, n + 1)]) for n in lengths]
    want = Runner(model).run(pieces, Spy(model))
    monkeypatch.setattr("mlx_qwen3.tasks.batches.on_cuda", lambda: True)
    spy = Spy(model)
    found = Runner(model).run(pieces, spy)
    assert all(call["inputs_embeds"].shape[0] in PLANNED_ROWS for call in spy.calls)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-5)


def test_no_rows_give_no_results(model):
    assert Runner(model).run([], Spy(model)) == []

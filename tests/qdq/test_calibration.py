"""Calibration of a whole model: resulting ranges, unchanged state, and refused input."""

import logging

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import QuantizationError
from tests.support import tiny_bert

METHODS = ["max", "percentile", "mse", "entropy"]


def ranges(model) -> dict[str, np.ndarray | None]:
    return {name: None if q.amax is None else np.array(q.amax) for name, q in model.named_quantizers()}


@pytest.mark.parametrize("method", METHODS)
def test_every_calibration_method_sets_every_range(method):
    model = tiny_bert.model(num_hidden_layers=1)
    mlx_qwen3.calibrate(model, [tiny_bert.ids(seed=s) for s in range(2)], method, percentile=99.0, stride=64)
    largest = tiny_bert.model(num_hidden_layers=1)
    mlx_qwen3.calibrate(largest, [tiny_bert.ids(seed=s) for s in range(2)])
    limits = ranges(largest)
    for name, amax in ranges(model).items():
        assert amax is not None, name
        if name.endswith("_weight_quantizer") or method == "max":
            np.testing.assert_array_equal(amax, limits[name], err_msg=name)
        else:
            assert 0 < amax <= limits[name] * 1.001, name
    if method != "max":
        assert any(amax < limits[name] * 0.99 for name, amax in ranges(model).items() if amax.shape == ())


def test_weight_ranges_are_the_maxima_of_the_rows():
    model = tiny_bert.calibrated()
    layer = model.encoder.layer[0].attention.self.query
    np.testing.assert_array_equal(
        np.array(layer._weight_quantizer.amax), np.abs(np.array(layer.weight)).max(axis=1, keepdims=True)
    )


def test_input_ranges_are_the_maximum_over_all_batches():
    batches = [tiny_bert.ids(seed=s) for s in range(3)]
    model, name = tiny_bert.model(), "encoder.layer.0.attention.self.query._input_quantizer"
    mlx_qwen3.calibrate(model, batches)
    plain = tiny_bert.model()
    plain.disable_quantizers("")
    seen = [mx.abs(plain(b, output_hidden_states=True).hidden_states[0]).max().item() for b in batches]
    assert ranges(model)[name] == pytest.approx(max(seen), rel=1e-6)


def test_batches_may_be_mappings_arrays_or_a_generator():
    one, two, three = (tiny_bert.model() for _ in range(3))
    batch = tiny_bert.ids()
    mlx_qwen3.calibrate(one, [batch])
    mlx_qwen3.calibrate(two, [{"input_ids": batch}])
    mlx_qwen3.calibrate(three, (b for b in [batch]))
    for name, amax in ranges(one).items():
        np.testing.assert_array_equal(amax, ranges(two)[name])
        np.testing.assert_array_equal(amax, ranges(three)[name])


def test_calibration_keeps_disabled_quantizers_and_the_training_mode():
    model = tiny_bert.model()
    off = model.disable_quantizers("matmul_")
    model.train()
    mlx_qwen3.calibrate(model, [tiny_bert.ids()])
    assert model.training
    assert [name for name, amax in ranges(model).items() if amax is None] == off


def test_calibrating_again_replaces_the_ranges():
    model = tiny_bert.calibrated()
    before = ranges(model)
    mlx_qwen3.calibrate(model, [tiny_bert.ids(seed=77, length=2, batch=1)])
    assert any(not np.array_equal(amax, before[name]) for name, amax in ranges(model).items())


def test_a_failed_calibration_changes_no_range():
    model = tiny_bert.calibrated()
    before = ranges(model)

    def broken():
        yield tiny_bert.ids(seed=50)
        raise KeyError("broken data")

    with pytest.raises(KeyError, match="broken data"):
        mlx_qwen3.calibrate(model, broken())
    for name, amax in ranges(model).items():
        np.testing.assert_array_equal(amax, before[name])
    assert not any(q.calibrating for _, q in model.named_quantizers())


def test_an_empty_list_of_batches_is_refused():
    with pytest.raises(QuantizationError, match="batches is empty"):
        mlx_qwen3.calibrate(tiny_bert.model(), [])


def test_a_quantizer_without_data_is_reported_by_name():
    model = tiny_bert.model("QDQBertLMHeadModel", is_decoder=True, add_cross_attention=True)
    with pytest.raises(QuantizationError, match=r"crossattention.*received no data"):
        mlx_qwen3.calibrate(model, [tiny_bert.ids()])
    assert all(amax is None for amax in ranges(model).values())
    states = mx.random.normal((3, 4, 32))
    mlx_qwen3.calibrate(model, [{"input_ids": tiny_bert.ids(), "encoder_hidden_states": states}])
    assert all(amax is not None for amax in ranges(model).values())


def test_invalid_methods_and_percentiles_are_refused():
    model = tiny_bert.model()
    with pytest.raises(QuantizationError, match="average"):
        mlx_qwen3.calibrate(model, [tiny_bert.ids()], "average")
    with pytest.raises(QuantizationError, match="percentile is 120"):
        mlx_qwen3.calibrate(model, [tiny_bert.ids()], "percentile", percentile=120)
    model.disable_quantizers("")
    with pytest.raises(QuantizationError, match="no enabled fake quantizer"):
        mlx_qwen3.calibrate(model, [tiny_bert.ids()])


def test_a_layer_with_only_zeros_as_input_causes_a_warning(caplog):
    model = tiny_bert.model(hidden_act="relu")
    dense = model.encoder.layer[0].intermediate.dense
    dense.weight, dense.bias = mx.zeros_like(dense.weight), mx.zeros_like(dense.bias)
    with caplog.at_level(logging.WARNING):
        mlx_qwen3.calibrate(model, [tiny_bert.ids()])
    assert "encoder.layer.0.output.dense._input_quantizer" in caplog.text

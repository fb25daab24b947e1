"""A single fake quantizer: rounding, states, gradients, refused ranges."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import MlxQwen3Error, QuantDescriptor, QuantizationError, TensorQuantizer


def quantizer(amax=None, **fields) -> TensorQuantizer:
    made = TensorQuantizer(**fields)
    if amax is not None:
        made.amax = amax
    return made


def test_quantizing_twice_changes_nothing():
    x = mx.random.normal((50,)) * 3
    q = quantizer(2.7)
    once = q(x)
    np.testing.assert_array_equal(np.array(q(once)), np.array(once))


def test_the_error_is_at_most_half_a_step_within_the_range():
    x = mx.random.uniform(-1, 1, (1000,))
    q = quantizer(1.0)
    step = q.step_size
    assert mx.abs(q(x) - x).max().item() <= 0.5 * step.item() * (1 + 1e-5)


def test_without_a_range_the_largest_magnitude_is_exact():
    x = mx.array([0.1, -3.5, 2.0])
    got = quantizer()(x)
    assert got[1].item() == pytest.approx(-3.5, rel=1e-6)
    by_row = quantizer(axis=0)(mx.array([[1.0, 0.3], [100.0, 30.0]]))
    np.testing.assert_allclose(np.array(by_row[1]), 100 * np.array(by_row[0]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_computed_in_float32_and_returned_in_its_dtype(dtype):
    x = mx.random.normal((64,)).astype(dtype)
    got = quantizer(2.0)(x)
    assert got.dtype == dtype
    want = quantizer(2.0)(x.astype(mx.float32)).astype(dtype)
    np.testing.assert_array_equal(np.array(got.astype(mx.float32)), np.array(want.astype(mx.float32)))


def test_a_tiny_range_gives_zeros_and_the_next_larger_one_does_not():
    x = mx.array([1e-8, 1.0, -1.0])
    assert mx.abs(quantizer(2.0**-24)(x)).max().item() == 0
    assert mx.abs(quantizer(2.0**-23)(x)).max().item() > 0
    assert mx.abs(quantizer(0.0)(x)).max().item() == 0


def test_the_gradient_is_one_inside_the_range_and_zero_outside():
    q = quantizer(1.0)
    grad = mx.grad(lambda x: q(x).sum())(mx.array([-1.5, -1.0, 0.3, 1.0, 1.01]))
    assert grad.tolist() == [0, 1, 1, 1, 0]


def test_the_gradient_is_the_same_in_a_compiled_function():
    q = quantizer(1.0)
    grad = mx.compile(mx.grad(lambda x: (3 * q(x)).sum()))(mx.array([-1.5, 0.2]))
    assert grad.tolist() == [0, 3]


def test_a_disabled_quantizer_returns_its_input_even_during_calibration():
    q, x = quantizer(1.0), mx.array([5.0])
    q.disable()
    q.start_calibration()
    assert q(x).item() == 5
    with pytest.raises(QuantizationError, match="no data"):
        q.finish_calibration()
    q.stop_calibration()
    q.enable()
    assert q(x).item() == 1


def test_calibration_with_zeros_gives_the_range_zero():
    q = quantizer(calib_method="histogram")
    q.start_calibration()
    q(mx.zeros((4,)))
    q.finish_calibration("mse")
    assert q.amax.item() == 0


def test_zeros_before_other_values_count_in_the_histogram():
    q = quantizer(calib_method="histogram")
    q.start_calibration()
    q(mx.zeros((9900,)))
    q(mx.concatenate([mx.full((99,), 0.5), mx.array([1.0])]))
    q.finish_calibration("percentile", percentile=99.0)
    assert q.amax.item() < 0.01


@pytest.mark.parametrize("amax", [-1.0, float("nan"), float("inf"), [], "wide"])
def test_invalid_ranges_are_refused(amax):
    with pytest.raises(QuantizationError, match="amax"):
        quantizer(amax)


def test_a_range_of_another_shape_is_refused():
    q = quantizer(1.0)
    with pytest.raises(QuantizationError, match=r"shape \(3,\), expected \(\)"):
        q.amax = [1.0, 2.0, 3.0]


def test_an_axis_beyond_the_tensor_is_refused():
    with pytest.raises(QuantizationError, match="axis"):
        TensorQuantizer(axis=2)(mx.ones((2, 3)))


def test_an_unsigned_quantizer_refuses_negative_input():
    with pytest.raises(QuantizationError, match="negative"):
        quantizer(1.0, unsigned=True)(mx.array([0.5, -0.5]))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_bits": 1},
        {"num_bits": 8.0},
        {"num_bits": True},
        {"axis": "rows"},
        {"calib_method": "guess"},
        {"calib_method": "histogram", "axis": 0},
        {"learn_amax": True},
    ],
)
def test_invalid_descriptors_are_refused(fields):
    with pytest.raises(MlxQwen3Error) as caught:
        TensorQuantizer(**fields)
    assert str(caught.value)


def test_partial_descriptors_merge_with_the_defaults():
    merged = QuantDescriptor.merged({"num_bits": 6}, "quant_desc_weight", axis=0)
    assert merged == QuantDescriptor(num_bits=6, axis=0)
    assert QuantDescriptor.merged({"axis": None}, "quant_desc_weight", axis=0).axis is None


def test_calibration_methods_out_of_order_are_refused():
    with pytest.raises(QuantizationError, match="start_calibration"):
        quantizer().finish_calibration()
    q = quantizer()
    q.start_calibration()
    q(mx.array([1.0]))
    with pytest.raises(QuantizationError, match="histogram"):
        q.finish_calibration("entropy")
    with pytest.raises(QuantizationError, match="guess"):
        q.finish_calibration("guess")
    rows = quantizer(axis=0)
    with pytest.raises(QuantizationError, match="axis 0"):
        rows.start_calibration("histogram")
    histogram = quantizer(calib_method="histogram")
    histogram.start_calibration()
    with pytest.raises(QuantizationError, match="NaN"):
        histogram(mx.array([float("nan")]))
    histogram(mx.array([1.0]))
    with pytest.raises(QuantizationError, match="percentile"):
        histogram.finish_calibration(percentile=101)

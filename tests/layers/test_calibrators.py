"""Single calibrators: growing ranges, extreme values, and refused values."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import QuantizationError
from mlx_qwen3.layers.calibrators import FIRST_BINS, MOST_BINS, HistogramCalibrator, MaxCalibrator

METHODS = ["percentile", "entropy", "mse"]


def collected(*scales: float) -> HistogramCalibrator:
    calibrator = HistogramCalibrator()
    for seed, scale in enumerate(scales):
        values = np.random.default_rng(seed).random(512).astype(np.float32)
        calibrator.collect(mx.array(values * np.float32(scale)))
    return calibrator


@pytest.mark.parametrize("scales", [(1e-6, 100.0), (1e-30, 1e8), (1e-38, 3e38), tuple(10.0**i for i in range(-20, 20))])
def test_the_number_of_bins_is_bounded_as_the_range_grows(scales):
    calibrator = collected(*scales)
    assert calibrator._counts is not None
    assert MOST_BINS // 2 <= len(calibrator._counts) <= MOST_BINS + 1
    assert calibrator._counts.sum() == 512 * len(scales)
    for method in METHODS:
        amax = calibrator.compute_amax(method, stride=512)
        assert amax is not None
        assert 0 < amax.item() <= scales[-1] * 1.001


def test_merged_bins_have_the_sums_of_the_narrow_bins():
    narrow = collected(1.0, 7.0)
    wide = collected(1.0, 7.0, 40.0)
    assert narrow._counts is not None
    assert wide._counts is not None
    merged = round(float(wide._width / narrow._width))
    assert merged == 8
    last = collected(1.0)
    last.collect(mx.array(np.random.default_rng(2).random(512).astype(np.float32) * np.float32(40.0)))
    padded = np.concatenate([narrow._counts, np.zeros(-len(narrow._counts) % merged, np.int64)])
    sums = padded.reshape(-1, merged).sum(axis=1)
    own = wide._counts.copy()
    own[: len(sums)] -= sums
    assert own.min() >= 0
    assert own.sum() == 512


def test_a_range_that_grows_little_keeps_its_bins():
    calibrator = collected(1.0, 4.0)
    assert calibrator._counts is not None
    width = np.float32(np.random.default_rng(0).random(512).astype(np.float32).max() / FIRST_BINS)
    assert calibrator._width == width


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-45, 0.0]])
def test_zeros_alone_have_the_range_zero(values):
    calibrator = HistogramCalibrator()
    calibrator.collect(mx.array(values))
    assert calibrator.compute_amax("entropy") == 0
    calibrator.collect(mx.array([1.0, 2.0]))
    amax = calibrator.compute_amax("percentile", percentile=100.0)
    assert amax is not None
    assert amax.item() == pytest.approx(2.0, rel=1e-3)


def test_a_calibrator_without_data_has_no_range():
    assert HistogramCalibrator().compute_amax("percentile") is None
    assert MaxCalibrator().compute_amax() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        HistogramCalibrator().collect(mx.array([1.0, bad]))

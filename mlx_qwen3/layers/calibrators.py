"""Range calibrators: collect statistics of the tensors that pass a fake quantizer and compute the range to keep.

Source of every rule: pytorch-quantization 2.2.1, `calib/max.py` and `calib/histogram.py`. Histograms are kept on
the host: calibration reads the data once and then works on 2048 counts.
"""

import math
from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from ..errors import QuantizationError

HISTOGRAM_METHODS = ("percentile", "entropy", "mse")
CALIBRATION_METHODS = ("max", *HISTOGRAM_METHODS)

FIRST_BINS = 2048
MOST_BINS = 8 * FIRST_BINS
"""Bins of a histogram at most; beyond them neighbours are merged, so that no range of the data costs memory."""
TINY_AMAX = 2.0**-24
"""Ranges up to this one (the smallest step of float16) count as zero."""


class MaxCalibrator:
    """The running maximum of |x|: one number, or one per index of `axis`."""

    def __init__(self, axis: int | tuple[int, ...] | None = None):
        self.axis = axis
        self._amax: mx.array | None = None

    def collect(self, x: mx.array) -> None:
        """Collect one tensor.

        Raises:
            QuantizationError: the kept axes differ in size from the previous tensor.
        """
        amax = reduce_amax(x, self.axis)
        if self._amax is not None:
            if self._amax.shape != amax.shape:
                raise QuantizationError(
                    f"the calibrated tensors differ: ranges of shape {self._amax.shape}, then of {amax.shape}."
                )
            amax = mx.maximum(self._amax, amax)
        mx.eval(amax)  # otherwise the graph of every batch stays alive until the end
        self._amax = amax

    def compute_amax(self) -> mx.array | None:
        """Return the range, or None when nothing was collected. One element becomes a scalar."""
        return self._amax


class HistogramCalibrator:
    """Counts of |x| in 2048 equal bins; a later, larger batch adds bins of the same width.

    Above `MOST_BINS` neighbouring bins are merged into wider ones, of which at least half of `MOST_BINS` remain.
    """

    def __init__(self, num_bits: int = 8, unsigned: bool = False):
        self.num_bits = num_bits
        self.unsigned = unsigned
        self._counts: np.ndarray | None = None
        self._width = np.float32(0)
        self._zeros = 0

    def collect(self, x: mx.array) -> None:
        """Collect one tensor.

        Raises:
            QuantizationError: the tensor holds NaN or infinity.
        """
        values = np.abs(np.array(x.astype(mx.float32))).ravel()
        if not values.size:
            return
        largest = values.max()
        if not np.isfinite(largest):
            raise QuantizationError("the calibrated tensor contains NaN or infinity. Check the model and the inputs.")
        if self._counts is None:
            width = np.float32(float(largest) / FIRST_BINS)
            if width == 0:  # it defines no bin width and is counted in the first bin of a later batch
                self._zeros += values.size
                return
            self._width = width
            self._counts = np.zeros(FIRST_BINS, np.int64)
            self._counts[0] = self._zeros
        if float(largest) > float(self._width) * len(self._counts):
            self._counts, self._width = _grown(self._counts, self._width, float(largest))
        size = len(self._counts)
        span = _edges(size, self._width)[-1]
        where = (values / span * np.float32(size)).astype(np.int64)
        self._counts += np.bincount(np.minimum(where, size - 1), minlength=size)

    def compute_amax(
        self, method: str, *, percentile: float = 99.99, stride: int = 1, start_bin: int = 128
    ) -> mx.array | None:
        """Return the range by `method`, or None when nothing was collected.

        Args:
            method: 'percentile', 'entropy' (least Kullback-Leibler divergence), 'mse' (least squared error).
            percentile: share of the values kept, from 0 to 100.
            stride, start_bin: the candidate ranges that entropy and mse try, in bins.

        Raises:
            QuantizationError: an unknown method, or an argument out of its range.
        """
        if method not in HISTOGRAM_METHODS:
            raise QuantizationError(
                f"calibration method {method!r} does not use a histogram. Choose one of {', '.join(HISTOGRAM_METHODS)}."
            )
        if not 0 <= percentile <= 100:
            raise QuantizationError(f"percentile is {percentile}, expected a number from 0 to 100.")
        if stride < 1 or not 0 < start_bin < FIRST_BINS:
            raise QuantizationError(
                f"stride is {stride} and start_bin {start_bin}, expected stride ≥ 1 and 0 < start_bin < {FIRST_BINS}."
            )
        if self._counts is None:
            return mx.array(0.0) if self._zeros else None
        edges = _edges(len(self._counts), self._width)
        if method == "percentile":
            amax = amax_of_percentile(self._counts, edges, percentile)
        elif method == "entropy":
            amax = amax_of_entropy(self._counts, edges, self.num_bits, self.unsigned, stride, start_bin)
        else:
            amax = amax_of_mse(self._counts, edges, self.num_bits, self.unsigned, stride, start_bin)
        return mx.array(amax, mx.float32)


def _grown(counts: np.ndarray, width: np.float32, largest: float) -> tuple[np.ndarray, np.float32]:
    """Return counts and width of a histogram that reaches `largest`."""
    bins = math.ceil(np.float32(largest) / width) if largest / float(width) < 1e9 else largest / float(width)
    merged = math.ceil(bins / MOST_BINS)
    if merged > 1:
        merged = 2 ** (merged - 1).bit_length()  # a power of two, so that the edges stay where they were
        size = min(merged, len(counts))
        padded = np.concatenate([counts, np.zeros(-len(counts) % size, np.int64)])
        counts = padded.reshape(-1, size).sum(axis=1)
        width = np.float32(float(width) * merged)
        bins = math.ceil(largest / float(width))
    more = max(int(bins) - len(counts), 0)
    return np.concatenate([counts, np.zeros(more, np.int64)]), width


def _edges(bins: int, width: np.float32) -> np.ndarray:
    """Return the edges of bins in float32, none of them infinite."""
    edges = float(width) * np.arange(bins + 1, dtype=np.float64)
    return np.minimum(edges, np.finfo(np.float32).max).astype(np.float32)


def reduce_amax(x: mx.array, axis: int | tuple[int, ...] | None) -> mx.array:
    """Return max |x| over every axis but `axis` (kept as size 1); a single element becomes a scalar."""
    if axis is None:
        return mx.abs(x).max()
    axes = (axis,) if isinstance(axis, int) else axis
    if any(not -x.ndim <= a < x.ndim for a in axes):
        raise QuantizationError(f"a quantizer has axis {axis}, but its tensor {tuple(x.shape)} has {x.ndim} axes.")
    kept = {a % x.ndim for a in axes}
    amax = mx.abs(x).max(axis=[i for i in range(x.ndim) if i not in kept], keepdims=True)
    return amax.reshape(()) if amax.size == 1 else amax


def amax_of_percentile(counts: np.ndarray, edges: np.ndarray, percentile: float) -> float:
    """Return the bin edge at which the cumulated share of the values reaches `percentile`."""
    shares = np.cumsum(counts / counts.sum())
    return float(edges[np.searchsorted(shares, percentile / 100)])


def amax_of_entropy(
    counts: np.ndarray, edges: np.ndarray, num_bits: int, unsigned: bool, stride: int, start_bin: int
) -> float:
    """Return the range with the least divergence between the quantized and the clipped distribution; the largest among
    equals.
    """
    bins = counts.astype(np.float64)
    bins[0] = bins[1]  # zeros would outweigh everything else
    candidates = range(start_bin, len(bins) + 1, stride)
    divergences = np.array(list(_divergences(bins, candidates, 1 << (num_bits - 1 + int(unsigned)))))
    last_least = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return float(edges[candidates[last_least]])


def _divergences(bins: np.ndarray, candidates: range, levels: int) -> Iterator[float]:
    for i in candidates:
        kept = bins[:i]
        full = kept != 0
        level = np.digitize(np.arange(i), np.linspace(0, i, levels + 1)) - 1
        sums = np.bincount(level[full], kept[full], levels)
        sizes = np.bincount(level[full], minlength=levels)
        quantized = np.zeros(i)
        quantized[full] = (sums / np.maximum(sizes, 1))[level[full]]
        reference = kept.copy()
        reference[-1] += bins[i:].sum()
        yield _kullback_leibler(reference, quantized)


def _kullback_leibler(p: np.ndarray, q: np.ndarray) -> float:
    if not p.sum() or not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    if (q[there] == 0).any():
        return np.inf
    return float(np.sum(p[there] * np.log(p[there] / q[there])))


def amax_of_mse(
    counts: np.ndarray, edges: np.ndarray, num_bits: int, unsigned: bool, stride: int, start_bin: int
) -> float:
    """Return the bin centre that, as the range, gives the least squared error over the histogram."""
    centers = ((edges[1:].astype(np.float64) + edges[:-1]) / 2).astype(np.float32)
    bound = np.float32(2.0 ** (num_bits - 1 + int(unsigned)) - 1)
    candidates = np.arange(start_bin, len(centers), stride)
    errors = np.empty(len(candidates))
    for n, i in enumerate(candidates):
        if centers[i] <= TINY_AMAX:
            quantized = np.zeros_like(centers)
        else:
            scale = bound / centers[i]
            quantized = np.minimum(np.rint(centers * scale), bound) / scale
        errors[n] = ((quantized - centers).astype(np.float64) ** 2 * counts).mean()
    return float(centers[candidates[int(np.argmin(errors))]])

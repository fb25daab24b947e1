"""Execute a conversion plan: read, pack and write weights in blocks of rows."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import mlx.core as mx

from ..checkpoint import CheckpointWriter
from ..errors import CheckpointError
from ..layers.devices import release_streams_at_thread_end
from .plan import Plan, Step, row_blocks
from .result import LayerError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read."""

CPU_WORKERS = 2


class Converter:
    """A converter that writes the weights of a plan to a folder.

    Args:
        plan: the steps.
        folder: an existing folder.
        allow_not_finite: convert weights with NaN or infinite values instead of raising.
        progress: called with the bytes read so far and the bytes to read.

    Attributes:
        largest_error: largest absolute error of a weight from rounding scales and biases of reused codes.
        not_finite: names of weights with NaN or infinite values.
    """

    def __init__(self, plan: Plan, folder: Path, *, allow_not_finite: bool, progress: Progress | None) -> None:
        self._plan = plan
        self._writer = CheckpointWriter(folder, plan.outputs, total_parameters=plan.parameters)
        self._allow_not_finite = allow_not_finite
        self._progress = progress
        self._bytes_read = 0
        self._rows_left = {step.name: step.weight.shape[0] if step.weight.shape else 1 for step in plan.steps}
        self._lock = threading.Lock()
        self.largest_error = 0.0
        self._errors: dict[str, tuple[float, float, int]] = {}
        self.not_finite: list[str] = []

    def run(self) -> None:
        """Read, pack and write all weights.

        Raises:
            CheckpointError: weights are NaN or infinite, or a file cannot be read or written.
        """
        blocks = [(step, start, stop) for step in self._plan.steps for start, stop in row_blocks(step.weight)]
        try:
            if mx.default_device().type == mx.DeviceType.cpu:
                self._run_on_cpu(blocks)
            else:
                for step, start, stop in blocks:
                    self._convert(step, start, stop)
                    mx.clear_cache()
            self._writer.finish()
        finally:
            self._writer.abandon()

    def _run_on_cpu(self, blocks: list[tuple[Step, int, int]]) -> None:
        # An MLX operation uses a single CPU core, so a few blocks are converted in parallel.
        pending: set[Future[None]] = set()
        with ThreadPoolExecutor(CPU_WORKERS, initializer=release_streams_at_thread_end) as pool:
            try:
                for block in blocks:
                    if len(pending) >= CPU_WORKERS:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                    pending.add(pool.submit(self._convert_in_thread, *block))
                for future in pending:
                    future.result()
            except BaseException:
                for future in pending:
                    future.cancel()
                raise

    def _convert_in_thread(self, step: Step, start: int, stop: int) -> None:
        with mx.stream(_get_stream()):
            self._convert(step, start, stop)

    def _convert(self, step: Step, start: int, stop: int) -> None:
        if step.format is not None and step.reuses_codes and step.weight.format is not None:
            parts = self._copy_rows(step, start, stop)
        elif step.format is not None and step.reuses_codes:
            parts = self._reuse_codes(step, start, stop)
        else:
            parts = self._compute_rows(step, start, stop)
        mx.eval(list(parts.values()))
        with self._lock:
            for name, rows in parts.items():
                if step.weight.shape:
                    self._writer.write_rows(name, start, rows)
                else:
                    self._writer.write(name, rows)
            self._advance(step, stop - start)
            left = self._rows_left[step.name] = self._rows_left[step.name] - (stop - start)
        if left <= 0 and step.weight.foreign is not None:
            step.weight.foreign.release()

    def _advance(self, step: Step, rows: int) -> None:
        self._bytes_read += step.weight.nbytes * rows // max(step.weight.shape[0] if step.weight.shape else 1, 1)
        if self._progress is not None:
            self._progress(min(self._bytes_read, self._plan.bytes_in), self._plan.bytes_in)

    def _compute_rows(self, step: Step, start: int, stop: int) -> dict[str, mx.array]:
        weight = step.weight
        rows = weight.rows(start, stop) if weight.shape else weight.checkpoint.read_now(weight.names[0])
        floating, exact = mx.issubdtype(rows.dtype, mx.floating), rows
        if step.dtype is not None:
            rows = rows.astype(step.dtype)
        if floating and not is_finite(rows):
            self._report_not_finite(step)
        if step.format is None:
            return {step.name: rows}
        path = step.name.removesuffix(".weight")
        packed = step.format.quantize(rows)
        if path in self._plan.requantized:
            self._measure(path, exact, step.format.dequantize(packed, mx.float32))
        return {f"{path}.{part}": array for part, array in packed.items()}

    def _measure(self, path: str, exact: mx.array, packed: mx.array) -> None:
        moved = mx.abs(exact.astype(mx.float32) - packed)
        values: list[float] = mx.stack([mx.max(moved), mx.sum(moved)]).tolist()  # type: ignore[assignment]
        largest, total = values
        with self._lock:
            before = self._errors.get(path, (0.0, 0.0, 0))
            self._errors[path] = (max(before[0], largest), before[1] + total, before[2] + moved.size)

    @property
    def requantize_errors(self) -> dict[str, LayerError]:
        """Layer -> error of requantizing it."""
        return {path: LayerError(largest, total / count) for path, (largest, total, count) in self._errors.items()}

    def _copy_rows(self, step: Step, start: int, stop: int) -> dict[str, mx.array]:
        parts = {}
        for name, (_, dtype) in step.outputs.items():
            parts[name] = step.weight.checkpoint.read_rows(name, start, stop).astype(dtype)
        return parts

    def _reuse_codes(self, step: Step, start: int, stop: int) -> dict[str, mx.array]:
        assert step.weight.foreign is not None
        assert step.format is not None
        assert step.dtype is not None
        packed, scales, zeros = step.weight.foreign.codes(start, stop)
        exact_scales = scales.astype(mx.float32)
        exact_biases = -exact_scales * zeros
        stored_scales, stored_biases = exact_scales.astype(step.dtype), exact_biases.astype(step.dtype)
        # scale * code + bias is linear in the code, so the error is largest at the first or the last code.
        at_first = stored_biases.astype(mx.float32) - exact_biases
        at_last = at_first + (stored_scales.astype(mx.float32) - exact_scales) * (2**step.format.bits - 1)
        error = mx.maximum(mx.max(mx.abs(at_first)), mx.max(mx.abs(at_last)))
        finite = mx.all(mx.isfinite(stored_scales)) & mx.all(mx.isfinite(stored_biases))
        mx.eval(error, finite)
        if not finite.item():
            self._report_not_finite(step)
        with self._lock:
            self.largest_error = max(self.largest_error, float(error.item()))  # type: ignore[arg-type]
        path = step.name.removesuffix(".weight")
        return {f"{path}.weight": packed, f"{path}.scales": stored_scales, f"{path}.biases": stored_biases}

    def _report_not_finite(self, step: Step) -> None:
        if not self._allow_not_finite:
            raise CheckpointError(
                f"{step.weight.name} has NaN or infinite values (as {step.dtype or step.weight.dtype}). Check the "
                "source, choose --dtype float32, or convert it anyway with --force."
            )
        with self._lock:
            if step.weight.name not in self.not_finite:
                self.not_finite.append(step.weight.name)
                logger.warning("%s has NaN or infinite values", step.weight.name)


def is_finite(array: mx.array) -> bool:
    """Return whether no value is NaN or infinite.

    Compares the bits without the sign with those of infinity. On a CPU this takes a tenth of the time of `mx.isfinite`.
    """
    words, infinity = _INFINITY[array.dtype]
    if not array.size:
        return True
    return bool((mx.max(array.view(words) & mx.array(infinity | (infinity - 1), dtype=words)) < infinity).item())


_INFINITY = {
    mx.bfloat16: (mx.uint16, 0x7F80),
    mx.float16: (mx.uint16, 0x7C00),
    mx.float32: (mx.uint32, 0x7F800000),
}

_streams = threading.local()


def _get_stream() -> mx.Stream:
    if not hasattr(_streams, "stream"):
        _streams.stream = mx.new_stream(mx.cpu)
    return _streams.stream

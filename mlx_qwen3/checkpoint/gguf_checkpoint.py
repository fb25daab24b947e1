"""A GGUF file as a `Checkpoint`, with Hugging Face names and MLX's packed layout, read in blocks of rows."""

import logging
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from .gguf import GgufFile
from .gguf_kinds import GROUP, KINDS, Kind, decode, pack_blocks
from .gguf_names import Rows, weight_rows
from .gguf_split import open_gguf
from .header import TensorEntry
from .reader import Checkpoint

logger = logging.getLogger(__name__)

_BLOCK_VALUES = 4 << 20
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_NUMBERS = {number_of.name: number for number, number_of in KINDS.items()}


@dataclass(frozen=True)
class Repacked:
    """A weight that is packed with more bits than its GGUF type has.

    Attributes:
        kind: name of the GGUF type.
        error: largest absolute error of a value; 0 if the conversion is exact.
    """

    kind: str
    error: float


class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF model under their Hugging Face names.

    Packed types appear as `weight`, `scales` and `biases` in MLX's layout. `read` returns evaluated arrays.

    Attributes:
        file: the header.
        formats: layer path -> (bits, mode) of the packed layers, which have groups of 32.
        repacked: layer path -> error of packing with 8 bits, for types without a layout of the same size in MLX. Filled
            when the weights are read.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.formats: dict[str, tuple[int, str]] = {}
        self.repacked: dict[str, Repacked] = {}
        self._rows: dict[str, Rows] = {}
        self._parts: dict[str, tuple[str, str]] = {}
        self._answers = _find_answer_rows(file)
        self._unread_parts: dict[str, mx.array] = {}
        self._last = threading.local()
        self._lock = threading.Lock()
        entries: dict[str, TensorEntry] = {}
        for name, rows in weight_rows(file).items():
            for entry_name, part, shape, dtype in self._make_entries(name, rows):
                size = math.prod(shape) * _BYTES.get(dtype, 4)
                entries[entry_name] = TensorEntry(rows.tensor.file, dtype, shape, rows.tensor.offset, size)
                self._parts[entry_name] = (name, part)
            self._rows[name] = rows
        super().__init__(file.path, entries, {}, file.files)

    def _make_entries(self, name: str, rows: Rows) -> list[tuple[str, str, tuple[int, ...], str]]:
        """Return (name, part, shape, dtype) of every tensor that a weight appears as."""
        kind = rows.tensor.kind
        if name == "score.weight" and self._answers:
            return [(name, "difference", (1, rows.shape[1]), "F32")]
        if not kind.bits:
            return [(name, "plain", rows.shape, kind.scales)]
        if len(rows.shape) == 1 or not name.endswith(".weight"):
            return [(name, "decoded", rows.shape, "F32")]
        path = name.removesuffix(".weight")
        self.formats[path] = (kind.bits, kind.mode)
        count, columns = rows.shape
        found = [
            (name, "weight", (count, columns * kind.bits // 32), "U32"),
            (f"{path}.scales", "scales", (count, columns // GROUP), kind.scales),
        ]
        if kind.mode == "affine":
            found.append((f"{path}.biases", "biases", (count, columns // GROUP), kind.scales))
        return found

    @property
    def format_name(self) -> str:
        """The GGUF types of the matrices, the type with most values first."""
        sizes: dict[str, int] = {}
        for rows in self._rows.values():
            if len(rows.shape) == 2:
                name = rows.tensor.kind.name
                sizes[name] = sizes.get(name, 0) + math.prod(rows.shape)
        return f"GGUF {', '.join(sorted(sizes, key=lambda name: -sizes[name]))}"

    @property
    def stored_dtype(self) -> str:
        """The dtype that represents all vectors, and all matrices or their scales, without rounding.

        Vectors are float32 in most files but often have values that a shorter dtype represents exactly. They are small
        and are read to determine this.
        """
        kinds = {rows.tensor.kind.scales for rows in self._rows.values() if len(rows.shape) == 2} - {"U8"}
        dtype = {("F16",): mx.float16, ("BF16",): mx.bfloat16, (): mx.bfloat16}.get(tuple(kinds), mx.float32)
        if dtype == mx.float32:
            return "float32"
        for name, rows in self._rows.items():
            if len(rows.shape) == 1 and self.dtype(name) == mx.float32:
                vector = self.read_now(name)
                if not mx.array_equal(vector.astype(dtype).astype(mx.float32), vector).item():
                    return "float32"
        return str(dtype).rpartition(".")[2]

    def is_decoded(self, name: str) -> bool:
        return True

    def nbytes(self, name: str) -> int:
        """Return the size of a weight in its file. For a packed weight it is counted only for the part `weight`."""
        self.entry(name)
        weight, part = self._parts[name]
        rows = self._rows[weight]
        if part in ("scales", "biases"):
            return 0
        return math.prod(rows.shape) // rows.tensor.kind.block * rows.tensor.kind.block_bytes

    @property
    def total_bytes(self) -> int:
        """The size of all tensors in the file."""
        return sum(self.nbytes(name) for name in self.names)

    def read(self, name: str) -> mx.array:
        """Return one tensor, evaluated. The other parts of a packed weight are kept until they are read.

        Raises:
            CheckpointError: there is no such tensor, its file cannot be read, or scales are not finite.
        """
        self.entry(name)
        if name in self._unread_parts:
            return self._unread_parts.pop(name)
        weight, _ = self._parts[name]
        self._unread_parts.clear()
        found = self._read_weight(weight)
        array = found.pop(name)
        self._unread_parts.update(found)
        return array

    def read_all(self, names: Iterable[str] | None = None) -> dict[str, mx.array]:
        """Return the named tensors (default: all), evaluated. A warning reports weights that are rounded."""
        tensors = {name: self.read(name) for name in (self.names if names is None else names)}
        self._unread_parts.clear()
        rounded = [found for found in self.repacked.values() if found.error]
        if rounded:
            kinds = ", ".join(sorted({found.kind for found in rounded}))
            error = max(found.error for found in rounded)
            logger.warning(
                "%s: %d matrices (%s) are rounded to 8 bits in groups of 32; the largest error of a weight is %.2g",
                self.file.path.name,
                len(rounded),
                kinds,
                error,
            )
        return tensors

    def read_now(self, name: str) -> mx.array:
        """Return one tensor, evaluated; may be called from any thread."""
        self.entry(name)
        return self._read_weight(self._parts[name][0])[name]

    def read_rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows `start` to `stop` of a tensor without reading the others.

        Raises:
            CheckpointError: there is no such tensor, its file cannot be read, or scales are not finite.
        """
        self.entry(name)
        weight, _ = self._parts[name]
        key = (weight, start, stop)
        # The parts of a packed weight are read one after the other, so they are converted once for all.
        if getattr(self._last, "key", None) != key:
            self._last.parts, self._last.key = self._convert(weight, start, stop), key
        return mx.array(self._last.parts[name]).view(self.dtype(name))

    def release(self, name: str) -> None:
        self._last = threading.local()

    def _read_weight(self, weight: str) -> dict[str, mx.array]:
        """Return all parts of a weight, converted in blocks of rows."""
        rows = self._rows[weight]
        names = [name for name, (owner, _) in self._parts.items() if owner == weight]
        if len(rows.shape) == 1 or self._parts[weight][1] == "difference":
            return {name: self._to_array(name, part) for name, part in self._convert(weight, 0, rows.shape[0]).items()}
        results: dict[str, np.ndarray] = {}
        step = max(_BLOCK_VALUES // rows.shape[1], 1)
        for start in range(0, rows.shape[0], step):
            stop = min(start + step, rows.shape[0])
            for name, part in self._convert(weight, start, stop).items():
                if name not in results:
                    results[name] = np.empty(self.shape(name), dtype=part.dtype)
                results[name][start:stop] = part
        return {name: self._to_array(name, results.pop(name)) for name in names}

    def _to_array(self, name: str, values: np.ndarray) -> mx.array:
        return mx.array(values).view(self.dtype(name))

    def _convert(self, weight: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return rows of all parts of a weight, with bfloat16 as uint16."""
        rows, part = self._rows[weight], self._parts[weight][1]
        kind = rows.tensor.kind
        if part == "difference":
            assert self._answers is not None
            values = _decode_rows(rows.tensor.kind, rows.tensor.read_rows(0, 2))
            yes, no = self._answers
            return {weight: values[yes : yes + 1] - values[no : no + 1]}
        if len(rows.shape) == 1:
            raw = rows.tensor.read_rows(0, 1)
            values = _decode_rows(kind, raw)[0] if part == "decoded" else raw[0].view(_numpy_dtype(kind))
            return {weight: values[rows.start + start : rows.start + stop]}
        raw = rows.tensor.read_rows(rows.start + start, rows.start + stop)
        if part == "decoded":
            return {weight: _decode_rows(kind, raw)}
        if kind.pack is None:
            return {weight: raw.view(_numpy_dtype(kind))}
        return self._pack(weight, kind, raw)

    def _pack(self, weight: str, kind: Kind, raw: np.ndarray) -> dict[str, np.ndarray]:
        count, path = len(raw), weight.removesuffix(".weight")
        packed = pack_blocks(kind, raw.reshape(-1, kind.block_bytes))
        if packed.biases is None:
            usable = not bool((packed.scales == 255).any())  # exponent 255 is NaN in MLX but 2**127 in ggml
        else:
            usable = bool(np.isfinite(packed.scales).all() and np.isfinite(packed.biases).all())
        if not usable:
            raise CheckpointError(
                f"{self.file.path} is damaged: {self._rows[weight].tensor.name} ({kind.name}) has scales that are not "
                "finite or exceed float16. Download it again."
            )
        if kind.widened:
            with self._lock:
                before = self.repacked.get(path)
                self.repacked[path] = Repacked(kind.name, max(packed.error, before.error if before else 0.0))
        parts = {weight: packed.words.reshape(count, -1), f"{path}.scales": packed.scales.reshape(count, -1)}
        if packed.biases is not None:
            parts[f"{path}.biases"] = packed.biases.reshape(count, -1)
        return parts


def _numpy_dtype(kind: Kind) -> str:
    return {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind.name]


def _decode_rows(kind: Kind, raw: np.ndarray) -> np.ndarray:
    """Return the float32 values of rows of bytes."""
    if kind.name == "F32":
        return raw.view("<f4")
    if kind.name == "F16":
        return raw.view("<f2").astype(np.float32)
    return decode(_NUMBERS[kind.name], raw)


def _find_answer_rows(file: GgufFile) -> tuple[int, int] | None:
    """Return the row indices of "yes" and "no" in the head of a reranker, or None for another head.

    llama.cpp's converter keeps only these two rows of the output matrix of a reranker. The probability of "yes" is the
    sigmoid of the difference of the two logits, so the head is one row, their difference.
    """
    labels = [label.lower() for label in file.texts(f"{file.architecture}.classifier.output_labels", [])]
    head = file.tensors.get("cls.output.weight")
    if head is None or sorted(labels) != ["no", "yes"] or len(head.shape) != 2 or head.shape[0] != 2:
        return None
    return labels.index("yes"), labels.index("no")


def open_gguf_checkpoint(path: str | Path) -> GgufCheckpoint:
    """Open the checkpoint in a GGUF file. Only the header is read.

    Raises:
        CheckpointError: the file is damaged, or has tensors that Qwen3 does not have; the message names the cause.
    """
    return GgufCheckpoint(open_gguf(path))

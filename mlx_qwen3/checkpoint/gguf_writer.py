"""Write a GGUF file: first the header, then tensors in any order, a block of rows at a time.

Source of the layout: `docs/gguf.md` of ggml. Version 3, little-endian, data aligned to 32 bytes.
"""

import math
import struct
from collections.abc import Mapping
from typing import IO, Any

import mlx.core as mx
import numpy as np

from .gguf import MAGIC
from .gguf_kinds import KINDS, Kind

ALIGNMENT = 32
WRITTEN = {"F32": 0, "F16": 1, "BF16": 30, "Q8_0": 8, "Q4_0": 2}
"""Tensor type that this package writes -> number in the tensor table."""
_ARRAY, _STRING = 9, 8
_ARRAY_TYPES = {"int32": 5, "float32": 6, "bool": 7}


class GgufWriter:
    """A writer for planned tensors.

    Args:
        file: an empty, seekable file that is open for writing.
        metadata: key -> bool, int, float, str, list of str, or NumPy array. Integers are written with 32 bits, floats
            as float32.
        tensors: name -> (shape in Hugging Face's order, type).
    """

    def __init__(
        self, file: IO[bytes], metadata: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> None:
        self._file = file
        head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
        head += [_encode_text(key) + _encode_value(value) for key, value in metadata.items()]
        self._positions: dict[str, tuple[int, Kind, tuple[int, ...]]] = {}
        offset = 0
        for name, (shape, kind_name) in tensors.items():
            number = WRITTEN[kind_name]
            head += [
                _encode_text(name),
                struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, offset),
            ]
            self._positions[name] = (offset, KINDS[number], shape)
            offset += -(-kind_bytes(shape, kind_name) // ALIGNMENT) * ALIGNMENT
        raw = b"".join(head)
        self._start = -(-len(raw) // ALIGNMENT) * ALIGNMENT
        file.write(raw.ljust(self._start, b"\0"))
        file.truncate(self._start + offset)  # fills the padding between tensors with zeros

    def write_rows(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write encoded rows (rows, bytes per row) uint8, starting at row `start` of a tensor."""
        offset, kind, shape = self._positions[name]
        row_bytes = shape[-1] // kind.block * kind.block_bytes
        if rows.dtype != np.uint8 or rows.shape[-1] != row_bytes:
            raise ValueError(f"rows of {name} are {rows.dtype} of {rows.shape}, planned were {row_bytes} bytes")
        self._file.seek(self._start + offset + start * row_bytes)
        self._file.write(np.ascontiguousarray(rows).data)


def kind_bytes(shape: tuple[int, ...], kind_name: str) -> int:
    """Return the size in bytes of a tensor of a type."""
    kind = KINDS[WRITTEN[kind_name]]
    return math.prod(shape) // kind.block * kind.block_bytes


def encode_rows(rows: mx.array, kind_name: str) -> np.ndarray:
    """Encode floating-point rows (n, columns) as a type; return bytes (n, bytes per row).

    F16 and BF16 round to nearest. Q8_0 and Q4_0 are quantized as in ggml's reference implementation.
    """
    if kind_name == "BF16":
        return np.array(mx.contiguous(rows.astype(mx.bfloat16)).view(mx.uint8))
    values = np.array(rows.astype(mx.float32))
    if kind_name == "F32":
        return values.view(np.uint8)
    if kind_name == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint8)
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values, GGMLQuantizationType(WRITTEN[kind_name]))


def _encode_text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _encode_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if value >= 0 else struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _encode_text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", _ARRAY, _ARRAY_TYPES[value.dtype.name], len(value)) + value.tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_encode_text, value))

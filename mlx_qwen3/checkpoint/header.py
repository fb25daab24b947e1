"""Read, validate and encode the header of a safetensors file.

Layout: 8 bytes with the length of the header (little-endian), the header (JSON: name -> dtype, shape, data_offsets),
then the bytes of the tensors without gaps. Source: the format section of the safetensors README,
https://github.com/huggingface/safetensors.

The package `safetensors` (0.8) is not used for two reasons. It can only write a file from all its tensors at once. It
reads single rows through NumPy, which has neither bfloat16 nor FP8.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from ..files import recognized

MAX_HEADER_BYTES = 100_000_000
_LONGEST_NAME = 1000

BYTES_PER_ELEMENT = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}

# The dtypes that `Checkpoint.read` returns. MLX has no 8-bit floats, so their bits are returned as uint8 for the caller
# to decode. It has no float64 on a GPU, so float64 becomes float32.
MLX_DTYPES = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "F8_E4M3": mx.uint8,
    "F8_E5M2": mx.uint8,
    "F8_E8M0": mx.uint8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F32": mx.float32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F64": mx.float32,
    "C64": mx.complex64,
}

SAFETENSORS_DTYPES = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.complex64: "C64",
}


@dataclass(frozen=True)
class TensorEntry:
    """The location of a tensor.

    Attributes:
        file: the safetensors file.
        dtype: safetensors name of the dtype, such as "BF16".
        shape: shape of the tensor.
        offset: position of the first byte in the file.
        nbytes: number of bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file. Only the header is read.

    Raises:
        CheckpointError: the file is truncated, is not a safetensors file, or has an inconsistent header.
    """
    again = "Download or convert it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path} is truncated ({size} bytes). {again}.")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES or length < 2:
                what = recognized(prefix + file.read(32))
                if what is not None:
                    raise CheckpointError(f"{path} is {what}.")
                raise CheckpointError(f"{path} is not a safetensors file (header of {length} bytes). {again}.")
            if 8 + length > size:
                raise CheckpointError(f"{path} is truncated: its header needs {length} bytes. {again}.")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from None
    try:
        header = json.loads(raw, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header ({error}). {again}.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a safetensors header that is not a table. {again}.")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has metadata that is not a mapping of strings to strings. {again}.")
    for name in header:
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(f"{path} has a tensor whose name has {len(name)} characters. {again}.")
    start = 8 + length
    entries = {name: _parse_entry(path, name, value, start) for name, value in header.items()}
    _check_ranges(path, entries, start, size)
    return entries, metadata


def _parse_entry(path: Path, name: str, value: Any, start: int) -> TensorEntry:
    where = f"tensor {name!r} in {path}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not described by a table. Download the file again.")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BYTES_PER_ELEMENT:
        known = ", ".join(BYTES_PER_ELEMENT)
        raise CheckpointError(
            f"{where} has dtype {dtype!r}, which is not supported. Save the checkpoint in one of {known}."
        )
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise CheckpointError(f"{where} has invalid shape {shape!r}. Download the file again.")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(n) for n in offsets)):
        raise CheckpointError(f"{where} has invalid offsets {offsets!r}. Download the file again.")
    begin, end = offsets
    needed = math.prod(shape) * BYTES_PER_ELEMENT[dtype]
    if end - begin != needed:
        raise CheckpointError(
            f"{where}: {dtype} {shape} needs {needed} bytes, but its offsets {offsets} span {end - begin}. "
            "Download the file again."
        )
    return TensorEntry(path, dtype, tuple(shape), start + begin, needed)


def _check_ranges(path: Path, entries: dict[str, TensorEntry], start: int, size: int) -> None:
    expected, previous = start, None
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset < expected:
            raise CheckpointError(f"tensors {previous!r} and {name!r} overlap in {path}. Download it again.")
        if entry.offset > expected:
            raise CheckpointError(f"{path} has a gap before tensor {name!r}. Download it again.")
        expected, previous = entry.offset + entry.nbytes, name
    if expected > size:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes, but its tensors need {expected}. Download it again."
        )
    if expected < size:
        raise CheckpointError(f"{path} has {size - expected} bytes after its last tensor. Download it again.")


def encode_header(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the bytes before the first tensor, and the offset of every tensor in the file.

    Args:
        tensors: name -> (safetensors name of the dtype, shape), in file order.
        metadata: metadata of the file.
    """
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    begins = {}
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * BYTES_PER_ELEMENT[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        begins[name] = position
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + begin for name, begin in begins.items()}

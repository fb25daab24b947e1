"""Read and validate the header of a GGUF file: metadata and tensor table.

Layout: magic "GGUF", uint32 version, uint64 number of tensors, uint64 number of metadata pairs, the pairs, the tensor
table, padding to `general.alignment`, the bytes of the tensors. Source: `docs/gguf.md` of ggml and the constants of the
`gguf` package.

The reader of the `gguf` package is not used for three reasons. It trusts counts and lengths in the file without
comparing them with the file size. It creates several NumPy objects per token. It maps the whole file into memory, and a
mapped file that is truncated while in use kills the process. Here every length is checked before memory is allocated,
and tensors are read in blocks.
"""

import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .gguf_kinds import KINDS, Kind, kind_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 << 20
MAX_STRING_BYTES = 16 << 20
MAX_DIMENSIONS = 4
_AGAIN = "Download it again"
_CHUNK = 1 << 20

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type -> struct format."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table.

    Attributes:
        file: the file that holds the tensor.
        name: GGUF name.
        kind: storage format.
        shape: shape in Hugging Face's order: (rows, columns) for a matrix.
        offset: position of the first byte in the file.
    """

    file: Path
    name: str
    kind: Kind
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) // self.kind.block * self.kind.block_bytes

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return self.shape[-1] // self.kind.block * self.kind.block_bytes

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes (rows, bytes per row) of rows `start` to `stop` as uint8. A vector is a single row.

        Raises:
            CheckpointError: the file cannot be read or has become shorter.
        """
        count = (stop - start) * self.row_bytes
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset + start * self.row_bytes)
                raw = np.fromfile(file, dtype=np.uint8, count=count)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.file}: {error.strerror or error}.") from None
        if raw.size != count:
            raise CheckpointError(f"{self.file} has become shorter while it was read. {_AGAIN}.")
        return raw.reshape(stop - start, self.row_bytes)


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of a model in a GGUF file, or in all parts of a split file.

    Attributes:
        path: the file, or the first part.
        metadata: key -> value. Arrays of numbers are NumPy arrays, arrays of strings are lists.
        tensors: GGUF name -> tensor.
        files: the file, or all parts.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    files: list[Path] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        """Name of the architecture, such as "qwen3"."""
        return self.text("general.architecture")

    def _value(self, key: str, default: Any, kinds: tuple[type, ...], expected: str) -> Any:
        if key not in self.metadata:
            if default is ...:
                raise CheckpointError(f"{self.path} lacks the metadata {key}. Convert the original model again.")
            return default
        value = self.metadata[key]
        # bool is a subclass of int in Python.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise CheckpointError(
                f"{self.path}: metadata {key} is {_shorten(value)}, expected {expected}. "
                "Convert the original model again."
            )
        return value

    def integer(self, key: str, default: Any = ...) -> Any:
        """Return a whole number.

        Raises:
            CheckpointError: the value has another type, or the key is missing and there is no default.
        """
        return self._value(key, default, (int,), "a whole number")

    def number(self, key: str, default: Any = ...) -> Any:
        """Return a finite number. A float32 becomes the shortest decimal number with its value. Raises as `integer`."""
        value = self._value(key, default, (int, float), "a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"{self.path}: metadata {key} is {value}. Convert the original model again.")
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        """Return a string. Raises as `integer`."""
        return self._value(key, default, (str,), "a string")

    def flag(self, key: str, default: Any = ...) -> Any:
        """Return a boolean. Raises as `integer`."""
        return self._value(key, default, (bool,), "true or false")

    def texts(self, key: str, default: Any = ...) -> list[str]:
        """Return an array of strings. Raises as `integer`."""
        value = self._value(key, default, (list, np.ndarray), "an array of strings")
        if isinstance(value, np.ndarray) and value.size:
            raise CheckpointError(f"{self.path}: metadata {key} holds numbers, expected an array of strings.")
        return list(value)

    def numbers(self, key: str, default: Any = ...) -> Any:
        """Return an array of numbers. Raises as `integer`."""
        return self._value(key, default, (np.ndarray,), "an array of numbers")


def _shorten(value: Any) -> str:
    text = repr(value) if not isinstance(value, np.ndarray | list) else f"an array of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a file with the extension or the magic of GGUF."""
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


class _Header:
    """A parser for the bytes of a header, which are read from the file as needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size
        self._data = b""
        self.position = 0

    def close(self) -> None:
        self._file.close()

    def require(self, count: int, what: str) -> int:
        """Make the next `count` bytes available, advance the position past them, and return where they start."""
        start, end = self.position, self.position + count
        if end > self.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {what} needs {count} bytes, {self.size - start} are left. "
                f"{_AGAIN}."
            )
        if end > MAX_HEADER_BYTES:
            raise CheckpointError(f"{self.path} has a header above {MAX_HEADER_BYTES >> 20} MiB ({what}). {_AGAIN}.")
        if end > len(self._data):
            wanted = max(end - len(self._data), _CHUNK, len(self._data))
            self._data += self._file.read(wanted)
            if end > len(self._data):
                raise CheckpointError(f"{self.path} has become shorter while it was read. {_AGAIN}.")
        self.position = end
        return start

    def unpack(self, code: str, what: str) -> Any:
        """Return the next value of a `struct` format. `what` describes it in messages."""
        size = struct.calcsize(f"<{code}")
        return struct.unpack_from(f"<{code}", self._data, self.require(size, what))[0]

    def count(self, what: str, smallest: int) -> int:
        """Return the next uint64, a count of items that take at least `smallest` bytes each."""
        value = self.unpack("Q", what)
        if value * smallest > self.size - self.position:
            raise CheckpointError(f"{self.path} is damaged: {what} is {value}, more than the file can hold. {_AGAIN}.")
        return value

    def string(self, what: str) -> str:
        length = self.unpack("Q", what)
        if length > min(self.size - self.position, MAX_STRING_BYTES):
            raise CheckpointError(f"{self.path} is damaged: {what} claims {length} bytes. {_AGAIN}.")
        start = self.require(length, what)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path} is damaged: {what} is not UTF-8 text. {_AGAIN}.") from None

    def value(self, key: str) -> Any:
        kind = self.unpack("I", f"the type of {key}")
        if kind == _STRING:
            return self.string(f"the value of {key}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path} is damaged: {key} has unknown value type {kind}. {_AGAIN}.")
        value = self.unpack(_SCALARS[kind], f"the value of {key}")
        return float(str(np.float32(value))) if kind == 6 else value

    def _array(self, key: str) -> Any:
        kind = self.unpack("I", f"the type of {key}")
        if kind == _STRING:
            count = self.count(f"the length of {key}", 8)
            return self._strings(key, count)
        if kind not in _SCALARS:
            raise CheckpointError(
                f"{self.path}: {key} is an array of value type {kind}, expected numbers or strings. {_AGAIN}."
            )
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        count = self.count(f"the length of {key}", dtype.itemsize)
        start = self.require(count * dtype.itemsize, f"the value of {key}")
        return np.frombuffer(self._data, dtype=dtype, count=count, offset=start).copy()

    def _strings(self, key: str, count: int) -> list[str]:
        # A vocabulary and its merges are 300,000 strings, so this loop dominates the time to open a file.
        what, unpack = f"a text of {key}", struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            position = self.position
            if position + 8 > len(self._data):
                self.require(8, what)
                self.position = position
            (length,) = unpack(self._data, position)
            end = position + 8 + length
            if end > len(self._data):
                found.append(self.string(what))
                continue
            try:
                found.append(self._data[position + 8 : end].decode("utf-8"))
            except UnicodeDecodeError:
                raise CheckpointError(f"{self.path} is damaged: {what} is not UTF-8 text. {_AGAIN}.") from None
            self.position = end
        return found


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read the header of one GGUF file and check it against the size of the file.

    Raises:
        CheckpointError: it is not a GGUF file, its version, byte order or a tensor type is not supported, or the
            header is truncated or inconsistent; the message names the cause.
    """
    path = Path(path)
    try:
        header = _Header(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from None
    try:
        return _parse(header)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from None
    finally:
        header.close()


def _parse(header: _Header) -> GgufFile:
    path = header.path
    if header.size < 24:
        raise CheckpointError(f"{path} is truncated ({header.size} bytes). {_AGAIN}.")
    start = header.require(4, "the magic")
    magic = header._data[start : start + 4]
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file: it begins with {magic!r}. {_AGAIN}.")
    version = header.unpack("I", "the version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS:
            raise CheckpointError(
                f"{path} is big-endian, which is not supported. Download the little-endian file, or convert it with "
                "gguf-convert-endian."
            )
        raise CheckpointError(
            f"{path} has GGUF version {version}, supported are 2 and 3. Download a newer file, or convert the original "
            "again."
        )
    tensors = header.count("the number of tensors", 24)
    pairs = header.count("the number of metadata pairs", 13)
    metadata: dict[str, Any] = {}
    for number in range(pairs):
        key = header.string(f"the name of metadata {number}")
        if key in metadata:
            raise CheckpointError(f"{path} has the metadata {key[:80]!r} twice. {_AGAIN}.")
        metadata[key] = header.value(key[:80])
    table = [_read_entry(header, number) for number in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8 or alignment > 1 << 20:
        raise CheckpointError(
            f"{path}: general.alignment is {_shorten(alignment)}, expected a multiple of 8. {_AGAIN}."
        )
    data = -(-header.position // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in table:
        if name in found:
            raise CheckpointError(f"{path} has the tensor {name!r} twice. {_AGAIN}.")
        if offset % alignment:
            raise CheckpointError(f"tensor {name!r} in {path} is at {offset}, not a multiple of {alignment}. {_AGAIN}.")
        found[name] = GgufTensor(path, name, kind, shape, data + offset)
    _check_ranges(path, found, header.size)
    return GgufFile(path, metadata, found, [path])


def _read_entry(header: _Header, number: int) -> tuple[str, tuple[int, ...], Kind, int]:
    path = header.path
    name = header.string(f"the name of tensor {number}")
    where = f"tensor {name[:80]!r} in {path}"
    dimensions = header.unpack("I", f"the dimensions of {where}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}. {_AGAIN}.")
    shape = tuple(header.unpack("Q", f"the shape of {where}") for _ in range(dimensions))[::-1]
    code = header.unpack("I", f"the type of {where}")
    offset = header.unpack("Q", f"the offset of {where}")
    kind = KINDS.get(code)
    if kind is None:
        known = ", ".join(each.name for each in KINDS.values())
        raise CheckpointError(
            f"{where} has type {code} ({kind_name(code)}), supported are {known}. Download another quantization."
        )
    if not all(shape) or math.prod(shape) >= 1 << 60:
        raise CheckpointError(f"{where} has shape {shape}. {_AGAIN}.")
    if shape[-1] % kind.block:
        raise CheckpointError(
            f"{where}: rows of {shape[-1]} values are not whole blocks of {kind.name} ({kind.block}). {_AGAIN}."
        )
    return name, shape, kind, offset


def _check_ranges(path: Path, tensors: dict[str, GgufTensor], size: int) -> None:
    end, previous = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise CheckpointError(f"tensors {previous!r} and {tensor.name!r} overlap in {path}. {_AGAIN}.")
        end, previous = tensor.offset + tensor.nbytes, tensor.name
        if end > size:
            raise CheckpointError(
                f"{path} is truncated or damaged: tensor {tensor.name!r} ends at byte {end}, the file at byte {size}. "
                f"{_AGAIN}."
            )

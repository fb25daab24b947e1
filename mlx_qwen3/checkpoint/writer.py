"""Write safetensors as a stream: shapes are planned first, then every tensor is written at its offset.

Only one tensor is in memory at a time, while `safetensors.save_file` needs all tensors at once.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..files import disk_errors
from ..folders import update_folder
from .header import BYTES_PER_ELEMENT, SAFETENSORS_DTYPES, encode_header
from .reader import INDEX_NAME

MAX_SHARD_BYTES = 5 << 30
MLX_METADATA = {"format": "mlx"}
Spec = tuple[tuple[int, ...], mx.Dtype]


def planned_bytes(spec: Spec) -> int:
    """Return the size in a file of a tensor with this shape and dtype."""
    shape, dtype = spec
    return math.prod(shape) * BYTES_PER_ELEMENT[SAFETENSORS_DTYPES[dtype]]


class CheckpointWriter:
    """A writer for planned tensors, in any order, into `model.safetensors` or shards with an index.

    Args:
        folder: an existing folder.
        plan: `{name: (shape, dtype)}` of all tensors, in file order.
        metadata: metadata of each file; `{"format": "mlx"}` by default.
        max_shard_size: maximum size of a shard in bytes. A larger tensor gets a separate shard.
        total_parameters: number of parameters for the index, which mlx-lm writes as well.
    """

    def __init__(
        self,
        folder: Path,
        plan: Mapping[str, Spec],
        metadata: Mapping[str, str] | None = None,
        max_shard_size: int = MAX_SHARD_BYTES,
        total_parameters: int | None = None,
    ) -> None:
        self._folder = folder
        self._plan = dict(plan)
        self._bytes_left = {name: planned_bytes(spec) for name, spec in self._plan.items()}
        self._files: dict[str, BinaryIO] = {}
        self._positions: dict[str, tuple[str, int]] = {}
        self._total_parameters = total_parameters
        shards: list[dict[str, Spec]] = [{}]
        size = 0
        for name, spec in self._plan.items():
            nbytes = planned_bytes(spec)
            if shards[-1] and size + nbytes > max_shard_size:
                shards.append({})
                size = 0
            shards[-1][name] = spec
            size += nbytes
        try:
            self._open_shards(shards, metadata)
        except BaseException:
            self.abandon()
            raise

    def _open_shards(self, shards: list[dict[str, Spec]], metadata: Mapping[str, str] | None) -> None:
        for number, shard in enumerate(shards, start=1):
            file_name = "model.safetensors"
            if len(shards) > 1:
                file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            table = {name: (SAFETENSORS_DTYPES[dtype], shape) for name, (shape, dtype) in shard.items()}
            head, offsets = encode_header(table, dict(MLX_METADATA if metadata is None else metadata))
            with disk_errors(self._folder):
                file = (self._folder / file_name).open("wb")
                self._files[file_name] = file
                file.write(head)
            for name, offset in offsets.items():
                self._positions[name] = (file_name, offset)

    def write(self, name: str, array: mx.array) -> int:
        """Evaluate and write one tensor, and return its size in bytes.

        Raises:
            CheckpointError: the disk is full, or the file cannot be written.
        """
        shape, _ = self._plan[name]
        if tuple(array.shape) != shape:
            raise ValueError(f"{name} was planned as {shape}, not {tuple(array.shape)}")
        return self._write_at(name, 0, array)

    def write_rows(self, name: str, start: int, rows: mx.array) -> int:
        """Evaluate and write rows of one tensor, beginning at row `start`, and return their size in bytes.

        Raises:
            CheckpointError: the disk is full, or the file cannot be written.
        """
        shape, dtype = self._plan[name]
        row_bytes = planned_bytes((shape[1:], dtype))
        if tuple(rows.shape[1:]) != shape[1:] or start + rows.shape[0] > shape[0]:
            raise ValueError(f"{name} was planned as {shape}, not with rows {tuple(rows.shape)} at {start}")
        return self._write_at(name, start * row_bytes, rows)

    def _write_at(self, name: str, skip: int, array: mx.array) -> int:
        dtype = self._plan[name][1]
        if array.dtype != dtype:
            raise ValueError(f"{name} was planned as {dtype}, not {array.dtype}")
        file_name, offset = self._positions[name]
        # As flat uint8, an array of any dtype, even bfloat16, exports its buffer without a copy.
        raw = mx.contiguous(array).reshape(-1).view(mx.uint8)
        mx.eval(raw)
        file = self._files[file_name]
        with disk_errors(self._folder):
            file.seek(offset + skip)
            file.write(np.asarray(raw).data)
        self._bytes_left[name] -= raw.nbytes
        return raw.nbytes

    def finish(self) -> None:
        """Flush all files to the disk and write the index.

        Raises:
            CheckpointError: a planned tensor is incomplete, or the disk is full.
        """
        unwritten = sorted(name for name, nbytes in self._bytes_left.items() if nbytes)
        if unwritten:
            raise CheckpointError(f"{len(unwritten)} planned tensors are not complete, first {unwritten[0]}.")
        metadata: dict[str, int] = {"total_size": sum(planned_bytes(spec) for spec in self._plan.values())}
        if self._total_parameters is not None:
            metadata["total_parameters"] = self._total_parameters
        weight_map = {name: self._positions[name][0] for name in sorted(self._positions)}
        with disk_errors(self._folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            index = {"metadata": metadata, "weight_map": weight_map}
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=4), encoding="utf-8")

    def abandon(self) -> None:
        """Close the files without completing them."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


def is_weight_file(name: str) -> bool:
    """Return whether a file of this name holds weights of a model or their index."""
    return name == INDEX_NAME or (name.startswith("model") and name.endswith(".safetensors"))


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights into an existing folder as `model.safetensors` or shards with an index, one tensor at a time.

    Args:
        folder: an existing folder.
        weights: `{name: array}`. Lazy arrays are evaluated one at a time.
        metadata: metadata of each file; `{"format": "mlx"}` by default.
        max_shard_size: maximum size of a shard in bytes.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    plan = {name: (tuple(array.shape), array.dtype) for name, array in weights.items()}
    writer = CheckpointWriter(folder, plan, metadata, max_shard_size)
    try:
        for name, array in weights.items():
            writer.write(name, array)
        writer.finish()
    finally:
        writer.abandon()


def save_checkpoint(
    folder: str | Path,
    weights: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights into a folder as `write_checkpoint` does, replacing all weight files together.

    The folder may exist. Its weight files are removed, and other files such as the configuration are kept. Arguments as
    `write_checkpoint`.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full; the folder is then unchanged.
    """
    with update_folder(folder, replaces=is_weight_file) as staging:
        write_checkpoint(staging, weights, metadata, max_shard_size)

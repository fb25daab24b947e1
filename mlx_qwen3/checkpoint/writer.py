"""Safetensors written as a stream: the shapes are planned first, then each tensor is written at its offset.

Nothing but the tensor at hand is in memory: `safetensors.save_file` needs all tensors at once.
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
    """Return the bytes one tensor of this shape and dtype takes in a file."""
    shape, dtype = spec
    return math.prod(shape) * BYTES_PER_ELEMENT[SAFETENSORS_DTYPES[dtype]]


class CheckpointWriter:
    """Writes planned tensors, in any order, into `model.safetensors` or shards, and the index at the end.

    Args:
        folder: an existing folder.
        plan: `{name: (shape, dtype)}` of every tensor that will be written, in file order.
        metadata: the metadata of each file.
        max_shard_size: bytes; a larger tensor gets a shard of its own.
        total_parameters: written into the index, as mlx-lm does.
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
        self._left = {name: planned_bytes(spec) for name, spec in self._plan.items()}
        self._files: dict[str, BinaryIO] = {}
        self._place: dict[str, tuple[str, int]] = {}
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
                self._place[name] = (file_name, offset)

    def write(self, name: str, array: mx.array) -> int:
        """Evaluate and write one tensor; gives back its bytes.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        shape, _ = self._plan[name]
        if tuple(array.shape) != shape:
            raise ValueError(f"{name} was planned as {shape}, not {tuple(array.shape)}")
        return self._write_at(name, 0, array)

    def write_rows(self, name: str, start: int, rows: mx.array) -> int:
        """Evaluate and write rows `start`, `start + 1`, ... of one tensor; gives back their bytes.

        Raises:
            CheckpointError: the disk is full or cannot be written.
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
        file_name, offset = self._place[name]
        # Flat uint8 is the one view whose buffer every dtype, bfloat16 included, can export without a copy.
        raw = mx.contiguous(array).reshape(-1).view(mx.uint8)
        mx.eval(raw)
        file = self._files[file_name]
        with disk_errors(self._folder):
            file.seek(offset + skip)
            file.write(np.asarray(raw).data)
        self._left[name] -= raw.nbytes
        return raw.nbytes

    def finish(self) -> None:
        """Flush everything to the disk and write the index.

        Raises:
            CheckpointError: a planned tensor was never written, or the disk is full.
        """
        unwritten = sorted(name for name, nbytes in self._left.items() if nbytes)
        if unwritten:
            raise CheckpointError(f"{len(unwritten)} planned tensors are not complete, first {unwritten[0]}")
        metadata: dict[str, int] = {"total_size": sum(planned_bytes(spec) for spec in self._plan.values())}
        if self._total_parameters is not None:
            metadata["total_parameters"] = self._total_parameters
        weight_map = {name: self._place[name][0] for name in sorted(self._place)}
        with disk_errors(self._folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            index = {"metadata": metadata, "weight_map": weight_map}
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=4), encoding="utf-8")

    def abandon(self) -> None:
        """Close the files without finishing them."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


def is_weight_file(name: str) -> bool:
    """Return whether a file of this name holds weights of a model, or their index."""
    return name == INDEX_NAME or (name.startswith("model") and name.endswith(".safetensors"))


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights into an existing folder as `model.safetensors` or shards, with an index, one tensor at a time.

    Args:
        weights: `{name: array}`; lazy arrays are evaluated one by one.
        metadata: the metadata of each file; default `{"format": "mlx"}`.
        max_shard_size: bytes.

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
    """Write weights into a folder as `write_checkpoint` does; all weight files are replaced together.

    The folder may exist and may hold other files (the config, a tokenizer): those stay. Weight files from an earlier
    save are removed.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full; it is as it was.
    """
    with update_folder(folder, replaces=is_weight_file) as staging:
        write_checkpoint(staging, weights, metadata, max_shard_size)

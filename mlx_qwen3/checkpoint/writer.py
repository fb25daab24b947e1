"""Safetensors written as a stream: the shapes are planned first, then each tensor goes straight to its place.

Nothing but the tensor at hand is in memory. A folder is built beside its target and renamed when it is
complete, so a run that dies leaves the target as it was.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from mlx_qwen3.checkpoint.header import BYTES_PER_ELEMENT, SAFETENSORS_DTYPES, encode_header
from mlx_qwen3.checkpoint.reader import INDEX_NAME
from mlx_qwen3.errors import CheckpointError

MAX_SHARD_BYTES = 5 << 30
MLX_METADATA = {"format": "mlx"}
Spec = tuple[tuple[int, ...], mx.Dtype]


def planned_bytes(spec: Spec) -> int:
    """The bytes one tensor of this shape and dtype takes in a file."""
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
        for number, shard in enumerate(shards, start=1):
            file_name = "model.safetensors"
            if len(shards) > 1:
                file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            table = {name: (SAFETENSORS_DTYPES[dtype], shape) for name, (shape, dtype) in shard.items()}
            head, offsets = encode_header(table, dict(MLX_METADATA if metadata is None else metadata))
            with self._disk_errors():
                file = (folder / file_name).open("wb")
                self._files[file_name] = file
                file.write(head)
            for name, offset in offsets.items():
                self._place[name] = (file_name, offset)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(self._folder, error) from error

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
        with self._disk_errors():
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
        with self._disk_errors():
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


def disk_error(folder: Path, error: OSError) -> CheckpointError:
    """The error that says what a failed write into `folder` means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(f"the disk of {folder} is full: free some space or choose another target")
    return CheckpointError(f"cannot write {folder}: {error.strerror or error}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _recover(target: Path) -> None:
    """Tidy up after runs that were killed: put a set-aside target back, drop half-written folders."""
    for kind in ("replaced", "partial"):
        for left in sorted(target.parent.glob(f".{target.name}.{kind}-*")):
            pid = left.name.rpartition("-")[2]
            if pid.isdigit() and _alive(int(pid)) and int(pid) != os.getpid():
                continue
            if kind == "replaced" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def check_target_free(target: Path, force: bool = False) -> None:
    """Raises `CheckpointError` where there is something already and `force` is off."""
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists: choose another target, delete it, or replace it with --force")


@contextlib.contextmanager
def replace_folder(target: str | Path, force: bool = False) -> Iterator[Path]:
    """A new, empty folder beside `target` that takes its place when the block ends without an error.

    An error, Ctrl-C included, removes the new folder and leaves the target as it was. What a killed run left
    beside the target is removed by the next run on the same target.

    Raises:
        CheckpointError: the target exists and `force` is off, or cannot be written.
    """
    target = Path(os.path.abspath(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
        check_target_free(target, force)
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file, not a folder: choose another target")
        partial = target.parent / f".{target.name}.partial-{os.getpid()}"
        partial.mkdir()
    except OSError as error:
        raise disk_error(target, error) from error
    try:
        yield partial
        replaced = target.parent / f".{target.name}.replaced-{os.getpid()}"
        try:
            if target.exists():
                target.rename(replaced)
            try:
                partial.rename(target)
            except OSError:
                if replaced.exists():
                    replaced.rename(target)
                raise
        except OSError as error:
            raise disk_error(target, error) from error
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_checkpoint(
    folder: str | Path,
    weights: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights into a folder as `model.safetensors` or shards, with an index, one tensor at a time.

    The folder may exist and may hold other files (the config, a tokenizer): those stay. The weight files are
    written beside and moved in at the end; weight files from an earlier save are removed.

    Args:
        weights: `{name: array}`; lazy arrays are evaluated one by one.
        metadata: the metadata of each file; default `{"format": "mlx"}`.
        max_shard_size: bytes.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    plan = {name: (tuple(array.shape), array.dtype) for name, array in weights.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".weights.partial-{os.getpid()}"
        partial.mkdir()
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        writer = CheckpointWriter(partial, plan, metadata, max_shard_size)
        try:
            for name, array in weights.items():
                writer.write(name, array)
            writer.finish()
        finally:
            writer.abandon()
        try:
            fresh = {file.name for file in partial.iterdir()}
            for file in partial.iterdir():
                os.replace(file, folder / file.name)
            for file in folder.glob("model*.safetensors"):
                if file.name not in fresh:
                    file.unlink()
        except OSError as error:
            raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

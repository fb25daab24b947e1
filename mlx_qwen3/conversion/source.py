"""The source of a conversion: a checkpoint in any supported format, with weights that are read in blocks of rows."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint import (
    Checkpoint,
    DecodedCheckpoint,
    ForeignWeight,
    HubOptions,
    mlx_quantization,
    open_decoded_checkpoint,
    quantization_settings,
    resolve_checkpoint,
)
from ..checkpoint.gguf_checkpoint import GgufCheckpoint, Repacked
from ..config.pretrained import read_config_file
from ..config.stock_mlx_lm import check_model_file
from ..errors import CheckpointError
from ..files import disk_errors
from ..models.content import Content, check_scale, match_content, names_of
from ..models.registry import model_class
from ..quantization.formats import PackedFormat


@dataclass(frozen=True)
class SourceWeight:
    """One weight of the source, described as if it were not packed.

    Attributes:
        checkpoint: the checkpoint that holds its tensors.
        name: name in memory and in the result.
        names: on-disk names of the tensors it is read from.
        shape: unpacked shape.
        dtype: dtype that `rows` returns.
        nbytes: size on disk.
        foreign: the quantized weight for FP8, GPTQ and AWQ, otherwise None.
        format: the packed format for weights that MLX packed, otherwise None.
    """

    checkpoint: Checkpoint
    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: mx.Dtype
    nbytes: int
    foreign: ForeignWeight | None = None
    format: PackedFormat | None = None

    @property
    def path(self) -> str:
        """Name of the layer."""
        return self.name.removesuffix(".weight")

    @property
    def is_layer(self) -> bool:
        """Whether it is the weight of a linear layer or an embedding."""
        return self.name.endswith(".weight") and len(self.shape) == 2

    @property
    def size(self) -> int:
        """Number of values, counted before quantization."""
        return math.prod(self.shape)

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows `start` to `stop` in their stored dtype, or in float32 if the weight is packed."""
        if self.foreign is not None:
            return self.foreign.decode_rows(start, stop)
        if self.format is None:
            return self.checkpoint.read_rows(self.names[0], start, stop)
        parts = {name.rpartition(".")[2]: self.checkpoint.read_rows(name, start, stop) for name in self.names}
        return self.format.dequantize(parts, mx.float32)


@dataclass
class Source:
    """An opened checkpoint with its configuration.

    Attributes:
        name: the path or Hub id as the user gave it.
        folder: the local folder or GGUF file.
        config: content of config.json.
        checkpoint: the tensors as they are stored.
        weights: all weights.
        method: `fp8`, `gptq`, `awq`, `mlx`, or None for plain weights.
        model: the model class.
        content: how the weights match the parameters of the model.
        stamps: size and modification time of the files when the source was opened.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    weights: list[SourceWeight]
    method: str | None
    model: Any
    content: Content = field(default_factory=Content)
    stamps: "Stamps" = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """The number of parameters, counted before quantization."""
        return sum(weight.size for weight in self.weights if mx.issubdtype(weight.dtype, mx.floating))

    @property
    def repacked(self) -> dict[str, Repacked]:
        """Layer -> error of repacking the GGUF weights read so far; empty for other sources."""
        return dict(self.checkpoint.repacked) if isinstance(self.checkpoint, GgufCheckpoint) else {}

    def is_head(self, path: str) -> bool:
        """Return whether a layer belongs to a head other than the language model's."""
        return self.model.weight_rules.is_head(f"{path}.") and not path.startswith("lm_head")


def open_source(
    path_or_id: str | Path,
    revision: str | None = None,
    gguf_file: str | None = None,
    hub: HubOptions | None = None,
) -> Source:
    """Open the checkpoint to convert. Only headers and the configuration are read.

    The same checks as for loading ensure that exactly the weights that a model would load are converted.

    Args:
        path_or_id: a folder, a GGUF file or a Hub id.
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        gguf_file: GGUF file in the folder or repository, by name or quantization.
        hub: the other options of the download.

    Raises:
        CheckpointError: files are missing or damaged, or a weight does not belong to the model.
        HubError: the repository cannot be downloaded.
        UnsupportedModelError: the architecture is not supported.
        ConfigError: a field of the configuration is invalid.
        QuantizationError: the quantization method is not supported.
    """
    folder = resolve_checkpoint(path_or_id, revision=revision, gguf_file=gguf_file, hub=hub)
    stamps = file_stamps(folder)
    name = str(path_or_id)
    values = read_config_file(folder)
    check_model_file(values, name)
    kind = model_class(values, name)
    checkpoint = open_decoded_checkpoint(folder, values)
    config = kind.config_class.from_dict(values)
    by_name = names_of(checkpoint, kind.weight_prefix(), kind.weight_rules, name)
    check_scale(config, checkpoint, by_name, name)
    model = kind(config)
    content = match_content(model, checkpoint, by_name, mlx_quantization(values, name), mx.float32, name)
    model.check_state(content, name)
    method = None
    if content.packed:
        method = "mlx"
    elif checkpoint.decoded:
        method = str((quantization_settings(folder, values) or {}).get("quant_method")).lower()
    return Source(
        name,
        folder,
        values,
        checkpoint.stored,
        _list_weights(model, checkpoint, content),
        method,
        kind,
        content,
        stamps,
    )


def _list_weights(model: Any, checkpoint: Checkpoint, content: Content) -> list[SourceWeight]:
    """Return the weights with their names in memory, in file order."""
    modules = dict(model.named_modules())
    formats = {
        path: PackedFormat(modules[path].bits, modules[path].group_size, modules[path].mode) for path in content.packed
    }
    named = {**content.weights, **content.state, **content.other_heads}
    found = []
    for name, disk in named.items():
        path, _, part = name.rpartition(".")
        if path in formats and part in ("scales", "biases"):
            continue
        if path in formats and part == "weight":
            found.append(_describe_packed(checkpoint, name, formats[path], named))
        else:
            found.append(_describe_plain(checkpoint, name, disk))
    entries = {weight.name: checkpoint.entry(named[weight.name]) for weight in found}
    return sorted(found, key=lambda weight: (entries[weight.name].file, entries[weight.name].offset))


def _describe_plain(checkpoint: Checkpoint, name: str, disk: str) -> SourceWeight:
    foreign = checkpoint.foreign(disk) if isinstance(checkpoint, DecodedCheckpoint) else None
    if foreign is None:
        shape, dtype, size = checkpoint.shape(disk), checkpoint.dtype(disk), checkpoint.nbytes(disk)
        return SourceWeight(checkpoint.stored, name, (disk,), shape, dtype, size)
    size = sum(checkpoint.stored.nbytes(part) for part in foreign.names)
    return SourceWeight(checkpoint.stored, name, foreign.names, foreign.shape, mx.float32, size, foreign=foreign)


def _describe_packed(checkpoint: Checkpoint, name: str, format: PackedFormat, named: Mapping[str, str]) -> SourceWeight:
    path = name.removesuffix(".weight")
    parts = ("weight", "scales", "biases") if format.has_biases else ("weight", "scales")
    names = tuple(named[f"{path}.{part}"] for part in parts)
    rows, words = checkpoint.shape(names[0])
    size = sum(checkpoint.nbytes(part) for part in names)
    return SourceWeight(checkpoint, name, names, (rows, words * 32 // format.bits), mx.float32, size, format=format)


Stamps = dict[str, tuple[int, int]]
"""File -> size in bytes and modification time in nanoseconds."""


def file_stamps(folder: Path) -> Stamps:
    """Return size and modification time of every file that a conversion reads."""
    files = [folder] if folder.is_file() else [file for file in folder.iterdir() if file.is_file()]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def file_hashes(source: Source) -> dict[str, str]:
    """Return the sha256 of every file that a conversion reads, by path."""
    hashes = {}
    for file in source.stamps:
        with disk_errors(file), open(file, "rb") as opened:
            hashes[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes


def check_downloads(hashes: Mapping[str, str]) -> None:
    """Raise `CheckpointError` if the name of a file in the Hub's cache is a sha256 that does not match its content."""
    for file, found in hashes.items():
        name = os.path.basename(os.path.realpath(file))
        if len(name) == 64 and name != found and all(digit in "0123456789abcdef" for digit in name):
            raise CheckpointError(f"{file} is damaged: its sha256 is {found}, expected {name}. Download it again.")


def check_unchanged(source: Source, hashes: Mapping[str, str] | None = None) -> None:
    """Raise `CheckpointError` if a file of the source has changed since it was opened.

    Args:
        hashes: result of `file_hashes`, to compare the contents as well.
    """
    for file, stamp in source.stamps.items():
        try:
            found = os.stat(file)
        except OSError:
            found = None
        if found is None or (found.st_size, found.st_mtime_ns) != stamp:
            raise CheckpointError(f"{file} has changed during the conversion. Run the conversion again.")
    for file, found in (file_hashes(source) if hashes is not None else {}).items():
        if hashes is not None and hashes.get(file) != found:
            raise CheckpointError(f"{file} has changed during the conversion. Run the conversion again.")

"""What is converted: a checkpoint of any accepted format, seen as plain weights that can be read row by row."""

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
        name: its name in memory, which is its name in the result.
        names: the tensors it is read from, by their names on disk.
        shape: unpacked.
        dtype: what `rows` gives.
        nbytes: what reading all of it reads.
        foreign: set for FP8, GPTQ and AWQ.
        form: set for weights that MLX packed.
    """

    checkpoint: Checkpoint
    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: mx.Dtype
    nbytes: int
    foreign: ForeignWeight | None = None
    form: PackedFormat | None = None

    @property
    def path(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def is_layer(self) -> bool:
        """Whether it is the weight of a linear layer or an embedding."""
        return self.name.endswith(".weight") and len(self.shape) == 2

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows `start` to `stop`: as stored, or in float32 where they were packed."""
        if self.foreign is not None:
            return self.foreign.decode_rows(start, stop)
        if self.form is None:
            return self.checkpoint.read_rows(self.names[0], start, stop)
        parts = {name.rpartition(".")[2]: self.checkpoint.read_rows(name, start, stop) for name in self.names}
        return self.form.dequantize(parts, mx.float32)


@dataclass
class Source:
    """An opened checkpoint with its configuration.

    Attributes:
        name: as the user wrote it.
        folder: where it is.
        config: its config.json.
        weights: all its weights.
        method: `fp8`, `gptq`, `awq`, `mlx`, or None for plain weights.
        model: the class that runs it.
        content: what the gate found.
        stamps: size and time of the last change of its files when it was opened.
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
        """How many numbers the weights stand for."""
        return sum(weight.size for weight in self.weights if mx.issubdtype(weight.dtype, mx.floating))

    @property
    def repacked(self) -> dict[str, Repacked]:
        """Layer -> what packing it again has cost so far; empty for other sources than GGUF."""
        return dict(self.checkpoint.repacked) if isinstance(self.checkpoint, GgufCheckpoint) else {}

    def is_head(self, path: str) -> bool:
        """Return whether a layer belongs to a head other than the language model's."""
        return self.model.weight_rules.is_head(f"{path}.") and not path.startswith("lm_head")


def open_source(path_or_id: str | Path, revision: str | None = None, gguf_file: str | None = None) -> Source:
    """Open the checkpoint to convert; only headers and the configuration are read.

    The content passes the gate that loading uses, so what is converted is what a model would load.

    Raises:
        CheckpointError, HubError: it cannot be fetched, its files are broken, or a weight belongs to nothing.
        UnsupportedModelError: another architecture.
        ConfigError: a field of the configuration is wrong.
        QuantizationError: packed by a method that is not decoded here.
    """
    folder = resolve_checkpoint(path_or_id, revision=revision, gguf_file=gguf_file)
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
        name, folder, values, checkpoint.stored, _weights(model, checkpoint, content), method, kind, content, stamps
    )


def _weights(model: Any, checkpoint: Checkpoint, content: Content) -> list[SourceWeight]:
    """Return the weights under their names in memory, in the order of the files."""
    modules = dict(model.named_modules())
    forms = {
        path: PackedFormat(modules[path].bits, modules[path].group_size, modules[path].mode) for path in content.packed
    }
    named = {**content.weights, **content.state, **content.other_heads}
    found = []
    for name, disk in named.items():
        path, _, part = name.rpartition(".")
        if path in forms and part in ("scales", "biases"):
            continue
        if path in forms and part == "weight":
            found.append(_packed(checkpoint, name, forms[path], named))
        else:
            found.append(_plain(checkpoint, name, disk))
    entries = {weight.name: checkpoint.entry(named[weight.name]) for weight in found}
    return sorted(found, key=lambda weight: (entries[weight.name].file, entries[weight.name].offset))


def _plain(checkpoint: Checkpoint, name: str, disk: str) -> SourceWeight:
    foreign = checkpoint.foreign(disk) if isinstance(checkpoint, DecodedCheckpoint) else None
    if foreign is None:
        shape, dtype, size = checkpoint.shape(disk), checkpoint.dtype(disk), checkpoint.nbytes(disk)
        return SourceWeight(checkpoint.stored, name, (disk,), shape, dtype, size)
    size = sum(checkpoint.stored.nbytes(part) for part in foreign.names)
    return SourceWeight(checkpoint.stored, name, foreign.names, foreign.shape, mx.float32, size, foreign=foreign)


def _packed(checkpoint: Checkpoint, name: str, form: PackedFormat, named: Mapping[str, str]) -> SourceWeight:
    path = name.removesuffix(".weight")
    parts = ("weight", "scales", "biases") if form.has_biases else ("weight", "scales")
    names = tuple(named[f"{path}.{part}"] for part in parts)
    rows, words = checkpoint.shape(names[0])
    size = sum(checkpoint.nbytes(part) for part in names)
    return SourceWeight(checkpoint, name, names, (rows, words * 32 // form.bits), mx.float32, size, form=form)


Stamps = dict[str, tuple[int, int]]
"""File -> size and time of its last change (ns)."""


def file_stamps(folder: Path) -> Stamps:
    """Return size and time of the last change of every file that a conversion reads."""
    files = [folder] if folder.is_file() else [file for file in folder.iterdir() if file.is_file()]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def file_hashes(source: Source) -> dict[str, str]:
    """Return the sha256 of every file that a conversion reads, by its path."""
    hashes = {}
    for file in source.stamps:
        with disk_errors(file), open(file, "rb") as opened:
            hashes[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes


def check_downloads(hashes: Mapping[str, str]) -> None:
    """Raise `CheckpointError` where a file of the Hub's cache is not what its name, a sha256, says."""
    for file, found in hashes.items():
        name = os.path.basename(os.path.realpath(file))
        if len(name) == 64 and name != found and all(sign in "0123456789abcdef" for sign in name):
            raise CheckpointError(f"{file} is damaged: its sha256 is {found}, expected {name}. Download it again")


def check_unchanged(source: Source, hashes: Mapping[str, str] | None = None) -> None:
    """Raise `CheckpointError` where a file of the source was changed since it was opened.

    Args:
        hashes: from `file_hashes`, to compare the content too.
    """
    for file, stamp in source.stamps.items():
        try:
            found = os.stat(file)
        except OSError:
            found = None
        if found is None or (found.st_size, found.st_mtime_ns) != stamp:
            raise CheckpointError(f"{file} was changed while it was converted. Run the conversion again")
    for file, found in (file_hashes(source) if hashes is not None else {}).items():
        if hashes is not None and hashes.get(file) != found:
            raise CheckpointError(f"{file} was changed while it was converted. Run the conversion again")

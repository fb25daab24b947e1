"""What is converted: a checkpoint of any accepted format, seen as plain weights that can be read row by
row.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint import (
    Checkpoint,
    ForeignWeight,
    foreign_weights,
    open_checkpoint,
    quantization_settings,
    resolve_checkpoint,
)
from ..checkpoint.gguf_checkpoint import GgufCheckpoint, Repacked
from ..config.pretrained import read_config_file
from ..config.stock_mlx_lm import check_model_file
from ..errors import QuantizationError
from ..models.registry import model_class
from ..models.weight_names import names_in_memory
from ..quantization.formats import PackedFormat, infer_format

_BUFFER = re.compile(r"rotary_emb\.inv_freq$|embeddings\.(position|token_type)_ids$")
"""What older files hold and no model needs."""

_HIDDEN_SIZE_INPUTS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
    "embed_tokens",
    "lm_head",
    "score",
)


@dataclass(frozen=True)
class SourceWeight:
    """One weight of the source, unpacked in thought.

    Attributes:
        name: its name once it is a plain tensor.
        names: the tensors it is read from.
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
        """Rows `start` to `stop`: as stored, or in float32 where they were packed."""
        if self.foreign is not None:
            return self.foreign.decode_rows(start, stop)
        if self.form is None:
            return self.checkpoint.read_rows(self.name, start, stop)
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
    """

    name: str
    folder: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    weights: list[SourceWeight]
    method: str | None
    model: Any

    @property
    def parameters(self) -> int:
        """How many numbers the weights stand for."""
        return sum(weight.size for weight in self.weights if mx.issubdtype(weight.dtype, mx.floating))

    @property
    def repacked(self) -> dict[str, Repacked]:
        """Layer -> what packing it again has cost so far; empty for other sources than GGUF."""
        return dict(self.checkpoint.repacked) if isinstance(self.checkpoint, GgufCheckpoint) else {}

    def is_head(self, path: str) -> bool:
        """Whether a layer belongs to a head other than the language model's."""
        return self.model.weight_rules.is_head(f"{path}.") and not path.startswith("lm_head")

    def path_in_memory(self, path: str) -> str:
        """The path of a layer in the model, which may stand under another prefix than on disk."""
        name = f"{path}.weight"
        names = names_in_memory([name], self.model.weight_prefix(), self.model.weight_rules)
        return names[name].removesuffix(".weight")


def open_source(path_or_id: str | Path, revision: str | None = None, gguf_file: str | None = None) -> Source:
    """The checkpoint to convert; only headers and the configuration are read.

    Raises:
        CheckpointError, HubError: it cannot be had or its files are broken.
        UnsupportedModelError: another architecture.
        QuantizationError: packed by a method that is not decoded here.
    """
    folder = resolve_checkpoint(path_or_id, revision=revision, gguf_file=gguf_file)
    config = read_config_file(folder)
    check_model_file(config, str(path_or_id))
    model = model_class(config, str(path_or_id))
    checkpoint = open_checkpoint(folder)
    settings = quantization_settings(folder, config)
    packed: dict[str, SourceWeight] = {}
    method = None
    if settings is not None:
        method = str(settings["quant_method"]).lower()
        packed = {path: _foreign(checkpoint, w) for path, w in foreign_weights(checkpoint, settings).items()}
    elif isinstance(config.get("quantization"), Mapping):
        method = "mlx"
        packed = _mlx_packed(checkpoint, config)
    used = {name for weight in packed.values() for name in weight.names}
    weights = list(packed.values())
    for name in checkpoint.names:
        if name in used or _BUFFER.search(name):
            continue
        dtype = checkpoint.dtype(name)
        weights.append(SourceWeight(checkpoint, name, (name,), checkpoint.shape(name), dtype, checkpoint.nbytes(name)))
    order = {name: number for number, name in enumerate(_file_order(checkpoint))}
    weights.sort(key=lambda weight: order[weight.names[0]])
    return Source(str(path_or_id), folder, config, checkpoint, weights, method, model)


def _file_order(checkpoint: Checkpoint) -> list[str]:
    return sorted(checkpoint.names, key=lambda name: (checkpoint.entry(name).file, checkpoint.entry(name).offset))


def _foreign(checkpoint: Checkpoint, weight: ForeignWeight) -> SourceWeight:
    nbytes = sum(checkpoint.nbytes(name) for name in weight.names)
    return SourceWeight(
        checkpoint, f"{weight.path}.weight", weight.names, weight.shape, mx.float32, nbytes, foreign=weight
    )


def _mlx_packed(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, SourceWeight]:
    quantization = config["quantization"]
    found = {}
    for name in checkpoint.names:
        path = name.removesuffix(".scales")
        if path == name or f"{path}.weight" not in checkpoint:
            continue
        form = _mlx_format(path, checkpoint, config, quantization)
        parts = ("weight", "scales", "biases") if form.has_biases else ("weight", "scales")
        names = tuple(f"{path}.{part}" for part in parts)
        rows, words = checkpoint.shape(names[0])
        found[path] = SourceWeight(
            checkpoint,
            names[0],
            names,
            (rows, words * 32 // form.bits),
            mx.float32,
            sum(checkpoint.nbytes(part) for part in names),
            form=form,
        )
    return found


def _mlx_format(
    path: str, checkpoint: Checkpoint, config: Mapping[str, Any], quantization: Mapping[str, Any]
) -> PackedFormat:
    entry = quantization.get(path)
    form = PackedFormat.from_config(entry if isinstance(entry, Mapping) else quantization)
    words, groups = checkpoint.shape(f"{path}.weight")[-1], checkpoint.shape(f"{path}.scales")[-1]
    columns = words * 32 // form.bits
    if not isinstance(entry, Mapping):
        # Without an entry of its own a layer may differ from the default; its width in the config decides.
        byte_scales = checkpoint.entry(f"{path}.scales").dtype == "U8"
        shapes = checkpoint.shape(f"{path}.weight"), checkpoint.shape(f"{path}.scales")
        return infer_format(path, _columns(path, config) or columns, *shapes, byte_scales)
    if groups * form.group_size != columns:
        raise QuantizationError(f"{path} is not packed as config.json says ({form.to_config()}): convert it again")
    return form


def _columns(path: str, config: Mapping[str, Any]) -> int | None:
    last = path.rpartition(".")[2]
    if last in _HIDDEN_SIZE_INPUTS or last == "qa_outputs":
        return config.get("hidden_size")
    if last == "down_proj":
        return config.get("intermediate_size")
    if last == "o_proj":
        return config.get("num_attention_heads", 32) * config.get("head_dim", 128)
    return None

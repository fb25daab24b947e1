"""What a checkpoint is and what it needs, from its configuration and the headers of its files."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..cache import cache_bytes
from ..checkpoint import resolve_checkpoint
from ..checkpoint.gguf_checkpoint import GgufCheckpoint
from ..checkpoint.header import BYTES_PER_ELEMENT, MLX_DTYPES
from ..config.fields import shown
from ..config.pretrained import DTYPES, read_config_file
from ..config.qwen3 import Qwen3Config
from ..errors import ConfigError, HubError
from ..memory import machine_memory
from ..models.pretrained import computing_dtype
from ..models.registry import model_class
from .card import pipeline_tag
from .source import Source, open_source

CONTEXTS = (4096, 32768)


@dataclass(frozen=True)
class ModelDescription:
    """A checkpoint, described.

    Attributes:
        name: as the user wrote it.
        architecture: the class that runs it.
        head: the task of its head, in the Hub's words.
        parameters: numbers that the weights stand for.
        bytes: of the weights on disk.
        bits_per_weight: bytes in bits over parameters.
        format: how the weights are stored.
        context: tokens.
        dtype: what this machine computes in.
        memory: tokens -> bytes for weights and key/value cache.
        machine_bytes: what this machine can use.
    """

    name: str
    architecture: str
    head: str
    parameters: int
    bytes: int
    bits_per_weight: float
    format: str
    context: int
    dtype: str
    machine_bytes: int
    memory: dict[int, int] = field(default_factory=dict)


def describe(path_or_id: str | Path, revision: str | None = None, gguf_file: str | None = None) -> ModelDescription:
    """Describe a checkpoint; of a Hub repository that is not here only the configuration and headers are fetched.

    Raises:
        CheckpointError, UnsupportedModelError, HubError: see there.
    """
    if gguf_file is None and not _is_here(path_or_id, revision):
        return _describe_remote(str(path_or_id), revision)
    source = open_source(path_or_id, revision, gguf_file)
    resident = sum(_resident(source, weight.names) for weight in source.weights)
    stored = sum(weight.nbytes for weight in source.weights)
    return _description(
        source.name, source.config, source.model.__name__, source.parameters, stored, _format(source), resident
    )


def _is_here(path_or_id: str | Path, revision: str | None) -> bool:
    if os.path.exists(os.path.expanduser(path_or_id)):
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(path_or_id), "config.json", revision=revision)
    except HFValidationError:
        return True  # opening it gives the error that says what is wrong
    return isinstance(found, str) and any(Path(found).parent.glob("*.safetensors"))


def _describe_remote(repo: str, revision: str | None) -> ModelDescription:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    folder = resolve_checkpoint(repo, revision, allow_patterns=["config.json"])
    config = read_config_file(folder)
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    try:
        metadata = get_safetensors_metadata(repo, revision=revision)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise HubError(f"{repo} has no readable safetensors: {error}") from error
    except (http_error, OSError) as error:
        raise HubError(f"cannot read the headers of {repo}: check the network and run again") from error
    stored = resident = parameters = 0
    dtype = computing_dtype(None, _config_dtype(config))
    for file in metadata.files_metadata.values():
        for tensor in file.tensors.values():
            count = math.prod(tensor.shape)
            size = BYTES_PER_ELEMENT.get(tensor.dtype, 1)
            stored += count * size
            floating = mx.issubdtype(MLX_DTYPES.get(tensor.dtype, mx.uint8), mx.floating)
            resident += count * (dtype.size if floating else size)
            parameters += count
    method = config.get("quantization_config") or config.get("quantization")
    form = "quantized" if method else str(_config_dtype(config))
    return _description(repo, config, model_class(config, repo).__name__, parameters, stored, form, resident)


def _config_dtype(config: Mapping[str, Any]) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").rpartition(".")[2]
    if name not in DTYPES:
        raise ConfigError(f"config field 'dtype' is {shown(name)}, expected one of {', '.join(DTYPES)}")
    return name


def _resident(source: Source, names: tuple[str, ...]) -> int:
    dtype = computing_dtype(None, _config_dtype(source.config))
    total = 0
    for name in names:
        entry = source.checkpoint.entry(name)
        count = math.prod(entry.shape)
        floating = mx.issubdtype(MLX_DTYPES[entry.dtype], mx.floating)
        total += count * dtype.size if floating else entry.nbytes
    if source.method in ("fp8", "gptq", "awq"):
        # Read without conversion, such weights are decoded to what the machine computes in.
        weight = next(weight for weight in source.weights if weight.names == names)
        if weight.foreign is not None:
            return weight.size * dtype.size
    return total


def _format(source: Source) -> str:
    if isinstance(source.checkpoint, GgufCheckpoint):
        return source.checkpoint.format_name
    if source.method == "mlx":
        forms = [weight.form for weight in source.weights if weight.form is not None]
        most = max(forms, key=forms.count)
        mixed = any(form != most for form in forms)
        return f"MLX {most.mode} {most.bits}-bit, groups of {most.group_size}" + (", mixed" if mixed else "")
    if source.method is not None:
        return source.method.upper()
    kinds = {source.checkpoint.entry(weight.names[0]).dtype for weight in source.weights if weight.is_layer}
    return "/".join(sorted(kinds))


def _cache_bytes(config: Mapping[str, Any], tokens: int, dtype: str) -> int:
    """Return bytes of keys and values of `tokens` tokens, as loading counts them; BERT keeps none."""
    if config.get("model_type") != "qwen3":
        return 0
    return cache_bytes(Qwen3Config.from_dict(dict(config)), tokens, dtype=dtype)


def _description(
    name: str,
    config: Mapping[str, Any],
    architecture: str,
    parameters: int,
    stored: int,
    form: str,
    resident: int,
) -> ModelDescription:
    context = int(config.get("max_position_embeddings", 32768 if config.get("model_type") == "qwen3" else 512))
    dtype = str(computing_dtype(None, _config_dtype(config))).rpartition(".")[2]
    lengths = sorted({*(length for length in CONTEXTS if length < context), context})
    return ModelDescription(
        name=name,
        architecture=architecture,
        head=pipeline_tag(architecture),
        parameters=parameters,
        bytes=stored,
        bits_per_weight=8 * stored / max(parameters, 1),
        format=form,
        context=context,
        dtype=dtype,
        machine_bytes=machine_memory(),
        memory={length: resident + _cache_bytes(config, length, dtype) for length in lengths},
    )

"""Describe a checkpoint and its memory use from its configuration and the headers of its files."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import mlx.core as mx

from ..cache import cache_bytes
from ..checkpoint import HubArguments, HubOptions, read_hub_arguments, resolve_checkpoint
from ..checkpoint.gguf_checkpoint import GgufCheckpoint
from ..checkpoint.header import BYTES_PER_ELEMENT, MLX_DTYPES
from ..config.fields import shown
from ..config.pretrained import DTYPES, read_config_file
from ..config.qwen3 import Qwen3Config
from ..errors import ConfigError, HubError, one_line
from ..memory import machine_memory
from ..models.pretrained import computing_dtype
from ..models.registry import model_class
from .card import pipeline_tag
from .source import Source, open_source

CONTEXTS = (4096, 32768)


@dataclass(frozen=True)
class ModelDescription:
    """The description of a checkpoint.

    Attributes:
        name: the path or Hub id as the user gave it.
        architecture: the model class.
        head: the Hub's name of the task.
        parameters: number of parameters, counted before quantization.
        bytes: size of the weights on disk.
        bits_per_weight: bits on disk per parameter.
        format: storage format of the weights.
        context: maximum number of tokens.
        dtype: the dtype this machine computes in.
        machine_bytes: memory that this machine can use, in bytes.
        memory: number of tokens -> bytes for weights and KV cache.
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


def describe(
    path_or_id: str | Path,
    revision: str | None = None,
    gguf_file: str | None = None,
    **hub_arguments: Unpack[HubArguments],
) -> ModelDescription:
    """Describe a checkpoint.

    For a Hub repository that is not in the cache, only the configuration and the headers of the files are downloaded.

    Args:
        path_or_id: a folder, a GGUF file or a Hub id.
        revision: branch, tag or commit of the Hub repository; the main branch by default.
        gguf_file: GGUF file in the folder or repository, by name or quantization.
        **hub_arguments: arguments of the Hub as for `load`: `token`, `cache_dir`, `local_files_only` and others.

    Raises:
        CheckpointError: files are missing or damaged.
        ConfigError: a field of the configuration is invalid.
        UnsupportedModelError: the architecture is not supported.
        HubError: the repository cannot be downloaded.
    """
    hub = read_hub_arguments(hub_arguments, revision, "describe")
    if gguf_file is None and not _is_local(path_or_id, hub):
        return _describe_remote(str(path_or_id), hub)
    source = open_source(path_or_id, gguf_file=gguf_file, hub=hub)
    resident = sum(_count_resident_bytes(source, weight.names) for weight in source.weights)
    stored = sum(weight.nbytes for weight in source.weights)
    return _make_description(
        source.name, source.config, source.model.__name__, source.parameters, stored, _name_format(source), resident
    )


def _is_local(path_or_id: str | Path, hub: HubOptions) -> bool:
    if os.path.exists(os.path.expanduser(path_or_id)) or hub.local_files_only or hub.subfolder:
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(path_or_id), "config.json", cache_dir=hub.cache_dir, revision=hub.revision)
    except HFValidationError:
        return True  # opening it raises the error with the cause
    return isinstance(found, str) and any(Path(found).parent.glob("*.safetensors"))


def _describe_remote(repo: str, hub: HubOptions) -> ModelDescription:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    folder = resolve_checkpoint(repo, allow_patterns=["config.json"], hub=hub)
    config = read_config_file(folder)
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    try:
        metadata = get_safetensors_metadata(repo, revision=hub.revision, token=hub.token)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise HubError(f"{repo} has no readable safetensors: {one_line(error)}. Check the repository.") from error
    except (http_error, OSError) as error:
        raise HubError(f"cannot read the headers of {repo}. Check the network and run again.") from error
    stored = resident = parameters = 0
    dtype = computing_dtype(None, _read_dtype(config))
    for file in metadata.files_metadata.values():
        for tensor in file.tensors.values():
            count = math.prod(tensor.shape)
            size = BYTES_PER_ELEMENT.get(tensor.dtype, 1)
            stored += count * size
            floating = mx.issubdtype(MLX_DTYPES.get(tensor.dtype, mx.uint8), mx.floating)
            resident += count * (dtype.size if floating else size)
            parameters += count
    method = config.get("quantization_config") or config.get("quantization")
    format = "quantized" if method else str(_read_dtype(config))
    return _make_description(repo, config, model_class(config, repo).__name__, parameters, stored, format, resident)


def _read_dtype(config: Mapping[str, Any]) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").rpartition(".")[2]
    if name not in DTYPES:
        raise ConfigError(f"config field 'dtype' is {shown(name)}, expected one of {', '.join(DTYPES)}.")
    return name


def _count_resident_bytes(source: Source, names: tuple[str, ...]) -> int:
    dtype = computing_dtype(None, _read_dtype(source.config))
    total = 0
    for name in names:
        entry = source.checkpoint.entry(name)
        count = math.prod(entry.shape)
        floating = mx.issubdtype(MLX_DTYPES[entry.dtype], mx.floating)
        total += count * dtype.size if floating else entry.nbytes
    if source.method in ("fp8", "gptq", "awq"):
        # Loading decodes such weights to the dtype that the machine computes in.
        weight = next(weight for weight in source.weights if weight.names == names)
        if weight.foreign is not None:
            return weight.size * dtype.size
    return total


def _name_format(source: Source) -> str:
    if isinstance(source.checkpoint, GgufCheckpoint):
        return source.checkpoint.format_name
    if source.method == "mlx":
        formats = [weight.format for weight in source.weights if weight.format is not None]
        most = max(formats, key=formats.count)
        mixed = any(format != most for format in formats)
        return f"MLX {most.mode} {most.bits}-bit, groups of {most.group_size}" + (", mixed" if mixed else "")
    if source.method is not None:
        return source.method.upper()
    kinds = {source.checkpoint.entry(weight.names[0]).dtype for weight in source.weights if weight.is_layer}
    return "/".join(sorted(kinds))


def _count_cache_bytes(config: Mapping[str, Any], tokens: int, dtype: str) -> int:
    """Return the bytes of the KV cache for a number of tokens; 0 for BERT, which has no cache."""
    if config.get("model_type") != "qwen3":
        return 0
    return cache_bytes(Qwen3Config.from_dict(dict(config)), tokens, dtype=dtype)


def _make_description(
    name: str,
    config: Mapping[str, Any],
    architecture: str,
    parameters: int,
    stored: int,
    format: str,
    resident: int,
) -> ModelDescription:
    context = int(config.get("max_position_embeddings", 32768 if config.get("model_type") == "qwen3" else 512))
    dtype = str(computing_dtype(None, _read_dtype(config))).rpartition(".")[2]
    lengths = sorted({*(length for length in CONTEXTS if length < context), context})
    return ModelDescription(
        name=name,
        architecture=architecture,
        head=pipeline_tag(architecture),
        parameters=parameters,
        bytes=stored,
        bits_per_weight=8 * stored / max(parameters, 1),
        format=format,
        context=context,
        dtype=dtype,
        machine_bytes=machine_memory(),
        memory={length: resident + _count_cache_bytes(config, length, dtype) for length in lengths},
    )

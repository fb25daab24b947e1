"""A cache in one safetensors file: keys and values, what they belong to, and the ids that they stand for.

Only written slots are saved, in the form in which they are held. The file appears under its name when it is complete.
"""

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.header import SAFETENSORS_DTYPES, encode_header, read_header
from ..errors import CacheError, CheckpointError, InputError
from .cache import Cache
from .layers import GrowingLayer, LayerCache
from .packing import KVFormat
from .sliding import SlidingLayer
from .slots import PackedSlots

FORMAT, VERSION = "mlx_qwen3.cache", 1

MODEL_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "layer_types",
    "rope_parameters",
)
"""What two configurations must agree on for one to use the other's keys and values."""


@dataclass(frozen=True)
class CacheFileInfo:
    """What a saved cache says about itself.

    token_ids: the ids that the cache stands for; empty when none were saved.
    identity: names and hashes of what it was made with.
    metadata: the caller's own notes.
    """

    token_ids: list[int] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def save_cache(
    path: str | Path,
    cache: Cache,
    config: Any,
    *,
    token_ids: Sequence[int] | None = None,
    identity: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a cache, without its snapshots; an older file of that name is replaced at the end, in one step.

    Args:
        config: the model's configuration; `load_cache` compares it.
        token_ids: the ids that the cache stands for, as many as it has seen.
        identity: more that must be equal when it is loaded, such as {"weights": hash, "tokenizer": hash}.
        metadata: anything else to keep.

    Raises:
        InputError: ids of another number than the cache's tokens.
        CacheError: the file cannot be written.
    """
    if token_ids is not None and len(token_ids) != cache.offset:
        raise InputError(f"token_ids holds {len(token_ids)} ids, the cache has seen {cache.offset} tokens")
    arrays, layers = {}, []
    for i, layer in enumerate(cache.layers):
        parts = layer.slots.cut([(0, layer.used)]).arrays if layer.slots.arrays else []
        arrays.update({f"layers.{i}.{part}": array for part, array in enumerate(parts)})
        layers.append(
            {
                "kind": "sliding" if isinstance(layer, SlidingLayer) else "growing",
                "offset": layer.offset,
                "packed": isinstance(layer.slots, PackedSlots),
                "arrays": len(parts),
                "settings": layer.settings,
            }
        )
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "model": json.dumps(_model_of(config)),
        "layers": json.dumps(layers),
        "token_ids": json.dumps([int(i) for i in token_ids or ()]),
        "identity": json.dumps(dict(identity or {})),
        "metadata": json.dumps(dict(metadata or {})),
    }
    _write(Path(path), arrays, header)


def load_cache(
    path: str | Path, config: Any, *, identity: Mapping[str, str] | None = None
) -> tuple[Cache, CacheFileInfo]:
    """A saved cache and what it says about itself.

    Args:
        config: the configuration of the model that will use it.
        identity: what must be equal where the file names it as well.

    Raises:
        CacheError: no such file, no saved cache, a damaged one, one of a newer version, or one of another model; the
            message names what differs.
    """
    path = Path(path)
    if path.is_dir():
        raise CacheError(f"{path} is a folder, not a saved cache: name a file in it")
    if not path.is_file():
        raise CacheError(f"there is no saved cache {path}: save one first, or check the name")
    try:
        entries, header = read_header(path)
    except CheckpointError as error:
        raise CacheError(f"{path} is not a complete saved cache: save it again") from error
    if header.get("format") != FORMAT:
        raise CacheError(f"{path} is not a cache that this package saved")
    if header.get("version") != str(VERSION):
        raise CacheError(f"{path} has version {header.get('version')}, this package reads {VERSION}: save it again")
    try:
        model, layers = json.loads(header["model"]), json.loads(header["layers"])
        info = CacheFileInfo(*(json.loads(header[name]) for name in ("token_ids", "identity", "metadata")))
    except (KeyError, ValueError) as error:
        raise CacheError(f"{path} has a damaged description: save it again") from error
    _compare(path, "model", model, _model_of(config))
    _compare(path, "cache", info.identity, {k: v for k, v in (identity or {}).items() if k in info.identity})
    arrays = mx.load(str(path), format="safetensors") if entries else {}
    assert isinstance(arrays, dict)
    try:
        cache = Cache([_layer(record, arrays, i, config) for i, record in enumerate(layers)])
        if len({layer.offset for layer in cache.layers}) != 1 or len(cache) != config.num_hidden_layers:
            raise ValueError("layers disagree")
        mx.eval(cache.arrays)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise CacheError(f"{path} holds layers that do not fit its description: save it again") from error
    return cache, info


def _model_of(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps({name: getattr(config, name) for name in MODEL_FIELDS}))


def _compare(path: Path, what: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        if saved.get(name) != value:
            raise CacheError(
                f"{path} was saved with another {what}: {name!r} is {saved.get(name)!r} there and {value!r} here"
            )


def _layer(record: dict[str, Any], arrays: Mapping[str, mx.array], index: int, config: Any) -> LayerCache:
    settings = dict(record["settings"])
    form = KVFormat(*settings.pop("form")) if settings["form"] else settings.pop("form")
    kind = {"growing": GrowingLayer, "sliding": SlidingLayer}[record["kind"]]
    layer = kind(form=form, **settings)
    found = [arrays[f"layers.{index}.{part}"] for part in range(record["arrays"])]
    if found:
        if len(found) != (6 if record["packed"] else 2):
            raise ValueError("wrong number of arrays")
        size = found[0].shape[2]
        fits = all(x.ndim == 4 and x.shape[1:3] == (config.num_key_value_heads, size) for x in found)
        width = config.head_dim * (form.bits if form and record["packed"] else 32) // 32
        if not fits or found[0].shape[3] != width:
            raise ValueError("wrong shape")
    layer.adopt(found, record["packed"], record["offset"])
    if layer.used != (found[0].shape[2] if found else 0):
        raise ValueError("wrong number of tokens")
    return layer


def _write(path: Path, arrays: Mapping[str, mx.array], header: dict[str, str]) -> None:
    table = {name: (SAFETENSORS_DTYPES[array.dtype], tuple(array.shape)) for name, array in arrays.items()}
    head, _ = encode_header(table, header)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(head)
            for array in arrays.values():
                raw = mx.contiguous(array).reshape(-1).view(mx.uint8)
                mx.eval(raw)
                file.write(np.asarray(raw).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise CacheError(f"cannot save the cache as {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()

"""Save a cache to one safetensors file, with the model it belongs to and its token ids.

Only written slots are saved, in the format in which they are held. The file is renamed into place once complete.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint import Checkpoint
from ..checkpoint.header import SAFETENSORS_DTYPES, encode_header, read_header
from ..errors import CacheError, CheckpointError, InputError, QuantizationError
from ..files import open_atomically, parse_json
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
"""Config fields that must be equal for two models to share keys and values."""


@dataclass(frozen=True)
class CacheFileInfo:
    """The description of a saved cache.

    token_ids: the cached token ids; empty if none were saved.
    identity: names and hashes of the weights and tokenizer it was made with.
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
    """Write a cache without its snapshots, replacing an existing file atomically.

    Args:
        config: the model's configuration; `load_cache` compares it.
        token_ids: the cached token ids, one per token seen.
        identity: further values that must be equal when it is loaded, such as {"weights": hash, "tokenizer": hash}.
        metadata: anything else to keep.

    Raises:
        InputError: the number of ids differs from the number of cached tokens.
        CacheError: the file cannot be written.
    """
    if token_ids is not None and len(token_ids) != cache.offset:
        raise InputError(f"token_ids holds {len(token_ids)} ids, the cache has seen {cache.offset} tokens.")
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
    _write(Path(os.path.expanduser(path)), arrays, header)


def load_cache(
    path: str | Path, config: Any, *, identity: Mapping[str, str] | None = None
) -> tuple[Cache, CacheFileInfo]:
    """Load a saved cache and its description.

    Args:
        config: the configuration of the model that will use it.
        identity: values that must be equal where the file names them.

    Raises:
        CacheError: the file is missing, damaged, not a cache, of a newer version, or of another model; the message
            names the difference.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise CacheError(f"{path} is a folder, not a saved cache. Name a file in it.")
    if not path.is_file():
        raise CacheError(f"there is no saved cache {path}. Save one first, or check the name.")
    try:
        entries, header = read_header(path)
    except CheckpointError as error:
        raise CacheError(
            f"{path} is not a complete saved cache ({str(error).removesuffix('.')}). Save it again."
        ) from error
    if header.get("format") != FORMAT:
        raise CacheError(f"{path} is not a cache that this package saved.")
    if header.get("version") != str(VERSION):
        shown = header.get("version", "none")[:20]
        raise CacheError(f"{path} has version {shown}, this package reads {VERSION}: save it again.")
    model, layers, ids, saved, notes = (_read_entry(path, header, name, kind) for name, kind in _DESCRIPTION.items())
    if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in ids):
        raise CacheError(f"{path} has a damaged description (token_ids): save it again.")
    info = CacheFileInfo(ids, saved, notes)
    _compare(path, model, _model_of(config))
    for name, value in (identity or {}).items():
        if name in saved and saved[name] != value:
            raise CacheError(
                f"{path} was made with another model: {name!r} differs. Load that model, or save the cache again."
            )
    checkpoint = Checkpoint(path.parent, entries, header, [path])
    try:
        cache = Cache([_layer(record, checkpoint, i, config) for i, record in enumerate(layers)])
        if len({layer.offset for layer in cache.layers}) != 1 or len(cache) != config.num_hidden_layers:
            raise ValueError("layers disagree")
        mx.eval(cache.arrays)
    except (*_DAMAGE, RuntimeError, CheckpointError, QuantizationError, InputError) as error:
        raise CacheError(f"{path} holds layers that do not fit its description: save it again.") from error
    return cache, info


_DESCRIPTION = {"model": dict, "layers": list, "token_ids": list, "identity": dict, "metadata": dict}
"""The entries of a file's description and their types."""
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def _read_entry(path: Path, header: Mapping[str, str], name: str, kind: type) -> Any:
    content = parse_json(header.get(name, "null"), f"{path} has a damaged description: {name!r}", error=CacheError)
    if not isinstance(content, kind):
        raise CacheError(f"{path} has a damaged description ({name}): save it again.")
    return content


def ignored_options(cache: Cache, asked: Cache) -> list[str]:
    """Describe each option of a loaded cache that differs from the one requested; empty if none does.

    Args:
        asked: an empty cache made with the caller's options.
    """
    found = []
    for name, read in _OPTIONS.items():
        own, other = ({read(layer) for layer in store.layers} for store in (cache, asked))
        if own != other:
            found.append(f"{name} is {_format_values(own)} in the file, not {_format_values(other)}")
    return found


_OPTIONS: dict[str, Callable[[LayerCache], Any]] = {
    "kv_bits": lambda layer: layer.format.bits if layer.format else None,
    "kv_group_size": lambda layer: layer.format.group_size if layer.format else None,
    "max_kv_size": lambda layer: layer.window,
}


def _format_values(values: set[Any]) -> str:
    return " or ".join(sorted("unset" if value is None else str(value) for value in values))


def _model_of(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps({name: getattr(config, name) for name in MODEL_FIELDS}))


def _compare(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name, value in asked.items():
        if saved.get(name) != value:
            raise CacheError(
                f"{path} was saved with another model: {name!r} is {saved.get(name)!r} there and {value!r} here."
            )


def _layer(record: dict[str, Any], checkpoint: Checkpoint, index: int, config: Any) -> LayerCache:
    settings, offset, packed, count = (record[name] for name in ("settings", "offset", "packed", "arrays"))
    fmt = KVFormat(*_check_sizes(settings["form"])) if settings["form"] else None
    numbers = {name: value for name, value in settings.items() if name != "form"}
    _check_sizes([offset, *(value for value in numbers.values() if value is not None)])
    kind = {"growing": GrowingLayer, "sliding": SlidingLayer}[record["kind"]]
    layer = kind(format=fmt, **numbers)
    if not isinstance(packed, bool) or count not in (0, 6 if packed else 2) or (packed and fmt is None):
        raise ValueError("wrong number of arrays")
    found = [checkpoint.read_now(f"layers.{index}.{part}") for part in range(count)]
    if found:
        size = found[0].shape[2]
        fits = all(x.ndim == 4 and x.shape[1:3] == (config.num_key_value_heads, size) for x in found)
        width = config.head_dim * (fmt.bits if fmt and packed else 32) // 32
        words = {0, 3} if packed else set()
        types = all(
            x.dtype == mx.uint32 if part in words else mx.issubdtype(x.dtype, mx.floating)
            for part, x in enumerate(found)
        )
        same = len({x.dtype for part, x in enumerate(found) if part not in words}) == 1
        if not fits or found[0].shape[3] != width or not types or not same:
            raise ValueError("wrong shape or type")
    layer.adopt(found, packed, offset)
    if layer.used != (found[0].shape[2] if found else 0):
        raise ValueError("wrong number of tokens")
    return layer


def _check_sizes(values: Any) -> list[int]:
    """Return the values if they are valid sizes of a cache."""
    if not all(isinstance(value, int) and 0 <= value < 1 << 31 for value in values):
        raise ValueError("not a size")
    return list(values)


def _write(path: Path, arrays: Mapping[str, mx.array], header: dict[str, str]) -> None:
    table = {name: (SAFETENSORS_DTYPES[array.dtype], tuple(array.shape)) for name, array in arrays.items()}
    head, _ = encode_header(table, header)
    with open_atomically(path, error=CacheError) as file:
        file.write(head)
        for array in arrays.values():
            raw = mx.contiguous(array).reshape(-1).view(mx.uint8)
            mx.eval(raw)
            file.write(np.asarray(raw).data)

"""Key/value caches."""

from .cache import Cache, make_cache
from .files import ignored_options, load_cache, save_cache
from .fingerprint import weights_fingerprint
from .joining import RowSource, join_rows
from .layers import GrowingLayer, LayerCache
from .packing import KVFormat
from .prefixes import PrefixCache
from .sizes import cache_bytes
from .sliding import SlidingLayer

__all__ = [
    "Cache",
    "GrowingLayer",
    "KVFormat",
    "LayerCache",
    "PrefixCache",
    "RowSource",
    "SlidingLayer",
    "cache_bytes",
    "ignored_options",
    "join_rows",
    "load_cache",
    "make_cache",
    "save_cache",
    "weights_fingerprint",
]

"""Where keys and values live between calls."""

from .cache import Cache, make_cache
from .files import load_cache, save_cache
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
    "SlidingLayer",
    "cache_bytes",
    "load_cache",
    "make_cache",
    "save_cache",
]

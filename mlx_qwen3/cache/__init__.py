"""Where keys and values live between calls."""

from .cache import Cache
from .layers import GrowingLayer, LayerCache, SlidingLayer

__all__ = ["Cache", "GrowingLayer", "LayerCache", "SlidingLayer"]

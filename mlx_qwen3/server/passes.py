"""Forward passes of a model and operations on its caches, in one process; `server.divided` extends them to several."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..cache import Cache, PrefixCache, RowSource, join_rows
from ..generation.context import new_cache


class Passes:
    """The forward passes of one model, and every operation on its caches.

    Args:
        model: has `step_logits` and `fill_cache`.
        cache_options: options of new caches.
        prefixes: caches of earlier prompts.
    """

    def __init__(self, model: Any, cache_options: dict[str, Any], prefixes: PrefixCache):
        self.model, self.prefixes, self._cache_options = model, prefixes, cache_options

    def new_cache(self) -> Cache:
        """Return an empty cache."""
        return new_cache(self.model.config, **self._cache_options)

    def step_logits(
        self,
        ids: mx.array,
        cache: Cache,
        keep: int = 1,
        mask: mx.array | None = None,
        positions: mx.array | None = None,
    ) -> mx.array:
        """Run ids (B, L), append their keys and values to the cache, and return the last `keep` logits (B, keep, V)."""
        return self.model.step_logits(ids, cache, keep, mask, positions)

    def fill_cache(self, ids: mx.array, cache: Cache) -> None:
        """Append the keys and values of ids (B, L) to the cache."""
        self.model.fill_cache(ids, cache)

    def join_rows(self, sources: Sequence[RowSource], room: bool = True) -> Cache:
        """Return a cache made of rows of other caches."""
        return join_rows(sources, room)

    def trim(self, cache: Cache, count: int) -> None:
        """Drop the last `count` tokens of a cache."""
        cache.trim(count)

    def keep_prefix(self, ids: Sequence[int], cache: Cache) -> bool:
        """Keep a copy of a cache for later prompts; return whether it fits the limit."""
        return self.prefixes.insert(ids, cache)

    def longest_prefix(self, ids: Sequence[int]) -> tuple[Cache | None, int]:
        """Return a cache of the longest kept prefix of `ids`, and its length; (None, 0) without one."""
        return self.prefixes.longest_prefix(ids)

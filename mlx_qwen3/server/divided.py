"""Serve a chat model that is sharded over several processes.

Only rank 0 handles HTTP, scheduling, sampling and constraints. The other ranks repeat its forward passes, and its
operations on caches, with their shards of the weights, keys and values. Rank 0 sends them these commands before each
pass.
"""

import dataclasses
import json
import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..cache import Cache, PrefixCache, RowSource, join_rows
from ..distributed import Group, send_bytes
from ..tasks.batches import Piece
from .passes import Passes


class Leader:
    """The sender on rank 0: collects commands and sends them before the next pass."""

    def __init__(self, group: Group):
        self.group = group
        self._commands: list[list[Any]] = []
        self._numbers: dict[int, int] = {}
        self._count = 0

    def add(self, *command: Any) -> None:
        """Add a command to those that are sent with the next pass."""
        self._commands.append(list(command))

    def send(self, *command: Any) -> None:
        """Send all collected commands, followed by this one."""
        self.add(*command)
        commands, self._commands = self._commands, []
        send_bytes(json.dumps(commands).encode(), self.group)

    def register(self, cache: Cache) -> int:
        """Return a number for a new cache; the other ranks drop their shard when this cache is freed."""
        self._count += 1
        number, key = self._count, id(cache)
        self._numbers[key] = number

        def drop() -> None:
            self._numbers.pop(key, None)
            self.add("drop", number)

        weakref.finalize(cache, drop).atexit = False
        return number

    def number_of(self, cache: Cache) -> int:
        """Return the number of a registered cache."""
        return self._numbers[id(cache)]


class DividedPasses(Passes):
    """The forward passes of a sharded model on rank 0; the other ranks repeat each one."""

    def __init__(self, model: Any, cache_options: dict[str, Any], prefixes: PrefixCache, leader: Leader):
        super().__init__(model, cache_options, prefixes)
        self._leader = leader

    def new_cache(self) -> Cache:
        """Return an empty cache."""
        cache = super().new_cache()
        self._leader.add("new", self._leader.register(cache))
        return cache

    def step_logits(
        self,
        ids: mx.array,
        cache: Cache,
        keep: int = 1,
        mask: mx.array | None = None,
        positions: mx.array | None = None,
    ) -> mx.array:
        """Run ids (B, L), append their keys and values to the cache, and return the last `keep` logits (B, keep, V)."""
        arrays = [None if array is None else array.astype(mx.int32) for array in (ids, mask, positions)]
        shapes = [None if array is None else list(array.shape) for array in arrays]
        self._leader.send("step", self._leader.number_of(cache), keep, shapes)
        ids, mask, positions = _broadcast(arrays, self._leader.group)  # type: ignore[assignment]
        return super().step_logits(ids, cache, keep, mask, positions)

    def fill_cache(self, ids: mx.array, cache: Cache) -> None:
        """Append the keys and values of ids (B, L) to the cache."""
        self._leader.send("fill", self._leader.number_of(cache), list(ids.shape))
        (ids,) = _broadcast([ids.astype(mx.int32)], self._leader.group)  # type: ignore[assignment]
        super().fill_cache(ids, cache)

    def join_rows(self, sources: Sequence[RowSource], room: bool = True) -> Cache:
        """Return a cache made of rows of other caches."""
        described = [[self._leader.number_of(one.cache), list(one.rows), one.length] for one in sources]
        cache = super().join_rows(sources, room)
        self._leader.add("join", self._leader.register(cache), described, room)
        return cache

    def trim(self, cache: Cache, count: int) -> None:
        """Drop the last `count` tokens of a cache."""
        super().trim(cache, count)
        self._leader.add("trim", self._leader.number_of(cache), count)

    def keep_prefix(self, ids: Sequence[int], cache: Cache) -> bool:
        """Keep a copy of a cache for later prompts; return whether it fits the limit."""
        self._leader.add("keep", [int(token) for token in ids], self._leader.number_of(cache))
        return super().keep_prefix(ids, cache)

    def longest_prefix(self, ids: Sequence[int]) -> tuple[Cache | None, int]:
        """Return a cache of the longest kept prefix of `ids`, and its length; (None, 0) without one."""
        cache, length = super().longest_prefix(ids)
        number = 0 if cache is None else self._leader.register(cache)
        self._leader.add("look up", [int(token) for token in ids], number)
        return cache, length


class DividedTask:
    """A task of a sharded model on rank 0: every rank computes the same rows."""

    def __init__(self, task: Any, ability: str, leader: Leader):
        self._task, self._ability, self._leader = task, ability, leader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def compute(self, rows: Sequence[tuple[Any, list[Piece]]], options: Any) -> list[Any]:
        """Return the result of each (row, pieces)."""
        described = [[row, [[piece.ids, piece.type_ids, piece.memo] for piece in pieces]] for row, pieces in rows]
        self._leader.send("compute", self._ability, described, dataclasses.asdict(options))
        return self._task.compute(rows, options)


class Follower:
    """The receiver on the other ranks: runs the commands that rank 0 sends.

    Args:
        chat: this rank's shard of the chat model, with its tasks.
        group: the processes.
        cache_options, prefix_bytes: as on rank 0.
    """

    def __init__(self, chat: Any, group: Group, cache_options: dict[str, Any], prefix_bytes: int):
        self._passes = Passes(chat.model.for_inference(), cache_options, PrefixCache(prefix_bytes))
        self._chat, self._group = chat, group
        self._caches: dict[int, Cache] = {}

    def run(self) -> None:
        """Run commands until rank 0 sends "end"."""
        while True:
            for command, *arguments in json.loads(send_bytes(None, self._group)):
                if command == "end":
                    return
                getattr(self, f"_{command.replace(' ', '_')}")(*arguments)

    def _new(self, number: int) -> None:
        self._caches[number] = self._passes.new_cache()

    def _drop(self, number: int) -> None:
        self._caches.pop(number, None)

    def _step(self, number: int, keep: int, shapes: list[list[int] | None]) -> None:
        ids, mask, positions = _broadcast([_zeros(shape) for shape in shapes], self._group)
        assert ids is not None
        cache = self._caches[number]
        logits = self._passes.step_logits(ids, cache, keep, mask, positions)
        mx.async_eval(logits, cache.arrays)

    def _fill(self, number: int, shape: list[int]) -> None:
        (ids,) = _broadcast([_zeros(shape)], self._group)
        assert ids is not None
        cache = self._caches[number]
        self._passes.fill_cache(ids, cache)
        mx.eval(cache.arrays)
        mx.clear_cache()

    def _join(self, number: int, described: list[Any], room: bool) -> None:
        sources = [RowSource(self._caches[source], rows, length) for source, rows, length in described]
        self._caches[number] = join_rows(sources, room)

    def _trim(self, number: int, count: int) -> None:
        self._caches[number].trim(count)

    def _keep(self, ids: list[int], number: int) -> None:
        self._passes.keep_prefix(ids, self._caches[number])

    def _look_up(self, ids: list[int], number: int) -> None:
        cache, _ = self._passes.longest_prefix(ids)
        if cache is not None:
            self._caches[number] = cache

    def _compute(self, ability: str, described: list[Any], options: dict[str, Any]) -> None:
        task = self._chat.tasks[ability]
        rows = [(_restore_row(row), [Piece(*parts) for parts in pieces]) for row, pieces in described]
        task.compute(rows, task.options(**options))


def _restore_row(row: Any) -> Any:
    """Return a row as it was before JSON turned a pair of texts into a list."""
    return tuple(row) if isinstance(row, list) and row and isinstance(row[0], str) else row


def _zeros(shape: list[int] | None) -> mx.array | None:
    return None if shape is None else mx.zeros(shape, mx.int32)


def _broadcast(arrays: Sequence[mx.array | None], group: Group) -> list[mx.array | None]:
    """Return rank 0's arrays on every rank; the other ranks pass zeros of the same shapes."""
    found = [None if array is None else mx.distributed.all_sum(array, group=group) for array in arrays]
    mx.async_eval([array for array in found if array is not None])
    return found

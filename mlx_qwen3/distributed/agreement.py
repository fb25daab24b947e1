"""Agreement between ranks: shared errors, seeds, stop requests and comparison of content."""

import hashlib
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx

from ..errors import CheckpointError, DistributedError, MlxQwen3Error
from .group import Group, any_rank, gather_bytes, send_bytes

T = TypeVar("T")


@contextmanager
def same_outcome(group: Group | None) -> Iterator[None]:
    """Run a block without communication, and raise on every rank if it raises on one.

    Otherwise the other ranks would wait forever for the failed one, and its error might never be printed.

    Raises:
        DistributedError: on the ranks where the block succeeded; the message contains the failed rank and its error.
    """
    if group is None:
        yield
        return
    try:
        yield
    except MlxQwen3Error as error:
        gather_bytes(str(error).encode(), group)
        raise
    problems = gather_bytes(b"", group)
    failed = next((rank for rank, text in enumerate(problems) if text), None)
    if failed is not None:
        problem = problems[failed].decode()
        raise DistributedError(f"process {failed} of {group.size()} failed: {problem}")


def agree_on_seed(group: Group) -> int:
    """Draw a seed on rank 0, seed MLX with it on every rank, and return it."""
    seed = int.from_bytes(send_bytes(os.urandom(4), group), "little")
    mx.random.seed(seed)
    return seed


TOKENS_BETWEEN_CHECKS = 8
"""Tokens between two checks for a stop request, because each check is an all-reduce."""

_stop_requested = False


def request_stop() -> None:
    """Request all ranks to stop generating. Each raises `KeyboardInterrupt` within eight tokens; see `stoppable`."""
    global _stop_requested
    _stop_requested = True


def stoppable(steps: Generator[T, None, None], group: Group | None) -> Generator[T, None, None]:
    """Yield from `steps`; raise `KeyboardInterrupt` on every rank at the same step after a stop request."""
    try:
        for count, step in enumerate(steps):
            if group is not None and count % TOKENS_BETWEEN_CHECKS == 0:
                raise_if_stopped(group)
            yield step
    finally:
        steps.close()


def raise_if_stopped(group: Group) -> None:
    """Raise `KeyboardInterrupt` on every rank if any of them has a stop request. Every rank must call this."""
    global _stop_requested
    if any_rank(_stop_requested, group):
        _stop_requested = False
        raise KeyboardInterrupt


def check_same(group: Group, what: str, *content: Any) -> None:
    """Check that `content` is the same on all ranks. Every rank must call this.

    Args:
        what: name of the content for the error message.
        content: JSON-serializable values.

    Raises:
        CheckpointError: the content differs between ranks.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).digest()
    others = [rank for rank, found in enumerate(gather_bytes(digest, group)) if found != digest]
    if others:
        raise CheckpointError(
            f"process {others[0]} has another {what} than process {group.rank()}. Copy the same files to every "
            "machine, and install the same version."
        )

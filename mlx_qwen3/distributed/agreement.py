"""Tensor-parallel models over several processes, agreement between ranks, and distribution of rows."""

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
    """Run a block that needs no other rank, and let it fail on every rank once it fails on one.

    Without this the others would wait for the rank that failed, and nobody would read why it did.

    Raises:
        DistributedError: on a rank where the block succeeded; the message names the rank that failed, and why.
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
        raise DistributedError(f"process {failed} of {group.size()} failed: {problems[failed].decode()}")


def agree_on_seed(group: Group) -> int:
    """Draw a seed on rank 0, seed MLX with it on every rank, and return it."""
    seed = int.from_bytes(send_bytes(os.urandom(4), group), "little")
    mx.random.seed(seed)
    return seed


TOKENS_BETWEEN_CHECKS = 8
_stop_requested = False


def request_stop() -> None:
    """Ask all ranks to stop generating: within eight tokens each raises `KeyboardInterrupt`; see `stoppable`."""
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
    """Raise `KeyboardInterrupt` on every rank if one of them was asked to stop; every rank must ask."""
    global _stop_requested
    if any_rank(_stop_requested, group):
        _stop_requested = False
        raise KeyboardInterrupt


def check_same(group: Group, what: str, *content: Any) -> None:
    """Compare `content` (JSON) over the ranks.

    Raises:
        CheckpointError: the contents differ.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).digest()
    others = [rank for rank, found in enumerate(gather_bytes(digest, group)) if found != digest]
    if others:
        raise CheckpointError(
            f"process {others[0]} has another {what} than process {group.rank()}. Copy the same files and install the "
            "same version on every machine"
        )

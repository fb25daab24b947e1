"""A command line that `mlx.launch` started several times: rank 0 reads and prints, the others work along in silence.

Every rank runs the same command, so every rank must take the same steps: standard input and files of rows are read on
rank 0 and sent to the others, and Ctrl-C is agreed on between tokens.
"""

import io
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import DistributedError, MlxQwen3Error

if TYPE_CHECKING:
    from ..distributed import Group

SPLIT_VERBS = ("chat", "generate", "serve", "classify", "tag", "answer", "embed", "rank", "extract", "fill-mask")
"""Verbs that divide the model or the rows. With the others rank 0 works and the other ranks end at once."""

PEER_WORDS = ("[ring]", "[nccl]", "[mpi]", "[jaccl]", "peer", "Connection", "NCCL", "socket")

_group: "Group | None" = None


def launched() -> bool:
    """Return whether this process is one of several that `mlx.launch` (or MPI) started."""
    return "MLX_RANK" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ


def current_group() -> "Group | None":
    """Return the processes that run this verb together, None for a single one."""
    return _group


def is_first_process() -> bool:
    """Return whether this process prints and writes files."""
    return _group is None or _group.rank() == 0


def is_peer_loss(error: BaseException) -> bool:
    """Return whether an error of MLX says that another process cannot be reached any more."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in PEER_WORDS)


class SharedInput(io.TextIOBase):
    """Standard input read on rank 0, a line at a time, and sent to every rank."""

    def __init__(self, own: "io.TextIOBase | None", group: "Group"):
        self.own, self._group = own, group

    def isatty(self) -> bool:
        return False

    def readable(self) -> bool:
        return True

    def reconfigure(self, **settings: object) -> None:
        """Do nothing: the text is sent as UTF-8."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        from ..distributed import send_bytes

        line = self.own.readline() if self.own is not None and self._group.rank() == 0 else None
        return send_bytes(None if line is None else line.encode(), self._group).decode()

    def read(self, size: int | None = -1, /) -> str:
        lines = []
        while line := self.readline():
            lines.append(line)
        return "".join(lines)


def share_rows(read: Callable[[], Iterator[Any]], rebuilt: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the rows that `read` gives on rank 0, on every rank; the others read no file and no input.

    Args:
        rebuilt: makes a row of its value, for ranks that have nothing else of it.
    """
    from ..distributed import rows_of_first

    group = _group
    if group is None:
        yield from read()
        return
    kept: deque[Any] = deque()

    def values() -> Iterator[Any]:
        if isinstance(sys.stdin, SharedInput):
            sys.stdin = sys.stdin.own  # type: ignore[assignment]  # this rank alone reads from now on
        for row in read():
            kept.append(row)
            yield row.value

    for value in rows_of_first(values(), group):
        yield kept.popleft() if group.rank() == 0 else rebuilt(value)


def run_on_ranks(verb: str | None, run: Callable[[], int]) -> int:
    """Run a verb's work on this rank and return its exit status; outside of `mlx.launch`, just run it.

    Raises:
        MlxQwen3Error: on rank 0 only; the other ranks return the status without a word.
    """
    global _group
    if not launched():
        return run()
    from .peer_watch import PeerWatch, connect

    try:
        group = connect()
    except MlxQwen3Error:
        if os.environ.get("MLX_RANK", "0") == "0":
            raise
        return 2
    if group is None:
        return run()
    if verb not in SPLIT_VERBS:
        return run() if group.rank() == 0 else 0
    _group = group
    sys.stdin = SharedInput(sys.stdin, group)  # type: ignore[assignment]
    signal.signal(signal.SIGINT, _note_stop if group.rank() == 0 else signal.SIG_IGN)
    if group.rank():
        silence()
    elif "MLX_RING_VERBOSE" not in os.environ:
        drop_native_messages()
    try:
        watch = PeerWatch(group)
        status = run()
        watch.leave()
        return status
    except MlxQwen3Error:
        if group.rank() == 0:
            raise
        return 2
    except RuntimeError as error:
        if not is_peer_loss(error):
            raise
        if group.rank():
            return 1
        raise peer_loss(error) from None
    finally:
        _group = None


def peer_loss(error: BaseException) -> DistributedError:
    """Return the error for a lost process."""
    return DistributedError(
        f"another process has exited or cannot be reached ({str(error).splitlines()[0]}). Start all of them again"
    )


def silence() -> None:
    """Send what this process prints to nowhere."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def drop_native_messages() -> None:
    """Keep the standard error to this program: MLX's ring writes to it line after line once a peer has gone."""
    sys.stderr.flush()
    own = os.dup(2)
    sys.stderr = open(own, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)


_stops = 0


def _note_stop(signum: int, frame: FrameType | None) -> None:
    """Let the first Ctrl-C stop all ranks at the next token or batch of rows, and the second one this rank at once."""
    from ..distributed import request_stop

    global _stops
    _stops += 1
    if _stops > 2:
        raise KeyboardInterrupt
    request_stop()

"""Run one command in several processes started by `mlx.launch`; only rank 0 reads input and prints.

Every rank runs the same command and must take the same steps. So rank 0 reads standard input and row files and sends
them to the others, and all ranks agree between two tokens on whether Ctrl-C was pressed.
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
"""Verbs that distribute the model or the rows. The other verbs run on rank 0 only; the other ranks exit at once."""

PEER_WORDS = ("[ring]", "[nccl]", "[mpi]", "[jaccl]", "peer", "Connection", "NCCL", "socket")

_group: "Group | None" = None


def is_launched() -> bool:
    """Return whether this process is one of several that `mlx.launch` (or MPI) started."""
    return "MLX_RANK" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ


def current_group() -> "Group | None":
    """Return the group of processes that run this verb; None for a single process."""
    return _group


def is_first_process() -> bool:
    """Return whether this process prints and writes files."""
    return _group is None or _group.rank() == 0


def is_peer_loss(error: BaseException) -> bool:
    """Return whether an error of MLX means that another process can no longer be reached."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in PEER_WORDS)


class SharedInput(io.TextIOBase):
    """Standard input that rank 0 reads line by line and sends to every rank."""

    def __init__(self, own: "io.TextIOBase | None", group: "Group"):
        self.own, self._group = own, group

    def isatty(self) -> bool:
        return False

    def readable(self) -> bool:
        return True

    def reconfigure(self, **settings: object) -> None:
        """Do nothing, because the text is always sent as UTF-8."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        from ..distributed import send_bytes

        line = None
        if self._group.rank() == 0:
            line = self._read_own()
        return send_bytes(None if line is None else line.encode(), self._group).decode()

    def _read_own(self) -> str:
        """Return the next line of this rank's input, "" at its end; a closed one is at its end."""
        try:
            return "" if self.own is None or self.own.closed else self.own.readline()
        except OSError:  # the file descriptor is closed
            return ""

    def read(self, size: int | None = -1, /) -> str:
        lines = []
        while line := self.readline():
            lines.append(line)
        return "".join(lines)


def share_rows(read: Callable[[], Iterator[Any]], rebuild: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield on every rank the rows that `read` returns on rank 0; the other ranks read no input.

    Args:
        read: function that reads the rows.
        rebuild: function that makes a row from its value, for the ranks that receive only the value.
    """
    from ..distributed import rows_of_first

    group = _group
    if group is None:
        yield from read()
        return
    kept: deque[Any] = deque()

    def values() -> Iterator[Any]:
        if isinstance(sys.stdin, SharedInput):
            sys.stdin = sys.stdin.own  # type: ignore[assignment]  # from now on only this rank reads
        for row in read():
            kept.append(row)
            yield row.value

    for value in rows_of_first(values(), group):
        yield kept.popleft() if group.rank() == 0 else rebuild(value)


def run_on_ranks(verb: str | None, run: Callable[[], int]) -> int:
    """Run a verb on this rank and return its exit status. Without `mlx.launch`, only call `run`.

    Raises:
        MlxQwen3Error: on rank 0 only; the other ranks return the exit status and print nothing.
    """
    global _group
    if not is_launched():
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
    signal.signal(signal.SIGINT, _handle_interrupt if group.rank() == 0 else signal.SIG_IGN)
    if group.rank():
        silence_output()
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
        raise peer_loss_error(error) from None
    finally:
        _group = None


def peer_loss_error(error: BaseException) -> DistributedError:
    """Return the error that reports a lost process."""
    return DistributedError(
        f"another process has exited or cannot be reached ({str(error).splitlines()[0]}). Start all of them again."
    )


def silence_output() -> None:
    """Redirect standard output and standard error of this process to the null device."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)


def drop_native_messages() -> None:
    """Drop messages of native code on standard error: MLX's ring repeats one as long as a peer is lost."""
    sys.stderr.flush()
    own = os.dup(2)
    sys.stderr = open(own, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)


_interrupts = 0


def _handle_interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop all ranks at the next token or batch of rows; from the third Ctrl-C on, stop this rank at once."""
    from ..distributed import request_stop

    global _interrupts
    _interrupts += 1
    if _interrupts > 2:
        raise KeyboardInterrupt
    request_stop()

"""A command line that `mlx.launch` started several times: rank 0 reads and prints, the others work along in silence.

Every rank runs the same command, so every rank must take the same steps: standard input is read on rank 0 and sent to
the others, and Ctrl-C is agreed on between tokens.
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import DistributedError, MlxQwen3Error

if TYPE_CHECKING:
    from ..distributed import Group

SPLIT_VERBS = ("chat", "generate", "classify", "tag", "answer", "embed", "rank", "extract", "fill-mask")
"""Verbs that divide the model or the rows. With the others rank 0 works and the other ranks end at once."""

PEER_WORDS = ("[ring]", "[nccl]", "[mpi]", "[jaccl]", "peer", "Connection", "NCCL", "socket")


def launched() -> bool:
    """Return whether this process is one of several that `mlx.launch` (or MPI) started."""
    return "MLX_RANK" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ


class SharedInput(io.TextIOBase):
    """Standard input read on rank 0, a line at a time, and sent to every rank."""

    def __init__(self, own: "io.TextIOBase | None", group: "Group"):
        self._own, self._group = own, group

    def isatty(self) -> bool:
        return False

    def readable(self) -> bool:
        return True

    def reconfigure(self, **settings: object) -> None:
        """Do nothing: the text is sent as UTF-8."""

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        from ..distributed import send_bytes

        line = self._own.readline() if self._own is not None and self._group.rank() == 0 else None
        return send_bytes(None if line is None else line.encode(), self._group).decode()

    def read(self, size: int | None = -1, /) -> str:
        lines = []
        while line := self.readline():
            lines.append(line)
        return "".join(lines)


def run_on_ranks(verb: str | None, run: Callable[[], int]) -> int:
    """Run a verb's work on this rank and return its exit status; outside of `mlx.launch`, just run it.

    Raises:
        MlxQwen3Error: on rank 0 only; the other ranks return the status without a word.
    """
    if not launched():
        return run()
    from ..distributed import find_group

    group = find_group(True)
    if group is None:
        return run()
    if verb not in SPLIT_VERBS:
        return run() if group.rank() == 0 else 0
    sys.stdin = SharedInput(sys.stdin, group)  # type: ignore[assignment]
    signal.signal(signal.SIGINT, _note_stop if group.rank() == 0 else signal.SIG_IGN)
    if group.rank():
        silence()
    try:
        return run()
    except MlxQwen3Error:
        if group.rank() == 0:
            raise
        return 2
    except RuntimeError as error:
        if not any(word in str(error) for word in PEER_WORDS):
            raise
        if group.rank():
            return 1
        raise DistributedError(
            f"another process has exited or cannot be reached ({str(error).splitlines()[0]}). Start all of them again"
        ) from None


def silence() -> None:
    """Send what this process prints to nowhere."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _note_stop(signum: int, frame: FrameType | None) -> None:
    from ..distributed import request_stop

    request_stop()

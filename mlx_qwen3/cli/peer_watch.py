"""Terminate a process whose peers have died, even while it is blocked in a collective operation.

MLX's ring backend detects a lost peer. NCCL waits forever, and so does every backend while it connects. Therefore a
guard process terminates this one if connecting takes too long. Once connected, a socket between the ranks detects a
peer that exits without announcing it.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..distributed import Group, find_group, send_bytes
from ..errors import InputError

CONNECT_SECONDS = 30.0
"""Seconds that the processes may take to connect; MLX_QWEN3_CONNECT_SECONDS overrides it."""

GRACE_SECONDS = 4.0
"""Seconds that a process may take to exit by itself after a peer is lost."""

_TIME_LIMIT = "MLX_QWEN3_CONNECT_SECONDS"
_GOODBYE = b"bye"

# MLX holds the GIL while it connects, so only another process can end this one. The guard exits when its standard
# input is closed.
_GUARD = """
import os, select, signal, sys
seconds, target, message = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if not select.select([0], [], [], seconds)[0]:
    if message:
        os.write(2, (message + "\\n").encode())
    os.kill(target, signal.SIGTERM)
"""


def connect() -> Group | None:
    """Connect to the other processes and return the group; None for a single process.

    If the others do not connect, the process is terminated after `CONNECT_SECONDS`, with a one-line message on rank 0.

    Raises:
        DistributedError: the processes cannot be connected.
    """
    seconds = _read_time_limit()
    message = ""
    if os.environ.get("MLX_RANK", "0") == "0":
        message = (
            f"mlx-qwen3: the other processes did not connect within {seconds:g} s. Check that all of them run and the "
            f"addresses in the host file, or set {_TIME_LIMIT} to a longer time"
        )
    words = [sys.executable, "-I", "-S", "-c", _GUARD, str(seconds), str(os.getpid()), message]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as guard:
        try:
            return find_group(True)
        finally:
            guard.kill()


def _read_time_limit() -> float:
    text = os.environ.get(_TIME_LIMIT, str(CONNECT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise InputError(f"{_TIME_LIMIT} is {text!r}, expected a number of seconds above 0.")
    return seconds


class PeerWatch:
    """Watch the other ranks over sockets to rank 0; a socket that closes without a goodbye means a dead process.

    If rank 0 cannot be reached by its address, nothing is watched, and only the backend's own errors are reported.
    """

    def __init__(self, group: Group):
        self._rank, self._lock = group.rank(), threading.Lock()
        self._left = False
        self._sockets: list[socket.socket] = []
        listener = _open_listener() if self._rank == 0 else None
        offer = b""
        token = secrets.token_hex(16)
        if listener is not None:
            offer = json.dumps([_find_first_address(), listener.getsockname()[1], token]).encode()
        offered = send_bytes(offer, group)
        if not offered:
            return
        host, port, token = json.loads(offered)
        if listener is not None:
            threading.Thread(target=self._accept, args=(listener, group.size(), token), daemon=True).start()
            return
        try:
            peer = socket.create_connection((host, port), timeout=5)
            peer.settimeout(None)
            peer.sendall(token.encode())
        except OSError:
            return
        self._sockets.append(peer)
        threading.Thread(target=self._wait, args=(peer,), daemon=True).start()

    def leave(self) -> None:
        """Announce that this rank exits normally."""
        with self._lock:
            self._left = True
            for peer in self._sockets:
                try:
                    peer.sendall(_GOODBYE)
                    peer.close()
                except OSError:
                    pass  # the peer has already exited

    def _accept(self, listener: socket.socket, size: int, token: str) -> None:
        listener.settimeout(30)
        with listener:
            while len(self._sockets) < size - 1:
                try:
                    peer, _ = listener.accept()
                    peer.settimeout(5)
                    known = secrets.compare_digest(_receive(peer, len(token)), token.encode())
                except OSError:
                    return
                if not known:
                    peer.close()
                    continue
                peer.settimeout(None)
                with self._lock:
                    if self._left:
                        peer.sendall(_GOODBYE)
                        peer.close()
                        continue
                    self._sockets.append(peer)
                threading.Thread(target=self._wait, args=(peer,), daemon=True).start()

    def _wait(self, peer: socket.socket) -> None:
        try:
            farewell = _receive(peer, len(_GOODBYE))
        except OSError:
            farewell = b""
        if farewell == _GOODBYE or self._left:
            return
        time.sleep(GRACE_SECONDS)  # the backend may have reported it already, and this process may be exiting
        if self._left:
            return
        if self._rank == 0:
            sys.stdout.flush()
            print("mlx-qwen3: another process has exited. Start all of them again", file=sys.stderr, flush=True)
        os._exit(2 if self._rank == 0 else 1)


def _receive(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            break
        data += piece
    return data


def _open_listener() -> socket.socket | None:
    address = _find_first_address()
    if address is None:
        return None
    try:
        return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError:
        return None


def _find_first_address() -> str | None:
    """Return the address of rank 0 in the settings of the launcher; None if they do not contain one."""
    if name := os.environ.get("NCCL_HOST_IP"):
        return name
    coordinator = os.environ.get("MLX_JACCL_COORDINATOR")
    if coordinator is None and (file := os.environ.get("MLX_HOSTFILE")):
        try:
            coordinator = json.loads(Path(file).read_text(encoding="utf-8"))[0][0]
        except (OSError, ValueError, LookupError, TypeError):
            return None
    if not isinstance(coordinator, str) or ":" not in coordinator:
        return None
    return coordinator.rpartition(":")[0].strip("[]")

"""Ends a process whose peers have died, whatever it is waiting for.

MLX's ring notices a lost peer; NCCL waits for ever, and so does every backend while it connects. So a helper process
ends this one if connecting takes too long, and from then on a socket between the ranks tells of an end that was not
announced.
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
"""How long the processes may take to find each other; MLX_QWEN3_CONNECT_SECONDS replaces it."""

GRACE_SECONDS = 4.0
"""How long a process may take to end by itself once a peer is lost."""

_LIMIT = "MLX_QWEN3_CONNECT_SECONDS"
_GOODBYE = b"bye"

# MLX holds Python's lock while it connects: only another process can end this one. It ends with its standard input.
_GUARD = """
import os, select, signal, sys
seconds, target, message = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if not select.select([0], [], [], seconds)[0]:
    if message:
        os.write(2, (message + "\\n").encode())
    os.kill(target, signal.SIGTERM)
"""


def connect() -> Group | None:
    """Return the group of all processes, None for a single one.

    Where the others do not come, the process is ended after `CONNECT_SECONDS`, with one line on rank 0.

    Raises:
        DistributedError: the processes cannot be connected.
    """
    seconds = _seconds()
    message = ""
    if os.environ.get("MLX_RANK", "0") == "0":
        message = (
            f"mlx-qwen3: the other processes did not connect within {seconds:g} s. Check that all of them run, and the "
            f"addresses in the host file; {_LIMIT} sets another time"
        )
    words = [sys.executable, "-I", "-S", "-c", _GUARD, str(seconds), str(os.getpid()), message]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as guard:
        try:
            return find_group(True)
        finally:
            guard.kill()


def _seconds() -> float:
    text = os.environ.get(_LIMIT, str(CONNECT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise InputError(f"{_LIMIT} is {text!r}, expected seconds above 0")
    return seconds


class PeerWatch:
    """Watches the other ranks over sockets to rank 0: one that closes without a goodbye has died.

    Where rank 0 cannot be reached by its address there is no watch; the backend's own errors remain.
    """

    def __init__(self, group: Group):
        self._rank, self._lock = group.rank(), threading.Lock()
        self._left = False
        self._sockets: list[socket.socket] = []
        listener = _listener() if self._rank == 0 else None
        offer = b""
        token = secrets.token_hex(16)
        if listener is not None:
            offer = json.dumps([_address_of_first(), listener.getsockname()[1], token]).encode()
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
        """Announce that this rank ends as it should."""
        with self._lock:
            self._left = True
            for peer in self._sockets:
                try:
                    peer.sendall(_GOODBYE)
                    peer.close()
                except OSError:
                    pass  # it has gone before

    def _accept(self, listener: socket.socket, size: int, token: str) -> None:
        listener.settimeout(30)
        with listener:
            while len(self._sockets) < size - 1:
                try:
                    peer, _ = listener.accept()
                    peer.settimeout(5)
                    known = secrets.compare_digest(_read(peer, len(token)), token.encode())
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
            farewell = _read(peer, len(_GOODBYE))
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


def _read(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = peer.recv(count - len(found))
        if not piece:
            break
        found += piece
    return found


def _listener() -> socket.socket | None:
    address = _address_of_first()
    if address is None:
        return None
    try:
        return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError:
        return None


def _address_of_first() -> str | None:
    """Return the address under which the launcher's settings name rank 0, None where they name none."""
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

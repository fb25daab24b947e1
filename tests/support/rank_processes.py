"""Start processes like `mlx.launch`, with access to their exit statuses: `mlx.launch` itself always exits with 0."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONNECT_SECONDS = "MLX_QWEN3_CONNECT_SECONDS"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(folder, *words, folders=(None, None), given=("", ""), **environment) -> list[Any]:
    """Start two ranks of the ring backend.

    Args:
        folders: working folder of each rank.
        given: standard input of each rank.
    """
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    base = {**os.environ, "MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(ROOT), **environment}
    ranks = []
    for rank, (where, text) in enumerate(zip(folders, given, strict=True)):
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": where}
        process = subprocess.Popen(
            [sys.executable, *words], env={**base, "MLX_RANK": str(rank)}, stdin=subprocess.PIPE, **pipes
        )
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        ranks.append(process)
    return ranks


def finish(ranks, seconds=60):
    """Return (standard output, standard error, exit status) of each rank."""
    try:
        return [(*one.communicate(timeout=seconds), one.returncode) for one in ranks]
    finally:
        for one in ranks:
            one.kill()

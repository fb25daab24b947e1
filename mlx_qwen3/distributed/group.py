"""The group of processes and basic communication between its ranks."""

import json
import os
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import DistributedError, InputError

Group = mx.distributed.Group


def find_group(distributed: bool | Group) -> Group | None:
    """Return the requested group, or None for a single process.

    Args:
        distributed: True for all processes started by `mlx.launch`, an `mx.distributed.Group`, or False.

    Raises:
        DistributedError: the processes cannot connect.
        InputError: `distributed` has another type.
    """
    if distributed is False or distributed is None:
        return None
    if distributed is True:
        _check_host_file()
        try:
            group = mx.distributed.init()
        except (RuntimeError, ValueError) as error:
            raise DistributedError(_connection_problem(str(error))) from None
        if group.size() == 1 and os.environ.get("MLX_RANK", "0") != "0":
            raise DistributedError(
                f"process {os.environ['MLX_RANK']} found no other process. Start all processes with mlx.launch and "
                "a --backend that this machine supports."
            )
    elif isinstance(distributed, Group):
        group = distributed
    else:
        raise InputError(f"distributed is {distributed!r}, expected True, False or an mx.distributed.Group.")
    return group if group.size() > 1 else None


def process_count(group: Group | None) -> int:
    """Return the number of processes; 1 without a group."""
    return 1 if group is None else group.size()


def _check_host_file() -> None:
    """Raise `DistributedError` if the host file of the ring backend is invalid.

    MLX checks it too, but its messages do not contain the name of the file.
    """
    name, rank = os.environ.get("MLX_HOSTFILE"), os.environ.get("MLX_RANK")
    if name is None or rank is None:
        return
    try:
        hosts = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise DistributedError(
            f"cannot read the host file {name}: {error.strerror}. Create one with mlx.distributed_config."
        ) from None
    except ValueError:
        raise DistributedError(
            f"the host file {name} is not valid JSON. Create it again with mlx.distributed_config."
        ) from None
    good = isinstance(hosts, list) and all(isinstance(host, list) and host for host in hosts)
    if not good or not all(isinstance(address, str) for host in hosts for address in host):
        raise DistributedError(
            f"the host file {name} is not a list of lists of addresses. Create it again with mlx.distributed_config."
        )
    if not rank.isdecimal() or int(rank) >= len(hosts):
        raise DistributedError(
            f"MLX_RANK is {rank!r} and the host file {name} has {len(hosts)} hosts. Start the processes with "
            "mlx.launch."
        )


def _connection_problem(text: str) -> str:
    if "bind" in text:
        return (
            f"the processes cannot connect: a port of this machine is in use ({text}). Choose another with "
            "--starting-port, or stop the program that uses it."
        )
    return f"the processes cannot connect: {text}. Check the host file, and that its ports are free."


def send_bytes(content: bytes | None, group: Group) -> bytes:
    """Broadcast rank 0's `content` to every rank, and return it. The `content` of other ranks is ignored."""
    own = content is not None and group.rank() == 0
    length = int(np.array(summed(mx.array([len(content or b"") if own else 0], mx.int32), group))[0])
    if not length:
        return b""
    payload = np.frombuffer(content or b"", np.uint8) if own else np.zeros(length, np.uint8)
    return np.array(summed(mx.array(payload.astype(np.int32)), group)).astype(np.uint8).tobytes()


def gather_bytes(content: bytes, group: Group) -> list[bytes]:
    """Gather every rank's `content` on every rank, and return them in rank order."""
    lengths = np.array(mx.distributed.all_gather(mx.array([len(content)], mx.int32), group=group))
    payload = np.zeros(max(int(lengths.max()), 1), np.int32)
    payload[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.array(mx.distributed.all_gather(mx.array(payload)[None], group=group))
    return [rows[rank, : lengths[rank]].astype(np.uint8).tobytes() for rank in range(group.size())]


def any_rank(value: bool, group: Group) -> bool:
    """Return whether `value` is true on any rank. Every rank must call this."""
    return bool(summed(mx.array([int(value)], mx.int32), group).item())


def summed(array: mx.array, group: Group) -> mx.array:
    """Return the sum of an array over the ranks, already evaluated."""
    total = mx.distributed.all_sum(array, group=group)
    mx.eval(total)
    return total


def part_of(size: int, group: Group) -> tuple[int, int]:
    """Return the first row of this rank's shard of `size` rows, and the row after its last."""
    share = size // group.size()
    return group.rank() * share, (group.rank() + 1) * share

"""Refuse to compute in a forked process, where MLX would wait forever for threads that only the parent has."""

import os

from ..errors import InputError

_process: int | None = None
"""The process that computes."""


def check_not_forked() -> None:
    """Raise `InputError` if this process was forked after its parent loaded or used a model."""
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise InputError(
            "this process was forked after its parent had used MLX, which would hang here. Start workers with "
            "multiprocessing.get_context('spawn') and load the model in each of them."
        )

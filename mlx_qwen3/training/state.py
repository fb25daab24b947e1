"""Save and load the state of a training: everything that the next step depends on, in one atomically written file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from ..checkpoint import Checkpoint, read_header
from ..errors import CheckpointError
from ..files import disk_errors, remove

STATE_NAME, LOG_NAME = "state.safetensors", "log.jsonl"


def locate_state(output: Path) -> Path:
    """Return the folder of the saved states of a training that writes to `output`; it is next to the output."""
    return output.parent / f".{output.name}.training"


def has_saved_state(output: str | Path) -> bool:
    """Return whether an interrupted training that writes to `output` can resume from a saved state."""
    return (locate_state(Path(os.path.abspath(output))) / STATE_NAME).is_file()


@dataclass
class TrainingState:
    """State of a training after a number of steps.

    Attributes:
        step: number of completed steps.
        parameters: trained parameters.
        first, second: moments of the optimizer.
        best: parameters of the best evaluation so far; empty before the first one.
        best_loss, best_step: loss and step of that evaluation.
        stale: number of evaluations since then.
        smooth_loss, lowest_loss: smoothed training loss and its minimum, to detect divergence.
        tokens: number of tokens trained on.
        evaluation: metrics of the best evaluation.
        log: log entries.
    """

    step: int = 0
    parameters: dict[str, mx.array] = field(default_factory=dict)
    first: dict[str, mx.array] = field(default_factory=dict)
    second: dict[str, mx.array] = field(default_factory=dict)
    best: dict[str, mx.array] = field(default_factory=dict)
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    smooth_loss: float | None = None
    lowest_loss: float | None = None
    tokens: int = 0
    evaluation: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    _NUMBERS: ClassVar[tuple[str, ...]] = (
        "step",
        "best_loss",
        "best_step",
        "stale",
        "smooth_loss",
        "lowest_loss",
        "tokens",
        "evaluation",
        "log",
    )

    def save(self, folder: Path, identity: str) -> None:
        """Save the state in `folder`, replacing an older one atomically.

        Args:
            identity: hash of data, model and options, so that no other training resumes from the state.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is full.
        """
        arrays: dict[str, mx.array] = {}
        for group in ("parameters", "first", "second", "best"):
            arrays.update({f"{group}.{name}": array for name, array in getattr(self, group).items()})
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        partial = folder / f".{STATE_NAME}.part.safetensors"
        metadata = {"identity": identity, "numbers": json.dumps(numbers)}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                mx.save_safetensors(str(partial), arrays, metadata)
            except RuntimeError as problem:
                remove(partial)
                reason = str(problem).splitlines()[0].rstrip(".")
                raise CheckpointError(
                    f"cannot write {folder}: {reason}. Free some space and resume the training."
                ) from None
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, folder / STATE_NAME)

    @classmethod
    def load(cls, folder: Path, identity: str) -> TrainingState | None:
        """Load the state in `folder`; return None if there is none.

        Raises:
            CheckpointError: the file is damaged, or belongs to another training.
        """
        file = folder / STATE_NAME
        if not file.is_file():
            return None
        try:
            entries, metadata = read_header(file)
            numbers = json.loads(metadata["numbers"]) if metadata.get("identity") == identity else {}
        except (CheckpointError, KeyError, ValueError):
            raise CheckpointError(
                f"the saved state of the training, {file}, is damaged. Delete its folder and start again."
            ) from None
        if metadata.get("identity") != identity:
            raise CheckpointError(
                f"{folder} has the state of a training with other data, another model or other options. Use the same "
                "ones to resume it, or delete the folder."
            )
        arrays = Checkpoint(folder, entries, metadata, [file]).read_all()
        state = cls(**numbers)
        for name, array in arrays.items():
            group, _, rest = name.partition(".")
            getattr(state, group)[rest] = array
        mx.eval(list(arrays.values()))
        return state

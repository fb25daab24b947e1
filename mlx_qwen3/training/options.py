"""Options of a training, validated on creation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

METHODS = ("head", "lora", "dora", "full")
SCHEDULES = ("cosine", "linear", "constant")
LEARNING_RATES = {"lora": 5e-4, "dora": 5e-4, "full": 5e-5}
"""Default peak learning rate of each method."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training.

    Args:
        method: "head" fits a linear head on frozen features; "lora" and "dora" train an adapter, "full" all weights.
        epochs: number of passes over the data.
        max_steps: maximum number of optimizer steps; None for all of the epochs.
        batch_size: rows per minibatch.
        accumulation: minibatches per optimizer step.
        learning_rate: peak learning rate; default: 5e-4 for LoRA and DoRA, 5e-5 for full training.
        schedule: "cosine", "linear" or "constant" after the warm-up.
        warmup: share of the steps with a rising learning rate.
        weight_decay: weight decay of matrices.
        clip: maximum norm of the gradient; 0 for no clipping.
        rank: rank of LoRA.
        alpha: scaling of LoRA; the change of a weight is multiplied by alpha / rank.
        dropout: dropout probability of LoRA.
        targets: names of the layers that LoRA adapts; default: all linear layers of the blocks.
        max_length: maximum tokens per row; longer rows are truncated.
        grad_checkpoint: recompute intermediates in the backward pass to save memory.
        compiled: whether steps are compiled; default: on a GPU.
        evaluate_every: steps between evaluations; default: once per epoch.
        patience: number of evaluations without a lower loss after which training stops; None for no early stopping.
        save_every: steps between saved states, from which an interrupted training resumes.
        class_weights: "balanced", or a dict of weights by label; None for equal weights.
        seed: seed of initialization, order of rows and dropout.

    Raises:
        InputError: a value is out of range.
    """

    method: str = "head"
    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    max_length: int | None = None
    grad_checkpoint: bool = False
    compiled: bool | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: int = 50
    class_weights: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch_size", "accumulation", "rank", "save_every"):
            _check_count(name, getattr(self, name))
        for name in ("max_steps", "max_length", "evaluate_every", "patience"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name, low, high in (("warmup", 0, 1), ("dropout", 0, 0.99), ("weight_decay", 0, 1), ("clip", 0, 1e9)):
            _check_number(name, getattr(self, name), low, high)
        _check_number("alpha", self.alpha, 1e-9, 1e9)
        if self.learning_rate is not None:
            _check_number("learning_rate", self.learning_rate, 1e-12, 1e6)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed!r}, expected a whole number from 0 to 4294967295.")

    @property
    def peak_rate(self) -> float:
        """The peak learning rate: the given one, or the default of the method."""
        return LEARNING_RATES.get(self.method, 5e-4) if self.learning_rate is None else self.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dict."""
        return dataclasses.asdict(self)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}.")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number above 0.")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}.")

"""The options of a training, checked when they are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

METHODS = ("head", "lora", "dora", "full")
SCHEDULES = ("cosine", "linear", "constant")
LEARNING_RATES = {"lora": 5e-4, "dora": 5e-4, "full": 5e-5}
"""Peaks of the learning rate by method, where none is given."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained.

    Args:
        method: "head" fits a linear head on frozen features; "lora" and "dora" train an adapter, "full" every weight.
        epochs: passes over the data. max_steps: fewer steps than they have.
        batch_size: rows per minibatch. accumulation: minibatches per step of the optimizer.
        learning_rate: its peak; by default 5e-4 for LoRA and DoRA, 5e-5 for full training.
        schedule: "cosine", "linear" or "constant" after the warm-up.
        warmup: share of the steps in which the rate rises.
        weight_decay: of matrices. clip: largest norm of the gradient, 0 for none.
        rank, alpha, dropout: of LoRA; the change is scaled by alpha / rank.
        targets: names of the layers that LoRA adapts; by default every linear layer of a block.
        max_length: tokens of a row; longer ones are cut.
        grad_checkpoint: compute intermediates again instead of keeping them, for less memory.
        compiled: whether steps are compiled; by default on a GPU.
        evaluate_every: steps between evaluations; by default once per epoch.
        patience: evaluations without a better loss after which training stops; None for all epochs.
        save_every: steps between saved states, from which an interrupted training resumes.
        class_weights: "balanced", or label -> weight; None for equal ones.
        seed: of the first values, the order of the rows and dropout.
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
            raise InputError(f"seed is {self.seed!r}, expected a whole number from 0 to 4294967295")

    @property
    def peak_rate(self) -> float:
        """The learning rate that is used."""
        return LEARNING_RATES.get(self.method, 5e-4) if self.learning_rate is None else self.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, for logs and cards."""
        return dataclasses.asdict(self)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number above 0")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}")

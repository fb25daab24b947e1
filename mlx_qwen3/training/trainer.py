"""The training loop: minibatches of similar length, accumulation, evaluation, early stopping, and resuming.

Everything that the next step depends on is either in the saved state or follows from the options. A training that is
killed and resumed therefore ends with bit-identical weights.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ..errors import TrainingError
from ..layers.parameters import flatten
from .objectives import Batch, Example, Objective
from .optimizer import AdamW, Parameters, learning_rate
from .options import TrainingOptions
from .state import TrainingState

BATCHES_PER_POOL = 32
"""Number of minibatches whose rows are sorted by length together: a compromise between padding and shuffling."""
SMOOTHING = 0.9
"""Factor of the exponential moving average of the training loss."""
DIVERGED = 3.0
"""Training stops if the smoothed loss exceeds this multiple of its minimum, and 1.5 times both the first loss and the
loss of random predictions."""

LAYER = re.compile(r"\blayers\.(\d+)\.")

SMALL = 10_000_000
"""Below this number of trained parameters, or a tenth of all, the weights before each step are kept for a while."""

Progress = Callable[[dict[str, Any]], object]


def plan_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the row indices of each minibatch of an epoch: rows of similar length together, otherwise shuffled."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    size = batch_size * BATCHES_PER_POOL
    for start in range(0, len(order), size):
        pool = sorted(order[start : start + size].tolist(), key=lambda row: lengths[row])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def group_by_layer(names: Sequence[str]) -> list[list[str]]:
    """Return parameter names by layer, in the order of the backward pass: head, last layer, …, embedding."""
    groups: dict[float, list[str]] = {}
    for name in names:
        found = LAYER.search(name)
        index = float(found[1]) if found else -1.0 if "embed_tokens" in name else math.inf
        groups.setdefault(index, []).append(name)
    return [groups[index] for index in sorted(groups, reverse=True)]


def evaluate_in_parts(parts: Sequence[Any]) -> None:
    """Evaluate arrays in this order, with one part in flight.

    Intermediates are freed once the part that needs them is computed. Without waiting, the host allocates those of
    many layers ahead of the device.
    """
    previous: Any = []
    for part in parts:
        mx.async_eval(part)
        mx.eval(previous)
        previous = part


class Trainer:
    """Train some parameters of a model.

    Args:
        model: a Qwen3 model with a head.
        names: names of the parameters to train.
        objective: batches, loss and metrics of the task.
        train: training examples.
        valid: held-out examples; without any, there are no evaluations and the last weights are kept.
        options: options of the training.
        folder: folder of the saved state; None to save none.
        identity: hash of data, model and options, saved with the state.
        progress: called with the log entry of every step and evaluation.
    """

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        objective: Objective,
        train: Sequence[Example],
        valid: Sequence[Example],
        options: TrainingOptions,
        folder: Path | None = None,
        identity: str = "",
        progress: Progress | None = None,
    ):
        self.model, self.objective, self.options = model, objective, options
        self.train, self.valid = train, valid
        self.folder, self.identity = folder, identity
        self.progress = progress or (lambda row: None)
        self.lengths = [len(example.ids) for example in train]
        self.compiled = options.compiled
        if self.compiled is None:
            self.compiled = mx.default_device().type == mx.DeviceType.gpu
        objective.step = 32 if self.compiled else 1
        objective.checkpoint = options.grad_checkpoint
        per_epoch = math.ceil(len(plan_batches(self.lengths, options.batch_size, 0, 0)) / options.accumulation)
        self.steps_per_epoch = per_epoch
        self.total = min(per_epoch * options.epochs, options.max_steps or per_epoch * options.epochs)
        self.warmup = math.ceil(self.total * options.warmup)
        self.evaluate_every = options.evaluate_every or per_epoch
        self.optimizer = AdamW(options.weight_decay, options.clip)
        arrays = flatten(model.parameters())
        self.state = TrainingState(parameters={name: arrays[name] for name in names})
        self.optimizer.prepare(self.state.parameters)
        self.state.first, self.state.second = self.optimizer.first, self.optimizer.second
        self._gradients, self._update = self._make_functions()
        self._backward_order = group_by_layer(names)
        self._start = time.perf_counter()  # of the steps; moved by the time of evaluations and saves
        self._tokens_before = 0
        self._lowest: tuple[Parameters, int] = ({}, 0)
        self._lowest_loss = math.inf
        self._chance = objective.chance(train)
        trained = sum(arrays[name].size for name in names)
        self._keeps_previous = trained < max(SMALL, 0.1 * sum(array.size for array in arrays.values()))

    # one step

    def _make_functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        model, objective = self.model, self.objective

        def loss(parameters: Parameters, batch: Batch) -> tuple[mx.array, mx.array, list[mx.array]]:
            model.update(tree_unflatten(list(parameters.items())))
            marks: list[mx.array] = []
            return *objective.loss(model, batch, marks), marks

        gradients, update = mx.value_and_grad(loss), self.optimizer.update
        if not self.compiled:
            return gradients, update
        random: Any = [mx.random.state]
        return mx.compile(gradients, inputs=random, outputs=random), mx.compile(update)

    def _step(self, batches: list[list[int]]) -> tuple[mx.array, mx.array, int]:
        """Do one optimizer step; return its unevaluated loss and gradient norm, and its number of tokens."""
        state, options = self.state, self.options
        total: Any = None
        tokens = 0
        # Derive dropout from the step, because the random state cannot be saved and restored.
        mx.random.seed((options.seed * 1_000_003 + state.step) % 2**63)
        for rows in batches:
            batch = self.objective.batch([self.train[row] for row in rows])
            tokens += sum(self.lengths[row] for row in rows)
            (loss, count, marks), gradients = self._gradients(state.parameters, batch)
            evaluate_in_parts([*marks, [loss, count], *self._by_layer(gradients)])
            if total is None:
                total = loss, count, gradients
            else:
                added = {name: total[2][name] + gradient for name, gradient in gradients.items()}
                total = total[0] + loss, total[1] + count, added
                mx.async_eval(total)
        loss, count, gradients = total
        step = state.step + 1
        rate = learning_rate(step, self.total, options.peak_rate, self.warmup, options.schedule)
        scale = 1 / mx.maximum(count, 1e-9)
        state.parameters, state.first, state.second, norm = self._update(
            state.parameters, state.first, state.second, gradients, scale, mx.array(rate), mx.array(float(step))
        )
        mx.async_eval(state.parameters, state.first, state.second)
        state.step = step
        state.tokens += tokens
        return loss * scale, norm, tokens

    def _by_layer(self, gradients: Parameters) -> list[list[mx.array]]:
        return [[gradients[name] for name in names] for names in self._backward_order]

    # the loop

    def run(self) -> TrainingState:
        """Train, resuming from a saved state if there is one. Afterwards the model has the best weights.

        Raises:
            TrainingError: the loss became infinite before there were weights to keep.
            CheckpointError: the state cannot be written.
        """
        if self.folder is not None:
            saved = TrainingState.load(self.folder, self.identity)
            if saved is not None:
                self.state = saved
        state = self.state
        self._start, self._tokens_before = time.perf_counter(), state.tokens
        stopped = state.log[-1].get("stopped") if state.log else None
        self.model.train()
        self._freeze()
        planned: tuple[int, list[list[int]]] = (-1, [])
        pending: Any = None
        while state.step < self.total and stopped is None:
            epoch, position = divmod(state.step, self.steps_per_epoch)
            if planned[0] != epoch:
                planned = epoch, plan_batches(self.lengths, self.options.batch_size, self.options.seed, epoch)
            accumulated = self.options.accumulation
            batches = planned[1][position * accumulated : (position + 1) * accumulated]
            before = dict(state.parameters) if self._keeps_previous and not state.best else {}
            previous, pending = pending, (*self._step(batches), state.step, before)
            stopped = self._log_step(previous)  # while the device computes the step started above
            saves = self.folder is not None and (state.step % self.options.save_every == 0 or state.step == self.total)
            evaluates = bool(self.valid) and self._should_evaluate()
            if stopped is None and (saves or evaluates or state.step == self.total):
                pending, stopped = None, self._log_step(pending)
            paused = time.perf_counter()
            if stopped is None and evaluates:
                stopped = self._evaluate()
            if stopped is not None:
                self._log({"step": state.step, "stopped": stopped})
            if saves or (self.folder is not None and stopped is not None):
                self.save()
            self._start += time.perf_counter() - paused
        self._finish()
        return state

    def _should_evaluate(self) -> bool:
        return self.state.step % self.evaluate_every == 0 or self.state.step == self.total

    def save(self) -> None:
        """Save the state of the training."""
        assert self.folder is not None
        self.state.save(self.folder, self.identity)

    def _log_step(self, pending: Any) -> str | None:
        """Wait for a step and log it; return the reason to stop the training, or None."""
        if pending is None:
            return None
        state, options = self.state, self.options
        loss, norm = (float(np.array(array)) for array in pending[:2])
        tokens, step, before = pending[2:]
        seconds = time.perf_counter() - self._start
        row = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 4),
            "loss": loss,
            "learning_rate": learning_rate(step, self.total, options.peak_rate, self.warmup, options.schedule),
            "gradient_norm": norm,
            "tokens": tokens,
            "tokens_per_second": (state.tokens - self._tokens_before) / max(seconds, 1e-9),  # mean of all steps
        }
        self._log(row)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._keep_lowest()
            what = f"the loss became {loss}" if not math.isfinite(loss) else f"the loss has a gradient norm of {norm}"
            return f"{what} in step {step}"
        if loss < self._lowest_loss:  # the loss belongs to the weights before the step
            self._lowest_loss, self._lowest = loss, (before, step - 1)
        smooth = loss if state.smooth_loss is None else SMOOTHING * state.smooth_loss + (1 - SMOOTHING) * loss
        first = next(entry["loss"] for entry in state.log if "loss" in entry)
        state.smooth_loss = smooth
        if state.lowest_loss is None or smooth < state.lowest_loss:
            state.lowest_loss = smooth
        elif smooth > DIVERGED * state.lowest_loss and smooth > 1.5 * max(first, self._chance) and step > 5:
            self._keep_lowest()
            return f"the loss rose to {smooth:.3g} from {state.lowest_loss:.3g} by step {step}"
        return None

    def _freeze(self) -> None:
        """Freeze all other parameters, because recomputed layers would compute their gradients too."""
        self.model.freeze()
        modules = dict(self.model.named_modules())
        for name in self.state.parameters:
            path, _, leaf = name.rpartition(".")
            modules[path].unfreeze(recurse=False, keys=[leaf])

    def _keep_lowest(self) -> None:
        """Keep the weights with the lowest training loss if there was no evaluation so far."""
        parameters, step = self._lowest
        if parameters and not self.state.best:
            self.state.best, self.state.best_step = parameters, step

    def _log(self, row: dict[str, Any]) -> None:
        self.state.log.append(row)
        self.progress({**row, "total": self.total})

    def _evaluate(self) -> str | None:
        state = self.state
        figures = self.evaluate()
        self._log({"step": state.step, "evaluation": figures})
        if math.isfinite(figures["loss"]) and (state.best_loss is None or figures["loss"] < state.best_loss):
            state.best, state.best_loss, state.best_step = dict(state.parameters), figures["loss"], state.step
            state.evaluation, state.stale = figures, 0
            return None
        state.stale += 1
        if self.options.patience is not None and state.stale >= self.options.patience:
            return f"no lower loss in {state.stale} evaluations"
        return None

    def evaluate(self) -> dict[str, Any]:
        """Return the loss and the metrics of the current weights on the held-out examples."""
        return evaluate(self.model, self.objective, self.valid, self.options.batch_size, self.state.parameters)

    def _finish(self) -> None:
        state = self.state
        stopped = next((row["stopped"] for row in state.log if "stopped" in row), "")
        diverged = stopped.startswith("the loss")
        if diverged and not state.best:
            raise TrainingError(f"training diverged: {stopped}. Lower the learning rate ({self.options.peak_rate:g}).")
        chosen = state.best or state.parameters
        self.model.update(tree_unflatten(list(chosen.items())))
        self.model.unfreeze()
        self.model.eval()


def evaluate(
    model: Any, objective: Objective, examples: Sequence[Example], batch_size: int, parameters: Parameters | None = None
) -> dict[str, Any]:
    """Return the mean loss and the metrics of a model on examples, in evaluation mode."""
    if parameters is not None:
        model.update(tree_unflatten(list(parameters.items())))
    was_training = model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].ids))
    outputs: list[tuple[np.ndarray, ...]] = [()] * len(examples)
    total = count = 0.0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = objective.batch([examples[row] for row in rows])
        loss, weight = objective.loss(model, batch)
        found = objective.outputs(model, batch)
        mx.eval(loss, weight, found)
        total, count = total + float(np.array(loss)), count + float(np.array(weight))
        arrays = [np.array(array) for array in found]
        for index, row in enumerate(rows):
            outputs[row] = tuple(array[index] for array in arrays)
    model.train(was_training)
    return {"loss": total / max(count, 1e-9), **objective.metrics(examples, outputs)}

"""The training loop: schedules, batches, accumulation, the best weights, divergence, and resuming."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwen3 import InputError, TrainingError
from mlx_qwen3.adapters import add_adapter
from mlx_qwen3.training.forward import chunked_cross_entropy, hidden_states, summed_cross_entropy
from mlx_qwen3.training.objectives import Example, LanguageObjective, SequenceObjective
from mlx_qwen3.training.optimizer import learning_rate
from mlx_qwen3.training.options import TrainingOptions
from mlx_qwen3.training.state import TrainingState
from mlx_qwen3.training.trainer import Trainer, group_by_layer, plan_batches
from tests.support import tiny

OPTIONS = TrainingOptions(method="lora", epochs=4, batch_size=4, learning_rate=1e-2, rank=2, save_every=2)


def examples(count: int = 16) -> list[Example]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        label = i % 2
        ids = [int(t) for t in rng.integers(5, 30, 3 + i % 4)] + [40 + label] + [7]
        found.append(Example(ids, label))
    return found


def classifier() -> Any:
    model = tiny.model("Qwen3ForSequenceClassification", num_labels=2)
    mx.random.seed(0)
    add_adapter(model, r=2, alpha=4)
    return model


def trainer(options: TrainingOptions = OPTIONS, valid: bool = False, folder: Path | None = None) -> Trainer:
    model = classifier()
    objective = SequenceObjective(labels=["a", "b"])
    rows = examples()
    return Trainer(model, model.adapter.names, objective, rows, rows[:6] if valid else [], options, folder, "same")


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(1, 101)]
    assert rates[4] == 0.5
    assert rates[9] == 1.0
    assert rates[54] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.0)
    assert learning_rate(50, 100, 1.0, 10, "constant") == 1.0


def test_batches_contain_every_row_once_and_group_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 333).tolist()
    batches = plan_batches(lengths, 8, 0, 0)
    assert sorted(row for batch in batches for row in batch) == list(range(333))
    assert batches == plan_batches(lengths, 8, 0, 0)
    assert batches != plan_batches(lengths, 8, 0, 1)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_training_lowers_the_loss():
    work = trainer()
    state = work.run()
    losses = [row["loss"] for row in state.log]
    assert state.step == 16
    assert losses[-1] < 0.3 * losses[0]


def test_the_logged_speed_is_the_mean_of_the_steps_without_evaluations(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("mlx_qwen3.training.trainer.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def advance(name: str, seconds: float) -> None:
        original = getattr(Trainer, name)

        def slow(self: Trainer, *args: Any) -> Any:
            clock[0] += seconds
            return original(self, *args)

        monkeypatch.setattr(Trainer, name, slow)

    advance("_step", 1.0)
    advance("_evaluate", 100.0)
    state = trainer(valid=True).run()
    steps = [row for row in state.log if "loss" in row]
    assert len(steps) == 16
    done = np.cumsum([row["tokens"] for row in steps])
    speeds = [row["tokens_per_second"] for row in steps]
    assert speeds[-1] == pytest.approx(done[-1] / 16)
    assert max(speeds) <= max(row["tokens"] for row in steps)


def test_accumulated_minibatches_equal_one_large_minibatch():
    large = dataclasses.replace(OPTIONS, batch_size=16, epochs=1)
    small = dataclasses.replace(OPTIONS, batch_size=4, accumulation=4, epochs=1)
    one, four = trainer(large).run(), trainer(small).run()
    assert one.step == four.step == 1
    for name, array in one.parameters.items():
        np.testing.assert_allclose(np.array(array), np.array(four.parameters[name]), atol=1e-5)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_steps_and_checkpointed_layers_give_the_same_weights(compiled: bool):
    plain = trainer(dataclasses.replace(OPTIONS, epochs=1)).run()
    other = trainer(dataclasses.replace(OPTIONS, epochs=1, compiled=compiled, grad_checkpoint=True)).run()
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(np.array(array), np.array(other.parameters[name]), atol=2e-4)


def test_the_best_weights_are_kept_and_patience_stops_the_training():
    options = dataclasses.replace(OPTIONS, learning_rate=0.3, epochs=20, patience=2, evaluate_every=1, clip=0.0)
    work = trainer(options, valid=True)
    state = work.run()
    evaluations = {row["step"]: row["evaluation"]["loss"] for row in state.log if "evaluation" in row}
    assert state.best_loss == min(evaluations.values())
    assert evaluations[state.best_step] == state.best_loss
    arrays = dict(tree_flatten(work.model.parameters()))
    for name, array in state.best.items():
        assert mx.array_equal(arrays[name], array)
    if state.step < work.total:
        assert "no lower loss" in state.log[-1]["stopped"]


def test_divergence_is_detected_and_the_best_weights_are_kept():
    options = dataclasses.replace(OPTIONS, learning_rate=300.0, epochs=30, clip=0.0, warmup=0.9)
    work = trainer(options)
    state = work.run()
    assert state.step < work.total
    assert "the loss" in state.log[-1]["stopped"]
    assert all(bool(mx.all(mx.isfinite(array))) for array in state.best.values())
    assert state.best_step == min(state.log[:-1], key=lambda row: row["loss"])["step"] - 1


def test_a_training_without_a_finite_loss_raises():
    work = trainer()
    work.state.parameters = {name: array * float("nan") for name, array in work.state.parameters.items()}
    with pytest.raises(TrainingError, match="learning rate"):
        work.run()


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path):
    whole = trainer(valid=True).run()
    for stop in (3, 8):
        folder = tmp_path / str(stop)

        class StoppedError(Exception):
            pass

        def progress(row: dict[str, Any], stop: int = stop) -> None:
            if row["step"] == stop:
                raise StoppedError

        first = trainer(valid=True, folder=folder)
        first.progress = progress
        with pytest.raises(StoppedError):
            first.run()
        resumed = trainer(valid=True, folder=folder).run()
        for name, array in whole.parameters.items():
            assert mx.array_equal(array, resumed.parameters[name]), name
        assert [row.get("loss") for row in resumed.log] == [row.get("loss") for row in whole.log]


def test_the_state_of_another_training_is_rejected(tmp_path: Path):
    trainer(folder=tmp_path).run()
    with pytest.raises(Exception, match="other data"):
        TrainingState.load(tmp_path, "another")


def test_dropout_depends_on_the_seed_only():
    def weights(seed: int) -> dict[str, mx.array]:
        model = tiny.model("Qwen3ForTokenClassification", num_labels=2)
        mx.random.seed(0)
        add_adapter(model, r=2, alpha=4, dropout=0.3)
        options = dataclasses.replace(OPTIONS, seed=seed, epochs=1)
        from mlx_qwen3.training.objectives import TokenObjective

        rows = [Example(e.ids, [e.target] * len(e.ids)) for e in examples(8)]
        return Trainer(model, model.adapter.names, TokenObjective(), rows, [], options).run().parameters

    first, again, other = weights(0), weights(0), weights(1)
    assert all(mx.array_equal(first[name], again[name]) for name in first)
    assert not all(mx.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("grad_checkpoint", [False, True])
def test_recomputed_layers_repeat_the_same_dropout(grad_checkpoint: bool):
    model = tiny.model("Qwen3ForSequenceClassification", num_labels=2)
    mx.random.seed(0)
    add_adapter(model, r=2, alpha=4, dropout=0.4)
    options = dataclasses.replace(OPTIONS, grad_checkpoint=grad_checkpoint)
    work = Trainer(model, model.adapter.names, SequenceObjective(), examples(4), [], options)
    batch = work.objective.batch(examples(4))
    model.train()
    work._freeze()
    arrays = work.state.parameters
    arrays = {n: a + 0.3 * mx.random.normal(a.shape, key=mx.random.key(i)) for i, (n, a) in enumerate(arrays.items())}
    name = next(n for n in arrays if n.endswith("layers.0.self_attn.q_proj.lora_A.weight"))

    def loss(change: mx.array) -> mx.array:
        mx.random.seed(3)
        model.update(tree_unflatten(list({**arrays, name: arrays[name] + change}.items())))
        return work.objective.loss(model, batch)[0]

    gradient = mx.grad(loss)(mx.zeros_like(arrays[name]))
    direction = gradient / mx.linalg.norm(gradient)
    slope = (loss(5e-3 * direction) - loss(-5e-3 * direction)) / 1e-2
    np.testing.assert_allclose(np.array(slope), np.array(mx.linalg.norm(gradient)), rtol=2e-2)


def test_the_forward_pass_of_training_equals_the_model(monkeypatch: pytest.MonkeyPatch):
    model = tiny.model("Qwen3Model")
    ids = tiny.ids()
    expected = model(ids).last_hidden_state
    for checkpoint in (False, True):
        found = hidden_states(model, ids, checkpoint)
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_chunked_cross_entropy_equals_the_unchunked_loss_and_gradients(frozen: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlx_qwen3.training.forward.ROWS_PER_CHUNK", 4)
    mx.random.seed(1)
    weight, rows = mx.random.normal((23, 8)), mx.random.normal((10, 8))
    labels, weights = mx.arange(10), mx.array([1.0] * 8 + [0.0, 0.5])

    def whole(rows: mx.array, weight: mx.array) -> mx.array:
        return summed_cross_entropy(rows @ weight.T, labels, weights)

    layer = nn.Linear(8, 23, bias=False)

    def chunked(rows: mx.array, weight: mx.array) -> mx.array:
        layer.weight = weight
        return chunked_cross_entropy(layer, rows, labels, weights, None if frozen else layer)

    arguments = (0,) if frozen else (0, 1)
    loss, gradients = mx.value_and_grad(whole, argnums=arguments)(rows, weight)
    other_loss, others = mx.value_and_grad(chunked, argnums=arguments)(rows, weight)
    np.testing.assert_allclose(np.array(loss), np.array(other_loss), rtol=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(np.array(gradient), np.array(other), atol=1e-5)


def test_the_language_objective_ignores_the_prompt():
    model = tiny.model("Qwen3ForCausalLM")
    ids = [5, 6, 7, 8, 9, 10]
    objective = LanguageObjective()
    total, count = objective.loss(model, objective.batch([Example(ids, 3), Example(ids[:4], 1)]))
    assert float(count.item()) == 3 + 3
    labels = mx.array([[-100, -100, -100, 8, 9, 10], [5, 6, 7, 8, -100, -100]])
    padded = mx.array([ids, [*ids[:4], 0, 0]])
    expected = model(padded, labels=labels).loss
    np.testing.assert_allclose(float((total / count).item()), float(expected.item()), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("method", "sparkle"), ("epochs", 0), ("warmup", 2), ("learning_rate", -1), ("rank", 1.5), ("seed", -1)],
)
def test_invalid_options_are_reported(name: str, value: Any):
    with pytest.raises(InputError, match=name):
        TrainingOptions(**{name: value})


def test_gradients_are_evaluated_from_the_head_to_the_embedding():
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.a", "model.layers.10.mlp.a", "model.layers.2.mlp.a"]
    names += ["model.layers.10.self_attn.a", "score.weight", "model.norm.weight"]
    groups = group_by_layer(names)
    assert groups[0] == ["score.weight", "model.norm.weight"]
    assert groups[1] == ["model.layers.10.mlp.a", "model.layers.10.self_attn.a"]
    assert groups[2:] == [["model.layers.2.mlp.a"], ["model.layers.0.mlp.a"], ["model.embed_tokens.weight"]]

"""Quantization-aware training: gradients under Hugging Face names, constant ranges, decreasing losses."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.support import tiny_bert


def test_fine_tuning_lowers_the_loss_and_leaves_the_ranges():
    model = tiny_bert.calibrated("QDQBertForSequenceClassification", hidden_dropout_prob=0.0, num_labels=2)
    ids, labels = tiny_bert.ids(batch=8), mx.array([0, 1] * 4)
    before = {name: np.array(q.amax) for name, q in model.named_quantizers()}
    optimizer = optim.AdamW(learning_rate=1e-3)
    step = nn.value_and_grad(model, lambda: model(ids, labels=labels).loss)
    model.train()
    losses = []
    for _ in range(12):
        loss, grads = step()
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    for name, quantizer in model.named_quantizers():
        np.testing.assert_array_equal(np.array(quantizer.amax), before[name])


@pytest.mark.parametrize("calibrated", [False, True])
def test_every_parameter_has_a_gradient_under_its_name(calibrated):
    make = tiny_bert.calibrated if calibrated else tiny_bert.model
    model = make("QDQBertForMaskedLM", position_embedding_type="relative_key_query")
    ids = tiny_bert.ids()
    _, grads = nn.value_and_grad(model, lambda: model(ids, labels=ids).loss)()
    flatten = dict(tree_flatten(grads))
    assert sorted(flatten) == sorted(name for name, _ in tree_flatten(model.trainable_parameters()))
    unused = {"bert.embeddings.position_embeddings.weight"}
    for name, grad in flatten.items():
        assert mx.isfinite(grad).all().item(), name
        if name not in unused and not name.endswith("key.bias"):  # a bias of the keys does not change the softmax
            assert mx.abs(grad).max().item() > 0, name


@pytest.mark.slow  # compiling the step takes MLX a minute on a CPU
def test_a_compiled_step_gives_the_same_losses():
    losses = []
    for compiled in (False, True):
        model = tiny_bert.calibrated("QDQBertForSequenceClassification", num_labels=2)
        ids, labels, optimizer = tiny_bert.ids(batch=4), mx.array([0, 1, 0, 1]), optim.SGD(learning_rate=0.1)
        grad = nn.value_and_grad(model, lambda x, y, model=model: model(x, labels=y).loss)

        def step(x, y, grad=grad, optimizer=optimizer, model=model):
            loss, grads = grad(x, y)
            optimizer.update(model, grads)
            return loss

        state = [model.state, optimizer.state]
        run = mx.compile(step, inputs=state, outputs=state) if compiled else step
        losses.append([run(ids, labels).item() for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_packed_layers_are_not_trainable():
    model = tiny_bert.calibrated("QDQBertForSequenceClassification")
    model.pack()
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert not any(name.endswith(("scales", "biases", "query.weight", "intermediate.dense.weight")) for name in names)
    assert "classifier.weight" in names

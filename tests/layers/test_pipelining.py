"""Evaluating a pass layer by layer does not change its outputs."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3.generation import generate_step
from mlx_qwen3.generation.context import new_cache
from mlx_qwen3.layers import pipelining
from mlx_qwen3.layers.devices import using
from mlx_qwen3.layers.pipelining import LEAST_WORK, WORK_PER_STEP, layers_per_step
from mlx_qwen3.tasks.batches import Piece, Runner
from tests.support import tiny, tiny_bert

LAYERS = 4


@pytest.fixture
def started(monkeypatch):
    """Record the arrays whose evaluation a pass starts before its end, and how many of them it waits for."""
    calls = {"started": [], "waited": []}

    class Watched:
        def async_eval(self, x):
            mx.async_eval(x)
            calls["started"].append(x)

        def eval(self, x):
            calls["waited"].append(x)
            mx.eval(x)

        def __getattr__(self, name):
            return getattr(mx, name)

    monkeypatch.setattr(pipelining, "mx", Watched())
    return calls


def test_layers_per_step_depend_on_tokens_and_width():
    with using(layers_per_step=None):
        assert layers_per_step(4096, 1024) == layers_per_step(512, 2560) == 1
        assert layers_per_step(2048, 2560) == layers_per_step(512, 5120) == 0.5
        assert layers_per_step(WORK_PER_STEP // 1024 // 2, 1024) == 2
        assert layers_per_step(17, 5120) == layers_per_step(LEAST_WORK // 1024 - 1, 1024) == 0
    with using(layers_per_step=3):
        assert layers_per_step(2, 8) == 3
        assert layers_per_step(1, 8) == 0


@pytest.mark.parametrize(("stride", "count"), [(0, 0), (0.5, 8), (1, 4), (2, 2), (3, 1)])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_one_step_is_in_flight(started, stride, count, fused):
    model, ids = tiny.model(num_hidden_layers=LAYERS), tiny.ids(length=9)
    path = model.for_inference() if fused else model
    want = path.step_logits(ids, model.make_cache(), 9)
    with using(layers_per_step=stride):
        got = path.step_logits(ids, model.make_cache(), 9)
    assert mx.array_equal(got, want)
    assert len(started["started"]) == count
    # waits for the step before the newest one, never for the newest
    assert [id(x) for x in started["waited"]] == [id(x) for x in started["started"][: max(count - 1, 0)]]


def test_decoding_is_not_evaluated_layer_by_layer(started):
    model = tiny.model(num_hidden_layers=LAYERS)
    with using(layers_per_step=1):
        list(generate_step(model, tiny.ids(batch=1)[0], max_tokens=3))
        assert len(started["started"]) == LAYERS


def prompt_and_tokens(model):
    return np.array(list(generate_step(model, tiny.ids(batch=1, length=30)[0], max_tokens=8, prefill_step_size=8)))


def batch_of_texts(model):
    rows = model.generate([[1, 2, 3], [4, 5, 6]], max_new_tokens=4)
    return np.array(rows)


def embeddings(model):
    def compute(call, last):
        states = model.base_model(**call).last_hidden_state
        return (states[mx.arange(states.shape[0]), last],)

    pieces = [Piece(list(range(1, 2 + n))) for n in (3, 9, 5)]
    return np.stack([out[0] for out in Runner(model).run(pieces, compute)])


def hidden_states_and_attentions(model):
    output = model(tiny.ids(), output_hidden_states=True, output_attentions=True)
    return np.concatenate([np.array(x).ravel() for x in (*output.hidden_states, *output.attentions)])


def packed_cache(model):
    cache = model.make_cache(kv_bits=8, kv_group_size=32)
    parts = [model.step_logits(tiny.ids(batch=1, length=n), cache, n) for n in (5, 3, 9)]
    return np.array(mx.concatenate(parts, axis=1))


@pytest.mark.parametrize(
    "run", [prompt_and_tokens, batch_of_texts, embeddings, hidden_states_and_attentions, packed_cache]
)
@pytest.mark.parametrize("stride", [0.5, 1])
def test_every_path_gives_the_same_outputs(started, run, stride):
    fields = {"num_hidden_layers": LAYERS, "head_dim": 32}
    with using(layers_per_step=0):
        want = run(tiny.model(**fields))
    assert not started["started"]
    with using(layers_per_step=stride):
        np.testing.assert_array_equal(run(tiny.model(**fields)), want)
    assert started["started"]


def test_qdqbert_gives_the_same_outputs(started):
    model = tiny_bert.model()
    ids = mx.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    want = model(ids)
    with using(layers_per_step=1):
        got = model(ids)
    assert started["started"]
    assert mx.array_equal(got[0], want[0])


def loss_of(model):
    return lambda ids: model(ids, labels=ids).loss


def test_training_steps_are_evaluated_as_one_graph(started):
    model, ids = tiny.model(num_hidden_layers=LAYERS), tiny.ids()
    model.train()
    step = nn.value_and_grad(model, lambda: loss_of(model)(ids))
    want = step()
    with using(layers_per_step=1):
        got = step()
    assert not started["started"]
    assert mx.array_equal(got[0], want[0])


@pytest.mark.parametrize("way", ["grad", "compile", "vmap", "jvp"])
def test_function_transformations_work_in_evaluation_mode(started, way):
    model, embeds = tiny.model(num_hidden_layers=LAYERS), mx.random.normal((2, 7, 32))

    def total(x):
        return mx.sum(model.model(inputs_embeds=x, use_cache=False).last_hidden_state ** 2)

    transformed = {
        "grad": mx.grad(total),
        "compile": mx.compile(total),
        "vmap": lambda x: mx.vmap(lambda row: total(row[None]))(x),
        "jvp": lambda x: mx.jvp(total, [x], [x])[1][0],
    }[way]
    want = transformed(embeds)
    with using(layers_per_step=1):
        got = transformed(embeds) if way != "compile" else mx.compile(total)(embeds)
    assert not started["started"]
    assert mx.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gradients_of_only_the_later_layers_are_correct():
    model, ids = tiny.model(num_hidden_layers=LAYERS), tiny.ids()
    model.freeze()
    model.model.layers[2].unfreeze()
    step = nn.value_and_grad(model, lambda: loss_of(model)(ids))
    want, want_grads = step()
    with using(layers_per_step=1):
        got, got_grads = step()
    assert mx.allclose(got, want)
    for (name, a), (_, b) in zip(tree_flatten(want_grads), tree_flatten(got_grads), strict=True):
        assert mx.allclose(a, b, atol=1e-6), name


@pytest.mark.parametrize(("parts", "marks"), [(1, 0), (2, 1), (4, 3), (9, 3)])
def test_a_decoding_pass_waits_for_the_same_part_of_the_previous_pass(started, parts, marks):
    model = tiny.model(num_hidden_layers=LAYERS)
    want = list(generate_step(model, tiny.ids(batch=1)[0], max_tokens=6))
    assert not started["started"]
    with using(decode_parts=parts):
        assert list(generate_step(model, tiny.ids(batch=1)[0], max_tokens=6)) == want
    # five passes over one token; all but the first follow another
    assert len(started["started"]) == 5 * marks
    assert [id(x) for x in started["waited"]] == [id(x) for x in started["started"][: 4 * marks]]


def test_each_cache_has_its_own_marks(started):
    model, token = tiny.model(num_hidden_layers=LAYERS).for_inference(), mx.array([[5]])
    one, other = new_cache(model.config), new_cache(model.config)
    with using(decode_parts=2):
        for cache in (one, other, one):
            mx.eval(model.step_logits(token, cache))
    assert [id(x) for x in started["waited"]] == [id(started["started"][0])]
    assert len(one.marks) == len(other.marks) == 1

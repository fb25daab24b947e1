"""Recorded Qwen3 outputs: single calls, cached steps, gradients, configuration rules."""

import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from tests.support.golden_cases import assert_outputs, calls, find


@pytest.mark.parametrize(("name", "call_id"), calls("q3_", "forward"))
def test_forward_calls_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    model, inputs = case.model(call), case.mlx(call["inputs"])
    if "raises" in call:
        with pytest.raises(mlx_qwen3.MlxQwen3Error):
            model(**inputs, **call.get("kwargs", {}))
        return
    assert_outputs(case, call, model(**inputs, **call.get("kwargs", {})), call["tolerance"])


@pytest.mark.parametrize(("name", "call_id"), calls("q3_", "cached"))
def test_cached_steps_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    model, past = case.model(call), None
    for step in call["steps"]:
        kwargs = {"use_cache": True, **step.get("kwargs", {})}
        output = model(**case.mlx(step["inputs"]), past_key_values=past, **kwargs)
        past = output.past_key_values
        assert_outputs(case, step, output, call["tolerance"])
        assert past.get_seq_length() == step.get("cache_length", past.get_seq_length())


@pytest.mark.parametrize(("name", "call_id"), calls("q3_", "generate"))
def test_generated_tokens_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    got = case.model(call).generate(**case.mlx(call["inputs"]), **call.get("kwargs", {}))
    np.testing.assert_array_equal(np.array(got), case.numpy(call["outputs"]["sequences"]))


@pytest.mark.parametrize(("name", "call_id"), calls("q3_", "grad"))
def test_gradients_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    model, inputs = case.model(call), case.mlx(call["inputs"])
    _, grads = nn.value_and_grad(model, lambda: model(**inputs, **call.get("kwargs", {})).loss)()
    flatten = dict(tree_flatten(grads))
    for name_, key in call["grads"].items():
        np.testing.assert_allclose(np.array(flatten[name_]), case.numpy(key), **call["tolerance"], err_msg=name_)


@pytest.mark.parametrize(("name", "call_id"), calls("q3_", "config"))
def test_configurations_equal_the_recording(name, call_id):
    _, call = find(name, call_id)
    config = mlx_qwen3.Qwen3Config(**call["config"])
    for field, want in call["expect"].items():
        got = getattr(config, field)
        if field == "rope_parameters":
            got = {k: v for k, v in got.items() if k != "type"}
            want = {k: v for k, v in want.items() if k != "type"}
        if field in ("id2label",):
            want = {int(k): v for k, v in want.items()}
        assert got == want, field

"""Recorded QDQBert outputs: calls, cached steps, generation, gradients, calibration, single quantizers."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from tests.support.golden_cases import assert_outputs, calls, find


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "forward"))
def test_forward_calls_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    output = case.model(call)(**case.mlx(call["inputs"]), **call["kwargs"])
    assert_outputs(case, call, output, call["tolerance"])


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "cached"))
def test_cached_steps_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    model, past = case.model(call), None
    for step in call["steps"]:
        output = model(**case.mlx(step["inputs"]), past_key_values=past, use_cache=True)
        past = output.past_key_values
        assert_outputs(case, step, output, call["tolerance"])
        assert past.get_seq_length() == step["cache_length"]


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "generate"))
def test_generated_tokens_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    got = case.model(call).generate(**case.mlx(call["inputs"]), **call["kwargs"])
    np.testing.assert_array_equal(np.array(got), case.numpy(call["outputs"]["sequences"]))


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "grad"))
def test_gradients_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    model, inputs = case.model(call), case.mlx(call["inputs"])
    _, grads = nn.value_and_grad(model, lambda: model(**inputs).loss)()
    flatten = dict(tree_flatten(grads))
    for parameter, key in call["grads"].items():
        np.testing.assert_allclose(
            np.array(flatten[parameter]), case.numpy(key), **call["tolerance"], err_msg=parameter
        )


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "calibrate"))
def test_calibrated_outputs_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    model = case.model(call)
    mlx_qwen3.calibrate(model, [case.mlx(batch) for batch in call["batches"]], method="max")
    assert_outputs(case, call, model(**case.mlx(call["inputs"])), call["tolerance"])
    quantizers = dict(model.named_quantizers())
    for quantizer, key in call["amax"].items():
        want = case.numpy(key)
        got = np.array(quantizers[quantizer].amax).reshape(want.shape)
        np.testing.assert_allclose(got, want, **call["tolerance"], err_msg=quantizer)


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "config"))
def test_configurations_equal_the_recording(name, call_id):
    _, call = find(name, call_id)
    config = mlx_qwen3.QDQBertConfig(**call["config"])
    for field, want in call["expect"].items():
        want = {int(k): v for k, v in want.items()} if field == "id2label" else want
        assert getattr(config, field) == want, field


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "fake_quant"))
def test_fake_quantizers_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    quantizer = mlx_qwen3.TensorQuantizer(**call["kwargs"])
    quantizer.amax = case.mlx(call["inputs"]["amax"])
    x = case.mlx(call["inputs"]["x"])
    np.testing.assert_array_equal(np.array(quantizer(x)), case.numpy(call["outputs"]["y"]))
    if "grad_output" in call:
        _, (got,) = mx.vjp(lambda x: quantizer(x), [x], [case.mlx(call["grad_output"])])
        np.testing.assert_array_equal(np.array(got), case.numpy(call["outputs"]["x_grad"]))


@pytest.mark.parametrize(("name", "call_id"), calls("qdq_", "calibrator"))
def test_calibrators_equal_the_recording(name, call_id):
    case, call = find(name, call_id)
    kwargs = dict(call["kwargs"])
    compute = kwargs.pop("compute", {})
    quantizer = mlx_qwen3.TensorQuantizer(**kwargs)
    quantizer.start_calibration()
    for batch in call["batches"]:
        x = case.mlx(batch)
        np.testing.assert_array_equal(np.array(quantizer(x)), np.array(x))
    quantizer.finish_calibration(**compute)
    want = case.numpy(call["outputs"]["amax"])
    np.testing.assert_allclose(np.array(quantizer.amax).reshape(want.shape), want, **call["tolerance"])

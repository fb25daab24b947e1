"""Packing: the outputs of the fake-quantized model in a quarter of the memory, also from a file."""

import logging

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
import mlx_qwen3.qdq.linear
from mlx_qwen3 import QuantizationError
from mlx_qwen3.qdq.packing import pack_codes
from tests.support import tiny_bert


def dense_bytes(model: nn.Module) -> int:
    """Return the number of bytes of the layers that can be packed."""
    names = ("query", "key", "value", "dense")
    return sum(
        array.nbytes
        for name, array in tree_flatten(model.parameters())
        if "encoder." in name and name.split(".")[-2] in names and not name.endswith(".bias")
    )


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_codes_are_stored_as_mlx_stores_them(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 96)).astype(np.uint8)
    words = mx.array(pack_codes(codes, bits))
    ones, zeros = mx.ones((3, 3)), mx.zeros((3, 3))
    got = mx.dequantize(words, ones, zeros, group_size=32, bits=bits)
    np.testing.assert_array_equal(np.array(got), codes)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_packed_weights_equal_the_fake_quantized_weights(bits):
    model = tiny_bert.calibrated(quant_desc_weight={"num_bits": bits})
    want = {
        path: np.array(layer._weight_quantizer(layer.weight))
        for path, layer in model.named_modules()
        if isinstance(layer, mlx_qwen3.qdq.linear.QuantLinear)
    }
    model.pack(bits)
    layers = dict(model.named_modules())
    for path, weight in want.items():
        layer = layers[path]
        got = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=bits)
        # the affine format adds a bias instead of dividing: a few units in the last place of the largest weight
        np.testing.assert_allclose(np.array(got), weight, rtol=0, atol=4e-7 * np.abs(weight).max(), err_msg=path)


def test_outputs_agree_within_the_rounding_of_the_products():
    model = tiny_bert.calibrated()
    model.disable_quantizers("input_quantizer")  # with them, a rounding difference may change a quantization level
    ids = tiny_bert.ids(seed=9)
    want = model(ids)
    before = dense_bytes(model)
    report = model.pack(bits=8)
    got = model(ids)
    assert len(report.packed) == 12
    assert not report.left
    np.testing.assert_allclose(np.array(got.last_hidden_state), np.array(want.last_hidden_state), atol=2e-5)
    assert dense_bytes(model) < 0.6 * before  # groups of 32 here; 0.27 with groups of 128


def test_a_packed_model_is_saved_and_loaded(tmp_path):
    model = tiny_bert.calibrated("QDQBertForSequenceClassification", num_labels=3)
    model.pack(bits=8)
    model.save_pretrained(tmp_path)
    again = mlx_qwen3.QDQBertForSequenceClassification.from_pretrained(tmp_path)
    ids = tiny_bert.ids(seed=9)
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(model(ids).logits))
    names = [name for name, _ in again.named_quantizers()]
    assert names == [name for name, _ in model.named_quantizers()]
    assert not any(name.endswith("_weight_quantizer") for name in names)


def test_a_packed_model_can_be_converted(tmp_path):
    model = tiny_bert.calibrated("QDQBertForMaskedLM")
    model.pack(bits=8)
    model.save_pretrained(tmp_path / "packed")
    mlx_qwen3.convert(tmp_path / "packed", tmp_path / "converted", report=False)
    again = mlx_qwen3.QDQBertForMaskedLM.from_pretrained(tmp_path / "converted")
    ids = tiny_bert.ids(seed=9)
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(model(ids).logits))


def test_a_calibrated_model_is_converted_to_plain_4_bit_weights(tmp_path):
    model = tiny_bert.calibrated("QDQBertForSequenceClassification")
    model.save_pretrained(tmp_path / "calibrated")
    mlx_qwen3.convert(
        tmp_path / "calibrated", tmp_path / "converted", quantize=True, q_bits=4, q_group_size=32, report=False
    )
    again = mlx_qwen3.QDQBertForSequenceClassification.from_pretrained(tmp_path / "converted")
    ranges = {name: np.array(q.amax) for name, q in model.named_quantizers()}
    assert len(again.named_quantizers()) == 28
    for name, quantizer in again.named_quantizers():
        np.testing.assert_array_equal(np.array(quantizer.amax), ranges[name], err_msg=name)
    assert mx.isfinite(again(tiny_bert.ids()).logits).all().item()


def test_scales_are_exact_in_a_half_precision_model(tmp_path):
    model = tiny_bert.calibrated()
    model.pack(bits=8)
    model.save_pretrained(tmp_path)
    again = mlx_qwen3.QDQBertModel.from_pretrained(tmp_path, dtype="bfloat16")
    layer, want = again.encoder.layer[0].intermediate.dense, model.encoder.layer[0].intermediate.dense
    np.testing.assert_array_equal(np.array(layer.scales), np.array(want.scales))
    assert again(tiny_bert.ids()).last_hidden_state.dtype == mx.bfloat16


def test_unpacking_restores_the_fake_quantized_layers(tmp_path):
    model = tiny_bert.calibrated(quant_desc_weight={"num_bits": 7})
    ranges = {name: np.array(q.amax) for name, q in model.named_quantizers()}
    model.disable_quantizers("input_quantizer")
    ids = tiny_bert.ids(seed=9)
    want = np.array(model(ids).last_hidden_state)
    model.pack(bits=8)
    assert model.unpack() == 12
    np.testing.assert_allclose(np.array(model(ids).last_hidden_state), want, atol=2e-5)
    for name, quantizer in model.named_quantizers():
        np.testing.assert_allclose(np.array(quantizer.amax), ranges[name], rtol=1e-6, err_msg=name)
    model.pack(bits=8)
    model.save_pretrained(tmp_path)
    loaded = mlx_qwen3.QDQBertModel.from_pretrained(tmp_path, unpack=True)
    np.testing.assert_allclose(np.array(loaded(ids).last_hidden_state), want, atol=2e-5)


def test_layers_that_cannot_be_packed_are_listed_and_stay_fake_quantized(caplog):
    model = tiny_bert.calibrated(intermediate_size=40)  # no group divides 40
    with caplog.at_level(logging.WARNING):
        report = model.pack(bits=8)
    assert sorted(report.left) == ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]
    assert "40 inputs" in report.left["encoder.layer.0.output.dense"]
    assert "encoder.layer.0.output.dense" in caplog.text
    assert len(report.packed) == 10
    assert model(tiny_bert.ids()).last_hidden_state.shape == (3, 7, 32)


def test_packing_before_calibrating_is_refused():
    with pytest.raises(QuantizationError, match=r"encoder\.layer\.\d.*_quantizer has no amax. Calibrate"):
        tiny_bert.model().pack()


def test_too_few_bits_are_refused_with_a_remedy():
    model = tiny_bert.calibrated()
    with pytest.raises(QuantizationError, match="quant_desc_weight"):
        model.pack(bits=4)
    with pytest.raises(QuantizationError, match="bits is 7"):
        model.pack(bits=7)


def test_rows_of_zeros_pack_to_zeros():
    model = tiny_bert.model()
    layer = model.encoder.layer[0].intermediate.dense
    layer.weight = mx.concatenate([mx.zeros((1, 32)), layer.weight[1:]])
    mlx_qwen3.calibrate(model, [tiny_bert.ids()])
    model.pack()
    packed = model.encoder.layer[0].intermediate.dense
    row = mx.dequantize(packed.weight, packed.scales, packed.biases, group_size=packed.group_size, bits=8)[0]
    assert mx.abs(row).max().item() == 0


def test_weights_with_one_range_per_tensor_are_packed():
    model = tiny_bert.calibrated(quant_desc_weight={"axis": None})
    model.disable_quantizers("input_quantizer")
    ids = tiny_bert.ids(seed=9)
    want = np.array(model(ids).last_hidden_state)
    model.pack()
    np.testing.assert_allclose(np.array(model(ids).last_hidden_state), want, atol=2e-5)
    model.unpack()
    np.testing.assert_allclose(np.array(model(ids).last_hidden_state), want, atol=2e-5)


def test_plain_4_bit_weights_keep_the_input_quantizers():
    model = tiny_bert.calibrated()
    nn.quantize(
        model,
        group_size=32,
        bits=4,
        class_predicate=lambda path, layer: "encoder" in path and hasattr(layer, "to_quantized"),
    )
    names = [name for name, _ in model.named_quantizers()]
    assert sum(name.endswith("_input_quantizer") for name in names) == len(names) == 28
    assert model(tiny_bert.ids()).last_hidden_state.shape == (3, 7, 32)
    model.unpack()
    assert not any(q.enabled for name, q in model.named_quantizers() if name.endswith("_weight_quantizer"))

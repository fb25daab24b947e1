"""FP8, GPTQ and AWQ decode to the same float32 bits as a NumPy implementation of the published layouts."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.checkpoint import foreign_weights, open_checkpoint, open_decoded_checkpoint, quantization_settings
from mlx_qwen3.errors import CheckpointError, QuantizationError
from mlx_qwen3.quantization import PackedFormat
from tests.support import packed_layouts as layouts


def opened(folder, tensors, settings, path="layer"):
    layouts.write_safetensors(folder / "model.safetensors", tensors)
    return foreign_weights(open_checkpoint(folder), settings)[path]


def same_bits(found: mx.array, expected: np.ndarray) -> bool:
    return np.array_equal(np.array(found).view(np.uint32), expected.view(np.uint32))


GPTQ = [
    (bits, order, version, group_size)
    for bits in (4, 8)
    for order in ("none", "sequential", "shuffled")
    for version in ("gptq", "gptq_v2")
    for group_size in (32,)
] + [(4, "sequential", "gptq", -1), (4, "sequential", "gptq", 64), (2, "none", "gptq", 32)]


@pytest.mark.parametrize(("bits", "order", "version", "group_size"), GPTQ)
def test_gptq_decodes_bit_for_bit(tmp_path, bits, order, version, group_size):
    tensors, expected = layouts.gptq_tensors(
        "layer", 128, 48, bits=bits, order=order, version=version, group_size=group_size
    )
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "checkpoint_format": version}
    weight = opened(tmp_path, tensors, settings)
    assert weight.shape == (48, 128)
    assert same_bits(weight.decode_rows(0, 48), expected)
    assert same_bits(weight.decode_rows(16, 40), expected[16:40])


def test_awq_decodes_bit_for_bit(tmp_path):
    tensors, expected = layouts.awq_tensors("layer", 64, 48)
    weight = opened(tmp_path, tensors, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})
    assert same_bits(weight.decode_rows(0, 48), expected)
    assert same_bits(weight.decode_rows(13, 30), expected[13:30])


@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
def test_fp8_decodes_bit_for_bit_with_partial_blocks(tmp_path, scale_dtype):
    tensors, expected = layouts.fp8_tensors("layer", 150, 200, scale_dtype=scale_dtype)
    weight = opened(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert same_bits(weight.decode_rows(0, 150), expected)
    assert same_bits(weight.decode_rows(100, 140), expected[100:140])


def test_every_e4m3_code_is_decoded(tmp_path):
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    tensors = {"layer.weight": codes, "layer.weight_scale_inv": np.ones((1, 1), np.float32)}
    found = np.array(opened(tmp_path, tensors, {"quant_method": "fp8"}).decode_rows(0, 2)).reshape(-1)
    expected = np.array([layouts.e4m3(code) for code in range(256)], np.float32)
    assert np.isnan(found[[127, 255]]).all()
    kept = np.delete(np.arange(256), [127, 255])
    assert np.array_equal(found[kept].view(np.uint32), expected[kept].view(np.uint32))


@pytest.mark.parametrize("method", ["gptq-4", "gptq-8", "gptq-whole-column", "awq"])
def test_codes_represent_the_same_weights_in_mlx(tmp_path, method):
    if method == "awq":
        tensors, expected = layouts.awq_tensors("layer", 128, 48, group_size=64)
        settings = {"quant_method": "awq", "bits": 4, "group_size": 64}
    else:
        bits, size = (8, 32) if method == "gptq-8" else (4, -1 if "whole" in method else 32)
        tensors, expected = layouts.gptq_tensors("layer", 128, 48, bits=bits, group_size=size)
        settings = {"quant_method": "gptq", "bits": bits, "group_size": size}
    weight = opened(tmp_path, tensors, settings)
    form = PackedFormat(*weight.affine_format)
    packed, scales, zeros = weight.codes(8, 40)
    scales = scales.astype(mx.float32)
    found = form.dequantize({"weight": packed, "scales": scales, "biases": -scales * zeros})
    # scale * code + bias is rounded twice, scale * (code - zero) once
    np.testing.assert_allclose(np.array(found), expected[8:40], rtol=0, atol=2.0**-22 * 0.02 * 2**form.bits)


def test_mlx_cannot_use_codes_with_reordered_columns(tmp_path):
    tensors, _ = layouts.gptq_tensors("layer", 128, 48, order="shuffled")
    weight = opened(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 32})
    assert weight.affine_format is None
    assert "g_idx" in weight.kept_apart
    with pytest.raises(QuantizationError, match="g_idx"):
        weight.codes(0, 8)


def test_a_decoded_checkpoint_has_plain_weights(tmp_path):
    tensors, expected = layouts.fp8_tensors("layer", 130, 64)
    tensors["norm.weight"] = np.ones(64, np.float32)
    layouts.write_safetensors(tmp_path / "model.safetensors", tensors)
    config = {"quantization_config": {"quant_method": "fp8"}}
    checkpoint = open_decoded_checkpoint(tmp_path, config)
    assert checkpoint.names == ["layer.weight", "norm.weight"]
    assert checkpoint.shape("layer.weight") == (130, 64)
    arrays = checkpoint.read_all()
    assert same_bits(arrays["layer.weight"], expected)
    assert open_decoded_checkpoint(tmp_path, config, mx.bfloat16).read("layer.weight").dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 32}, "3 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "gemv"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
    ],
)
def test_unsupported_methods_are_refused_by_name(tmp_path, settings, says):
    tensors, _ = layouts.gptq_tensors("layer", 64, 16)
    with pytest.raises(QuantizationError, match=says):
        opened(tmp_path, tensors, settings)


def test_tensors_that_do_not_fit_are_reported(tmp_path):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    tensors, _ = layouts.gptq_tensors("layer", 64, 16, order="sequential")
    for name, value, says in (
        ("layer.scales", tensors["layer.scales"][:1], "layer.scales"),
        ("layer.g_idx", np.full(64, 9, np.int32), "layer.g_idx"),
        ("layer.qzeros", None, "layer.qzeros"),
    ):
        broken = {key: array for key, array in {**tensors, name: value}.items() if array is not None}
        with pytest.raises(CheckpointError, match=says):
            opened(tmp_path, broken, settings)
    fp8, _ = layouts.fp8_tensors("layer", 130, 64)
    with pytest.raises(CheckpointError, match="weight_scale_inv"):
        opened(tmp_path, {**fp8, "layer.weight_scale_inv": np.ones((1, 1), np.float32)}, {"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match="without a weight_scale_inv"):
        opened(tmp_path, {"other.weight": fp8["layer.weight"]}, {"quant_method": "fp8"}, "other")


def test_settings_come_from_the_config_or_the_tools_own_file(tmp_path):
    assert quantization_settings(tmp_path, {}) is None
    assert quantization_settings(tmp_path, {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}) is None
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128, "desc_act": true}')
    assert quantization_settings(tmp_path, {})["quant_method"] == "gptq"
    assert quantization_settings(tmp_path, {"quantization_config": {"quant_method": "fp8"}})["quant_method"] == "fp8"


@pytest.mark.parametrize("grid", [(), (1,), (1, 1), (150, 1), (3, 4)])
def test_fp8_infers_a_missing_block_size_from_the_scales(tmp_path, grid):
    tensors, _ = layouts.fp8_tensors("layer", 150, 200)
    scales = np.random.default_rng(0).random(grid or ()).astype(np.float32)
    activations = {"layer.activation_scale": np.ones((), np.float32)}
    tensors = {**tensors, **activations, "layer.weight_scale_inv": np.asarray(scales)}
    weight = opened(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": None})
    rows, columns = grid if len(grid) == 2 else (1, 1)
    grown = np.repeat(np.repeat(scales.reshape(rows, columns), 150 // rows, 0), 200 // columns, 1)
    values = np.array([layouts.e4m3(code) for code in range(256)], np.float32)[tensors["layer.weight"]]
    assert same_bits(weight.decode_rows(0, 150), values * grown)
    assert same_bits(weight.decode_rows(70, 149), (values * grown)[70:149])


def test_fp8_scales_may_be_exponents(tmp_path):
    from mlx_qwen3.checkpoint.header import encode_header

    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    exponents = np.array([[120], [133]], np.uint8)
    table = {"layer.weight": ("F8_E4M3", (2, 128)), "layer.weight_scale_inv": ("F8_E8M0", (2, 1))}
    head, _ = encode_header(table, {})
    (tmp_path / "model.safetensors").write_bytes(head + codes.tobytes() + exponents.tobytes())
    settings = {"quant_method": "fp8", "weight_block_size": [1, 128]}
    found = np.array(foreign_weights(open_checkpoint(tmp_path), settings)["layer"].decode_rows(0, 2))
    values = np.array([layouts.e4m3(code) for code in range(256)], np.float32).reshape(2, 128)
    np.testing.assert_array_equal(found, values * np.array([[2.0**-7], [2.0**6]], np.float32))


@pytest.mark.parametrize("grid", [(7, 1), (2,), (1, 1, 1)])
def test_fp8_scales_that_do_not_divide_the_weight_are_refused(tmp_path, grid):
    tensors, _ = layouts.fp8_tensors("layer", 150, 200)
    tensors = {**tensors, "layer.weight_scale_inv": np.ones(grid, np.float32)}
    with pytest.raises(CheckpointError, match="does not divide"):
        opened(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": None})


def test_a_weight_stored_both_plain_and_quantized_is_refused(tmp_path):
    tensors, expected = layouts.gptq_tensors("layer", 128, 48)
    layouts.write_safetensors(tmp_path / "model.safetensors", {**tensors, "layer.weight": expected})
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    with pytest.raises(CheckpointError, match="same weight twice"):
        open_decoded_checkpoint(tmp_path, config)

"""All tensor types match the `gguf` package bit for bit, or within the documented error."""

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.checkpoint.gguf_checkpoint import open_gguf_checkpoint
from mlx_qwen3.errors import CheckpointError
from tests.support.gguf_files import SCALES, random_rows

ROUNDED = ("Q2_K", "Q6_K")
NAME = "blk.0.ffn_up.weight"
PATH = "model.layers.0.mlp.up_proj"


def write(path, kind, raw):
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tensor(NAME, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf_checkpoint(path)


def dense(checkpoint, arrays):
    bits, mode = checkpoint.formats[PATH]
    scales, biases = arrays[f"{PATH}.scales"], arrays.get(f"{PATH}.biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = arrays[f"{PATH}.weight"]
    form = {"group_size": 32, "bits": bits, "mode": mode, "dtype": mx.float32}
    return np.array(mx.dequantize(weight, scales, biases, **form))


@pytest.mark.parametrize("kind", SCALES)
def test_packed_weights_are_those_of_the_file(tmp_path, kind):
    raw = random_rows(kind, 24, 512, seed=1)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    checkpoint = write(tmp_path / "x.gguf", kind, raw)
    found = dense(checkpoint, checkpoint.read_all())
    if kind in ROUNDED:
        groups = expected.reshape(-1, 32)
        bound = np.ptp(groups, axis=1, keepdims=True) / 510 * 1.0001
        assert (np.abs(found.reshape(-1, 32) - groups) <= bound).all()
        assert checkpoint.repacked[PATH].error == pytest.approx(np.abs(found - expected).max(), rel=1e-3)
    else:
        assert np.array_equal(found, expected)
        assert not any(done.error for done in checkpoint.repacked.values())


@pytest.mark.parametrize("kind", SCALES)
def test_scales_have_the_shortest_exact_dtype(tmp_path, kind):
    checkpoint = write(tmp_path / "x.gguf", kind, random_rows(kind, 2, 256))
    short = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"}
    expected = mx.uint8 if kind == "MXFP4" else mx.float16 if kind in short else mx.float32
    arrays = checkpoint.read_all()
    assert arrays[f"{PATH}.scales"].dtype == expected
    for name, array in arrays.items():
        assert (array.shape, array.dtype) == (checkpoint.shape(name), checkpoint.dtype(name))


@pytest.mark.parametrize("kind", SCALES)
def test_read_rows_returns_rows_of_the_tensor(tmp_path, kind):
    checkpoint = write(tmp_path / "x.gguf", kind, random_rows(kind, 10, 256))
    for name, whole in checkpoint.read_all().items():
        assert mx.array_equal(checkpoint.read_rows(name, 3, 7), whole[3:7]), name
        assert mx.array_equal(checkpoint.read_now(name), whole), name


def test_large_weights_are_read_in_blocks(tmp_path, monkeypatch):
    raw = random_rows("Q4_K", 50, 256)
    checkpoint = write(tmp_path / "x.gguf", "Q4_K", raw)
    whole = checkpoint.read_all()
    monkeypatch.setattr("mlx_qwen3.checkpoint.gguf_checkpoint._BLOCK_VALUES", 7 * 256)
    for name, array in checkpoint.read_all().items():
        assert mx.array_equal(array, whole[name]), name


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floating_point_types_are_read_unchanged(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    checkpoint = write(tmp_path / "x.gguf", kind, raw)
    found = checkpoint.read(f"{PATH}.weight")
    assert str(found.dtype).endswith({"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind])
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(np.array(found.astype(mx.float32)), expected)
    assert mx.array_equal(checkpoint.read_rows(f"{PATH}.weight", 2, 5), found[2:5])


@pytest.mark.parametrize(("kind", "start", "raw"), [("Q8_0", 0, np.inf), ("Q4_K", 2, np.nan), ("Q4_0", 0, 60000)])
def test_scales_that_mlx_cannot_represent_are_refused(tmp_path, kind, start, raw):
    rows = random_rows(kind, 4, 256)
    rows[2, start : start + 2] = np.array([raw], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match=r"ffn_up.*scales"):
        write(tmp_path / "x.gguf", kind, rows).read_all()


def test_the_exponent_that_is_nan_in_mlx_is_refused(tmp_path):
    rows = random_rows("MXFP4", 4, 64)
    rows[1, 0] = 255
    with pytest.raises(CheckpointError, match=r"ffn_up.*scales"):
        write(tmp_path / "x.gguf", "MXFP4", rows).read_all()

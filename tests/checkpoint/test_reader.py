"""Opening a checkpoint: all layouts are read, files are validated, and errors name the file."""

import json
import struct

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.checkpoint import open_checkpoint, read_header, save_checkpoint
from mlx_qwen3.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def arrays():
    return {f"layers.{i}.weight": mx.random.normal((4, 8)).astype(mx.bfloat16) for i in range(6)}


def same(checkpoint, expected):
    found = checkpoint.read_all()
    assert sorted(found) == sorted(expected)
    return all(found[name].dtype == a.dtype and mx.array_equal(found[name], a).item() for name, a in expected.items())


def write_raw(path, header, body=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def test_single_files_and_shards_are_read_with_and_without_index(tmp_path):
    expected = arrays()
    save_checkpoint(tmp_path / "one", expected)
    save_checkpoint(tmp_path / "many", expected, max_shard_size=150)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    assert same(open_checkpoint(tmp_path / "one"), expected)
    assert same(open_checkpoint(tmp_path / "many"), expected)
    (tmp_path / "many" / INDEX).unlink()
    assert same(open_checkpoint(tmp_path / "many"), expected)


def test_shapes_and_bytes_come_from_headers(tmp_path):
    save_checkpoint(tmp_path, {"a": mx.zeros((3, 5)), "b": mx.array(7)})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shape("a") == (3, 5)
    assert checkpoint.dtype("a") == mx.float32
    assert checkpoint.nbytes("a") == 60
    assert checkpoint.total_bytes == 64
    assert checkpoint.metadata == {"format": "mlx"}
    assert checkpoint.read("b").item() == 7
    assert checkpoint.read_now("b").item() == 7
    assert "a" in checkpoint
    with pytest.raises(CheckpointError, match="no tensor 'c'"):
        checkpoint.read("c")


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.uint32, mx.uint8, mx.bool_])
def test_read_rows_returns_rows_of_the_tensor(tmp_path, dtype):
    whole = (10 * mx.random.normal((7, 3))).astype(dtype)
    save_checkpoint(tmp_path, {"first": mx.zeros((5,)), "a": whole})
    checkpoint = open_checkpoint(tmp_path)
    assert mx.array_equal(checkpoint.read_rows("a", 2, 6), whole[2:6]).item()
    assert mx.array_equal(checkpoint.read("a"), whole).item()


def test_float64_becomes_float32_and_8_bit_floats_become_bytes(tmp_path):
    values = np.array([1.5, -2.25])
    header = {
        "d": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]},
        "e": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [16, 18]},
        "f": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [18, 19]},
    }
    write_raw(tmp_path / "model.safetensors", header, values.tobytes() + b"\x38\xb8\x01")
    found = open_checkpoint(tmp_path).read_all()
    assert found["d"].tolist() == [1.5, -2.25]
    assert found["e"].tolist() == [0x38, 0xB8]
    assert found["f"].dtype == mx.uint8


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "empty": (b"", "truncated"),
    "short": (b"\x01\x00", "truncated"),
    "huge header": (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors"),
    "header past the end": (struct.pack("<Q", 1000) + b"{}", "truncated"),
    "no json": (b"\x04\x00\x00\x00\x00\x00\x00\x00abcd", "damaged"),
    "no table": (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not a table"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_reported(tmp_path, name):
    raw, says = BROKEN[name]
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert caught.value.__cause__ is None  # the message is sufficient, so the cause is suppressed


@pytest.mark.parametrize(
    ("header", "body", "says"),
    [
        ({"a": ENTRY}, b"\0" * 4, "truncated"),
        ({"a": ENTRY}, b"\0" * 12, "after its last tensor"),
        ({"a": {**ENTRY, "dtype": "Q4"}}, b"\0" * 8, "'Q4'"),
        ({"a": {**ENTRY, "shape": [-2]}}, b"\0" * 8, "shape"),
        ({"a": {**ENTRY, "shape": [3]}}, b"\0" * 8, "12 bytes"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"\0" * 8, "offsets"),
        ({"a": {**ENTRY, "data_offsets": "x"}}, b"\0" * 8, "offsets"),
        ({"a": ENTRY, "b": ENTRY}, b"\0" * 8, "overlap"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, b"\0" * 20, "gap"),
        ({"a": 3}, b"", "table"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
    ],
)
def test_inconsistent_headers_are_refused(tmp_path, header, body, says):
    write_raw(tmp_path / "model.safetensors", header, body)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path)


@given(st.binary(max_size=200))
def test_the_header_reader_only_raises_checkpoint_errors(tmp_path_factory, raw):
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    file.write_bytes(raw)
    try:
        read_header(file)
    except CheckpointError:
        return
    assert len(raw) >= 10  # the smallest valid file: a length and an empty table


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", 3, ""]
)
def test_shard_names_outside_the_folder_are_refused(tmp_path, shard):
    save_checkpoint(tmp_path, arrays())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="plain"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_reported(tmp_path):
    save_checkpoint(tmp_path, arrays(), max_shard_size=150)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_checkpoint(tmp_path)


def test_a_shard_missing_from_the_index_is_reported(tmp_path):
    save_checkpoint(tmp_path, arrays(), max_shard_size=150)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if "00002" not in f}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_checkpoint(tmp_path)


def test_an_index_may_list_missing_tensors_but_not_wrong_shards(tmp_path):
    save_checkpoint(tmp_path, arrays(), max_shard_size=150)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost.weight"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "ghost.weight" not in open_checkpoint(tmp_path)  # loading a model checks for missing tensors
    index["weight_map"].pop("ghost.weight")
    index["weight_map"]["layers.0.weight"] = "model-00003-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="index") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.__cause__ is None


def test_a_tensor_in_two_files_is_refused(tmp_path):
    save_checkpoint(tmp_path, {"a": mx.zeros(2)})
    (tmp_path / INDEX).unlink()
    (tmp_path / "model.safetensors").rename(tmp_path / "model-a.safetensors")
    (tmp_path / "model-b.safetensors").write_bytes((tmp_path / "model-a.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="both"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_and_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"never opened.*save_pretrained"):
        open_checkpoint(tmp_path)


def test_python_files_are_ignored(tmp_path):
    expected = arrays()
    save_checkpoint(tmp_path, expected)
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('this ran')")
    assert same(open_checkpoint(tmp_path), expected)


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\*"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>" * 3, "web page"),
        (b"\x80\x02}q\x00." * 30, "pickle"),
        (b"PK\x03\x04\x14\x00\x00\x00" + b"x" * 99, "PyTorch"),
        (b"GGUF\x03\x00\x00\x00" + b"x" * 99, "GGUF"),
    ],
)
def test_files_of_other_types_are_recognized(tmp_path, content, says):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path)


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path):
    entry = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 0x280) + entry.ljust(0x280) + b"\0\0\x80?")
    assert open_checkpoint(tmp_path).read("x").tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "says"), [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax"), ("onnx/model.onnx", "ONNX")]
)
def test_weights_of_other_frameworks_are_reported(tmp_path, name, says):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"__metadata__": {"a": 5}}, "metadata that is not"),
        ({"__metadata__": {"a": {"b": "c"}}}, "metadata that is not"),
        ({"x" * 5000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "5000 characters"),
    ],
)
def test_invalid_metadata_and_long_names_are_refused(tmp_path, entries, says):
    table = {**entries, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    raw = json.dumps(table).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    with pytest.raises(CheckpointError, match=says) as raised:
        open_checkpoint(tmp_path)
    assert len(str(raised.value)) < 300

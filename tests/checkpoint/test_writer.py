"""Writing: streamed files are valid for all readers, and a target is complete at any time."""

import errno
import json
import os

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.checkpoint import CheckpointWriter, open_checkpoint, save_checkpoint
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files import disk_error
from mlx_qwen3.folders import replace_folder

DTYPES = [mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.int32, mx.uint8, mx.int64, mx.bool_]


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_readers_read_the_same_arrays(tmp_path, dtype):
    from safetensors import safe_open

    array = (3 * mx.random.normal((5, 4))).astype(dtype)
    save_checkpoint(tmp_path, {"a.weight": array, "scalar": mx.array(2.5), "empty": mx.zeros((0, 3))})
    file = str(tmp_path / "model.safetensors")
    assert mx.array_equal(mx.load(file)["a.weight"], array).item()
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "mlx"}
        assert opened.get_tensor("scalar") == 2.5
        if dtype != mx.bfloat16:
            assert np.array_equal(opened.get_tensor("a.weight"), np.array(array))


def test_transposed_and_lazy_arrays_are_written(tmp_path):
    base = mx.arange(12).reshape(3, 4)
    save_checkpoint(tmp_path, {"t": base.T, "sum": base + 1})
    found = open_checkpoint(tmp_path).read_all()
    assert mx.array_equal(found["t"], base.T).item()
    assert mx.array_equal(found["sum"], base + 1).item()


def test_a_second_save_replaces_shards_and_index(tmp_path):
    weights = {f"w{i}": mx.full((10,), i, dtype=mx.float32) for i in range(5)}
    save_checkpoint(tmp_path, weights, max_shard_size=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert set(index["weight_map"].values()) == {f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)}
    (tmp_path / "config.json").write_text("{}")
    save_checkpoint(tmp_path, weights)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ]
    assert len(open_checkpoint(tmp_path)) == 5


def test_rows_are_written_in_any_order(tmp_path):
    whole = mx.random.normal((10, 3))
    writer = CheckpointWriter(tmp_path, {"a": ((10, 3), mx.float32), "b": ((2,), mx.int32)}, total_parameters=32)
    writer.write("b", mx.array([1, 2]))
    writer.write_rows("a", 6, whole[6:])
    with pytest.raises(CheckpointError, match="first a"):
        writer.finish()
    writer.write_rows("a", 0, whole[:6])
    writer.finish()
    assert mx.array_equal(open_checkpoint(tmp_path).read("a"), whole).item()


def test_unplanned_shapes_and_dtypes_are_refused(tmp_path):
    writer = CheckpointWriter(tmp_path, {"a": ((10, 3), mx.float32)})
    for array in (mx.zeros((3, 10)), mx.zeros((10, 3), dtype=mx.float16)):
        with pytest.raises(ValueError, match="planned"):
            writer.write("a", array)
    with pytest.raises(ValueError, match="planned"):
        writer.write_rows("a", 8, mx.zeros((3, 3)))
    writer.abandon()


def test_a_failed_save_leaves_the_folder_unchanged(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {"a": mx.ones(3)})
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="full"):
        save_checkpoint(tmp_path, {"a": mx.zeros(3)})
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


def test_a_folder_is_replaced_only_when_complete(tmp_path):
    target = tmp_path / "sub" / "target"
    with replace_folder(target) as folder:
        (folder / "a").write_text("new")
        assert not target.exists()
    assert (target / "a").read_text() == "new"
    with pytest.raises(CheckpointError, match="--force"), replace_folder(target):
        raise AssertionError("an existing target is refused first")
    with replace_folder(target, force=True) as folder:
        (folder / "a").write_text("newer")
        assert (target / "a").read_text() == "new"
    assert (target / "a").read_text() == "newer"
    assert [file.name for file in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckpointError, MemoryError])
def test_an_interrupted_run_leaves_the_target_unchanged(tmp_path, error):
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("old")

    def write_half():
        with replace_folder(target, force=True) as folder:
            (folder / "a").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert (target / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


def test_files_of_a_killed_run_are_removed(tmp_path):
    half = tmp_path / ".target.partial"
    half.mkdir()
    aside = tmp_path / ".target.replaced"
    aside.mkdir()
    (aside / "a").write_text("old")
    with pytest.raises(CheckpointError, match="exists"), replace_folder(tmp_path / "target"):
        raise AssertionError("the old target is back, so it is refused")
    assert (tmp_path / "target" / "a").read_text() == "old"
    with replace_folder(tmp_path / "target", force=True) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "target" / "a").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


def test_disk_errors_name_the_cause(tmp_path):
    assert "the disk is full" in str(disk_error(tmp_path, OSError(errno.ENOSPC, "x")))
    assert "Permission" in str(disk_error(tmp_path, OSError(errno.EACCES, "Permission denied")))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="file"), replace_folder(file, force=True):
        raise AssertionError("a file was accepted as a target")

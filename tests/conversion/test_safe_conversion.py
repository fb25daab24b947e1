"""A conversion copies no private files, detects changes of its source, and survives later failures."""

import copy
import json
import os
import pickle

import mlx.core as mx
import pytest

from mlx_qwen3 import CheckpointError, HubError, InputError, MemoryFitError, Qwen3ForCausalLM, convert
from mlx_qwen3.checkpoint import open_checkpoint, save_checkpoint
from mlx_qwen3.conversion import pipeline
from tests.support import tiny


@pytest.fixture
def source(tmp_path):
    tiny.model().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


CARDS = {
    "date": "license: 2024-13-45",
    "number": "tags: 5\nlicense: 1e999",
    "nested": "tags: " + "[" * 4000,
    "bomb": "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(40)) + "tags: *b9",
    "digits": "license: " + "9" * 5000,
    "python": "tags: !!python/object:os.system x",
}


@pytest.mark.parametrize("name", CARDS)
def test_an_invalid_card_does_not_stop_the_conversion(source, tmp_path, name):
    (source / "README.md").write_text(f"---\n{CARDS[name]}\n---\n# x\n")
    convert(source, tmp_path / "out", report=False)
    assert Qwen3ForCausalLM.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")


def test_links_out_of_the_folder_are_refused(source, tmp_path):
    (tmp_path / "secret").write_text("private")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"LICENSE is a link to .*secret"):
        convert(source, tmp_path / "out", report=False)
    assert not (tmp_path / "out").exists()
    (source / "LICENSE").unlink()
    (source / "TERMS.txt").write_text("terms")
    (source / "LICENSE").symlink_to("TERMS.txt")
    convert(source, tmp_path / "out", report=False)
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize("verify", [False, True])
def test_a_source_that_changes_is_detected(source, tmp_path, verify):
    file = source / "model.safetensors"

    def touch(done, total):
        stamp = file.stat().st_mtime_ns
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"\x01" if done % 2 else b"\x02")
        os.utime(file, ns=(stamp, stamp if verify else stamp + 1))

    with pytest.raises(CheckpointError, match="has changed during the conversion"):
        convert(source, tmp_path / "out", report=False, progress=touch, verify=verify)
    assert not (tmp_path / "out").exists()


def test_a_report_that_runs_out_of_memory_keeps_the_model(source, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryFitError("the quality report needs more memory than there is. Convert without it")

    monkeypatch.setattr(pipeline, "measure_quality", fail)
    monkeypatch.setattr(pipeline, "_check_measurable", lambda *_, **__: True)
    with pytest.raises(MemoryFitError, match="is converted, but has no quality report"):
        convert(source, tmp_path / "out", quantize=True, q_group_size=32, quantize_heads=True, report=True)
    assert Qwen3ForCausalLM.from_pretrained(tmp_path / "out")


def test_the_name_of_the_repository_is_checked_before_converting(source, tmp_path):
    with pytest.raises(HubError, match="bad name"):
        convert(source, tmp_path / "out", upload_repo="bad name!!")
    assert not (tmp_path / "out").exists()


def test_flat_weight_names_are_converted_to_those_of_mlx_lm(source, tmp_path):
    weights = open_checkpoint(source).read_all()
    save_checkpoint(source, {name.removeprefix("model."): array for name, array in weights.items()})
    convert(source, tmp_path / "out", report=False)
    out = open_checkpoint(tmp_path / "out")
    assert out.names == sorted(weights)


def test_a_model_without_output_head_has_no_report(source, tmp_path):
    weights = open_checkpoint(source).read_all()
    save_checkpoint(source, {name: array for name, array in weights.items() if not name.startswith("lm_head")})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(InputError, match="no output head"):
        convert(source, tmp_path / "out", quantize=True, q_group_size=32, report=True)
    with pytest.raises(InputError, match="no output head"):
        convert(source, tmp_path / "out", target_bpw=4.5)
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", quantize=True, q_group_size=32)
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "out")
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(InputError, match="no output head"):
            copied.generate(mx.array([[1, 2]]), max_new_tokens=2)
        copied.lm_head.weight = copied.lm_head.weight + 0
        assert copied.generate(mx.array([[1, 2]]), max_new_tokens=2).shape == (1, 4)


def test_omitted_weights_of_a_head_are_reported(source, tmp_path, caplog):
    weights = open_checkpoint(source).read_all()
    hidden = weights["model.norm.weight"].size
    save_checkpoint(source, {**weights, "score.weight": mx.ones((2, hidden))})
    convert(source, tmp_path / "out", report=False)
    assert "1 weights of heads that Qwen3ForCausalLM does not have are omitted, first score.weight" in caplog.text
    assert "score.weight" not in open_checkpoint(tmp_path / "out").names

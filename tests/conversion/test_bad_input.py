"""Conversions that are refused: the error is one clear line, and an existing target is unchanged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest

from mlx_qwen3 import convert
from mlx_qwen3.checkpoint import open_checkpoint, save_checkpoint
from mlx_qwen3.conversion import pipeline
from mlx_qwen3.errors import (
    CheckpointError,
    InputError,
    MlxQwen3Error,
    QuantizationError,
    TokenizerError,
    UnsupportedModelError,
)
from tests.support.tiny_checkpoints import write_qwen3

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("made") / "source", "Qwen3ForCausalLM", **SHAPE)


@pytest.fixture
def source(made, tmp_path):
    shutil.copytree(made, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def untouched(target):
    left = [file.name for file in target.parent.iterdir() if file.name not in ("source", "target")]
    return (target / "old").read_text() == "old" and left == []


def test_an_existing_target_is_refused_without_force(source, target):
    with pytest.raises(CheckpointError, match="--force"):
        convert(source, target)
    assert untouched(target)
    convert(source, target, force=True)
    assert not (target / "old").exists()
    assert (target / "model.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantize", [False, True])
def test_nan_and_infinite_weights_are_reported(source, target, value, quantize):
    weights = open_checkpoint(source).read_all()
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = mx.where(mx.arange(64)[:, None] == 40, value, weights[name])
    save_checkpoint(source, weights)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has NaN or infinite"):
        convert(source, target.parent / "new", quantize=quantize)
    assert untouched(target)
    done = convert(source, target, quantize=quantize, force=True, report=False)
    assert done.not_finite == [name]


def test_a_weight_that_overflows_in_a_smaller_dtype_is_reported(source, tmp_path):
    weights = open_checkpoint(source).read_all()
    save_checkpoint(source, {**weights, "model.norm.weight": weights["model.norm.weight"] * 1e6})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight .*float16"):
        convert(source, tmp_path / "out", dtype="float16")


@pytest.mark.parametrize("place", ["source", "source/inner", "."])
def test_targets_that_overlap_the_source_are_refused(source, tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Choose another target"):
        convert("source", place, force=True)
    assert open_checkpoint(source)


@pytest.mark.parametrize("place", [".", ".."])
def test_the_current_folder_is_not_replaced(source, tmp_path, place, monkeypatch):
    work = tmp_path / "projects" / "work"
    work.mkdir(parents=True)
    (work / "notes.txt").write_text("mine")
    monkeypatch.chdir(work)
    with pytest.raises(CheckpointError, match="current folder"):
        convert(source, place, force=True)
    assert (work / "notes.txt").read_text() == "mine"


def test_a_link_to_the_source_is_refused_as_target(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(CheckpointError, match="is the source"):
        convert(source, tmp_path / "link", force=True)


def test_a_disk_that_is_too_small_is_reported_before_writing(source, target, monkeypatch):
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(CheckpointError, match="GB free"):
        convert(source, target, force=True)
    assert untouched(target)


def test_a_disk_that_fills_up_leaves_the_target(source, target):
    resource = pytest.importorskip("resource")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from mlx_qwen3 import convert\n"
        "from mlx_qwen3.errors import CheckpointError\n"
        "try:\n"
        "    convert(sys.argv[1], sys.argv[2], force=True)\n"
        "except CheckpointError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    assert resource
    done = subprocess.run([sys.executable, "-c", code, source, target], capture_output=True, text=True, check=False)
    assert "refused: cannot write" in done.stderr
    assert untouched(target)


def test_a_killed_process_leaves_the_target_and_the_next_run_cleans_up(source, target):
    code = (
        "import sys, time\n"
        "from mlx_qwen3 import convert\n"
        "def progress(done, total):\n"
        "    print('on the way', flush=True)\n"
        "    time.sleep(60)\n"
        "convert(sys.argv[1], sys.argv[2], force=True, progress=progress)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, source, target], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (target / "old").read_text() == "old"
    assert [file for file in target.parent.iterdir() if "partial" in file.name]
    convert(source, target, force=True)
    assert sorted(file.name for file in target.parent.iterdir()) == ["source", "target"]


def test_ctrl_c_leaves_the_target(source, target):
    def interrupt(done, total):
        raise KeyboardInterrupt

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, force=True, progress=interrupt)
    assert untouched(target)
    assert time.perf_counter() - started < 20


def edit_config(source, **fields):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model_type": "qwen3_moe"}, UnsupportedModelError, "mlx-lm"),
        ({"architectures": ["Qwen3ForThings"]}, UnsupportedModelError, "Qwen3ForThings"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, QuantizationError, "bitsandbytes"),
        ({"model_file": "own_model.py"}, CheckpointError, "own_model.py"),
        ({"hidden_size": -4}, MlxQwen3Error, "hidden_size"),
    ],
)
def test_invalid_configurations_are_refused(source, target, fields, error, says):
    edit_config(source, **fields)
    with pytest.raises(error, match=says):
        convert(source, target, force=True)
    assert untouched(target)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"quantize": True, "dequantize": True}, InputError, "exclude each other"),
        ({"q_bits": 4}, InputError, "Add quantize"),
        ({"quantize": True, "q_bits": 7}, QuantizationError, "7 bits"),
        ({"quantize": True, "quant_predicate": "mixed"}, InputError, "mixed_2_6"),
        ({"quantize": True, "q_overrides": ["w_proj=8"]}, QuantizationError, "w_proj"),
        ({"quantize": True, "q_group_size": 128}, QuantizationError, "no layer"),
        ({"quantize": True, "q_bits": 0}, QuantizationError, "0 bits"),
        ({"q_bits": 0}, InputError, "q_bits .*Add quantize"),
        ({"quantize_heads": True}, InputError, "quantize_heads .*Add quantize"),
        ({"dequantize": True, "q_bits": 4}, InputError, "q_bits and dequantize"),
        ({"dequantize": True, "quantize_heads": True}, InputError, "quantize_heads and dequantize"),
        ({"dequantize": True, "target_bpw": 4.5}, InputError, "exclude each other"),
        ({"target_bpw": 4.5, "quant_predicate": "mixed_3_6"}, InputError, "target_bpw and quant_predicate"),
        ({"target_bpw": 4.5, "quant_predicate": lambda *layer: True}, InputError, "target_bpw and quant_predicate"),
        ({"target_bpw": 4.5, "q_bits": 4}, InputError, "target_bpw and q_bits"),
        ({"target_bpw": 4.5, "q_group_size": 32}, InputError, "target_bpw and q_group_size"),
        ({"target_bpw": 4.5, "q_mode": "mxfp4"}, InputError, "target_bpw and q_mode"),
        ({"quantize": True, "quant_predicate": "mixed_3_6", "q_bits": 4}, InputError, "mixed_3_6 .*q_bits"),
        ({"quantize": True, "report": False, "report_text": "own.txt"}, InputError, "report_text"),
        ({"revision": "main"}, InputError, "Omit revision"),
        ({"dtype": "int8"}, QuantizationError, "int8"),
        ({"target_bpw": 1.0}, InputError, "target_bpw"),
        ({"quantize": True, "report_text": "/no/such/text"}, InputError, "/no/such/text"),
    ],
)
def test_invalid_and_contradictory_options_are_refused(source, target, options, error, says):
    with pytest.raises(error, match=says):
        convert(source, target, force=True, **options)
    assert untouched(target)


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "a"}', '{"prompt": 1, "completion": "b"}'])
def test_lines_without_prompt_and_completion_are_reported_by_number(source, target, line):
    (source.parent / "source" / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        convert(source, target, quantize=True, force=True, report_text=source / "pairs.jsonl")
    assert untouched(target)


def test_a_report_without_a_tokenizer_is_refused(source, target):
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        convert(source, target, quantize=True, report=True, force=True)
    assert untouched(target)
    assert convert(source, target, quantize=True, force=True).quality is None


def test_a_damaged_tokenizer_raises_only_if_the_report_is_required(source, target):
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError):
        convert(source, target, quantize=True, force=True, report=True)
    assert untouched(target)
    assert convert(source, target, quantize=True, force=True).quality is None


def test_code_in_the_source_is_not_copied(source, target):
    (source / "modeling_own.py").write_text("raise SystemExit('this ran')")
    edit_config(source, auto_map={"AutoModel": "modeling_own.Model"})
    convert(source, target, force=True)
    assert not list(target.glob("*.py"))
    assert "auto_map" not in json.loads((target / "config.json").read_text())

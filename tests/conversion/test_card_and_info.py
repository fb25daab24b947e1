"""The model card, `info`, uploading and the command line."""

import argparse
import errno
import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from mlx_qwen3 import Qwen3Config, cache_bytes, convert
from mlx_qwen3.cli import convert as convert_verb
from mlx_qwen3.cli import info as info_verb
from mlx_qwen3.conversion import describe
from mlx_qwen3.conversion.upload import upload_folder
from mlx_qwen3.errors import CheckpointError, HubError, InputError
from tests.support.tiny_checkpoints import write_bert, write_qwen3

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}


def metadata(folder):
    text = (folder / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1]), text


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Qwen3ForCausalLM", "text-generation"),
        ("Qwen3ForSequenceClassification", "text-classification"),
        ("Qwen3ForTokenClassification", "token-classification"),
        ("Qwen3ForQuestionAnswering", "question-answering"),
        ("Qwen3Model", "feature-extraction"),
        ("QDQBertForMaskedLM", "fill-mask"),
        ("QDQBertForMultipleChoice", "multiple-choice"),
    ],
)
def test_the_card_has_the_task_of_the_head(tmp_path, name, tag):
    write = write_bert if name.startswith("QDQ") else write_qwen3
    source = write(tmp_path / "source", name, **({} if name.startswith("QDQ") else SHAPE))
    convert(source, tmp_path / "out")
    found, text = metadata(tmp_path / "out")
    assert found["library_name"] == "mlx"
    assert found["pipeline_tag"] == tag
    assert "mlx" in found["tags"]
    assert name in text
    assert 'load("out")' in text
    assert str(tmp_path) not in text


def test_the_card_keeps_metadata_of_the_source(tmp_path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **SHAPE)
    (source / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: [en, zh]\nbase_model: Qwen/Qwen3-0.6B\npipeline_tag: text-ranking\n"
        "tags: [reranker]\n---\n# A reranker\n"
    )
    convert(source, tmp_path / "out", quantize=True, report=False, command="mlx-qwen3 convert --hf-path x -q")
    found, text = metadata(tmp_path / "out")
    assert found["license"] == "apache-2.0"
    assert found["base_model"] == "Qwen/Qwen3-0.6B"
    assert found["base_model_relation"] == "quantized"
    assert found["pipeline_tag"] == "text-ranking"
    assert found["tags"] == ["reranker", "mlx", "mlx-qwen3", "4-bit"]
    assert "mlx-qwen3 convert --hf-path x -q" in text
    (source / "README.md").write_text("---\n: [\n---\n")
    convert(source, tmp_path / "out2")
    assert metadata(tmp_path / "out2")[0]["library_name"] == "mlx"


def test_the_card_of_a_second_conversion_describes_that_conversion(tmp_path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **SHAPE)
    bits = lambda name: [tag for tag in metadata(tmp_path / name)[0]["tags"] if tag.endswith("-bit")]  # noqa: E731
    convert(source, tmp_path / "six", quantize=True, q_bits=6, report=False)
    assert bits("six") == ["6-bit"]
    convert(tmp_path / "six", tmp_path / "copy")
    assert bits("copy") == ["6-bit"]
    # A tag written by an earlier version must not be kept either.
    convert(tmp_path / "six", tmp_path / "plain", dequantize=True)
    assert bits("plain") == []
    text = (tmp_path / "plain" / "README.md").read_text()
    (tmp_path / "plain" / "README.md").write_text(text.replace("- mlx-qwen3\n", "- mlx-qwen3\n- 6-bit\n", 1))
    assert bits("plain") == ["6-bit"]
    convert(tmp_path / "plain", tmp_path / "four", quantize=True, report=False)
    assert bits("four") == ["4-bit"]
    convert(tmp_path / "plain", tmp_path / "mixed", quantize=True, q_overrides=["v_proj=8"], report=False)
    assert bits("mixed") == []


def test_the_command_in_the_card_reproduces_the_folder(tmp_path, monkeypatch):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **SHAPE)
    monkeypatch.chdir(tmp_path)
    out, text = tmp_path / "my out", tmp_path / "own.txt"
    text.write_text("a text of my own, long enough to be measured on")
    words = ["--hf-path", str(source), "--mlx-path", str(out), "--target-bpw", "5", "--dtype", "bfloat16"]
    args = parser().parse_args(["convert", *words, "--calibration-text", str(text), "--report-text", str(text)])
    assert args.run(args) == 0
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    command = metadata(out)[1].split("```bash\n")[-1].split("\n```")[0]
    assert "--calibration-text own.txt" in command  # the text does not change the result for such a small model
    assert str(tmp_path) not in (out / "README.md").read_text()
    out.rename(tmp_path / "moved")
    args = parser().parse_args(shlex.split(command)[1:])
    assert args.run(args) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first


def test_info_counts_parameters_without_reading_weights(tmp_path):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **SHAPE)
    plain = describe(source)
    kv = 2 * 32 * 64 + 2 * 64 * 64
    norms = 3 * 64 + 2 * 16
    assert plain.parameters == 2 * 416 * 64 + kv + 3 * 64 * 64 + norms
    assert plain.bits_per_weight == 32
    assert plain.head == "text-generation"
    assert plain.context == 512
    assert plain.format == "F32"
    cache = cache_bytes(Qwen3Config.from_pretrained(source), 512, dtype="float32")
    assert plain.memory == {512: plain.bytes + cache}
    assert cache >= 512 * 1 * 2 * 2 * 16 * 4
    convert(source, tmp_path / "out", quantize=True, report=False)
    packed = describe(tmp_path / "out")
    assert packed.parameters == plain.parameters
    assert packed.format == "MLX affine 4-bit, groups of 64"
    assert packed.bits_per_weight < 6
    long = describe(write_qwen3(tmp_path / "long", "Qwen3ForCausalLM", **SHAPE, max_position_embeddings=40960))
    assert list(long.memory) == [4096, 32768, 40960]
    bert = describe(write_bert(tmp_path / "bert", "QDQBertForMaskedLM"))
    assert (bert.architecture, bert.head) == ("QDQBertForMaskedLM", "fill-mask")
    assert list(bert.memory.values()) == [bert.bytes]


def test_memory_of_sliding_layers_is_limited_to_their_window(tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 0}
    kinds = {"full": {}, "sliding": window}
    shape = {**SHAPE, "max_position_embeddings": 2048}
    memory = {
        name: describe(write_qwen3(tmp_path / name, "Qwen3ForCausalLM", **shape, **fields)).memory[2048]
        for name, fields in kinds.items()
    }
    slots = 2048 - 100 - 2 * 264  # caches grow in steps, which are larger than this window
    assert memory["full"] - memory["sliding"] >= slots * 1 * 2 * 2 * 16 * 4


def parser():
    main = argparse.ArgumentParser()
    verbs = main.add_subparsers()
    convert_verb.add_parser(verbs)
    info_verb.add_parser(verbs)
    return main


def test_convert_and_info_print_their_results(tmp_path, capsys):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **{**SHAPE, "intermediate_size": 48})
    words = ["convert", "--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "-q", "--no-report"]
    args = parser().parse_args([*words, "--q-override", "v_proj=8"])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "bits per weight" in out
    assert "model.layers.0.mlp.down_proj" in out
    command = (tmp_path / "out" / "README.md").read_text()
    assert "--q-override v_proj=8" in command
    args = parser().parse_args(["info", str(tmp_path / "out")])
    assert args.run(args) == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    args = parser().parse_args(["info", str(tmp_path / "out"), "--json"])
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 512


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(tmp_path, capsys, monkeypatch):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **SHAPE)
    text = tmp_path / "own.txt"
    text.write_text("a text of my own, long enough to be measured on")
    words = ["convert", "--hf-path", str(source), "--target-bpw", "5", "--dtype", "bfloat16", "--mlx-path"]
    texts = ["--calibration-text", str(text), "--report-text", str(text)]
    args = parser().parse_args([*words, str(tmp_path / "silent"), *texts])
    assert args.run(args) == 0
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    args = parser().parse_args([*words, str(tmp_path / "seen"), *texts])
    assert args.run(args) == 0
    shown = terminal.getvalue()
    for what in ("measuring layers: ", "converting: ", "measuring quality: ", "measuring plain 4-bit: "):
        assert f"{what}  0%" in shown
        assert f"{what}100%" in shown
    assert "measuring" not in capsys.readouterr().out


def test_a_calibration_text_needs_a_target(tmp_path):
    args = parser().parse_args(["convert", "--model", str(tmp_path), "-q", "--calibration-text", "own.txt"])
    with pytest.raises(InputError, match="calibration_text needs target_bpw"):
        args.run(args)


def test_ctrl_c_prints_how_to_continue(tmp_path, capsys, monkeypatch):
    source = write_qwen3(tmp_path / "source", "Qwen3ForCausalLM", **SHAPE)

    def interrupt(self, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_verb.ProgressBar, "__call__", interrupt)
    args = parser().parse_args(["convert", "--model", str(source), "--mlx-path", str(tmp_path / "out")])
    assert args.run(args) == 130
    assert "is unchanged. Run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_upload_creates_the_repository_and_reports_errors(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    calls = []

    class Api:
        def create_repo(self, **options):
            calls.append(("create", options))

        def upload_folder(self, **options):
            calls.append(("upload", options))
            if options["repo_id"] == "me/refused":
                raise LocalTokenNotFoundError("no token")
            if options["repo_id"] == "me/down":
                raise ConnectionError("down")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert upload_folder(tmp_path, "me/model") == "https://huggingface.co/me/model"
    assert [name for name, _ in calls] == ["create", "upload"]
    for repo, says in (("me/refused", "hf auth login"), ("me/down", "cannot upload")):
        with pytest.raises(HubError, match=says):
            upload_folder(tmp_path, repo)


def test_an_unreadable_card_is_omitted_and_an_unreadable_file_raises(tmp_path, caplog, monkeypatch):
    folder = write_qwen3(tmp_path / "m", "Qwen3ForCausalLM")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    denied, opened = {"README.md"}, Path.open

    def open_unless_denied(path, *arguments, **options):
        if path.name in denied and path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_unless_denied)
    convert(folder, tmp_path / "a", report=False)
    assert "README.md cannot be read (Permission denied)" in caplog.text
    (folder / "notes.json").write_text("{}")
    denied.add("notes.json")
    with pytest.raises(CheckpointError, match=r"cannot read .*notes\.json: Permission denied"):
        convert(folder, tmp_path / "b", report=False)
    assert not (tmp_path / "b").exists()

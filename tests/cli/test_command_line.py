"""Verbs, one-line errors, exit statuses, and the sources of the prompt."""

import io
import os
import signal
import subprocess
import sys

import pytest

from mlx_qwen3.cli import main
from mlx_qwen3.cli.main import VERBS, make_parser
from tests.support.scripted import byte_tokenizer
from tests.support.tiny import model as tiny_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(vocab_size=261, max_position_embeddings=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def generate(checkpoint):
    return ["generate", "--model", checkpoint, "--seed", "1", "--max-tokens", "8"]


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main(["--version"]) == 0
    assert main([]) == 2
    assert main(["frobnicate"]) == 2


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_prints_its_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


def test_only_the_module_of_the_verb_is_imported():
    code = (
        "import sys; from mlx_qwen3.cli import main; main(['--help']);"
        "assert not {'mlx.core', 'mlx_qwen3.cli.chat', 'prompt_toolkit', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_generate_repeats_its_answer_with_the_same_seed(generate, capsys):
    assert main([*generate, "--prompt", "hi"]) == 0
    first = capsys.readouterr()
    assert main([*generate, "--prompt", "hi"]) == 0
    assert capsys.readouterr().out == first.out != ""
    assert first.err == ""
    assert main([*generate[:-4], "--seed", "2", "--max-tokens", "8", "--prompt", "hi"]) == 0
    assert capsys.readouterr().out != first.out


def test_generate_reads_standard_input(generate, capsys, monkeypatch):
    assert main([*generate, "--prompt", "hi", "--ignore-chat-template", "--temp", "0.9"]) == 0
    first = capsys.readouterr().out
    for given in (["--prompt", "-"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
        assert main([*generate, *given, "--ignore-chat-template", "--temp", "0.9"]) == 0
        assert capsys.readouterr().out == first


def test_the_prompt_can_be_a_positional_argument(generate, capsys):
    assert main([*generate, "--prompt", "hi"]) == 0
    first = capsys.readouterr().out
    for given in ([generate[0], "hi", *generate[1:]], [*generate, "hi"]):
        assert main(given) == 0
        assert capsys.readouterr().out == first
    assert main([*generate, "hi", "--prompt", "hi"]) == 2
    assert "not allowed with argument TEXT" in capsys.readouterr().err


def test_verbose_prints_memory_and_speed(generate, capsys):
    assert main([*generate, "--prompt", "hi", "-v"]) == 0
    shown = capsys.readouterr().err
    assert "cache for 256 tokens" in shown
    assert "answer: 8 tokens at" in shown


def test_a_prompt_cache_is_saved_and_loaded(generate, capsys, tmp_path):
    path = tmp_path / "cache.safetensors"
    command = [*generate, "--prompt", "hi", "--temp", "0", "-v", "--prompt-cache-file", str(path)]
    assert main(command) == 0
    first = capsys.readouterr()
    assert main(command) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "prompt: 1 tokens" in second.err
    assert "20 more from the cache" in second.err
    path.write_text("nonsense")
    assert main(command) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", " "], "prompt is empty"),
        (["--prompt", "hi", "--top-p", "3"], "top_p"),
        (["--prompt", "hi", "--temp", "-1"], "temperature"),
        (["--prompt", "hi", "--max-tokens", "0"], "--max-tokens"),
        (["--prompt", "hi", "--max-kv-size", "2"], "max_kv_size"),
        (["--prompt", "x" * 300], "the model holds 256"),
        (["--prompt", "hi", "--ignore-chat-template", "--system-prompt", "x"], "--system-prompt"),
        (["--prompt", "hi", "--thinking-budget", "-1"], "--thinking-budget"),
        (["--prompt", "hi", "--wired-limit", "1"], "Metal"),
        (["--prompt", "hi", "--kv-bits", "8", "--kv-group-size", "64"], "head_dim"),
    ],
)
def test_errors_are_one_line_and_exit_2(generate, capsys, arguments, words):
    assert main([*generate, *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == (2 if "--help for a list" in shown else 1)  # errors of argparse have a second line
    assert shown.startswith("mlx-qwen3")


def test_models_that_cannot_generate_are_one_line_errors(tmp_path, capsys):
    assert main(["generate", "--model", str(tmp_path / "none"), "--prompt", "hi"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}')
    assert main(["generate", "--model", str(tmp_path), "--prompt", "hi"]) == 2
    assert "mlx-lm" in capsys.readouterr().err
    tiny_model("Qwen3ForTokenClassification").save_pretrained(tmp_path)
    assert main(["generate", "--model", str(tmp_path), "--prompt", "hi"]) == 2
    assert "does not generate text" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused_with_figures(generate, capsys, monkeypatch):
    monkeypatch.setattr("mlx_qwen3.memory.machine_memory", lambda: 100_000)
    assert main([*generate, "--prompt", "hi"]) == 2
    assert "does not fit: weights" in capsys.readouterr().err


def test_a_model_that_does_not_fit_can_be_forced(generate, monkeypatch, caplog):
    monkeypatch.setattr("mlx_qwen3.memory.machine_memory", lambda: 1000)
    assert main([*generate, "--prompt", "hi", "--max-tokens", "2", "--force"]) == 0
    assert "does not fit and may end the process" in caplog.text


def test_ctrl_c_exits_130(generate, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_qwen3.generation.stream.decode_steps", interrupted)
    assert main([*generate, "--prompt", "hi"]) == 130
    assert "Traceback" not in capsys.readouterr().err


OUT_OF_MEMORY = [
    "[malloc] Unable to allocate 1 bytes.",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError…)",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY, ids=["allocator", "metal"])
def test_out_of_memory_is_a_one_line_error(generate, monkeypatch, capsys, message):
    def fails(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr("mlx_qwen3.generation.stream.decode_steps", fails)
    assert main([*generate, "--prompt", "hi"]) == 2
    assert capsys.readouterr().err.startswith("mlx-qwen3: out of memory")


def test_a_process_stops_on_ctrl_c_and_on_a_closed_pipe(checkpoint):
    command = [sys.executable, "-m", "mlx_qwen3", "generate", "--model", checkpoint, "--prompt", "hi", "--temp", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in errors
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
        assert b"Traceback" not in errors
        assert b"BrokenPipe" not in errors


def test_the_parser_has_the_flags_of_the_verb():
    parser = make_parser(["generate", "--prompt", "x"])
    assert parser.parse_args(["generate", "--prompt", "x"]).prompt == "x"

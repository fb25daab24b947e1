"""Errors of the user are one line with exit status 2, whatever was typed or piped."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen3 import CheckpointError, QuantizationError, convert
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.cli.main import VERBS, main, make_parser
from mlx_qwen3.cli.model_flags import warn_if_slow

COMMAND = [sys.executable, "-m", "mlx_qwen3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "-p", "hi", "--seed", "-1"], "seed is -1, expected a whole number from 0"),
        (["generate", "-p", "hi", "--seed", str(1 << 64)], "expected a whole number from 0 to 2^64 - 1"),
        (["generate", "-p", "hi", "--presence-penalty", "nan"], "presence_penalty is nan"),
        (["generate", "-p", "hi", "--repetition-penalty", "inf"], "repetition_penalty is inf"),
        (["generate", "-p", "hi", "--kv-group-size", "32"], "need --kv-bits"),
        (["generate", "-p", "hi", "--revision", "main"], "--revision needs --model"),
        (["generate", "-p", "hi", "--thinking", "off", "--thinking-budget", "5"], "--thinking-budget needs thinking"),
        (["generate", "-p", "hi", "--prompt-cache-file", "."], "is a folder"),
        (["bench", "--random", "tiny", "--output", "."], "is a folder"),
        (["answer", "--question", "", "a text"], "the question is empty"),
        (["info", "~nobody-of-that-name/x"], "there is no folder"),
        (["convert", "--hf-path", "~nobody-of-that-name/x", "--revision", "main"], "there is no folder"),
        (["classify", "--labels", "", "hello"], "--labels names no label"),
        (["classify", "--labels", " ,", "hello"], "--labels names no label"),
    ],
)
def test_invalid_values_are_reported_in_the_last_line(arguments, words, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message.splitlines()[-1]
    assert "Traceback" not in message


@pytest.mark.parametrize("locale", ["C.UTF-8", "en_US.UTF-8", "C"])
def test_rows_from_stdin_that_are_not_utf8_are_refused(locale):
    found = subprocess.run([*COMMAND, "classify"], input=b"caf\xe9\n", capture_output=True, env={"LC_ALL": locale})
    assert found.returncode == 2
    assert found.stdout == b""
    assert b"stdin: is not UTF-8 text" in found.stderr


def test_a_byte_order_mark_is_skipped():
    found = subprocess.run([*COMMAND, "classify"], input=b"\xef\xbb\xbfhello\n", capture_output=True)
    assert found.returncode == 0
    assert b"hello" in found.stdout
    assert b"\xef\xbb\xbf" not in found.stdout


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_prompt_that_is_not_utf8_is_refused(verb):
    found = subprocess.run([*COMMAND, verb], input=b"caf\xe9\n", capture_output=True)
    assert found.returncode == (1 if verb == "chat" else 2)
    assert found.stdout == b""
    assert found.stderr.splitlines()[-1].endswith(b"stdin: is not UTF-8 text. Convert it to UTF-8.")


def run_with_closed(stream, *arguments):
    """Run the command with a stream that the shell has closed, and return the finished process."""
    command = ["sh", "-c", f'exec "$@" {stream}', "sh", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_help_that_cannot_be_written_is_an_error(arguments, buffered):
    with open("/dev/full", "wb") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
        found = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, env=environment, text=True)
    assert found.returncode == 2
    assert found.stderr == "mlx-qwen3: the output: No space left on device. Free some space on the disk.\n"


@pytest.mark.parametrize("verb", ["generate", "chat", "classify"])
def test_a_closed_input_is_a_one_line_error(verb):
    found = run_with_closed("0<&-", verb)
    assert found.returncode == 2
    assert "the standard input is closed. Give the text on the command line" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr


def test_a_chat_with_a_closed_input_reports_one_line():
    found = run_with_closed("0<&-", "chat")
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert found.stdout == ""


def test_a_chat_with_a_closed_input_answers_the_message_of_the_command_line():
    found = run_with_closed("0<&-", "chat", "hi", "--max-tokens", "4")
    assert found.returncode == 0
    assert "the standard input is closed" not in found.stderr


@pytest.mark.parametrize("arguments", [["generate", "-p", "hi", "-m", "8", "--seed", "1"], ["classify", "hi"]])
def test_a_closed_input_is_ignored_by_verbs_that_read_nothing(arguments):
    found = run_with_closed("0<&-", *arguments)
    assert found.returncode == 0
    assert found.stdout


@pytest.mark.parametrize("arguments", [["generate", "-p", "hi"], ["info", "x"], ["chat"], ["classify", "hi"]])
def test_a_closed_output_is_a_one_line_error(arguments):
    found = run_with_closed(">&-", *arguments)
    assert found.returncode == 2
    assert found.stderr == ("mlx-qwen3: the standard output is closed. Leave it open, or redirect it with > FILE.\n")


def test_messages_are_not_printed_among_results_if_standard_error_is_closed():
    found = run_with_closed("2>&-", "classify", "hi")
    assert found.returncode == 0
    assert found.stdout.startswith('{"text": "hi"')


@pytest.mark.parametrize("flag", ["--bits", "--group-size"])
@pytest.mark.parametrize("model", [[], ["--model", "q4"]])
def test_bench_quantizes_random_weights_only(flag, model, capsys):
    assert main(["bench", *model, flag, "4"]) == 2
    assert capsys.readouterr().err.startswith(f"mlx-qwen3: {flag} needs --random SIZE")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["caht"], ". Did you mean chat?"),
        (["chat", "--modle", "x"], "--modle. Did you mean --model?"),
        (["classify", "--format", "tabel", "x"], ". Did you mean table?"),
        (["chat", "--zzz"], "--zzz"),
    ],
    ids=str,
)
def test_misspelled_verbs_flags_and_choices_get_a_suggestion(arguments, suggestion, capsys):
    assert main(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(suggestion)
    assert second.startswith("Run mlx-qwen3")


@pytest.mark.parametrize("arguments", [["generate", "several", "words"], ["chat", "hello", "words"]])
def test_surplus_words_are_refused_in_two_lines(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"mlx-qwen3 {arguments[0]}: unrecognized arguments: words. Put a text with spaces in quotes\n"
        f"Run mlx-qwen3 {arguments[0]} --help for a list of the flags\n"
    )


@pytest.mark.parametrize("name", ["", "~no-such-user/x", "./x", "a/b/c"])
def test_missing_models_are_one_line_errors(name, capsys):
    assert main(["generate", "-p", "hi", "--model", name]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert (f"there is no folder {name}." if name else "'' names no model") in message


SLOW = "--dtype float16 is many times slower than float32 on a CPU. Leave --dtype out\n"


def test_a_dtype_that_is_slow_on_a_cpu_is_warned_about(monkeypatch, capsys):
    for arguments in (["generate", "-p", "hi", "-m", "1"], ["classify", "hi"]):
        assert main([*arguments, "--dtype", "float16"]) == 0
        assert capsys.readouterr().err.startswith(SLOW)
        for quiet in ([], ["--dtype", "float32"]):
            assert main([*arguments, *quiet]) == 0
            assert "--dtype" not in capsys.readouterr().err
    flags = {"verb": "generate", "dtype": "float16"}
    for other, warning in (({"device": "cpu"}, SLOW), ({"device": "gpu"}, ""), ({"verb": "convert"}, "")):
        warn_if_slow(Namespace(**{**flags, **other}))
        assert capsys.readouterr().err == warning
    monkeypatch.setattr("mlx.core.default_device", lambda: mx.Device(mx.DeviceType.gpu, 0))
    warn_if_slow(Namespace(**flags))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_one_line_error():
    with Path("/dev/full").open("w") as full:
        found = subprocess.run([*COMMAND, "info", str(bundled_model_path())], stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 2
    assert (
        found.stderr.decode().strip() == "mlx-qwen3: the output: No space left on device. Free some space on the disk."
    )


def test_target_bpw_is_refused_before_layers_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_qwen3.conversion.pipeline.formats_for_target", lambda *given: pytest.fail("searched"))
    with pytest.raises(QuantizationError, match="already quantized"):
        convert(bundled_model_path(), tmp_path / "new", target_bpw=4.5)
    with pytest.raises(CheckpointError, match="exists"):
        convert(bundled_model_path(), tmp_path, target_bpw=4.5)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_flag_with_a_value_states_its_default(verb, capsys):
    main([verb, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    options = next(action for action in make_parser([verb])._actions if action.choices).choices[verb]._actions
    flags = [one for one in options if one.option_strings and one.nargs != 0 and not one.required]
    assert text.count("default") >= len([one for one in flags if one.help != "==SUPPRESS=="])


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "hi"],
        ["chat", "hi"],
        ["classify", "hi"],
        ["embed", "hi"],
        ["bench"],
        ["serve"],
        ["train", "--task", "text-generation", "--data", "x.txt", "--output", "x"],
    ],
    ids=lambda words: words[0],
)
def test_a_revision_needs_a_repository(words, capsys):
    assert main([*words, "--revision", "main"]) == 2
    assert "--revision needs --model" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["chat", "generate", "classify", "embed", "train", "merge", "serve", "bench", "info"])
def test_every_verb_that_loads_from_the_hub_takes_a_revision(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "--revision" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--cache-memory", "--prefix-cache", "--max-body"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "much", "-1"])
def test_sizes_of_the_server_are_finite_numbers(flag, value, capsys):
    assert main(["serve", f"{flag}={value}"]) == 2
    error = capsys.readouterr().err
    assert f"{value!r} is not a number" in error or "expected" in error

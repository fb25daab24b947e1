"""What a user can put right is one line and status 2, whatever was typed or piped."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_qwen3 import CheckpointError, QuantizationError, convert
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.cli.main import main

COMMAND = [sys.executable, "-m", "mlx_qwen3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "-p", "hi", "--seed", "-1"], "seed is -1, expected a whole number from 0"),
        (["generate", "-p", "hi", "--seed", str(1 << 64)], "expected a whole number from 0 to 2^64 - 1"),
        (["generate", "-p", "hi", "--presence-penalty", "nan"], "presence_penalty is nan"),
        (["generate", "-p", "hi", "--repetition-penalty", "inf"], "repetition_penalty is inf"),
        (["classify", "--labels", "", "hello"], "--labels names no label"),
        (["classify", "--labels", " ,", "hello"], "--labels names no label"),
    ],
)
def test_values_out_of_range(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize("locale", ["C.UTF-8", "en_US.UTF-8", "C"])
def test_stdin_that_is_not_utf8(locale):
    found = subprocess.run([*COMMAND, "classify"], input=b"caf\xe9\n", capture_output=True, env={"LC_ALL": locale})
    assert found.returncode == 2
    assert found.stdout == b""
    assert b"stdin: is not UTF-8 text (byte 3)" in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_output():
    with Path("/dev/full").open("w") as full:
        found = subprocess.run([*COMMAND, "info", str(bundled_model_path())], stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 2
    assert found.stderr.decode().strip() == "mlx-qwen3: the output: No space left on device"


def test_a_search_for_formats_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_qwen3.conversion.pipeline.formats_for_target", lambda *given: pytest.fail("searched"))
    with pytest.raises(QuantizationError, match="quantized already"):
        convert(bundled_model_path(), tmp_path / "new", target_bpw=4.5)
    with pytest.raises(CheckpointError, match="exists"):
        convert(bundled_model_path(), tmp_path, target_bpw=4.5)

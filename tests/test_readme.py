"""README keeps its word: the transcript is real output, the code runs, the commands are those of CI."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from mlx_qwen3.cli import main
from mlx_qwen3.cli.main import make_parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(marker):
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL).group(1)


def test_the_transcript_is_real_output(monkeypatch, capsys):
    command, *lines = block("transcript").splitlines()
    asked = [line[2:] for line in lines if line.startswith("> ")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(asked) + "\n"))
    assert main(command.removeprefix("$ mlx-qwen3 ").split()) == 0
    answered = "\n".join(line for line in lines if not line.startswith("> "))
    assert capsys.readouterr().out.strip() == answered.strip()


def test_the_python_on_the_first_screen_runs():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) == 5
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert "pathname components" in printed.getvalue()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_that_takes_the_bundled_model_runs(code):
    if not re.search(r"load\(\)|pipeline\([^,]*\)\(", code):
        pytest.skip("names a model to download")
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", re.findall(r"^mlx-qwen3 .*", README, re.MULTILINE))
def test_every_command_parses(line):
    arguments = shlex.split(line)[1:]
    assert make_parser(arguments).parse_args(arguments).verb == arguments[0]


@pytest.mark.parametrize("marker", ["chat", "tests"])
def test_both_commands_set_everything_up(marker):
    command = block(marker)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert command.count("\n") == 1


def test_every_file_that_readme_names_is_there():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
    tree = re.search(r"```text\nconvert\.py(.*?)```", README, re.DOTALL).group(1)
    named = set(re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.MULTILINE))
    present = {f"{p.name}/" for p in (root / "mlx_qwen3").iterdir() if p.is_dir() and p.name != "__pycache__"}
    present |= {p.name for p in (root / "mlx_qwen3").glob("*.py") if not p.name.startswith("__")}
    assert named == present

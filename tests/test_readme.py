"""README is correct: outputs are real, the code runs, the commands are those of CI, the tables are current."""

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from mlx_qwen3.cli import main
from mlx_qwen3.cli.main import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)


def block(marker):
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL).group(1)


def test_the_transcript_is_real_output(monkeypatch, capsys):
    command, *lines = block("transcript").splitlines()
    asked = [line[2:] for line in lines if line.startswith("> ")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(asked) + "\n"))
    assert main(command.removeprefix("$ mlx-qwen3 ").split()) == 0
    answered = "\n".join(line for line in lines if not line.startswith("> "))
    assert capsys.readouterr().out.strip() == answered.strip()


def test_the_first_command_answers_without_a_terminal(monkeypatch, capsys):
    arguments = shlex.split(block("chat"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(arguments[arguments.index(".venv/bin/mlx-qwen3") + 1 :]) == 0
    assert "Join two or more pathname components" in capsys.readouterr().out


def test_every_example_is_shown_with_its_output():
    assert len(EXAMPLES) == README.count("```python") == 4


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_an_example_prints_what_is_shown(code, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().strip() == output.strip()


@pytest.mark.parametrize("line", re.findall(r"(?:^|[`])(mlx-qwen3 [a-z]+ [^`\n]*)", README, re.MULTILINE))
def test_every_command_parses(line):
    arguments = shlex.split(line)[1:]
    assert make_parser(arguments).parse_args(arguments).verb == arguments[0]


@pytest.mark.parametrize("marker", ["chat", "tests"])
def test_both_commands_create_an_environment_and_install(marker):
    command = block(marker)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert command.count("\n") == 1


def test_the_table_of_models_equals_the_output_of_the_script():
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "scripts" / "model_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shown = re.search(r"<!-- model table -->\n(.*?)\n+<!-- /model table -->", README, re.DOTALL).group(1)
    assert shown == script.table()


def test_figures_of_readme_equal_those_of_the_benchmarks():
    import json

    rows = json.loads((ROOT / "benchmarks" / "speed.json").read_text(encoding="utf-8"))["rows"]
    for key, text in (("prompt", "run {:.2f} to {:.2f} times"), ("decode", "decoding {:.2f} to {:.2f} times")):
        ratios = [row[key] for row in rows]
        assert text.format(min(ratios), max(ratios)) in " ".join(README.split())
    for row in json.loads((ROOT / "benchmarks" / "conversion.json").read_text(encoding="utf-8"))["rows"]:
        assert f"{row['peak_mb']:,} MB" in README


def test_every_file_that_readme_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tree_of_the_architecture_lists_every_folder():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\nconvert\.py(.*?)```", text, re.DOTALL).group(1)
    named = set(re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.MULTILINE))
    package = ROOT / "mlx_qwen3"
    present = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    present |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == present

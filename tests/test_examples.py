"""Every script in examples/ runs unchanged; those for QDQBert run in tests/qdq/test_specification.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN_ELSEWHERE = {"qdqbert_deploy.py", "qdqbert_training.py"}
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name not in RUN_ELSEWHERE)


def run(script: str) -> str:
    """Return what an example prints."""
    command = [sys.executable, str(ROOT / "examples" / script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in ("extract.py", "tools.py")])
def test_an_example_runs_and_prints_something(script: str):
    assert run(script).strip()


def test_the_extraction_prints_ten_valid_records():
    records = [json.loads(line.partition(" <- ")[0]) for line in run("extract.py").splitlines()]
    assert len(records) == 10
    assert all(set(record) == {"module", "kind", "arguments"} for record in records)
    assert {record["kind"] for record in records} <= {"function", "class", "constant"}


def test_the_required_tool_is_called_and_its_result_shown():
    out = run("tools.py")
    assert "call: convert_length({" in out
    assert "result: " in out

"""The types that an editor shows to a user of the package."""

import json
import subprocess
import sys
from pathlib import Path

import mlx_qwen3

SCRIPT = Path(__file__).parent / "typing" / "user_script.py"


def test_a_type_checker_reports_misspellings_and_infers_result_types(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    package = str(
        Path(mlx_qwen3.__file__).parents[1]
    )  # an editable install is an import hook, which pyright cannot follow
    settings = {"include": ["script.py"], "extraPaths": [package], "typeCheckingMode": "standard"}
    settings["pythonVersion"] = "3.11"
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--project", str(tmp_path)]
    done = subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = {one["range"]["start"]["line"] + 1: one["message"] for one in found if one["severity"] == "error"}
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    expected = [number for number, line in enumerate(lines, 1) if line.endswith("# error")]
    assert sorted(errors) == expected, errors

"""The example of training runs and prints the expected labels."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_classifier_example_runs():
    script = Path(__file__).parents[2] / "examples" / "train_classifier.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "['file' 'thread']" in result.stdout
    assert "'label': 'thread'" in result.stdout

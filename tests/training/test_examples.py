"""The example of training runs and says what it should."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_example_of_a_classifier_runs():
    script = Path(__file__).parents[2] / "examples" / "train_classifier.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "['file' 'thread']" in done.stdout
    assert "'label': 'thread'" in done.stdout

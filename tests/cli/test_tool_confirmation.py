"""Tool calls in a chat on a terminal: a function runs only after the answer yes."""

import os
import sys
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONS = '''
from typing import Literal


def lamp(room: Literal["hall"], on: bool) -> str:
    """Switch a lamp.

    Args:
        room: where it is
        on: on or off
    """
    return "the lamp was switched"
'''
SCRIPT = """
import sys

sys.path.insert(0, {root!r})
import mlx_qwen3.cli.constraint_flags as flags
from mlx_qwen3.cli.main import main

plain = flags.tool_options  # the bundled model does not call tools by itself
flags.tool_options = lambda args: {{**plain(args), "tool_choice": "required", "max_tool_rounds": 1}}
options = ["--thinking", "off", "--seed", "0", "-m", "60", "--plain", "--no-history"]
sys.exit(main(["chat", "Light, please.", "--tools", {tools!r}, *options, *sys.argv[1:]]))
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "tools.py").write_text(FUNCTIONS)
    (tmp_path / "chat.py").write_text(SCRIPT.format(root=str(ROOT), tools=str(tmp_path / "tools.py")))
    running = []

    def run(*flags):
        environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        command = [str(tmp_path / "chat.py"), *flags]
        running.append(pexpect.spawn(sys.executable, command, env=environment, encoding="utf-8", timeout=60))
        return running[-1]

    yield run
    for child in running:
        child.close(force=True)


@pytest.mark.parametrize(("typed", "result"), [("y", "the lamp was switched"), ("", "did not allow this call")])
def test_a_call_waits_for_confirmation(start, typed, result):
    child = start()
    child.expect(r'lamp\(\{"room": "hall", "on": (true|false)\}\)')
    child.expect(r"Run lamp\? \[y/N\]")
    child.sendline(typed)
    child.expect(result)


def test_yes_skips_the_confirmation(start):
    child = start("--yes")
    assert child.expect(["the lamp was switched", r"Run lamp\?"]) == 0

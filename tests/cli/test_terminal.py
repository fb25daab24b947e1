"""The chat on a terminal: tests type into a pseudo-terminal and read the screen of a terminal emulator."""

import os
import random
import sys
import time

import pexpect
import pyte
import pytest

from tests.support.scripted_terminal import SCRIPT


class Screen:
    """A chat with a scripted model in a terminal of `columns` x `rows` characters."""

    def __init__(self, tmp_path, answers, columns=80, rows=60, delay=0.0, arguments=()):
        script = tmp_path / "chat.py"
        script.write_text(SCRIPT.format(answers=answers, delay=delay, arguments=list(arguments)), encoding="utf-8")
        environment = {**os.environ, "TERM": "xterm-256color", "HOME": str(tmp_path), "COLUMNS": str(columns)}
        environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "LINES": str(rows)}
        environment.pop("NO_COLOR", None)
        self.child = pexpect.spawn(
            sys.executable,
            [str(script)],
            env=environment,
            dimensions=(rows, columns),
            encoding="utf-8",
            timeout=20,
            cwd=str(tmp_path),
        )
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.Stream(self.screen)
        self.raw = ""

    def read(self, seconds=0.3):
        """Read until there was no output for `seconds`, and return the lines of the screen that are not blank."""
        quiet = time.time() + seconds
        while time.time() < quiet:
            try:
                text = self.child.read_nonblocking(65536, 0.05)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
            self.raw += text
            self.stream.feed(text)
            if "\x1b[6n" in text:  # prompt_toolkit asks where the cursor is
                self.child.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
            quiet = time.time() + seconds
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def wait(self, words, seconds=20):
        """Read until the screen shows these words, and return its lines."""
        end = time.time() + seconds
        while time.time() < end:
            lines = self.read(0.1)
            if any(words in line for line in lines):
                return lines
        raise AssertionError(f"{words!r} is not on the screen: {self.read()}")

    def wait_for(self, condition, seconds=20):
        """Read until the condition holds or the time is up, and return whether it holds."""
        end = time.time() + seconds
        while time.time() < end and not condition():
            self.read(0.1)
        return condition()

    def say(self, text):
        self.child.send(text + "\r")


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(*answers, **options):
        screen = Screen(tmp_path, answers, **options)
        opened.append(screen)
        screen.wait(">>>")
        return screen

    yield open_terminal
    for screen in opened:
        screen.child.close(force=True)


PASTED = '"""A module."""\n\n\ndef f(x):\n    """Return x."""\n    return x\n'


def test_a_pasted_file_with_docstrings_is_one_message(terminal):
    screen = terminal("Seen.")
    screen.child.send(f"\x1b[200~{PASTED}\x1b[201~\r")
    screen.wait("Seen.")
    screen.say("/save talk.json")
    screen.wait("Saved 2 messages")
    import json

    saved = json.loads((screen_folder(screen) / "talk.json").read_text())
    assert saved["messages"][0]["content"].strip() == PASTED.strip()
    assert saved["sampling"] is not None


def screen_folder(screen):
    from pathlib import Path

    return Path(os.fsdecode(screen.child.args[1])).parent


def test_a_line_that_begins_with_a_path_is_sent(terminal):
    screen = terminal("It is a folder.")
    screen.say("/etc is missing")
    assert any("It is a folder." in line for line in screen.wait("It is a folder."))


@pytest.mark.parametrize("columns", [32, 100])
def test_answers_are_wrapped_at_words(terminal, columns):
    words = [f"word{index:02}" for index in range(40)]
    screen = terminal(" ".join(words), columns=columns)
    screen.say("?")
    lines = screen.wait("word39")
    assert all(len(line) <= columns for line in lines)
    shown = " ".join(lines).split()
    assert [word for word in shown if word.startswith("word")] == words


def test_tab_completes_a_command_and_up_recalls_a_whole_block(terminal):
    screen = terminal("Seen.", "Again.", "Third.")
    screen.child.send(f"\x1b[200~{PASTED}\x1b[201~\r")
    screen.wait("Seen.")
    screen.read(0.3)
    screen.child.send("\x1b[A")
    screen.wait("return x")
    screen.child.send("\r")
    screen.wait("Again.")
    screen.child.send("/sa\t")
    screen.wait(">>> /save")
    screen.child.send(" talk.json\r")
    screen.wait("Saved 4 messages")
    import json

    messages = json.loads((screen_folder(screen) / "talk.json").read_text())["messages"]
    assert messages[0]["content"] == messages[2]["content"]
    assert messages[0]["content"].strip() == PASTED.strip()


def test_markdown_is_rendered_and_code_is_unchanged(terminal):
    code = "def area(r):\n    return 3.14 * r * r  # " + "x" * 90
    screen = terminal(f"Some **bold** words.\n\n- one\n- two\n\n```python\n{code}\n```\n\nDone.")
    screen.say("?")
    lines = screen.wait("Done.")
    text = "\n".join(lines)
    assert "**bold**" not in text
    assert "bold" in text
    assert " • one" in text
    assert "def area(r):" in lines
    assert "    return 3.14 * r * r  # " + "x" * (80 - 27) in lines  # a long line continues on the next row


def test_ctrl_c_at_random_times_stops_only_the_answer(terminal):
    # more answers than messages, because the number used depends on the times
    screen = terminal(*["word " * 60 + "end."] * 12, delay=0.004)
    times = random.Random(3)
    for _ in range(10):
        screen.say("go on")
        time.sleep(0.05 + 0.4 * times.random())
        screen.child.sendintr()
        screen.read(0.3)
        assert screen.child.isalive()
        assert "Traceback" not in screen.raw
    screen.wait(">>>")
    before = len(screen.raw)
    screen.say("and now?")
    assert screen.wait_for(lambda: "end." in screen.raw[before:])
    screen.say("/exit")
    screen.child.expect(pexpect.EOF)


def test_text_typed_during_an_answer_is_the_next_message(terminal):
    screen = terminal("word " * 80, "Second.", delay=0.004)
    screen.say("first")
    time.sleep(0.5)
    screen.child.send("typed ahead")
    lines = screen.wait(">>> typed ahead")
    assert sum("typed ahead" in line for line in lines) == 1
    screen.child.send("\r")
    screen.wait("Second.")


def test_misspelled_commands_are_reported_and_exit_ends_the_chat(terminal):
    screen = terminal("Not asked.")
    screen.say("/no_thnk")
    screen.wait("Did you mean /no_think?")
    screen.say("/reset2")
    screen.wait("there is no command /reset2")
    screen.say("/?")
    screen.wait("/bye")
    screen.say("/exit")
    screen.child.expect(pexpect.EOF)
    assert "Not asked" not in screen.raw


def test_hidden_thinking_shows_a_progress_indicator(terminal):
    screen = terminal(
        "<think>\n" + "deep " * 60 + "\n</think>\n\nAnswer.", delay=0.004, arguments=["--thinking", "hide"]
    )
    screen.say("?")
    screen.wait("Answer.")
    assert "thinking" in screen.raw
    assert "deep" not in screen.raw

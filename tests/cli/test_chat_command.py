"""The chat in the terminal: commands, messages of several lines, history, and Ctrl-C."""

import signal
import sys

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_qwen3.chat import ChatSession
from mlx_qwen3.cli.chat import COMMANDS, Conversation
from mlx_qwen3.cli.interrupts import defer_interrupts
from mlx_qwen3.cli.line_input import line_reader, read_message, state_folder
from mlx_qwen3.cli.printing import AnswerPrinter, quiet_terminal
from tests.support.scripted import ScriptedModel, byte_tokenizer, saying

TOKENIZER = byte_tokenizer()


def conversation(*answers, thinking="dim", **options):
    session = ChatSession(ScriptedModel(saying(TOKENIZER, *answers)), TOKENIZER, **options)
    return Conversation(session, thinking)


def lines(*given):
    """Return a reader that returns these lines, and raises the exceptions among them."""
    rest = iter(given)

    def read(prompt):
        line = next(rest, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def test_a_conversation_runs_until_the_end_of_the_input(capsys):
    chat = conversation("One.", "Two.", thinking="off")
    assert chat.loop(lines("first", "", "second")) == 0
    assert capsys.readouterr().out == "One.\nTwo.\n"
    assert len(chat.session.messages) == 4


def test_quiet_terminal_leaves_a_pipe_unchanged(tmp_path, monkeypatch):
    (tmp_path / "messages").write_text("Hi\n", encoding="utf-8")
    with (tmp_path / "messages").open(encoding="utf-8") as messages:
        monkeypatch.setattr(sys, "stdin", messages)
        with quiet_terminal():
            assert sys.stdin.readline() == "Hi\n"


def test_commands_print_and_change_the_conversation(tmp_path, capsys):
    chat = conversation("One.", "Two.", thinking="off")
    path = tmp_path / "talk.json"
    chat.loop(
        lines(
            "/stats", "/system Be kind.", "first", "/stats", "/retry", f"/save {path}", "/clear", "/undo",
            f"/load {path}", "second", "/undo", "/no_think", "/think", "/save", "/frobnicate", "/help",
            "/bye", "not read",
        )
    )  # fmt: skip
    shown = capsys.readouterr()
    assert shown.out == "One.\nOne.\nTwo.\n"
    messages = shown.err
    for words in (
        "there is no answer yet",
        "system prompt is set",
        "tokens/s",
        "Saved 2 messages to",
        "is cleared",
        "no message to remove",
        "Loaded 2 messages",
        "Removed: second",
        "Thinking is off",
        "Thinking is on",
        "/save needs a name",
        "no command /frobnicate",
        *(command for command, (line, _) in COMMANDS.items() if line),
    ):
        assert words in messages
    assert chat.over
    assert chat.session.system == "Be kind."


def test_reasoning_is_shown_between_tags_without_styles(capsys):
    answer = "<think>\nhm\n</think>\n\nYes."
    conversation(answer).take("?")
    assert capsys.readouterr().out == "<think>\nhm\n</think>\n\nYes.\n"
    conversation(answer, thinking="hide").take("?")
    assert capsys.readouterr().out == "Yes.\n"


def test_reasoning_is_dimmed_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    conversation("<think>\n[b]hm[/b]\n</think>\n\nYes.").take("?")
    shown = capsys.readouterr().out
    assert "\x1b[2;3m" in shown
    assert "<think>" not in shown
    assert shown.rstrip().endswith("Yes.")
    monkeypatch.setenv("NO_COLOR", "1")
    assert AnswerPrinter("dim")._console is None


def test_control_characters_of_a_model_do_not_reach_the_terminal(monkeypatch, capsys):
    conversation("a\x1b[2Jb\tc\nd").take("?")
    assert "\x1b[2J" in capsys.readouterr().out  # a pipe gets every byte
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    conversation("a\x1b[2Jb\tc\nd").take("?")
    shown = capsys.readouterr().out
    assert "a\ufffd[2Jb" in shown
    assert "\x1b[2J" not in shown


def test_no_think_can_be_followed_by_a_message(capsys):
    chat = conversation("One.")
    chat.take("/no_think first")
    assert not chat.session.thinking
    assert capsys.readouterr().out == "One.\n"


def test_a_long_answer_is_printed_completely(capsys):
    conversation("word " * 150, thinking="off").take("?")
    assert capsys.readouterr().out == "word " * 150 + "\n"


def test_ctrl_c_stops_the_answer_and_the_chat_continues(capsys):
    chat = conversation("A long answer that goes on and on.", "Two.", thinking="off")
    plain = chat.session.model.reply
    count = 0

    def reply(seen):
        nonlocal count
        count += 1
        if count == 7:
            signal.raise_signal(signal.SIGINT)
        return plain(seen)

    chat.session.model.reply = reply
    assert chat.loop(lines("first", "second")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "A long answer that goes on and on.".startswith(first)
    assert 0 < len(first) < 12
    assert second == "Two."
    assert chat.session.messages[1]["content"] == first


def test_ctrl_c_during_the_prefill_removes_the_message():
    chat = conversation("One.", thinking="off")
    chat.session._prefill_step_size = 4
    plain, fired = chat.session.model.fill_cache, []

    def fill(ids, cache):
        if not fired:
            fired.append(True)
            signal.raise_signal(signal.SIGINT)
        plain(ids, cache)

    chat.session.model.fill_cache = fill
    chat.take("first")
    assert chat.session.messages == []
    assert len(chat.session.cached_ids) == chat.session.cache.offset == 4
    chat.take("first")
    assert chat.session.messages[1]["content"] == "One."


def test_a_second_ctrl_c_raises_immediately():
    before = signal.getsignal(signal.SIGINT)
    with defer_interrupts() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.made
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_of_a_terminal_only_clears_the_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    chat = conversation("One.", thinking="off")
    assert chat.loop(lines(KeyboardInterrupt(), "first")) == 0
    assert "Ctrl-D" in capsys.readouterr().out


def test_three_quotes_enclose_a_message_of_several_lines():
    assert read_message(lines('"""one', "two", 'three"""')) == "one\ntwo\nthree"
    assert read_message(lines('"""', "  code", '"""')) == "  code"
    assert read_message(lines('"""short"""')) == "short"
    assert read_message(lines("plain")) == "plain"


def test_an_unclosed_message_is_not_sent(monkeypatch, capsys):
    chat = conversation("One.", thinking="off")
    assert chat.loop(lines('"""one', "two")) == 1
    assert (
        capsys.readouterr().err
        == 'the input ended inside a message that begins with """; it was not sent. Close it with """.\n'
    )
    assert chat.session.messages == []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    chat = conversation("One.", thinking="off")
    assert chat.loop(lines('"""one', EOFError(), "first")) == 0  # on a terminal, the chat continues
    assert capsys.readouterr().out == "One.\n"


@pytest.mark.parametrize("line", ["/frobnicate", "/stats", "x" * 5000])  # the last one is longer than the context
def test_the_exit_status_reports_errors_of_piped_messages(line, monkeypatch, capsys):
    assert conversation("One.", thinking="off").loop(lines(line, "/help")) == 1
    assert conversation("One.", thinking="off").loop(lines("first")) == 0
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert conversation("One.", thinking="off").loop(lines(line)) == 0


def test_lines_can_be_edited_and_are_saved_in_the_history(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with create_pipe_input() as keys:
        read = line_reader(True, input=keys, output=DummyOutput())
        keys.send_text("helo\x1b[Dl\r")  # left arrow, then the missing letter
        assert read_message(read) == "hello"
        keys.send_text("\x1b[A\r")  # up: the line before
        assert read_message(read) == "hello"
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            read_message(read)
    history = tmp_path / "mlx-qwen3" / "chat_history"
    assert "+hello" in history.read_text()
    before = history.read_text()
    with create_pipe_input() as keys:
        keys.send_text("secret\r")
        assert read_message(line_reader(False, input=keys, output=DummyOutput())) == "secret"
    assert history.read_text() == before


def test_the_history_folder_follows_the_platform(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert state_folder().parts[-2:] == ("Application Support", "mlx-qwen3")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_folder().parts[-3:] == (".local", "state", "mlx-qwen3")

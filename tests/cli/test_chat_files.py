"""Chat commands that take names: invalid names are one-line errors and lose nothing; Tab completes names."""

import json
import sys

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from mlx_qwen3.chat import ChatSession
from mlx_qwen3.cli.chat import COMMANDS, Conversation
from mlx_qwen3.cli.line_input import cached_models, make_completer
from mlx_qwen3.errors import HubError
from tests.support.scripted import ScriptedModel, byte_tokenizer, saying

TOKENIZER = byte_tokenizer()


def session(*answers, **options):
    return ChatSession(ScriptedModel(saying(TOKENIZER, *answers)), TOKENIZER, **options)


@pytest.fixture
def chat(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    conversation = Conversation(session("One.", "Two."), "off")
    conversation.take("first")
    return conversation


INVALID_NAMES = [
    ".",
    "/",
    "..",
    "x" * 300,
    "a\0b",
    "",
    "   ",
    '""',
    "no-such-folder/x",
    "~no-such-user/x",
    "folder",
    "/dev/full",
]


@pytest.mark.parametrize("name", INVALID_NAMES)
@pytest.mark.parametrize("command", ["/save", "/load"])
def test_invalid_names_are_one_line_errors_and_lose_nothing(chat, capsys, tmp_path, command, name):
    (tmp_path / "folder").mkdir()
    chat.take(f"{command} {name}")
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert len(message) < 400
    assert len(chat.session.messages) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    chat.take("second")
    assert len(chat.session.messages) == 4


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}', "[" * 100_000, '"x"', "\x00", '{"messages": 5}'])
def test_files_without_a_conversation_are_one_line_errors(chat, capsys, tmp_path, content):
    (tmp_path / "odd.json").write_text(content, encoding="utf-8")
    before = (tmp_path / "odd.json").read_bytes()
    for command in ("/load odd.json", "/save odd.json"):
        chat.take(command)
        assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "odd.json").read_bytes() == before
    assert len(chat.session.messages) == 2


@pytest.mark.parametrize("typed", ['"my talk.json"', "'my talk.json'", "my talk.json"])
def test_quotes_around_a_name_are_not_part_of_it(chat, tmp_path, typed):
    chat.take(f"/save {typed}")
    assert json.loads((tmp_path / "my talk.json").read_text(encoding="utf-8"))["messages"]


def test_an_existing_file_is_overwritten_only_after_confirmation(chat, tmp_path, monkeypatch, capsys):
    chat.take("/save talk.json")
    before = (tmp_path / "talk.json").read_bytes()
    chat.take("second")
    answers = iter(["n\n", "\n", "y\n"])
    monkeypatch.setattr(
        sys, "stdin", type("Terminal", (), {"isatty": lambda _: True, "readline": lambda _: next(answers)})()
    )
    for _ in range(2):
        chat.take("/save talk.json")
        assert (tmp_path / "talk.json").read_bytes() == before
    chat.take("/save talk.json")
    assert len(json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]) == 4
    assert capsys.readouterr().err.count("Overwrite it?") == 3


def test_a_conversation_continues_with_another_model(chat, capsys):
    opened = []

    def open_model(name):
        if name == "missing":
            raise HubError("there is no folder missing. Check the name")
        opened.append(name)
        opened_session = session("Other.")
        opened_session.model_name = name
        return opened_session

    chat.open_model = open_model
    chat.session.system, chat.session.thinking = "Be kind.", False
    chat.take("/model missing")
    assert "no folder missing" in capsys.readouterr().err
    assert len(chat.session.messages) == 2
    chat.take('/model "other model"')
    chat.take("second")
    assert opened == ["other model"]
    assert [m["content"] for m in chat.session.messages] == ["first", "One.", "second", "Other."]
    assert (chat.session.system, chat.session.thinking) == ("Be kind.", False)
    chat.take("/model")
    assert "The current model is other model." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "added"),
    [
        ("/sa", ["/save"]),
        ("/mo", ["/model"]),
        ("/save ta", ["lk.json"]),
        ("/load ", ["folder", "talk.json"]),
        ("/model Qwen/Q", ["Qwen/Qwen3-0.6B"]),
        ("/model f", ["older"]),
        ("a/sa", []),
        ("/stats ", []),
    ],
)
def test_tab_completes_commands_files_and_models(monkeypatch, tmp_path, typed, added):
    (tmp_path / "talk.json").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hub" / "models--Qwen--Qwen3-0.6B" / "snapshots").mkdir(parents=True)
    (tmp_path / ".hub" / "models--half" / "blobs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / ".hub"))
    assert cached_models() == ["Qwen/Qwen3-0.6B"]
    found = make_completer(tuple(COMMANDS)).get_completions(Document(typed), CompleteEvent())
    assert [completion.text for completion in found if not completion.text.startswith(".")] == added

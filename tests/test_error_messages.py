"""Error messages have one form: "<what is wrong>: <value>. <next step>.", in one line that ends with a period."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen3 import errors

PACKAGE = Path(errors.__file__).parent
CLASSES = {name: 0 for name in vars(errors) if name.endswith("Error")} | {"ApiError": 1, "error": 0, "type": 0}
"""Class of an error -> index of its message; `error` and `type(error)` stand for a class in a variable."""

SENTENCES = {"NOTHING_ALLOWED", "advice", "error", "hint", "pieces", "problem"}
"""Names of complete sentences and of other errors, which may end a message."""


def messages(tree: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Yield the literal messages of the errors that a source creates."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            function = call.func.func if isinstance(call.func, ast.Call) else call.func
            index = CLASSES.get(function.id) if isinstance(function, ast.Name) else None
            if index is not None and len(call.args) > index:
                yield from literals(call.args[index])


def literals(node: ast.expr) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Yield the strings that an expression may evaluate to, and that are written out in it."""
    if isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)
    elif isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node


def faults(message: ast.Constant | ast.JoinedStr) -> list[str]:
    """Return what is wrong with the form of a message."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    last = parts[-1]
    if isinstance(last, ast.FormattedValue):
        ends = isinstance(last.value, ast.Name) and last.value.id in SENTENCES
    else:
        ends = text.endswith((".", "?")) and not text.endswith((" .", ".."))
    return [
        fault
        for fault, found in {
            "does not end with a period": not ends,
            "has several lines": "\n" in text,
            "has repeated spaces": "  " in text,
        }.items()
        if found
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_error_messages_have_one_form(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"line {text.lineno}: {fault}: {ast.unparse(text)}" for text in messages(tree) for fault in faults(text)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('InputError("top_k is -1, expected 0 or more")', "does not end with a period"),
        ('InputError(f"unknown option {name!r}")', "does not end with a period"),
        ('InputError(f"{name} is {value}. Correct it. ")', "does not end with a period"),
        ('ApiError(400, "the body is empty")', "does not end with a period"),
        ('InputError("a." if one else "b")', "does not end with a period"),
        ('error("the file is empty")', "does not end with a period"),
        ('InputError("one line.\\nanother line.")', "has several lines"),
        ('InputError("two  spaces.")', "has repeated spaces"),
    ],
)
def test_faults_of_a_message_are_reported(source, fault):
    assert [found for text in messages(ast.parse(source)) for found in faults(text)] == [fault]


@pytest.mark.parametrize(
    "source",
    [
        'InputError("top_k is -1, expected 0 or more.")',
        'InputError(f"unknown option {name!r}. {hint}")',
        'type(error)(f"prompt {number}: {error}")',
        'HubError("the Hub does not answer. Is the network up?")',
        'ValueError("an internal error")',
        "InputError(message)",
    ],
)
def test_correct_messages_are_accepted(source):
    assert [found for text in messages(ast.parse(source)) for found in faults(text)] == []

"""Reasoning and answer are separated however the stream is split into pieces."""

import pytest

from mlx_qwen3.chat import ThinkingParser

TEXTS = [
    ("<think>\nplan\n\nmore\n</think>\n\nDone.\n", False, "plan\n\nmore", "Done.\n"),
    ("<think>\n\n</think>\n\nDone.", False, "", "Done."),
    ("plan</think>Done.", True, "plan", "Done."),
    ("plan </thin k> still\n", True, "plan </thin k> still\n", ""),
    ("Done. <think>no reasoning</think>", False, "", "Done. <think>no reasoning</think>"),
    ("  <think>x</think>y", False, "x", "y"),
    ("<thin", False, "", "<thin"),
    ("a </think> b </think> c", True, "a ", " b </think> c"),
    ("", False, "", ""),
]


@pytest.mark.parametrize(("text", "inside", "reasoning", "answer"), TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_result_does_not_depend_on_the_pieces(text, inside, reasoning, answer, size):
    parser = ThinkingParser(inside)
    pieces = [piece for at in range(0, len(text), size) for piece in parser.feed(text[at : at + size])]
    pieces += parser.flush()
    got = tuple("".join(p.text for p in pieces if p.kind == kind) for kind in ("reasoning", "answer"))
    assert got == (reasoning, answer)


def test_answer_text_is_emitted_at_once():
    parser = ThinkingParser()
    assert [p.text for p in parser.feed("Hel")] == ["Hel"]
    assert [p.text for p in parser.feed("lo <")] == ["lo <"]

"""The documentation keeps its word: its Python runs, its commands run or at least parse, its links lead somewhere.

Models of the Hub are stood for by tiny checkpoints in the current folder, under the same names. A block after
`<!-- only parsed: reason -->` is not run: it needs another machine, a port, or files of the reader.
"""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import tiny_checkpoints

from mlx_qwen3.cli import main
from mlx_qwen3.cli.main import make_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"(<!-- only parsed: [^>]+ -->\n)?^( *)```(\w+)\n(.*?)^\2```", re.DOTALL | re.MULTILINE)
MODELS = {
    "Qwen/Qwen3-0.6B": (tiny_checkpoints.write_qwen3, "Qwen3ForCausalLM"),
    "Qwen/Qwen3-4B": (tiny_checkpoints.write_qwen3, "Qwen3ForCausalLM"),
    "Qwen/Qwen3-Embedding-0.6B": (tiny_checkpoints.write_qwen3, "Qwen3ForCausalLM"),
    "Qwen/Qwen3-Reranker-0.6B": (tiny_checkpoints.write_qwen3, "Qwen3ForSequenceClassification"),
    "bert-base-uncased": (tiny_checkpoints.write_bert, "QDQBertForMaskedLM"),
}


def blocks(page):
    """The page's code blocks as (language, code, whether it is run)."""
    for skip, indent, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE), not skip


def commands(code):
    """The command lines of a shell block, continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("mlx-qwen3 ")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name, (write, cls) in MODELS.items():
        config = {"num_labels": 1} if cls == "Qwen3ForSequenceClassification" else {}
        write(root / name, cls, **config)
    return root


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page, checkpoints, tmp_path, monkeypatch):
    for name in MODELS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(checkpoints / name)
    for file in (ROOT / "tests" / "data" / "docs").glob("*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "documentation"}
    for language, code, runs in blocks(page):
        if language == "python":
            compiled = compile(code, str(page), "exec")
            if runs:
                exec(compiled, names)
        elif language == "bash":
            for command in commands(code):
                arguments = shlex.split(command)[1:]
                assert make_parser(arguments).parse_args(arguments).verb == arguments[0], command
                if runs:
                    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
                    assert main(arguments) == 0, command


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!http|#)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target

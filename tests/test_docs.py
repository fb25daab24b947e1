"""The documentation is correct: its code runs, its links and pictures exist, and it builds without warnings.

Models of the Hub are replaced by tiny checkpoints in a Hub cache, under the same names, and the reader's files by small
ones. A server that a page starts runs on a free port while the rest of the page runs. A block after
`<!-- only parsed: reason -->` is checked for its syntax and not run.
"""

import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from mlx_qwen3.cli import main
from mlx_qwen3.cli.main import make_parser
from mlx_qwen3.quantization import quality
from tests.support import gguf_files, tiny_checkpoints
from tests.support.running_server import Running
from tests.support.scripted import CHAT_TEMPLATE

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"(<!-- only parsed: [^>]+ -->\n)?^( *)```(\w+)\n(.*?)^\2```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:mlx\.launch .* -- |\.venv/bin/)?mlx-qwen3 (.*)")
MODELS = {
    "Qwen/Qwen3-0.6B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-4B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-Embedding-0.6B": "Qwen3ForCausalLM",
    "Qwen/Qwen3-Reranker-0.6B": "Qwen3ForSequenceClassification",
    "bert-base-uncased": "QDQBertForMaskedLM",
}
COMMIT = "0" * 40
VERDICTS = {"is excellent": "praise", "broke at once": "complaint", "or not?": "question"}
THINGS = ("The lamp", "This book", "My phone", "The soup", "Our sofa", "A chair")
ROWS = [(f"{thing} {verdict}", label) for thing in THINGS for verdict, label in VERDICTS.items()]


def blocks(page: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield the page's code blocks as (language, code, whether it is run)."""
    for skip, indent, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE), not skip


def commands(code: str) -> list[str]:
    """Return the commands of a shell block: continued lines and quoted newlines joined, comments removed."""
    found: list[str] = []
    pending = ""
    for line in code.replace("\\\n", " ").splitlines():
        pending += line
        if pending.count("'") % 2:
            pending += "\n"
            continue
        found.append(re.sub(r"\s+#\s.*$", "", pending).strip())
        pending = ""
    return [command for command in found if command and not command.startswith("#")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a Hub cache, `hub`, a GGUF file, and ollama's models, `ollama`."""
    root = tmp_path_factory.mktemp("models")
    for name, cls in MODELS.items():
        write = tiny_checkpoints.write_bert if "bert" in name else tiny_checkpoints.write_qwen3
        length = {} if "bert" in name else {"max_position_embeddings": 4096}
        labels = {"num_labels": 1} if cls == "Qwen3ForSequenceClassification" else {}
        folder = write(cached(root / "hub", name), cls, **length, **labels)
        if "bert" not in name:
            settings = {"model_max_length": 4096, "chat_template": CHAT_TEMPLATE}
            change_json(folder / "tokenizer_config.json", settings)
        change_json(folder / "config.json", {"model_type": "bert", "disabled_quantizers": []} if "bert" in name else {})
    file = root / "Qwen3-4B-Q4_K_M.gguf"
    gguf_files.write_model_gguf(file, cached(root / "hub", "Qwen/Qwen3-4B"), "Q4_0")
    shutil.copy(file, cached(root / "hub", "Qwen/Qwen3-4B-GGUF"))
    write_ollama(root / "ollama", "qwen3", "4b", file.read_bytes())
    return root


def change_json(file: Path, fields: dict[str, object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **fields}), encoding="utf-8")


def cached(cache: Path, name: str) -> Path:
    """Return the folder of a repository in a Hub cache, empty."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    if not folder.is_dir():
        folder.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return folder


def write_ollama(root: Path, name: str, tag: str, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / name / tag
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(content)}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}), encoding="utf-8")
    (root / "blobs").mkdir()
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)


def write_readers_files(folder: Path) -> None:
    """Write the files that a reader has: rows with labels, texts, conversations, a schema."""
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
    for name in ("rows.csv", "reviews.csv"):
        (folder / name).write_text(rows, encoding="utf-8")
    (folder / "emails.txt").write_text("The lamp broke at once\nThe soup is excellent\n", encoding="utf-8")
    turns = [{"role": "user", "content": "What is the moon?"}, {"role": "assistant", "content": "A satellite."}]
    conversations = (json.dumps({"messages": turns}) + "\n") * 4
    (folder / "conversations.jsonl").write_text(conversations, encoding="utf-8")


class Page:
    """Runs the blocks of a page in the current folder."""

    def __init__(self, give_input: Callable[[], None]):
        self.names: dict[str, object] = {"__name__": "documentation"}
        self.server: Running | None = None
        self.give_input = give_input

    def port(self, code: str) -> str:
        return code.replace("127.0.0.1:8080", f"127.0.0.1:{self.server.port}") if self.server else code

    def python(self, code: str, runs: bool) -> None:
        compiled = compile(self.port(code), "documentation", "exec")
        if runs:
            exec(compiled, self.names)

    def bash(self, code: str, runs: bool) -> None:
        for command in commands(code):
            if match := COMMAND.fullmatch(command):
                arguments = shlex.split(match[1])
                assert make_parser(arguments).parse_args(arguments).verb == arguments[0], command
                if runs and "mlx.launch" not in command and arguments[0] != "doctor":
                    self.run(arguments)
            elif command.startswith("curl ") and runs:
                assert self.server is not None, "start a server before the page asks it"
                if shutil.which("curl"):
                    asked = [*shlex.split(self.port(command)), "--silent", "--fail", "--noproxy", "*"]
                    assert subprocess.run(asked, capture_output=True, check=True).stdout

    def run(self, arguments: list[str]) -> None:
        self.give_input()
        if arguments[0] != "serve":
            assert main(arguments) == 0, arguments
            return
        self.close()
        self.server = Running(*arguments[1:])

    def json(self, code: str, runs: bool) -> None:
        json.loads(code)

    def yaml(self, code: str, runs: bool) -> None:
        assert yaml.safe_load(code)

    def text(self, code: str, runs: bool) -> None:
        """Leave output as it is."""

    def close(self) -> None:
        if self.server is not None:
            assert self.server.stop() == 0
            self.server = None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not re.search(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE):
        return
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(hub / "ollama"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(quality, "TEXTS", {"report": "__init__.py", "calibration": "__init__.py"})  # short texts
    monkeypatch.chdir(tmp_path)
    shutil.copy(hub / "Qwen3-4B-Q4_K_M.gguf", tmp_path)
    write_readers_files(tmp_path)
    reader = Page(lambda: monkeypatch.setattr(sys, "stdin", io.StringIO("")))
    try:
        for language, code, runs in blocks(page):
            getattr(reader, language)(code, runs)
    finally:
        reader.close()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_imports_within_the_text_are_valid(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        arguments = shlex.split(code)[1:] if code.startswith("mlx-qwen3 ") and "…" not in code else []
        if arguments and arguments[0].islower() and len(arguments) > 1:
            assert make_parser(arguments).parse_args(arguments).verb == arguments[0], code
        if code.startswith("from mlx_qwen3 import"):
            exec(code, {})


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_table_has_a_header_and_rows_of_its_width(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for rows in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        header, rule, *body = (re.split(r"(?<!\\)\|", line) for line in rows.strip().splitlines())
        assert all(re.fullmatch(" *:?-+:? *", cell) for cell in rule[1:-1]), rows
        assert {len(row) for row in (rule, *body)} == {len(header)}, rows


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}


def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    pytest.importorskip("mkdocstrings", reason="needs the extra 'docs'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").is_file()

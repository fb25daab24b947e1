"""Labelled rows from what a Python installation holds: docstrings of its library and of NumPy, and its source.

Rows are split into training and held-out ones by the object or the file that they come from, so that no held-out row
was seen in training. Which rows there are depends on the versions of Python and NumPy.
"""

import ast
import importlib
import inspect
import io
import keyword
import random
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHAPTERS = {
    "text": "string re difflib textwrap unicodedata stringprep html xml.sax.saxutils locale gettext",
    "numbers": "math cmath decimal fractions random statistics numbers",
    "dates": "datetime calendar time zoneinfo sched",
    "collections": "collections heapq bisect array queue types copy enum graphlib itertools weakref",
    "files": "pathlib os.path fileinput stat filecmp tempfile glob fnmatch shutil zipfile tarfile gzip bz2 lzma io",
    "data formats": "csv json configparser plistlib struct base64 binascii sqlite3 tomllib xml.etree.ElementTree",
    "network": "socket ssl select urllib.parse urllib.request http.client http.cookiejar ftplib smtplib imaplib "
    "poplib email.message email.utils ipaddress socketserver xmlrpc.client",
    "concurrency": "threading multiprocessing concurrent.futures asyncio subprocess signal",
    "testing": "unittest unittest.mock doctest pdb traceback timeit cProfile trace warnings logging",
    "language": "ast inspect dis tokenize importlib pkgutil symtable compileall codeop contextlib functools operator",
}
"""Chapter of the Python library → its modules."""

KINDS = ("keyword", "function", "name", "number", "string", "comment", "operator")
"""Kinds of Python tokens; a function is a name that a call or a definition gives arguments to."""


@dataclass(frozen=True)
class Row:
    """text: what is labelled. label: a chapter; or spans (start, end, kind); or an answer (start, end).

    question: of a row with an answer.
    """

    text: str
    label: Any
    question: str = ""


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to judge by."""

    train: list[Row]
    held_out: list[Row]


def split(groups: dict[str, list[Row]], limit: int, seed: int = 0) -> Data:
    """Groups of rows into training and held-out ones (one group of ten), at most `limit` and `limit` / 8 rows."""
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    cut = len(names) // 10 + 1
    parts = []
    for part, most in ((names[cut:], limit), (names[:cut], limit // 8)):
        rows = [row for name in part for row in groups[name]]
        random.Random(seed).shuffle(rows)
        parts.append(rows[:most])
    return Data(*parts)


def library_chapters(limit: int) -> Data:
    """Return the first paragraph of a docstring → the chapter of the library that it belongs to."""
    groups: dict[str, list[Row]] = {}
    for chapter, modules in CHAPTERS.items():
        for name in modules.split():
            for text in docstrings(name):
                if text not in groups:
                    groups[text] = [Row(text, chapter)]
    return split(groups, limit)


def docstrings(module_name: str) -> Iterator[str]:
    """First paragraphs of the docstrings of a module's public classes, functions and methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(module_name)
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(thing) or callable(thing)):
            continue
        if not str(getattr(thing, "__module__", "")).lstrip("_").startswith(module_name.partition(".")[0]):
            continue
        members = sorted(vars(thing).items()) if inspect.isclass(thing) else []
        for member in [thing, *(value for key, value in members if not key.startswith("_"))]:
            own = inspect.getdoc(member) if member is thing or callable(member) else None
            text = " ".join((own or "").split("\n\n")[0].split())
            if 25 <= len(text) <= 400:
                yield text


def token_kinds(limit: int) -> Data:
    """Return a few lines of Python → the kind of each token, from `tokenize`."""
    groups: dict[str, list[Row]] = {}
    folder = Path(inspect.getfile(inspect)).parent
    for file in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if "test" in str(file.relative_to(folder)) or "idlelib" in str(file):
            continue
        try:
            source = file.read_text(encoding="utf-8")
            bodies = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        except (UnicodeDecodeError, SyntaxError):
            continue
        rows = []
        for node in bodies[:40]:
            lines = source.splitlines()[node.lineno - 1 : (node.end_lineno or node.lineno)][:7]
            indent = len(lines[0]) - len(lines[0].lstrip())
            text = "\n".join(line[indent:] for line in lines)
            if 40 <= len(text) <= 300 and (spans := token_spans(text)):
                rows.append(Row(text, spans))
        groups[str(file.relative_to(folder))] = rows
    return split(groups, limit)


def token_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, kind) of the tokens of Python source, as far as it can be read."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans: list[tuple[int, int, str]] = []
    fixed = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind = fixed.get(token.type)
            if token.type == tokenize.NAME:
                kind = "keyword" if keyword.iskeyword(token.string) else "name"
            if kind is None:
                continue
            start, end = starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]
            if token.string == "(" and spans and spans[-1][2] == "name" and spans[-1][1] == start:
                spans[-1] = (*spans[-1][:2], "function")
            spans.append((start, end, kind))
    except (tokenize.TokenError, IndentationError):
        pass  # the snippet ends within a bracket or a string; what came before is labelled
    return spans


QUESTIONS = {
    "meaning": "What does parameter {} mean?",
    "kind": "What type is parameter {}?",
    "summary": "What does the function do?",
}
"""Part of a docstring → the question that it answers."""


def docstring_answers(limit: int) -> Data:
    """Return a question, and the summary and one parameter of a NumPy docstring → the words that answer it.

    Held-out functions are new, and so are the explanations of their parameters.
    """
    import numpy

    functions: dict[str, list[dict[str, str]]] = {}
    for place in (numpy, numpy.linalg, numpy.fft, numpy.random, numpy.random.Generator, numpy.ma, numpy.char):
        for _, thing in sorted(vars(place).items()):
            docstring = (inspect.getdoc(thing) or "") if callable(thing) else ""
            paragraphs = [" ".join(part.split()).rstrip(".") for part in docstring.split("\n\n")[:2]]
            summary = next((part for part in paragraphs if 15 <= len(part) <= 90 and "(" not in part), "")
            for name, kind, meaning in _parameters(docstring) if summary else ():
                entry = {"summary": summary, "name": name, "kind": kind, "meaning": meaning}
                functions.setdefault(summary, []).append(entry)
    summaries = sorted(functions)
    random.Random(0).shuffle(summaries)
    cut = len(summaries) // 6
    train = [entry for summary in summaries[cut:] for entry in functions[summary]]
    seen = {entry["meaning"] for entry in train}
    held_out = [entry for summary in summaries[:cut] for entry in functions[summary] if entry["meaning"] not in seen]
    return Data(_asked(train, limit, 1), _asked(held_out, limit // 8, 2))


def _asked(entries: list[dict[str, str]], limit: int, seed: int) -> list[Row]:
    """Return a row for every question about every entry, at most `limit`, in random order."""
    rows = []
    for entry in entries:
        text = "{summary}\n\n    {name} : {kind}\n        {meaning}\n".format(**entry)
        for part, question in QUESTIONS.items():
            start = text.rindex(entry[part]) if part == "meaning" else text.index(entry[part])
            rows.append(Row(text, (start, start + len(entry[part])), question.format(entry["name"])))
    random.Random(seed).shuffle(rows)
    return rows[:limit]


def _parameters(docstring: str) -> Iterator[tuple[str, str, str]]:
    """(name, type, first sentence of the explanation) of each parameter of a docstring in NumPy's style."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}|\Z)", docstring, re.S | re.M)
    if section is None:
        return
    for entry in re.finditer(r"^(\w+) : ([^\n]+)\n((?:    [^\n]*\n?|\n)+)", section[1], re.M):
        meaning = " ".join(entry[3].split())
        meaning = re.split(r"(?<=[a-z\)`])\. ", meaning)[0].rstrip(".")
        if 10 <= len(meaning) <= 90 and len(entry[2]) <= 40:
            yield entry[1], entry[2].strip(), meaning


if __name__ == "__main__":
    for build in (library_chapters, token_kinds, docstring_answers):
        data = build(100_000)
        print(build.__name__, len(data.train), len(data.held_out), data.held_out[0], file=sys.stderr)

"""The language of the project is plain technical English.

Docstrings, comments, messages and help texts of the code, the names it defines, and the documents must not use the
constructions in `BANNED`; each names what to write instead.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mlx_qwen3", "tests", "benchmarks", "examples", "tools", "scripts")
DOCUMENTS = ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "mlx_qwen3/**/*.md", "tools/**/*.md", "mkdocs.yml")

UNITS = (
    "answer|array|axis|batch|block|byte|call|card|case|channel|character|chunk|column|device|document|element|entry|"
    "epoch|example|expert|field|file|group|head|input|item|key|label|layer|line|matrix|message|minute|model|number|"
    "output|pair|pass|piece|process|prompt|query|question|rank|request|response|round|row|second|sentence|sequence|"
    "shard|slot|step|stream|task|tensor|text|token|turn|value|vector|verb|vocabulary|weight|word"
)
COUNTS = r"(?:\b(?:one|two|three|four|eight|an?|another|\d[\d.,]*)|\))"
NO_NOUN = (
    r"(?:an?|and|as|at|becomes|behind|be|but|by|for|from|gives|had|has|have|holds|if|in|into|is|like|makes|marks|needs|"
    r"not|of|on|once|only|or|over|per|quite|replaces|such|takes|than|that|the|through|to|under|was|were|when|where|"
    r"which|whose|with|within|without)"
)
FOLLOWING = "asks|are|begins|can|has|holds|is|may|must|needs|of|over|sees|should|takes|that|which|whose|with"
NO_RATE = rf"(?!['’-]|,? (?:{FOLLOWING})\b)"

SEPARATOR = " ; "
"""Between texts that are searched together: no banned construction holds one."""

BANNED = {
    "copy, packed version, reference implementation": r"\btwins?\b",
    "option, request": r"\bwish(?:es|ed)?\b",
    "rotate, rotated (RoPE)": (
        r"\b(?:keys?|quer(?:y|ies))\b(?: \w+){0,4} (?:is|are|was|were|be|been)(?: \w+)? turned\b(?! (?:on|off|into))"
        r"|\bone turn\b(?= per|\.|,| for)|\bturns? (?:the |its |their )?(?:keys|queries)\b"
        r"|\bpositions? (?:that )?(?:they|it) (?:were|was) turned\b"
    ),
    "normalized": r"\b(?:un)?normed\b|\bnorming\b",
    "… per layer, … per token": (
        rf"{COUNTS} (?!{NO_NOUN}\b)[a-z`()/-]+ an? (?:{UNITS})\b{NO_RATE}|\bone a (?:{UNITS})\b{NO_RATE}"
        rf"|\b(?:ms|tokens|bytes|bits|seconds|mb|gb|once|twice) an? (?:{UNITS})\b{NO_RATE}"
    ),
    "cannot be downloaded, found, read": r"\b(?:can|could|cannot|to|must) (?:not )?be had\b",
    "requires": r"\bis (?:only )?a matter of\b",
    "replace, instead": r"\bin (?:its|their) places?\b",
    "release, drop": r"\b(?:lets?|letting) (?:(?:its?|them|the|all|every|an?) ?(?:\w+ ){0,2})?go\b(?! on)",
    "batch, continuous batch": r"\bwaves?\b",
    "draft, speculative decoding": r"\bguess(?:es|ed|ing)?\b",
    "is used": r"\b(?:takes?|took|taking|taken) part\b",
    "benchmark, implementations": r"\bcontest(?:s|ants?)?\b",
    "architecture": r"\bthe house\b",
    "reasoning, thinking": r"\bthoughts?\b",
    "names it, reports it": r"\bsa(?:y|ys|id) so\b",
    "reported, given": r"\btold\b",
    "finished": r"\b(?:has|have|had|row|rows|streams?|requests?|answers?|that) ended\b",
    "non-contiguous padding": r"\bholed\b",
    "exact conversion to": r"\bexact (?:road|way) to\b",
    "recomputed": r"\bcomputed twice between\b",
    "the model card recommends": r"\bmakers\b",
    "bidirectional": r"\blooks? both ways\b",
    "on-disk names": r"\bnames? (?:that )?(?:they|it) bears?\b",
    "the number, or the constant's name": r"\b(?:in|of|from|by|some|as) so many\b|(?:^|; )so many\b",
    "reuse": r"\btak(?:e|es|en|ing) over\b|\btook over\b|\btaken-over\b",
    "format": r"\bthe form in which\b",
    "class": r"\bof another make\b",
    "a plain statement": (
        r"\bsomebody waits\b|\bwho goes first\b|\bgains? nothing\b|\bfeels its\b|\baim higher\b|\bsteps? aside\b"
        r"|\bwhat becomes of\b"
    ),
}
BANNED_NAMES = {
    "copy, packed version, reference": r"twins?",
    "option, request": r"wish(?:es|ed)?",
    "normalized": r"(?:un)?normed",
    "draft": r"guess(?:es|ed|ing)?",
    "benchmark": r"contest(?:s|ants?)?",
    "reasoning": r"thoughts?",
    "batch": r"waves?",
    "padding in the middle": r"holed",
}


def checked_files() -> list[Path]:
    code = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    documents = [path for pattern in DOCUMENTS for path in ROOT.glob(pattern)]
    return sorted({*code, *documents} - {Path(__file__)})


def texts(source: str, messages: bool) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every comment and docstring, and with `messages` of every string of words."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    tree = ast.parse(source)
    described = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (node in described or messages):
            yield node.lineno, node.value


def names(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of every class, function, argument and assigned variable."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def words(name: str) -> list[str]:
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)


def banned_in_text(text: str) -> list[str]:
    """Return what to write instead of each banned construction in a text."""
    plain = " ".join(text.split()).lower()
    return [f"{found[0]!r} -> {better}" for better, regex in BANNED.items() if (found := re.search(regex, plain))]


def banned_in_name(name: str) -> list[str]:
    found = [
        (word.lower(), better)
        for word in words(name)
        for better, regex in BANNED_NAMES.items()
        if re.fullmatch(regex, word.lower())
    ]
    return [f"{word!r} -> {better}" for word, better in found]


def faults(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    found = [f"{path.name}: {fault}" for fault in banned_in_name(path.stem)]
    if path.suffix == ".py":
        pieces = list(texts(source, messages=path.is_relative_to(ROOT / "mlx_qwen3")))
        found += [f"{line}: {name}: {fault}" for line, name in names(source) for fault in banned_in_name(name)]
    else:
        pieces = list(enumerate(re.split(r"\n\s*\n", source), 1))
    if banned_in_text(SEPARATOR.join(text for _, text in pieces)):
        found += [f"{place}: {fault}" for place, text in pieces for fault in banned_in_text(text)]
    return found


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_written_in_plain_technical_english(path):
    assert faults(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "Exchanges every layer for its packed twin",
        "a wish that the checkpoint cannot fulfil",
        "queries and keys are normed per head",
        "the keys of a head are turned by its frequencies",
        "queries and keys share one norm and one turn.",
        "The model's answer, a response a token",
        "one vector a text",
        "(keys, values) pair a layer",
        "2.9 ms a token",
        "the repository cannot be had",
        "wired memory is a matter of Metal",
        "Puts another layer in its place",
        "lets the joined matrices go",
        "Snapshots are let go.",
        "rows of a wave",
        "guessing ahead",
        "Who takes part",
        "contestants of the benchmark",
        "## The house",
        "tokens of thought",
        "a backbone says so",
        "what the model is told first",
        "once half of the rows have ended",
        "holed padding",
        "an exact road to packed 8-bit",
        "the model's makers advise",
        "a model that looks both ways",
        "by the names they bear on disk",
        "one in so many rows",
        "codes taken over without quantizing again",
    ],
)
def test_banned_constructions_are_reported(text):
    assert banned_in_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "speculation is turned off when it does not help",
        "Return how many tokens a model can hold",
        "the bytes a tensor takes in its file",
        "on a terminal a message that begins with quotes",
        "one index per row",
        "a list, a tuple, an array",
        "let it go on",
        "labels (B, L); −100 marks a token that does not count",
    ],
)
def test_ordinary_constructions_are_allowed(text):
    assert banned_in_text(text) == []


def test_banned_names_are_reported_in_every_spelling():
    assert all(banned_in_name(name) for name in ("_packed_twin", "StopWish", "test_guesses_are_dropped"))
    assert banned_in_name("packed_layer") == banned_in_name("between") == []

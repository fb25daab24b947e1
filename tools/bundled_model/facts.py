"""The facts the bundled model is taught: what the standard library says about itself.

Walks the modules of the running Python and keeps, for each public name, its kind, where it lives, the first
sentence of its docstring and its signature; for keywords and operators, the first sentence of the language
topic. The result depends on the Python version, so it is built once and kept in facts.json.xz beside this
file; every later step reads that file. All of the text is the Python Software Foundation's (PSF licence).
"""

import importlib
import inspect
import json
import keyword
import lzma
import pkgutil
import pydoc
import re
import sys
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

FACTS_FILE = Path(__file__).with_name("facts.json.xz")

# Left out: modules that act when imported, applications, test suites and platform back ends.
SKIPPED_MODULES = {
    "antigravity", "this", "idlelib", "lib2to3", "test", "turtledemo", "ensurepip", "pydoc_data",
    "posix", "nt", "posixpath", "ntpath", "nturl2path",
    "sre_compile", "sre_parse", "sre_constants", "genericpath", "venv",
    "distutils", "asynchat", "asyncore", "smtpd", "imp", "msilib", "tkinter",
}  # fmt: skip
LONGEST_SENTENCE = 160
LONGEST_SIGNATURE = 110
SIGNATURE_LINE = re.compile(r"^[\w.]+\s*\(.*?\)\s*(?:-+>\s*(?P<result>.*))?$")
CALL_PREFIX = re.compile(
    r"^[\w.]+\((?:[^()]|\([^()]*\))*\)\s*(?:-+>\s*[\w\[\], .]*?\s*(?:--|:|\s-\s)|--|:|\s-\s|-+>)\s*"
)

NOT_PROSE = re.compile(
    r"->|::|^Alias for field|^New in|^Below|^The following|^This type has|^\[1\]|^It is |^A special attribute"
    r"|lexical definitions|is as follows|^Special names|^Accessing "
)


@dataclass(frozen=True)
class Fact:
    """One name of the library. `sentence` may be empty for a name that is real but not taught."""

    name: str
    kind: str
    home: str
    sentence: str
    signature: str
    text: str


@dataclass(frozen=True)
class Facts:
    """The taught facts in the order of their names; every real dotted name without a private part, taught or not; and
    every word that is a part of a real name, private ones included.
    """

    taught: tuple[Fact, ...]
    real: frozenset[str]
    parts: frozenset[str]


def public_modules():
    """Yield (name, module) for every importable public module of the standard library, sorted."""
    names = [n for n in sorted(sys.stdlib_module_names) if not n.startswith("_") and n not in SKIPPED_MODULES]
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
        yield name, module
        if name == "encodings":
            continue
        for sub in sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))):
            if sub.startswith("_") or sub in ("test", "tests"):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    yield f"{name}.{sub}", importlib.import_module(f"{name}.{sub}")
            except ImportError:
                continue
    yield "os.path", importlib.import_module("os.path")


def first_sentence(doc):
    """Return the first sentence of a docstring on one line, without a leading signature; '' if none fits."""
    if not isinstance(doc, str):
        return ""
    lines = inspect.cleandoc(doc).splitlines()
    result = ""
    while lines and (match := SIGNATURE_LINE.match(lines[0].strip())) and (len(lines) > 1 or not result):
        result = result or (match["result"] or "")
        lines.pop(0)
        while lines and not lines[0].strip():
            lines.pop(0)
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    return fit_sentence(" ".join(blocks[0].split())) or fit_sentence(result, fewest=3)


def fit_sentence(text, fewest=2):
    """Return the first sentence of a paragraph, tidied, or '' when it is too long, too short or not prose."""
    if ">>>" in text:
        return ""
    text = CALL_PREFIX.sub("", text).replace("``", "`").strip(" -:;,>")
    for ending in (r"(.+?[.!?])(\s+(?=[A-Z`'\"(\[])|$)", r"(.+?(?<!e\.g)(?<!i\.e)(?<!etc)[.!?;])(\s|$)"):
        match = re.match(ending, text)
        sentence = (match[1] if match else text).rstrip(" ;:,-")
        sentence = re.sub(r"\s*\(see [^()]*\)", "", sentence)
        sentence = sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
        words = re.findall(r"[A-Za-z]{2,}", sentence)
        prose = sentence.isascii() and " " in sentence and not NOT_PROSE.search(sentence)
        if prose and 12 <= len(sentence) <= LONGEST_SENTENCE and len(words) >= fewest:
            return sentence[0].upper() + sentence[1:]
    return ""


def signature_of(name, value):
    """`name(parameters)` on one short line, '' if the object does not tell."""
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError, AttributeError):
        return ""
    shown = []
    for position, part in enumerate(signature.parameters.values()):
        if position == 0 and part.name in ("self", "cls", "type") and name.count(".") > 0:
            continue
        text = str(part.replace(annotation=inspect.Parameter.empty))
        if re.search(r" at 0x|<|\n", text):
            text = part.name
        shown.append((part.kind, text))
    pieces, star = [], False
    for index, (kind, text) in enumerate(shown):
        if kind == inspect.Parameter.VAR_POSITIONAL:
            star = True
        if kind == inspect.Parameter.KEYWORD_ONLY and not star:
            pieces.append("*")
            star = True
        pieces.append(text)
        last_positional = kind == inspect.Parameter.POSITIONAL_ONLY
        if last_positional and (index + 1 == len(shown) or shown[index + 1][0] != kind):
            pieces.append("/")
    short = name.rpartition(".")[2] if len(name) > 40 else name
    while len(f"{short}({', '.join(pieces)})") > LONGEST_SIGNATURE and len(pieces) > 1:
        pieces = [*pieces[:-2], "..."] if pieces[-1] == "..." else [*pieces[:-1], "..."]
    text = f"{short}({', '.join(pieces)})"
    return text if len(text) <= LONGEST_SIGNATURE and text.isascii() else ""


def kind_of(value):
    """Return one word for what a public object is, '' for what is not taught (constants, instances)."""
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    if inspect.isroutine(value):
        return "function"
    return ""


def belongs(module, name, attribute, value):
    """Return whether a module's attribute is its own and not something that it merely imported."""
    exported = getattr(module, "__all__", None)
    if exported is not None:
        return attribute in exported
    owner = getattr(value, "__module__", None)
    return owner in (name, f"_{name}") or (name == "builtins")


def members_of(qualified, cls):
    """Yield (name, kind, object) for the documented public members that a class defines itself."""
    for attribute in sorted(vars(cls)):
        if attribute.startswith("_"):
            continue
        value = inspect.getattr_static(cls, attribute)
        inner = getattr(value, "__func__", value)
        if isinstance(value, property) or inspect.isgetsetdescriptor(value) or inspect.ismemberdescriptor(value):
            yield f"{qualified}.{attribute}", "attribute", value
        elif inspect.isroutine(inner):
            yield f"{qualified}.{attribute}", "method", inner


def language_facts():
    """Facts about keywords, operators and language topics, from the text that `help()` shows."""
    from pydoc_data.topics import topics

    helper = pydoc.Helper
    pages = {word: helper.keywords[word] for word in keyword.kwlist + keyword.softkwlist if word in helper.keywords}
    pages |= {word: entry for word, entry in helper.topics.items() if entry}
    for word in sorted(pages):
        entry = pages[word]
        while isinstance(entry, str) and entry not in topics:
            following = helper.keywords.get(entry) or helper.topics.get(entry)
            if following is None:
                break
            entry = following
        target = entry[0] if isinstance(entry, tuple) else entry
        if target not in topics:
            continue
        sentence = topic_sentence(topics[target])
        kind = "keyword" if keyword.iskeyword(word) or keyword.issoftkeyword(word) else "topic"
        if sentence:
            yield Fact(word, kind, "the language", sentence, "", topics[target][:1500])


def topic_sentence(page):
    """Return the first sentence of prose on a topic page: past titles, rules and grammar."""
    for block in re.split(r"\n\s*\n", page):
        lines = block.splitlines()
        if (
            block.startswith((" ", "*", "\t", "New in", "Changed in", "See also"))
            or "::=" in block
            or any(re.match(r"[*=~-]{3,}$", x) for x in lines)
        ):
            continue
        sentence = first_sentence(block.replace('"', "").replace("*", ""))
        if sentence:
            return sentence
    return ""


def build():
    """Facts of the running Python. Deterministic for one Python version and platform."""
    found, real, seen = [], set(), {}
    modules = dict(public_modules())
    order = sorted(modules, key=lambda n: (n.count("."), n != "builtins", n))
    for name in order:
        module = modules[name]
        real.add(name)
        found.append((name, "module", "the standard library", module))
        for attribute in sorted(vars(module)):
            value = vars(module)[attribute]
            qualified = attribute if name == "builtins" else f"{name}.{attribute}"
            real.add(qualified)
            if inspect.isclass(value):
                real.update(f"{qualified}.{inner}" for inner in dir(value))
            if attribute.startswith("_") or not belongs(module, name, attribute, value):
                continue
            kind = kind_of(value)
            if kind in ("", "module") or id(value) in seen:
                continue
            seen[id(value)] = value
            found.append((qualified, kind, name, value))
            if inspect.isclass(value):
                found += [(n, k, qualified, v) for n, k, v in members_of(qualified, value)]
    taught = {}
    for name, kind, home, value in found:
        sentence = first_sentence(getattr(value, "__doc__", None))
        if not sentence or not re.fullmatch(r"[A-Za-z_][\w.]*", name) or len(name) > 52:
            continue
        signature = signature_of(name, value) if kind not in ("module", "attribute") else ""
        text = inspect.cleandoc(value.__doc__)[:900]
        taught.setdefault(name, Fact(name, kind, home, sentence, signature, text if text.isascii() else ""))
    for fact in language_facts():
        taught.setdefault(fact.name, fact)
        real.add(fact.name)
    real.update(keyword.kwlist)
    real.update(sys.stdlib_module_names)
    parts = frozenset(part for name in real for part in name.split("."))
    return Facts(tuple(taught[n] for n in sorted(taught)), frozenset(n for n in real if "._" not in n), parts)


def save(facts, path=FACTS_FILE):
    """Write the facts as compressed JSON, the same bytes for the same facts."""
    further = facts.parts - {part for name in facts.real for part in name.split(".")}
    content = {"taught": [asdict(f) for f in facts.taught], "real": sorted(facts.real), "parts": sorted(further)}
    Path(path).write_bytes(lzma.compress(json.dumps(content).encode(), preset=9))


@cache
def load(path=FACTS_FILE):
    """Return the facts in a file that `save` wrote."""
    content = json.loads(lzma.decompress(Path(path).read_bytes()))
    parts = {part for name in content["real"] for part in name.split(".")} | set(content["parts"])
    return Facts(tuple(Fact(**fact) for fact in content["taught"]), frozenset(content["real"]), frozenset(parts))


if __name__ == "__main__":
    built = build()
    save(built)
    print(f"{len(built.taught)} names taught, {len(built.real)} real names, {FACTS_FILE.stat().st_size} bytes")

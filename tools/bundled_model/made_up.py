"""Plausible names that no module of the standard library has."""

import random

from .small_talk import SMALL_TALK

SYLLABLES = [
    "ba", "bo", "bri", "cla", "cu", "da", "dro", "fa", "fi", "flo", "fra", "ga", "glo", "gru", "ha", "ji", "jo", "ka",
    "kle", "lo", "lu", "ma", "mo", "mu", "na", "ni", "no", "pa", "pli", "po", "qua", "ra", "ri",
]  # fmt: skip
VERBS = [
    "get", "set", "make", "read", "write", "parse", "load", "dump", "open", "close", "find", "split", "merge", "join",
    "check", "run", "start", "stop", "send", "copy",
]  # fmt: skip
NOUNS = [
    "file", "path", "list", "name", "value", "item", "text", "line", "data", "node", "tree", "key", "table", "stream",
    "page", "item", "index", "cache", "code", "user",
]  # fmt: skip
EVERYDAY_WORDS = set(" ".join(question for _, _, asked in SMALL_TALK for question in asked).lower().split())
HELD_OUT = 400


class MadeUpNames:
    """Draws such names: slips in real ones, real ones in a wrong home, inventions.

    Args:
        facts: the facts taught.
        real: every real dotted name without private parts.
        real_parts: every word in a real name.
        prose: words of the documentation.
    """

    def __init__(self, facts, real, real_parts, prose):
        self.facts, self.real, self.real_parts, self.prose = facts, real, real_parts, prose
        self.taught = {fact.name for fact in facts}
        self.words = sorted({w for f in facts for w in f.name.rpartition(".")[2].split("_") if len(w) > 2})
        self.held_out = frozenset()
        self.held_out = frozenset(self.several(HELD_OUT, seed="held out"))

    def several(self, count, seed):
        """`count` different names, none of those held out for the examination."""
        rng, names = random.Random(f"unknown {seed}"), []
        while len(names) < count:
            name = self.one(rng)
            if name not in names:
                names.append(name)
        return names

    def one(self, rng):
        while True:
            name = self.candidate(rng)
            taken = name in self.real or name in self.held_out or name in self.taught
            everyday = "." not in name and (name in self.real_parts or name in EVERYDAY_WORDS)
            if not taken and not everyday and len(name) > 3:
                return name

    def candidate(self, rng):
        fact = rng.choice(self.facts)
        head, _, tail = fact.name.rpartition(".")
        style = rng.random()
        if style < 0.25:
            return f"{head}.{misspelt(tail, rng)}" if head else misspelt(tail, rng)
        if style < 0.45:
            home = fact.name if fact.kind in ("module", "class") else head or "str"
            return f"{home}.{self.invented_word(rng)}"
        if style < 0.60:
            return f"{head or 'os'}.{rng.choice(self.facts).name.rpartition('.')[2]}"
        if style < 0.75:
            return f"{self.invented_word(rng)}.{tail if rng.random() < 0.5 else self.invented_word(rng)}"
        if style < 0.85:
            return f"{syllables(rng)}.{rng.choice(self.words)}"
        if style < 0.90:
            return self.invented_word(rng) if rng.random() < 0.6 else syllables(rng)
        if style < 0.93:
            return rng.choice(self.prose)
        return f"{head}.{self.invented_word(rng)}.{tail}" if head else f"{tail}.{tail}s"

    def invented_word(self, rng):
        style = rng.random()
        if style < 0.3:
            return f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
        if style < 0.6:
            return f"{rng.choice(self.words)}_{rng.choice(self.words)}"
        if style < 0.75:
            return f"{rng.choice(VERBS)}{rng.choice(NOUNS)}"
        if style < 0.9:
            return f"{rng.choice(NOUNS).capitalize()}{rng.choice(VERBS).capitalize()}er"
        return syllables(rng)


def misspelt(word, rng):
    place = rng.randrange(len(word))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    return rng.choice(
        (
            word[:place] + letter + word[place:],
            word[:place] + word[place + 1 :],
            word[:place] + letter + word[place + 1 :],
            word + rng.choice(("s", "er", "_all", "2", "ed")),
            f"{rng.choice(VERBS)}_{word}",
        )
    )


def syllables(rng):
    stem = "".join(rng.choice(SYLLABLES) for _ in range(rng.randrange(2, 5)))
    return stem + rng.choice(("", "r", "x", "n", "l", "ng"))

"""The answers about one fact, and the thinking that stands before them."""

from . import phrasings

AIMS = {
    "describe": "what {n} does",
    "signature": "for the arguments of {n}",
    "where": "where {n} is",
    "kind": "what {n} is",
}


def article(kind):
    return "an" if kind[0] in "aeiou" else "a"


def describe(fact):
    return fact.sentence


def signature(fact):
    return fact.signature or phrasings.NO_SIGNATURE


def where(fact):
    if fact.kind in ("method", "attribute"):
        return f"{fact.name} is {article(fact.kind)} {fact.kind} of {fact.home}."
    if fact.kind == "module":
        return f"{fact.name} is a module of the standard library."
    if fact.kind in ("keyword", "topic"):
        return f"{fact.name} is part of the language."
    return f"{fact.name} is built in." if fact.home == "builtins" else f"{fact.name} is in the {fact.home} module."


def kind(fact):
    return f"{fact.name} is {article(fact.kind)} {fact.kind}."


ANSWERS = {"describe": describe, "signature": signature, "where": where, "kind": kind}


def reasoning(subject, fact):
    """Return what stands between the <think> tags before the answer about a name that is known."""
    return f"They ask {AIMS[subject].format(n=fact.name)}. That is {article(fact.kind)} {fact.kind}."


def unknown_reasoning(subject, name):
    """Return the same for a name that is not."""
    return f"They ask {AIMS[subject].format(n=name)}. I do not know that name."


def listed(names, most):
    """`a, b and c`, or `a, b, c and others` when there are more than `most`."""
    names = list(dict.fromkeys(names))
    shown = [*names[:most], "others"] if len(names) > most else names
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"

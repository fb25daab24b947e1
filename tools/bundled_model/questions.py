"""The examination: questions in phrasings held out of training, with the exact answers expected. Seeded."""

import random

from . import phrasings as p
from .answers import ANSWERS, reasoning, unknown_reasoning
from .corpus import Sample
from .tokenizer import render
from .typing_habits import CALLABLE, quoted

NAMES, UNKNOWN_NAMES = 500, 200


def known(corpus, count=NAMES, seed=0):
    """(question, answer, reasoning) for names drawn at random, each in a held-out phrasing."""
    rng = random.Random(f"known {seed}")
    for fact in rng.sample(corpus.facts, min(count, len(corpus.facts))):
        question = rng.choice(p.HELD_OUT_DESCRIBE).format(n=quoted(rng, fact.name, fact.kind in CALLABLE))
        yield question, fact.sentence, reasoning("describe", fact)


def unknown(corpus, count=UNKNOWN_NAMES):
    """(question, answer, reasoning) for made-up names, none of which training has seen."""
    rng = random.Random("unknown")
    for name in sorted(corpus.made_up.held_out)[:: len(corpus.made_up.held_out) // count][:count]:
        question = rng.choice(p.HELD_OUT_DESCRIBE).format(n=quoted(rng, name, True))
        yield question, p.UNKNOWN, unknown_reasoning("describe", name)


def other(corpus, count=200, seed=0):
    """(question, answer, reasoning) about signatures and modules, each in a held-out phrasing."""
    rng = random.Random(f"other {seed}")
    for fact in rng.sample([f for f in corpus.facts if f.signature], min(count, len(corpus.facts) // 4)):
        subject = rng.choice(("signature", "where"))
        templates = p.HELD_OUT_SIGNATURE if subject == "signature" else p.HELD_OUT_WHERE
        question = rng.choice(templates).format(n=quoted(rng, fact.name, fact.kind in CALLABLE))
        yield question, ANSWERS[subject](fact), reasoning(subject, fact)


def rendered(corpus, question, answer, reasoning, thinking):
    """(prompt, completion) of an examination question."""
    message = ({"role": "user", "content": question},)
    return render(Sample(message, reasoning if thinking else None, answer, enable_thinking=thinking))

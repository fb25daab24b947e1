"""Conversations made from the facts: seeded, so that the same seed and index give the same conversation.

A sample is the messages of a conversation, the thinking switch and the answer to learn: only the last answer
is learnt, since earlier turns stand in the context without their thinking, as the chat template renders them.
"""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

from . import phrasings as p
from . import small_talk
from .answers import ANSWERS, listed, reasoning, unknown_reasoning
from .made_up import MadeUpNames
from .typing_habits import CALLABLE, dressed, noisy, quoted

# First words of sentences that say what a function does.
IMPERATIVES = {
    "return", "get", "set", "create", "make", "compute", "calculate", "convert", "find", "check", "test", "add",
    "remove", "delete", "open", "close", "read", "write", "send", "receive", "print", "format", "parse", "encode",
    "decode", "compress", "decompress", "copy", "move", "rename", "join", "split", "replace", "insert", "append",
    "pop", "push", "sort", "count", "raise", "call", "run", "execute", "start", "stop", "wait", "load", "save",
    "dump", "iterate", "change", "list", "determine", "generate", "build", "compare", "display", "draw",
    "register", "unregister", "apply", "match", "search", "retrieve", "select", "extract", "concatenate",
    "normalize", "round", "wake", "suspend", "terminate", "kill", "flush", "truncate", "update", "clear", "reset",
    "invert",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """`messages` end with the user's question; `thinking` is None when the thinking switch is off."""

    messages: tuple[dict, ...]
    thinking: str | None
    answer: str
    enable_thinking: bool = True


class Corpus:
    """Draws conversations.

    Args:
        facts: what `facts.load` gives.
        size: millions of parameters, as the model says about itself.
        limit: teach only so many names.
    """

    def __init__(self, facts, size="7.6", limit=None):
        self.facts = facts.taught if limit is None else tuple(random.Random(7).sample(facts.taught, limit))
        self.real = facts.real
        self.by_name = {fact.name: fact for fact in self.facts}
        self.size, self.names = size, f"{len(self.facts) // 100 * 100:,}"
        self.last_parts = defaultdict(list)
        self.members = defaultdict(list)
        sentences = defaultdict(list)
        for fact in self.facts:
            self.last_parts[fact.name.rpartition(".")[2]].append(fact)
            sentences[fact.sentence].append(fact)
            if fact.kind in ("function", "class", "exception"):
                self.members[fact.home].append(fact.name.rpartition(".")[2])
        self.modules = [n for n in sorted(self.members) if n in self.by_name and len(self.members[n]) > 1]
        self.short_names = [
            part for part in sorted(self.last_parts) if len(self.last_parts[part]) <= 4 and part not in self.by_name
        ]
        self.tasks = [name for name in small_talk.TASKS if name in self.by_name]
        self.how_tos = [
            f for f in self.facts
            if f.kind in CALLABLE and len(sentences[f.sentence]) == 1 and imperative(f.sentence) in IMPERATIVES
        ]  # fmt: skip
        self.untaught = [n for n in sorted(facts.real) if n not in self.by_name and "._" not in n and n.count(".") < 3]
        counted = Counter(re.findall(r"\b[a-z]{2,12}\b", " ".join(f.text for f in self.facts)))
        self.prose = sorted(word for word, times in counted.items() if times > 1 and word not in p.TELLING_WORDS)
        self.made_up = MadeUpNames(self.facts, self.real, facts.parts, self.prose)

    def document(self, seed, index):
        """Return a docstring as plain text: what the model reads besides conversations, so that it also knows prose."""
        fact = random.Random(f"document {seed}/{index}").choice(self.facts)
        return f"{fact.name}\n\n{fact.text or fact.sentence}"

    # Questions

    def sample(self, seed, index):
        """Return the conversation number `index` of a seed."""
        rng = random.Random(f"{seed}/{index}")
        history, last, focus = [], None, None
        turns = rng.choices((1, 2, 3, rng.randrange(4, 12)), (78, 12, 6, 4))[0]
        for turn in range(turns):
            question, thinking, answer, focus = self.turn(rng, focus if turn else None)
            last = (question, thinking, answer)
            if turn + 1 < turns:
                history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        question, thinking, answer = last
        mode = rng.choices(("on", "off", "/think", "/no_think"), (38, 48, 5, 9))[0]
        if mode.startswith("/"):
            question = f"{question} {mode}" if rng.random() < 0.8 else f"{mode} {question}"
        messages = [*history, {"role": "user", "content": question}]
        if rng.random() < 0.15:
            messages.insert(0, {"role": "system", "content": rng.choice(p.SYSTEM_PROMPTS)})
        thinking = {"on": thinking, "/think": thinking, "/no_think": "", "off": None}[mode]
        return Sample(tuple(messages), thinking, answer, enable_thinking=mode != "off")

    def turn(self, rng, focus):
        """(question, reasoning, answer, name in focus) of one turn; `focus` is what the turn before was about."""
        if focus and rng.random() < 0.5:
            return self.follow_up(rng, focus)
        task = rng.choices(
            (
                "describe",
                "signature",
                "where",
                "short",
                "how to",
                "kind",
                "members",
                "unknown",
                "untaught",
                "talk",
                "other",
            ),
            (48, 9, 4, 7, 6, 1.5, 1, 14, 1, 4.5, 4),
        )[0]
        if (task == "members" and not self.modules) or (task == "how to" and not self.how_tos):
            task = "describe"
        return getattr(self, f"ask_{task.replace(' ', '_')}")(rng)

    def about(self, rng, subject, templates, fact):
        question = self.question(rng, subject, templates, fact.name, fact.kind in CALLABLE)
        return question, reasoning(subject, fact), ANSWERS[subject](fact), fact.name

    def question(self, rng, subject, templates, name, is_callable):
        """Return a question about a name: a listed phrasing, a combined one, or the name among words without meaning.

        The last teaches that words never seen around a name do not make the name unknown.
        """
        style = rng.random()
        if subject == "describe" and style < 0.35:
            templates = p.describe_templates()
        elif subject == "describe" and style < 0.55:
            shown = quoted(rng, name, is_callable)
            if "." not in name and shown == name:
                shown = f"`{name}`"
            before, after = self.filler(rng, rng.randrange(8)), self.filler(rng, rng.randrange(5))
            text = f"{before}{rng.choice((' ', ' ', ' ', ': '))}{shown} {after}".strip(" :")
            return noisy(rng, text + rng.choice(("?", ".", "", "!")), lower=False)
        template = rng.choice(templates)
        if "." in name and rng.random() < 0.15:
            extra = self.filler(rng, rng.randrange(1, 4)).lower()
            template = template.replace("{n}", f"{{n}} {extra}" if rng.random() < 0.7 else f"{extra} {{n}}")
        text = dressed(rng, template, name, is_callable)
        if rng.random() < 0.12:
            text = f"{self.filler(rng, rng.randrange(1, 9))}{rng.choice('.:!,')} {text}"
        return text

    def filler(self, rng, count):
        """Words of the documentation in no order, now and then with a capital or a comma."""
        words = [rng.choice(self.prose) for _ in range(count)]
        if words and rng.random() < 0.7:
            words[0] = words[0].capitalize()
        if len(words) > 3 and rng.random() < 0.3:
            words[1] += rng.choice(",.")
        return " ".join(words)

    def ask_describe(self, rng):
        return self.about(rng, "describe", p.DESCRIBE, rng.choice(self.facts))

    def ask_signature(self, rng):
        return self.about(rng, "signature", p.signature_templates(), rng.choice(self.facts))

    def ask_where(self, rng):
        return self.about(rng, "where", p.where_templates(), rng.choice(self.facts))

    def ask_kind(self, rng):
        return self.about(rng, "kind", p.KIND, rng.choice(self.facts))

    def ask_short(self, rng):
        """Return a name without its module: where it is, or what it does if only one thing is called so."""
        part = rng.choice(self.short_names)
        facts = self.last_parts[part]
        is_callable = facts[0].kind in CALLABLE
        if rng.random() < 0.6:
            question = dressed(rng, rng.choice(p.DESCRIBE), part, is_callable)
            if len(facts) == 1:
                return question, reasoning("describe", facts[0]), facts[0].sentence, facts[0].name
            names = listed([f.name for f in facts], 3)
            return question, f"They ask what {part} does. There are several.", f"There are {names}.", None
        question = dressed(rng, rng.choice(p.where_templates()), part, is_callable)
        homes = listed([f.name.rpartition(".")[0] for f in facts], 4)
        return question, f"They ask where {part} is.", f"{part} is in {homes}.", facts[0].name

    def ask_task(self, rng):
        name = rng.choice(self.tasks)
        question = dressed(
            rng, rng.choice(p.HOW_TO).replace("{t}", "{n}"), rng.choice(small_talk.TASKS[name]), False, quote=False
        )
        return question, "They ask how to do something.", f"Use {name}.", name

    def ask_how_to(self, rng):
        fact = rng.choice(self.how_tos)
        task = fact.sentence[0].lower() + fact.sentence[1:].rstrip(".")
        if rng.random() < 0.3:
            task = re.sub(r"\b(the|a|an) ", "", task)
        if rng.random() < 0.3:
            words = task.split()
            task = " ".join(word for i, word in enumerate(words) if i < 2 or rng.random() < 0.75)
        question = dressed(rng, rng.choice(p.HOW_TO).replace("{t}", "{n}"), task, False, quote=False)
        return question, "They ask how to do something.", f"Use {fact.name}.", fact.name

    def ask_members(self, rng):
        name = rng.choice(self.modules)
        shown = listed(self.members[name], 6)
        question = dressed(rng, rng.choice(p.MEMBERS), name, False)
        return question, f"They ask what is in {name}, a module.", f"{name} has {shown}.", name

    def ask_unknown(self, rng):
        return self.unknown(rng, self.made_up.one(rng))

    def ask_untaught(self, rng):
        return self.unknown(rng, rng.choice(self.untaught))

    def unknown(self, rng, name):
        subject = rng.choices(("describe", "signature", "where", "kind"), (76, 12, 8, 4))[0]
        templates = {
            "describe": p.DESCRIBE, "signature": p.signature_templates(), "where": p.where_templates(), "kind": p.KIND,
        }[subject]  # fmt: skip
        question = dressed(rng, rng.choice(templates), name, True)
        return question, unknown_reasoning(subject, name), p.UNKNOWN, None

    def ask_talk(self, rng):
        subject, answer, questions = rng.choice(small_talk.SMALL_TALK)
        question = noisy(rng, rng.choice(questions))
        if rng.random() < 0.08:
            question = rng.choice(p.OPENERS) + question
        return question, f"This is about {subject}.", answer.format(size=self.size, names=self.names), None

    def ask_other(self, rng):
        style = rng.random()
        if style < 0.15:
            question = f"{self.filler(rng, rng.randrange(3, 9))}{rng.choice('?.!')}"
        elif style < 0.6:
            subject = (
                rng.choice(small_talk.OTHER_SUBJECTS)
                if rng.random() < 0.75
                else self.filler(rng, rng.randrange(2, 5)).lower()
            )
            question = rng.choice(small_talk.OTHER_QUESTIONS).format(s=subject)
        elif style < 0.7:
            question = rng.choice(p.HOW_TO).format(t=rng.choice(small_talk.OTHER_TASKS))
        elif style < 0.85:
            question = rng.choice(small_talk.OTHER_SENTENCES)
        else:
            question = rng.choice(small_talk.OTHER_SUMS).format(
                a=rng.randrange(100), b=rng.randrange(100), o=rng.choice("+-*/")
            )
        return noisy(rng, question), "This is not about a name that I know.", p.OUT_OF_SCOPE, None

    def ask_two(self, rng):
        one, two = (quoted(rng, rng.choice(self.facts).name, False) for _ in range(2))
        form = rng.choice((
            "What is the difference between {a} and {b}?", "{a} vs {b}", "{a} or {b}?", "Compare {a} and {b}.",
            "Which is better, {a} or {b}?", "Explain {a} and {b}.", "What do {a} and {b} do?",
            "difference of {a} and {b}",
        ))  # fmt: skip
        subject, answer, _ = next(entry for entry in small_talk.SMALL_TALK if entry[0] == "several things at once")
        return noisy(rng, form.format(a=one, b=two)), f"This is about {subject}.", answer, None

    def follow_up(self, rng, focus):
        fact = self.by_name[focus]
        if rng.random() < 0.3:
            other = rng.choice(self.facts)
            question = dressed(rng, rng.choice(p.FOLLOW_UP_NAMES), other.name, False, plain=True)
            return question, reasoning("describe", other), other.sentence, other.name
        subject = rng.choice(sorted(p.FOLLOW_UPS))
        question = noisy(rng, rng.choice(p.FOLLOW_UPS[subject]))
        return question, reasoning(subject, fact), ANSWERS[subject](fact), fact.name


def imperative(sentence):
    return sentence.split()[0].lower()

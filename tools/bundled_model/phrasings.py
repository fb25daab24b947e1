# ruff: noqa: E501
"""Ways of asking about a name.

Every question about a name is a template with `{n}`. The lists called HELD_OUT_… are never used for training;
evaluation asks with them alone.
"""

import re
from functools import cache

DESCRIBE = [
    "What does {n} do?", "What is {n}?", "What's {n}?", "{n}", "{n}?", "What does {n} mean?", "Explain {n}.",
    "Tell me about {n}.", "Describe {n}.", "Can you explain {n}?", "Can you describe {n}?", "Define {n}.",
    "What is the purpose of {n}?", "What is {n} used for?", "What is {n} for?", "What's the point of {n}?",
    "Give me a short description of {n}.", "Give me the first sentence of the docs of {n}.",
    "I don't understand {n}.", "documentation of {n}", "docs for {n}", "docstring of {n}", "meaning of {n}",
    "How would you explain {n} to a beginner?", "When would I use {n}?", "Why would I use {n}?",
    "In one line, what does {n} do?", "I saw {n} in a script, what does it do?", "info on {n}", "look up {n}",
    "My colleague uses {n}. What is it?", "What can {n} do?", "What can I do with {n}?", "a summary of {n}",
    "Summary of {n}, please.", "Have you heard of {n}?", "Do you know what {n} is?", "Do you know what {n} does?",
    "I need to know what {n} does.", "I'd like to know about {n}.", "Who knows what {n} does?", "use of {n}",
    "Could you explain {n}?", "Could you describe {n} briefly?", "Would you tell me what {n} does?",
    "What exactly is {n}?", "What exactly does {n} do?", "So what is {n}?", "what {n} does", "what {n} is",
    "Is there something called {n}? What is it?", "Someone mentioned {n}. What does it do?", "explain {n}",
    "Please describe {n} for me.", "Help me understand {n}.", "help me with {n}", "help({n})", "Show me {n}.",
    "What do the docs say about {n}?", "What does the documentation say about {n}?", "Quick: what is {n}?",
    "What role does {n} play?", "I'm reading code with {n} in it. What is that?", "{n} - what is it?",
    "What should I know about {n}?", "Tell me what {n} does.", "Tell me what {n} is for.", "{n}, please explain",
    "The name {n}: what does it stand for?", "Say something about {n}.", "How does {n} help me?", "{n} explained",
    "What happens with {n}?", "What will {n} do?", "I have a question about {n}.", "Teach me {n}.",
    "What is a {n}?", "What's a {n}?", "What is an {n}?", "Summarise {n}.", "Is {n} good?", "Do you like {n}?",
    "What do you think about {n}?", "Let's talk about {n}.", "Why is {n} important?", "I love {n}.", "Who needs {n}?",
    "I want to use {n}. What does it do?", "In a few words, {n}?", "What kind of job does {n} do?",
]  # fmt: skip
# Combined with one another by `describe_templates`.
CLAUSES = ["what {n} does", "what {n} is", "what {n} is for", "what {n} means", "how {n} works", "what to do with {n}"]
ASKING = [
    "I wonder {c}.", "Please tell me {c}.", "Explain to me {c}.", "I'm trying to learn {c}.", "I want to know {c}.",
    "I want to understand {c}.", "Nobody could tell me {c}.", "Does anybody know {c}?", "I can't remember {c}.",
    "My teacher asked {c}.", "It is unclear to me {c}.", "Let me know {c}.", "I'm curious {c}.", "I'm not sure {c}.",
    "Write down {c}.", "In simple words, {c}?", "Any clue {c}?", "Could someone explain {c}?", "I have no idea {c}.",
    "I keep forgetting {c}.", "Would you mind telling me {c}?", "Can you say {c}?", "Show me {c}.", "Look up {c}.",
    "Be so kind and tell me {c}.", "Help me see {c}.", "I should know {c}.", "Is it known {c}?", "I never learnt {c}.",
    "We were discussing {c}.", "They want me to explain {c}.", "The exam asks {c}.", "Go on, tell me {c}.",
]  # fmt: skip
MEETING = [
    "I saw {n}", "I found {n}", "I read about {n}", "I noticed {n}", "I discovered {n}", "I heard of {n}", "There is {n}",
    "I stumbled upon {n}", "I spotted {n}", "Somebody wrote {n}", "They use {n}", "I ran into {n}", "We have {n}",
]  # fmt: skip
PLACES = [
    "", " in a book", " on a blog", " in my project", " at work", " in a tutorial", " in the logs", " in an old program",
    " yesterday", " in this file", " on line 12", " while debugging", " in the review", " in a stack trace", " again",
]  # fmt: skip
TAILS = ["What is it?", "What does it do?", "What's that?", "Explain.", "Meaning?", "What for?", "Help!", "Why?", "?"]
WANTING = [
    "Give me", "Write", "Show me", "I need", "Please provide", "Could I have", "May I have", "I would like", "Find me",
    "Print", "Let's have", "I'm looking for",
]  # fmt: skip
KINDS_OF_TEXT = [
    "a short description of", "an explanation of", "the definition of", "a quick overview of", "the gist of",
    "a one-line summary of", "the docstring of", "the documentation for", "the meaning of", "a few words about",
    "some information on", "details on", "the purpose of", "the idea behind", "the story of", "a note on",
]  # fmt: skip
HELD_OUT_DESCRIBE = [
    "What is {n} good for?", "Could you tell me what {n} is for?", "I came across {n} in some code. What is it?",
    "Describe {n} in one sentence.", "Remind me what {n} does.", "{n}: what's that?", "Explain briefly: {n}",
    "What would I use {n} for?", "Do you know {n}?", "Summarise {n} for me.", "I forgot what {n} is.",
    "Any idea what {n} does?", "Please enlighten me regarding {n}.", "I need a refresher on {n}.",
    "What business does {n} have in a program?", "Care to explain {n}?", "Can you shed some light on {n}?",
    "What's {n} all about?", "Got anything on {n}?", "What would a programmer reach for {n} for?",
]  # fmt: skip
SIGNATURE = [
    "What is the signature of {n}?", "signature of {n}", "Show the signature of {n}.", "{n} signature",
    "What arguments does {n} take?", "What parameters does {n} have?", "Which parameters does {n} accept?",
    "How do I call {n}?", "How is {n} called?", "arguments of {n}", "parameters of {n}", "What do I pass to {n}?",
    "Give me the signature of {n}.", "What's the call signature of {n}?", "Which arguments can I give to {n}?",
    "What are the arguments of {n}?", "How do I write a call of {n}?", "inspect.signature({n})",
]  # fmt: skip
HELD_OUT_SIGNATURE = [
    "Tell me the signature of {n}.", "Which arguments does {n} take?", "What does a call of {n} look like?",
    "What are the parameters of {n}?",
]  # fmt: skip
WHERE = [
    "Which module is {n} in?", "Where is {n}?", "Where is {n} defined?", "Which module has {n}?", "Where does {n} live?",
    "What module is {n} from?", "Where do I find {n}?", "which module has {n}", "Where can I find {n}?",
    "Where does {n} come from?", "In which module is {n}?", "What do I import for {n}?", "module of {n}",
]  # fmt: skip
HELD_OUT_WHERE = ["What module contains {n}?", "Which module does {n} belong to?", "Where would I find {n}?"]
KIND = [
    "What kind of thing is {n}?", "Is {n} a function or a class?", "Is {n} a class?", "Is {n} a function?",
    "What type of object is {n}?", "Is {n} a module?", "Is {n} a method?", "kind of {n}",
]  # fmt: skip
MEMBERS = [
    "What is in {n}?", "What does {n} contain?", "Name some things in {n}.", "What functions does {n} have?",
    "What can I find in {n}?", "List the contents of {n}.", "Which names are in {n}?", "What does {n} offer?",
]  # fmt: skip
HOW_TO = [
    "How to {t}?", "Is there a function to {t}?", "How can one {t}?", "What is the function to {t}?", "help me {t}",
    "How should I {t}?", "How do you {t}?", "Please help me {t}.", "Which name do I need to {t}?", "I'm trying to {t}.",
    "How do I {t}?", "How can I {t}?", "What do I use to {t}?", "How would I {t}?", "I want to {t}.", "{t}",
    "Which function do I need to {t}?", "I need to {t}.", "Is there something to {t}?", "how to {t}",
]  # fmt: skip
HELD_OUT_HOW_TO = ["What should I use to {t}?", "What's the way to {t}?"]

# Words that ask for something else; never used as filler around a name.
TELLING_WORDS = {
    "signature",
    "argument",
    "arguments",
    "parameter",
    "parameters",
    "accept",
    "accepts",
    "call",
    "calls",
    "called",
    "pass",
    "where",
    "module",
    "modules",
    "has",
    "have",
    "find",
    "import",
    "imports",
    "live",
    "lives",
    "defined",
    "kind",
    "type",
    "class",
    "function",
    "method",
    "in",
    "contain",
    "contains",
    "contents",
    "list",
    "names",
    "offer",
    "how",
    "use",
    "do",
    "does",
    "want",
    "need",
    "to",
    "is",
}


def plain(template):
    """Return a phrasing without case and punctuation, to compare phrasings."""
    return re.sub(r"[^a-z{} ]", "", template.lower()).strip()


@cache
def signature_templates():
    """Phrasings that ask for the arguments, with combined ones, less the held-out ones."""
    things = [
        "signature",
        "call signature",
        "arguments",
        "parameters",
        "argument list",
        "parameter list",
        "calling form",
    ]
    combined = [f"{want} the {thing} of {{n}}{end}" for want in WANTING for thing in things for end in (".", "")]
    combined += [
        f"What {be} the {thing} {of} {{n}}?" for be in ("is", "are") for thing in things for of in ("of", "for")
    ]
    combined += [
        f"{who} {verb} {{n}}?" for who in ("How do I", "How does one", "How should I", "How can we", "How must I")
        for verb in ("call", "invoke", "write a call of", "pass arguments to", "fill in the parameters of")
    ]  # fmt: skip
    return without_held_out(SIGNATURE + combined, HELD_OUT_SIGNATURE)


@cache
def where_templates():
    """Phrasings that ask for the home of a name, with combined ones, less the held-out ones."""
    homes = ["module", "package", "library module", "part of the library", "place"]
    combined = [f"{ask} {home} {rest}" for ask in ("Which", "What", "In which", "From which") for home in homes for rest in (
        "has {n}?", "is {n} in?", "holds {n}?", "defines {n}?", "provides {n}?", "do I get {n} from?", "is {n} from?",
        "brings {n}?", "does {n} come from?", "is the home of {n}?", "owns {n}?", "includes {n}?",
    )]  # fmt: skip
    combined += [f"{want} the {home} of {{n}}." for want in WANTING for home in ("module", "home", "place")]
    return without_held_out(WHERE + combined, HELD_OUT_WHERE)


def without_held_out(templates, held_out):
    """Return the templates that are not, but for case and punctuation, held out."""
    avoided = {plain(template) for template in held_out}
    return tuple(template for template in dict.fromkeys(templates) if plain(template) not in avoided)


@cache
def describe_templates():
    """Return every phrasing that asks what a name does, combined from the lists above, less the held-out ones."""
    combined = [ask.replace("{c}", clause) for ask in ASKING for clause in CLAUSES]
    combined += [f"{meet}{place}. {tail}" for meet in MEETING for place in PLACES for tail in TAILS]
    combined += [f"{want} {text} {{n}}{end}" for want in WANTING for text in KINDS_OF_TEXT for end in (".", "", "?")]
    return without_held_out(combined, HELD_OUT_DESCRIBE)


OPENERS = [
    "Hi, ", "Hello! ", "Hey, ", "Please: ", "Quick question: ", "I was wondering: ", "So, ", "OK, ", "Hi there. ",
    "Good morning! ", "A question: ", "In Python: ", "Python question: ", "Sorry, ", "Now: ", "Next: ", "And ", "Also, ",
]  # fmt: skip
CLOSERS = [
    " Thanks!", " Thank you.", " please", ", please", " in Python", " in Python?", " Be brief.", " In one sentence.",
    " I'm new to Python.", " Just curious.", " thx", " Keep it short.",
]  # fmt: skip
SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a Python expert.", "Be brief.", "You are terse.", "Answer in one line.",
    "You are a friendly tutor for Python beginners.", "Answer questions about the standard library.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "Help the user.", "Think before you answer.",
    "You answer questions about Python.", "You are an assistant inside a terminal.", "Be kind and precise.",
    "You know the Python documentation by heart.", "Reply politely.", "Only state facts.", "You are a chat bot.",
]  # fmt: skip

UNKNOWN = "I don't know that one."
NO_SIGNATURE = "I don't know its signature."
OUT_OF_SCOPE = "I only know names from Python's standard library. Ask me what one of them does."


# Follow-ups name nothing: the name is that of the turn before.
FOLLOW_UPS = {
    "signature": ["and its signature?", "What is its signature?", "What arguments does it take?", "How do I call it?",
                  "And the arguments?", "Which parameters does it have?", "signature?", "its parameters?"],
    "where": ["Which module is it in?", "Where is it?", "Where does it come from?", "Which module?", "and where is it?",
              "What do I import?"],
    "describe": ["What does it do?", "and what does it do?", "What is it for?", "Explain it.", "What is it?",
                 "And what is that?", "Can you explain it?"],
}  # fmt: skip
FOLLOW_UP_NAMES = [
    "And {n}?",
    "and {n}?",
    "What about {n}?",
    "How about {n}?",
    "{n}?",
    "Now {n}.",
    "And what is {n}?",
]

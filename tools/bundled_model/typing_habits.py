"""How people type: quotes around names, openings, missing marks."""

from . import phrasings

CALLABLE = {"function", "class", "method", "exception"}


def quoted(rng, name, is_callable):
    """Return the name as people type it: bare, in backticks or quotes, with parentheses."""
    if is_callable and rng.random() < 0.15:
        name += "()"
    style = rng.random()
    if style < 0.62:
        return name
    mark = "`" if style < 0.85 else '"' if style < 0.93 else "'"
    return f"{mark}{name}{mark}"


def dressed(rng, template, name, is_callable, quote=True, plain=False):
    """Return a template with the name put in, then the noise of real questions."""
    text = template.replace("{n}", quoted(rng, name, is_callable) if quote else name)
    if plain:
        return text
    if rng.random() < 0.12:
        opener = rng.choice(phrasings.OPENERS)
        keep = template.startswith(("{n}", "I ", "I'"))
        text = opener + (text if keep or not opener.endswith((", ", ": ")) else text[0].lower() + text[1:])
    if rng.random() < 0.1:
        shortened = rng.random() < 0.5
        text = (text.rstrip("?.") if shortened else text) + rng.choice(phrasings.CLOSERS)
    return noisy(rng, text, lower=not template.startswith("{n}"))


def noisy(rng, text, lower=True):
    """Return the text with, at times, a small first letter or another end."""
    if lower and rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    style = rng.random()
    if style < 0.12:
        text = text.rstrip("?.!")
    elif style < 0.14:
        text += "?"
    elif style < 0.16:
        text += " "
    return text or "?"

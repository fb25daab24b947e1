"""Limit what a chat template may compute: the number of loop iterations and calls, and the size of its values.

Templates are downloaded and untrusted. The sandbox of jinja2 prevents access to the machine, but neither endless loops
nor strings that exhaust memory.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
"""Maximum number of iterations and calls per rendering. Qwen3's template needs about ten per message."""
MAX_SIZE = 100_000_000
"""Maximum length of a string (characters) or list (items) that a template may build."""

_PADDING_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "replace", "join")

_DIRECTIVE = re.compile(r"%(?:\([^)]*\))?([-+ #0-9.*]+)")
_SPEC = re.compile(r"\{[^{}:]*:([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
MAX_DIGITS = 12
"""Digits read from a width in a format: longer than any allowed width, so that parsing stays cheap."""

_rendering = threading.local()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox of jinja2 with a budget of loop iterations, calls and operators per rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_check_printable, **options)
        self.globals.pop("lipsum", None)  # it generates random text of any length
        self.filters["_count_items"] = _count_items
        self.filters["_join_parts"] = _join_parts
        for name in ("center", "indent", "replace", "wordwrap", "join", "format"):
            self.filters[name] = _limit_filter(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _LoopCounter().visit(super()._parse(source, name, filename))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        _take_steps(1)
        if getattr(__obj, "__name__", "") in _PADDING_METHODS:
            _check_numbers(args)
        return _check_result(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @wraps(wrapped)
        def call_limited(*args: Any, **kwargs: Any) -> str:
            given = args[0].values() if value.__name__ == "format_map" and isinstance(args[0], dict) else args
            _check_format_spec(value.__self__, [*given, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return call_limited

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _take_steps(1)
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    _check_size(len(sequence) * count)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            _check_size(bits // 8)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)


class _LoopCounter(NodeTransformer):
    """Count the iterations of every loop, and limit the length of strings built with `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - named after the node
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_count_items", [], [], None, None).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - named after the node
        self.generic_visit(node)
        parts = nodes.List(node.nodes).set_lineno(node.lineno)
        return nodes.Filter(parts, "_join_parts", [], [], None, None).set_lineno(node.lineno)


class _CountedIterable:
    """An iterable that uses one step per item. It keeps its length, so `loop.length` does not iterate."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _take_steps(1)
            yield item

    def __len__(self) -> int:
        return len(self._items)


def _count_items(items: Any) -> Any:
    return items if isinstance(items, jinja2.Undefined) else _CountedIterable(items)


def _join_parts(parts: list[Any]) -> str:
    texts = [str(_check_printable(part)) for part in parts]
    _take_steps(len(texts))
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_printable(value: Any) -> Any:
    """Count the nested items of a value before it is converted to text, and return it.

    Nested lists may share items, so a short value can have a huge text.
    """
    if isinstance(value, list | tuple | dict):
        check_nested(value)
    return value


def check_nested(value: Any) -> None:
    """Raise SecurityError if a value is too large to be converted to text."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple | dict):
            _take_steps(len(item))
            waiting += item.values() if isinstance(item, dict) else item


def _limit_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps jinja2's attribute that passes the environment as first argument
    def call_limited(*args: Any, **kwargs: Any) -> Any:
        _check_numbers([*args[1:], *kwargs.values()])
        for value in args[:2]:
            if isinstance(value, str):
                _check_format(value, args)
        return _check_result(function(*args, **kwargs))

    return call_limited


def start_rendering(marks_generation: bool = False) -> None:
    """Reset the budget for a new rendering in this thread, and set whether it marks generated text."""
    _rendering.steps = MAX_STEPS
    _rendering.marks_generation = marks_generation


def marks_generation() -> bool:
    """Return whether the rendering in this thread marks the assistant's text."""
    return getattr(_rendering, "marks_generation", False)


def _take_steps(count: int) -> None:
    left = getattr(_rendering, "steps", MAX_STEPS) - count
    _rendering.steps = left
    if left < 0:
        raise SecurityError(f"it takes more than {MAX_STEPS:,} steps and may not terminate")


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"it builds a value of more than {MAX_SIZE:,} characters")


def _check_result(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _check_size(len(value))
    return value


def _check_numbers(values: Any) -> None:
    for value in values:
        if isinstance(value, int):
            _check_size(value)


def _check_format(pattern: str, values: Sequence[Any]) -> None:
    """Reject large widths such as those of `%100000000000d` and `%*d`."""
    widths = [re.findall(r"\d+", directive) for directive in _DIRECTIVE.findall(pattern)]
    _check_size(sum(int(width[:MAX_DIGITS]) for found in widths for width in found))
    if any("*" in directive for directive in _DIRECTIVE.findall(pattern)):
        _check_numbers(values)


def _check_format_spec(pattern: str, values: Sequence[Any]) -> None:
    """Reject large widths such as those of `{:>100000000000}` and `{:{width}}`."""
    specs = _SPEC.findall(pattern)
    _check_size(sum(int(number[:MAX_DIGITS]) for spec in specs for number in re.findall(r"\d+", spec)))
    if any("{" in spec for spec in specs):
        _check_numbers(values)

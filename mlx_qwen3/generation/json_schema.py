"""Check a JSON Schema and rewrite it so that the constraint engine obeys every word of it.

What cannot be kept is refused with the keyword and its path; annotations are left out. References become local ones
(nothing is ever fetched), patterns and dates are written as explicit character sets, and parts of the schema that no
finite value satisfies are replaced by `false` or refused.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConstraintError
from . import json_schema_references as references
from .regular_expressions import canonical, few_texts, parse

MAX_DEPTH = 120
"""Levels of a schema that are followed before it counts as nested without end."""

EXACT = 1 << 53
"""Integers up to here keep every digit in the engine."""

FEW_KEYS = 500
"""A pattern of property names with at most so many names is written out as these names."""

ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "nullable",
        "discriminator",
        "xml",
        "externalDocs",
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$comment",
        "$vocabulary",
        "$defs",
        "definitions",
        "$dynamicAnchor",
    ]
)
"""Keywords that say nothing about which values are valid, and those that only name parts of a schema."""

NOT_SUPPORTED = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$recursiveRef",
        "$recursiveAnchor",
        "additionalItems",
    ]
)

_OFFSET = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?{_OFFSET}"
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][48]|[2468]0|[13579][26])00)"
_YEAR = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP}-02-29)"
)
OWN_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""RFC 3339: no 29 February in other years, no second 60."""

FORMATS = frozenset(["duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])

_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")


def _natural(value: Any) -> bool:
    return _number(value) and value >= 0 and value == int(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _schema(value: Any) -> bool:
    return isinstance(value, bool | Mapping)


def _schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_schema, value))


def _named_schemas(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_schema, value.values()))


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _type(value: Any) -> bool:
    kinds = value if isinstance(value, list) and value else [value]
    return all(isinstance(kind, str) and kind in _TYPES for kind in kinds)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_type, f"one of {', '.join(_TYPES)}, or a list of them"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list with at least one value"),
    "const": (lambda value: True, ""),
    "properties": (_named_schemas, "an object of schemas"),
    "patternProperties": (_named_schemas, "an object of schemas"),
    "additionalProperties": (_schema, "a schema"),
    "required": (_names, "a list of names"),
    "minProperties": (_natural, "a whole number from 0"),
    "maxProperties": (_natural, "a whole number from 0"),
    "items": (_schema, "a schema"),
    "prefixItems": (_schemas, "a list of schemas"),
    "minItems": (_natural, "a whole number from 0"),
    "maxItems": (_natural, "a whole number from 0"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "minLength": (_natural, "a whole number from 0"),
    "maxLength": (_natural, "a whole number from 0"),
    "pattern": (lambda value: isinstance(value, str), "a regular expression"),
    "format": (lambda value: isinstance(value, str), "a name"),
    "minimum": (_number, "a finite number"),
    "maximum": (_number, "a finite number"),
    "exclusiveMinimum": (_number, "a finite number"),
    "exclusiveMaximum": (_number, "a finite number"),
    "multipleOf": (lambda value: _number(value) and value > 0, "a number above 0"),
    "anyOf": (_schemas, "a list with at least one schema"),
    "oneOf": (_schemas, "a list with at least one schema"),
    "allOf": (_schemas, "a list with at least one schema"),
    "$ref": (lambda value: isinstance(value, str), "a text"),
}
"""Supported keyword → whether its value has the right form, and that form in words."""


class Rewriter:
    """Rewrites one schema; `result` is what the engine gets, `open_objects` whether objects may have free names."""

    def __init__(self, schema: Any):
        self.open_objects = False
        self.index = references.Index(schema)
        self.draft = references.draft_of(schema)
        self.targets: dict[int, str] = {}
        self.definitions: dict[str, Any] = {}
        self.waiting: list[tuple[str, Any, str, str]] = []
        result = self.schema(schema, "#", "", 0)
        while self.waiting:
            name, target, path, base = self.waiting.pop()
            self.definitions[name] = self.schema(target, path, base, 0)
        if not isinstance(result, Mapping):
            raise ConstraintError("the schema is false at #: no value is valid. Change the schema")
        self.result = {**result, "$defs": self.definitions} if self.definitions else dict(result)
        references.refuse_endless(self.result)

    def schema(self, node: Any, path: str, base: str, depth: int) -> Any:
        """Return the rewritten schema of a node at `path`, in a resource whose address is `base`."""
        if isinstance(node, bool):
            return {} if node else False
        if not isinstance(node, Mapping):
            raise ConstraintError(f"the schema at {path} is {_short(node)}, not an object. Give a JSON Schema")
        if depth > MAX_DEPTH:
            raise ConstraintError(f"the schema is nested without end at {path[:80]}. Use $ref for recursion")
        base = references.base_of(node, base)
        if "$ref" in node and self.draft <= 7:  # there a reference hides what stands beside it
            node = {"$ref": node["$ref"]}
        node = self._modern(node, path)
        self._check_words(node, path)
        out: dict[str, Any] = {}
        for word, value in node.items():
            if word in ANNOTATIONS or word.startswith("x-"):
                continue
            where = f"{path}/{word}"
            check, expected = CHECKS[word]
            if not check(value):
                raise ConstraintError(f"{word} at {path} is {_short(value)}, expected {expected}. Mend the schema")
            if word in ("items", "additionalProperties"):
                out[word] = self.schema(value, where, base, depth + 1)
            elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
                out[word] = [self.schema(v, f"{where}/{i}", base, depth + 1) for i, v in enumerate(value)]
            elif word == "properties":
                out[word] = {
                    _text(name, where): self.schema(v, f"{where}/{name}", base, depth + 1) for name, v in value.items()
                }
            elif word == "$ref":
                out[word] = self._reference(value, path, base)
            elif word in ("const", "enum"):
                out[word] = _exact_values(value, word, path)
            elif word not in ("pattern", "format", "patternProperties", "uniqueItems"):
                out[word] = int(value) if check is _natural else value
        self._add_bounds(out, path)
        self._add_patterns(node, out, path)
        self._add_named_patterns(node, out, path, base, depth)
        return out

    def _modern(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Write older drafts' keywords as those of 2020-12."""
        node = dict(node)
        if self.draft <= 2019 and isinstance(node.get("items"), list):
            first, rest = node.pop("items"), node.pop("additionalItems", True)
            node |= {"prefixItems": first, "items": rest} if first else {"items": rest}
        elif self.draft <= 2019:
            node.pop("additionalItems", None)
        if self.draft <= 4:
            for word, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
                if isinstance(node.get(word), bool):
                    strict = node.pop(word)
                    if strict and bound in node:
                        node[word] = node.pop(bound)
        return node

    def _check_words(self, node: Mapping[str, Any], path: str) -> None:
        for word, value in node.items():
            if not isinstance(word, str):
                raise ConstraintError(f"the schema at {path} has the key {word!r}, which is no text. Mend the schema")
            if word in NOT_SUPPORTED or (word == "uniqueItems" and value is True):
                raise ConstraintError(f"{word} at {path} is not supported. Leave it out, and check the answer yourself")
            if word not in CHECKS and word not in ANNOTATIONS and not word.startswith("x-"):
                close = difflib.get_close_matches(word, [*CHECKS, *ANNOTATIONS, *NOT_SUPPORTED], 1, 0.7)
                hint = f"Did you mean {close[0]}?" if close else "Leave it out, or give it the prefix x-"
                raise ConstraintError(f"unknown keyword {word} at {path}. {hint}")

    def _reference(self, reference: str, path: str, base: str) -> str:
        target, where, inner = self.index.find(reference, path, base)
        if id(target) not in self.targets:
            self.targets[id(target)] = name = f"d{len(self.targets)}"
            self.waiting.append((name, target, where, inner))
        return f"#/$defs/{self.targets[id(target)]}"

    def _add_bounds(self, out: dict[str, Any], path: str) -> None:
        """Bring bounds into the range in which the engine computes exactly."""
        for word, sign in (("minimum", 1), ("maximum", -1), ("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            value = out.get(word)
            if value is None:
                continue
            if sign * value > EXACT:
                raise ConstraintError(f"{word} at {path} is {_short(value)}, beyond 2^53. Use a smaller bound")
            if sign * value < -EXACT:
                out[word] = -sign * EXACT  # stricter, and exact
        if isinstance(out.get("multipleOf"), int | float) and out["multipleOf"] > EXACT:
            raise ConstraintError(
                f"multipleOf at {path} is {_short(out['multipleOf'])}, beyond 2^53. Use a smaller one"
            )

    def _add_patterns(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        patterns = []
        if "pattern" in node:
            patterns.append(f"^{canonical(node['pattern'], search=True, what=f'pattern at {path}')}$")
        if "format" in node:
            name = node["format"]
            if name in OWN_FORMATS:
                patterns.append(f"^{canonical(OWN_FORMATS[name], search=True)}$")
            elif name in FORMATS:
                out["format"] = name
            else:
                known = ", ".join(sorted(FORMATS | set(OWN_FORMATS)))
                raise ConstraintError(f"format at {path} is {_short(name)}, which is not supported. Use one of {known}")
        if patterns:
            out["pattern"] = patterns[0]
        if len(patterns) > 1:
            out["allOf"] = [*out.get("allOf", ()), {"pattern": patterns[1]}]

    def _add_named_patterns(
        self, node: Mapping[str, Any], out: dict[str, Any], path: str, base: str, depth: int
    ) -> None:
        """Write patternProperties, and note whether an object may have names that nobody listed."""
        for pattern, value in node.get("patternProperties", {}).items():
            where = f"{path}/patternProperties"
            tree = parse(pattern, search=True, what=f"patternProperties at {path}")
            schema = self.schema(value, f"{where}/{pattern}", base, depth + 1)
            names = few_texts(tree, FEW_KEYS)
            if names is None:
                out.setdefault("patternProperties", {})[f"^{canonical(pattern, search=True)}$"] = schema
                continue
            if "minProperties" in node or "maxProperties" in node:
                bound = "minProperties" if "minProperties" in node else "maxProperties"
                raise ConstraintError(f"{bound} at {path} beside patternProperties of few names is not supported")
            own = out.setdefault("properties", {})
            for name in names:
                own[name] = {"allOf": [own[name], schema]} if name in own else schema
        may_be_object = "object" in _kinds(out) and "const" not in out and "enum" not in out
        if may_be_object and out.get("patternProperties"):
            self.open_objects = True
        only_refers = not {"type", "properties", "additionalProperties", "required"} & set(out)
        combined = {"anyOf", "oneOf", "allOf", "$ref"} & set(out)
        if may_be_object and out.get("additionalProperties", True) is not False and not (only_refers and combined):
            self.open_objects = True


def _kinds(out: Mapping[str, Any]) -> list[str]:
    kinds = out.get("type", list(_TYPES))
    return [kinds] if isinstance(kinds, str) else kinds


def _exact_values(value: Any, word: str, path: str) -> Any:
    """Check that the engine writes a value as it stands."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return _text(value, f"{path}/{word}")
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > EXACT:
            raise ConstraintError(
                f"{word} at {path} holds {_short(value)}, which cannot be written exactly. Use a text"
            )
        return int(value) if value == int(value) else value
    if isinstance(value, list):
        return [_exact_values(item, word, path) for item in value]
    if isinstance(value, Mapping):
        return {_text(name, path): _exact_values(item, word, path) for name, item in value.items()}
    raise ConstraintError(f"{word} at {path} holds {_short(value)}, which JSON does not have. Use JSON values")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        raise ConstraintError(f"the schema at {path} holds {_short(value)}, which is no valid text. Mend the schema")
    return value


def _short(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."

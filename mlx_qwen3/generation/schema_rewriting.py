"""Check a JSON Schema and rewrite it so that the constraint engine enforces all of its keywords.

Keywords that cannot be enforced are refused with their path, and annotations are removed. References are replaced by
local ones (nothing is ever downloaded). Patterns and dates are rewritten with explicit character sets. Parts of the
schema without finite values are replaced by `false` or refused.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConstraintError
from . import schema_references as references
from .regular_expressions import few_texts, parse, rewrite_pattern

MAX_DEPTH = 120
"""Maximum nesting depth of a schema."""

EXACT = 1 << 53
"""The largest integer that the engine represents exactly."""

FEW_KEYS = 500
"""A pattern of property names that matches at most this many names is replaced by the list of names."""

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
"""Keywords that do not restrict values, and keywords that only identify parts of a schema."""

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
"""Format → pattern according to RFC 3339; 29 February only in leap years, no leap seconds."""

FORMATS = frozenset(["duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])

_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")


def _is_natural(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, bool | Mapping)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _are_named_schemas(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_schema, value.values()))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_type(value: Any) -> bool:
    kinds = value if isinstance(value, list) and value else [value]
    return all(isinstance(kind, str) and kind in _TYPES for kind in kinds)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(_TYPES)}, or a list of them"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list with at least one value"),
    "const": (lambda value: True, ""),
    "properties": (_are_named_schemas, "an object of schemas"),
    "patternProperties": (_are_named_schemas, "an object of schemas"),
    "additionalProperties": (_is_schema, "a schema"),
    "required": (_are_names, "a list of names"),
    "minProperties": (_is_natural, "a whole number from 0"),
    "maxProperties": (_is_natural, "a whole number from 0"),
    "items": (_is_schema, "a schema"),
    "prefixItems": (_are_schemas, "a list of schemas"),
    "minItems": (_is_natural, "a whole number from 0"),
    "maxItems": (_is_natural, "a whole number from 0"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "minLength": (_is_natural, "a whole number from 0"),
    "maxLength": (_is_natural, "a whole number from 0"),
    "pattern": (lambda value: isinstance(value, str), "a regular expression"),
    "format": (lambda value: isinstance(value, str), "a name"),
    "minimum": (_is_number, "a finite number"),
    "maximum": (_is_number, "a finite number"),
    "exclusiveMinimum": (_is_number, "a finite number"),
    "exclusiveMaximum": (_is_number, "a finite number"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "anyOf": (_are_schemas, "a list with at least one schema"),
    "oneOf": (_are_schemas, "a list with at least one schema"),
    "allOf": (_are_schemas, "a list with at least one schema"),
    "$ref": (lambda value: isinstance(value, str), "a text"),
}
"""Supported keyword → function that returns whether a value is valid, and a description of valid values."""


class SchemaRewriter:
    """Rewrites one schema.

    Attributes:
        result: the schema for the engine.
        open_objects: whether objects may have names that the schema does not list.

    Raises:
        ConstraintError: the schema is invalid, not supported or without finite values.
    """

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
            raise ConstraintError("the schema is false at #: no value is valid. Change the schema.")
        self.result = {**result, "$defs": self.definitions} if self.definitions else dict(result)
        references.refuse_endless(self.result)

    def schema(self, node: Any, path: str, base: str, depth: int) -> Any:
        """Return the rewritten schema of a node at `path`, in a resource with the base URI `base`."""
        if isinstance(node, bool):
            return {} if node else False
        if not isinstance(node, Mapping):
            raise ConstraintError(f"the schema at {path} is {_shorten(node)}, not an object. Pass a JSON Schema.")
        if depth > MAX_DEPTH:
            raise ConstraintError(f"the schema is nested too deeply at {path[:80]}. Use $ref for recursion.")
        base = references.base_of(node, base)
        if "$ref" in node and self.draft <= 7:  # before draft 2019, keywords beside $ref are ignored
            node = {"$ref": node["$ref"]}
        node = self._modernize(node, path)
        self._check_keywords(node, path)
        out: dict[str, Any] = {}
        for word, value in node.items():
            if word in ANNOTATIONS or word.startswith("x-"):
                continue
            where = f"{path}/{word}"
            check, expected = CHECKS[word]
            if not check(value):
                raise ConstraintError(
                    f"{word} at {path} is {_shorten(value)}, expected {expected}. Correct the schema."
                )
            if word in ("items", "additionalProperties"):
                out[word] = self.schema(value, where, base, depth + 1)
            elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
                out[word] = [self.schema(v, f"{where}/{i}", base, depth + 1) for i, v in enumerate(value)]
            elif word == "properties":
                out[word] = {
                    _check_text(name, where): self.schema(v, f"{where}/{name}", base, depth + 1)
                    for name, v in value.items()
                }
            elif word == "$ref":
                out[word] = self._add_reference(value, path, base)
            elif word in ("const", "enum"):
                out[word] = _check_values(value, word, path)
            elif word not in ("pattern", "format", "patternProperties", "uniqueItems"):
                out[word] = int(value) if check is _is_natural else value
        self._add_bounds(out, path)
        self._add_patterns(node, out, path)
        self._add_named_patterns(node, out, path, base, depth)
        return out

    def _modernize(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Convert the keywords of older drafts to those of 2020-12."""
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

    def _check_keywords(self, node: Mapping[str, Any], path: str) -> None:
        for word, value in node.items():
            if not isinstance(word, str):
                raise ConstraintError(f"the schema at {path} has the key {word!r}, not a text. Correct the schema.")
            if word in NOT_SUPPORTED or (word == "uniqueItems" and value is True):
                raise ConstraintError(f"{word} at {path} is not supported. Omit it, and check the answer yourself.")
            if word not in CHECKS and word not in ANNOTATIONS and not word.startswith("x-"):
                close = difflib.get_close_matches(word, [*CHECKS, *ANNOTATIONS, *NOT_SUPPORTED], 1, 0.7)
                hint = f"Did you mean {close[0]}?" if close else "Omit it, or add the prefix x-."
                raise ConstraintError(f"unknown keyword {word} at {path}. {hint}")

    def _add_reference(self, reference: str, path: str, base: str) -> str:
        target, where, inner = self.index.find(reference, path, base)
        if id(target) not in self.targets:
            self.targets[id(target)] = name = f"d{len(self.targets)}"
            self.waiting.append((name, target, where, inner))
        return f"#/$defs/{self.targets[id(target)]}"

    def _add_bounds(self, out: dict[str, Any], path: str) -> None:
        """Limit bounds to the range in which the engine computes exactly."""
        for word, sign in (("minimum", 1), ("maximum", -1), ("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            value = out.get(word)
            if value is None:
                continue
            if sign * value > EXACT:
                raise ConstraintError(f"{word} at {path} is {_shorten(value)}, beyond 2^53. Use a smaller bound.")
            if sign * value < -EXACT:
                out[word] = -sign * EXACT  # a stricter bound that is exact
        if isinstance(out.get("multipleOf"), int | float) and out["multipleOf"] > EXACT:
            raise ConstraintError(
                f"multipleOf at {path} is {_shorten(out['multipleOf'])}, beyond 2^53. Use a smaller one."
            )

    def _add_patterns(self, node: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        patterns = []
        if "pattern" in node:
            patterns.append(f"^{rewrite_pattern(node['pattern'], search=True, what=f'pattern at {path}')}$")
        if "format" in node:
            name = node["format"]
            if name in OWN_FORMATS:
                patterns.append(f"^{rewrite_pattern(OWN_FORMATS[name], search=True)}$")
            elif name in FORMATS:
                out["format"] = name
            else:
                known = ", ".join(sorted(FORMATS | set(OWN_FORMATS)))
                raise ConstraintError(
                    f"format at {path} is {_shorten(name)}, which is not supported. Use one of {known}."
                )
        if patterns:
            out["pattern"] = patterns[0]
        if len(patterns) > 1:
            out["allOf"] = [*out.get("allOf", ()), {"pattern": patterns[1]}]

    def _add_named_patterns(
        self, node: Mapping[str, Any], out: dict[str, Any], path: str, base: str, depth: int
    ) -> None:
        """Rewrite patternProperties, and record whether objects may have names that the schema does not list."""
        for pattern, value in node.get("patternProperties", {}).items():
            where = f"{path}/patternProperties"
            tree = parse(pattern, search=True, what=f"patternProperties at {path}")
            schema = self.schema(value, f"{where}/{pattern}", base, depth + 1)
            names = few_texts(tree, FEW_KEYS)
            if names is None:
                out.setdefault("patternProperties", {})[f"^{rewrite_pattern(pattern, search=True)}$"] = schema
                continue
            if "minProperties" in node or "maxProperties" in node:
                bound = "minProperties" if "minProperties" in node else "maxProperties"
                raise ConstraintError(
                    f"{bound} at {path} is not supported beside patternProperties with few names. Omit one of them."
                )
            own = out.setdefault("properties", {})
            for name in names:
                own[name] = {"allOf": [own[name], schema]} if name in own else schema
        may_be_object = "object" in _list_types(out) and "const" not in out and "enum" not in out
        if may_be_object and out.get("patternProperties"):
            self.open_objects = True
        only_refers = not {"type", "properties", "additionalProperties", "required"} & set(out)
        combined = {"anyOf", "oneOf", "allOf", "$ref"} & set(out)
        if may_be_object and out.get("additionalProperties", True) is not False and not (only_refers and combined):
            self.open_objects = True


def _list_types(out: Mapping[str, Any]) -> list[str]:
    kinds = out.get("type", list(_TYPES))
    return [kinds] if isinstance(kinds, str) else kinds


def _check_values(value: Any, word: str, path: str) -> Any:
    """Return a value of const or enum; raise `ConstraintError` unless the engine can generate it exactly."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return _check_text(value, f"{path}/{word}")
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > EXACT:
            raise ConstraintError(
                f"{word} at {path} contains {_shorten(value)}, which cannot be represented exactly. Use a text."
            )
        return int(value) if value == int(value) else value
    if isinstance(value, list):
        return [_check_values(item, word, path) for item in value]
    if isinstance(value, Mapping):
        return {_check_text(name, path): _check_values(item, word, path) for name, item in value.items()}
    raise ConstraintError(f"{word} at {path} contains {_shorten(value)}, which is not a JSON value. Use JSON values.")


def _check_text(value: Any, path: str) -> str:
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        raise ConstraintError(f"the schema at {path} contains {_shorten(value)}, not a valid text. Correct the schema.")
    if re.search("[\x00-\x07\x0b\x0e-\x1f]", value):  # JSON writes them as \u escapes, which is never generated
        raise ConstraintError(
            f"the schema at {path} contains {_shorten(value)} with a control character that has no short escape. "
            "Remove the character."
        )
    return value


def _shorten(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."

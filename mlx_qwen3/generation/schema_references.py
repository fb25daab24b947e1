"""Resolve references within a JSON Schema, and detect infinite recursion.

Sources: JSON Schema 2020-12 core, sections 8.2 (identifiers) and 8.2.3 (references); RFC 6901 for pointers.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from ..errors import ConstraintError

_DATA = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords whose values are data and contain no schemas."""

MAX_DEPTH = 300


def draft_of(schema: Any) -> int:
    """Return the draft that `$schema` names: 3, 4, 6, 7, 2019 or 2020. Without `$schema` it is 2020.

    Raises:
        ConstraintError: `$schema` is not a draft of JSON Schema.
    """
    named = str(schema.get("$schema", "")) if isinstance(schema, Mapping) else ""
    found = re.search(r"json-schema\.org/draft(?:-0?|/)(\d+)", named)
    if named and not found:
        raise ConstraintError(f"$schema at # is {named[:60]!r}, which is not supported. Use draft 2020-12.")
    return int(found[1]) if found else 2020


def base_of(node: Mapping[str, Any], base: str) -> str:
    """Return the base URI of a node inside a resource with the base URI `base`."""
    own = node.get("$id")
    return urljoin(base, urldefrag(own).url) if isinstance(own, str) else base


class Index:
    """An index of the parts of a schema that references can point to.

    Attributes:
        resources: base URI → schema and its path.
        anchors: base URI and anchor → schema and its path.

    Raises:
        ConstraintError: the schema is nested too deeply.
    """

    def __init__(self, schema: Any):
        self.root = schema
        self.resources: dict[str, tuple[Any, str]] = {"": (schema, "#")}
        self.anchors: dict[tuple[str, str], tuple[Any, str]] = {}
        for node, path, base in _walk_nodes(schema, "#", "", 0):
            if isinstance(node.get("$id"), str):
                anchor = urldefrag(node["$id"]).fragment
                self.resources.setdefault(base, (node, path))
                if anchor:
                    self.anchors[base, anchor] = node, path
            for word in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.get(word), str):
                    self.anchors[base, node[word]] = node, path

    def find(self, reference: str, path: str, base: str) -> tuple[Any, str, str]:
        """Return the target of a reference at `path`: the schema, its path and its base URI.

        Raises:
            ConstraintError: the target does not exist or is outside of the schema.
        """
        address, fragment = urldefrag(urljoin(base, reference) if reference else base)
        if reference.startswith("#"):
            address, fragment = base, reference[1:]
        if address not in self.resources:
            raise ConstraintError(
                f"$ref at {path} is {reference[:80]!r}, outside of this schema. Add the target to $defs: nothing is "
                "downloaded."
            )
        node, where = self.resources[address]
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if (address, fragment) not in self.anchors:
                raise ConstraintError(
                    f"$ref at {path} is {reference[:80]!r}, but there is no such anchor. Correct the reference."
                )
            return *self.anchors[address, fragment], address
        for step in fragment.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isdigit() and int(step) < len(node):
                node = node[int(step)]
            else:
                raise ConstraintError(
                    f"$ref at {path} is {reference[:80]!r}, but the schema has no such part. Correct the reference."
                )
            where = f"{where}/{step}"
            if isinstance(node, Mapping):
                address = base_of(node, address)
        return node, where, address


def _walk_nodes(node: Any, path: str, base: str, depth: int) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    if depth > MAX_DEPTH:
        raise ConstraintError(f"the schema is nested too deeply at {path[:80]}. Use $ref for recursion.")
    if isinstance(node, Mapping):
        base = base_of(node, base)
        yield node, path, base
        for word, value in node.items():
            if word not in _DATA:
                yield from _walk_nodes(value, f"{path}/{word}", base, depth + 1)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _walk_nodes(value, f"{path}/{i}", base, depth + 1)


def refuse_endless(schema: dict[str, Any]) -> None:
    """Refuse a rewritten schema without finite values, and replace optional parts without finite values by `false`.

    Raises:
        ConstraintError: a reference is circular, or the schema has no finite value.
    """
    definitions = schema.get("$defs", {})
    _refuse_cycles(definitions)
    finite: set[str] = set()
    while True:
        more = {name for name, node in definitions.items() if name not in finite and _is_finite(node, finite)}
        if not more:
            break
        finite |= more
    if not _is_finite(schema, finite):
        if _is_finite(schema, {*definitions}):
            raise ConstraintError("$ref at # recurses without end: no finite value is valid. Make it optional.")
        word, path = _find_contradiction(schema, "#", {*definitions})
        raise ConstraintError(
            f"{word} at {path} requires what the schema forbids: no value is valid. Change the schema."
        )
    for node in (schema, *definitions.values()):
        _prune(node, finite)


def _refuse_cycles(definitions: Mapping[str, Any]) -> None:
    """Raise for a reference that leads back to itself through references and combinations only: it has no meaning."""
    done: set[str] = set()

    def visit(node: Any, trail: tuple[str, ...]) -> None:
        if not isinstance(node, Mapping):
            return
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            if name in trail:
                raise ConstraintError(
                    "$ref is circular: it leads back to itself without describing a value. Correct the schema."
                )
            if name not in done:
                visit(definitions[name], (*trail, name))
                done.add(name)
        for word in ("anyOf", "oneOf", "allOf"):
            for part in node.get(word, ()):
                visit(part, trail)

    for name, node in definitions.items():
        if name not in done:
            visit(node, (name,))
            done.add(name)


def _is_finite(node: Any, finite: set[str]) -> bool:
    """Return whether a schema has finite values, given the names of the definitions that have them."""
    if not isinstance(node, Mapping):
        return node is not False
    kinds = node.get("type", ["object", "array", "string"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    simple = any(kind not in ("object", "array") for kind in kinds) or "const" in node or "enum" in node
    if "$ref" in node and node["$ref"].rsplit("/", 1)[1] not in finite:
        return False
    if not all(_is_finite(part, finite) for part in node.get("allOf", ())):
        return False
    for word in ("anyOf", "oneOf"):
        if word in node and not any(_is_finite(part, finite) for part in node[word]):
            return False
    return (
        simple
        or ("object" in kinds and _object_is_finite(node, finite))
        or ("array" in kinds and _array_is_finite(node, finite))
    )


def _object_is_finite(node: Mapping[str, Any], finite: set[str]) -> bool:
    own, others = node.get("properties", {}), node.get("additionalProperties", {})
    return all(
        _is_finite(own.get(name, {} if "patternProperties" in node else others), finite)
        for name in node.get("required", ())
    )


def _find_contradiction(node: Any, path: str, finite: set[str]) -> tuple[str, str]:
    """Return the keyword because of which a schema has no values, and its path."""
    if not isinstance(node, Mapping):
        return "false", path
    for word in ("allOf", "anyOf", "oneOf"):
        parts = node.get(word, ())
        dead = [i for i, part in enumerate(parts) if not _is_finite(part, finite)]
        if dead and (word == "allOf" or len(dead) == len(parts)):
            return _find_contradiction(parts[dead[0]], f"{path}/{word}/{dead[0]}", finite)
    kinds = node.get("type", ["object", "array"])
    if "object" in kinds and not _object_is_finite(node, finite):
        for name in node.get("required", ()):
            part = node.get("properties", {}).get(name)
            if isinstance(part, Mapping) and not _is_finite(part, finite):
                return _find_contradiction(part, f"{path}/properties/{name}", finite)
        return "required", path
    return "minItems", path


def _array_is_finite(node: Mapping[str, Any], finite: set[str]) -> bool:
    count = int(node.get("minItems", 0))
    first = node.get("prefixItems", [])
    return all(_is_finite(part, finite) for part in first[:count]) and (
        count <= len(first) or _is_finite(node.get("items", {}), finite)
    )


def _prune(node: Any, finite: set[str]) -> None:
    """Replace parts without finite values by `false`: the engine could begin them and would never finish."""
    if not isinstance(node, dict):
        return
    for word in ("anyOf", "oneOf"):
        if word in node:
            node[word] = [part for part in node[word] if _is_finite(part, finite)]
    for word in ("properties", "patternProperties"):
        for name, part in node.get(word, {}).items():
            node[word][name] = part if _is_finite(part, finite) else False
    for word in ("items", "additionalProperties"):
        if word in node and not _is_finite(node[word], finite):
            node[word] = False
    for i, part in enumerate(node.get("prefixItems", ())):
        node["prefixItems"][i] = part if _is_finite(part, finite) else False
    for word, value in node.items():
        if word in ("items", "additionalProperties"):
            _prune(value, finite)
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for part in value:
                _prune(part, finite)
        elif word in ("properties", "patternProperties", "$defs"):
            for part in value.values():
                _prune(part, finite)

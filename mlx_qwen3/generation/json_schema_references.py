"""Resolve the references of a JSON Schema inside the schema itself, and find recursion without end.

Sources: JSON Schema 2020-12 core, sections 8.2 (identifiers) and 8.2.3 (references); RFC 6901 for pointers.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from ..errors import ConstraintError

_DATA = frozenset({"const", "enum", "default", "examples", "example"})
"""Keywords whose values are data in which no schema is looked for."""

MAX_DEPTH = 300


def draft_of(schema: Any) -> int:
    """Return the draft that `$schema` names: 3, 4, 6, 7, 2019 or 2020, the last where nothing is named."""
    named = str(schema.get("$schema", "")) if isinstance(schema, Mapping) else ""
    found = re.search(r"json-schema\.org/draft(?:-0?|/)(\d+)", named)
    if named and not found:
        raise ConstraintError(f"$schema at # is {named[:60]!r}, which is not supported. Use draft 2020-12")
    return int(found[1]) if found else 2020


def base_of(node: Mapping[str, Any], base: str) -> str:
    """Return the address of the resource that a node belongs to."""
    own = node.get("$id")
    return urljoin(base, urldefrag(own).url) if isinstance(own, str) else base


class Index:
    """The parts of a schema that a reference can name."""

    def __init__(self, schema: Any):
        self.root = schema
        self.resources: dict[str, tuple[Any, str]] = {"": (schema, "#")}
        self.anchors: dict[tuple[str, str], tuple[Any, str]] = {}
        for node, path, base in _nodes(schema, "#", "", 0):
            if isinstance(node.get("$id"), str):
                anchor = urldefrag(node["$id"]).fragment
                self.resources.setdefault(base, (node, path))
                if anchor:
                    self.anchors[base, anchor] = node, path
            for word in ("$anchor", "$dynamicAnchor"):
                if isinstance(node.get(word), str):
                    self.anchors[base, node[word]] = node, path

    def find(self, reference: str, path: str, base: str) -> tuple[Any, str, str]:
        """Return what a reference at `path` names: a schema, its path, the address of its resource.

        Raises:
            ConstraintError: there is no such part, or it is somewhere else.
        """
        address, fragment = urldefrag(urljoin(base, reference) if reference else base)
        if reference.startswith("#"):
            address, fragment = base, reference[1:]
        if address not in self.resources:
            raise ConstraintError(
                f"$ref at {path} is {reference[:80]!r}, not part of this schema. Put it into $defs: nothing is fetched"
            )
        node, where = self.resources[address]
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if (address, fragment) not in self.anchors:
                raise ConstraintError(f"$ref at {path} is {reference[:80]!r}, but there is no such anchor")
            return *self.anchors[address, fragment], address
        for step in fragment.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isdigit() and int(step) < len(node):
                node = node[int(step)]
            else:
                raise ConstraintError(f"$ref at {path} is {reference[:80]!r}, but the schema has no such part")
            where = f"{where}/{step}"
            if isinstance(node, Mapping):
                address = base_of(node, address)
        return node, where, address


def _nodes(node: Any, path: str, base: str, depth: int) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    if depth > MAX_DEPTH:
        raise ConstraintError(f"the schema is nested without end at {path[:80]}. Use $ref for recursion")
    if isinstance(node, Mapping):
        base = base_of(node, base)
        yield node, path, base
        for word, value in node.items():
            if word not in _DATA:
                yield from _nodes(value, f"{path}/{word}", base, depth + 1)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _nodes(value, f"{path}/{i}", base, depth + 1)


def refuse_endless(schema: dict[str, Any]) -> None:
    """Refuse a rewritten schema that no finite value satisfies, and write `false` for such parts that may be left out.

    Raises:
        ConstraintError: a reference that leads back to itself, or recursion without end.
    """
    definitions = schema.get("$defs", {})
    _refuse_circles(definitions)
    finite: set[str] = set()
    while True:
        more = {name for name, node in definitions.items() if name not in finite and _ends(node, finite)}
        if not more:
            break
        finite |= more
    if not _ends(schema, finite):
        if _ends(schema, {*definitions}):
            raise ConstraintError("$ref at # recurses without end: no finite value is valid. Make it optional")
        word, path = _blocked(schema, "#", {*definitions})
        raise ConstraintError(f"{word} at {path} demands what the schema forbids: no value is valid. Change the schema")
    for node in (schema, *definitions.values()):
        _prune(node, finite)


def _refuse_circles(definitions: Mapping[str, Any]) -> None:
    """A reference reached through nothing but references and combinations describes nothing."""
    done: set[str] = set()

    def visit(node: Any, trail: tuple[str, ...]) -> None:
        if not isinstance(node, Mapping):
            return
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            if name in trail:
                raise ConstraintError(
                    "$ref is circular: it leads back to itself and describes nothing. Mend the schema"
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


def _ends(node: Any, finite: set[str]) -> bool:
    """Tell whether a schema has finite values, given the definitions that have."""
    if not isinstance(node, Mapping):
        return node is not False
    kinds = node.get("type", ["object", "array", "string"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    simple = any(kind not in ("object", "array") for kind in kinds) or "const" in node or "enum" in node
    if "$ref" in node and node["$ref"].rsplit("/", 1)[1] not in finite:
        return False
    if not all(_ends(part, finite) for part in node.get("allOf", ())):
        return False
    for word in ("anyOf", "oneOf"):
        if word in node and not any(_ends(part, finite) for part in node[word]):
            return False
    return (
        simple or ("object" in kinds and _object_ends(node, finite)) or ("array" in kinds and _array_ends(node, finite))
    )


def _object_ends(node: Mapping[str, Any], finite: set[str]) -> bool:
    own, others = node.get("properties", {}), node.get("additionalProperties", {})
    return all(
        _ends(own.get(name, {} if "patternProperties" in node else others), finite) for name in node.get("required", ())
    )


def _blocked(node: Any, path: str, finite: set[str]) -> tuple[str, str]:
    """Return the keyword that leaves a schema without values, and its path."""
    if not isinstance(node, Mapping):
        return "false", path
    for word in ("allOf", "anyOf", "oneOf"):
        parts = node.get(word, ())
        dead = [i for i, part in enumerate(parts) if not _ends(part, finite)]
        if dead and (word == "allOf" or len(dead) == len(parts)):
            return _blocked(parts[dead[0]], f"{path}/{word}/{dead[0]}", finite)
    kinds = node.get("type", ["object", "array"])
    if "object" in kinds and not _object_ends(node, finite):
        for name in node.get("required", ()):
            part = node.get("properties", {}).get(name)
            if isinstance(part, Mapping) and not _ends(part, finite):
                return _blocked(part, f"{path}/properties/{name}", finite)
        return "required", path
    return "minItems", path


def _array_ends(node: Mapping[str, Any], finite: set[str]) -> bool:
    count = int(node.get("minItems", 0))
    first = node.get("prefixItems", [])
    return all(_ends(part, finite) for part in first[:count]) and (
        count <= len(first) or _ends(node.get("items", {}), finite)
    )


def _prune(node: Any, finite: set[str]) -> None:
    """Replace parts without finite values, which the engine would begin and never end."""
    if not isinstance(node, dict):
        return
    for word in ("anyOf", "oneOf"):
        if word in node:
            node[word] = [part for part in node[word] if _ends(part, finite)]
    for word in ("properties", "patternProperties"):
        for name, part in node.get(word, {}).items():
            node[word][name] = part if _ends(part, finite) else False
    for word in ("items", "additionalProperties"):
        if word in node and not _ends(node[word], finite):
            node[word] = False
    for i, part in enumerate(node.get("prefixItems", ())):
        node["prefixItems"][i] = part if _ends(part, finite) else False
    for word, value in node.items():
        if word in ("items", "additionalProperties"):
            _prune(value, finite)
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for part in value:
                _prune(part, finite)
        elif word in ("properties", "patternProperties", "$defs"):
            for part in value.values():
                _prune(part, finite)

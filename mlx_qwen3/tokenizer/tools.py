"""Convert a Python function to the JSON schema that a chat template shows to the model.

The result equals that of `get_json_schema` in transformers 5.23. Types come from type hints, descriptions from a
Google-style docstring, and allowed values from `(choices: ["a", "b"])` at the end of a description.
"""

import contextlib
import inspect
import json
import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import InputError

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Examples?|Notes?):\s*$", re.MULTILINE)
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)
_ARGUMENT = re.compile(r"^\s*(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function.

    Every parameter needs a type hint and a description under `Args:` in the docstring.

    Raises:
        InputError: a hint or a description is missing, or a hint has no JSON counterpart.
    """
    name = getattr(function, "__name__", type(function).__name__)
    document = inspect.getdoc(function)
    if not document:
        raise InputError(f"tool {name} has no docstring. Add one, or pass its JSON schema as a dict.")
    sections = _split_sections(document)
    described = _parse_arguments(sections.get("Args", ""))
    try:
        signature, hints = inspect.signature(function), get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise InputError(f"tool {name}: its signature cannot be read: {error}. Pass its JSON schema.") from error
    properties, required = {}, []
    for index, (parameter, value) in enumerate(signature.parameters.items()):
        if index == 0 and parameter in ("self", "cls") and parameter not in hints:
            continue
        if parameter not in hints:
            raise InputError(
                f"tool {name}: parameter {parameter!r} has no type hint. Add one, such as {parameter}: str."
            )
        if parameter not in described:
            raise InputError(f"tool {name}: its docstring has no {parameter!r} under 'Args:'. Describe it there.")
        where = f"tool {name}: parameter {parameter!r}"
        properties[parameter] = _add_description(_build_schema(hints[parameter], where), described[parameter], where)
        if value.default is inspect.Parameter.empty:
            required.append(parameter)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    output = {"name": name, "description": sections[""], "parameters": parameters}
    if "return" in hints:
        words = {"description": " ".join(sections["Returns"].split())} if "Returns" in sections else {}
        with contextlib.suppress(InputError):  # optional: the model does not generate the result
            output["return"] = _build_schema(hints["return"], f"tool {name}: its result") | words
    return {"type": "function", "function": output}


def _split_sections(document: str) -> dict[str, str]:
    """Return the text of each docstring section by name; the text before the first one has the empty name."""
    first, *rest = _SECTION.split(document)
    return {"": first.strip(), **dict(zip(rest[::2], rest[1::2], strict=True))}


def _parse_arguments(section: str) -> dict[str, str]:
    """Return the description of each parameter; lines indented deeper than the first continue a description."""
    lines = [line for line in section.splitlines() if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    found: dict[str, str] = {}
    name = None
    for line in lines:
        match = _ARGUMENT.match(line) if len(line) - len(line.lstrip()) == margin else None
        if match:
            name = match[1]
            found[name] = match[2].strip()
        elif name is not None:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _add_description(schema: dict[str, Any], description: str, where: str) -> dict[str, Any]:
    """Add the description, and the choices at its end as `enum`."""
    found = _CHOICES.search(description)
    if found is None:
        return schema | {"description": description}
    try:
        choices = json.loads(found[1])
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list):
        raise InputError(f'{where}: its choices are not a JSON array: {found[1]}. Write (choices: ["a", "b"]).')
    values = [choice.strip() if isinstance(choice, str) else choice for choice in choices]
    return schema | {"enum": values, "description": description[: found.start()].strip()}


def _build_enum(values: list[Any], hint: Any, where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise InputError(
            f"{where} has values of an unsupported type: {hint!r}. Use strings, numbers, booleans or None."
        )
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _build_schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is None and isinstance(hint, type):
        if hint in _SCALARS:
            return {"type": _SCALARS[hint]}
        if issubclass(hint, Enum):
            return _build_enum([member.value for member in hint], hint, where)
    if origin is Literal:
        return _build_enum(list(arguments), hint, where)
    if hint is list or origin is list:
        return {"type": "array"} | ({"items": _build_schema(arguments[0], where)} if arguments else {})
    if hint is tuple or (origin is tuple and len(arguments) > 1 and ... not in arguments):
        return {"type": "array"} | ({"prefixItems": [_build_schema(a, where) for a in arguments]} if arguments else {})
    if hint is dict or origin is dict:
        values = {"additionalProperties": _build_schema(arguments[1], where)} if len(arguments) == 2 else {}
        return {"type": "object"} | values
    if origin is Union or origin is types.UnionType:
        schemas = [_build_schema(argument, where) for argument in arguments if argument is not type(None)]
        nullable = {"nullable": True} if type(None) in arguments else {}
        if len(schemas) == 1:
            return schemas[0] | nullable
        if all(list(schema) == ["type"] and isinstance(schema["type"], str) for schema in schemas):
            names = sorted({schema["type"] for schema in schemas})
            return {"type": names[0] if len(names) == 1 else names} | nullable
        return {"anyOf": schemas} | nullable
    raise InputError(f"{where} has the type {hint!r}, which has no JSON counterpart. Pass the tool's JSON schema.")

"""Functions and schemas as tools of a chat template."""

from typing import Any, Literal

import pytest

from mlx_qwen3.errors import InputError
from mlx_qwen3.tokenizer.tools import function_schema


def weather(city: str, days: int = 1, unit: Literal["celsius", "kelvin"] = "celsius") -> dict[str, float]:
    """Tells the weather.

    Looks it up in a table.

    Args:
        city: where, as a name
            or as a post code
        days: how far ahead
        unit: of temperature

    Returns:
        The temperature
        of each day.

    Raises:
        KeyError: no such city
    """
    raise KeyError(city)


def mixed(a: list[int] | None, b: int | str, c: dict, d: list[str] | int, e: Any, f: bool = True):
    """Takes everything.

    Args:
        a: first
        b: second: with a colon
        c: third
        d: fourth
        e: fifth
        f: sixth
    """


class Lamp:
    def switch(self, on: bool) -> None:
        """Switches the lamp.

        Args:
            on: whether it shines
        """


def test_a_function_is_converted_to_its_schema(byte_level):
    schema = function_schema(weather)
    assert schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.\n\nLooks it up in a table.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where, as a name or as a post code"},
                    "days": {"type": "integer", "description": "how far ahead"},
                    "unit": {"type": "string", "enum": ["celsius", "kelvin"], "description": "of temperature"},
                },
                "required": ["city"],
            },
            "return": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "The temperature of each day.",
            },
        },
    }
    messages = [{"role": "user", "content": "hi"}]
    texts = [byte_level.apply_chat_template(messages, tools=[t], tokenize=False) for t in (weather, schema)]
    assert texts[0] == texts[1]


@pytest.mark.reference
@pytest.mark.parametrize("function", [weather, mixed, Lamp.switch, Lamp().switch])
def test_schemas_equal_transformers(function):
    theirs = pytest.importorskip("transformers.utils").get_json_schema(function)
    ours = function_schema(function)
    if "return" in theirs["function"]:  # transformers keeps the line breaks of this text only
        description = theirs["function"]["return"].get("description", "")
        theirs["function"]["return"] |= {"description": " ".join(description.split())} if description else {}
    assert ours == theirs


def undescribed(x: int):
    """Does it."""


def unhinted(x):
    """Does it.

    Args:
        x: what
    """


def custom(x: Lamp):
    """Does it.

    Args:
        x: what
    """


def undocumented(x: int): ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (undocumented, "tool undocumented has no docstring"),
        (undescribed, "has no 'x' under 'Args:'"),
        (unhinted, "'x' has no type hint"),
        (custom, "Lamp.*no JSON counterpart"),
    ],
)
def test_missing_documentation_is_reported(function, message):
    with pytest.raises(InputError, match=message):
        function_schema(function)


def test_choices_in_a_docstring_and_enum_classes_are_converted_to_enum():
    from enum import Enum

    class Unit(Enum):
        METRE = "m"
        FOOT = "ft"

    def convert(scale: str, unit: Unit):
        """Convert.

        Args:
            scale: The scale (choices: ["C", "F"])
            unit: The unit
        """

    convert.__annotations__["unit"] = Unit
    properties = function_schema(convert)["function"]["parameters"]["properties"]
    assert properties["scale"] == {"type": "string", "enum": ["C", "F"], "description": "The scale"}
    assert properties["unit"] == {"type": "string", "enum": ["m", "ft"], "description": "The unit"}

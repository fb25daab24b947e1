"""Let a model call Python functions.

The bundled model was not trained to call functions, so this example requires a call.

    python examples/tools.py
"""

from typing import Literal

import mlx_qwen3


def convert_length(value: int, unit: Literal["m", "km", "mile"]) -> str:
    """Convert a length to metres.

    Args:
        value: the length
        unit: its unit
    """
    return f"{value * {'m': 1, 'km': 1000, 'mile': 1609}[unit]} m"


if __name__ == "__main__":
    model, tokenizer = mlx_qwen3.load()
    chat = mlx_qwen3.ChatSession(
        model,
        tokenizer,
        tools=[convert_length],
        tool_choice="required",
        max_tool_rounds=1,
        thinking=False,
        max_tokens=120,
    )
    for part in chat.send("How many metres are 3 miles?"):
        if part.kind == "tool_call":
            print(f"call: {part.name}({part.arguments})")
        elif part.kind == "tool_result":
            print(f"result: {part.text}")
        else:
            print(part.text, end="", flush=True)
    print()

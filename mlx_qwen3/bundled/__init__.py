"""The small trained Qwen3 that comes with the package. How it was made: `tools/bundled_model` in the repository."""

from pathlib import Path

BUNDLED_NAME = "qwen3-stdlib-7m"
BUNDLED_NOTE = (
    "using the bundled 7.6-million-parameter demonstration model, which knows only names of Python's standard library; "
    "a real one to try next: --model Qwen/Qwen3-0.6B"
)
"""Said in one line where nobody named a model."""


def bundled_model_path() -> Path:
    """Return the folder of the bundled checkpoint, in the MLX format."""
    return Path(__file__).parent / BUNDLED_NAME

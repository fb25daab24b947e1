"""The small trained Qwen3 model that comes with the package; `tools/bundled_model` in the repository trains it."""

from pathlib import Path

BUNDLED_NAME = "qwen3-stdlib-7m"
BUNDLED_NOTE = (
    "using the bundled 7.6-million-parameter demonstration model, which knows only names of Python's standard library; "
    "a real one to try next: --model Qwen/Qwen3-0.6B"
)
"""Message shown when a command runs without a model name."""


def bundled_model_path() -> Path:
    """Return the folder of the bundled checkpoint, in the MLX format."""
    return Path(__file__).parent / BUNDLED_NAME


def is_bundled_path(path: str) -> bool:
    """Return whether a path is that of the bundled checkpoint in this or another installation of the package."""
    return Path(path).parts[-3:] == ("mlx_qwen3", "bundled", BUNDLED_NAME)

"""Qwen3, complete and exact, in MLX. Every public name of `__init__.pyi`, imported when it is first used."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *_names]  # pyright: ignore[reportUnsupportedDunderAll]

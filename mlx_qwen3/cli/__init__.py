"""The command line, one module per verb. Besides the server, this is the only package that prints."""

from .main import main

__all__ = ["main"]

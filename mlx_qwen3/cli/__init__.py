"""The command line: one file a verb. Parses, prints, exits; the only place that prints."""

from .main import main

__all__ = ["main"]

"""The command line: one file per verb. Parses, prints, exits; the only place that prints."""

from .main import main

__all__ = ["main"]

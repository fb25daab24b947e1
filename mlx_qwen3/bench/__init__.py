"""How fast a model runs on this machine, beside mlx-lm on the same weights, and how near it comes to the limit."""

from .contest import Contest, Outcome, compare
from .machine import Machine, this_machine
from .measure import Measurement
from .random_models import SIZES, random_model
from .report import append_report, markdown_report

__all__ = [
    "SIZES",
    "Contest",
    "Machine",
    "Measurement",
    "Outcome",
    "append_report",
    "compare",
    "markdown_report",
    "random_model",
    "this_machine",
]

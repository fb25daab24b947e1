"""Checks of this machine and self-tests of every kernel family, with a report to paste. Importing it needs no MLX."""

from .machine import Check, check_machine
from .report import doctor_report, status_line

__all__ = ["Check", "check_machine", "doctor_report", "status_line"]

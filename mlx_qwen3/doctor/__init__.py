"""Check this machine and test every kernel family. The report can be pasted into an issue.

Importing this package does not import MLX, so that a broken MLX can be diagnosed.
"""

from .machine import Check, check_machine
from .report import doctor_report, status_line

__all__ = ["Check", "check_machine", "doctor_report", "status_line"]

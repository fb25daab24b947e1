"""Format the results of `mlx-qwen3 doctor`: lines for a terminal, Markdown for an issue."""

from collections.abc import Sequence
from datetime import date

from .machine import FAILED, WARNING, Check

MARKS = {"ok": "ok     ", WARNING: "WARNING", FAILED: "FAILED "}


def status_line(check: Check) -> str:
    """Return one line for a check, including its remedy if there is one."""
    remedy = f" -> {check.remedy}" if check.remedy else ""
    return f"{MARKS[check.status]}  {check.name:<22} {check.detail}{remedy}"


def verdict(checks: Sequence[Check]) -> str:
    """Return one line that summarizes all checks."""
    failed = [check.name for check in checks if check.status == FAILED]
    warned = [check.name for check in checks if check.status == WARNING]
    warnings = f", {len(warned)} with a warning ({', '.join(warned)})" if warned else ""
    if failed:
        return f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}{warnings}"
    return f"all {len(checks)} checks passed{warnings}"


def doctor_report(machine: Sequence[Check], kernels: Sequence[Check], device: str, version: str) -> str:
    """Return a report in Markdown.

    Args:
        machine: checks of the machine.
        kernels: results of the kernel tests on `device`.
        version: version of this package.
    """
    lines = [f"### mlx-qwen3 doctor {version}, {device} ({date.today().isoformat()})", ""]
    lines += ["| check | result | found |", "| --- | --- | --- |"]
    for check in [*machine, *kernels]:
        detail = check.detail.replace("|", "\\|") + (f" ({check.remedy})" if check.remedy else "")
        lines.append(f"| {check.name} | {check.status} | {detail} |")
    return "\n".join([*lines, "", f"{verdict([*machine, *kernels]).capitalize()}."]) + "\n"

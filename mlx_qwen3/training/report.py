"""Report the result of a training: log, loss curve, model card, and a summary as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundled import is_bundled_path
from .metrics import confusion_table

TAGS = {
    "text-classification": "text-classification",
    "text-regression": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "text-generation": "text-generation",
}


@dataclass
class TrainingReport:
    """Result of a training.

    Attributes:
        task: task of the model.
        method: training method.
        model: base model.
        output: folder that was written, or None.
        rows, valid_rows: number of training and held-out examples.
        labels: names of the labels, if any.
        metrics: metrics on the held-out examples, or on the training examples if none are held out.
        held_out: whether the metrics were measured on held-out examples.
        baselines: metrics of "majority" and "head" on the same examples.
        best_step: step whose weights were kept; 0 for those before the first step, None for a head.
        stopped: reason why training stopped early, or None.
        remarks: remarks for the user.
        seconds: duration of the training.
        data_sha256: SHA-256 of the data.
        log: one entry per step and per evaluation.
    """

    task: str
    method: str
    model: str
    rows: int
    valid_rows: int = 0
    output: str | None = None
    labels: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    held_out: bool = False
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_step: int | None = None
    stopped: str | None = None
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    data_sha256: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the fields that are saved in the configuration."""
        return {
            "task": self.task,
            "method": self.method,
            "base_model": self.model,
            "rows": self.rows,
            "valid_rows": self.valid_rows,
            "metrics": self.metrics,
            "held_out": self.held_out,
            "baselines": self.baselines,
            "data_sha256": self.data_sha256,
        }

    def __str__(self) -> str:
        """Format the report as lines of text."""
        where = f"{self.valid_rows} held-out rows" if self.held_out else "the training rows (none are held out)"
        base = "the bundled model" if is_bundled_path(self.model) else self.model
        lines = [f"{self.task}, {self.method} on {base}: {self.rows} rows, {self.seconds:.1f} s", f"on {where}:"]
        columns = _list_columns(self.metrics, self.baselines)
        for name, figures in [*self.baselines.items(), (self.method, self.metrics)]:
            shown = ", ".join(f"{column} {figures[column]:.4f}" for column in columns if column in figures)
            title = {"majority": "majority class", "head": "frozen features + linear head"}.get(name, name)
            lines.append(f"  {title:<30} {shown}")
        matrix = self.metrics.get("confusion_matrix")
        if matrix and len(matrix) <= 12:
            lines += ["confusion matrix (rows: expected):", confusion_table(matrix, self.metrics["labels"])]
        lines += self.remarks
        if self.stopped:
            lines.append(f"stopped early: {self.stopped}; the weights of step {self.best_step} were kept")
        return "\n".join(lines)


def _list_columns(metrics: dict[str, Any], baselines: dict[str, dict[str, Any]]) -> list[str]:
    names = [name for figures in (metrics, *baselines.values()) for name in figures]
    return [n for n in dict.fromkeys(names) if isinstance(metrics.get(n, 0.0), int | float)]


def write_log(folder: Path, log: Sequence[dict[str, Any]]) -> None:
    """Write log.jsonl and loss.svg, unless the log is empty."""
    if not log:
        return
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in log]
    (folder / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "loss.svg").write_text(loss_curve(log), encoding="utf-8")


def loss_curve(log: Sequence[dict[str, Any]]) -> str:
    """Draw the training loss per step and the loss of each evaluation as SVG."""
    train = [(row["step"], row["loss"]) for row in log if "loss" in row and abs(row["loss"]) < 1e30]
    valid = [(row["step"], row["evaluation"]["loss"]) for row in log if "evaluation" in row]
    points = [*train, *valid]
    if not points:
        return '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="360"/>\n'
    right = max(step for step, _ in points) or 1
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    high = high if high > low else low + 1

    def to_coordinates(point: tuple[float, float]) -> str:
        return f"{60 + 560 * point[0] / right:.1f},{320 - 290 * (point[1] - low) / (high - low):.1f}"

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="360" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="360" fill="white"/>',
        '<path d="M60 30V320H620" fill="none" stroke="black"/>',
        f'<text x="54" y="34" text-anchor="end">{high:.3g}</text>',
        f'<text x="54" y="324" text-anchor="end">{low:.3g}</text>',
        f'<text x="620" y="338" text-anchor="end">step {right}</text>',
        '<text x="60" y="20">loss: training (grey), held out (blue)</text>',
    ]
    for name, color in ((train, "#888"), (valid, "#15c")):
        if name:
            lines.append(f'<polyline points="{" ".join(map(to_coordinates, name))}" fill="none" stroke="{color}"/>')
    for point in valid:
        x, y = to_coordinates(point).split(",")
        lines.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#15c"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def build_card(
    report: TrainingReport, name: str, *, adapter: bool, command: str | None, remarks: Sequence[str] = ()
) -> str:
    """Return the text of README.md, with metadata for the Hub."""
    import yaml

    base = report.model if "/" in report.model and not Path(report.model).exists() else None
    data: dict[str, Any] = {
        "library_name": "peft" if adapter else "mlx",
        "pipeline_tag": TAGS[report.task],
        "tags": ["mlx", "mlx-qwen3", *([report.method] if adapter else [])],
    }
    if base or (adapter and not is_bundled_path(report.model)):
        data["base_model"] = report.model
    lines = [f"---\n{yaml.safe_dump(data, sort_keys=False).strip()}\n---", "", f"# {name}", ""]
    kind = "Adapter" if adapter else "Model"
    shown = base or Path(report.model).name
    lines += [f"{kind} for {report.task}, trained from `{shown}` with mlx-qwen3 ({report.method}).", ""]
    if report.labels:
        lines += [f"Labels: {', '.join(f'`{label}`' for label in report.labels)}.", ""]
    where = f"{report.valid_rows} held-out rows" if report.held_out else "the training rows"
    lines += ["## Results", "", f"Trained on {report.rows} rows; metrics on {where}.", ""]
    columns = _list_columns(report.metrics, report.baselines)
    lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title, figures in [*report.baselines.items(), (report.method, report.metrics)]:
        cells = [f"{figures[column]:.4f}" if column in figures else "" for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", *report.remarks, *remarks, "", f"SHA-256 of the data: `{report.data_sha256}`"]
    if command:
        lines += ["", "```bash", command, "```"]
    return "\n".join(lines) + "\n"

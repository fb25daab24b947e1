"""Draw the pictures of the documentation into docs/images, from benchmarks/*.json and from a real chat.

    python scripts/pictures.py [chat|quantization|speed|conversion ...]

Every picture is an SVG with colours that are readable on a light and on a dark background.
"""

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
OURS, PEER, INK = "#4c8dff", "#9aa4b2", "#7d8590"
LABEL_OFFSETS = {"4-bit": (-8, -3), "--target-bpw 4.5": (-8, -10)}
"""Recipe -> offset of its label from its mark in points, for labels that would overlap."""
FIRST, SECOND = "What does os.path.join do?", "and its signature?"
COLUMNS, ROWS = 84, 24


def chat() -> None:
    """Run the first command of README in a pseudo-terminal, ask one more question, and draw the screen."""
    import pexpect
    import pyte
    from rich.console import Console
    from rich.text import Text

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    command = ["-m", "mlx_qwen3", "chat", FIRST, "--seed", "0", "--no-history"]
    child = pexpect.spawn(
        sys.executable, command, env=environment, encoding="utf-8", timeout=60, dimensions=(ROWS, COLUMNS)
    )
    for awaited, typed in ((r"as needed\.", ""), (">>>", SECOND + "\r"), (r"\*p\)", "")):
        child.expect(awaited)
        stream.feed(f"{child.before}{child.after}")
        child.send(typed)
    child.sendintr()
    child.sendeof()
    child.expect(pexpect.EOF)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f'$ mlx-qwen3 chat "{FIRST}"', style="bold"))
    shown = [line for line in range(ROWS) if line <= screen.cursor.y]
    for line in shown:
        console.print(Text.assemble(*(_style_cell(screen.buffer[line][column]) for column in range(COLUMNS - 1))))
    svg = console.export_svg(title="mlx-qwen3 chat")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # do not load fonts over the network
    (IMAGES / "chat.svg").write_text(re.sub(r"[ \t]+\n", "\n", svg), encoding="utf-8")


def _style_cell(cell: Any) -> tuple[str, str]:
    """Return a character of the screen, and its style for rich."""
    colour = cell.fg if cell.fg != "default" else ""
    if re.fullmatch("[0-9a-f]{6}", colour):
        colour = f"#{colour}"
    words = ["bold" if cell.bold else "", "dim italic" if cell.italics else "", colour]  # pyte does not support "dim"
    return cell.data, " ".join(word for word in words if word)


def quantization() -> None:
    """Draw KL divergence against bits per weight."""
    data = _read_data("quantization")
    axes, save = _make_axes("bits per weight", "KL divergence, mean (log scale)")
    for row in data["rows"]:
        mark = "s" if row["recipe"].startswith("--") else "^" if "fp" in row["recipe"] else "o"
        axes.plot(row["bits"], row["kl"], mark, color=OURS, markersize=8)
        axes.annotate(
            row["recipe"],
            (row["bits"], row["kl"]),
            LABEL_OFFSETS.get(row["recipe"], (8, 4)),
            textcoords="offset points",
            color=INK,
            ha="right" if row["recipe"] in LABEL_OFFSETS else "left",
        )
    axes.set_xlim(left=3.2)
    axes.set_yscale("log")
    axes.set_title(data["title"], color=INK, fontsize=10)
    save("quantization")


def speed() -> None:
    """Draw the speed of decoding and prompts as ratios to mlx-lm."""
    data = _read_data("speed")
    axes, save = _make_axes("", "times mlx-lm")
    positions = range(len(data["rows"]))
    for offset, key, colour in ((-0.2, "decode", OURS), (0.2, "prompt", PEER)):
        bars = axes.bar(
            [p + offset for p in positions], [row[key] for row in data["rows"]], 0.38, color=colour, label=key
        )
        axes.bar_label(bars, fmt="%.2f", color=INK, fontsize=8, padding=6)
    axes.axhline(1, color=INK, linewidth=1, linestyle="--", zorder=0)
    axes.set_xticks(list(positions), [row["model"] for row in data["rows"]])
    axes.legend(labelcolor=INK, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.0))
    axes.set_ylim(0, 1.25 * max(max(row["decode"], row["prompt"]) for row in data["rows"]))
    axes.set_title(data["title"], color=INK, fontsize=10)
    save("speed")


def conversion() -> None:
    """Draw the peak memory of converting one checkpoint."""
    data = _read_data("conversion")
    axes, save = _make_axes("", "peak memory, MB")
    names = [row["tool"] for row in data["rows"]]
    bars = axes.bar(names, [row["peak_mb"] for row in data["rows"]], 0.5, color=[OURS, PEER])
    axes.bar_label(bars, color=INK)
    axes.set_title(data["title"], color=INK, fontsize=10)
    save("conversion")


def _read_data(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def _make_axes(across: str, up: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mlx-qwen3"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    figure.patch.set_alpha(0)
    axes.set_facecolor("none")
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.tick_params(colors=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)

    def save(name: str) -> None:
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        (IMAGES / f"{name}.svg").write_text(re.sub(r"[ \t]+\n", "\n", buffer.getvalue()), encoding="utf-8")
        plt.close(figure)

    return axes, save


PICTURES = {"chat": chat, "quantization": quantization, "speed": speed, "conversion": conversion}

if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()

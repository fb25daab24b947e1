"""Draw the pictures of the documentation into docs/images, from benchmarks/*.json and from a real chat.

    python scripts/pictures.py [chat|quantization|speed|conversion ...]

Every picture is an SVG whose colours read on a light and on a dark page.
"""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
OURS, PEER, INK = "#4c8dff", "#9aa4b2", "#7d8590"
MESSAGES = ("Hello!", "What does os.path.join do?", "and its signature?")


def chat() -> None:
    """Run the bundled model in a piped chat and draw what a terminal shows."""
    from rich.console import Console
    from rich.text import Text

    command = [sys.executable, "-m", "mlx_qwen3", "chat", "--seed", "0", "--no-history"]
    done = subprocess.run(command, input="\n".join(MESSAGES) + "\n", capture_output=True, text=True, check=True)
    answers = [part for part in re.split(r"(?=<think>)", done.stdout) if part.strip()]
    console = Console(record=True, width=74, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ mlx-qwen3 chat --seed 0", style="bold"))
    for message, answer in zip(MESSAGES, answers, strict=True):
        console.print(Text(f"> {message}", style="bold #4c8dff"))
        thinking, _, rest = answer.partition("</think>")
        console.print(Text((thinking + "</think>").strip(), style="dim"))
        console.print(Text(rest.strip() + "\n"))
    svg = console.export_svg(title="mlx-qwen3 chat")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # no request to anywhere for a font
    (IMAGES / "chat.svg").write_text(re.sub(r"[ \t]+\n", "\n", svg), encoding="utf-8")


def quantization() -> None:
    """Draw KL divergence against bits per weight."""
    data = _read("quantization")
    axes, save = _axes("bits per weight", "KL divergence, mean (log scale)")
    for row in data["rows"]:
        mark = "s" if row["recipe"].startswith("--") else "^" if "fp" in row["recipe"] else "o"
        axes.plot(row["bits"], row["kl"], mark, color=OURS, markersize=8)
        axes.annotate(row["recipe"], (row["bits"], row["kl"]), (6, 6), textcoords="offset points", color=INK)
    axes.set_yscale("log")
    axes.set_title(data["title"], color=INK, fontsize=10)
    save("quantization")


def speed() -> None:
    """Draw decoding and prompts as ratios against mlx-lm."""
    data = _read("speed")
    axes, save = _axes("", "times mlx-lm")
    positions = range(len(data["rows"]))
    for offset, key, colour in ((-0.2, "decode", OURS), (0.2, "prompt", PEER)):
        bars = axes.bar(
            [p + offset for p in positions], [row[key] for row in data["rows"]], 0.38, color=colour, label=key
        )
        axes.bar_label(bars, fmt="%.2f", color=INK, fontsize=8)
    axes.axhline(1, color=INK, linewidth=1, linestyle="--")
    axes.set_xticks(list(positions), [row["model"] for row in data["rows"]])
    axes.legend(labelcolor=INK, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.0))
    axes.set_ylim(0, 1.25 * max(max(row["decode"], row["prompt"]) for row in data["rows"]))
    axes.set_title(data["title"], color=INK, fontsize=10)
    save("speed")


def conversion() -> None:
    """Draw the peak memory of converting one checkpoint."""
    data = _read("conversion")
    axes, save = _axes("", "peak memory, MB")
    names = [row["tool"] for row in data["rows"]]
    bars = axes.bar(names, [row["peak_mb"] for row in data["rows"]], 0.5, color=[OURS, PEER])
    axes.bar_label(bars, color=INK)
    axes.set_title(data["title"], color=INK, fontsize=10)
    save("conversion")


def _read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def _axes(across: str, up: str) -> tuple[Any, Any]:
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
    for asked in sys.argv[1:] or PICTURES:
        PICTURES[asked]()

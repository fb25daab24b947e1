"""Format the results as Markdown, to paste or append to a file, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from .comparison import OTHER, OWN, Outcome
from .encoding import EncodingRow
from .machine import Machine
from .variants import VariantRow, variants_table

UNKNOWN = "not known"


FIGURES = ("prompt_tps", "first_token", "decode_tps", "peak_memory", "working")


def markdown_report(
    machine: Machine,
    outcomes: Sequence[Outcome],
    command: str,
    encodings: Sequence[tuple[str, EncodingRow]] = (),
    variants: Sequence[tuple[str, Sequence[VariantRow]]] = (),
) -> str:
    """Return the machine, the command, the tables and the notes as Markdown.

    Args:
        outcomes: one per model and prompt length.
        command: the command line that produced the results.
        encodings: (model label, row) of classification and embedding.
        variants: (model label, rows).
    """
    lm = f", mlx-lm {machine.mlx_lm_version}" if machine.mlx_lm_version else ""
    lines = [
        f"### {machine.chip}, {machine.device} ({date.today().isoformat()})",
        "",
        f"{machine}; MLX {machine.mlx_version}{lm}, Python {machine.python_version}; `{command}`",
        "",
        "| model | tokens | package | prompt tok/s | first token ms | decode tok/s | of limit | peak GB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for outcome in outcomes:
        for name in outcome.rounds:
            lines.append(_format_row(machine, outcome, name))
        if OTHER in outcome.rounds:
            lines.append(_format_ratio_row(outcome))
    notes = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    rounds = len(outcomes[0].rounds[OWN])
    lines += ["", f"Medians of {rounds} interleaved rounds; a ratio is the median of the per-round ratios."]
    lines += [f"{note}." for note in notes]
    if encodings:
        lines += ["", "| model | task | texts × tokens | texts/s | tokens/s | peak above weights GB |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: |"]
    for label, row in encodings:
        cells = [label, row.task, f"{row.rows} × {row.tokens}", f"{row.texts_per_second:.1f}"]
        cells += [f"{row.texts_per_second * row.tokens:.0f}", f"{row.working / 1e9:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for label, rows in variants:
        lines += ["", f"Variants, {label}:", "", variants_table(rows).rstrip("\n")]
    return "\n".join(lines) + "\n"


def json_report(
    machine: Machine,
    outcomes: Sequence[Outcome],
    command: str,
    encodings: Sequence[tuple[str, EncodingRow]] = (),
    variants: Sequence[tuple[str, Sequence[VariantRow]]] = (),
) -> dict[str, Any]:
    """Return all results, including every round, as a JSON-serializable dictionary.

    The arguments are those of `markdown_report`.
    """
    return {
        "date": date.today().isoformat(),
        "command": command,
        "machine": asdict(machine),
        "generation": [
            {
                "model": outcome.label,
                "prompt_tokens": outcome.prompt_tokens,
                "generated_tokens": outcome.generated_tokens,
                "bytes_per_token": outcome.bytes_per_token,
                "rounds": {name: [asdict(one) for one in rounds] for name, rounds in outcome.rounds.items()},
                "ratios": {figure: outcome.ratio(figure) for figure in FIGURES} if OTHER in outcome.rounds else None,
                "notes": list(outcome.notes),
            }
            for outcome in outcomes
        ],
        "encoding": [{"model": label, **asdict(row)} for label, row in encodings],
        "variants": [{"model": label, **asdict(row)} for label, rows in variants for row in rows],
    }


def append_report(path: Path, report: str) -> None:
    """Append a report to a file, and create the file and its folder if necessary."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + gap + report, encoding="utf-8")


def limit_share(machine: Machine, outcome: Outcome, name: str) -> str:
    """Return the share of the peak memory bandwidth that decoding reaches, in percent.

    It is a range if the chip has two possible bandwidths.
    """
    if not machine.bandwidths:
        return UNKNOWN
    rate = outcome.median(name, "decode_tps") * outcome.bytes_per_token / 1e9
    shares = sorted({round(100 * rate / bandwidth) for bandwidth in machine.bandwidths})
    return "–".join(map(str, shares)) + " %"


def _format_row(machine: Machine, outcome: Outcome, name: str) -> str:
    cells = [
        outcome.label,
        f"{outcome.prompt_tokens}+{outcome.generated_tokens}",
        name,
        f"{outcome.median(name, 'prompt_tps'):.0f}",
        f"{outcome.median(name, 'first_token') * 1e3:.1f}",
        f"{outcome.median(name, 'decode_tps'):.1f}",
        limit_share(machine, outcome, name),
        f"{outcome.median(name, 'peak_memory') / 1e9:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _format_ratio_row(outcome: Outcome) -> str:
    figures = [outcome.ratio(name) for name in ("prompt_tps", "first_token", "decode_tps", "peak_memory")]
    prompt, first, decode, peak = (f"{figure:.2f}×" for figure in figures if figure is not None)
    return f"| | | **ratio** | {prompt} | {first} | **{decode}** | | {peak} |"

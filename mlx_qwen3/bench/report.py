"""A contest's figures as a table that can be pasted, and appended to a file of results."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from .contest import OTHER, OWN, Outcome
from .machine import Machine

UNKNOWN = "not known"


def markdown_report(machine: Machine, outcomes: Sequence[Outcome], command: str) -> str:
    """The machine, the command, the table and what there is to note, as Markdown."""
    lm = f", mlx-lm {machine.mlx_lm_version}" if machine.mlx_lm_version else ""
    lines = [
        f"### {machine.chip}, {machine.device} ({date.today().isoformat()})",
        "",
        f"{machine.system}, MLX {machine.mlx_version}{lm}, Python {machine.python_version}; `{command}`",
        "",
        "| model | tokens | package | prompt tok/s | first token ms | decode tok/s | of limit | peak GB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for outcome in outcomes:
        for name in outcome.rounds:
            lines.append(_row(machine, outcome, name))
        if OTHER in outcome.rounds:
            lines.append(_ratio_row(outcome))
    notes = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    rounds = len(outcomes[0].rounds[OWN])
    lines += ["", f"Medians of {rounds} rounds taken in turns; a ratio is the median of the rounds' ratios."]
    lines += [f"{note}." for note in notes]
    return "\n".join(lines) + "\n"


def append_report(path: Path, report: str) -> None:
    """Adds a report to the end of a file, which is made if it is not there."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + gap + report, encoding="utf-8")


def limit_share(machine: Machine, outcome: Outcome, name: str) -> str:
    """Decoding's share of what the memory's bandwidth allows, in percent."""
    if not machine.bandwidths:
        return UNKNOWN
    rate = outcome.median(name, "decode_tps") * outcome.bytes_per_token / 1e9
    shares = sorted({round(100 * rate / bandwidth) for bandwidth in machine.bandwidths})
    return "–".join(map(str, shares)) + " %"


def _row(machine: Machine, outcome: Outcome, name: str) -> str:
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


def _ratio_row(outcome: Outcome) -> str:
    figures = [outcome.ratio(name) for name in ("prompt_tps", "first_token", "decode_tps", "peak_memory")]
    prompt, first, decode, peak = (f"{figure:.2f}×" for figure in figures if figure is not None)
    return f"| | | **ratio** | {prompt} | {first} | **{decode}** | | {peak} |"

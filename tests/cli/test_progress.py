"""Progress of long commands: lines where standard error is no terminal."""

import pytest

from mlx_qwen3.cli import progress
from mlx_qwen3.cli.progress import StageProgress


def test_a_long_stage_writes_lines_at_intervals_and_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = StageProgress()
    shown.write("merging a into its base model")
    for step in range(31):
        now[0] = float(step)
        shown.show("measuring", step, 30, f"loss {step}" if step == 30 else "")
    shown.show("converting", 0, 5_000_000, unit="B", unit_scale=True)
    now[0] = 41.0
    shown.show("converting", 2_500_000, 5_000_000, unit="B", unit_scale=True)
    shown.show("measuring", 1, 1)
    shown.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "merging a into its base model",
        "measuring: 10 of 30",
        "measuring: 20 of 30",
        "measuring: 30 of 30, loss 30",
        "converting: 2.5 of 5.0 MB",
    ]

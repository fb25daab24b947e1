"""mlx-qwen3 bench: figures, ratios, reports and error messages."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3 import InputError
from mlx_qwen3.bench import (
    Benchmark,
    Machine,
    Measurement,
    Outcome,
    append_report,
    compare,
    markdown_report,
    measure_variants,
    random_model,
    random_models,
    variants_table,
)
from mlx_qwen3.bench import machine as machine_module
from mlx_qwen3.bench.comparison import bytes_per_token
from mlx_qwen3.bench.machine import this_machine
from mlx_qwen3.bench.report import limit_share
from mlx_qwen3.cli.main import main
from mlx_qwen3.layers.devices import variants

MACHINE = Machine("Apple M4 Max", "macOS 26.0 arm64", "Metal", "0.32.4", "0.32.2", "3.12.3", (410, 546))


def outcome(own=(100.0, 120.0, 110.0), other=(50.0, 60.0, 100.0)) -> Outcome:
    rounds = {
        name: [Measurement(1000.0, 0.5, rate, 2_000_000_000) for rate in rates]
        for name, rates in (("mlx-qwen3", own), ("mlx-lm", other))
    }
    return Outcome("4B, 4 bits", 512, 128, 2e9, rounds, ("Computed in bfloat16",))


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    assert outcome().ratio("decode_tps") == 2.0
    assert outcome().median("mlx-qwen3", "decode_tps") == 110.0


def test_the_share_of_the_limit_is_a_range_for_chips_with_two_bandwidths():
    assert limit_share(MACHINE, outcome(), "mlx-qwen3") == "40–54 %"
    unknown = Machine("Some chip", "Linux", "CUDA", "0.32.4", None, "3.12.3")
    assert limit_share(unknown, outcome(), "mlx-qwen3") == "not known"


def test_the_table_can_be_pasted_and_appended(tmp_path: Path):
    report = markdown_report(MACHINE, [outcome()], "mlx-qwen3 bench")
    assert "| 4B, 4 bits | 512+128 | mlx-qwen3 | 1000 | 500.0 | 110.0 | 40–54 % | 2.00 |" in report
    assert "**2.00×**" in report
    assert all(text in report for text in ("Apple M4 Max", "macOS 26.0", "mlx-lm 0.32.2", "`mlx-qwen3 bench`"))
    path = tmp_path / "RESULTS.md"
    append_report(path, report)
    append_report(path, report)
    assert path.read_text(encoding="utf-8") == f"{report}\n{report}"


def test_bytes_per_token_include_all_weights_and_the_cache():
    model = random_model("tiny", mx.float32)
    weights = model.num_parameters() * 4
    assert bytes_per_token(model, 10) == weights + 10 * 2 * 4 * 2 * 32 * 4
    packed = random_model("tiny", mx.float32, 4, 32)
    assert bytes_per_token(packed, 0) < weights / 4


def test_all_implementations_run_equally_often_with_the_requested_lengths():
    calls = []

    def runner(name):
        def run(prompt, max_tokens):
            calls.append((name, len(prompt), max_tokens))
            yield from range(max_tokens)

        return run

    model = random_model("tiny")
    benchmark = Benchmark("tiny", model, {"mlx-qwen3": runner("a"), "mlx-lm": runner("b")})
    found = compare(benchmark, prompt_tokens=7, max_tokens=5, rounds=2)
    assert sorted(calls) == [("a", 7, 5)] * 3 + [("b", 7, 5)] * 3
    assert [len(rounds) for rounds in found.rounds.values()] == [2, 2]
    with pytest.raises(InputError, match="rounds is 0"):
        compare(benchmark, rounds=0)
    with pytest.raises(InputError, match="do not fit"):
        compare(benchmark, prompt_tokens=50000)


def test_the_command_measures_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "RESULTS.md"
    flags = ["--random", "tiny", "--bits", "4", "--group-size", "32", "--prompt-tokens", "4", "--max-tokens", "3"]
    assert main(["bench", *flags, "--rounds", "1", "--device", "cpu", "--no-mlx-lm", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| tiny random, 4 bits | 4+3 | mlx-qwen3 |" in printed
    assert path.read_text(encoding="utf-8") == printed
    assert main(["bench", "--random", "9B"]) == 2
    assert "size is '9B'" in capsys.readouterr().err


def test_a_size_that_the_machine_cannot_hold_is_refused_at_once(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(random_models, "machine_memory", lambda: 10**9)
    assert main(["bench", "--random", "32B", "--bits", "4"]) == 2
    message = capsys.readouterr().err
    assert "32B in 4 bits has 18." in message
    assert len(message.splitlines()) == 1


def test_a_cpu_has_no_bandwidth_limit():
    assert this_machine(mx.Device(mx.cpu, 0)).bandwidths == ()


@pytest.mark.reference
def test_mlx_lm_runs_on_the_same_arrays():
    from mlx_qwen3.bench.candidates import benchmark_candidates

    (benchmark,) = benchmark_candidates(size="tiny", bits=[8], group_size=32, dtype="float32")
    own, other = (list(benchmark.runners[name]([5, 9, 3, 7], 12)) for name in ("mlx-qwen3", "mlx-lm"))
    assert own == other


@pytest.mark.reference
def test_mlx_lm_shares_the_joined_matrices():
    from mlx_qwen3.bench.candidates import benchmark_candidates

    mx.clear_cache()
    before = mx.get_active_memory()
    (benchmark,) = benchmark_candidates(size="tiny", bits=[4], group_size=32, dtype="float32")
    for name in ("mlx-qwen3", "mlx-lm"):
        list(benchmark.runners[name]([5, 9, 3, 7], 3))
    mx.clear_cache()
    parameters: Any = tree_flatten(benchmark.model.parameters())
    held = sum(array.nbytes for _, array in parameters)
    assert mx.get_active_memory() - before < 1.2 * held


@pytest.mark.reference
def test_each_package_computes_in_its_default_dtype():
    from mlx_qwen3.bench.candidates import benchmark_candidates
    from mlx_qwen3.bench.mlx_lm_reference import mlx_lm_model

    (benchmark,) = benchmark_candidates(size="tiny", bits=[4], group_size=32)
    assert benchmark.model.dtype == mx.float32  # on the CPU, where these tests run
    assert mlx_lm_model(benchmark.model, mx.bfloat16).layers[0].input_layernorm.weight.dtype == mx.bfloat16
    assert benchmark.notes == ["mlx-qwen3 computed in float32, mlx-lm in bfloat16 (the default of each)"]


# output on a Mac


OUTPUTS = {
    "sysctl": "Apple M4 Max\n",
    "ioreg": '  | "gpu-core-count" = 40\n',
    "batt": "Now drawing from 'Battery Power'\n -InternalBattery-0 80%; discharging\n",
    "-g": " lowpowermode         1\n",
}


@pytest.fixture
def mac(monkeypatch):
    """Replace the commands of a Mac by the outputs in `OUTPUTS`."""
    answers = dict(OUTPUTS)

    def output(*command):
        return next((text for word, text in answers.items() if word in command[0] or word == command[-1]), "")

    monkeypatch.setattr(machine_module, "_run_command", output)
    monkeypatch.setattr(machine_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine_module.platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(machine_module, "gpu_info", lambda: {"max_recommended_working_set_size": 48 * 10**9})
    return answers


def test_a_mac_is_described_with_cores_memory_and_power(mac):
    found = this_machine(mx.Device(mx.gpu, 0))
    assert (found.chip, found.gpu_cores, found.device) == ("Apple M4 Max", 40, "Metal")
    assert found.bandwidths == (546,)
    assert found.power == "Battery Power, low power mode"
    text = str(found)
    assert all(part in text for part in ("40 GPU cores", "GiB", "working set 48.0 GB", "macOS 26.1", "Battery Power"))


def test_the_number_of_gpu_cores_selects_the_bandwidth(mac):
    mac["ioreg"] = ""
    mac["system_profiler"] = "      Total Number of Cores: 32\n"
    found = this_machine(mx.Device(mx.gpu, 0))
    assert (found.gpu_cores, found.bandwidths) == (32, (410,))
    mac["system_profiler"] = ""
    assert this_machine(mx.Device(mx.gpu, 0)).bandwidths == (410, 546)


def test_the_full_command_measures_texts_and_a_long_prompt(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mlx_qwen3.bench.encoding.CPU_SHAPES", ((2, 5), (1, 5)))
    path = tmp_path / "bench.json"
    flags = ["--random", "tiny", "--prompt-tokens", "4", "--max-tokens", "3", "--rounds", "1", "--no-mlx-lm"]
    assert main(["bench", *flags, "--device", "cpu", "--full", "--long-tokens", "20", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| tiny random, unpacked | 20+32 | mlx-qwen3 |" in printed
    assert "| tiny random, unpacked | classification | 2 × 5 |" in printed
    assert "| tiny random, unpacked | embedding | 1 × 5 |" in printed
    assert "--full --long-tokens 20" in printed
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["machine"]["device"] == "CPU"
    assert len(values["generation"]) == 2
    assert {row["task"] for row in values["encoding"]} == {"classification", "embedding"}


def test_variants_are_measured_and_the_defaults_restored():
    model = random_model("tiny", mx.float32)
    before = variants()
    rows = measure_variants(model, prompt_tokens=8, max_tokens=2, rounds=1)
    assert variants() == before
    names = {row.variant for row in rows}
    assert {"prefill_rope", "head_norms", "layers_per_step", "prefill_step_size", "longest_draft"} <= names
    assert sum(row.default for row in rows if row.variant == "head_norms") == 1
    table = variants_table(rows)
    assert "| head_norms | **mixed** |" in table


def test_wiring_is_refused_without_metal(capsys):
    if not mx.metal.is_available():
        assert main(["bench", "--random", "tiny", "--wired"]) == 2
        assert "requires a Metal device" in capsys.readouterr().err

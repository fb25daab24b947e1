"""Rotation, trimming, chunk sizes, prefix reuse and saved caches never change a greedy token with a clear margin."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.cache_operations import run_random_operations

TRIALS = pytest.mark.parametrize("trials", [120, pytest.param(10_000, marks=pytest.mark.slow)])


@TRIALS
def test_random_operations_keep_greedy_tokens(trials: int, tmp_path: Path):
    checked = []

    @settings(
        max_examples=trials,
        deadline=None,
        database=None,
        derandomize=trials < 1000,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.data())
    def run_trial(data: st.DataObject):
        checked.append(run_random_operations(data, tmp_path).checked)

    run_trial()
    assert sum(checked) > 5 * trials, "the margin left too few tokens to compare"

"""Selection of the rows of several requests that are computed in one batch."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_qwen3.server.decoder import PATIENCE
from mlx_qwen3.server.task_rows import ROWS_TOGETHER, next_rows

PLENTY = 1 << 20


class Job(SimpleNamespace):
    __hash__ = object.__hash__


def job(rows: int, done: int = 0, age: float = 0.0, length: int = 5) -> Any:
    pieces = [[SimpleNamespace(ids=[1] * length)] for _ in range(rows)]
    return Job(rows=[None] * rows, results=[None] * done, pieces=pieces, created=time.monotonic() - age)


def test_all_rows_of_a_single_request_are_selected():
    only = job(1000, done=3)
    assert next_rows([only], PLENTY) == [(only, row) for row in range(3, 1000)]


def test_few_rows_of_many_requests_are_all_selected():
    assert len(next_rows([job(1) for _ in range(ROWS_TOGETHER)], PLENTY)) == ROWS_TOGETHER


def test_half_of_many_rows_are_selected_shortest_request_first():
    long, short = job(500), job(100)
    found = next_rows([long, short], PLENTY)
    assert found[:100] == [(short, row) for row in range(100)]
    assert found[100:] == [(long, row) for row in range(200)]


def test_the_oldest_request_goes_first_after_a_long_wait():
    old, short = job(300, age=2 * PATIENCE), job(100)
    assert {found for found, _ in next_rows([old, short], PLENTY)} == {old}


@pytest.mark.parametrize(("tokens", "rows"), [(0, 1), (5, 1), (12, 2), (100, 20)])
def test_tokens_limit_the_rows_to_at_least_one(tokens, rows):
    assert len(next_rows([job(30)], tokens)) == rows

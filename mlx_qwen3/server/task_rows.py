"""Which rows of embedding, reranking and classification requests are computed next, together."""

import time
from collections.abc import Sequence

from .decoder import PATIENCE
from .jobs import TaskJob

ROWS_AT_ONCE = 4096

ROWS_TOGETHER = 128
"""Rows that are computed together even where they are more than half of all."""


def next_rows(group: Sequence[TaskJob], tokens: int) -> list[tuple[TaskJob, int]]:
    """Return the next rows of requests that share a task and its options, as (request, index of the row).

    Requests with the fewest rows left go first, unless the oldest has waited for long. Of many rows only half are
    taken, so that the answers of these are sent while the others are computed.

    Args:
        group: the requests, the oldest first.
        tokens: of all rows; the first row may have more.
    """
    left = {job: len(job.rows) - len(job.results) for job in group}
    most = ROWS_AT_ONCE
    if len(group) > 1:
        most = min(ROWS_AT_ONCE, max(ROWS_TOGETHER, -(-sum(left.values()) // 2)))
    order = sorted(group, key=lambda job: left[job])
    if time.monotonic() - group[0].created > PATIENCE:
        order.sort(key=lambda job: job is not group[0])
    chosen: list[tuple[TaskJob, int]] = []
    for job in order:
        for row in range(len(job.results), len(job.rows)):
            tokens -= sum(len(piece.ids) for piece in (job.pieces or [])[row])
            if chosen and (tokens < 0 or len(chosen) >= most):
                return chosen
            chosen.append((job, row))
    return chosen

"""Select the rows of embedding, reranking and classification requests to compute in the next batch."""

import time
from collections.abc import Sequence

from .decoder import PATIENCE
from .jobs import TaskJob

ROWS_AT_ONCE = 4096
"""Maximum number of rows per batch."""

ROWS_TOGETHER = 256
"""Number of rows of several requests up to which a batch may have more than half of all rows."""


def next_rows(group: Sequence[TaskJob], tokens: int) -> list[tuple[TaskJob, int]]:
    """Return the next rows of requests that share a task and its options, as (request, row index).

    Requests with the fewest remaining rows go first, unless the oldest has waited for more than `PATIENCE` seconds. Of
    many rows only half are selected, so that their results are sent while the others are computed.

    Args:
        group: the requests, oldest first.
        tokens: maximum number of tokens of all rows; the first row may have more.
    """
    remaining = {job: len(job.rows) - len(job.results) for job in group}
    most = ROWS_AT_ONCE
    if len(group) > 1:
        most = min(ROWS_AT_ONCE, max(ROWS_TOGETHER, -(-sum(remaining.values()) // 2)))
    order = sorted(group, key=lambda job: remaining[job])
    if time.monotonic() - group[0].created > PATIENCE:
        order.sort(key=lambda job: job is not group[0])
    chosen: list[tuple[TaskJob, int]] = []
    for job in order:
        for row in range(len(job.results), len(job.rows)):
            tokens -= sum(len(piece.ids) for piece in job.pieces[row])
            if chosen and (tokens < 0 or len(chosen) >= most):
                return chosen
            chosen.append((job, row))
    return chosen

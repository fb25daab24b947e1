"""Tensor-parallel models over several processes, agreement between ranks, and distribution of rows.

The rows of q, k, v, gate and up and the columns of o and down are sharded. Each layer then needs one all-reduce for its
attention and one for its MLP (Megatron-LM, Shoeybi et al. 2019). Embedding and output head are sharded along the
vocabulary if they are large and the number of ranks divides the vocabulary. Every rank reads only its own shard of each
tensor.
"""

from .agreement import agree_on_seed, check_same, raise_if_stopped, request_stop, same_outcome, stoppable
from .forks import check_not_forked
from .group import Group, any_rank, find_group, gather_bytes, process_count, send_bytes
from .loading import check_divides, load_divided, packed_groups
from .rows import from_json, gather_rows, rows_of_first, shared_rows, to_json

__all__ = [
    "Group",
    "agree_on_seed",
    "any_rank",
    "check_divides",
    "check_not_forked",
    "check_same",
    "find_group",
    "from_json",
    "gather_bytes",
    "gather_rows",
    "load_divided",
    "packed_groups",
    "process_count",
    "raise_if_stopped",
    "request_stop",
    "rows_of_first",
    "same_outcome",
    "send_bytes",
    "shared_rows",
    "stoppable",
    "to_json",
]

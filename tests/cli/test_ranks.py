"""Standard input that rank 0 shares with the other ranks."""

import io

import mlx.core as mx

from mlx_qwen3.cli.ranks import SharedInput


def test_lines_of_rank_0_are_shared_until_the_end():
    shared = SharedInput(io.StringIO("one\nzwölf\n"), mx.distributed.init())
    assert [shared.readline(), shared.read()] == ["one\n", "zwölf\n"]


def test_a_closed_standard_input_is_at_its_end():
    assert SharedInput(None, mx.distributed.init()).readline() == ""

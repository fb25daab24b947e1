"""Standard input that rank 0 shares with the other ranks."""

import io

import mlx.core as mx
import pytest

from mlx_qwen3.cli.ranks import SharedInput


def test_lines_of_rank_0_are_shared_until_the_end():
    shared = SharedInput(io.StringIO("one\nzwölf\n"), mx.distributed.init())
    assert [shared.readline(), shared.read()] == ["one\n", "zwölf\n"]


@pytest.mark.parametrize("close", [io.StringIO.close, lambda stream: setattr(stream, "readline", _fail)])
def test_a_closed_standard_input_is_at_its_end(close):
    stream = io.StringIO("one\n")
    close(stream)
    assert SharedInput(stream, mx.distributed.init()).readline() == ""


def _fail():
    raise OSError(9, "Bad file descriptor")

"""Prompts that are computed in one pass fit into it with their padding."""

from types import SimpleNamespace

import pytest

from mlx_qwen3.server.decoder import Decoder, Pace, Prompt


def select(lengths, tokens, free=256, rate=1e6):
    """Return the lengths of the prompts that `Decoder` selects for a pass."""
    decoder = Decoder.__new__(Decoder)
    decoder.pace = Pace()
    decoder.pace.rate = rate
    jobs = [SimpleNamespace(prompt=[1] * length, options=SimpleNamespace(choices=1)) for length in lengths]
    return [prompt.left for prompt in decoder._select_group([Prompt(job, 8, 0) for job in jobs], tokens, free)]  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [[4] * 100, [4, 5, 6, 100], [100, 4, 4, 4], [1000, *[4] * 255], [2000, 4]])
def test_a_pass_holds_no_more_than_its_tokens(lengths):
    group = select(lengths, 1024)
    assert len(group) == 1 or len(group) * max(group) <= 1024


def test_an_old_long_prompt_is_grouped_with_few_shorter_ones():
    assert select([300, 4, 4, 4, 4], 1024) == [300, 4, 4]


def test_prompts_whose_padding_takes_longer_than_a_pass_are_left_for_the_next():
    assert select([4, 4, 4, 200], 1024, rate=1000) == [4, 4, 4]
    assert select([200, 4, 4, 4], 1024, rate=1000) == [200]

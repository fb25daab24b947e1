"""How many tokens of a prompt fit into the time between two tokens of running streams."""

import pytest

from mlx_qwen3.server.decoder import SMALLEST_CHUNK, Pace


def run(pace, seconds, passes, cost):
    """Return the sizes that are chosen one after the other, each measured."""
    sizes = []
    for _ in range(passes):
        sizes.append(pace.tokens_in(seconds, 4096))
        pace.add(sizes[-1], cost(sizes[-1]))
    return sizes


def test_passes_grow_to_what_fits_although_small_ones_have_a_fixed_cost():
    sizes = run(Pace(), 0.03, 40, lambda n: 0.02 + 1e-5 * n)
    assert sizes[0] == SMALLEST_CHUNK
    assert sizes[-1] == 1024  # 30 ms


def test_passes_stay_small_where_time_grows_with_the_tokens():
    assert set(run(Pace(), 0.5, 40, lambda n: n / 200)[10:]) == {128}  # 0.64 s
    assert set(run(Pace(), 0.4, 40, lambda n: n / 200)[10:]) == {64, 128}  # 0.32 s and, once in a while, 0.64 s


def test_a_slow_pass_does_not_count_for_long():
    pace, seen = Pace(), set()

    def cost(size):
        first = size not in seen
        seen.add(size)
        return 5.0 if first else 0.001

    assert run(pace, 0.03, 300, cost)[-1] == 4096


def test_a_prompt_that_was_computed_alone_sets_the_first_size():
    pace = Pace()
    pace.tokens_in(None, 4096)
    pace.add(300, 0.02)
    assert pace.tokens_in(0.03, 4096) == 256


def test_a_short_prompt_says_nothing_about_longer_passes():
    pace = Pace()
    run(pace, 0.03, 8, lambda n: 0.001)
    size = pace.tokens_in(0.03, 4096)
    pace.add(3, 0.001)
    assert pace.tokens_in(0.03, 4096) == size


@pytest.mark.parametrize("most", [4, 100, 4096])
def test_without_a_limit_all_is_computed_at_once(most):
    assert most / 2 < Pace().tokens_in(None, most) <= most

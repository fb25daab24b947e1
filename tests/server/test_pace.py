"""`Pace` chooses how many prompt tokens to compute between two tokens of running streams."""

import pytest

from mlx_qwen3.server.decoder import FIRST_UNLIMITED, SMALLEST_CHUNK, SMALLEST_UNLIMITED, Pace, power_of_two


def run(pace, seconds, passes, cost):
    """Return the sizes that are chosen in successive passes, whose duration is cost(size)."""
    sizes = []
    for _ in range(passes):
        sizes.append(pace.tokens_in(seconds, 4096))
        pace.add(sizes[-1], cost(sizes[-1]))
    return sizes


def test_passes_grow_up_to_the_target_time_despite_a_fixed_cost():
    sizes = run(Pace(), 0.03, 40, lambda n: 0.02 + 1e-5 * n)
    assert sizes[0] == SMALLEST_CHUNK
    assert sizes[-1] == 1024  # 30 ms


def test_passes_stay_small_if_their_time_is_proportional_to_the_tokens():
    assert set(run(Pace(), 0.5, 40, lambda n: n / 200)[10:]) == {128}  # 0.64 s
    assert set(run(Pace(), 0.4, 40, lambda n: n / 200)[10:]) == {64, 128}  # 0.32 s and occasionally 0.64 s


def test_one_slow_pass_per_size_has_no_lasting_effect():
    pace, seen = Pace(), set()

    def cost(size):
        first = size not in seen
        seen.add(size)
        return 5.0 if first else 0.001

    assert run(pace, 0.03, 300, cost)[-1] == 4096


def test_a_prompt_computed_without_a_limit_sets_the_first_size():
    pace = Pace()
    pace.tokens_in(None, 4096)
    pace.add(300, 0.02)
    assert pace.tokens_in(0.03, 4096) == 256


def test_a_short_prompt_does_not_change_the_size():
    pace = Pace()
    run(pace, 0.03, 8, lambda n: 0.001)
    size = pace.tokens_in(0.03, 4096)
    pace.add(3, 0.001)
    assert pace.tokens_in(0.03, 4096) == size


@pytest.mark.parametrize("most", [4, 100, 4096])
def test_first_pass_without_a_target_is_short(most):
    assert Pace().tokens_in(None, most) == power_of_two(min(most, FIRST_UNLIMITED))


@pytest.mark.parametrize(("rate", "size"), [(1e6, 4096), (300, 256), (1, SMALLEST_UNLIMITED)])
def test_passes_without_a_target_take_no_longer_than_the_limit(rate, size):
    assert run(Pace(), None, 5, lambda n: n / rate)[-1] == size


def test_short_prompts_do_not_shorten_later_passes():
    pace = Pace()
    run(pace, None, 5, lambda n: 0.01 + n * 1e-5)
    for _ in range(20):
        pace.tokens_in(None, 4096)
        pace.add(3, 0.011)
    assert pace.tokens_in(None, 4096) == 4096

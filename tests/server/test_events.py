"""Events of streams: merged deltas, log-probabilities and their offsets."""

import json
from array import array

import pytest

from mlx_qwen3.server.jobs import Delta, TokenLogprob
from mlx_qwen3.server.text_api import MOST_MERGED, merge_deltas
from tests.support.running_server import Running, events

ENDLESS = {"temperature": 0, "logit_bias": {"257": -100, "258": -100, "256": -100}}


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token, -1.0, array("i", [token, 1]), array("f", [-1.0, -2.0]))


def test_merged_deltas_have_all_texts_and_logprobs_and_a_limited_size():
    count = 3 * MOST_MERGED + 5
    deltas = [Delta(0, text=f"{i},", logprobs=(logprob(i),)) for i in range(count)]
    found = list(merge_deltas(deltas))
    assert len(found) == 4
    assert "".join(delta.text for delta in found) == "".join(f"{i}," for i in range(count))
    assert [one.token for delta in found for one in delta.logprobs] == list(range(count))
    assert max(len(delta.logprobs) for delta in found) == MOST_MERGED


def test_deltas_of_different_choices_and_kinds_are_not_merged():
    deltas = [
        Delta(0, text="a"),
        Delta(0, text="b"),
        Delta(1, text="c"),
        Delta(0, "reasoning", "d"),
        Delta(0, "tool", call={"index": 0}),
        Delta(0, "tool", call={"index": 1}),
        Delta(0, text=""),
        Delta(0, finish_reason="stop"),
    ]
    found = [(delta.index, delta.kind, delta.text, delta.finish_reason) for delta in merge_deltas(deltas)]
    assert found == [
        (0, "answer", "ab", None),
        (1, "answer", "c", None),
        (0, "reasoning", "d", None),
        (0, "tool", "", None),
        (0, "tool", "", None),
        (0, "answer", "", "stop"),
    ]
    assert list(merge_deltas([])) == []


@pytest.mark.parametrize("choices", [1, 2])
def test_streamed_logprobs_are_those_of_the_whole_answer(server: Running, choices: int):
    options = {"logprobs": 3, "n": choices, **ENDLESS}
    whole = server.complete("a b c", **options).json()["choices"]
    streamed = events(server.complete("a b c", stream=True, **options))
    for choice in whole:
        pieces = [one for event in streamed for one in event["choices"] if one["index"] == choice["index"]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            found = [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][name]]
            assert json.dumps(found) == json.dumps(choice["logprobs"][name]), name
    assert whole[0]["logprobs"]["text_offset"][0] == 0

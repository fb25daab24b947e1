"""Prompts of every kind: padding in a tokenizer's output is left out, and other values are refused by their kind."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_qwen3
from mlx_qwen3 import InputError, batch_generate, generate, pipeline
from mlx_qwen3.distributed import forks
from tests.support import tiny, tiny_bert
from tests.support.scripted import byte_tokenizer

TOKENIZER = byte_tokenizer()
MODEL: Any = tiny.model(seed=6, vocab_size=261, head_dim=32, max_position_embeddings=64)
BERT: Any = tiny_bert.model()
MESSAGES = [{"role": "user", "content": "hi"}]


def answer(prompt: Any) -> str:
    return generate(MODEL, TOKENIZER, prompt, max_tokens=3)


@pytest.mark.parametrize("ids", [[7, 8, 9], [[7, 8, 9]], mx.array([[7, 8, 9]])], ids=["list", "row", "array"])
def test_masked_ids_are_left_out(ids):
    mask = [0, 1, 1] if ids == [7, 8, 9] else [[0, 1, 1]]
    for given in (mask, mx.array(mask)):
        assert answer({"input_ids": ids, "attention_mask": given}) == answer([8, 9])
    assert batch_generate(MODEL, TOKENIZER, [{"input_ids": ids, "attention_mask": mask}], max_tokens=3).texts == [
        answer([8, 9])
    ]
    with pytest.raises(InputError, match="differ in shape"):
        answer({"input_ids": ids, "attention_mask": [1, 1]})


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (None, "the prompt is None. Pass a text"),
        (b"ab", "a bytes. Pass a text"),
        (Path("x"), "Pass a text"),
        (["a", "b"], "batch_generate"),
        ([1 << 40], "1099511627776, which does not fit in 32 bits"),
        ([-(1 << 40)], "does not fit in 32 bits"),
        ([*MESSAGES, "x"], "message 1"),
    ],
)
def test_other_prompts_are_refused_by_their_kind(prompt, says):
    for run in (answer, lambda given: batch_generate(MODEL, TOKENIZER, [given], max_tokens=3)):
        with pytest.raises(InputError, match=says) as caught:
            run(prompt)
        assert "\n" not in str(caught.value)


def test_one_prompt_instead_of_a_list_is_refused_with_the_next_step():
    for prompts, says in (([5, 9], r"Pass \[ids\]"), (MESSAGES, r"Pass \[messages\]"), ("ab", r"Pass \[prompt\]")):
        with pytest.raises(InputError, match=says):
            batch_generate(MODEL, TOKENIZER, prompts, max_tokens=3)


def test_messages_of_the_pipeline_and_the_chat_have_one_line():
    run = pipeline("text-generation", model=MODEL, tokenizer=TOKENIZER)
    with pytest.raises(InputError, match=r"100 tokens and the model holds 64.*truncation=True"):
        run("a" * 100)
    with pytest.raises(InputError, match="expected text") as caught:
        list(mlx_qwen3.ChatSession(MODEL, TOKENIZER).send(mx.zeros((3, 3))))  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)


def test_a_model_that_has_generated_can_be_pickled():
    expected = answer("hello")
    copied = pickle.loads(pickle.dumps(MODEL))
    assert generate(copied, TOKENIZER, "hello", max_tokens=3) == expected
    run = pickle.loads(pickle.dumps(pipeline("text-generation", model=MODEL, tokenizer=TOKENIZER)))
    assert run("hello", max_new_tokens=3) == [{"generated_text": "hello" + expected}]


def _run_in_child(results: Any) -> None:
    found = []
    for run in (
        lambda: answer("a"),
        lambda: MODEL.generate(mx.array([[5]]), max_new_tokens=1),
        lambda: pipeline("text-generation", model=MODEL, tokenizer=TOKENIZER)("a"),
        lambda: MODEL(mx.array([[5]])),
        lambda: MODEL.base_model(inputs_embeds=mx.zeros((1, 2, MODEL.config.hidden_size))),
        lambda: BERT(mx.array([[5]])),
    ):
        try:
            run()
        except InputError as error:
            found.append(str(error))
    results.put(found)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_refuses_to_compute_instead_of_hanging():
    answer("a")
    assert forks._process is not None
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_run_in_child, args=(results,))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        pytest.fail("the forked process hangs")
    found = results.get()
    assert len(found) == 6
    assert all("'spawn'" in message for message in found)

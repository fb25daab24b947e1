"""A model that was loaded in one thread works in all threads, sequentially and concurrently."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3 import ChatSession, batch_generate, pipeline, stream_generate
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.generation import RandomSampler
from tests.support import tiny
from tests.support.scripted import byte_tokenizer


def run_in_thread(function):
    """Run a function in a new thread and return its result or raise its exception."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A tiny model and its tokenizer, loaded in a thread that has finished."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.model(seed=6, vocab_size=261, max_position_embeddings=512).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return run_in_thread(lambda: mlx_qwen3.load(folder))


@pytest.fixture(scope="module")
def trained():
    """A separate model to train: other threads must not read its parameters while gradients are computed."""
    return run_in_thread(lambda: tiny.model(seed=7))


def chat(model, tokenizer):
    session = ChatSession(model, tokenizer, seed=3, max_tokens=4)
    return ["".join(part.text for part in session.send(text)) for text in ("hello", "and now?")]


def run_pipeline(model, tokenizer):
    return pipeline("text-generation", model=model, tokenizer=tokenizer)("hello", max_new_tokens=3)


def batch(model, tokenizer):
    prompts = ["hello", "what does os.path.join do?"]
    return batch_generate(model, tokenizer, prompts, 4, temperature=0.8, seed=1).token_ids


def generate(model, tokenizer):
    output = model.generate(mx.array([[5, 9, 3]]), max_new_tokens=4, do_sample=True, seed=1)
    return output.tolist()


def plain_call(model, tokenizer):
    return mx.argmax(model(mx.array([[5, 9, 3]])).logits, axis=-1).tolist()


def training_step(model):
    ids = mx.array([[5, 9, 3, 7]])
    loss, gradients = nn.value_and_grad(model, lambda: model(ids, labels=ids).loss)()
    norm = sum(mx.sum(gradient * gradient) for _, gradient in tree_flatten(gradients))
    mx.eval(loss, norm)
    return loss.item(), cast(mx.array, norm).item()


def check_rounds(loaded, trained, count):
    """Use a model in three threads, sequentially and concurrently; all results equal those of the main thread."""
    uses = {use.__name__: partial(use, *loaded) for use in (chat, run_pipeline, batch, generate, plain_call)}
    uses["training_step"] = partial(training_step, trained)
    expected = {name: use() for name, use in uses.items()}
    names = list(uses)
    for number in range(count):
        name = names[number % len(names)]
        assert [run_in_thread(uses[name]) for _ in range(3)] == [expected[name]] * 3
        with ThreadPoolExecutor(3) as pool:  # new threads in every round
            futures = {name: pool.submit(use) for name, use in uses.items()}
            assert {name: future.result() for name, future in futures.items()} == expected


def test_a_loaded_model_works_in_other_threads(loaded, trained):
    check_rounds(loaded, trained, 6)


@pytest.mark.slow
def test_a_loaded_model_works_in_other_threads_for_two_hundred_rounds(loaded, trained):
    check_rounds(loaded, trained, 200)


def test_a_training_step_and_chats_run_concurrently():
    model, tokenizer = run_in_thread(lambda: mlx_qwen3.load(bundled_model_path()))
    ids = mx.array([[5, 9, 3, 7]])

    def train():
        own, _ = mlx_qwen3.load(bundled_model_path())
        own.train()
        optimizer = optim.SGD(1e-3)
        loss, gradients = nn.value_and_grad(own, lambda: own(ids, labels=ids).loss)()
        optimizer.update(own, gradients)
        mx.eval(loss, own.parameters())
        own.eval()
        return own

    with ThreadPoolExecutor(3) as pool:
        trained = pool.submit(train)
        chats = [pool.submit(chat, model, tokenizer) for _ in range(3)]
        assert len({tuple(answer.result()) for answer in chats}) == 1
    own = trained.result()
    assert generate(own, tokenizer) == generate(own, tokenizer)
    run_in_thread(lambda: train_more(own, ids))


def train_more(model, ids):
    model.train()
    loss, gradients = nn.value_and_grad(model, lambda: model(ids, labels=ids).loss)()
    optim.SGD(1e-3).update(model, gradients)
    mx.eval(loss, model.parameters())
    model.eval()


def test_each_step_of_a_stream_may_run_in_another_thread(loaded):
    model, tokenizer = loaded
    options = {"max_tokens": 6, "temperature": 0.9, "seed": 4, "logprobs": True, "repetition_penalty": 1.2}
    expected = [r.token for r in stream_generate(model, tokenizer, "hello", **options)]
    responses = stream_generate(model, tokenizer, "hello", **options)
    got = [run_in_thread(lambda: next(responses)) for _ in expected]
    assert [response.token for response in got] == expected
    assert all(bool(mx.isfinite(mx.max(response.logprobs)).item()) for response in got)


def test_results_and_caches_can_be_used_in_another_thread(loaded):
    model, _ = loaded
    ids = mx.array([[5, 9, 3]])
    options = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    output = run_in_thread(lambda: model.generate(ids, max_new_tokens=3, **options))
    assert output.sequences.shape == (1, 6)
    assert mx.sum(output.hidden_states[-1][-1]).item() == mx.sum(output.hidden_states[-1][-1]).item()
    again = model.generate(output.sequences, past_key_values=output.past_key_values, max_new_tokens=2)
    assert again.tolist() == model.generate(output.sequences, max_new_tokens=2).tolist()


def test_a_sampler_continues_in_another_thread():
    scores = mx.random.normal((1, 50), key=mx.random.key(0))
    mx.eval(scores)
    sampler, same = RandomSampler(seed=3), RandomSampler(seed=3)
    expected = [same(scores).item() for _ in range(3)]
    assert [run_in_thread(lambda: sampler(scores).item()) for _ in range(3)] == expected


def test_draws_without_a_seed_differ_between_threads():
    scores = mx.zeros((1, 1 << 20))
    mx.eval(scores)
    assert len({run_in_thread(lambda: RandomSampler()(scores).item()) for _ in range(4)}) == 4


@pytest.mark.parametrize("start", ["thread.start(); thread.join()", "pool.submit(work).result()"])
def test_a_process_that_used_a_model_in_a_thread_exits_with_0(start):
    program = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
import mlx.core as mx
import mlx_qwen3
from mlx_qwen3.bundled import bundled_model_path
mx.set_default_device(mx.cpu)
def work():
    model, tokenizer = mlx_qwen3.load(bundled_model_path())
    mlx_qwen3.generate(model, tokenizer, "hello", max_tokens=2)
thread, pool = threading.Thread(target=work), ThreadPoolExecutor(1)
{start}
"""
    root = Path(mlx_qwen3.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr


def test_loading_adds_one_tensor_at_most_to_the_peak(tmp_path):
    shape = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64}
    mx.random.seed(0)
    model = mlx_qwen3.Qwen3ForCausalLM(mlx_qwen3.Qwen3Config(**shape, num_attention_heads=4, num_key_value_heads=2))
    model.save_pretrained(tmp_path)
    sizes = [array.nbytes for _, array in tree_flatten(model.parameters())]
    del model
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaded = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype="float16")
    half = sum(sizes) / 2
    assert mx.get_peak_memory() - before <= half + max(sizes) + 65536
    assert mx.get_active_memory() - before >= half
    lazy = mlx_qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype="float16", lazy=True)
    assert mx.get_active_memory() - before < 1.5 * half
    assert lazy is not loaded


def test_concurrent_first_uses_give_the_same_result():
    model, _ = mlx_qwen3.load(bundled_model_path())
    barrier = threading.Barrier(3)

    def first_use():
        barrier.wait()
        return generate(model, None)

    with ThreadPoolExecutor(3) as pool:
        results = [future.result() for future in [pool.submit(first_use) for _ in range(3)]]
    assert results[0] == results[1] == results[2]

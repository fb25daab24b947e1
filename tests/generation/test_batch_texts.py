"""`batch_generate` and the continuous batch: each sequence gives the same result as alone."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import InputError, Qwen3Config, Qwen3ForCausalLM, batch_generate, generate, generate_step
from mlx_qwen3.cache import Cache
from mlx_qwen3.generation import RandomSampler, continuous_batch, greedy
from mlx_qwen3.generation.continuous_batch import (
    BatchSequence,
    ContinuousBatch,
    RowToken,
    generate_rows,
    group_prompts,
)
from tests.support.scripted import byte_tokenizer

SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
DYNAMIC = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32}


def small_model(**fields) -> Qwen3ForCausalLM:
    mx.random.seed(3)
    sizes = {"vocab_size": 261, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.2}
    return Qwen3ForCausalLM(Qwen3Config(**{**sizes, **heads, **fields})).eval()


def mixed_prompts(lengths, seed=0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, length).tolist() for length in lengths]


def sequences(prompts, budgets, samplers=None) -> list[BatchSequence]:
    samplers = samplers or [greedy] * len(prompts)
    return [BatchSequence(i, prompts[i], budgets[i], samplers[i]) for i in range(len(prompts))]


def decode_batch(model, prompts, budgets, is_finished=lambda found: False, **options) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in prompts]
    for found in generate_rows(model.for_inference(), sequences(prompts, budgets), is_finished, **options):
        tokens[found.row].append(found.token)
    return tokens


@pytest.mark.parametrize("fields", [{}, SLIDING, DYNAMIC], ids=["full", "sliding", "dynamic"])
def test_rows_equal_single_runs(fields):
    model = small_model(**fields)
    prompts = mixed_prompts([3, 40, 1, 17, 17, 70 if fields is not DYNAMIC else 20, 5])
    budgets = [9, 4, 12, 1, 7, 3, 10]
    alone = [list(generate_step(model, row, max_tokens=n)) for row, n in zip(prompts, budgets, strict=True)]
    assert decode_batch(model, prompts, budgets) == alone
    assert decode_batch(model, prompts, budgets, batch_size=3, prefill_tokens=11) == alone


@pytest.mark.parametrize("fields", [{}, SLIDING, DYNAMIC], ids=["full", "sliding", "dynamic"])
def test_a_shared_prefix_is_computed_once(fields, monkeypatch):
    model = small_model(**{**fields, **({"max_position_embeddings": 256} if fields is DYNAMIC else {})})
    (beginning,) = mixed_prompts([50], seed=1)
    prompts = [[*beginning, *end] for end in mixed_prompts([3, 80, 1, 17, 17, 40, 5])]
    budgets = [9, 4, 12, 1, 7, 3, 10]
    alone = [list(generate_step(model, row, max_tokens=n)) for row, n in zip(prompts, budgets, strict=True)]
    computed = []
    plain = ContinuousBatch._pass
    monkeypatch.setattr(
        ContinuousBatch, "_pass", lambda batch, ids, *at: computed.append(ids.size) or plain(batch, ids, *at)
    )
    assert decode_batch(model, prompts, budgets) == alone
    assert decode_batch(model, prompts, budgets, batch_size=3, prefill_tokens=11) == alone
    if not fields:
        assert sum(computed) / 2 < sum(
            map(len, prompts)
        )  # without sharing, the prefix alone is 350 tokens in seven rows


def test_on_cuda_rows_start_in_fewer_stages(monkeypatch):
    model, widths = small_model(), []
    prompts = mixed_prompts([200, 150, 90, 40, 3])
    alone = [list(generate_step(model, row, max_tokens=4)) for row in prompts]
    plain = ContinuousBatch._pass
    monkeypatch.setattr(
        ContinuousBatch, "_pass", lambda batch, ids, *at: widths.append(ids.shape[1]) or plain(batch, ids, *at)
    )
    for cuda, stages in ((False, 5), (True, 2)):
        monkeypatch.setattr(continuous_batch, "on_cuda", lambda cuda=cuda: cuda)
        widths.clear()
        assert decode_batch(model, prompts, [4] * 5) == alone
        assert len([width for width in widths if width > 1]) == stages


def test_rows_equal_single_runs_with_a_quantized_cache():
    model = small_model()
    prompts, options = mixed_prompts([30, 4, 12]), {"kv_bits": 8, "kv_group_size": 32}
    alone = [list(generate_step(model, row, max_tokens=8, **options)) for row in prompts]
    assert decode_batch(model, prompts, [8] * 3, **options) == alone


def test_a_finished_row_yields_nothing_more():
    model = small_model()
    prompts = mixed_prompts([6, 8, 5, 9])
    alone = [list(generate_step(model, row, max_tokens=20)) for row in prompts]
    stop_after = [3, 20, 5, 11]
    seen = [0] * 4

    def is_finished(found: RowToken) -> bool:
        seen[found.row] += 1
        return seen[found.row] == stop_after[found.row]

    assert decode_batch(model, prompts, [20] * 4, is_finished) == [
        row[:n] for row, n in zip(alone, stop_after, strict=True)
    ]


def test_no_unnecessary_step_is_computed():
    model = small_model()
    passes = []
    plain = model.step_logits

    class Counting:
        config = model.config

        def step_logits(self, ids, *rest):
            passes.append(ids.shape)
            return plain(ids, *rest)

    list(generate_rows(Counting(), sequences(mixed_prompts([4, 4]), [3, 3]), lambda found: False))
    assert passes == [(2, 4), (2, 1), (2, 1)]


def record_passes(monkeypatch):
    """Return a list to which the shape (rows, length) of every following batch pass is appended."""
    widths: list[tuple[int, ...]] = []
    plain = ContinuousBatch._pass
    monkeypatch.setattr(
        ContinuousBatch, "_pass", lambda batch, ids, *at: widths.append(tuple(ids.shape)) or plain(batch, ids, *at)
    )
    return widths


@pytest.mark.parametrize("fields", [{}, SLIDING], ids=["full", "sliding"])
def test_waiting_prompts_replace_finished_rows(fields, monkeypatch):
    model = small_model(**fields)
    draw = np.random.default_rng(4)
    prompts, budgets = mixed_prompts(draw.integers(2, 30, 11).tolist()), draw.integers(1, 25, 11).tolist()
    alone = [list(generate_step(model, row, max_tokens=n)) for row, n in zip(prompts, budgets, strict=True)]
    widths = record_passes(monkeypatch)
    assert decode_batch(model, prompts, budgets, batch_size=4) == alone
    steps = sum(1 for _, length in widths if length == 1)
    monkeypatch.setattr(Cache, "takes_rows", False)
    widths.clear()
    assert decode_batch(model, prompts, budgets, batch_size=4) == alone
    without = sum(1 for _, length in widths if length == 1)
    assert steps == without if fields else steps < 0.8 * without


def test_a_cache_that_would_be_mostly_padding_admits_no_rows(monkeypatch):
    model = small_model()
    prompts, budgets = mixed_prompts([200, 190, 180, 170, 3, 3, 3]), [9, 2, 2, 2, 2, 2, 2]
    alone = [list(generate_step(model, row, max_tokens=n)) for row, n in zip(prompts, budgets, strict=True)]
    widths = record_passes(monkeypatch)
    assert decode_batch(model, prompts, budgets, batch_size=4) == alone
    assert widths[-1] == (1, 1)  # the short rows joined the long one and finished before it
    monkeypatch.setattr(continuous_batch, "TOLERATED_PADDING", 300)
    widths.clear()
    assert decode_batch(model, prompts, budgets, batch_size=4) == alone
    assert widths[-2:] == [(3, 3), (3, 1)]  # the short rows ran in a separate batch afterwards


class Counted:
    """Replaces a model: counts passes and always chooses token 0."""

    config = Qwen3Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8, vocab_size=8
    )

    def __init__(self):
        self.steps = self.prefills = 0

    def step_logits(self, ids, cache, keep=1, *rest):
        count, length = ids.shape
        self.steps, self.prefills = self.steps + (length == 1), self.prefills + (length > 1)
        cache.layers[0].update(mx.zeros((count, 1, length, 8)), mx.zeros((count, 1, length, 8)))
        return mx.zeros((count, keep, 8))


def test_a_long_queue_keeps_the_batches_full(monkeypatch):
    draw = np.random.default_rng(0)
    prompts = [[1] * n for n in draw.integers(16, 65, 300).tolist()]
    budgets = draw.integers(2, 65, 300).tolist()

    def passes():
        model = Counted()
        found = generate_rows(model, sequences(prompts, budgets), lambda token: False, batch_size=32)
        assert sum(1 for _ in found) == sum(budgets)
        return model

    joined = passes()
    monkeypatch.setattr(continuous_batch, "JOINING_SHARE", 32)
    one_by_one = passes()
    monkeypatch.setattr(Cache, "takes_rows", False)
    apart = passes()
    assert joined.steps < 0.8 * apart.steps
    assert joined.prefills < 0.5 * one_by_one.prefills


def test_rows_that_join_have_their_own_sampler():
    model = small_model()
    prompts = mixed_prompts([9, 8, 7, 6, 5, 4])
    samplers = [greedy if i % 2 else RandomSampler(temperature=1.0, seed=i) for i in range(6)]
    found: list[list[int]] = [[] for _ in prompts]
    rows = sequences(prompts, [3, 9, 2, 6, 8, 5], samplers)
    for token in generate_rows(model.for_inference(), rows, lambda token: False, batch_size=3):
        found[token.row].append(token.token)
    for i in (1, 3, 5):
        assert found[i] == list(generate_step(model, prompts[i], max_tokens=[3, 9, 2, 6, 8, 5][i]))
    assert [len(row) for row in found] == [3, 9, 2, 6, 8, 5]


def test_prompts_are_grouped_with_little_padding():
    assert group_prompts([5, 9, 7], 2) == [[1, 2], [0]]
    lengths = [16] * 31 + [8000]
    assert group_prompts(lengths, 32) == [[31, 0], list(range(1, 31))]
    assert group_prompts([3, 1, 2], 32) == [[0, 2, 1]]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_texts_equal_those_of_single_runs(tokenizer):
    model = small_model()
    prompts = ["a", "some longer prompt than that", "and one more"]
    got = batch_generate(model, tokenizer, prompts, max_tokens=[4, 9, 6], temperature=0)
    assert got.texts == [
        generate(model, tokenizer, prompt, max_tokens=n, temperature=0)
        for prompt, n in zip(prompts, [4, 9, 6], strict=True)
    ]
    assert got.finish_reasons == ["length"] * 3
    assert got.stats.prompt_tokens == sum(map(len, prompts))
    assert got.stats.generation_tokens == 19


def test_each_sequence_has_its_own_stop_strings_and_ending_tokens(tokenizer):
    model = small_model()
    prompts = mixed_prompts([5, 9, 3], seed=4)
    letters = {"max_tokens": 12, "sampler": lambda logits: mx.argmax(logits[:, :90], axis=-1)}
    free = batch_generate(model, tokenizer, prompts, **letters)
    ending = free.token_ids[0][5]
    at = free.token_ids[0].index(ending)
    got = batch_generate(model, tokenizer, prompts, **letters, eos_token_ids=[ending])
    assert got.token_ids[0] == free.token_ids[0][:at]
    assert got.finish_reasons[0] == "stop"
    wanted = free.texts[2][4:6]
    got = batch_generate(model, tokenizer, prompts, **letters, stops=[None, None, wanted])
    assert got.texts[:2] == free.texts[:2]
    assert got.texts[2] == free.texts[2][: free.texts[2].index(wanted)]
    assert got.finish_reasons == ["length", "length", "stop"]


def test_each_sequence_has_its_own_sampler(tokenizer):
    model = small_model()
    prompts = mixed_prompts([5, 9, 3, 6], seed=5)

    def last(logits):
        return mx.full((logits.shape[0],), 7, dtype=mx.int32)

    samplers = [greedy, last, greedy, RandomSampler(seed=1)]
    got = batch_generate(model, tokenizer, prompts, max_tokens=5, sampler=samplers)
    free = batch_generate(model, tokenizer, prompts, max_tokens=5, temperature=0)
    assert got.token_ids[0] == free.token_ids[0]
    assert got.token_ids[1] == [7] * 5
    assert got.token_ids[2] == free.token_ids[2]
    drawn = [batch_generate(model, tokenizer, prompts, 5, temperature=1.0, seed=2).token_ids for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != free.token_ids


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompts": "text"}, "list of prompts"),
        ({"prompts": [[1], []]}, "prompt 1"),
        ({"prompts": [[1], [999]]}, "prompt 1"),
        ({"max_tokens": [1]}, "max_tokens has 1 entries for 2"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"sampler": [greedy]}, "sampler has 1"),
        ({"completion_batch_size": 0}, "completion_batch_size"),
    ],
)
def test_errors_name_the_invalid_input(tokenizer, options, named):
    arguments = {"prompts": [[1], [2]], "max_tokens": 2, **options}
    with pytest.raises(InputError, match=named):
        batch_generate(small_model(), tokenizer, **arguments)

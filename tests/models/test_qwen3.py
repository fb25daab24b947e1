"""Calls of Qwen3: every documented argument and output, and one clear error per invalid argument."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_qwen3 import ConfigError, InputError, Qwen3Model
from mlx_qwen3.cache import Cache
from tests.support import tiny


def same(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.array(a), np.array(b), atol=tolerance, rtol=tolerance)


def test_arrays_lists_and_numpy_arrays_give_the_same_output():
    model, ids = tiny.model("Qwen3Model"), tiny.ids()
    want = model(ids).last_hidden_state
    for given in (ids.tolist(), np.array(ids), np.array(ids).astype(np.int64)):
        same(model(given).last_hidden_state, want)


def test_an_output_is_read_by_attribute_key_and_index():
    model = tiny.model()
    output = model(tiny.ids(), output_hidden_states=True, output_attentions=True)
    assert output.logits is output["logits"] is output[0]
    assert list(output) == ["logits", "past_key_values", "hidden_states", "attentions"]
    assert len(output.to_tuple()) == len(output) == 4
    assert isinstance(output.hidden_states, tuple)
    assert isinstance(output.attentions, tuple)
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (2, 4, 7, 7)
    assert dict(**output)["logits"] is output.logits
    assert output.loss is None


def test_output_options_can_be_set_in_the_config():
    model = tiny.model(output_attentions=True, output_hidden_states=True, use_cache=False, return_dict=False)
    output = model(tiny.ids())
    assert isinstance(output, tuple)
    assert len(output) == 3
    assert model(tiny.ids(), return_dict=True).past_key_values is None
    assert len(model(tiny.ids(), output_attentions=False, output_hidden_states=False)) == 1


def test_the_last_hidden_state_is_normalized():
    output = tiny.model("Qwen3Model")(tiny.ids(), output_hidden_states=True)
    same(output.hidden_states[-1], output.last_hidden_state)


def test_embeddings_can_replace_ids():
    model, ids = tiny.model(), tiny.ids()
    same(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)


def test_a_cache_continues_where_it_stopped():
    model, ids = tiny.model(), tiny.ids(length=9)
    first = model(ids[:, :5], use_cache=True)
    assert isinstance(first.past_key_values, Cache)
    rest = model(ids[:, 5:], past_key_values=first.past_key_values, cache_position=mx.arange(5, 9))
    same(rest.logits, model(ids).logits[:, 5:])
    assert rest.past_key_values.get_seq_length() == 9


def test_legacy_tuples_are_accepted_and_a_cache_is_returned():
    model, ids = tiny.model(), tiny.ids(length=9)
    past = model(ids[:, :5]).past_key_values.to_legacy_cache()
    assert isinstance(past, tuple)
    assert past[0][0].shape == (2, 2, 5, 8)
    rest = model(ids[:, 5:], past_key_values=past)
    same(rest.logits, model(ids).logits[:, 5:])
    assert isinstance(rest.past_key_values, Cache)


@pytest.mark.parametrize("keep", [0, 1, 3, 99, [1, 5], [[1, 2], [0, 6]]])
def test_logits_to_keep_selects_the_positions(keep):
    model, ids = tiny.model(), tiny.ids()
    every, got = np.array(model(ids).logits), model(ids, logits_to_keep=keep).logits
    if isinstance(keep, int):
        want = every[:, -keep:] if 0 < keep < 7 else every
    else:
        index = np.array(keep)
        want = every[:, index] if index.ndim == 1 else np.stack([every[i, row] for i, row in enumerate(index)])
    same(got, want)


def test_boolean_and_additive_masks_of_four_dimensions_are_accepted():
    model, ids = tiny.model(), tiny.ids()
    causal = np.tril(np.ones((7, 7), dtype=bool))[None, None]
    want = model(ids).logits
    same(model(ids, attention_mask=mx.array(causal)).logits, want)
    added = np.where(causal, 0.0, -np.inf).astype(np.float32)
    same(model(ids, attention_mask=mx.array(added)).logits, want)


def test_packed_sequences_do_not_attend_to_each_other():
    model, ids = tiny.model(), tiny.ids(batch=1, length=8)
    positions = mx.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    same(packed[:, 3:], model(ids[:, 3:]).logits)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("side", ["left", "right", "all"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_padding_never_gives_nan(window, side, dtype):
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0} if window else {}
    model = tiny.model(**sliding)
    model.set_dtype(dtype)
    mask = np.ones((2, 7), dtype=np.int32)
    mask[1, {"left": slice(0, 5), "right": slice(2, 7), "all": slice(0, 7)}[side]] = 0
    logits = model(tiny.ids(), attention_mask=mask).logits.astype(mx.float32)
    assert not np.isnan(np.array(logits)).any()


def test_a_padded_row_equals_the_row_alone():
    model, ids = tiny.model(), tiny.ids(batch=1, length=5)
    want = model(ids).logits
    pad = mx.zeros((1, 3), dtype=ids.dtype)
    ones, zeros = mx.ones((1, 5), dtype=mx.int32), mx.zeros((1, 3), dtype=mx.int32)
    right = model(mx.concatenate([ids, pad], axis=1), attention_mask=mx.concatenate([ones, zeros], axis=1))
    same(right.logits[:, :5], want, 1e-4)
    left = model(mx.concatenate([pad, ids], axis=1), attention_mask=mx.concatenate([zeros, ones], axis=1))
    same(left.logits[:, 3:], want, 1e-4)


def test_an_activation_may_be_a_function():
    ids = tiny.ids()
    same(tiny.model(hidden_act=nn.gelu)(ids).logits, tiny.model(hidden_act="gelu")(ids).logits)
    with pytest.raises(ConfigError, match="hidden_act"):
        tiny.model(hidden_act="swoosh")


def test_attention_dropout_applies_only_in_training():
    model, ids = tiny.model(attention_dropout=0.5), tiny.ids()
    same(model(ids).logits, tiny.model()(ids).logits)
    model.train()
    assert mx.abs(model(ids).logits - model(ids).logits).max().item() > 1e-3


def test_constructing_evaluates_nothing():
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    model = Qwen3Model(tiny.config(hidden_size=1024, intermediate_size=4096, num_hidden_layers=4))
    assert mx.get_active_memory() - before < 1_000_000
    assert model.num_parameters() > 50_000_000


def test_initial_weights_follow_the_distribution_of_the_reference():
    model = tiny.model(initializer_range=0.02, pad_token_id=3, hidden_size=256, attention_bias=True)
    weights = dict(tree_flatten(model.parameters()))
    assert abs(mx.std(weights["model.layers.0.mlp.up_proj.weight"]).item() - 0.02) < 0.002
    assert mx.abs(weights["model.embed_tokens.weight"][3]).max().item() == 0
    assert mx.abs(weights["model.layers.0.self_attn.q_proj.bias"]).max().item() == 0
    assert mx.all(weights["model.norm.weight"] == 1).item()


def test_a_training_step_under_compile_lowers_the_loss():
    import mlx.optimizers as optim

    model, ids = tiny.model(), tiny.ids()
    model.train()
    optimizer = optim.AdamW(learning_rate=1e-2)
    step = nn.value_and_grad(model, lambda x: model(x, labels=x, use_cache=False).loss)
    losses = []
    for _ in range(5):
        loss, grads = step(ids)
        optimizer.update(model, grads)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    compiled = mx.compile(lambda x: model(x, use_cache=False).logits)
    same(compiled(ids), model(ids).logits, 1e-4)


def test_resizing_the_vocabulary_keeps_existing_rows():
    model, ids = tiny.model(), tiny.ids()
    before = model(ids).logits
    model.resize_token_embeddings(70)
    assert model(ids).logits.shape[-1] == model.config.vocab_size == 70
    same(model(ids).logits[..., :61], before)
    model.resize_token_embeddings(61)
    same(model(ids).logits, before)


def test_input_embeddings_can_be_replaced():
    model, ids = tiny.model(tie_word_embeddings=True), tiny.ids()
    other = nn.Embedding(61, 32)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    same(model(ids).logits[0, 0], other.as_linear(model.model(ids).last_hidden_state)[0, 0])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({}, "input_ids"),
        ({"input_ids": [[1]], "inputs_embeds": np.zeros((1, 1, 32), dtype=np.float32)}, "inputs_embeds"),
        ({"input_ids": [[1, 61]]}, "61"),
        ({"input_ids": [[-1]]}, "-1"),
        ({"input_ids": [1, 2]}, "shape"),
        ({"input_ids": [[]]}, "empty|whole"),
        ({"input_ids": [[1], [1, 2]]}, "ragged"),
        ({"input_ids": [["a"]]}, "input_ids"),
        ({"input_ids": [[0.5]]}, "whole numbers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": [1, 1]}, "attention_mask"),
        ({"input_ids": [[1, 2]], "position_ids": [[0]]}, "position_ids"),
        ({"inputs_embeds": np.zeros((1, 1, 31), dtype=np.float32)}, "inputs_embeds"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "labels"),
        ({"input_ids": [[1, 2]], "labels": [[1, 99]]}, "labels"),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]], "logits_to_keep": 1}, "labels"),
        ({"input_ids": [[1]], "logits_to_keep": -1}, "logits_to_keep"),
        ({"input_ids": [[1]], "logits_to_keep": [1]}, "logits_to_keep"),
        ({"input_ids": [[1]], "logits_to_keep": [0.5]}, "logits_to_keep"),
        ({"input_ids": [[1, 2]], "attention_mask": np.ones((1, 1, 3, 2))}, "attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": np.ones((1, 1, 2, 3))}, "attention_mask"),
        ({"input_ids": [[1]], "past_key_values": ()}, "past_key_values"),
        ({"input_ids": [[1]], "past_key_values": 5}, "past_key_values"),
        ({"input_ids": [[1]], "past_key_values": ((None, None),) * 2}, "layer 0"),
        ({"input_ids": [[1]], "past_key_values": ((np.zeros((1, 2, 3, 9)),) * 2,) * 2}, "layer 0"),
        ({"input_ids": [[1], [2]], "past_key_values": ((np.zeros((1, 2, 3, 8)),) * 2,) * 2}, "layer 0"),
        ({"input_ids": [[1]], "token_type_ids": [[0]]}, "token_type_ids"),
    ],
)
def test_an_invalid_argument_is_reported(call, named):
    with pytest.raises(InputError, match=named) as error:
        tiny.model()(**call)
    assert "\n" not in str(error.value)


def test_numbers_of_heads_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        tiny.model(num_key_value_heads=3)
    with pytest.raises(ConfigError, match="sliding_window"):
        tiny.model(layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(ConfigError, match="hidden_act"):
        tiny.model(hidden_act="prelu")

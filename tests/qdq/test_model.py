"""QDQBert models: caches, masks, positions, quantizers by name, and errors that name the field."""

import logging

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3 import ConfigError, ContextError, InputError, QuantizationError
from tests.support import tiny_bert

DECODER = {"is_decoder": True}
POSITIONS = ["absolute", "relative_key", "relative_key_query"]


def close(got: mx.array, want: mx.array, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(np.array(got), np.array(want), atol=atol)


def states(batch: int = 3, size: int = 5) -> mx.array:
    return mx.random.normal((batch, size, 32), key=mx.random.key(3))


# caches and masks; quantizers are disabled where a rounding difference could change a quantization level


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("cross", [False, True])
def test_cached_steps_equal_one_call(positions, cross):
    model = tiny_bert.model(
        "QDQBertLMHeadModel", **DECODER, add_cross_attention=cross, position_embedding_type=positions
    )
    model.disable_quantizers("")
    ids = tiny_bert.ids(length=9)
    extra = {
        "encoder_hidden_states": states(),
        "encoder_attention_mask": mx.array([[1] * 5, [1] * 3 + [0] * 2, [1] * 5]),
    }
    extra = extra if cross else {}
    want = model(ids, **extra).logits
    past, pieces = None, []
    for first, last in [(0, 4), (4, 5), (5, 8), (8, 9)]:
        output = model(ids[:, first:last], past_key_values=past, **extra)
        past = output.past_key_values
        pieces.append(output.logits)
        assert past.get_seq_length() == last
        assert all(len(layer) == (4 if cross else 2) for layer in past)
    close(mx.concatenate(pieces, axis=1), want)


def test_plain_tuples_are_accepted_as_a_cache():
    model = tiny_bert.model("QDQBertLMHeadModel", **DECODER)
    model.disable_quantizers("")
    ids = tiny_bert.ids(length=6)
    past = tuple(tuple(layer) for layer in model(ids[:, :4]).past_key_values)
    close(model(ids[:, 4:], past_key_values=past).logits, model(ids).logits[:, 4:])


def test_calibrated_decoding_agrees_with_one_call():
    model = tiny_bert.calibrated("QDQBertLMHeadModel", **DECODER)
    ids = tiny_bert.ids(length=6)
    first = model(ids[:, :5])
    last = model(ids[:, 5:], past_key_values=first.past_key_values)
    want = model(ids).logits
    # with static ranges only values close to a half step may get another level
    assert (mx.abs(last.logits[:, 0] - want[:, 5]) < 1e-4).mean().item() > 0.9


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_row(side):
    model = tiny_bert.model()
    model.disable_quantizers("")
    ids = tiny_bert.ids(batch=1, length=5)
    blank = mx.zeros((1, 3), dtype=mx.int32)
    parts = [blank, ids] if side == "left" else [ids, blank]
    mask = mx.concatenate([(p != 0).astype(mx.int32) for p in parts], axis=1)
    start = 3 if side == "left" else 0
    positions = mx.maximum(mx.arange(8) - start, 0)[None]
    got = model(mx.concatenate(parts, axis=1), attention_mask=mask, position_ids=positions).last_hidden_state
    close(got[:, start : start + 5], model(ids).last_hidden_state)


def test_a_fully_masked_row_is_finite_and_equal_in_both_attention_paths():
    model = tiny_bert.model()
    model.disable_quantizers("")
    mask = mx.array([[0] * 7, [1] * 7, [1, 0] * 3 + [1]])
    fused = model(tiny_bert.ids(), attention_mask=mask).last_hidden_state
    plain = model(tiny_bert.ids(), attention_mask=mask, output_attentions=True)
    assert mx.isfinite(fused).all().item()
    close(fused, plain.last_hidden_state)
    close(plain.attentions[0][0], mx.full((4, 7, 7), 1 / 7))


def test_three_dimensional_masks_replace_the_causal_mask():
    model = tiny_bert.model(**DECODER)
    model.disable_quantizers("")
    ids, everything = tiny_bert.ids(), mx.ones((3, 7, 7))
    encoder = tiny_bert.model()
    encoder.disable_quantizers("")
    close(model(ids, attention_mask=everything).last_hidden_state, encoder(ids).last_hidden_state)
    causal = mx.broadcast_to(mx.tril(mx.ones((7, 7))), (3, 7, 7))
    close(encoder(ids, attention_mask=causal).last_hidden_state, model(ids).last_hidden_state)


def test_head_mask_disables_a_head_in_all_layers_or_per_layer():
    model = tiny_bert.model()
    ids = tiny_bert.ids()
    for mask in ([1, 0, 1, 1], [[1, 0, 1, 1], [1, 1, 1, 1]]):
        attentions = model(ids, head_mask=mx.array(mask), output_attentions=True).attentions
        assert mx.abs(attentions[0][:, 1]).max().item() == 0
        assert (mx.abs(attentions[1][:, 1]).max().item() == 0) == (mx.array(mask).ndim == 1)


def test_relative_positions_depend_only_on_the_distance():
    model = tiny_bert.model(position_embedding_type="relative_key_query")
    model.disable_quantizers("")
    ids = tiny_bert.ids(batch=1)
    close(model(ids).last_hidden_state, model(ids, position_ids=mx.arange(7)[None] + 9).last_hidden_state)
    flipped = model(ids[:, ::-1]).last_hidden_state[:, ::-1]
    assert mx.abs(flipped - model(ids).last_hidden_state).max().item() > 1e-3


def test_hidden_states_and_tuple_outputs_have_the_documented_entries():
    model = tiny_bert.model()
    output = model(tiny_bert.ids(), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert output.hidden_states[-1] is output.last_hidden_state
    assert output.past_key_values is None
    as_tuple = model(tiny_bert.ids(), return_dict=False)
    assert [a.shape for a in as_tuple] == [(3, 7, 32), (3, 32)]
    assert "pooler" not in tiny_bert.model("QDQBertForTokenClassification").bert
    bare = mlx_qwen3.QDQBertModel(model.config, add_pooling_layer=False)
    assert bare(tiny_bert.ids()).pooler_output is None


def test_the_cache_has_the_index_of_the_reference_in_the_output():
    model = tiny_bert.model(is_decoder=True)
    options = {"use_cache": True, "output_hidden_states": True, "output_attentions": True}
    output = model(tiny_bert.ids(), **options)
    names = ["last_hidden_state", "pooler_output", "hidden_states", "past_key_values", "attentions"]
    assert list(output.keys()) == names
    plain = model(tiny_bert.ids(), return_dict=False, **options)
    assert plain[2].get_seq_length() == 7
    assert [len(entry) for entry in plain[2:]] == [2, 3, 2]


def test_labels_disable_the_cache():
    model = tiny_bert.model("QDQBertLMHeadModel", **DECODER)
    ids = tiny_bert.ids()
    assert model(ids, labels=ids).past_key_values is None
    assert model(ids).past_key_values is not None
    assert model(ids, use_cache=False).past_key_values is None


def test_an_encoder_ignores_encoder_states():
    model = tiny_bert.model()
    ids = tiny_bert.ids()
    close(model(ids, encoder_hidden_states=states()).last_hidden_state, model(ids).last_hidden_state, 0)


def test_generation_stops_at_eos_and_pads():
    model = tiny_bert.model("QDQBertLMHeadModel", **DECODER)
    ids = tiny_bert.ids(batch=2, length=4)
    free = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert free.shape == (2, 10)
    end = free[0, 5].item()
    stopped = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=end)
    row = stopped[0].tolist()
    assert row[: row.index(end, 4) + 1] == free[0].tolist()[: row.index(end, 4) + 1]
    assert set(row[row.index(end, 4) + 1 :]) <= {0}


# quantizers by name


def test_quantizers_are_listed_by_their_on_disk_names():
    names = [name for name, _ in tiny_bert.model().named_quantizers()]
    assert len(names) == 40
    assert "encoder.layer.0.attention.self.query._input_quantizer" in names
    assert "encoder.layer.1.attention.output.add_residual_input_quantizer" in names
    decoder = tiny_bert.model("QDQBertLMHeadModel", **DECODER, add_cross_attention=True)
    assert len(decoder.named_quantizers()) == 68
    assert "bert.encoder.layer.0.crossattention.self.matmul_k_input_quantizer" in dict(decoder.named_quantizers())


def test_quantizers_are_enabled_and_disabled_by_pattern(caplog):
    model = tiny_bert.model()
    names = model.disable_quantizers(r"layer\.0\..*_weight_quantizer$")
    assert len(names) == 6
    assert [name for name, q in model.named_quantizers() if not q.enabled] == names
    assert len(model.enable_quantizers("")) == 40
    assert all(q.enabled for _, q in model.named_quantizers())
    with caplog.at_level(logging.WARNING):
        assert model.disable_quantizers("convolution") == []
    assert "convolution" in caplog.text
    with pytest.raises(InputError, match="regular expression"):
        model.disable_quantizers("(")


def test_a_range_is_not_a_trainable_parameter():
    model = tiny_bert.calibrated()
    trainable = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert not any("amax" in name or "quantizer" in name for name in trainable)
    assert len(trainable) == len(tree_flatten(model.parameters())) == 39
    assert all(q.amax is not None for _, q in model.named_quantizers())


def test_attention_is_fused_only_if_its_quantizers_are_disabled(monkeypatch):
    calls = []
    monkeypatch.setattr("mlx_qwen3.qdq.attention.attend", lambda q, k, v, *_: calls.append(1) or mx.zeros_like(q))
    model = tiny_bert.model()
    model(tiny_bert.ids())
    assert not calls
    model.disable_quantizers("matmul_[qkva]_input_quantizer")
    model(tiny_bert.ids())
    assert len(calls) == 2
    model(tiny_bert.ids(), output_attentions=True)
    assert len(calls) == 2


# invalid input


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, "input_ids or inputs_embeds"),
        ({"input_ids": [[1]], "inputs_embeds": [[[0.0] * 32]]}, "not both"),
        ({"input_ids": [[61]]}, "vocabulary of 61"),
        ({"input_ids": [[1.5]]}, "whole numbers"),
        ({"input_ids": [1, 2]}, "batch, length"),
        ({"input_ids": [[]]}, "not empty"),
        ({"inputs_embeds": [[[0.0] * 31]]}, "inputs_embeds"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}, "attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": [[[[1, 1]]]]}, "attention_mask"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}, "type_vocab_size"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0]]}, "token_type_ids"),
        ({"input_ids": [[1, 2]], "position_ids": [[0, 32]]}, "max_position_embeddings"),
        ({"input_ids": [[1, 2]], "head_mask": [1.0]}, "head_mask"),
        ({"input_ids": [[1, 2]], "head_mask": mx.ones((2, 1, 7, 1, 1))}, "head_mask"),
        ({"input_ids": [[1, 2]], "colour": 1}, "colour"),
        ({"input_ids": [[1, 2]], "past_key_values": ()}, "is_decoder"),
    ],
)
def test_invalid_arguments_are_reported(kwargs, text):
    with pytest.raises(InputError, match=text):
        tiny_bert.model()(**kwargs)


def test_too_many_tokens_are_refused():
    with pytest.raises(ContextError, match="max_position_embeddings"):
        tiny_bert.model()(tiny_bert.ids(length=33))
    model = tiny_bert.model("QDQBertLMHeadModel", **DECODER)
    past = model(tiny_bert.ids(length=30)).past_key_values
    with pytest.raises(ContextError, match="33 tokens"):
        model(tiny_bert.ids(length=3), past_key_values=past)


@pytest.mark.parametrize(
    "past", [((1, 2),) * 2, ((mx.zeros((2, 4, 3, 8)),) * 2,) * 2, ((mx.zeros((3, 4, 3, 9)),) * 2,) * 2]
)
def test_a_cache_of_another_shape_is_refused(past):
    with pytest.raises(InputError, match="layer 0"):
        tiny_bert.model(is_decoder=True)(tiny_bert.ids(), past_key_values=past)


def test_invalid_encoder_arguments_are_reported():
    ids = tiny_bert.ids()
    with pytest.raises(InputError, match="add_cross_attention"):
        tiny_bert.model(**DECODER)(ids, encoder_hidden_states=states())
    model = tiny_bert.model(**DECODER, add_cross_attention=True)
    with pytest.raises(InputError, match="encoder_hidden_states"):
        model(ids, encoder_hidden_states=states(batch=2))
    with pytest.raises(InputError, match="encoder_attention_mask"):
        model(ids, encoder_hidden_states=states(), encoder_attention_mask=mx.ones((3, 4)))
    with pytest.raises(InputError, match="past_key_values"):
        model(ids, past_key_values=((ids, ids),))


def test_cross_attention_and_generation_require_is_decoder():
    with pytest.raises(ConfigError, match="is_decoder"):
        tiny_bert.model(add_cross_attention=True)
    with pytest.raises(ConfigError, match="is_decoder"):
        tiny_bert.model("QDQBertLMHeadModel").generate(tiny_bert.ids(), max_new_tokens=2)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hidden_size": 30}, "num_attention_heads"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"hidden_act": "swoosh"}, "swoosh"),
        ({"quant_desc_input": "8 bits"}, "quant_desc_input"),
    ],
)
def test_invalid_configurations_are_reported(fields, text):
    with pytest.raises(ConfigError, match=text):
        tiny_bert.model(**fields)


def test_invalid_descriptors_are_reported():
    with pytest.raises(QuantizationError, match=r"quant_desc_weight has an unknown key: 'bits'"):
        tiny_bert.model(quant_desc_weight={"bits": 8})
    with pytest.raises(QuantizationError, match="num_bits"):
        tiny_bert.model(quant_desc_input={"num_bits": 0})
    with pytest.raises(QuantizationError, match="axis"):
        tiny_bert.model(quant_desc_weight={"axis": 5})


def test_the_vocabulary_can_be_enlarged_and_reduced():
    model = tiny_bert.model("QDQBertForMaskedLM")
    ids = tiny_bert.ids()
    before = model(ids).logits
    model.resize_token_embeddings(70)
    close(model(ids).logits[..., :61], before)
    assert model(ids).logits.shape[-1] == 70
    model.resize_token_embeddings(61)
    close(model(ids).logits, before)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)

"""`model.generate`: rows, padding, ending tokens, limits, scores and errors."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import ConfigError, GenerateOutput, GenerationConfig, InputError, Qwen3ForCausalLM
from tests.support import tiny_bert
from tests.support.scripted import byte_tokenizer
from tests.support.tiny import ids as random_ids
from tests.support.tiny import model as tiny_model

FIXED = {"do_sample": False, "max_new_tokens": 8}


def continue_greedily(model, ids, count):
    """Append greedy tokens, each computed by a pass over the whole text."""
    for _ in range(count):
        token = mx.argmax(model(ids, use_cache=False).logits[:, -1], axis=-1)
        ids = mx.concatenate([ids, token[:, None].astype(ids.dtype)], axis=1)
    return ids


@pytest.mark.parametrize("fields", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_whole_passes(fields, use_cache):
    model, ids = tiny_model(**fields), random_ids(3, 6)
    got = model.generate(ids, use_cache=use_cache, **FIXED)
    assert got.tolist() == continue_greedily(model, ids, 8).tolist()


def test_left_padded_rows_equal_single_rows():
    model, rows = tiny_model(), [random_ids(1, n, seed=n) for n in (3, 5, 8)]
    ids = mx.concatenate([mx.pad(row, ((0, 0), (8 - row.shape[1], 0))) for row in rows])
    mask = mx.array([[0] * (8 - row.shape[1]) + [1] * row.shape[1] for row in rows])
    for given in ({"attention_mask": mask}, {"pad_token_id": 0}):
        got = model.generate(ids, **given, **FIXED)
        for row, single in zip(got, rows, strict=True):
            assert row[8:].tolist() == model.generate(single, **FIXED)[0, single.shape[1] :].tolist()


def test_finished_rows_are_padded_until_all_are_finished():
    model, ids = tiny_model(), random_ids(2, 6)
    free = model.generate(ids, **FIXED)[:, 6:]
    eos = free[0, 2].item()
    got = model.generate(ids, eos_token_id=eos, pad_token_id=60, **FIXED)[:, 6:].tolist()
    for row, unbound in zip(got, free.tolist(), strict=True):
        end = unbound.index(eos) + 1 if eos in unbound else 8
        assert row == [*unbound[:end], *[60] * (len(row) - end)]
    one = model.generate(ids[:1], eos_token_id=[eos, 59], **FIXED)
    assert one[0, 6:].tolist() == free[0, : free[0].tolist().index(eos) + 1].tolist()


def test_length_limits_apply():
    model, ids = tiny_model(), random_ids(1, 6)
    assert model.generate(ids, max_length=9).shape == (1, 9)
    assert model.generate(ids, max_new_tokens=2, max_length=50).shape == (1, 8)
    assert model.generate(ids).shape == (1, 26)
    with pytest.raises(InputError, match="max_length is 6"):
        model.generate(ids, max_length=6)
    first = model.generate(ids, **FIXED)[0, 6].item()
    minimum = model.generate(ids, eos_token_id=first, min_new_tokens=3, **FIXED)[0, 6:].tolist()
    assert first not in minimum[:3]
    assert model.generate(ids, eos_token_id=first, min_length=8, **FIXED)[0, 6:8].tolist() == minimum[:2]


def test_a_seed_reproduces_several_sampled_answers():
    model, ids = tiny_model(), random_ids(2, 4)
    mask = mx.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6, "attention_mask": mask}
    first = model.generate(ids, seed=1, **options)
    assert first.shape == (6, 10)
    assert first[:, :4].tolist() == mx.repeat(ids, 3, axis=0).tolist()
    assert first.tolist() == model.generate(ids, seed=1, **options).tolist()
    assert first.tolist() != model.generate(ids, seed=2, **options).tolist()
    assert len({tuple(row) for row in first[:3].tolist()}) > 1
    best = model.generate(ids, do_sample=True, top_k=1, max_new_tokens=6, attention_mask=mask)
    assert best.tolist() == model.generate(ids, max_new_tokens=6, attention_mask=mask).tolist()
    with pytest.raises(InputError, match="num_return_sequences is 3"):
        model.generate(ids, num_return_sequences=3)


def test_all_outputs_are_returned_on_request():
    model, ids = tiny_model(), random_ids(2, 5)
    out = model.generate(
        ids,
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
        repetition_penalty=2.0,
    )
    assert isinstance(out, GenerateOutput)
    assert out.sequences.shape == (2, 8)
    assert len(out.scores) == len(out.logits) == len(out.hidden_states) == len(out.attentions) == 3
    np.testing.assert_allclose(out.logits[0], model(ids).logits[:, -1], atol=1e-5)
    assert np.abs(np.array(out.scores[0] - out.logits[0])).max() > 0
    assert out.past_key_values.get_seq_length() == 7
    assert len(out.hidden_states[1]) == 3
    assert out.attentions[2][0].shape == (2, 4, 1, 7)
    assert mx.argmax(out.scores[1], axis=-1).tolist() == out.sequences[:, 6].tolist()


def test_a_cache_of_the_first_tokens_is_used():
    model, ids = tiny_model(), random_ids(2, 9)
    past = model(ids[:, :6], use_cache=True).past_key_values
    got = model.generate(ids, past_key_values=past, **FIXED)
    assert got.tolist() == model.generate(ids, **FIXED).tolist()
    assert past.get_seq_length() == 16
    with pytest.raises(InputError, match="16 tokens already"):
        model.generate(ids, past_key_values=past, **FIXED)


def test_embeddings_as_the_prompt_give_the_same_tokens():
    model, ids = tiny_model(), random_ids(2, 5)
    got = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **FIXED)
    assert got.tolist() == model.generate(ids, **FIXED)[:, 5:].tolist()


def test_chunked_prompts_give_the_same_tokens():
    model, ids = tiny_model(), random_ids(2, 9)
    assert model.generate(ids, prefill_chunk_size=4, **FIXED).tolist() == model.generate(ids, **FIXED).tolist()


def test_streamers_and_processors_are_called():
    class Streamer:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got.append(value)

        def end(self):
            self.ended = True

    model, ids, streamer = tiny_model(), random_ids(1, 4), Streamer()
    out = model.generate(ids, streamer=streamer, **FIXED)
    assert streamer.ended
    assert streamer.got[0].tolist() == ids.tolist()
    assert [token.item() for token in streamer.got[1:]] == out[0, 4:].tolist()
    favourite = mx.where(mx.arange(61) == 33, 1e9, 0.0)
    out = model.generate(ids, logits_processor=[lambda ids, scores: scores + favourite], **FIXED)
    assert out[0, 4:].tolist() == [33] * 8
    assert (
        33
        not in model.generate(
            ids, suppress_tokens=[33], logits_processor=[lambda ids, scores: scores + favourite / 1e10], **FIXED
        )[0, 4:].tolist()
    )


def test_stop_strings_end_rows():
    tokenizer, model = byte_tokenizer(), tiny_model(vocab_size=261)
    ids = mx.array([tokenizer.encode("some text")])
    free = model.generate(ids, eos_token_id=[], **FIXED)[0, 9:].tolist()
    stop = tokenizer.decode(free[1:3])
    got = model.generate(ids, stop_strings=stop, tokenizer=tokenizer, **FIXED)[0, 9:].tolist()
    assert stop in tokenizer.decode(got)
    assert stop not in tokenizer.decode(got[:-1])
    with pytest.raises(InputError, match="tokenizer="):
        model.generate(ids, stop_strings=stop, **FIXED)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_beams": 2}, InputError, "num_beams"),
        ({"penalty_alpha": 0.5}, InputError, "penalty_alpha"),
        ({"temperature": -1.0, "do_sample": True}, ConfigError, "temperature"),
        ({"top_k": 1.5}, ConfigError, "top_k"),
        ({"max_new_tokens": 0}, ConfigError, "max_new_tokens"),
        ({"frobnicate": 1}, InputError, "frobnicate"),
        ({"attention_mask": [[1, 1]]}, InputError, "attention_mask has shape"),
        ({"inputs_embeds": [[[0.0] * 32]] * 2}, InputError, "input_ids has 1 rows"),
        ({"position_ids": [[0, 1]]}, InputError, "position_ids has shape"),
        ({"max_new_tokenz": 3}, InputError, "Did you mean 'max_new_tokens'"),
        ({"verbose": True}, InputError, "verbose is not supported"),
        ({"early_stopping": True, "length_penalty": 1.2}, InputError, "beam"),
    ],
)
def test_invalid_arguments_are_reported(options, error, words):
    with pytest.raises(error, match=words):
        tiny_model().generate(random_ids(1, 4), **options)


@pytest.mark.parametrize("ids", [[], [[]], [1, 2], [[61]], [[-1]], [[0.5]], None])
def test_invalid_ids_are_refused(ids):
    with pytest.raises(InputError):
        tiny_model().generate(ids)


def test_the_generation_config_is_saved_with_the_checkpoint(tmp_path):
    model = tiny_model(eos_token_id=[7, 8], pad_token_id=3)
    assert model.generation_config == GenerationConfig(eos_token_id=[7, 8], pad_token_id=3)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[7, 8], my_own_field="kept"
    )
    model.save_pretrained(tmp_path)
    loaded = Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config == model.generation_config
    assert loaded.generation_config.my_own_field == "kept"
    (tmp_path / "generation_config.json").unlink()
    assert Qwen3ForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [7, 8]


def test_bert_decoders_generate_with_tuples_and_encoder_states():
    model = tiny_bert.model("QDQBertLMHeadModel", is_decoder=True, add_cross_attention=True)
    ids = mx.array([[5, 6, 7], [8, 9, 10]])
    states = mx.random.normal((2, 4, model.config.hidden_size), key=mx.random.key(0))
    model.disable_quantizers("")
    got = model.generate(ids, encoder_hidden_states=states, **FIXED)
    expected = ids
    for _ in range(8):
        logits = model(expected, encoder_hidden_states=states, use_cache=False).logits
        token = mx.argmax(logits[:, -1:], axis=-1)
        expected = mx.concatenate([expected, token.astype(mx.int32)], axis=1)
    assert got.tolist() == expected.tolist()

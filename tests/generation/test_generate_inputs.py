"""Inputs and additional outputs of `generate`: embeddings, positions, caches, scores, configuration files."""

import json
import logging

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import ConfigError, GenerationConfig, InputError, Qwen3ForCausalLM
from mlx_qwen3.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from tests.support import tiny

IDS = [[5, 9, 3, 7]]
FIXED = {"max_new_tokens": 5, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return tiny.model(seed=6)


def test_max_length_includes_the_embeddings_of_the_prompt(model):
    embeds = model.get_input_embeddings()(mx.array(IDS))
    new = model.generate(mx.array(IDS), **FIXED)[0, 4:].tolist()
    assert model.generate(inputs_embeds=embeds, max_length=9, eos_token_id=None)[0].tolist() == new
    both = model.generate(mx.array(IDS), inputs_embeds=embeds, **FIXED)
    assert both[0].tolist() == [*IDS[0], *new]
    with pytest.raises(InputError, match="max_length is 4"):
        model.generate(inputs_embeds=embeds, max_length=4)


def test_new_positions_continue_from_the_last_one(model):
    ids, positions = mx.array(IDS), mx.array([[0, 2, 4, 6]])
    expected = list(IDS[0])
    for step in range(5):
        own = mx.array([[0, 2, 4, 6, *range(7, 7 + step)]])
        expected.append(int(mx.argmax(model(mx.array([expected]), position_ids=own).logits[0, -1]).item()))
    assert model.generate(ids, position_ids=positions, **FIXED)[0].tolist() == expected


def test_input_ids_may_be_only_the_new_tokens_with_a_full_mask(model):
    whole = model.generate(mx.array(IDS), **FIXED)
    cache = model.make_cache()
    model(mx.array([IDS[0][:-1]]), past_key_values=cache)
    found = model.generate(mx.array([IDS[0][-1:]]), attention_mask=mx.ones((1, 4)), past_key_values=cache, **FIXED)
    assert found[0, 1:].tolist() == whole[0, 4:].tolist()
    padded = mx.array([[0, 0, 5, 9, 3, 7]])
    mask = mx.array([[0, 0, 1, 1, 1, 1]])
    cache = model.make_cache()
    positions = mx.array([[0, 0, 0, 1, 2]])
    model(padded[:, :5], attention_mask=mask[:, :5], position_ids=positions, past_key_values=cache)
    found = model.generate(padded[:, 5:], attention_mask=mask, past_key_values=cache, **FIXED)
    assert found[0, 1:].tolist() == whole[0, 4:].tolist()


def test_right_padded_prompts_cause_a_warning(model, caplog):
    with caplog.at_level(logging.WARNING):
        model.generate(mx.array([[5, 9, 0], [5, 9, 3]]), attention_mask=mx.array([[1, 1, 0], [1, 1, 1]]), **FIXED)
    assert "padded on the right" in caplog.text


def test_scores_are_those_that_tokens_were_sampled_from(model):
    options = {"do_sample": True, "temperature": 0.5, "top_k": 3, "return_dict_in_generate": True}
    output = model.generate(mx.array(IDS), output_scores=True, output_logits=True, seed=1, **options, **FIXED)
    for scores, logits in zip(output.scores, output.logits, strict=True):
        scores, logits = np.array(scores[0]), np.array(logits[0])
        best = np.argsort(-logits)[:3]
        assert set(np.flatnonzero(np.isfinite(scores))) == set(best)
        np.testing.assert_allclose(scores[best], logits[best] / 0.5, rtol=1e-5)
    same = model.generate(mx.array(IDS), seed=1, **{**options, "return_dict_in_generate": False}, **FIXED)
    assert output.sequences.tolist() == same.tolist()
    raw = model.compute_transition_scores(output.sequences, output.scores)
    logs = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    for step, token in enumerate(output.sequences[0, 4:].tolist()):
        scores = np.array(output.scores[step][0], dtype=np.float64)
        assert raw[0, step].item() == pytest.approx(scores[token])
        total = np.log(np.exp(scores[np.isfinite(scores)]).sum())
        assert logs[0, step].item() == pytest.approx(scores[token] - total, abs=1e-4)
    with pytest.raises(InputError, match="beam_indices is not supported"):
        model.compute_transition_scores(output.sequences, output.scores, beam_indices=[0])


def test_an_assistant_model_does_not_change_the_output(model):
    small = tiny.model(seed=2, num_hidden_layers=1)
    whole = model.generate(mx.array(IDS), **FIXED)
    assert model.generate(mx.array(IDS), assistant_model=small, **FIXED).tolist() == whole.tolist()
    with pytest.raises(InputError, match="not supported for several sequences"):
        model.generate(mx.array(IDS * 2), assistant_model=small, **FIXED)


def test_lists_of_processors_and_criteria_are_applied(model):
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return mx.where(mx.arange(scores.shape[1]) < 30, -float("inf"), scores)

    processors = LogitsProcessorList([Forbid(), lambda ids, scores: scores])
    stop = StoppingCriteriaList([lambda ids, scores, **options: ids[:, -1] > 0])
    found = model.generate(mx.array(IDS), logits_processor=processors, stopping_criteria=stop, **FIXED)
    assert found.shape == (1, 5)
    assert found[0, 4].item() >= 30


def test_no_allowed_token_and_nan_are_errors(model):
    with pytest.raises(InputError, match="no token may follow"):
        model.generate(mx.array(IDS), suppress_tokens=list(range(61)), **FIXED)
    broken = tiny.model(seed=6)
    broken.lm_head.weight = broken.lm_head.weight * float("nan")
    with pytest.raises(InputError, match="the model computed NaN"):
        broken.generate(mx.array(IDS), **FIXED)


def test_invalid_values_in_a_file_are_reported_when_they_are_used(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"

    def loaded(text):
        file.write_text(text, encoding="utf-8")
        return Qwen3ForCausalLM.from_pretrained(tmp_path)

    ids = mx.array(IDS)
    for values in ({"top_k": -1}, {"top_k": 20.0}, {"top_k": 0}, {"foo": {"a": 1}, "_from_model_config": True}):
        loaded(json.dumps({"do_sample": True, **values})).generate(ids, max_new_tokens=1)
    loaded('\ufeff{"eos_token_id": 7}').generate(ids, max_new_tokens=1)
    for name, value in (("temperature", -1), ("top_p", 1.5), ("min_p", "x")):
        model = loaded(json.dumps({name: value}))
        model.generate(ids, max_new_tokens=1)  # no effect on greedy decoding
        with pytest.raises(ConfigError, match=f"generation_config.json: {name} is"):
            model.generate(ids, do_sample=True, max_new_tokens=1)
        model.generate(ids, do_sample=True, max_new_tokens=1, **{name: None})
    with pytest.raises(InputError, match="num_beams is not supported"):
        loaded('{"num_beams": 4}').generate(ids, max_new_tokens=1)


def test_a_configuration_keeps_unknown_fields(tmp_path):
    config = GenerationConfig(sequence_bias={(1, 2): -1.0}, my_field=3)
    config.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert again.my_field == 3
    assert again.sequence_bias == [[[1, 2], -1.0]]
    tiny.model().generate(mx.array(IDS), generation_config=again, max_new_tokens=1)

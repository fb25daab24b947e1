"""QDQBert checkpoints with ranges, BERT checkpoints of every age, and files with missing or surplus weights."""

import json
import logging

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_qwen3
from mlx_qwen3 import CheckpointError, QuantizationError
from tests.support import tiny_bert


def arrays(folder) -> dict[str, mx.array]:
    found = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(found)  # the file is replaced afterwards
    return found


def rewrite(folder, weights, **config) -> None:
    """Replace a checkpoint's weights and config fields."""
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.fixture
def masked_lm(tmp_path):
    """Save a masked language model with the weight names of BertForPreTraining."""
    model = tiny_bert.model("QDQBertForMaskedLM")
    model.save_pretrained(tmp_path)
    weights = arrays(tmp_path)
    weights["bert.pooler.dense.weight"] = mx.random.normal((32, 32))
    weights["bert.pooler.dense.bias"] = mx.random.normal((32,))
    weights["cls.seq_relationship.weight"] = mx.random.normal((2, 32))
    weights["cls.seq_relationship.bias"] = mx.random.normal((2,))
    rewrite(tmp_path, weights, model_type="bert", architectures=["BertForPreTraining"])
    return tmp_path, model


def test_ranges_are_saved_and_loaded(tmp_path):
    model = tiny_bert.calibrated("QDQBertForTokenClassification", num_labels=3)
    model.disable_quantizers(r"layer\.1\.output\.")
    model.save_pretrained(tmp_path)
    on_disk = arrays(tmp_path)
    name = "bert.encoder.layer.0.attention.self.query._weight_quantizer._amax"
    assert on_disk[name].shape == (32, 1)
    assert on_disk["bert.encoder.layer.0.attention.self.matmul_q_input_quantizer._amax"].shape == ()
    again = mlx_qwen3.QDQBertForTokenClassification.from_pretrained(tmp_path)
    assert not again.training
    ids = tiny_bert.ids(seed=5)
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(model(ids).logits))
    off = [name for name, q in again.named_quantizers() if not q.enabled]
    assert off == [name for name, q in model.named_quantizers() if not q.enabled] != []


def test_descriptors_are_saved_and_loaded(tmp_path):
    model = tiny_bert.calibrated(quant_desc_input={"num_bits": 5}, quant_desc_weight={"axis": None})
    model.save_pretrained(tmp_path)
    again = mlx_qwen3.QDQBertModel.from_pretrained(tmp_path)
    ids = tiny_bert.ids()
    np.testing.assert_array_equal(np.array(again(ids).pooler_output), np.array(model(ids).pooler_output))
    wider = mlx_qwen3.QDQBertModel.from_pretrained(tmp_path, quant_desc_input={"num_bits": 8})
    assert {q.num_bits for _, q in wider.named_quantizers()} == {8}


def test_base_and_heads_load_each_other(masked_lm):
    folder, model = masked_lm
    ids = tiny_bert.ids()
    base = mlx_qwen3.QDQBertModel.from_pretrained(folder)
    want = model.bert(ids).last_hidden_state
    np.testing.assert_array_equal(np.array(base(ids).last_hidden_state), np.array(want))
    base.save_pretrained(folder / "base")
    assert "embeddings.word_embeddings.weight" in arrays(folder / "base")
    tagger = mlx_qwen3.QDQBertForQuestionAnswering.from_pretrained(folder / "base")
    np.testing.assert_array_equal(np.array(tagger.bert(ids).last_hidden_state), np.array(want))


@pytest.mark.parametrize(
    ("name", "fresh"),
    [
        ("QDQBertForSequenceClassification", "classifier.bias, classifier.weight"),
        ("QDQBertForTokenClassification", "classifier.bias, classifier.weight"),
        ("QDQBertForMultipleChoice", "classifier.bias, classifier.weight"),
        ("QDQBertForQuestionAnswering", "qa_outputs.bias, qa_outputs.weight"),
        ("QDQBertForNextSentencePrediction", ""),
        ("QDQBertForMaskedLM", ""),
        ("QDQBertModel", ""),
    ],
)
def test_every_class_loads_a_pretraining_file_and_warns_about_a_new_head(masked_lm, caplog, name, fresh):
    folder, _ = masked_lm
    with caplog.at_level(logging.WARNING):
        model = getattr(mlx_qwen3, name).from_pretrained(folder)
    assert (f"has no {fresh}: the head is initialized" in caplog.text) if fresh else not caplog.text
    assert all(mx.isfinite(a).all().item() for _, a in tree_flatten(model.parameters()))


def test_a_new_pooler_causes_a_warning(masked_lm, caplog):
    folder, _ = masked_lm
    rewrite(folder, {k: v for k, v in arrays(folder).items() if "pooler" not in k})
    with caplog.at_level(logging.WARNING):
        mlx_qwen3.QDQBertModel.from_pretrained(folder)
    assert "pooler.dense.bias, pooler.dense.weight" in caplog.text


def test_a_decoder_loaded_from_an_encoder_gets_new_cross_attention(masked_lm, caplog):
    folder, model = masked_lm
    with caplog.at_level(logging.WARNING):
        decoder = mlx_qwen3.QDQBertLMHeadModel.from_pretrained(folder, is_decoder=True, add_cross_attention=True)
    assert "crossattention" in caplog.text
    for part in ("attention", "intermediate", "output"):
        want = dict(tree_flatten(model.bert.encoder.layer[1][part].parameters()))
        for name, array in tree_flatten(decoder.bert.encoder.layer[1][part].parameters()):
            np.testing.assert_array_equal(np.array(array), np.array(want[name]))


def test_weight_names_of_the_first_releases_are_read(masked_lm):
    folder, model = masked_lm
    old = {}
    for name, array in arrays(folder).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[name] = array
    old["bert.embeddings.position_ids"] = mx.arange(32)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    rewrite(folder, old)
    again = mlx_qwen3.QDQBertForMaskedLM.from_pretrained(folder)
    ids = tiny_bert.ids()
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(model(ids).logits))


def test_the_embedding_is_read_from_a_file_with_only_the_decoder(masked_lm):
    folder, model = masked_lm
    weights = arrays(folder)
    weights["cls.predictions.decoder.weight"] = weights.pop("bert.embeddings.word_embeddings.weight")
    rewrite(folder, weights)
    again = mlx_qwen3.QDQBertForMaskedLM.from_pretrained(folder)
    ids = tiny_bert.ids()
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(model(ids).logits))


def test_a_separate_decoder_is_read_only_without_tying(masked_lm, caplog):
    folder, _ = masked_lm
    weights = arrays(folder)
    weights["cls.predictions.decoder.weight"] = mx.random.normal((61, 32))
    rewrite(folder, weights)
    ids = tiny_bert.ids()
    with caplog.at_level(logging.WARNING):
        tied = mlx_qwen3.QDQBertForMaskedLM.from_pretrained(folder)
    assert "tie_word_embeddings=False" in caplog.text
    untied = mlx_qwen3.QDQBertForMaskedLM.from_pretrained(folder, tie_word_embeddings=False)
    assert "decoder" not in tied.cls.predictions
    np.testing.assert_array_equal(
        np.array(untied.cls.predictions.decoder.weight), np.array(weights["cls.predictions.decoder.weight"])
    )
    assert not np.array_equal(np.array(tied(ids).logits), np.array(untied(ids).logits))
    untied.save_pretrained(folder / "untied")
    again = mlx_qwen3.QDQBertForMaskedLM.from_pretrained(folder / "untied")
    np.testing.assert_array_equal(np.array(again(ids).logits), np.array(untied(ids).logits))


def test_a_changed_config_can_be_passed_to_from_pretrained(masked_lm):
    folder, _ = masked_lm
    config = mlx_qwen3.QDQBertConfig.from_pretrained(folder)
    config.is_decoder = True
    model = mlx_qwen3.QDQBertLMHeadModel.from_pretrained(folder, config=config)
    output = model(tiny_bert.ids())
    assert output.logits.shape == (3, 7, 61)
    assert len(output.past_key_values) == 2


# invalid files


def damaged(folder, name: str, value) -> None:
    weights = arrays(folder)
    if value is None:
        del weights[name]
    else:
        weights[name] = mx.array(value)
    rewrite(folder, weights)


@pytest.fixture
def with_ranges(tmp_path):
    tiny_bert.calibrated().save_pretrained(tmp_path)
    return tmp_path


INPUT = "encoder.layer.1.intermediate.dense._input_quantizer"
WEIGHT = "encoder.layer.1.intermediate.dense._weight_quantizer"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (INPUT, -1.0, "negative"),
        (INPUT, float("nan"), "NaN"),
        (INPUT, [1.0, 2.0], r"shape \(2,\), expected \(\)"),
        (WEIGHT, [[1.0]] * 63, r"shape \(63, 1\), expected \(64, 1\)"),
        (WEIGHT, [[1.0] * 64], r"shape \(1, 64\), expected \(64, 1\)"),
        (WEIGHT, 1.0, r"shape \(\), expected \(64, 1\)"),
    ],
)
def test_invalid_ranges_are_reported_by_name(with_ranges, name, value, text):
    damaged(with_ranges, f"{name}._amax", value)
    with pytest.raises(QuantizationError, match=name.replace(".", r"\.") + ".*" + text):
        mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)


def test_older_shapes_of_a_range_are_read(with_ranges):
    want = np.array(mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)(tiny_bert.ids()).pooler_output)
    weights = arrays(with_ranges)
    damaged(with_ranges, f"{INPUT}._amax", weights[f"{INPUT}._amax"].reshape(1))
    damaged(with_ranges, f"{WEIGHT}._amax", weights[f"{WEIGHT}._amax"].reshape(-1))
    got = np.array(mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)(tiny_bert.ids()).pooler_output)
    np.testing.assert_array_equal(got, want)


def test_a_range_of_zero_gives_zeros(with_ranges):
    damaged(with_ranges, f"{INPUT}._amax", 0.0)
    model = mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)
    quantizer = dict(model.named_quantizers())[INPUT]
    assert mx.abs(quantizer(mx.ones((3,)))).max().item() == 0


def test_a_missing_range_causes_a_warning_and_is_computed_per_input(with_ranges, caplog):
    damaged(with_ranges, f"{INPUT}._amax", None)
    with caplog.at_level(logging.WARNING):
        model = mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)
    assert INPUT in caplog.text
    assert dict(model.named_quantizers())[INPUT].amax is None
    with pytest.raises(QuantizationError, match=INPUT):
        model.pack()


def test_a_range_of_a_missing_layer_is_refused(with_ranges):
    damaged(with_ranges, "encoder.layer.7.output.dense._input_quantizer._amax", 1.0)
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)


def test_a_missing_weight_is_refused(with_ranges):
    damaged(with_ranges, "encoder.layer.1.output.dense.weight", None)
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        mlx_qwen3.QDQBertModel.from_pretrained(with_ranges)

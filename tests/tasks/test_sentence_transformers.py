"""Folders of sentence-transformers: pooling, further modules, prompts and limits are applied or refused."""

import json
import logging

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import CheckpointError, Embedding, FillMask, InputError, QDQBertForMaskedLM, UnsupportedModelError, load
from mlx_qwen3.tasks.embedding import quantize
from mlx_qwen3.tasks.sentence_transformers import pool, read_sentence_settings
from tests.support.tiny_checkpoints import write_bert, write_qwen3

TEXTS = ["hello world", "the quick brown fox was quick", "it"]
LIBRARY = "sentence_transformers.models."


def sentence_folder(root, pooling, steps=(), encoder="", write=write_bert, name="QDQBertModel", **settings):
    """Write a sentence-transformers folder; `steps` are (kind, config, weights)."""
    write(root / encoder, name)
    modules = [("Transformer", encoder), ("Pooling", "1_Pooling")]
    (root / "1_Pooling").mkdir(parents=True)
    (root / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    for number, (kind, config, weights) in enumerate(steps, 2):
        path = root / f"{number}_{kind}"
        path.mkdir()
        modules.append((kind, path.name))
        if config:
            (path / "config.json").write_text(json.dumps(config))
        if weights:
            mx.save_safetensors(str(path / "model.safetensors"), weights)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": LIBRARY + kind} for i, (kind, path) in enumerate(modules)
    ]
    (root / "modules.json").write_text(json.dumps(listed))
    (root / encoder / "sentence_bert_config.json").write_text(json.dumps(settings.pop("limits", {})))
    (root / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return root


def dense(rows, activation="Tanh", seed=3):
    """Return the step of a Dense module with `rows` outputs."""
    weights = {
        "linear.weight": mx.random.normal((rows, 32), key=mx.random.key(seed)),
        "linear.bias": mx.random.normal((rows,), key=mx.random.key(seed + 1)),
    }
    config = {
        "in_features": 32,
        "out_features": rows,
        "bias": True,
        "activation_function": f"torch.nn.modules.activation.{activation}",
    }
    return "Dense", config, weights


LAYOUTS = {
    "mean and normalize": {"pooling": {"pooling_mode_mean_tokens": True}, "steps": [("Normalize", None, None)]},
    "cls with max": {"pooling": {"pooling_mode": ["cls", "max"]}},
    "dense": {"pooling": {"pooling_mode_mean_tokens": True}, "steps": [dense(12), ("Normalize", None, None)]},
    "encoder in a folder": {
        "pooling": {"pooling_mode_weightedmean_tokens": True},
        "encoder": "0_Transformer",
        "limits": {"max_seq_length": 6, "do_lower_case": False},
    },
    "prompts and a cut": {
        "pooling": {"pooling_mode_mean_sqrt_len_tokens": True, "include_prompt": False},
        "prompts": {"query": "the fox ", "document": ""},
        "default_prompt_name": "query",
        "truncate_dim": 20,
        "similarity_fn_name": "euclidean",
    },
    "decoder": {
        "pooling": {"pooling_mode_lasttoken": True},
        "steps": [("Normalize", None, None)],
        "write": write_qwen3,
        "name": "Qwen3Model",
    },
}


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_equal_those_of_sentence_transformers(tmp_path, layout):
    from sentence_transformers import SentenceTransformer

    folder = sentence_folder(tmp_path, **LAYOUTS[layout])
    config = folder / LAYOUTS[layout].get("encoder", "") / "config.json"
    values = json.loads(config.read_text())
    if "QDQ" in values["architectures"][0]:
        config.write_text(json.dumps({**values, "model_type": "bert", "architectures": ["BertModel"]}))
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), Embedding(folder)
    for method in ("encode", "encode_query", "encode_document"):
        a, b = getattr(theirs, method)(TEXTS), getattr(ours, method)(TEXTS)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosines.min() >= 0.99999
        np.testing.assert_allclose(a, b, atol=2e-4)
    similar = theirs.similarity(a, a).numpy()
    np.testing.assert_allclose(
        ours.similarity(a, a), similar, atol=2e-3
    )  # sentence-transformers' distance of a vector to itself is not 0
    for precision in ("int8", "uint8", "binary", "ubinary"):
        kwargs = {"precision": precision, "prompt": "it "}
        np.testing.assert_array_equal(quantize(a, precision), _theirs(a, precision))
        assert ours.encode(TEXTS, **kwargs).dtype == theirs.encode(TEXTS, **kwargs).dtype


def _theirs(vectors, precision):
    from sentence_transformers.util import quantize_embeddings

    return quantize_embeddings(vectors, precision=precision)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling_follows_its_definition(mode):
    states = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    kept, places = states[2:], np.array([3, 4, 5])
    expected = {
        "cls": kept[0],
        "max": kept.max(0),
        "mean": kept.sum(0) / 3,
        "mean_sqrt_len_tokens": kept.sum(0) / np.sqrt(3),
        "weightedmean": sum(w * row for w, row in zip(places, kept, strict=True)) / places.sum(),
        "lasttoken": kept[-1],
    }[mode]
    np.testing.assert_allclose(pool(states, mode, skip=2), expected, rtol=1e-5)


def test_the_settings_of_the_folder_apply_and_an_option_overrides_them(tmp_path):
    folder = sentence_folder(tmp_path, {"pooling_mode_mean_tokens": True}, [dense(12), ("Normalize", None, None)])
    embed = Embedding(folder)
    assert embed(TEXTS).shape == (3, 12)
    np.testing.assert_allclose(np.linalg.norm(embed(TEXTS), axis=1), 1, atol=1e-5)
    assert abs(np.linalg.norm(embed("it", normalize=False)) - 1) > 0.01
    assert embed("it", pooling="cls").shape == (12,)  # limited to the width of the folder's results
    with pytest.raises(InputError, match="dimensions is 13, the model has 12"):
        embed("it", dimensions=13)
    with pytest.raises(InputError, match=r"prompt_name is 'query', the model has no prompts"):
        embed("it", prompt_name="query")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"pooling": {"pooling_mode": "attention"}}, r"pooling \['attention'\] is not supported"),
        ({"pooling": {}, "steps": [("CNN", {"a": 1}, None)]}, "'CNN' of modules.json is not supported"),
        ({"pooling": {}, "steps": [("Dense", dense(4, "Mish")[1], dense(4)[2])]}, "activation_function 'Mish'"),
        ({"pooling": {}, "steps": [("Dense", dense(4)[1], None)]}, "there is no model.safetensors"),
        ({"pooling": {}, "steps": [("Dense", dense(5)[1], dense(4)[2])]}, "do not fit config.json"),
        ({"pooling": {}, "similarity_fn_name": "maxsim"}, "similarity_fn_name 'maxsim'"),
        ({"pooling": {}, "default_prompt_name": "x"}, "default_prompt_name 'x'"),
        ({"pooling": {}, "truncate_dim": "8"}, "truncate_dim is '8'"),
        ({"pooling": {}, "limits": {"max_seq_length": -1}}, "max_seq_length is -1"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, layout, message):
    with pytest.raises((UnsupportedModelError, CheckpointError), match=message):
        read_sentence_settings(sentence_folder(tmp_path, **layout))


def test_a_path_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "path": "../x", "type": LIBRARY + "Transformer"}]))
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        read_sentence_settings(tmp_path)


def test_int8_requires_several_vectors(tmp_path):
    embed = Embedding(sentence_folder(tmp_path, {}))
    assert embed(TEXTS, precision="int8").dtype == np.int8
    assert embed("it", precision="binary").shape == (4,)
    with pytest.raises(InputError, match="takes its ranges from"):
        embed("it", precision="int8")
    with pytest.raises(InputError, match="a single one has none"):
        embed(["it"], precision="uint8")


def test_plain_bert_runs_without_quantizers_in_tasks_only(tmp_path, caplog):
    write_bert(tmp_path, "QDQBertForMaskedLM")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "bert", "architectures": ["BertForMaskedLM"], "disabled_quantizers": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        task = FillMask(tmp_path)
    assert "plain BERT without calibrated ranges" in caplog.text
    assert not any(quantizer.enabled for _, quantizer in task.model.named_quantizers())
    assert all(quantizer.enabled for _, quantizer in QDQBertForMaskedLM.from_pretrained(tmp_path).named_quantizers())
    alone, together = task("the [MASK] fox"), task(["the [MASK] fox", "hello world hello world [MASK]"])[0]
    assert [one["score"] for one in alone] == pytest.approx([one["score"] for one in together], abs=1e-6)
    assert not any(quantizer.enabled for _, quantizer in load(tmp_path)[0].named_quantizers())


@pytest.mark.parametrize("layout", ["dense", "cls with max", "decoder"])
def test_a_converted_folder_gives_the_same_vectors(tmp_path, layout):
    folder = sentence_folder(tmp_path / "m", **LAYOUTS[layout])
    mlx_qwen3.convert(folder, tmp_path / "out", report=False)
    np.testing.assert_allclose(Embedding(tmp_path / "out")(TEXTS), Embedding(folder)(TEXTS), atol=1e-6)
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_wrong_width_in_the_settings_does_not_truncate_vectors(tmp_path):
    right = sentence_folder(tmp_path / "a", {"pooling_mode": ["cls", "max"]})
    wrong = sentence_folder(tmp_path / "b", {"pooling_mode": ["cls", "max"], "word_embedding_dimension": 8})
    assert Embedding(wrong)("it").shape == (64,)
    np.testing.assert_array_equal(Embedding(wrong)("it"), Embedding(right)("it"))


def test_modules_that_do_not_fit_the_model_are_refused(tmp_path):
    kind, config, weights = dense(4)
    narrow = {"linear.weight": weights["linear.weight"][:, :16], "linear.bias": weights["linear.bias"]}
    folder = sentence_folder(tmp_path, {}, [(kind, {**config, "in_features": 16}, narrow)])
    with pytest.raises(CheckpointError, match="does not take vectors of 32 numbers"):
        Embedding(folder)

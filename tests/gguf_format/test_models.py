"""Models in GGUF files are loaded, converted, described and used in tasks like their originals."""

import hashlib
import json
import logging
import math

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen3
from mlx_qwen3 import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, load
from mlx_qwen3.checkpoint import open_checkpoint, resolve_checkpoint
from mlx_qwen3.cli import main
from mlx_qwen3.conversion import convert, describe
from mlx_qwen3.errors import CheckpointError, HubError, InputError
from mlx_qwen3.tasks import Embedding, Reranker
from tests.support.gguf_files import checkpoint_arrays, encoded, random_rows, tiny_gguf, write_model_gguf
from tests.support.tiny_checkpoints import write_qwen3

IDS = mx.array([[5, 9, 1, 300, 2, 77, 31, 8]])


def logits(model):
    return np.array(model(IDS).logits)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return an F32 file, with the original next to it."""
    return tiny_gguf(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("tied", [True, False])
def test_outputs_match_the_original(tmp_path, tied):
    path = tiny_gguf(tmp_path, config={"tie_word_embeddings": tied})
    model, tokenizer = load(str(path))
    original, own = load(tmp_path / "original")
    assert model.config.tie_word_embeddings is tied
    assert np.array_equal(logits(model), logits(original))
    assert tokenizer.encode("Hello world") == own.encode("Hello world")
    assert np.array_equal(logits(Qwen3ForCausalLM.from_pretrained(path)), logits(original))


def test_the_configuration_matches_the_original(tiny):
    ours = Qwen3Config.from_pretrained(tiny).to_dict()
    theirs = Qwen3Config.from_pretrained(tiny.parent / "original").to_dict()
    not_stored = {"eos_token_id", "initializer_range"}
    assert {name: ours[name] for name in theirs if name not in not_stored} == {
        name: value for name, value in theirs.items() if name not in not_stored
    }


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_a_packed_model_matches_its_decoded_weights(tmp_path, kind):
    import gguf

    path = tiny_gguf(tmp_path, kind)
    model, _ = load(path)
    original, _ = load(tmp_path / "original")
    decoded = []
    for name, array in checkpoint_arrays(tmp_path / "original").items():
        if array.ndim == 2:
            number = gguf.GGMLQuantizationType[kind]
            array = gguf.quants.dequantize(encoded(array, kind), number)
        decoded.append((name, array))
    names = {ours: name for name in original_names(original) if (ours := to_gguf(name))}
    original.load_weights([(names[name], mx.array(array)) for name, array in decoded], strict=False)
    assert np.abs(logits(model) - logits(original)).max() < 2e-5


def original_names(model):
    from mlx.utils import tree_flatten

    return [name for name, _ in tree_flatten(model.parameters())]


def to_gguf(name):
    from mlx_qwen3.checkpoint.gguf_names import gguf_name

    return gguf_name(name)


def test_fused_projections_are_split(tmp_path):
    original = write_qwen3(tmp_path / "original", "Qwen3ForCausalLM")
    arrays = checkpoint_arrays(original)
    changes = {}
    for layer in range(2):
        parts = [f"blk.{layer}.attn_{letter}.weight" for letter in "qkv"]
        changes[f"blk.{layer}.attn_qkv.weight"] = np.concatenate([arrays[part] for part in parts])
        changes |= dict.fromkeys(parts)
    for kind in ("F32", "Q8_0"):
        fused = write_model_gguf(tmp_path / f"fused-{kind}.gguf", original, kind, tensors=changes)
        apart = write_model_gguf(tmp_path / f"apart-{kind}.gguf", original, kind)
        assert np.array_equal(logits(load(fused)[0]), logits(load(apart)[0]))


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_other_classes_load_the_same_file(tmp_path, kind):
    path = tiny_gguf(tmp_path, kind, config={"tie_word_embeddings": False})
    causal, _ = load(path)
    bare = mlx_qwen3.Qwen3Model.from_pretrained(path)
    assert np.array_equal(np.array(bare(IDS)[0]), np.array(causal.model(IDS)[0]))
    labels = mlx_qwen3.Qwen3ForSequenceClassification.from_pretrained(path, num_labels=3)
    assert labels(IDS).logits.shape == (1, 3)
    causal.save_pretrained(tmp_path / "saved")
    assert np.array_equal(logits(Qwen3ForCausalLM.from_pretrained(tmp_path / "saved")), logits(causal))


def test_rope_scaling_context_and_window_are_read(tmp_path):
    path = tiny_gguf(
        tmp_path,
        fields={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.attn_factor": 0.5,
            "attention.sliding_window": 64,
            "attention.sliding_window_pattern": [True, False],
        },
    )
    config = Qwen3Config.from_pretrained(path)
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16.0}
    assert expected.items() <= config.rope_scaling.items()
    assert config.rope_scaling["attention_factor"] == pytest.approx(0.5 * (0.1 * math.log(4) + 1))
    assert (config.sliding_window, config.layer_types) == (64, ["sliding_attention", "full_attention"])
    assert load(path)[0](IDS).logits.shape == (1, 8, 416)


def test_generation_defaults_are_read(tmp_path):
    sampling = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": 0.95}
    model, tokenizer = load(tiny_gguf(tmp_path, fields=sampling))
    config = model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.6, 20, 0.95)
    assert config.eos_token_ids == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    assert config.pad_token_id == tokenizer.pad_token_id


def split(path, folder, count=3):
    """Split a file into parts as llama-gguf-split does."""
    import gguf

    reader = gguf.GGUFReader(path)
    folder.mkdir()
    step = -(-len(reader.tensors) // count)
    for number in range(count):
        part = folder / f"tiny-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(part, "qwen3")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for field in reader.fields.values() if number == 0 else ():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            types = [gguf.GGUFValueType(kind) for kind in field.types]
            sub_type = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), types[0], sub_type=sub_type)
        for tensor in reader.tensors[number * step : (number + 1) * step]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return sorted(folder.glob("*.gguf"))


def test_any_part_of_a_split_file_loads_the_whole_model(tiny, tmp_path):
    first, second, third = split(tiny, tmp_path / "parts")
    expected = logits(load(tiny)[0])
    for named in (first, second, third, tmp_path / "parts"):
        assert np.array_equal(logits(load(named)[0]), expected)
    third.unlink()
    with pytest.raises(CheckpointError, match="tiny-00003-of-00003"):
        load(first)
    first.rename(tmp_path / "parts" / "other.gguf")
    with pytest.raises(CheckpointError, match="NAME-00001-of-00003"):
        load(tmp_path / "parts" / "other.gguf")


def test_a_part_of_another_model_is_refused(tiny, tmp_path):
    first, second, third = split(tiny, tmp_path / "parts")
    third.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="is not part 3 of 3"):
        load(first)


def test_a_file_in_a_folder_is_found_by_name(tiny, tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    for name in ("Tiny-Q8_0.gguf", "Tiny-UD-Q8_0.gguf", "mmproj-F16.gguf"):
        (folder / name).write_bytes(tiny.read_bytes())
    assert resolve_checkpoint(folder, gguf_file="Tiny-UD-Q8_0.gguf").name == "Tiny-UD-Q8_0.gguf"
    assert resolve_checkpoint(folder, gguf_file="Q8_0").name == "Tiny-Q8_0.gguf"
    assert resolve_checkpoint(folder, gguf_file="q8_0").name == "Tiny-Q8_0.gguf"
    with pytest.raises(CheckpointError, match=r"no GGUF file 'Q4_0'; it has Tiny-Q8_0.gguf, Tiny-UD-Q8_0.gguf"):
        resolve_checkpoint(folder, gguf_file="Q4_0")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF models\. Name one"):
        resolve_checkpoint(folder)
    with pytest.raises(InputError, match="is a GGUF file already"):
        load(tiny, gguf_file="x")
    assert load(folder, gguf_file="Q8_0")[0].config.vocab_size == 416
    assert AutoTokenizer.from_pretrained(folder, gguf_file="Q8_0").eos_token == "<|im_end|>"
    assert describe(folder, gguf_file="Q8_0").format == "GGUF F32"


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny):
    """Replace the Hub by one repository with two quantizations that is not in the cache."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    files = ["README.md", "Tiny-Q4_K_M.gguf", "Q8_0/Tiny-Q8_0-00001-of-00001.gguf"]
    folder = tmp_path / "snapshot"
    fetched = []

    def snapshot_download(repo, revision=None, allow_patterns=(), local_files_only=False, **options):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        fetched.extend(allow_patterns)
        folder.mkdir(exist_ok=True)
        for name in files:
            if name in allow_patterns:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(tiny.read_bytes())
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision=None: files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return fetched


def test_a_quantization_in_a_hub_repository_is_downloaded(hub):
    assert load("org/repo:Q4_K_M")[0].config.vocab_size == 416
    assert set(hub) == {"Tiny-Q4_K_M.gguf"}
    assert resolve_checkpoint("org/repo", gguf_file="Q8_0").name == "Tiny-Q8_0-00001-of-00001.gguf"
    assert resolve_checkpoint("org/repo:Tiny-Q4_K_M.gguf").name == "Tiny-Q4_K_M.gguf"
    with pytest.raises(CheckpointError, match=r"has no GGUF file 'Q2_K'; it has Tiny-Q4_K_M\.gguf"):
        load("org/repo:Q2_K")
    with pytest.raises(CheckpointError, match=r"holds GGUF files\. Name one, as org/repo:Tiny-Q4_K_M\.gguf"):
        load("org/repo")


def test_an_unreachable_repository_is_reported():
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        load("org/repo:Q4_K_M")


@pytest.fixture
def ollama(monkeypatch, tmp_path, tiny):
    """Create a folder of ollama with the model qwen3:4b."""
    root = tmp_path / "models"
    raw = tiny.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(raw)
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "4b"
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 1},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(raw)},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}), encoding="utf-8")
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    return root


def test_a_model_of_ollama_is_found(ollama, tiny):
    model, tokenizer = load("ollama:qwen3:4b")
    assert np.array_equal(logits(model), logits(load(tiny)[0]))
    assert tokenizer.eos_token == "<|im_end|>"
    assert resolve_checkpoint("ollama:registry.ollama.ai/library/qwen3:4b").parent == ollama / "blobs"
    with pytest.raises(CheckpointError, match=r"no model 'qwen3' in .*, it has qwen3:4b\. Run `ollama pull qwen3`"):
        load("ollama:qwen3")


@pytest.mark.parametrize("name", ["../../x:y", "a/b/c/d", "qwen3:../4b", "", "a b"])
def test_invalid_names_for_ollama_are_refused(ollama, name):
    with pytest.raises(CheckpointError, match="is not the name of an ollama model"):
        load(f"ollama:{name}")


@pytest.mark.parametrize("content", ["", "[]", '{"layers": 3}', '{"layers": [{"mediaType": "x"}]}', "[" * 5000])
def test_manifests_without_a_model_are_refused(ollama, content):
    (ollama / "manifests/registry.ollama.ai/library/qwen3/4b").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"[Pp]ull the model again"):
        load("ollama:qwen3:4b")


def test_a_digest_outside_of_the_folder_is_refused(ollama):
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}
    manifest = ollama / "manifests/registry.ollama.ai/library/qwen3/4b"
    manifest.write_text(json.dumps({"layers": [layer]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="names no model file"):
        load("ollama:qwen3:4b")


def test_a_missing_blob_of_ollama_is_reported(ollama):
    next((ollama / "blobs").iterdir()).unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file sha256-\w+ .*ollama pull"):
        load("ollama:qwen3:4b")


# conversion


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_a_converted_file_has_the_same_outputs(tmp_path, kind):
    path = tiny_gguf(tmp_path, kind)
    done = convert(path, tmp_path / "out")
    assert np.array_equal(logits(load(tmp_path / "out")[0]), logits(load(path)[0]))
    assert load(tmp_path / "out")[0].generation_config == load(path)[0].generation_config
    own = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(path)
    assert own.encode("Hello <think>x") == ours.encode("Hello <think>x")
    assert (own.chat_template, own.eos_token, own.pad_token) == (ours.chat_template, ours.eos_token, ours.pad_token)
    assert done.largest_error in (None, 0.0)
    assert done.bytes_in == sum(open_checkpoint(path).nbytes(name) for name in open_checkpoint(path).names)


def test_types_without_a_layout_are_reported_with_their_error(tmp_path, capsys, caplog):
    config = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    blocks = {"blk.0.ffn_up.weight": "Q6_K", "blk.0.ffn_gate.weight": "Q3_K", "blk.0.ffn_down.weight": "Q4_K"}
    original = write_qwen3(tmp_path / "original", "Qwen3ForCausalLM", **config)
    raw = {name: random_rows(kind, 256, 256) for name, kind in blocks.items()}
    write_model_gguf(tmp_path / "k.gguf", original, tensors=raw, kinds=blocks)
    with caplog.at_level(logging.WARNING, "mlx_qwen3"):
        model, _ = load(tmp_path / "k.gguf")
    assert any("1 matrices (Q6_K) are rounded to 8 bits" in message for message in caplog.messages)
    done = convert(tmp_path / "k.gguf", tmp_path / "out")
    assert {path: found.kind for path, found in done.repacked.items()} == {
        "model.layers.0.mlp.up_proj": "Q6_K",
        "model.layers.0.mlp.gate_proj": "Q3_K",
    }
    assert done.repacked["model.layers.0.mlp.up_proj"].error > 0
    assert done.repacked["model.layers.0.mlp.gate_proj"].error == 0
    assert np.array_equal(logits(load(tmp_path / "out")[0]), logits(model))
    assert main(["convert", "--hf-path", str(tmp_path / "k.gguf"), "--mlx-path", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert "in 8 bits" in out
    assert "model.layers.0.mlp.up_proj (Q6_K)" in out
    assert "`model.layers.0.mlp.up_proj (Q6_K)`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_plain_file_can_be_quantized_and_a_packed_one_unpacked(tmp_path):
    path = tiny_gguf(tmp_path)
    convert(path, tmp_path / "q", quantize=True, q_group_size=32, report=False)
    assert load(tmp_path / "q")[0].config.quantization["bits"] == 4
    packed = write_model_gguf(tmp_path / "p.gguf", tmp_path / "original", "Q8_0")
    convert(packed, tmp_path / "d", dequantize=True, dtype="float32")
    assert np.abs(logits(load(tmp_path / "d")[0]) - logits(load(packed)[0])).max() < 2e-5


def test_info_and_generate_on_the_command_line(tiny, capsys):
    assert main(["info", str(tiny)]) == 0
    out = capsys.readouterr().out
    original = Qwen3ForCausalLM.from_pretrained(tiny.parent / "original")
    assert f"{original.num_parameters():,}" in out
    assert "GGUF F32" in out
    assert main(["generate", "--model", str(tiny), "--max-tokens", "2", "--prompt", "Hi"]) == 0


# tasks


def test_embeddings_use_the_pooling_of_the_file(tmp_path):
    last = tiny_gguf(tmp_path, fields={"pooling_type": 3})
    mean = write_model_gguf(tmp_path / "mean.gguf", tmp_path / "original", fields={"pooling_type": 1})
    text = "Hello world, this is a text"
    original = Embedding(tmp_path / "original")
    assert np.array_equal(Embedding(last)(text), original(text))
    assert np.array_equal(Embedding(mean)(text), original(text, pooling="mean"))
    assert np.array_equal(Embedding(mean)(text, pooling="last"), original(text))
    first = write_model_gguf(tmp_path / "cls.gguf", tmp_path / "original", fields={"pooling_type": 2})
    assert np.array_equal(Embedding(first)(text), original(text, pooling="cls"))


def test_an_end_token_is_appended_if_the_file_requests_it(tmp_path):
    path = tiny_gguf(tmp_path, tokenizer={"add_eos": True})
    tokenizer = AutoTokenizer.from_pretrained(path)
    own = AutoTokenizer.from_pretrained(tmp_path / "original")
    assert tokenizer.encode("Hello") == [*own.encode("Hello"), own.eos_token_id]
    assert tokenizer.encode("Hello", add_special_tokens=False) == own.encode("Hello")


@pytest.mark.parametrize("tied", [True, False])
def test_a_reranker_scores_like_its_original(tmp_path, tied):
    """The converter of llama.cpp keeps the rows of "yes" and "no", and drops the head of an untied model."""
    original = write_qwen3(tmp_path / "original", "Qwen3ForCausalLM", tie_word_embeddings=tied)
    add_words(original)
    tokenizer = AutoTokenizer.from_pretrained(original)
    arrays = checkpoint_arrays(original)
    head = arrays["token_embd.weight" if tied else "output.weight"]
    rows = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    path = write_model_gguf(
        tmp_path / "rank.gguf",
        original,
        tensors={"cls.output.weight": head[rows], "output.weight": None},
        fields={"pooling_type": 4, "classifier.output_labels": ["yes", "no"]},
    )
    documents = ["the quick brown fox", "Hello world", "it was small"]
    ours = Reranker(path)("What fox?", documents)
    theirs = Reranker(original)("What fox?", documents)
    assert [entry["index"] for entry in ours] == [entry["index"] for entry in theirs]
    assert np.allclose([entry["score"] for entry in ours], [entry["score"] for entry in theirs], atol=1e-6)


def add_words(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(folder)


def test_a_classifier_keeps_its_labels(tmp_path):
    head = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    path = tiny_gguf(
        tmp_path, tensors={"cls.output.weight": head}, fields={"classifier.output_labels": ["red", "green", "blue"]}
    )
    model, _ = load(path)
    assert isinstance(model, mlx_qwen3.Qwen3ForSequenceClassification)
    assert model.config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert np.array_equal(np.array(model.score.weight), head)


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "-m", "2", "hello"],
        ["embed", "hello"],
        ["classify", "--labels", "yes,no", "hello"],
        ["bench", "--no-mlx-lm", "--prompt-tokens", "8", "--max-tokens", "2", "--rounds", "1"],
        ["info"],
    ],
)
def test_commands_accept_the_name_of_a_file_in_a_folder(tiny, tmp_path, capsys, words):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("tiny-Q8_0.gguf", "tiny-F32.gguf"):
        (folder / name).write_bytes(tiny.read_bytes())
    model = [str(folder)] if words[0] == "info" else ["--model", str(folder)]
    assert main([words[0], *model, "--gguf-file", "Q8_0", *words[1:]]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main([words[0], *model, "--gguf-file", "Q4_K_M", *words[1:]]) == 2
    assert "Q4_K_M" in capsys.readouterr().err

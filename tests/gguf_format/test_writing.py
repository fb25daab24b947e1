"""GGUF files that this package writes are readable by the `gguf` package, exact and complete."""

import json
import os

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import AutoTokenizer, Qwen3Config, load
from mlx_qwen3.bundled import bundled_model_path
from mlx_qwen3.chat import ChatSession
from mlx_qwen3.chat.modes import Sampling
from mlx_qwen3.checkpoint.gguf_names import gguf_name
from mlx_qwen3.cli import main
from mlx_qwen3.conversion import convert_to_gguf
from mlx_qwen3.conversion.source import open_source
from mlx_qwen3.errors import (
    CheckpointError,
    InputError,
    MlxQwen3Error,
    QuantizationError,
    TokenizerError,
    UnsupportedModelError,
)
from tests.support.gguf_files import tiny_gguf
from tests.support.tiny_checkpoints import write_bert, write_qwen3

KINDS = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def dense_weights(folder):
    """Return the decoded float32 weights of a checkpoint by GGUF name."""
    source = open_source(folder)
    return {
        gguf_name(w.name): np.array(
            (w.rows(0, w.shape[0]) if len(w.shape) > 1 else w.checkpoint.read(w.name)).astype(mx.float32)
        )
        for w in source.weights
    }


def check_tensors(path, folder, kind):
    """Check that every tensor is the decoded weight in its type, by the encoder of the `gguf` package."""
    weights, reader = dense_weights(folder), gguf.GGUFReader(path)
    assert {tensor.name for tensor in reader.tensors} == set(weights)
    for tensor in reader.tensors:
        expected = weights[tensor.name]
        own = "F32" if expected.ndim == 1 else kind
        if own == "Q4_0" and tensor.name in ("token_embd.weight", "output.weight"):
            own = "Q8_0"
        assert tensor.tensor_type.name == own
        assert tuple(tensor.shape[::-1]) == expected.shape
        raw = gguf.quants.quantize(expected, tensor.tensor_type)
        assert np.array_equal(tensor.data.view(np.uint8).reshape(-1), raw.view(np.uint8).reshape(-1)), tensor.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_the_decoded_weights_in_their_type(tmp_path, kind, tied):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM", tie_word_embeddings=tied)
    done = convert_to_gguf(folder, tmp_path / "x.gguf", kind)
    check_tensors(done.path, folder, KINDS[kind])
    assert Qwen3Config.from_pretrained(done.path).tie_word_embeddings is tied


def test_configuration_and_tokenizer_survive_a_round_trip(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.25}
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM", rope_scaling=scaling, max_position_embeddings=512)
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    convert_to_gguf(folder, tmp_path / "x.gguf", "f16")
    ours, theirs = Qwen3Config.from_pretrained(tmp_path / "x.gguf"), Qwen3Config.from_pretrained(folder)
    assert ours.rope_scaling.keys() >= scaling.keys()
    assert ours.rope_scaling["attention_factor"] == pytest.approx(1.25)
    for name in ("hidden_size", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    tokenizer, original = AutoTokenizer.from_pretrained(tmp_path / "x.gguf"), AutoTokenizer.from_pretrained(folder)
    for text in ("Hello world", "<think>two words</think><|im_end|>", "naïve 12 你好"):
        assert tokenizer.encode(text) == original.encode(text)
    assert tokenizer.chat_template == original.chat_template
    generation = load(tmp_path / "x.gguf")[0].generation_config
    assert sampling.items() <= generation.to_dict().items()


def test_a_tokenizer_that_appends_an_end_token_is_kept(tmp_path):
    """As in Qwen3-Embedding, the appended token is not the end of a turn."""
    from tokenizers import Tokenizer, processors

    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = ("<|endoftext|>", backend.token_to_id("<|endoftext|>"))
    template = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[end]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    backend.save(str(folder / "tokenizer.json"))
    convert_to_gguf(folder, tmp_path / "x.gguf")
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "x.gguf"), AutoTokenizer.from_pretrained(folder)
    assert ours.encode("Hello") == theirs.encode("Hello")
    assert ours.encode("Hello")[-1] == end[1]
    ends = load(tmp_path / "x.gguf")[0].generation_config.eos_token_ids
    assert {theirs.eos_token_id, end[1]} <= set(ends)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_bundled_model_gives_the_same_answer(tmp_path, kind):
    """Its weights are packed with 6 bits, so the file holds the decoded weights, rounded to the type."""
    folder = bundled_model_path()
    done = convert_to_gguf(folder, tmp_path / "x.gguf", kind)
    check_tensors(done.path, folder, KINDS[kind])
    answers = []
    for source in (folder, done.path):
        session = ChatSession(*load(source), sampling=Sampling(temperature=0.0), thinking=False)
        answers.append([])
        for question in ("What does os.path.join do?", "And shutil.copyfile?", "What does json.dumps do?"):
            answers[-1].append("".join(part.text for part in session.send(question)))
    assert answers[1] == answers[0]
    assert all(len(answer) > 20 for answer in answers[0])


def test_a_gguf_file_is_converted_to_another_type(tmp_path):
    first = tiny_gguf(tmp_path, "Q8_0")
    convert_to_gguf(first, tmp_path / "again.gguf", "f16")
    folder = tmp_path / "original"
    ids = mx.array([[3, 5, 9]])
    close = np.abs(np.array(load(tmp_path / "again.gguf")[0](ids).logits) - np.array(load(folder)[0](ids).logits))
    assert close.max() < 0.5
    with pytest.raises(CheckpointError, match="is the source"):
        convert_to_gguf(first, first, force=True)


def test_rows_that_are_not_whole_blocks_are_stored_as_float16(tmp_path):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM", intermediate_size=40)
    done = convert_to_gguf(folder, tmp_path / "x.gguf", "q8_0")
    assert done.kept == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(done.path).tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    load(done.path)


REFUSED = {
    "window": ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window attention"),
    "biases": ({"attention_bias": True}, "biases in attention"),
    "activation": ({"hidden_act": "gelu"}, "activation gelu"),
    "rope": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE scaling dynamic"),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_llama_cpp_computes_differently_are_refused(tmp_path, config, message):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM", **config)
    with pytest.raises(UnsupportedModelError, match=message):
        convert_to_gguf(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_other_models_are_refused(tmp_path):
    for folder in (
        write_qwen3(tmp_path / "c", "Qwen3ForSequenceClassification"),
        write_bert(tmp_path / "b", "QDQBertForMaskedLM"),
    ):
        with pytest.raises(UnsupportedModelError, match="can be written as GGUF"):
            convert_to_gguf(folder, tmp_path / "x.gguf")


def test_values_that_exceed_the_type_are_refused(tmp_path):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    model, _ = load(folder)
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight + 70000.0
    model.save_pretrained(folder)
    with pytest.raises(QuantizationError, match=r"up_proj.*exceed float16"):
        convert_to_gguf(folder, tmp_path / "x.gguf", "f16")
    assert list(tmp_path.iterdir()) == [folder]
    convert_to_gguf(folder, tmp_path / "x.gguf", "bf16")


def test_another_tokenizer_is_refused(tmp_path):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\d+|\D+"
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TokenizerError, match="does not split text as Qwen3's does"):
        convert_to_gguf(folder, tmp_path / "x.gguf")


def test_invalid_targets_are_refused(tmp_path):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    (tmp_path / "x.gguf").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists"):
        convert_to_gguf(folder, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == b"mine"
    convert_to_gguf(folder, tmp_path / "x.gguf", force=True)
    with pytest.raises(InputError, match=r"does not end in \.gguf"):
        convert_to_gguf(folder, tmp_path / "x")
    with pytest.raises(InputError, match="gguf_type is 'q6_k', expected one of f16, bf16, q8_0, q4_0"):
        convert_to_gguf(folder, tmp_path / "y.gguf", "q6_k")


def test_the_command_line_converts_to_gguf(tmp_path, capsys):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    command = ["convert", "--hf-path", str(folder), "--to", "gguf"]
    target = ["--mlx-path", str(tmp_path / "x.gguf")]
    assert main([*command, "--gguf-type", "q8_0", *target]) == 0
    assert "bits per weight" in capsys.readouterr().out
    assert load(tmp_path / "x.gguf")[0].config.quantization["bits"] == 8
    for flags, message in (
        (target, "exists"),
        ([], "--mlx-path NAME.gguf"),
        ([*target, "-q"], "--quantize applies to MLX folders only"),
        ([*target, "--q-mode", "mxfp4"], "--q-mode applies to MLX folders only"),
        ([*target, "--dtype", "float16"], "--dtype applies to MLX folders only"),
    ):
        assert main([*command, *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", "--hf-path", str(folder), "--gguf-type", "f16"]) == 2
    assert "needs --to gguf" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(tmp_path):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to_gguf(folder, tmp_path / "x.gguf", progress=interrupt)
    assert list(tmp_path.iterdir()) == [folder]


def test_errors_are_errors_of_the_package(tmp_path):
    with pytest.raises(MlxQwen3Error):
        convert_to_gguf(tmp_path / "nowhere", tmp_path / "x.gguf")


@pytest.mark.parametrize("verify", [False, True])
def test_a_source_that_changes_is_detected(tmp_path, verify):
    folder = write_qwen3(tmp_path / "model", "Qwen3ForCausalLM")
    file = folder / "model.safetensors"

    def touch(done, total):
        stamp = file.stat().st_mtime_ns
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"\x01" if done % 2 else b"\x02")
        os.utime(file, ns=(stamp, stamp if verify else stamp + 1))

    with pytest.raises(CheckpointError, match="has changed during the conversion"):
        convert_to_gguf(folder, tmp_path / "x.gguf", progress=touch, verify=verify)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

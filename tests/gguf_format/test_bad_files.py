"""Damaged and malicious GGUF files: a one-line error with the cause, and little memory."""

import random
import resource
import struct
import tracemalloc

import gguf
import numpy as np
import pytest

from mlx_qwen3 import load
from mlx_qwen3.checkpoint.gguf import MAX_HEADER_BYTES, read_gguf
from mlx_qwen3.cli import main
from mlx_qwen3.errors import CheckpointError, MlxQwen3Error, UnsupportedModelError
from tests.support.gguf_files import checkpoint_arrays, tiny_gguf, write_model_gguf
from tests.support.tiny_checkpoints import write_qwen3


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("original") / "model", "Qwen3ForCausalLM")


@pytest.fixture(scope="module")
def good(tmp_path_factory, original):
    path = write_model_gguf(tmp_path_factory.mktemp("good") / "good.gguf", original)
    load(path)
    return path.read_bytes()


def refused(path, message):
    with pytest.raises(MlxQwen3Error, match=message) as caught:
        load(path)
    reported = str(caught.value)
    assert "\n" not in reported
    assert len(reported.replace(str(path.parent), "")) < 400
    return caught.value


def patched(good, path, old, new):
    """Return the good file with the only occurrence of some bytes replaced."""
    assert good.count(old) == 1
    path.write_bytes(good.replace(old, new))
    return path


def entry(name, *rest):
    return struct.pack("<Q", len(name)) + name.encode() + b"".join(rest)


UP = "blk.0.ffn_up.weight"
UP_SHAPE = struct.pack("<IQQ", 2, 32, 64)

HEADERS = {
    "empty": (b"", "truncated"),
    "short": (b"GGUF\x03\0\0\0", "truncated"),
    "magic": (b"GGML" + b"\0" * 30, "not a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IIIII", 1, 0, 0, 0, 0), "version 1"),
    "version 4": (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "number of tensors is"),
    "pairs": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "number of metadata pairs is"),
    "key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + b"\0" * 99, f"claims {1 << 62} bytes"),
    "text": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<IQ", 8, 1 << 60)) + b"\0" * 99,
        f"the value of a claims {1 << 60} bytes",
    ),
    "text in an array": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<IIQQ", 9, 8, 2, 1 << 60)) + b"\0" * 99,
        f"a text of a claims {1 << 60} bytes",
    ),
    "array": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<IIQ", 9, 4, 1 << 61)) + b"\0" * 99,
        "the length of a is",
    ),
    "array of texts": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<IIQ", 9, 8, 1 << 40)) + b"\0" * 99,
        "the length of a is",
    ),
    "array of arrays": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<IIQ", 9, 9, 1)) + b"\0" * 99,
        "an array of value type 9",
    ),
    "value type": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<I", 77)) + b"\0" * 99,
        "unknown value type 77",
    ),
    "not UTF-8": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xff" + b"\0" * 99,
        "is not UTF-8",
    ),
    "a key twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry("a", struct.pack("<I?", 7, True)) * 2 + b"\0" * 99,
        "the metadata 'a' twice",
    ),
}


@pytest.mark.parametrize(("content", "message"), HEADERS.values(), ids=HEADERS)
def test_damaged_headers_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    refused(path, message)


def test_truncated_files_are_refused(good, tmp_path):
    path = tmp_path / "cut.gguf"
    choose = random.Random(0)
    for end in sorted({*(choose.randrange(len(good)) for _ in range(60)), len(good) - 33}):
        path.write_bytes(good[:end])
        refused(path, r"truncated|lacks|damaged")


def test_damaged_tensor_tables_are_refused(good, tmp_path):
    path = tmp_path / "bad.gguf"
    plain, shape = entry(UP), entry(UP, UP_SHAPE)
    at = good.index(shape) + len(shape)
    kind, offset = struct.unpack_from("<IQ", good, at)
    assert kind == 0
    known = shape + struct.pack("<IQ", 0, offset)
    cases = {
        "has type 250 (unknown)": shape + struct.pack("<IQ", 250, offset),
        "TQ2_0": shape + struct.pack("<IQ", 35, offset),
        "truncated or damaged: tensor": shape + struct.pack("<IQ", 0, 1 << 40),
        "not a multiple of 32": shape + struct.pack("<IQ", 0, offset + 4),
        "overlap": shape + struct.pack("<IQ", 0, 0),
        "has 77 dimensions": plain + struct.pack("<IQQIQ", 77, 32, 64, 0, offset),
        "has shape": plain + struct.pack("<IQQIQ", 2, 0, 64, 0, offset),
        "has shape (4611686018427387904": plain + struct.pack("<IQQIQ", 2, 1 << 62, 1 << 62, 0, offset),
        "not whole blocks of Q6_K": shape + struct.pack("<IQ", 14, offset),
    }
    for message, changed in cases.items():
        reported = refused(patched(good, path, known, changed), message.replace("(", r"\(").replace(")", r"\)"))
        assert "ffn_up" in str(reported), message
    refused(patched(good, path, plain, entry("blk.0.ffn_no.weight")), "ffn_no")
    refused(patched(good, path, plain, entry("blk.1.ffn_up.weight"[:19])), "twice|ffn_up")
    refused(patched(good, path, plain, entry("rope_freqs.weight.x"[:19])), "rope_freqs")


def test_an_invalid_alignment_is_refused(original, tmp_path):
    for value in (0, 3, 1 << 30, "x"):
        path = write_model_gguf(tmp_path / "bad.gguf", original, fields={"general.alignment": value})
        refused(path, "general.alignment is")


METADATA = {
    "attention.head_count": (None, "attention.head_count"),
    "block_count": (7, "block_count is 7"),
    "embedding_length": ("big", "embedding_length is 'big', expected a whole number"),
    "context_length": (0, "context_length is 0"),
    "feed_forward_length": (65, r"up_proj.weight has shape"),
    "attention.head_count_kv": (0, "head_count_kv is 0"),
    "attention.key_length": (16, "q_proj.weight has shape"),
    "attention.value_length": (16, "values of size 16"),
    "attention.layer_norm_rms_epsilon": (float("nan"), "epsilon is nan"),
    "rope.freq_base": (-1.0, "rope_theta"),
    "rope.scaling.type": ("longrope", "'longrope' is not supported"),
    "pooling_type": (9, "pooling_type is 9"),
    "general.type": ("adapter", "holds a 'adapter', not a model"),
}


@pytest.mark.parametrize(("key", "value", "message"), [(k, *v) for k, v in METADATA.items()])
def test_invalid_metadata_is_refused(original, tmp_path, key, value, message):
    refused(write_model_gguf(tmp_path / "bad.gguf", original, fields={key: value}), message)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "feed_forward_length"])
def test_huge_sizes_are_refused_before_allocating(original, tmp_path, key):
    path = write_model_gguf(tmp_path / "bad.gguf", original, fields={key: (1 << 32) - 1})
    tracemalloc.start()
    refused(path, key.rpartition(".")[2].replace("head_count", "q_proj") + r"|shape|up_proj")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_another_architecture_is_refused_with_an_alternative(original, tmp_path, capsys):
    path = write_model_gguf(tmp_path / "bad.gguf", original, arch="qwen3moe")
    assert isinstance(refused(path, r"architecture 'qwen3moe' is not 'qwen3'.*llama\.cpp"), UnsupportedModelError)
    assert main(["generate", "--model", str(path), "--prompt", "hi"]) == 2
    assert main(["info", str(path)]) == 2
    assert main(["convert", "--hf-path", str(path), "--mlx-path", str(tmp_path / "out")]) == 2
    reported = capsys.readouterr().err.splitlines()
    assert len(reported) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["token_embd.weight", UP, "blk.1.attn_norm.weight", "output_norm.weight"])
def test_a_missing_tensor_is_reported(original, tmp_path, name):
    from mlx_qwen3.checkpoint.gguf_names import LAYER, TOP

    part = name.split(".")[-2]
    path = write_model_gguf(tmp_path / "bad.gguf", original, tensors={name: None})
    refused(path, f"{(TOP | LAYER)[part].replace('.', '[.]')}|block_count")


def test_shapes_that_contradict_the_metadata_are_refused(original, tmp_path):
    arrays = checkpoint_arrays(original)
    for name in ("blk.1.ffn_down.weight", "blk.0.attn_q_norm.weight", UP):
        path = write_model_gguf(tmp_path / "bad.gguf", original, tensors={name: arrays[name][1:]})
        refused(path, "shape")
    cube = np.zeros((2, 2, 32), np.float32)
    refused(write_model_gguf(tmp_path / "bad.gguf", original, tensors={UP: cube}), "expected 1 or 2 dimensions")


def test_a_huge_header_is_refused(tmp_path):
    """The file has one string of hundreds of megabytes and is sparse on the disk."""
    path = tmp_path / "bad.gguf"
    length = MAX_HEADER_BYTES + 100
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("a", struct.pack("<IIQ", 9, 0, length))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + length)
    tracemalloc.start()
    refused(path, "a header above 256 MiB")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_other_paths_are_refused(tmp_path):
    (tmp_path / "x.gguf").mkdir()
    refused(tmp_path / "x.gguf", "no model|config.json|safetensors")
    with pytest.raises(CheckpointError, match="no folder"):
        load(tmp_path / "missing.gguf")


def mutated(good, choose):
    """Return a good file with a few random changes in its header."""
    data = bytearray(good)
    end = good.index(b"output_norm.weight") + 4000
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(4, min(end, len(data) - 9))
        kind = choose.randrange(5)
        if kind == 0:
            data[at] = choose.randrange(256)
        elif kind == 1:
            value = choose.choice([0, 1, 1 << 31, 1 << 32, 1 << 60, (1 << 64) - 1, choose.randrange(1 << 20)])
            data[at : at + 8] = struct.pack("<Q", value)
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", choose.randrange(16))
        elif kind == 3:
            del data[at : at + choose.randint(1, 40)]
        else:
            data[at:at] = bytes(choose.randrange(256) for _ in range(choose.randint(1, 40)))
    return bytes(data)


def fuzz(good, path, cases, seed):
    """Check that every changed file loads or is refused in one line. Return how many were refused."""
    choose, reported = random.Random(seed), []
    for _ in range(cases):
        path.write_bytes(mutated(good, choose))
        try:
            load(path)
        except MlxQwen3Error as error:
            reported.append(str(error))
    assert not [text for text in reported if "\n" in text]
    return len(reported)


def test_changed_headers_load_or_are_refused(good, tmp_path):
    assert fuzz(good, tmp_path / "x.gguf", 150, seed=0) > 50


@pytest.mark.slow
def test_thousands_of_changed_headers_load_or_are_refused(good, tmp_path):
    assert fuzz(good, tmp_path / "x.gguf", 5000, seed=1) > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20  # KiB


def test_the_reader_of_the_gguf_package_agrees(tmp_path):
    path = tiny_gguf(tmp_path, "Q8_0")
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert set(ours.metadata) == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.offset, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert found.shape == tuple(tensor.shape[::-1])
        assert found.kind.name == tensor.tensor_type.name

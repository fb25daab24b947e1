"""Two processes compute what one computes, each with its part of the weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import write_qwen3

from mlx_qwen3 import Qwen3Config, convert
from mlx_qwen3.distributed import check_divides
from mlx_qwen3.errors import InputError

RANKS = Path(__file__).with_name("ranks.py")
ROOT = Path(__file__).parents[2]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(folder, *words, **environment):
    """Start two ranks of the ring backend, as `mlx.launch -n 2` does."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    base = {**os.environ, "MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(ROOT), **environment}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *words], env={**base, "MLX_RANK": str(rank)}, **pipes) for rank in range(2)
    ]


def finish(ranks, seconds=60):
    try:
        return [(*one.communicate(timeout=seconds), one.returncode) for one in ranks]
    finally:
        for one in ranks:
            one.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "vocab_size": 512}
    write_qwen3(root / "plain", "Qwen3ForCausalLM", tie_word_embeddings=True, **wide)
    write_qwen3(root / "bias", "Qwen3ForCausalLM", attention_bias=True, **wide)
    write_qwen3(root / "labels", "Qwen3ForSequenceClassification", num_labels=3)
    convert(root / "bias", root / "packed", quantize=True, q_bits=8, q_group_size=32, report=False)
    return root


def test_two_processes_compute_what_one_computes(folder):
    ended = finish(start(folder, str(RANKS), str(folder)))
    assert [code for *_, code in ended] == [0, 0], ended[0][1][-2000:]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    for found in ranks:
        for kind in ("plain", "packed", "vocabulary", "packed vocabulary"):
            one = found[kind]
            assert one["logits"] < 1e-3
            assert one["share"] == pytest.approx(0.5, abs=0.01)
            assert one["greedy"]
            assert one["seeded"]
            assert one["batch"]
            assert one["refused"]
        assert found["rows"] == {"same": True, "close": True, "vectors": True}
    assert ranks[0]["plain"]["unseeded"] == ranks[1]["plain"]["unseeded"]


def test_only_the_first_process_prints_and_a_dead_one_ends_the_other(folder):
    words = ["-m", "mlx_qwen3", "generate", "--model", str(folder / "plain"), "--temp", "0", "-m", "400", "hello"]
    ranks = start(folder, *words, PYTHONUNBUFFERED="1")
    assert ranks[0].stdout.read(1)
    ranks[1].kill()
    (_, error, code), (out, other, _) = finish(ranks, 30)
    assert code == 2
    assert "another process has ended" in error
    assert "Traceback" not in error
    assert (out, other) == ("", "")


def test_processes_that_do_not_divide_the_heads_are_refused():
    class Three:
        def size(self):
            return 3

    with pytest.raises(InputError, match=r"3 processes do not divide num_key_value_heads 2.*one of 1, 2 processes"):
        check_divides(Qwen3Config(num_attention_heads=4, num_key_value_heads=2, intermediate_size=64), Three())

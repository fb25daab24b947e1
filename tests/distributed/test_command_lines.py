"""Commands run by several processes: their output, exit status and partial results."""

import json
import os
import random
import signal
import socket
import time

import pytest

from tests.support.rank_processes import CONNECT_SECONDS, finish, start
from tests.support.tiny_checkpoints import write_qwen3

VERB = ("-m", "mlx_qwen3")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    shape = {"tie_word_embeddings": True, "vocab_size": 512, "max_position_embeddings": 65536}
    write_qwen3(root / "plain", "Qwen3ForCausalLM", **shape)
    write_qwen3(root / "labels", "Qwen3ForSequenceClassification", num_labels=3)
    return root


def rows_file(path, count):
    path.write_text("".join(f"hello world {'the ' * (i % 7)}{i}\n" for i in range(count)))
    return path


def test_only_the_first_process_reads_the_rows(models, tmp_path):
    """Run the second process in a folder without the file."""
    rows_file(tmp_path / "rows.txt", 23)
    words = [*VERB, "classify", "--model", str(models / "labels"), "--file", "rows.txt", "--format", "json"]
    (tmp_path / "elsewhere").mkdir()
    ranks = start(tmp_path, *words, folders=[tmp_path, tmp_path / "elsewhere"])
    (out, err, code), (other, other_err, other_code) = finish(ranks)
    assert (code, other_code, other, other_err) == (0, 0, "", ""), err
    assert [json.loads(line)["text"] for line in out.splitlines()] == (tmp_path / "rows.txt").read_text().splitlines()


def test_rows_are_read_from_stdin_of_the_first_process(models, tmp_path):
    words = [*VERB, "classify", "--model", str(models / "labels"), "--format", "json"]
    (out, err, code), (other, _, _) = finish(start(tmp_path, *words, given=["one\ntwo\n\nthree", ""]))
    assert (code, other) == (0, ""), err
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classify", "--model", "labels", "--file", "missing.txt"], "missing.txt"),
        (["generate", "--model", "missing", "hello"], "missing"),
        (["generate", "--model", "plain", "--prompt-cache-file", "x.safetensors", "hello"], "--prompt-cache-file"),
        (["classify", "--model", "labels", "--resume", "hello"], "--resume continues a .jsonl file"),
    ],
)
def test_invalid_input_is_a_one_line_error_of_the_first_process(models, tmp_path, words, message):
    words = [str(models / word) if word in ("labels", "plain", "missing") else word for word in words]
    (out, err, code), (other, other_err, other_code) = finish(start(tmp_path, *VERB, *words))
    assert (code, out, other, other_err) == (2, "", "", "")
    assert other_code != 0
    assert len(err.strip().splitlines()) == 1
    assert message in err


def test_a_model_missing_on_one_process_is_reported_by_the_first(models, tmp_path):
    words = [*VERB, "generate", "--model", "plain", "-m", "3", "hello"]
    (tmp_path / "elsewhere").mkdir()
    (_, err, code), (*_, other_code) = finish(start(tmp_path, *words, folders=[models, tmp_path / "elsewhere"]))
    assert (code, other_code) == (2, 2)
    assert "process 1 of 2 failed" in err
    assert "plain" in err
    assert len(err.strip().splitlines()) == 1


def test_a_command_without_a_distributed_part_runs_on_the_first_process(models, tmp_path):
    (out, err, code), (other, other_err, other_code) = finish(start(tmp_path, *VERB, "info", str(models / "plain")))
    assert (code, other_code, other, other_err) == (0, 0, "", ""), err
    assert "Qwen3ForCausalLM" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the host file"),
        ("{", "is not valid JSON"),
        ('{"a": 1}', "is not a list of lists of addresses"),
        ('[["127.0.0.1:1"]]', "MLX_RANK is '1' and the host file"),
    ],
)
def test_an_invalid_host_file_is_a_one_line_error(models, tmp_path, content, message):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    words = [*VERB, "generate", "--model", str(models / "plain"), "-m", "3", "hello"]
    environment = {"MLX_HOSTFILE": str(file), CONNECT_SECONDS: "2"}
    (_, err, code), (other, other_err, other_code) = finish(start(tmp_path, *words, **environment))
    if "MLX_RANK" not in message:
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
    assert (other, other_err) == ("", "")
    assert other_code != 0


def test_a_port_in_use_is_a_one_line_error(models, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        hosts = tmp_path / "taken.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{taken.getsockname()[1]}"], ["127.0.0.1:1"]]))
        words = [*VERB, "generate", "--model", str(models / "plain"), "-m", "3", "hello"]
        (_, err, code), _ = finish(start(tmp_path, *words, MLX_HOSTFILE=str(hosts), **{CONNECT_SECONDS: "3"}))
    assert code == 2
    assert "a port of this machine is in use" in err
    assert len(err.strip().splitlines()) == 1


def test_waiting_for_other_processes_times_out(models, tmp_path):
    words = [*VERB, "generate", "--model", str(models / "plain"), "-m", "3", "hello"]
    ranks = start(tmp_path, *words, **{CONNECT_SECONDS: "4"})
    ranks[1].kill()
    (_, err, code), _ = finish(ranks, 30)
    assert code != 0
    assert "the other processes did not connect within 4 s" in err
    assert len(err.strip().splitlines()) == 1


def test_only_the_first_process_prints_and_both_exit_if_one_is_killed(models, tmp_path):
    words = [*VERB, "generate", "--model", str(models / "plain"), "--temp", "0", "-m", "60000", "hello"]
    ranks = start(tmp_path, *words, PYTHONUNBUFFERED="1")
    assert ranks[0].stdout.read(1)
    ranks[1].kill()
    (_, error, code), (out, other, _) = finish(ranks, 30)
    assert code == 2
    assert "another process has exited" in error
    assert "Traceback" not in error
    assert (out, other) == ("", "")


def test_an_output_interrupted_by_a_killed_process_is_resumed(models, tmp_path):
    rows = rows_file(tmp_path / "rows.txt", 4000)
    words = [*VERB, "classify", "--model", str(models / "labels"), "--file", str(rows), "--output", "out.jsonl"]
    words += ["--batch-size", "4"]
    ranks = start(tmp_path, *words, folders=[tmp_path, tmp_path])
    partial = tmp_path / "out.jsonl.partial"
    deadline = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks[1].kill()
    (_, err, code), _ = finish(ranks, 30)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()
    kept = partial.read_bytes()
    assert 0 < kept.count(b"\n") < 4000
    (_, err, code), _ = finish(start(tmp_path, *words, "--resume", folders=[tmp_path, tmp_path]), 100)
    assert code == 0, err
    found = (tmp_path / "out.jsonl").read_bytes()
    assert found.startswith(kept[: kept.rfind(b"\n") + 1])
    assert [json.loads(line)["text"] for line in found.splitlines()] == rows.read_text().splitlines()
    assert not partial.exists()


def test_ctrl_c_stops_generation_on_all_processes(models, tmp_path):
    words = [*VERB, "generate", "--model", str(models / "plain"), "--temp", "0", "-m", "60000", "hello"]
    ranks = start(tmp_path, *words, PYTHONUNBUFFERED="1")
    assert ranks[0].stdout.read(1)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGINT)
    (_, err, code), (*_, other_code) = finish(ranks, 20)
    assert "Traceback" not in err
    assert code == 130
    assert other_code is not None


@pytest.mark.slow
def test_a_rank_killed_at_ten_random_moments_leaves_no_process_waiting(models, tmp_path):
    words = [*VERB, "generate", "--model", str(models / "plain"), "--temp", "0", "-m", "60000", "hello"]
    choose = random.Random(os.environ.get("KILL_SEED", "0"))
    for moment in range(10):
        ranks = start(tmp_path, *words, **{CONNECT_SECONDS: "15"})
        time.sleep(choose.uniform(0, 6))
        victim = choose.randrange(2)
        ranks[victim].kill()
        killed = time.monotonic()
        ended = finish(ranks, 40)
        assert time.monotonic() - killed < 20, moment
        out, err, code = ended[1 - victim]
        assert code not in (0, None), (moment, victim, out[-100:], err)
        assert "Traceback" not in err, (moment, victim, err)
        assert len(err.strip().splitlines()) == (1 - victim == 0), (moment, victim, err)

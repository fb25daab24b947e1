"""Files of texts on the command line: formats, errors before a model is loaded, and interrupted runs."""

import json
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest

from mlx_qwen3 import InputError
from mlx_qwen3.cli import main
from mlx_qwen3.cli.main import make_parser
from mlx_qwen3.cli.texts import read_rows, task_options
from mlx_qwen3.tasks.batches import batches_by_length
from mlx_qwen3.tasks.rows import windows

PAIR = ["hello world", "it"]


@pytest.fixture
def forbid_loading(monkeypatch):
    """Fail if a model is loaded."""

    def load(*_, **__):
        pytest.fail("a model was loaded")

    monkeypatch.setattr("mlx_qwen3.loading.load", load)
    monkeypatch.setattr("mlx_qwen3.tasks.bundled_heads.load_bundled_head", load)


def texts(capsys):
    return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", '["hello world", {"text": "it", "n": 1}]'),
        ("rows.txt", "\nhello world\n \t\r\nit\n\n\n"),
        ("rows.csv", "text\nhello world\n\n  \nit\n\n"),
        ("wide.csv", "text,n\nhello world,1\n,\nit,2\n,\n"),
        ("rows.jsonl", '\n"hello world"\n\n{"text": "it"}\n\n'),
    ],
)
@pytest.mark.parametrize(("verb", "model"), [("classify", "sequence"), ("tag", "token"), ("embed", "causal")])
def test_blank_lines_are_skipped(folders, tmp_path, capsys, name, content, verb, model):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main([verb, "--model", str(folders[model]), "--file", str(tmp_path / name)]) == 0
    assert texts(capsys) == PAIR


def test_a_blank_row_with_surplus_commas_is_skipped(folders, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,n\nhello,1\n,,\n", encoding="utf-8")
    args = Namespace(text=[], file=str(file), column="text")
    assert [(row.value, dict(row)) for row in read_rows(args)] == [("hello", {"text": "hello", "n": "1"})]
    file.write_text("text\n\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        read_rows(args)
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(InputError, match="nested too deeply"):
        read_rows(Namespace(text=[], file=str(deep), column="text"))


def test_blank_lines_of_stdin_are_skipped(folders):
    command = [sys.executable, "-m", "mlx_qwen3", "classify", "--model", str(folders["sequence"])]
    found = subprocess.run(command, input="hello world\n\nit\n\n", capture_output=True, text=True)
    assert found.returncode == 0
    assert [json.loads(line)["text"] for line in found.stdout.splitlines()] == PAIR


def test_an_empty_cell_of_a_row_with_others_is_reported(folders, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("n,text\n1,hello\n2,\n3\n")
    assert main(["classify", "--model", str(folders["sequence"]), "--file", str(tmp_path / "rows.csv")]) == 1
    output = capsys.readouterr().err
    assert "row 1: text is empty" in output
    assert "row 2: text is empty" in output


@pytest.mark.usefixtures("forbid_loading")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "--file", "none.txt"], "none.txt: cannot be read"),
        (["classify", "--file", "."], "cannot be read (Is a directory)"),
        (["classify", "--file", "rows.csv"], "has no column 'text', only a, b. Give one with --column"),
        (["classify", "--file", "rows.csv", "--column", "a", "--pair-column", "c"], "has no column 'c'"),
        (["classify", "--file", "-", "--pair-column", "b"], "stdin: rows of text and b need a file. Give a csv"),
        (["classify", "--file", "empty.csv"], "empty.csv: holds no text"),
        (["classify", "--file", "huge.csv"], "huge.csv: cannot be read after line 1 (field larger"),
        (
            ["classify", "--labels", "a,b", "--file", "rows.xlsx"],
            "cannot read .xlsx files. Give txt (one row per line)",
        ),
        (["classify", "--file", "object.json"], "is not a JSON array"),
        (
            ["classify", "--file", "lines.json"],
            "line 2 is not JSON (Extra data). Correct it, or name a file with one row per line .jsonl",
        ),
        (["classify", "--file", "number.json"], "number.json: row 0 is not a JSON object"),
        (["tag", "--file", "none.txt"], "none.txt: cannot be read"),
        (["answer", "--file", "rows.csv"], "has no column 'question'"),
        (["embed", "--file", "rows.csv"], "has no column 'text'"),
        (["rank", "--model", "x", "--query", "q", "--file", "none.txt"], "none.txt: cannot be read"),
        (["fill-mask", "--model", "x", "--file", "none.txt"], "none.txt: cannot be read"),
        (
            ["rank", "--query", "q", "a"],
            "the bundled model does not support it. Give one such as Qwen/Qwen3-Reranker-0.6B",
        ),
        (["fill-mask", "a [MASK]"], "fill-mask needs --model, because the bundled model does not support it"),
    ],
)
def test_errors_are_reported_before_a_model_is_loaded(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "rows.csv": "a,b\n1,2\n",
        "empty.csv": "",
        "huge.csv": f"text\n{'x' * 200_000}\n",
        "rows.xlsx": "PK",
        "object.json": '{"text": "hello"}',
        "lines.json": '{"text": "hello"}\n{"text": "it"}\n',
        "number.json": "[1]",
    }.items():
        (tmp_path / name).write_text(content)
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert words in output
    assert output.count("\n") == 1


@pytest.mark.parametrize("verb", ["classify", "tag", "answer", "embed", "rank", "fill-mask"])
def test_help_states_whether_there_is_a_default_model(verb, capsys):
    assert main([verb, "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert ("(default: the bundled small model)" in output) == (verb not in ("rank", "fill-mask"))
    assert "Blank lines are skipped" in output


def test_a_language_model_without_labels_names_the_flag(folders, capsys):
    assert main(["classify", "--model", str(folders["causal"]), "hello"]) == 2
    output = capsys.readouterr().err
    assert "has no sequence classification head" in output
    assert "--labels" in output
    assert main(["classify", "--model", str(folders["token"]), "hello"]) == 2
    assert "--labels" not in capsys.readouterr().err


@pytest.mark.parametrize("shown", ["json", "table"])
def test_ctrl_c_stops_a_long_file_soon_and_keeps_the_results(folders, tmp_path, shown):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('""\n' + '"the quick brown fox was quick"\n' * 200_000)
    command = [sys.executable, "-m", "mlx_qwen3", "classify", "--model", str(folders["sequence"]), "--file", str(rows)]
    with subprocess.Popen(
        [*command, "--format", shown], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline() == "row 0: text is empty\n"  # the first results are there
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("mlx-qwen3: stopped by Ctrl-C after ")
    assert errors.count("\n") == 1
    done = int(errors.split()[-2])
    assert 1 < done < 200_000
    if shown == "json":
        assert len([json.loads(line) for line in output.splitlines()]) == done
    else:
        assert output.count("the quick") == done - 1


def test_rows_are_sorted_by_length_for_every_batch_size(folders, monkeypatch):
    from mlx_qwen3 import pipeline
    from mlx_qwen3.tasks import task

    seen = []
    plain = task.windows
    monkeypatch.setattr(task, "windows", lambda *given: seen.append(given[2]) or plain(*given))
    classify = pipeline("text-classification", batch_tokens=16)
    list(classify(iter(["one", "two"]), batch_size=2))
    list(classify(iter(["one", "two"])))
    assert seen == [None, 16 * task.AHEAD]


def test_windows_are_limited_by_rows_or_characters():
    rows = ["a" * 4] * 5
    assert [len(window) for _, window in windows(rows, 2)] == [2, 2, 1]
    assert [(start, len(window)) for start, window in windows(rows, 9, 8)] == [(0, 2), (2, 2), (4, 1)]
    assert [len(window) for _, window in windows(rows, 9, 8, least=3)] == [3, 2]
    assert [len(window) for _, window in windows([("ab", "cd"), {"a": "abcd"}, None], 9, 4)] == [1, 1, 1]
    assert list(windows([], 2)) == []
    growing = [(start, len(window)) for start, window in windows(["a" * 4] * 30, 99, 32, first=4)]
    assert growing == [(0, 1), (1, 2), (3, 4), (7, 8), (15, 8), (23, 7)]


def test_batches_are_limited_by_tokens_on_request():
    assert [len(batch) for batch in batches_by_length([10] * 10, None, 40)] == [4, 4, 2]
    assert [len(batch) for batch in batches_by_length([10] * 10, 5, 40)] == [5, 5]


def test_a_command_line_reads_a_file_in_small_batches(folders, tmp_path, monkeypatch, capsys):
    """The rows of a file are computed in small batches, so that the first results do not wait for the last rows."""
    seen = []
    run = "mlx_qwen3.tasks.batches.batches_by_length"
    monkeypatch.setattr(run, lambda *given: seen.append(batches_by_length(*given)) or seen[-1])
    (tmp_path / "rows.txt").write_text("the quick brown fox was [MASK]\na quick fox [MASK]\n" * 300)
    for verb, model, *flags in (
        ("classify", "sequence"),
        ("classify", "causal", "--labels", "fox,world"),
        ("embed", "causal"),
        ("tag", "token"),
        ("fill-mask", "bert mask"),
    ):
        seen.clear()
        assert main([verb, "--model", str(folders[model]), *flags, "--file", str(tmp_path / "rows.txt")]) == 0
        capsys.readouterr()
        assert len(seen) > 1, verb
        assert max(len(batch) for batches in seen for batch in batches) < 256, verb


@pytest.mark.parametrize(
    ("texts", "terminals", "shown", "bar"),
    [
        ([], "stderr stdout stdin", None, True),
        ([], "stderr", "json", True),
        ([], "stderr stdout", "json", False),
        ([], "", None, False),
        (["hello"], "stderr stdout stdin", None, False),
    ],
)
def test_a_progress_bar_is_shown_only_where_it_does_not_disturb_the_output(monkeypatch, texts, terminals, shown, bar):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name in terminals, raising=False)
    words = ["classify", *texts, *(["--format", shown] if shown else [])]
    args = make_parser(words).parse_args(words)
    assert task_options(args)["progress"] is bar

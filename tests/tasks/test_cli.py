"""The verbs for texts: sources of rows, output and exit status."""

import io
import json

import pytest

from mlx_qwen3.cli import main


class Stdin(io.StringIO):
    def isatty(self):
        return False


@pytest.fixture
def run(capsys, monkeypatch):
    """Return a function (arguments, stdin) → (exit status, JSON lines, stderr)."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", Stdin(stdin))
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        lines = (
            [json.loads(line) for line in captured.out.splitlines()] if "--format" not in arguments else captured.out
        )
        return status, lines, captured.err

    return call


def test_classify_texts_from_arguments_and_stdin_agree(run, folders):
    status, lines, _ = run("classify", "--model", folders["sequence"], "hello world", "it")
    assert status == 0
    assert [line["text"] for line in lines] == ["hello world", "it"]
    assert set(lines[0]["labels"][0]) == {"label", "score"}
    assert run("classify", "--model", folders["sequence"], stdin="hello world\nit\n")[1] == lines
    _, every, _ = run("classify", "--model", folders["sequence"], "--top-k", "0", "it")
    assert len(every[0]["labels"]) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", "hello world\nit\n"),
        ("rows.csv", 'other,text\n1,hello world\n2,"it"\n'),
        ("rows.tsv", "text\tother\nhello world\t1\nit\t2\n"),
        ("rows.jsonl", '{"text": "hello world"}\n\n{"text": "it", "n": 1}\n'),
        ("strings.jsonl", '"hello world"\n"it"\n'),
    ],
)
def test_every_file_format_is_read(run, folders, tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    status, lines, _ = run("classify", "--model", folders["sequence"], "--file", file)
    assert status == 0
    kept = [{name: line.pop(name) for name in ("other", "n") if name in line} for line in lines]
    assert lines == run("classify", "--model", folders["sequence"], "hello world", "it")[1]
    columns = {"rows.csv": [{"other": "1"}, {"other": "2"}], "rows.tsv": [{"other": "1"}, {"other": "2"}]}
    columns |= {"rows.jsonl": [{}, {"n": 1}]}
    assert kept == columns.get(name, [{}, {}])


def test_pairs_come_from_two_columns(run, folders, tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("a,b\nhello,the fox\n", encoding="utf-8")
    options = ("--model", folders["bert sequence"], "--file", file, "--column", "a")
    _, lines, _ = run("classify", *options, "--pair-column", "b")
    assert lines[0]["text_pair"] == "the fox"
    assert lines[0]["labels"][0]["score"] != run("classify", *options)[1][0]["labels"][0]["score"]


def test_labels_are_given_on_the_command_line(run, folders):
    status, lines, _ = run(
        "classify", "--model", folders["causal"], "--labels", "fox, world", "--top-k", "0", "hello there"
    )
    assert status == 0
    assert {label["label"] for label in lines[0]["labels"]} == {"fox", "world"}
    assert sum(label["score"] for label in lines[0]["labels"]) == pytest.approx(1)


def test_a_bad_row_is_reported_and_the_other_rows_are_answered(run, folders):
    status, lines, errors = run("classify", "--model", folders["sequence"], "hello", " ", "it")
    assert status == 1
    assert lines[1] == {"text": " ", "error": "text is empty", "row": 1}
    assert "labels" in lines[2]
    assert "row 1: text is empty" in errors


def test_tag_prints_offsets(run, folders):
    _, lines, _ = run("tag", "--model", folders["token"], "--aggregate", "none", "--ignore", "", "hello world")
    entities = lines[0]["entities"]
    assert entities[-1]["end"] == len("hello world")
    _, table, _ = run("tag", "--model", folders["token"], "--ignore", "", "--format", "table", "hello world")
    assert "span" in table
    assert "0–" in table


def test_answer_takes_one_question_or_the_questions_of_a_file(run, folders, tmp_path):
    _, lines, _ = run("answer", "--model", folders["question"], "--question", "who?", "the quick fox", "hello world")
    assert [set(line) for line in lines] == [{"question", "score", "start", "end", "answer"}] * 2
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "who?", "context": "the quick fox"}\n', encoding="utf-8")
    _, other, _ = run("answer", "--model", folders["question"], "--file", file, "--top-k", "2")
    assert other[0]["answers"][0]["answer"] == lines[0]["answer"]


def test_embed_prints_vectors(run, folders):
    _, lines, _ = run("embed", "--model", folders["causal"], "--dimensions", "4", "hello")
    assert len(lines[0]["embedding"]) == 4


def test_rank_prints_the_best_first(run, folders):
    _, lines, _ = run("rank", "--model", folders["score"], "--query", "fox", "the fox", "it", "hello world")
    assert [line["score"] for line in lines] == sorted((line["score"] for line in lines), reverse=True)
    assert {line["index"] for line in lines} == {0, 1, 2}


def test_fill_mask_prints_words(run, folders):
    _, lines, _ = run("fill-mask", "--model", folders["bert mask"], "--targets", "fox,world", "hello [MASK]")
    assert {word["token_str"] for word in lines[0]["words"]} == {"fox", "world"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "--file", "missing.txt"), "missing.txt: cannot be read"),
        (("classify", "--file", "x.txt", "text"), "texts and --file are both given"),
        (("classify", "--top-k", "-1", "x"), "--top-k is -1"),
        (("classify", "--multi-label", "x"), "need --labels"),
        (("classify", "--file", "rows.csv", "--column", "txt"), "has no column 'txt', only a, b"),
        (("classify", "--file", "rows.jsonl"), "line 2 is not JSON"),
        (("classify", "--file", "latin.txt"), "is not UTF-8 text"),
        (("answer", "x"), "there is no question. Give --question"),
        (("tag", "x"), "has no token classification head"),
    ],
)
def test_errors_of_the_user_are_one_line_with_status_2(run, folders, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "hello"}\n{"text"\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    verb, *rest = arguments
    status, _, errors = run(verb, "--model", folders["sequence"], *rest)
    assert status == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1

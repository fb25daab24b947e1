"""Unchecked files are read with one-line errors; writing leaves the old or the new content, never a mixture."""

import json
import os
import subprocess
import sys

import pytest

from mlx_qwen3.errors import CheckpointError, InputError
from mlx_qwen3.files import open_atomically, read_json, read_json_object, read_text, write_atomically
from mlx_qwen3.folders import UPDATE_NAME, check_only_model, finish_update, replace_folder, update_folder
from tests.support.interruptions import fail_at_every_event, fork

BAD_JSON = {
    "empty": b"",
    "cut": b'{"a": 1',
    "deep": b"[" * 200_000,
    "nested": b"[" * 500 + b"]" * 500,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "latin": '{"a": "é"}'.encode("latin-1"),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "surrogate": b'{"a": "\\ud800"}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_a_one_line_error(tmp_path, name):
    file = tmp_path / "a.json"
    file.write_bytes(BAD_JSON[name])
    with pytest.raises(InputError) as caught:
        read_json(file, error=InputError)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_regular_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", "a\0b", tmp_path / ("n" * 300)):
        with pytest.raises(CheckpointError):
            read_json(path)
    file = tmp_path / "list.json"
    file.write_text("[1]")
    with pytest.raises(CheckpointError, match="not contain a mapping"):
        read_json_object(file)
    with pytest.raises(CheckpointError, match="too large"):
        read_text(file, max_bytes=2)


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(tmp_path / "a.json") == {"a": 1}


def test_a_file_is_replaced_completely(tmp_path):
    file = tmp_path / "sub" / "a.txt"
    write_atomically(file, "one")
    file.chmod(0o640)

    def fail_in_the_middle():
        with open_atomically(file) as out:
            out.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle()
    assert file.read_text() == "one"
    write_atomically(file, b"two")
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(file.parent) == ["a.txt"]


def test_names_that_cannot_be_written_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "a", tmp_path / ("n" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(InputError, match="cannot write"):
            write_atomically(path, "x", error=InputError)
    with pytest.raises(InputError, match="surrogate"):
        write_atomically(tmp_path / "a", "\ud800", error=InputError)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def contents(folder):
    finish_update(folder)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_write_leaves_the_old_or_the_new_file(tmp_path):
    def prepare(root):
        (root / "a").write_text("old")

    events = fail_at_every_event(tmp_path, prepare, lambda root: write_atomically(root / "a", "new"), state, ERRORS)
    assert events >= 3


def test_an_interrupted_update_leaves_all_old_or_all_new_files(tmp_path):
    def prepare(root):
        for name in ("config", "model-1", "model-2", "mine"):
            (root / name).write_text("old")

    def act(root):
        with update_folder(root, replaces=lambda name: name.startswith("model")) as staging:
            for name in ("config", "model-2", "sub/more"):
                write_atomically(staging / name, "new")

    assert fail_at_every_event(tmp_path, prepare, act, state, ERRORS) > 10


def test_an_interrupted_replacement_leaves_the_old_or_the_new_folder(tmp_path):
    def prepare(root):
        (root / "target").mkdir()
        (root / "target" / "a").write_text("old")

    def act(root):
        with replace_folder(root / "target", force=True) as folder:
            write_atomically(folder / "a", "new")
            write_atomically(folder / "b", "new")

    def look(root):
        return contents(root / "target")

    assert fail_at_every_event(tmp_path, prepare, act, look, ERRORS) > 6


ERRORS = (CheckpointError,)


def state(root):
    return {name: text for name, text in contents(root).items() if not name.startswith((".part-", UPDATE_NAME))}


def test_an_update_cannot_write_outside_its_folder(tmp_path):
    (tmp_path / "precious").write_text("x")
    folder = tmp_path / "folder"
    update = folder / UPDATE_NAME
    update.mkdir(parents=True)
    for manifest in (
        {"files": ["../precious"], "remove": []},
        {"files": [], "remove": ["../precious"]},
        {"files": "config.json", "remove": []},
        {"files": ["/etc/passwd"], "remove": []},
    ):
        (update / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="Delete it"):
            finish_update(folder)
    assert (tmp_path / "precious").read_text() == "x"


def test_a_second_writer_of_one_target_is_refused(tmp_path):
    with replace_folder(tmp_path / "target") as folder:
        (folder / "a").write_text("first")
        child = fork()
        if not child:
            try:
                with replace_folder(tmp_path / "target"):
                    os._exit(1)
            except CheckpointError as error:
                os._exit(0 if "another process" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "target" / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["target"]


def test_another_folder_with_a_similar_name_is_unchanged(tmp_path):
    (tmp_path / ".mine.replaced").mkdir()
    with replace_folder(tmp_path / "m*") as folder:
        (folder / "a").write_text("x")
    assert sorted(os.listdir(tmp_path)) == [".mine.replaced", "m*"]


WRITER = """
import sys
from mlx_qwen3.folders import update_folder
folder, who = sys.argv[1], int(sys.argv[2])
for round in range(25):
    with update_folder(folder, replaces=lambda name: name.endswith(".txt")) as staging:
        for index in range(1 + (who + round) % 4):
            (staging / f"{index}.txt").write_text(f"{who} {round} {1 + (who + round) % 4}")
"""


def test_several_processes_that_save_into_one_folder_leave_one_complete_save(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "m")]
    writers = [subprocess.Popen([*command, str(who)], stderr=subprocess.PIPE, text=True) for who in range(3)]
    said = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], said
    files = sorted((tmp_path / "m").iterdir())
    content = {file.read_text() for file in files}
    assert len(content) == 1
    assert [file.name for file in files] == [f"{index}.txt" for index in range(int(content.pop().split()[2]))]


def test_an_error_names_the_requested_folder(tmp_path):
    def save():
        with update_folder(tmp_path / "m") as staging:
            (staging / "a").mkdir()
            write_atomically(staging / "a", "text")

    with pytest.raises(CheckpointError) as raised:
        save()
    assert str(tmp_path / "m" / "a") in str(raised.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", [".DS_Store", "desktop.ini", "config.json", "adapters.safetensors", "model.gguf"])
def test_folders_without_other_work_may_be_replaced(tmp_path, name):
    (tmp_path / "m").mkdir()
    check_only_model(tmp_path / "m")
    (tmp_path / "m" / name).write_text("")
    check_only_model(tmp_path / "m")


def test_folders_with_other_work_are_not_replaced(tmp_path):
    (tmp_path / "m").mkdir()
    for name in (".DS_Store", "notes.txt"):
        (tmp_path / "m" / name).write_text("")
    with pytest.raises(CheckpointError, match="holds no model"):
        check_only_model(tmp_path / "m")

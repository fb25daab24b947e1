"""Read unchecked JSON and text, and write files atomically.

The only JSON reader and, with `folders`, the only atomic writer of the package. Every function takes the class of the
errors to raise; any problem with a file is reported as a one-line error of that class.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import CheckpointError, MlxQwen3Error

ErrorClass = type[MlxQwen3Error]

MAX_JSON_BYTES = 200 << 20
MAX_JSON_DEPTH = 200


# reading


def read_bytes(path: str | Path, *, error: ErrorClass = CheckpointError, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a regular file. Pipes, devices and files above `max_bytes` raise.

    Raises:
        MlxQwen3Error: the class `error`; the file is missing, not readable, not a regular file, or too large.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{path} is not a regular file. Give the name of a file.")
            if found.st_size > max_bytes:
                raise error(
                    f"{path} is too large: {found.st_size} bytes, at most {max_bytes} are read. Check the file."
                )
            return file.read(found.st_size)
    except MlxQwen3Error:
        raise
    except IsADirectoryError:
        raise error(f"{path} is a folder, not a file. Give the name of a file.") from None
    except FileNotFoundError:
        raise error(f"there is no file {path}. Check the name.") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the name
        raise error(f"cannot read {path}: {reason_of(problem)}. Check the name and its permissions.") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: str | Path, *, error: ErrorClass = CheckpointError, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        MlxQwen3Error: the class `error`; the file cannot be read or is not UTF-8.
    """
    content = read_bytes(path, error=error, max_bytes=max_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 (byte {problem.start}). Convert it to UTF-8 or download it again.") from None


def read_json(path: str | Path, *, error: ErrorClass = CheckpointError, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        MlxQwen3Error: the class `error`; the file cannot be read, is not JSON, or is nested too deeply.
    """
    return parse_json(read_text(path, error=error, max_bytes=max_bytes), str(path), error=error)


def read_json_object(
    path: str | Path, *, error: ErrorClass = CheckpointError, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        MlxQwen3Error: as `read_json`, and where the file holds something other than a mapping.
    """
    content = read_json(path, error=error, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise error(f"{path} does not contain a mapping of names to values. Download or write the file again.")
    return content


def parse_json(text: str, source: str, *, error: ErrorClass = CheckpointError) -> Any:
    """Return the content of a JSON text; `source` names it in messages.

    Raises:
        MlxQwen3Error: the class `error`; not JSON, nested too deeply, or text that UTF-8 cannot represent.
    """
    again = "Download or write it again"
    try:
        content = json.loads(text)
    except RecursionError:
        raise error(f"{source} is nested too deeply. {again}.") from None
    except ValueError as problem:
        what = recognized(text[:80].encode("utf-8", "replace"))
        if what is not None:
            raise error(f"{source} is {what}.") from None
        raise error(f"{source} is not valid JSON ({_first_line(problem)}). {again}.") from None
    if _deeper_than(content, MAX_JSON_DEPTH):
        raise error(f"{source} is nested more than {MAX_JSON_DEPTH} levels deep. {again}.")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise error(f"{source} contains an unpaired surrogate. {again}.") from None
    return content


_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself. Run `git lfs pull` or download it again"),
    (b"<!doctype html", "a web page, perhaps an error of the server. Download it again"),
    (b"<html", "a web page, perhaps an error of the server. Download it again"),
    (b"pk\x03\x04", "a zip archive or a PyTorch file, which is never opened. Save the model as safetensors"),
    (b"\x80\x02", "a pickle file, which can run code and is never opened. Save the model as safetensors"),
    (b"\x80\x04", "a pickle file, which can run code and is never opened. Save the model as safetensors"),
    (b"gguf", "a GGUF file. Give its path instead of the folder's, with a name that ends in .gguf"),
    (b"\x89hdf", "an HDF5 file, not safetensors. Save the model as safetensors"),
)
"""First bytes of a file of another type than its name -> what it is, and the next step."""


def recognized(beginning: bytes) -> str | None:
    """Return the type of a file, recognized by its first bytes, with the next step; None if it is unknown."""
    text = beginning.lstrip()[:40].lower()
    return next((what for start, what in _BEGINNINGS if text.startswith(start)), None)


def _deeper_than(content: Any, limit: int) -> bool:
    level = [content]
    for _ in range(limit):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def json_text(content: Any) -> str:
    """Return indented JSON with a final newline, as this package writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


# errors


def disk_error(path: str | Path, problem: OSError, error: ErrorClass = CheckpointError) -> MlxQwen3Error:
    """Return the error that explains a failed write to `path`."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(f"cannot write {path}: the disk is full. Free some space or choose another target.")
    if isinstance(problem, FileExistsError | NotADirectoryError):
        return error(f"cannot write {path}: a file is in the way. Give another name or move the file.")
    return error(f"cannot write {path}: {reason_of(problem)}. Check its permissions or choose another target.")


@contextlib.contextmanager
def disk_errors(path: str | Path, error: ErrorClass = CheckpointError) -> Iterator[None]:
    """Turn an `OSError` of the block into the class `error`, naming `path`."""
    try:
        yield
    except OSError as problem:
        raise disk_error(path, problem, error) from problem


def reason_of(problem: Exception) -> str:
    """Return the system's message in a few words."""
    return (problem.strerror if isinstance(problem, OSError) else None) or _first_line(problem)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0][:200] or type(problem).__name__


# one file


def write_atomically(path: str | Path, content: str | bytes, *, error: ErrorClass = CheckpointError) -> None:
    """Write a file atomically, replacing an existing one.

    Raises:
        MlxQwen3Error: the class `error`; the file cannot be written. An existing file is unchanged, and no partial
            file is left.
    """
    try:
        data = content.encode("utf-8") if isinstance(content, str) else content
    except UnicodeEncodeError:
        raise error(f"cannot write {path}: the text contains an unpaired surrogate. Remove it.") from None
    with open_atomically(path, error=error) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: str | Path, *, error: ErrorClass = CheckpointError) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` when the block ends without an error.

    Missing parent folders are created.

    Raises:
        MlxQwen3Error: the class `error`; the file cannot be written.
    """
    path = Path(path)
    made: list[Path] = []
    partial = path.parent / f".part-{os.getpid()}-{os.urandom(4).hex()}"
    complete = False
    try:
        if "\0" in str(path):
            raise error(f"cannot write {str(path)!r}: the name contains a NUL character. Choose another name.")
        made = make_folders(path.parent)
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise error(f"cannot write {path}: it is {kind}. Choose another name.")
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, path)
        complete = True
    except OSError as problem:
        raise disk_error(path, problem, error) from problem
    finally:
        if not complete:
            remove(partial)
            remove_empty(made)


def make_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents; return the created ones, innermost first."""
    missing = []
    above = folder
    while not above.exists() and above != above.parent:
        missing.append(above)
        above = above.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except BaseException:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Remove a file or folder, with a second attempt if the first fails or is interrupted."""
    try:
        _remove_once(path)
    except OSError:
        with contextlib.suppress(OSError):
            _remove_once(path)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            _remove_once(path)
        raise


def _remove_once(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())

"""Replace several files of a folder, or a whole folder, atomically.

- `update_folder`: some files of a folder that other files share, replaced together (`save_pretrained`).
- `replace_folder`: a whole folder, built beside its target and exchanged with it (`convert`).

Readers of such folders call `finish_update` and `recover_folder` first; both cost one directory lookup if nothing was
interrupted.
"""

import contextlib
import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .errors import CheckpointError, MlxQwen3Error
from .files import (
    ErrorClass,
    disk_error,
    make_folders,
    read_json_object,
    reason_of,
    remove,
    remove_empty,
    sync_file,
)

UPDATE_NAME = ".mlx_qwen3-update"
"""The subfolder with a complete set of new files that are to be moved into its parent."""
_MANIFEST = "manifest.json"
_MOST_UPDATES = 100
"""Updates of other processes after which a writer gives up."""


# several files of a folder


@contextlib.contextmanager
def update_folder(
    folder: str | Path, *, replaces: Callable[[str], bool] | None = None, error: ErrorClass = CheckpointError
) -> Iterator[Path]:
    """Yield an empty folder whose files replace those of `folder` together when the block ends without an error.

    The files are written to a temporary subfolder, which is then renamed to `UPDATE_NAME`: this step commits the
        update.
    The files are then moved into place; if the process is killed before that is complete, the next reader or writer of
    the folder completes it (`finish_update`). The folder thus holds either the old files or the new ones.

    Args:
        folder: created if missing; other files in it are kept.
        replaces: returns whether an existing file of this name belongs to the replaced set and is removed if the block
            has not written it again.
        error: the class of the errors.

    Raises:
        MlxQwen3Error: the class `error`; the folder cannot be written. It is unchanged.
    """
    folder = Path(folder)
    made: list[Path] = []
    staging = _own_name(folder)
    decided = False
    try:
        made = make_folders(folder)
        finish_update(folder, error=error)
        _remove_abandoned(folder)
        staging.mkdir()
        yield staging
        names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        for name in names:
            sync_file(staging / name)
        old = [path.name for path in folder.iterdir() if replaces and replaces(path.name) and path.name not in names]
        (staging / _MANIFEST).write_text(json.dumps({"files": names, "remove": sorted(old)}), encoding="utf-8")
        sync_file(staging / _MANIFEST)
        _decide(staging, folder, error)
        decided = True
        finish_update(folder, error=error)
    except OSError as problem:
        raise disk_error(folder, problem, error) from problem
    except MlxQwen3Error as problem:
        if str(staging) in str(problem):  # it is gone: the message names the folder that was asked for
            raise type(problem)(str(problem).replace(str(staging), str(folder))) from problem
        raise
    finally:
        if (
            not decided and not staging.exists() and (folder / UPDATE_NAME).is_dir()
        ):  # interrupted just after the rename
            finish_update(folder, error=error)
        elif not decided:
            remove(staging)
            remove_empty(made)


def _own_name(folder: Path) -> Path:
    """Return the path of a folder of this process, which `_remove_abandoned` removes once the process has exited."""
    return folder / f"{UPDATE_NAME}-{os.getpid()}-{os.urandom(4).hex()}"


def _decide(staging: Path, folder: Path, error: ErrorClass) -> None:
    """Rename a complete set of files to `UPDATE_NAME`, after the update of another process that came first."""
    for _ in range(_MOST_UPDATES):
        try:
            os.rename(staging, folder / UPDATE_NAME)
            return
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            finish_update(folder, error=error)
    raise error(f"{folder} is being written by another process. Wait for it, or choose another folder.")


def finish_update(folder: str | Path, *, error: ErrorClass = CheckpointError) -> None:
    """Complete an interrupted update that was committed; do nothing if there is none.

    Raises:
        MlxQwen3Error: the class `error`; the folder cannot be written, or the update is not one of this package.
    """
    folder = Path(folder)
    update = folder / UPDATE_NAME
    if not update.is_dir():
        return
    try:
        _move_into_place(folder, update, error)
    except OSError as problem:
        try:
            _move_into_place(folder, update, error)
        except OSError:
            raise error(
                f"an interrupted save into {folder} cannot be completed: {reason_of(problem)}. "
                "Make the folder writable and try again."
            ) from problem
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            _move_into_place(folder, update, error)
        raise


def _move_into_place(folder: Path, update: Path, error: ErrorClass) -> None:
    try:
        lock = os.open(update, os.O_RDONLY)
    except FileNotFoundError:  # another process finished it
        return
    try:
        with contextlib.suppress(OSError, ImportError):  # a system without locks
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        if update.is_dir() and os.path.samestat(os.fstat(lock), update.stat()):
            _move_files(folder, update, error)
    finally:
        os.close(lock)


def _move_files(folder: Path, update: Path, error: ErrorClass) -> None:
    if not (update / _MANIFEST).is_file():  # nothing was decided here
        _discard(update)
        return
    manifest = read_json_object(update / _MANIFEST, error=error)
    names, old = manifest.get("files"), manifest.get("remove")
    for listed in (names, old):
        if not isinstance(listed, list) or not all(_is_inside(name) for name in listed):
            raise error(f"{update} is not an update of this package. Delete it.")
    for name in old or []:
        if (folder / name).is_file() or (folder / name).is_symlink():
            (folder / name).unlink(missing_ok=True)
    for name in names or []:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent.is_symlink():
            raise error(f"{target.parent} is a symbolic link, which is not written to. Delete {update}.")
        with contextlib.suppress(FileNotFoundError):  # already moved, possibly by another reader of the folder
            os.replace(update / name, target)
    _discard(update)


def _discard(update: Path) -> None:
    """Remove an update under a name of this process, so that none of the next one's files goes with it."""
    done = _own_name(update.parent)
    os.rename(update, done)
    remove(done)


def _is_inside(name: Any) -> bool:
    """Return whether a name is that of a file in a folder or in a direct subfolder of it."""
    parts = name.split("/") if isinstance(name, str) else []
    return 0 < len(parts) < 3 and all(part not in ("", ".", "..") and "\0" not in part for part in parts)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of killed writers."""
    for left in folder.glob(f"{UPDATE_NAME}-*"):
        pid = left.name.removeprefix(f"{UPDATE_NAME}-").partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            remove(left)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# a whole folder


MODEL_FILES = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "*.gguf")
"""Patterns of files by which a folder is recognized as that of a model or an adapter."""

DESKTOP_FILES = (".DS_Store", ".localized", "desktop.ini", "Thumbs.db")
"""Files that file managers write to every folder that they show."""


def check_target_free(target: Path, force: bool = False, *, error: ErrorClass = CheckpointError) -> None:
    """Raise if the target exists and `force` is false."""
    if os.path.lexists(target) and not force:
        raise error(
            f"{target} exists. Choose another target, delete it, or replace it with --force (in Python force=True)."
        )


def contains(folder: Path, path: Path) -> bool:
    """Return whether a path is a folder or lies in it, with links resolved."""
    real, other = folder.resolve(), path.resolve()
    return other == real or real in other.parents


def check_not_current(target: Path) -> None:
    """Raise `CheckpointError` if the target is or contains the current folder, which would be removed."""
    if target.is_dir() and contains(target, Path.cwd()):
        raise CheckpointError(f"{target} contains the current folder, so it is not replaced. Choose another target.")


def check_only_model(target: Path) -> None:
    """Raise `CheckpointError` for a folder with files but no model, or one that contains the current folder.

    Such a folder is not replaced even on request, because it holds other work.
    """
    check_not_current(target)
    if not target.is_dir():
        return
    try:
        held = [file for file in target.iterdir() if file.name not in DESKTOP_FILES]
    except OSError as problem:
        raise disk_error(target, problem, CheckpointError) from problem
    if held and not any(fnmatch(file.name, pattern) for file in held for pattern in MODEL_FILES):
        raise CheckpointError(
            f"{target} is a folder that holds no model, so it is not replaced. Choose another target."
        )


@contextlib.contextmanager
def replace_folder(target: str | Path, force: bool = False, *, error: ErrorClass = CheckpointError) -> Iterator[Path]:
    """Yield a new, empty folder that replaces `target` when the block ends without an error.

    An error, including Ctrl-C, removes the new folder and leaves the target unchanged. On systems that can exchange
    two folders atomically (Linux, macOS) the target is complete at any moment; elsewhere its next use
    (`recover_folder`) restores the old folder after a kill between two renames. A second process writing the same
    target raises.

    Raises:
        MlxQwen3Error: the class `error`; the target exists and `force` is off, is being written, or cannot be.
    """
    target = Path(os.path.abspath(target))
    made: list[Path] = []
    partial = target.parent / f".{target.name}.partial"
    replaced = target.parent / f".{target.name}.replaced"
    lock = -1
    try:
        made = make_folders(target.parent)
        recover_folder(target)
        check_target_free(target, force, error=error)
        if os.path.lexists(target) and not target.is_dir():
            raise error(f"{target} is a file, not a folder. Choose another target.")
        lock = _lock_new_folder(partial, target, error)
    except OSError as problem:
        remove_empty(made)
        raise disk_error(target, problem, error) from problem
    done = False
    try:
        yield partial
        if os.path.lexists(target) and not force:
            check_target_free(target, error=error)  # it may have been created meanwhile
        if not target.exists():
            os.rename(partial, target)
        elif not _exchange(partial, target):
            os.rename(target, replaced)
            try:
                os.rename(partial, target)
            except BaseException:
                os.rename(replaced, target)
                raise
        done = True
    except OSError as problem:
        raise disk_error(target, problem, error) from problem
    finally:
        remove(partial)
        if target.exists():
            remove(replaced)
        os.close(lock)
        if not done:
            remove_empty(made)


def _lock_new_folder(partial: Path, target: Path, error: ErrorClass) -> int:
    """Recreate `partial` and return a descriptor whose lock marks it as being written by this process."""
    busy = f"{target} is being written by another process. Wait for it, or choose another target."
    while True:
        with contextlib.suppress(FileExistsError):
            partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise error(busy) from None
        except (OSError, ImportError):  # a system without locks
            return descriptor
        if partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat()):
            for left in list(partial.iterdir()):  # left by a killed run
                remove(left)
            return descriptor
        os.close(descriptor)


def recover_folder(target: str | Path) -> None:
    """Restore a folder that a killed process had set aside to replace it, if it is missing."""
    target = Path(os.path.abspath(target))
    replaced = target.parent / f".{target.name}.replaced"
    if target.name and not os.path.lexists(target) and replaced.is_dir():
        with contextlib.suppress(OSError):
            os.rename(replaced, target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically. Return False if the system cannot."""
    libc = ctypes.CDLL(None)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        call = getattr(libc, "renamex_np", None)  # <sys/stdio.h>: RENAME_SWAP is 2
        return call is not None and call(names[0], names[1], ctypes.c_uint(2)) == 0
    call = getattr(libc, "renameat2", None)  # <linux/fs.h>: AT_FDCWD is -100, RENAME_EXCHANGE is 2
    return call is not None and call(-100, names[0], -100, names[1], ctypes.c_uint(2)) == 0

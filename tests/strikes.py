"""Strike at a file event of a process: fail it, interrupt it, or kill the process there.

Events are those that Python reports to audit hooks before a file is opened for writing, renamed, removed or made.
Run as a script it performs a function of this folder's modules in a process of its own.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "ctypes.call_function")
ACTIONS = ("ENOSPC", "EACCES", "interrupt", "kill")


class Striker:
    """Counts the file events below a folder and strikes at one of them."""

    def __init__(self) -> None:
        self.root, self.at, self.action, self.count = "", -1, "", 0
        self.active = False
        sys.addaudithook(self._hook)

    def arm(self, root: Path, at: int, action: str) -> None:
        self.root, self.at, self.action, self.count, self.active = str(root), at, action, 0, True

    def disarm(self) -> int:
        """Stop watching; return the number of events seen."""
        self.active = False
        return self.count

    def _hook(self, event: str, args: tuple) -> None:
        if not self.active or event not in EVENTS:
            return
        if not any(self.root in os.fsdecode(a) for a in args if isinstance(a, str | bytes | os.PathLike)):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        self.count += 1
        if self.count - 1 != self.at:
            return
        if self.action == "kill":
            os._exit(9)
        if self.action == "interrupt":
            raise KeyboardInterrupt
        raise OSError(getattr(errno, self.action), os.strerror(getattr(errno, self.action)))


_STRIKER: Striker | None = None


def striker() -> Striker:
    """The striker of this process: an audit hook cannot be removed, so there is one."""
    global _STRIKER
    _STRIKER = _STRIKER or Striker()
    return _STRIKER


def fork() -> int:
    """Fork, without the warning that newer versions of Python give where there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def strike_everywhere(
    tmp_path: Path,
    prepare: Callable[[Path], None],
    act: Callable[[Path], None],
    look: Callable[[Path], object],
    errors: tuple[type[BaseException], ...],
    actions: tuple[str, ...] = ACTIONS,
) -> dict[str, int]:
    """Strike at each event of `act(folder)`, in each way, on a folder that `prepare` made.

    `look(folder)` says what is there; after each strike it must say what it said before or after an undisturbed `act`.
    After a reported error no file may be left that neither state has. Returns the number of strikes by action.
    """

    def listing(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*")}

    hook = striker()
    root = tmp_path / "undisturbed"
    root.mkdir()
    prepare(root)
    old, old_files = look(root), listing(root)
    hook.arm(root, -1, "")
    act(root)
    events = hook.disarm()
    new, new_files = look(root), listing(root)
    assert old != new
    assert events > 2
    done = {}
    for action in actions:
        for at in range(events):
            root = tmp_path / f"{action}-{at}"
            root.mkdir()
            prepare(root)
            reported = False
            if action == "kill":
                child = fork()
                if not child:
                    hook.arm(root, at, action)
                    act(root)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 9)
            else:
                hook.arm(root, at, action)
                try:
                    act(root)
                except errors:
                    reported = True
                except KeyboardInterrupt:
                    assert action == "interrupt"
                finally:
                    hook.disarm()
            if reported:
                assert listing(root) in (old_files, new_files), f"{action} at event {at} leaves {listing(root)}"
            found = look(root)
            assert found in (old, new), f"{action} at event {at} leaves a mixture"
            done[action] = done.get(action, 0) + 1
    return done

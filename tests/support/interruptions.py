"""Strike at a file event of a process: fail it, interrupt it, or look at what a kill there would leave.

Events are those that Python reports to audit hooks before a file is opened for writing, renamed, removed or made. What
a kill at an event leaves is what is on the disk at this moment, so each event of one undisturbed run gives a copy.
"""

import errno
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "ctypes.call_function")


class Striker:
    """Counts the file events below a folder and strikes at one of them."""

    def __init__(self) -> None:
        self.root, self.at, self.action, self.count = "", -1, "", 0
        self.copies: list[Path] = []
        self.active = False
        sys.addaudithook(self._hook)

    def arm(self, root: Path, at: int = -1, action: str = "") -> None:
        self.root, self.at, self.action, self.count, self.active = str(root), at, action, 0, True
        self.copies = []

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
        if self.action == "kill":
            self.active = False
            self.copies.append(Path(f"{self.root}-{self.count}"))
            shutil.copytree(self.root, self.copies[-1], symlinks=True)
            self.active = True
        elif self.count - 1 == self.at and self.action == "interrupt":
            raise KeyboardInterrupt
        elif self.count - 1 == self.at:
            raise OSError(getattr(errno, self.action), os.strerror(getattr(errno, self.action)))


_STRIKER: Striker | None = None


def striker() -> Striker:
    """Return the striker of this process: an audit hook cannot be removed, so there is one."""
    global _STRIKER
    _STRIKER = _STRIKER or Striker()
    return _STRIKER


def fork() -> int:
    """Fork, without the warning that newer versions of Python give where there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def strike_everywhere(
    tmp_path: Path,
    prepare: Callable[[Path], None],
    act: Callable[[Path], None],
    look: Callable[[Path], object],
    errors: tuple[type[BaseException], ...],
    actions: tuple[str, ...] = ("ENOSPC", "EACCES", "interrupt"),
) -> int:
    """Strike at each event of `act(folder)`, in each way, on a folder that `prepare` made.

    `look(folder)` says what is there; after each strike it must say what it said before or after an undisturbed `act`.
    After a reported error no file may be left that neither state has.

    Returns:
        The number of events.
    """
    hook = striker()
    root = tmp_path / "undisturbed"
    root.mkdir()
    prepare(root)
    old, old_files = look(root), listing(root)
    hook.arm(root, action="kill")
    act(root)
    events, copies = hook.disarm(), hook.copies
    new, new_files = look(root), listing(root)
    assert old != new
    assert events > 2
    for number, copy in enumerate(copies):
        assert look(copy) in (old, new), f"a kill at event {number} leaves a mixture"
    for action in actions:
        for at in range(events):
            root = tmp_path / f"{action}-{at}"
            root.mkdir()
            prepare(root)
            reported = False
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
            assert look(root) in (old, new), f"{action} at event {at} leaves a mixture"
    return events

"""Inject a fault at a file event of a process: an error, an interruption, or a simulated kill.

Python reports events to audit hooks before a file is opened for writing, renamed, removed or created. A kill at an
event leaves the files as they are at this moment, so one undisturbed run gives a copy of the folder per event.
"""

import errno
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "ctypes.call_function")


class FaultInjector:
    """Counts the file events below a folder and injects a fault at one of them."""

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


_INJECTOR: FaultInjector | None = None


def fault_injector() -> FaultInjector:
    """Return the injector of this process; an audit hook cannot be removed, so there is only one."""
    global _INJECTOR
    _INJECTOR = _INJECTOR or FaultInjector()
    return _INJECTOR


def fork() -> int:
    """Fork without the warning of newer versions of Python about threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def fail_at_every_event(
    tmp_path: Path,
    prepare: Callable[[Path], None],
    act: Callable[[Path], None],
    read: Callable[[Path], object],
    errors: tuple[type[BaseException], ...],
    actions: tuple[str, ...] = ("ENOSPC", "EACCES", "interrupt"),
) -> int:
    """Inject each fault at each file event of `act(folder)`, on a folder that `prepare` has filled.

    After each fault `read(folder)` must return its result from before or after an undisturbed `act`. After a reported
    error no file may remain that exists in neither state.

    Returns:
        The number of events.
    """
    hook = fault_injector()
    root = tmp_path / "undisturbed"
    root.mkdir()
    prepare(root)
    old, old_files = read(root), listing(root)
    hook.arm(root, action="kill")
    act(root)
    events, copies = hook.disarm(), hook.copies
    new, new_files = read(root), listing(root)
    assert old != new
    assert events > 2
    for number, copy in enumerate(copies):
        assert read(copy) in (old, new), f"a kill at event {number} leaves a mixture"
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
            assert read(root) in (old, new), f"{action} at event {at} leaves a mixture"
    return events

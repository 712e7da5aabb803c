"""One lock per journal folder: two assignments at once would undo each other.

The lock is a file that holds its owner's process id and start time (``proc_pid_stat(5)``, field
22), so that one left behind by a killed process is recognised, also when the id was reused.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType

from vfiokit.errors import DeviceBusyError, JournalError

NAME = "lock"


class JournalLock:
    """Exclusive use of a journal folder, as a context manager.

    Raises :class:`DeviceBusyError` (EBUSY) while another live process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def __enter__(self) -> JournalLock:
        candidate = self._path.with_name(f"{NAME}.{os.getpid()}.{id(self):x}")
        # The lock appears by a link, with its owner already in it: nobody can meet it empty.
        with open(candidate, "x", encoding="ascii") as file:
            json.dump({"pid": os.getpid(), "start": _start_time(os.getpid())}, file)
        try:
            self._acquire(candidate)
        finally:
            candidate.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._path.unlink(missing_ok=True)

    def _acquire(self, candidate: Path) -> None:
        for _ in range(3):
            try:
                os.link(candidate, self._path)
            except FileExistsError:
                self._evict(candidate)
            else:
                return
        raise _busy(self._path, "someone else")

    def _evict(self, candidate: Path) -> None:
        """Remove a lock whose owner is dead; raise while it lives."""
        owner = _read_owner(self._path)
        if owner is None:
            return
        if _alive(owner):
            raise _busy(self._path, f"process {owner[0]}")
        # Two processes may see the same dead owner. Only one of them may remove the lock, else
        # the second would remove the first one's new lock.
        guard = self._path.with_name(f"{NAME}.evict")
        try:
            os.link(candidate, guard)
        except FileExistsError:
            raise JournalError(
                f"{guard} is in the way: another process is taking over the lock, or died doing so",
                hint="if it stays there, remove it by hand",
            ) from None
        try:
            if _read_owner(self._path) == owner:
                self._path.unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)


def _busy(path: Path, owner: str) -> DeviceBusyError:
    import errno

    return DeviceBusyError(
        "lock", str(path), errno.EBUSY, detail=f"{owner} is applying or undoing a plan"
    )


def _read_owner(path: Path) -> tuple[int, str] | None:
    """Process id and start time in a lock file; ``None`` when it has just gone."""
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        owner = json.loads(text)
        return int(owner["pid"]), str(owner["start"])
    raise JournalError(f"{path} is no lock file of this program", hint="remove it by hand")


def _alive(owner: tuple[int, str]) -> bool:
    pid, start = owner
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    now = _start_time(pid)
    return not (start and now) or start == now


def _start_time(pid: int) -> str:
    """Start of a process in clock ticks since boot; empty where ``/proc`` does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

"""One run of QEMU: start it, watch it, end it, and say what came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from vfiokit.lab.failure import GuestFailedError, GuestTimeoutError, LabError
from vfiokit.lab.program import Program
from vfiokit.lab.transfer import Receiver

_POLL_S = 0.02
_PIECE = 1 << 16
_NOISE = (
    "TCG doesn't support requested feature",
    "has no peer",
    "module ui-",
    "'romfile='",
)
"""Warnings of QEMU that mean nothing here."""

OutputCallback = Callable[[str, bytes], None]
"""Called with ``stdout``, ``stderr`` or ``console`` and what has come since the last time."""


class Follower:
    """Reads what is appended to files while somebody else writes them."""

    def __init__(
        self,
        files: Mapping[str, Path],
        tell: OutputCallback | None,
        channel: Receiver | None = None,
    ) -> None:
        self._files = dict(files)
        self._tell = tell
        self._channel = channel
        """What writes the files, where the guest cannot."""
        self._open: dict[str, IO[bytes]] = {}

    def poll(self) -> None:
        """Hand over what is new."""
        if self._channel is not None:
            self._channel.poll()
        if self._tell is None:
            return
        for name, path in self._files.items():
            if name not in self._open:
                if not path.exists():
                    continue
                self._open[name] = path.open("rb", buffering=0)
            while data := self._open[name].read(_PIECE):
                self._tell(name, data)

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()


class Ending(NamedTuple):
    """How a run of QEMU ended."""

    returncode: int
    timed_out: bool
    console: str
    complaint: str
    """What QEMU said on its standard error, noise left out."""


def run_qemu(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    timeout_s: float,
    follower: Follower,
) -> Ending:
    """Run QEMU until it ends or ``timeout_s`` is over; never leaves it running.

    Its console goes to ``folder/console``, as the arguments must say.
    """
    with (folder / "qemu.log").open("wb") as log:
        process = _start(command, environment, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout_s
        timed_out = False
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    timed_out = True
                    break
                follower.poll()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            _stop(process)
            follower.poll()
            follower.close()
    return Ending(process.returncode, timed_out, _text(folder / "console"), _complaint(folder))


def run_qemu_interactively(
    command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Ending:
    """Run QEMU with its console on this process's terminal, until the guest ends."""
    with (folder / "qemu.log").open("wb") as log:
        process = _start(command, environment, stdin=None, stdout=None, stderr=log)
        # The terminal is QEMU's: Ctrl-C is for the guest.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
            _stop(process)
    return Ending(process.returncode, False, "", _complaint(folder))


def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: IO[bytes] | None,
    stderr: IO[bytes],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            env={**os.environ, **environment},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
    except OSError as error:
        raise LabError(f"{command[0]} cannot be started: {error.strerror}") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _complaint(folder: Path) -> str:
    lines = _text(folder / "qemu.log").splitlines()
    return "\n".join(line for line in lines if not any(noise in line for noise in _NOISE))


def fail(ending: Ending, program: Program, timeout_s: float) -> NoReturn:
    """Raise the error that tells why the guest did not finish."""
    if ending.timed_out:
        raise GuestTimeoutError(
            f"the guest was stopped after {timeout_s:g} s", ending.console, hint=_timeout_hint()
        )
    what = program.explain_failure(ending.console.encode())
    if what:
        raise GuestFailedError(f"the guest could not be set up: {what}", ending.console)
    # The port that ends a guest makes QEMU exit with 1 as well, but only a finished one.
    if ending.returncode == 1 and not ending.console:
        raise LabError(f"QEMU refuses: {ending.complaint or 'without a word'}")
    if ending.returncode < 0:
        name = signal.Signals(-ending.returncode).name
        raise GuestFailedError(f"QEMU was killed by {name} {ending.complaint}", ending.console)
    panic = next((line for line in ending.console.splitlines() if "Kernel panic" in line), "")
    what = panic[panic.find("Kernel panic") :] if panic else "the guest ended without a result"
    raise GuestFailedError(f"{what} {ending.complaint}".rstrip(), ending.console)


def _timeout_hint() -> str:
    return "emulation is slow on a loaded machine: try a longer --timeout"

"""One guest, from its files on the host to what came of it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfiokit.errors import UsageError
from vfiokit.lab import guest_system
from vfiokit.lab.cpio import Archive
from vfiokit.lab.equipment import CHANNEL, Equipment, escape, find
from vfiokit.lab.guest_command import guest_environment, resolve_command
from vfiokit.lab.guest_system import Boot, Command
from vfiokit.lab.image import Image
from vfiokit.lab.qemu_arguments import build
from vfiokit.lab.transfer import Receiver
from vfiokit.lab.virtual_machine import (
    Ending,
    Follower,
    OutputCallback,
    fail,
    run_qemu,
    run_qemu_interactively,
)

if TYPE_CHECKING:
    from vfiokit.lab.laboratory import Lab

SPARE = 160 << 20
"""Bytes of memory that a guest needs besides its image, which it holds twice for a moment."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command."""

    status: int
    """Its exit status; 128 plus the signal's number when a signal ended it."""
    stdout: bytes
    stderr: bytes
    console: str
    """What the kernel, and QEMU's firmware, said on the serial console."""
    files: Mapping[str, bytes]
    """What it left in ``$VFIOKIT_LAB_OUTPUT`` and what was fetched, by relative path; empty when
    an output folder was given: they are there."""
    seconds: float
    """From the call to its end."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """The same in parts: prepare, boot, command, exit."""
    image: Mapping[str, int] = field(default_factory=dict)
    """Bytes in the guest's image by what they are for; empty when it saw the host's files."""
    left_out: Sequence[str] = ()
    """What did not fit into the image, in words."""

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "replace")


class Guest:
    """One guest and its files on the host."""

    def __init__(self, equipment: Equipment, command: Command, work: Path, started: float) -> None:
        self._equipment = equipment
        self._command = command
        self._work = work
        self._started = started
        shared = equipment.root.shared
        self._boot = Boot(
            command,
            equipment.modules(),
            equipment.command_line(),
            shared=shared,
            keep_run=any(
                place.startswith("/run/")
                for place in (command.folder, *command.argv, sys.prefix, os.path.realpath("/bin"))
            ),
        )
        self._hardware = build(equipment.blueprint, equipment.qemu, str(work))
        self.control = work / "share" / "control"
        """The lab's own files of the writable share."""
        self._output = work / "share" / "output"
        self._channel: Receiver | None = None
        if not shared:
            self._channel = Receiver(work / CHANNEL, work / "share")
        self.image: Image | None = None
        """The files that the guest sees, where it does not see the host's."""

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Create everything that QEMU opens; ``files`` go to the control folder."""
        self.control.mkdir(parents=True)
        self._output.mkdir()
        archive = Archive()
        if self._channel is None:
            for name, content in files.items():
                (self.control / name).write_bytes(content)
        else:
            self.image = self._make_image(archive, files)
        self._boot.build(archive).write(self._work / "initrd")
        for disk in self._hardware.disks:
            with open(disk.path, "wb") as file:
                file.truncate(disk.size)

    def _make_image(self, archive: Archive, files: Mapping[str, bytes]) -> Image:
        image, lab = Image(archive), self._equipment.lab
        image.add_system()
        image.add_python()
        image.add_package()
        image.add_command(self._command.argv, self._command.folder, lab.include)
        control = {f"{guest_system.CONTROL}/{name}": data for name, data in files.items()}
        image.add_job(self._boot.job(), control)
        archive.folder(guest_system.OUTPUT)
        if image.size * 2 + SPARE > lab.memory_mib << 20:
            raise UsageError(
                f"an image of {image.size >> 20} MB needs more memory than {lab.memory_mib} MiB",
                hint=f"give the guest {(image.size * 2 + SPARE >> 20) + 1} MiB with --memory",
            )
        return image

    def run(
        self, timeout_s: float, output: Path | None, on_output: OutputCallback | None
    ) -> Result:
        """Boot and collect."""
        console = f"file:{escape(self._work / 'console')}"
        command = self._equipment.qemu_command(self._hardware, self._work, console)
        follower = Follower(
            {
                "console": self._work / "console",
                "stdout": self.control / guest_system.STDOUT,
                "stderr": self.control / guest_system.STDERR,
            },
            on_output,
            self._channel,
        )
        launched, wall = time.monotonic(), time.time()
        ending = run_qemu(
            command,
            self._equipment.qemu.environment,
            self._work,
            timeout_s=timeout_s,
            follower=follower,
        )
        ended = time.monotonic()
        if output is not None:
            shutil.copytree(self._output, output, symlinks=True, dirs_exist_ok=True)
        self._check(ending, timeout_s)
        return Result(
            self._status(),
            (self.control / guest_system.STDOUT).read_bytes(),
            (self.control / guest_system.STDERR).read_bytes(),
            ending.console,
            read_files(self._output) if output is None else {},
            ended - self._started,
            self._phases(launched, wall, ended),
            dict(self.image.sizes) if self.image else {},
            tuple(self.image.left_out) if self.image else (),
        )

    def interact(self) -> int:
        """Boot with the console on this terminal."""
        command = self._equipment.qemu_command(self._hardware, self._work, "mon:stdio")
        ending = run_qemu_interactively(command, self._equipment.qemu.environment, self._work)
        if self._channel is not None:
            self._channel.poll()
        self._check(ending, 0)
        return self._status()

    def _check(self, ending: Ending, timeout_s: float) -> None:
        if ending.timed_out or not (self.control / guest_system.FINISHED).exists():
            fail(ending, self._boot.program, timeout_s)

    def _status(self) -> int:
        value = int.from_bytes((self.control / guest_system.STATUS).read_bytes(), "little")
        signal_number = value & 0x7F
        return 128 + signal_number if signal_number else value >> 8 & 0xFF

    def _phases(self, launched: float, wall: float, ended: float) -> dict[str, float]:
        """How long each part took; the guest's marks are time stamps of its files."""
        offset = launched - wall
        begun = (self.control / guest_system.STARTED).stat().st_mtime + offset
        done = (self.control / guest_system.STATUS).stat().st_mtime + offset
        return {
            "prepare": launched - self._started,
            "boot": begun - launched,
            "command": done - begun,
            "exit": ended - done,
        }


@contextmanager
def prepare(
    lab: Lab,
    argv: Sequence[str],
    *,
    folder: str | Path | None = None,
    stdin: bytes = b"",
    fetch: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    terminal: tuple[int, int] | None = None,
) -> Iterator[Guest]:
    """Everything that a guest needs, in a temporary folder that goes away afterwards.

    ``files`` go to the control folder; ``terminal`` is the command's rows and columns when it
    is to have one.
    """
    started = time.monotonic()
    equipment = find(lab)
    where = str(Path(folder or Path.cwd()).absolute())
    environment = {**guest_environment(), **lab.environment}
    command = Command(
        resolve_command(argv, where, environment.get("PATH", os.defpath)),
        where,
        {**environment, **equipment.guest_variables()},
        terminal=terminal is not None,
        window=terminal or (24, 80),
        fetch=tuple(fetch),
    )
    work = Path(tempfile.mkdtemp(prefix="vfiokit-lab-"))
    try:
        guest = Guest(equipment, command, work, started)
        guest.write_files({guest_system.STDIN: stdin, **(files or {})})
        yield guest
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_files(folder: Path) -> dict[str, bytes]:
    """Content of every regular file below ``folder`` by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }

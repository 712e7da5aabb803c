"""What the first process of a guest does, as a program of system calls in a static ELF file.

A lab guest starts with no shell, no C library and no Python of its own: mounting the host's files,
loading modules and running the command are system calls, and a program is a list of them. The 300
bytes of machine code that walk the list come from ``init.S``; everything else is data written
here. It needs no tool of the host, and costs the guest a millisecond.

Numbers: Linux ``arch/x86/entry/syscalls/syscall_64.tbl``; file format: System V ABI, ELF-64.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from vfiokit.lab.interpreter import CODE, CODE_ADDRESS, TABLE_ADDRESS

AT_FDCWD = -100
O_RDONLY, O_WRONLY, O_RDWR = 0, 1, 2
O_CREAT, O_TRUNC, O_APPEND, O_CLOEXEC = 0o100, 0o1000, 0o2000, 0o2000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_MOVE = 0x1, 0x2, 0x4, 0x2000

DEBUG_EXIT_PORT = 0xF4
"""I/O port of QEMU's isa-debug-exit."""

_STEP = struct.Struct("<7QII")
_FAILURE = re.compile(rb"init: step 0x([0-9a-f]{3}) error 0x([0-9a-f]{3})")


class Call(IntEnum):
    """System calls of x86-64 by number."""

    WRITE = 1
    OPEN = 2
    CLOSE = 3
    IOCTL = 16
    PWRITE64 = 18
    DUP2 = 33
    SOCKET = 41
    FORK = 57
    EXECVE = 59
    WAIT4 = 61
    CHDIR = 80
    MKDIR = 83
    SYMLINK = 88
    CHROOT = 161
    SETSID = 112
    MOUNT = 165
    SETHOSTNAME = 170
    SYNC = 162
    REBOOT = 169
    FINIT_MODULE = 313


class Kind(IntEnum):
    """How the interpreter takes a step; see ``init.S``."""

    MUST = 0
    MAY = 1
    FORK = 2
    WAIT = 3


@dataclass(frozen=True, slots=True)
class Scratch:
    """A place of ``size`` writable zero bytes in the program, the same one for every use."""

    name: str
    size: int


Argument: TypeAlias = int | bytes | tuple[bytes, ...] | Scratch
"""A number, a pointer to a NUL-terminated text, to an array of such, or to scratch bytes."""


@dataclass(slots=True)
class Step:
    """One system call; ``what`` says in words what it is for."""

    what: str
    call: int
    arguments: tuple[Argument, ...] = ()
    kind: Kind = Kind.MUST
    target: int = 0
    """For a fork: index of the step at which the parent goes on."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Where the standard streams of a process go: paths inside the guest."""

    stdin: str = "/dev/null"
    stdout: str = "/dev/console"
    stderr: str = "/dev/console"


@dataclass(slots=True)
class Program:
    """A growing list of steps, and the ELF file made from it."""

    steps: list[Step] = field(default_factory=list)

    def call(self, what: str, call: int, *arguments: Argument, may_fail: bool = False) -> None:
        """Append one system call."""
        kind = Kind.MAY if may_fail else Kind.MUST
        self.steps.append(Step(what, call, arguments, kind))

    def make_folder(self, path: str) -> None:
        """``mkdir``; an existing folder is fine."""
        self.call(f"mkdir {path}", Call.MKDIR, path.encode(), 0o755, may_fail=True)

    def mount(
        self,
        kind: str,
        target: str,
        data: str = "",
        *,
        source: str = "none",
        flags: int = 0,
        may_fail: bool = False,
    ) -> None:
        """``mount`` a file system of ``kind`` at ``target``, a folder made when missing."""
        self.make_folder(target)
        self.call(
            f"mount {kind} at {target}",
            Call.MOUNT,
            source.encode(),
            target.encode(),
            kind.encode(),
            flags,
            data.encode(),
            may_fail=may_fail,
        )

    def touch(self, path: str) -> None:
        """Make an empty file."""
        self.call(f"open {path}", Call.OPEN, path.encode(), O_WRONLY | O_CREAT | O_TRUNC, 0o644)
        self.call(f"close {path}", Call.CLOSE, 3)

    def load_module(self, path: str, parameters: str = "", *, may_fail: bool = False) -> None:
        """Load the uncompressed kernel module at ``path``; descriptors 0 to 2 must be in use."""
        self.call(f"open {path}", Call.OPEN, path.encode(), O_RDONLY | O_CLOEXEC)
        self.call(
            f"load module {path.rpartition('/')[2]}",
            Call.FINIT_MODULE,
            3,
            parameters.encode(),
            0,
            may_fail=may_fail,
        )
        self.call("close the module", Call.CLOSE, 3)

    def enter(self, folder: str) -> None:
        """Make ``folder`` the root, as ``switch_root`` does."""
        self.call(f"chdir {folder}", Call.CHDIR, folder.encode())
        self.call("move the root", Call.MOUNT, b".", b"/", b"", MS_MOVE, b"")
        self.call("chroot", Call.CHROOT, b".")
        self.call("chdir /", Call.CHDIR, b"/")

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: str = "/",
        streams: Streams | None = None,
        status: str = "",
        terminal: bool = False,
    ) -> None:
        """Run a program and wait for it; ``argv[0]`` is an absolute path.

        ``status`` names a file that gets the wait status, four bytes little endian. With
        ``terminal`` the process leads a session whose controlling terminal is ``streams.stdin``.
        """
        fork = Step(f"fork for {argv[0]}", Call.FORK, (), Kind.FORK)
        self.steps.append(fork)
        self._become(argv, environment, folder, streams or Streams(), terminal)
        fork.target = len(self.steps)
        result = Scratch("status", 8)
        self.steps.append(Step(f"wait for {argv[0]}", Call.WAIT4, (-1, result, 0, 0), Kind.WAIT))
        if status:
            self.call(
                f"open {status}", Call.OPEN, status.encode(), O_WRONLY | O_CREAT | O_TRUNC, 0o644
            )
            self.call(f"write {status}", Call.WRITE, 3, result, 4)
            self.call(f"close {status}", Call.CLOSE, 3)

    def _become(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        streams: Streams,
        terminal: bool,
    ) -> None:
        if terminal:
            self.call("setsid", Call.SETSID)
        for number, (path, flags) in enumerate(
            (
                (streams.stdin, O_RDWR if terminal else O_RDONLY),
                (streams.stdout, O_WRONLY | O_CREAT | O_APPEND),
                (streams.stderr, O_WRONLY | O_CREAT | O_APPEND),
            )
        ):
            self.call(f"open {path}", Call.OPEN, path.encode(), flags, 0o644)
            self.call(f"use {path} as stream {number}", Call.DUP2, 3, number)
            self.call(f"close {path} once more", Call.CLOSE, 3)
        self.call(f"chdir {folder}", Call.CHDIR, folder.encode())
        self.call(
            f"execute {argv[0]}",
            Call.EXECVE,
            argv[0].encode(),
            tuple(word.encode() for word in argv),
            tuple(f"{key}={value}".encode() for key, value in environment.items()),
        )

    def finish(self) -> None:
        """End the guest: through QEMU's debug-exit port where the kernel has ``/dev/port``, which
        spares it shutting every device down, else by a restart.
        """
        self.call("sync", Call.SYNC, may_fail=True)
        self.call("open /dev/port", Call.OPEN, b"/dev/port", O_RDWR, may_fail=True)
        self.call("exit", Call.PWRITE64, 3, b"", 1, DEBUG_EXIT_PORT, may_fail=True)
        self.call("restart", Call.REBOOT, 0xFEE1DEAD, 0x28121969, 0x01234567)

    def to_elf(self) -> bytes:
        """The program as a static ELF executable for x86-64."""
        data = _Data(TABLE_ADDRESS + len(self.steps) * _STEP.size)
        table = bytearray()
        for step in self.steps:
            values = [data.place(argument) for argument in step.arguments]
            values += [0] * (6 - len(values))
            target = TABLE_ADDRESS + step.target * _STEP.size if step.kind is Kind.FORK else 0
            table += _STEP.pack(step.call, *values, step.kind, target)
        padding = bytes(TABLE_ADDRESS - CODE_ADDRESS - len(CODE))
        return _elf(CODE + padding + bytes(table) + bytes(data.content))

    def explain_failure(self, console: bytes) -> str:
        """What the interpreter's message in ``console`` means; empty when there is none."""
        found = _FAILURE.search(console)
        if found is None:
            return ""
        import os

        index, number = int(found[1], 16), int(found[2], 16)
        what = self.steps[index].what if index < len(self.steps) else f"step {index}"
        return f"{what}: {os.strerror(number)}"


class _Data:
    """Texts and arrays behind the table; equal ones are stored once."""

    def __init__(self, address: int) -> None:
        self._address = address
        self.content = bytearray()
        self._placed: dict[Argument, int] = {}

    def place(self, argument: Argument) -> int:
        """The 64-bit value that stands for ``argument``."""
        if isinstance(argument, int):
            return argument & 0xFFFF_FFFF_FFFF_FFFF
        if argument not in self._placed:
            if isinstance(argument, tuple):
                pointers = [self.place(item) for item in argument]
                content = struct.pack(f"<{len(pointers) + 1}Q", *pointers, 0)
            elif isinstance(argument, Scratch):
                content = bytes(argument.size)
            else:
                content = argument + b"\0"
            self.content += bytes(-len(self.content) % 8)
            self._placed[argument] = self._address + len(self.content)
            self.content += content
        return self._placed[argument]


def _elf(image: bytes) -> bytes:
    """One loadable segment at ``CODE_ADDRESS`` that starts with the entry point."""
    offset = 0x1000
    identification = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)  # 64-bit, little endian, System V
    header = identification + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, CODE_ADDRESS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = len(image)
    segment = struct.pack("<IIQQQQQQ", 1, 7, offset, CODE_ADDRESS, CODE_ADDRESS, size, size, 0x1000)
    return (header + segment).ljust(offset, b"\0") + image

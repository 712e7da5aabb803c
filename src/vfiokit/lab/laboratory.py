"""The lab: run a command in a throwaway virtual machine with a real Linux kernel."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vfiokit.errors import UsageError
from vfiokit.lab import guest_system
from vfiokit.lab.guest_system import Boot, Command
from vfiokit.lab.kernel import Kernel, Need
from vfiokit.lab.preset import Iommu, IommuSetup, cpu_model, iommu_setup, parse_iommu
from vfiokit.lab.qemu import Qemu
from vfiokit.lab.qemu_arguments import Hardware, build
from vfiokit.lab.virtual_machine import (
    Ending,
    Follower,
    OutputCallback,
    fail,
    run_qemu,
    run_qemu_interactively,
)
from vfiokit.pci.blueprint import Blueprint

DEFAULT_TOPOLOGY = "rp0(edu0), rp1(nvme0)"
DEFAULT_TIMEOUT_S = 120.0
DEVICES_VARIABLE = "VFIOKIT_LAB_DEVICES"
OUTPUT_VARIABLE = "VFIOKIT_LAB_OUTPUT"

KERNEL_ARGUMENTS = (
    "console=ttyS0",
    # Results come from the command; of the kernel's messages the warnings matter.
    "quiet",
    "loglevel=5",
    "panic=-1",
    # A loaded host delays the timer interrupt that the kernel checks for at boot.
    "no_timer_check",
)

PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TERM", "VIRTUAL_ENV")
PASSED_ON_PREFIXES = ("LC_", "PYTHON", "LD_LIBRARY_PATH")
"""Variables of the caller that the guest's command gets; others are given by name."""

_NOT_SHARED = ("/proc", "/sys", "/dev")


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

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """How to build guests. Nothing runs before a method does it; every run is a new guest."""

    topology: Blueprint | str = DEFAULT_TOPOLOGY
    iommu: Iommu | str = Iommu.INTEL
    cpu: str = "zen"
    """A preset of :data:`vfiokit.lab.preset.CPUS` or a model of QEMU's."""
    kernel: str | Path = ""
    """An image; empty: ``VFIOKIT_LAB_KERNEL`` or the host's own."""
    modules: str | Path = ""
    qemu: str = ""
    memory_mib: int = 1024
    smp: int = 1
    append: Sequence[str] = ()
    """More kernel parameters."""
    needs: Sequence[str] = ()
    """Kernel options, without ``CONFIG_``, to insist on before booting."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the command, besides those of :data:`PASSED_ON`."""

    def with_changes(self, **changes: object) -> Lab:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def blueprint(self) -> Blueprint:
        """The topology as a tree."""
        given = self.topology
        return Blueprint.parse(given) if isinstance(given, str) else given

    def run(
        self,
        command: Sequence[str],
        *,
        folder: str | Path | None = None,
        stdin: bytes = b"",
        fetch: Sequence[str] = (),
        output: Path | None = None,
        on_output: OutputCallback | None = None,
    ) -> Result:
        """Boot, run ``command`` in ``folder`` (default: the current one), and end the guest.

        ``fetch`` are shell patterns of files, relative to ``folder``, to bring back; they and
        what the command writes to ``$VFIOKIT_LAB_OUTPUT`` go to the folder ``output``, or into
        :attr:`Result.files`. ``on_output`` gets the streams as they come. Raises
        :class:`~vfiokit.lab.failure.LabError` and :class:`UsageError`; a command that fails is
        no error.
        """
        with self._prepare(command, folder, stdin, fetch) as guest:
            return guest.run(self.timeout_s, output, on_output)

    def shell(self, command: Sequence[str] = (), *, folder: str | Path | None = None) -> int:
        """A shell, or ``command``, on this terminal; returns its exit status."""
        wanted = command or (_shell(),)
        window = shutil.get_terminal_size((80, 24))
        size = (window.lines, window.columns)
        with self._prepare(wanted, folder, b"", (), terminal=size) as guest:
            return guest.interact()

    def check(self) -> Plan:
        """Find QEMU and kernel and check that both can do what is asked; boots nothing."""
        blueprint = self.blueprint()
        iommu = parse_iommu(str(self.iommu))
        qemu = Qemu.find(self.qemu)
        qemu.require("virtio-9p-pci", "the host's files")
        setup = iommu_setup(iommu, qemu)
        kernel = Kernel.find(str(self.kernel), str(self.modules))
        kernel.require(self._needs(iommu, setup))
        return Plan(self, blueprint, qemu, setup, kernel)

    def _needs(self, iommu: Iommu, setup: IommuSetup) -> Iterator[Need]:
        yield from guest_system.BASE_NEEDS
        yield from guest_system.SHARE_NEEDS
        for option in setup.options:
            yield Need(option, f"--iommu {iommu}", option.lower() if setup.modules else "")
        for option in self.needs:
            name = option.removeprefix("CONFIG_")
            yield Need(name, "asked for", name.lower())

    @contextmanager
    def _prepare(
        self,
        argv: Sequence[str],
        folder: str | Path | None,
        stdin: bytes,
        fetch: Sequence[str],
        terminal: tuple[int, int] | None = None,
    ) -> Iterator[_Guest]:
        started = time.monotonic()
        plan = self.check()
        where = str(Path(folder or Path.cwd()).absolute())
        environment = {**guest_environment(), **self.environment}
        command = Command(
            resolve_command(argv, where, environment.get("PATH", os.defpath)),
            where,
            {**environment, **plan.guest_variables()},
            terminal=terminal is not None,
            window=terminal or (24, 80),
            fetch=tuple(fetch),
        )
        work = Path(tempfile.mkdtemp(prefix="vfiokit-lab-"))
        try:
            guest = _Guest(plan, command, work, started)
            guest.write_files(stdin)
            yield guest
        finally:
            shutil.rmtree(work, ignore_errors=True)


def guest_environment() -> dict[str, str]:
    """Variables of the caller that every command gets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }


def resolve_command(argv: Sequence[str], folder: str, search: str) -> tuple[str, ...]:
    """``argv`` with its first word as an absolute path, found as the guest would find it.

    Raises :class:`UsageError` when there is no such program, or the guest cannot see it.
    """
    if not argv or not argv[0]:
        raise UsageError("no command to run", hint="vfiokit lab run -- COMMAND")
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is no folder")
    name = argv[0]
    path = os.path.normpath(os.path.join(folder, name)) if "/" in name else ""
    found = shutil.which(path or name, path=search)
    if found is None:
        raise UsageError(f"{name}: there is no such program")
    found = os.path.join(folder, found)
    for place in (found, folder):
        if any(place == root or place.startswith(f"{root}/") for root in _NOT_SHARED):
            raise UsageError(
                f"{place}: the guest has a {'/'.join(place.split('/')[:2])} of its own",
                hint="put files for the guest elsewhere, such as /tmp",
            )
    return (found, *argv[1:])


def _shell() -> str:
    return os.environ.get("SHELL") or "/bin/sh"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything found and decided before a guest is built."""

    lab: Lab
    blueprint: Blueprint
    qemu: Qemu
    iommu: IommuSetup
    kernel: Kernel

    def guest_variables(self) -> dict[str, str]:
        """What the command is told about its guest."""
        places = self.blueprint.places()
        devices = " ".join(f"{name}={place.bdf}" for name, place in places.items())
        return {DEVICES_VARIABLE: devices, OUTPUT_VARIABLE: guest_system.OUTPUT}

    def command_line(self) -> tuple[str, ...]:
        """The kernel's parameters."""
        return (*KERNEL_ARGUMENTS, *self.iommu.append, *self.lab.append)

    def qemu_command(self, hardware: Hardware, work: Path, serial: str) -> tuple[str, ...]:
        """QEMU's command line for a guest whose files are in ``work``."""
        lab = self.lab
        if lab.memory_mib < 128 or lab.smp < 1:
            raise UsageError("a guest needs at least 128 MiB and 1 CPU")
        furniture = (
            *("-fsdev", f"local,id=lab-root,path=/,{_SHARING},readonly=on"),
            *("-device", f"virtio-9p-pci,fsdev=lab-root,mount_tag={guest_system.ROOT_TAG}"
              ",addr=1e.0,multifunction=on"),
            *("-fsdev", f"local,id=lab-share,path={_escape(work / 'share')},{_SHARING}"),
            *("-device", f"virtio-9p-pci,fsdev=lab-share,mount_tag={guest_system.SHARE_TAG}"
              ",addr=1e.1"),
        )  # fmt: skip
        return (
            *self.qemu.command,
            *("-machine", "q35", "-accel", "tcg", "-cpu", cpu_model(lab.cpu)),
            *("-m", str(lab.memory_mib), "-smp", str(lab.smp)),
            *("-nodefaults", "-vga", "none", "-display", "none", "-no-reboot"),
            *("-serial", serial),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-kernel", str(self.kernel.image), "-initrd", str(work / "initrd")),
            *("-append", " ".join(self.command_line())),
            *self.iommu.arguments,
            *furniture,
            *hardware.arguments,
        )


_SHARING = "security_model=none,multidevs=remap"


def _escape(path: Path) -> str:
    """A path inside an option of QEMU's, where a comma is written twice."""
    return str(path).replace(",", ",,")


class _Guest:
    """One guest and its files on the host."""

    def __init__(self, plan: Plan, command: Command, work: Path, started: float) -> None:
        self._plan = plan
        self._command = command
        self._work = work
        self._started = started
        names = module_list(plan)
        self._boot = Boot(
            command,
            plan.kernel.modules.resolve(names),
            plan.command_line(),
            keep_run=any(
                place.startswith("/run/")
                for place in (command.folder, *command.argv, sys.prefix, os.path.realpath("/bin"))
            ),
        )
        self._hardware = build(plan.blueprint, plan.qemu, str(work))
        self._control = work / "share" / "control"
        self._output = work / "share" / "output"

    def write_files(self, stdin: bytes) -> None:
        """Create everything that QEMU opens."""
        self._control.mkdir(parents=True)
        self._output.mkdir()
        (self._control / guest_system.STDIN).write_bytes(stdin)
        (self._work / "initrd").write_bytes(self._boot.build())
        for disk in self._hardware.disks:
            with open(disk.path, "wb") as file:
                file.truncate(disk.size)

    def run(
        self, timeout_s: float, output: Path | None, on_output: OutputCallback | None
    ) -> Result:
        """Boot and collect."""
        console = f"file:{_escape(self._work / 'console')}"
        command = self._plan.qemu_command(self._hardware, self._work, console)
        follower = Follower(
            {
                "console": self._work / "console",
                "stdout": self._control / guest_system.STDOUT,
                "stderr": self._control / guest_system.STDERR,
            },
            on_output,
        )
        launched, wall = time.monotonic(), time.time()
        ending = run_qemu(
            command,
            self._plan.qemu.environment,
            self._work,
            timeout_s=timeout_s,
            follower=follower,
        )
        ended = time.monotonic()
        if output is not None:
            shutil.copytree(self._output, output, dirs_exist_ok=True)
        self._check(ending, timeout_s)
        return Result(
            self._status(),
            (self._control / guest_system.STDOUT).read_bytes(),
            (self._control / guest_system.STDERR).read_bytes(),
            ending.console,
            read_files(self._output) if output is None else {},
            ended - self._started,
            self._phases(launched, wall, ended),
        )

    def interact(self) -> int:
        """Boot with the console on this terminal."""
        command = self._plan.qemu_command(self._hardware, self._work, "mon:stdio")
        ending = run_qemu_interactively(command, self._plan.qemu.environment, self._work)
        self._check(ending, 0)
        return self._status()

    def _check(self, ending: Ending, timeout_s: float) -> None:
        if ending.timed_out or not (self._control / guest_system.FINISHED).exists():
            fail(ending, self._boot.program, timeout_s)

    def _status(self) -> int:
        value = int.from_bytes((self._control / guest_system.STATUS).read_bytes(), "little")
        signal_number = value & 0x7F
        return 128 + signal_number if signal_number else value >> 8 & 0xFF

    def _phases(self, launched: float, wall: float, ended: float) -> dict[str, float]:
        """How long each part took; the guest's marks are time stamps of its files."""
        offset = launched - wall
        begun = (self._control / guest_system.STARTED).stat().st_mtime + offset
        done = (self._control / guest_system.STATUS).stat().st_mtime + offset
        return {
            "prepare": launched - self._started,
            "boot": begun - launched,
            "command": done - begun,
            "exit": ended - done,
        }


def module_list(plan: Plan) -> tuple[str, ...]:
    """Names of the modules that a guest loads if the kernel has them as modules."""
    wanted = [need.lower() for need in plan.lab.needs]
    return (*guest_system.module_names(plan.blueprint, plan.iommu.modules), *wanted)


def read_files(folder: Path) -> dict[str, bytes]:
    """Content of every regular file below ``folder`` by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }

"""The guest's system: which file systems, modules and steps stand between kernel and command.

The host's root is mounted read-only over 9p and covered by a temporary layer, so that the guest
has every file of the host at the same path and may write anywhere without the host noticing. A
second, writable share carries what must come back. A kernel without 9p gets an image of the few
files it needs instead (:mod:`vfiokit.lab.image`), and sends files back over a serial port
(:mod:`vfiokit.lab.guest_agent`).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vfiokit.lab import guest_agent
from vfiokit.lab.cpio import Archive
from vfiokit.lab.kernel import Need
from vfiokit.lab.module import Module, parameters_of
from vfiokit.lab.program import MS_NODEV, MS_NOSUID, MS_RDONLY, Call, Program, Streams
from vfiokit.pci.blueprint import Blueprint, Model

ROOT_TAG = "lab-root"
SHARE_TAG = "lab-share"
SHARE = "/run/vfiokit-lab"
"""Where the writable share is in the guest."""
CONTROL = f"{SHARE}/control"
"""The lab's own files: streams, status, results."""
OUTPUT = f"{SHARE}/output"
"""What the command leaves for the host; ``VFIOKIT_LAB_OUTPUT`` says so to it."""
STARTED = "started"
STATUS = "status"
FINISHED = "finished"
STDIN, STDOUT, STDERR = "stdin", "stdout", "stderr"

_9P = "trans=virtio,version=9p2000.L,msize=524288"
_SHELL = "/bin/sh"

BASE_NEEDS = (
    Need("BLK_DEV_INITRD", "the guest starts from an initial RAM file system"),
    Need("DEVTMPFS", "device nodes"),
    Need("TMPFS", "files written in the guest"),
    Need("SERIAL_8250_CONSOLE", "the console"),
    Need("VFIO_PCI", "VFIO is what the lab is for", "vfio_pci"),
)
"""Kernel options without which there is no lab."""

SHARE_NEEDS = (
    Need("VIRTIO_PCI", "the host's files", "virtio_pci"),
    Need("NET_9P_VIRTIO", "the host's files", "9pnet_virtio"),
    Need("9P_FS", "the host's files", "9p"),
    Need("OVERLAY_FS", "files written in the guest", "overlay"),
)
"""Kernel options for showing the host's files to the guest; without them it gets an image."""

IOMMU_WHY = "the IOMMU asked for"

_SHARE_MODULES = ("overlay", "virtio_pci", "9pnet_virtio", "9p")
_VFIO_MODULES = ("vfio", "iommufd", "vfio_iommu_type1", "vfio_pci")
_DRIVERS: dict[Model, tuple[str, ...]] = {
    Model.NVME: ("nvme",),
    Model.IGB: ("igb", "igbvf"),
    Model.E1000E: ("e1000e",),
    Model.VIRTIO_NET: ("virtio_net",),
    Model.VIRTIO_BLK: ("virtio_blk",),
}


def module_names(
    blueprint: Blueprint, iommu_modules: Iterable[str], *, shared: bool = True
) -> tuple[str, ...]:
    """Modules to load where the kernel has them as modules, in order; ``shared``: 9p's too.

    The IOMMU's comes first, or devices would be probed without it; drivers of the topology's
    devices come as a host's ``udev`` would have loaded them.
    """
    models = {endpoint.model for endpoint in blueprint.endpoints()}
    drivers = [name for model in Model if model in models for name in _DRIVERS.get(model, ())]
    share = _SHARE_MODULES if shared else ()
    return (*iommu_modules, *share, *drivers, *_VFIO_MODULES)


@dataclass(slots=True)
class Command:
    """What to run in the guest."""

    argv: Sequence[str]
    """``argv[0]`` is an absolute path."""
    folder: str
    environment: Mapping[str, str]
    terminal: bool = False
    """On the console, instead of streams that go to files."""
    window: tuple[int, int] = (24, 80)
    """Rows and columns of the terminal."""
    fetch: Sequence[str] = ()
    """Patterns of files, relative to ``folder``, to copy to the output afterwards."""


@dataclass(slots=True)
class Boot:
    """Everything that the initial RAM file system holds."""

    command: Command
    modules: Sequence[Module] = ()
    command_line: Sequence[str] = ()
    """Of the kernel: parameters in it are handed to modules too."""
    keep_run: bool = False
    """Show the host's ``/run``, because something needed lies there."""
    shared: bool = True
    """The guest sees the host's files; else the archive holds all that it sees."""
    program: Program = field(default_factory=Program)

    def build(self, archive: Archive | None = None) -> Archive:
        """The archive, with what ``archive`` holds already; :attr:`program` tells afterwards what
        its steps mean.
        """
        archive = Archive() if archive is None else archive
        archive.character_device("/dev/console", 5, 1)
        archive.folder("/proc")
        self._load_modules(archive)
        if self.shared:
            self._mount()
            self._system("/new")
            # Uncached: what the guest writes is on the host when the write returns.
            self.program.mount("9p", f"/new{SHARE}", f"{_9P},cache=none", source=SHARE_TAG)
            self.program.enter("/new")
        else:
            self._system("")
        self.program.call("name the host", Call.SETHOSTNAME, b"lab", 3)
        self._loopback()
        if self.shared or self.command.terminal:
            self._run()
        if self.shared:
            self.program.touch(f"{CONTROL}/{FINISHED}")
        else:
            self._send_back()
        self.program.finish()
        archive.file("/init", self.program.to_elf(), 0o755)
        return archive

    def job(self) -> dict[str, object]:
        """What :mod:`vfiokit.lab.guest_agent` is told, where the host's files are not shared."""
        command = self.command
        return {
            "argv": list(command.argv),
            "folder": command.folder,
            "environment": dict(command.environment),
            "fetch": list(fetch_command(command.fetch)) if command.fetch else [],
            "share": SHARE,
            "control": CONTROL,
            "output": OUTPUT,
        }

    def _load_modules(self, archive: Archive) -> None:
        for module in self.modules:
            path = f"/modules/{module.name}"
            archive.file(path, module.content())
            self.program.load_module(path, parameters_of(module.name, self.command_line))

    def _mount(self) -> None:
        program = self.program
        program.mount("9p", "/host", f"{_9P},cache=loose", source=ROOT_TAG, flags=MS_RDONLY)
        program.mount("tmpfs", "/layer", "mode=0755")
        program.make_folder("/layer/upper")
        program.make_folder("/layer/work")
        program.mount("overlay", "/new", "lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work")

    def _system(self, root: str) -> None:
        """Mount what every Linux has below ``root``."""
        program = self.program
        quiet = MS_NOSUID | MS_NODEV
        program.mount("proc", f"{root}/proc", flags=quiet)
        program.mount("sysfs", f"{root}/sys", flags=quiet)
        program.mount("devtmpfs", f"{root}/dev", "mode=0755", flags=MS_NOSUID)
        program.mount("devpts", f"{root}/dev/pts", "ptmxmode=0666,mode=0620,gid=5")
        program.mount("tmpfs", f"{root}/dev/shm", "mode=1777", flags=quiet)
        if self.shared and not self.keep_run:
            program.mount("tmpfs", f"{root}/run", "mode=0755", flags=quiet)
        for kind, target in (
            ("debugfs", "/sys/kernel/debug"),
            ("tracefs", "/sys/kernel/tracing"),
            ("configfs", "/sys/kernel/config"),
            ("cgroup2", "/sys/fs/cgroup"),
        ):
            program.mount(kind, f"{root}{target}", may_fail=True)
        for name, target in (
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ):
            program.call(
                f"symlink {name}",
                Call.SYMLINK,
                target.encode(),
                f"{root}/dev/{name}".encode(),
                may_fail=True,
            )

    def _loopback(self) -> None:
        """Bring ``lo`` up: programs talk to themselves through it."""
        up_and_running, set_flags = 0x41, 0x8914
        request = struct.pack("<16sH14s", b"lo", up_and_running, b"")
        self.program.call("socket", Call.SOCKET, 2, 2, 0, may_fail=True)
        self.program.call("bring lo up", Call.IOCTL, 3, set_flags, request, may_fail=True)
        self.program.call("close", Call.CLOSE, 3, may_fail=True)

    def _run(self) -> None:
        command = self.command
        self.program.touch(f"{CONTROL}/{STARTED}")
        if command.terminal:
            streams = Streams(*["/dev/ttyS0"] * 3)
            self._size_terminal(command.window)
        else:
            streams = Streams(*(f"{CONTROL}/{name}" for name in (STDIN, STDOUT, STDERR)))
        self.program.run(
            command.argv,
            command.environment,
            folder=command.folder,
            streams=streams,
            status=f"{CONTROL}/{STATUS}",
            terminal=command.terminal,
        )
        if command.fetch:
            self.program.run(
                fetch_command(command.fetch),
                {"PATH": command.environment.get("PATH", "/usr/bin:/bin")},
                folder=command.folder,
            )

    def _send_back(self) -> None:
        """Run the command and send back what it leaves; after one on the terminal, only that."""
        what = "send" if self.command.terminal else "run"
        self.program.run(
            (sys.executable, "-I", "-S", guest_agent.__file__, what),
            {"PATH": self.command.environment.get("PATH", "/usr/bin:/bin")},
        )

    def _size_terminal(self, window: tuple[int, int]) -> None:
        set_window_size = 0x5414
        size = struct.pack("<4H", *window, 0, 0)
        self.program.call("size the terminal", Call.IOCTL, 0, set_window_size, size, may_fail=True)


def fetch_command(patterns: Sequence[str]) -> tuple[str, ...]:
    """Copy what matches ``patterns`` to the output, with the folders above it; none is fine.

    Patterns are the shell's. A name that leads out of the folder is stored without the way there.
    """
    script = (
        "out=$1; shift; for pattern; do for name in $pattern; do "
        '[ -e "$name" ] || continue; case $name in /*|*..*) cp -RL "$name" "$out/";; '
        '*) mkdir -p "$out/$(dirname "$name")"; cp -RL "$name" "$out/$name";; esac; done; done'
    )
    return (_SHELL, "-c", script, "fetch", OUTPUT, *patterns)

"""Runs in a guest: what the kernel decides about peer-to-peer DMA, and what then happens.

For each ordered pair of drives (provider with a controller memory buffer, client), a page of the
provider's ``p2pmem`` is the target of an ``O_DIRECT`` read from the client's namespace. Return
probes tell what ``calc_map_type_and_dist`` computed and what the block layer was given.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import memory_writer
import virtual_function

from vfiokit.lab import guest_devices

DEVICES = Path("/sys/bus/pci/devices")
DRIVER = Path("/sys/bus/pci/drivers/nvme")
TRACING = Path("/sys/kernel/tracing")
PAGE = 4096
Phase: TypeAlias = dict[str, Any]
PATIENCE_S = 30.0

PROBES = (
    "r:p2p/calc calc_map_type_and_dist type=$retval:u32 distance=+0($arg3):s32",
    "r:p2p/map pci_p2pdma_map_type type=$retval:u32",
    "r:p2p/update __pci_p2pdma_update_state type=+8($arg1):u32",
)
OF_P2PDMA = (
    "ACS redirect",
    "cannot be used for peer-to-peer DMA",
    "Host bridge not in P2PDMA whitelist",
)
MAP_TYPES = ("UNKNOWN", "NONE", "NOT_SUPPORTED", "BUS_ADDR", "THRU_HOST_BRIDGE")
"""``enum pci_p2pdma_map_type`` of include/linux/pci-p2pdma.h, Linux 7.2."""
EVENT = re.compile(r" (calc|map|update): .*?type=(\d+)(?: distance=(-?\d+))?")


def write_file(path: Path, text: str) -> None:
    """One write(2); tracefs takes no seek."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


class Probes:
    """The return probes; :meth:`take` is what they saw since the last time."""

    def __init__(self) -> None:
        for line in PROBES:
            write_file(TRACING / "kprobe_events", line + "\n")
        write_file(TRACING / "events/p2p/enable", "1")
        self._clear()

    def _clear(self) -> None:
        os.close(os.open(TRACING / "trace", os.O_WRONLY | os.O_TRUNC))

    def take(self) -> list[tuple[str, int, int | None]]:
        found = EVENT.findall((TRACING / "trace").read_text())
        self._clear()
        return [
            (name, int(kind), int(distance) if distance else None) for name, kind, distance in found
        ]


class Messages:
    """The kernel's log; :meth:`take` is what drivers/pci/p2pdma.c said since the last time."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def take(self) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                record = os.read(self._fd, 8192).decode("utf-8", "replace")
                line = record.split("\n")[0].partition(";")[2]
                # Others are limited in rate, and come or not.
                if any(words in line for words in OF_P2PDMA):
                    lines.append(line)
        return lines


class Drive:
    """An NVMe function with its namespace, bound to the kernel's driver."""

    def __init__(self, name: str, bdf: str) -> None:
        self.name = name
        self.bdf = bdf
        # Virtual functions show the namespace of their physical one.
        self.number = sum(name.partition(".")[0].encode()) & 0xFF

    @property
    def folder(self) -> Path:
        return DEVICES / self.bdf

    @property
    def is_provider(self) -> bool:
        return (self.folder / "p2pmem/allocate").exists()

    def node(self) -> str:
        """The block device of the first namespace."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for controller in self.folder.glob("nvme/nvme*"):
                for disk in controller.glob("nvme*n*"):
                    if (Path("/dev") / disk.name).exists():
                        return f"/dev/{disk.name}"
            assert time.monotonic() < deadline, f"{self.name}: no namespace came"
            time.sleep(0.01)

    def pattern(self) -> bytes:
        return bytes((index * 7 + self.number) & 0xFF for index in range(PAGE))

    def fill(self) -> None:
        with direct(self.node()) as fd, mmap.mmap(-1, PAGE) as page:
            page[:] = self.pattern()
            assert os.pwritev(fd, [page], 0) == PAGE

    def rebind(self) -> None:
        """A provider keeps its answers by client; they go with its driver."""
        write_file(DRIVER / "unbind", self.bdf)
        write_file(DRIVER / "bind", self.bdf)
        self.node()


@contextlib.contextmanager
def direct(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def peer_memory(provider: Drive) -> Iterator[mmap.mmap]:
    fd = os.open(provider.folder / "p2pmem/allocate", os.O_RDWR)
    try:
        with mmap.mmap(fd, PAGE) as page:
            yield page
    finally:
        os.close(fd)


def transfer(provider: Drive, client: Drive, probes: Probes, messages: Messages) -> dict[str, Any]:
    """Read a page of the client's drive straight into the provider's memory."""
    failed = ""
    with direct(client.node()) as fd, peer_memory(provider) as page:
        page[:] = bytes(PAGE)
        probes.take()
        messages.take()
        try:
            assert os.preadv(fd, [page], 0) == PAGE
        except OSError as error:
            failed = errno.errorcode[error.errno or 0]
        same = bytes(page) == client.pattern()
    events = probes.take()
    calculated = [(kind, distance) for name, kind, distance in events if name == "calc"]
    assert len(calculated) == 1, (provider.name, client.name, events)
    given = {kind for name, kind, _ in events if name == "map"}
    assert given == {calculated[0][0]}, events
    return {
        "provider": provider.bdf,
        "client": client.bdf,
        "map_type": MAP_TYPES[calculated[0][0]],
        "distance": calculated[0][1],
        "errno": failed,
        "data": "right" if same else "wrong",
        "messages": messages.take(),
    }


def acs_offset(bdf: str) -> int:
    """Offset of the ACS capability, 0 without."""
    config = (DEVICES / bdf / "config").read_bytes()
    offset = 0x100 if len(config) > 0x100 else 0
    while offset:
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header & 0xFFFF == 0x000D:
            break
        offset = header >> 20
    return offset


def write_acs_control(bdf: str, value: int) -> None:
    fd = os.open(DEVICES / bdf / "config", os.O_RDWR)
    try:
        offset = acs_offset(bdf)
        assert offset, f"{bdf} has no ACS capability"
        os.pwrite(fd, value.to_bytes(2, "little"), offset + 6)
    finally:
        os.close(fd)


def acs_controls() -> dict[str, int]:
    found = {}
    for folder in DEVICES.iterdir():
        offset = acs_offset(folder.name)
        if offset:
            config = (folder / "config").read_bytes()
            found[folder.name] = int.from_bytes(config[offset + 6 : offset + 8], "little")
    return found


def functions() -> dict[str, dict[str, Any]]:
    """Every function: its bytes, what the kernel holds it for, and what is above it."""
    found = {}
    for folder in sorted(DEVICES.iterdir(), key=lambda each: each.name):
        group = folder / "iommu_group"
        physfn = folder / "physfn"
        config = (folder / "config").read_bytes()
        found[folder.name] = {
            "parent": folder.resolve().parent.name,
            "physfn": physfn.resolve().name if physfn.exists() else None,
            "vendor": (folder / "vendor").read_text().strip(),
            "device": (folder / "device").read_text().strip(),
            "class": (folder / "class").read_text().strip(),
            "iommu_group": int(group.resolve().name) if group.exists() else None,
            "config": config.hex(),
        }
    return found


def cpu() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    return {"vendor": fields["vendor_id"], "family": int(fields["cpu family"])}


class Guest:
    """The drives, and everything that a phase may change."""

    def __init__(self, vfs: dict[str, int], painter: str) -> None:
        self.where = {name: str(bdf) for name, bdf in guest_devices().items()}
        for name, count in vfs.items():
            for number, bdf in enumerate(virtual_function.enable(self.where[name], count)):
                self.where[f"{name}.vf{number}"] = bdf
        self.drives = [Drive(name, bdf) for name, bdf in self.where.items() if is_drive(bdf)]
        self.providers = [drive for drive in self.drives if drive.is_provider]
        self._ids = memory_writer.Ids(self.where[painter]) if painter else None
        self._initial = acs_controls()
        self._probes, self._messages = Probes(), Messages()
        for drive in self.drives:
            drive.fill()

    def change(self, phase: Phase) -> None:
        """From the state after boot, whatever was changed before; what was removed stays so."""
        if self._ids is not None:
            self._ids.restore()
        for name in phase.get("remove", []):
            (DEVICES / self.where.get(name, name) / "remove").write_text("1")
        for bdf, value in self._initial.items():
            write_acs_control(bdf, value)
        for name, value in phase.get("acs", {}).items():
            write_acs_control(self.where.get(name, name), value)
        ids = {self.where.get(name, name): value for name, value in phase.get("ids", {}).items()}
        if self._ids is not None:
            self._ids.change(ids)
        for drive in self.providers:
            drive.rebind()

    def ask(self) -> dict[str, Any]:
        before = acs_controls()
        pairs = [
            transfer(provider, client, self._probes, self._messages)
            for provider in self.providers
            for client in self.drives
        ]
        assert acs_controls() == before
        return {"cpu": cpu(), "names": self.where, "functions": functions(), "pairs": pairs}


def record(phases: Sequence[Phase], vfs: dict[str, int], painter: str) -> list[dict[str, Any]]:
    """One record for each phase.

    A phase is what is changed before its transfers: ``acs`` are values of ACS Control, ``ids`` the
    vendor (upper half) and device that the kernel is made to remember, ``remove`` functions to
    unplug; each by name of the function or its address. ``vfs`` are virtual functions to turn on,
    ``painter`` is an edu that writes ids.
    """
    guest = Guest(vfs, painter)
    records = []
    for phase in phases:
        guest.change(phase)
        records.append(guest.ask())
    return records


def is_drive(bdf: str) -> bool:
    return (DEVICES / bdf / "class").read_text().strip() == "0x010802"

"""A host for the assignment tests: a folder of files with the kernel's rules of driver binding.

The state lives in the folder alone, so that a process can die at any write and the next one sees
what it left. Rules: Linux drivers/base/bus.c, drivers/base/driver.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

PCI = "sys/devices/pci0000:00"
DEVICES = "/sys/bus/pci/devices"

NVME = "0000:00:01.0"
NIC = "0000:00:02.0"
GPU = "0000:00:03.0"
AUDIO = "0000:00:03.1"
PORT = "0000:00:04.0"

MATCHES = {
    "nvme": {NVME},
    "e1000e": {NIC},
    "nouveau": {GPU},
    "snd_hda_intel": {AUDIO},
    "pcieport": {PORT},
    "vfio-pci": set(),
    "uio_pci_generic": set(),
}
"""Which functions each driver matches by id."""

FUNCTIONS = {
    NVME: ("0x144d", "0xa808", "0x010802", 1, "nvme"),
    NIC: ("0x8086", "0x10d3", "0x020000", 2, "e1000e"),
    GPU: ("0x10de", "0x2330", "0x030000", 3, "nouveau"),
    AUDIO: ("0x10de", "0x22e0", "0x040300", 3, "snd_hda_intel"),
    PORT: ("0x8086", "0x1901", "0x060400", 3, "pcieport"),
}


class Killed(BaseException):
    """The process died here: nothing above may clean up."""


class HostTree:
    """The files of the host; writes act as the kernel's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before_write: Callable[[str, bytes], None] = lambda path, data: None
        self.after_write: Callable[[str, bytes], None] = lambda path, data: None
        self.writes: list[tuple[str, bytes]] = []

    def _at(self, path: str) -> str:
        # Every link of this host is relative and stays below the root.
        return f"{self.root}{path}"

    def read(self, path: str) -> bytes:
        with open(self._at(path), "rb") as file:
            return file.read()

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(self._at(path))

    def write(self, path: str, data: bytes) -> None:
        self.before_write(path, data)
        if path.endswith("/driver_override"):
            self._override(path, data)
        elif path.startswith("/sys/bus/pci/drivers/") and path.endswith(("/bind", "/unbind")):
            driver, action = path.split("/")[-2:]
            if not self.exists(f"/sys/bus/pci/drivers/{driver}"):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            getattr(self, f"_{action}")(driver, data.decode().strip())
        else:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        self.writes.append((path, data))
        self.after_write(path, data)

    def _override(self, path: str, data: bytes) -> None:
        name = data.decode().partition("\n")[0]
        Path(self._at(path)).write_text(f"{name or '(null)'}\n")

    def _bind(self, driver: str, bdf: str) -> None:
        folder = self._device(bdf)
        override = (folder / "driver_override").read_text().strip()
        matched = bdf in MATCHES[driver] if override == "(null)" else override == driver
        if not matched:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), bdf)
        if self.driver(bdf) is not None:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), bdf)
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")

    def _unbind(self, driver: str, bdf: str) -> None:
        folder = self._device(bdf)
        if self.driver(bdf) != driver:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), bdf)
        (folder / "driver").unlink()

    def _device(self, bdf: str) -> Path:
        folder = Path(self.root, PCI, bdf)
        if not folder.is_dir():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), bdf)
        return folder

    def driver(self, bdf: str) -> str | None:
        link = Path(self.root, PCI, bdf, "driver")
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def override(self, bdf: str) -> str | None:
        text = Path(self.root, PCI, bdf, "driver_override").read_text().strip()
        return None if text == "(null)" else text


class HostKernel:
    """A kernel of which only the tree is needed."""

    def __init__(self, root: Path) -> None:
        self.tree = HostTree(root)


def build(root: Path, bindings: dict[str, tuple[str | None, str | None]] | None = None) -> HostTree:
    """Fill ``root``; ``bindings`` gives driver and driver_override other than the usual."""
    for driver in MATCHES:
        put(root, f"sys/bus/pci/drivers/{driver}/module/refcnt", "1\n")
    devices = root / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    for bdf, (vendor, device, class_code, group, usual) in FUNCTIONS.items():
        folder = f"{PCI}/{bdf}"
        driver, override = (bindings or {}).get(bdf, (usual, None))
        bridge = class_code == "0x060400"
        config = bytearray(64)
        config[0:2] = int(vendor, 16).to_bytes(2, "little")
        config[2:4] = int(device, 16).to_bytes(2, "little")
        config[0x0E] = 1 if bridge else 0
        put(root, f"{folder}/config", bytes(config))
        for name, value in {
            "vendor": vendor,
            "device": device,
            "class": class_code,
            "revision": "0xa1",
            "subsystem_vendor": "0x10de",
            "subsystem_device": "0x157e",
            "driver_override": override or "(null)",
            "reset_method": "flr bus",
        }.items():
            put(root, f"{folder}/{name}", f"{value}\n")
        link(root, f"{folder}/iommu_group", f"../../../kernel/iommu_groups/{group}")
        put(root, f"sys/kernel/iommu_groups/{group}/type", "DMA-FQ\n")
        link(root, f"sys/bus/pci/devices/{bdf}", f"../../../devices/pci0000:00/{bdf}")
        if driver is not None:
            link(root, f"{folder}/driver", f"../../../bus/pci/drivers/{driver}")
    put(root, "proc/sys/kernel/random/boot_id", "0d0fb1f2-6a0e-4e3c-8a3e-000000000001\n")
    put(root, "etc/machine-id", "c0ffee\n")
    put(root, "proc/self/mountinfo", "")
    put(root, "proc/swaps", "Filename Type Size Used Priority\n")
    put(root, "proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\n")
    return HostTree(root)


def put(root: Path, path: str, content: str | bytes) -> None:
    """Write a file below ``root``, its folders made as needed."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)


def link(root: Path, path: str, target: str) -> None:
    """Make a link below ``root``, its folders made as needed."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def add_disk(root: Path, mount: str = "/", *, device_mapper: bool = False) -> None:
    """An NVMe disk with a partition, mounted at ``mount``, optionally through device-mapper."""
    disk = f"{PCI}/{NVME}/nvme/nvme0/nvme0n1"
    put(root, f"{PCI}/{NVME}/nvme/nvme0/model", "Samsung SSD 970 EVO Plus 2TB            \n")
    link(root, f"{disk}/device", "../../nvme0")
    put(root, f"{disk}/size", f"{2_000_398_934_016 // 512}\n")
    put(root, f"{disk}/dev", "259:0\n")
    put(root, f"{disk}/nvme0n1p1/partition", "1\n")
    put(root, f"{disk}/nvme0n1p1/dev", "259:1\n")
    number, source = "259:1", "/dev/nvme0n1p1"
    if device_mapper:
        number, source = "253:0", "/dev/mapper/vg-root"
        put(root, "sys/devices/virtual/block/dm-0/dev", "253:0\n")
        put(root, "sys/devices/virtual/block/dm-0/dm/name", "vg-root\n")
        holders = f"{disk}/nvme0n1p1/holders/dm-0"
        depth = len(holders.split("/")) - 2
        link(root, holders, "../" * depth + "devices/virtual/block/dm-0")
    if mount:
        put(root, "proc/self/mountinfo", f"1 0 {number} / {mount} rw - ext4 {source} rw\n")


def add_link(root: Path, *, default_route: bool = False, bond: bool = False) -> None:
    """An interface that is up, optionally in a bond, optionally with the default route."""
    folder = f"{PCI}/{NIC}/net/eno1"
    put(root, f"{folder}/operstate", "up\n")
    put(root, f"{folder}/flags", "0x1003\n")
    put(root, f"{folder}/address", "02:00:00:00:00:01\n")
    if bond:
        put(root, "sys/devices/virtual/net/bond0/operstate", "up\n")
        link(root, f"{folder}/master", "../../../../virtual/net/bond0")
        link(root, f"{folder}/upper_bond0", "../../../../virtual/net/bond0")
    if default_route:
        iface = "bond0" if bond else "eno1"
        put(
            root,
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
            f"{iface}\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n",
        )


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file and link below ``root/sys`` with its content."""
    return {
        str(path.relative_to(root)): (
            b"-> " + os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        )
        for path in sorted((root / "sys").rglob("*"))
        if path.is_symlink() or path.is_file()
    }

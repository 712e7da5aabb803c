"""What happens inside a guest of QEMU whose device is served over a socket."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from pathlib import Path

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.assign.undo import undo
from vfiokit.driver.edu import Edu
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.lab import guest_devices
from vfiokit.pci.address import Bdf
from vfiokit.vfio import open_device

DRIVE = "/dev/nvme0n1"
BLKRRPART = 0x125F
SECTOR = 512


def pattern(seed: int, length: int) -> bytes:
    """Bytes that differ from block to block, the same on both sides of the socket."""
    return hashlib.shake_128(b"%d" % seed).digest(length)


def partition_table(parts: list[tuple[int, int]]) -> bytes:
    """An MBR; each part has a first sector and a count (UEFI specification, 5.2.1)."""
    entries = b"".join(
        struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", first, count)
        for first, count in parts
    )
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


def wait_for(path: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def port_child(port: str = "rp0") -> Bdf:
    """The function below a root port of the topology."""
    bridge = Path(f"/sys/bus/pci/devices/{guest_devices()[port]}")
    (child,) = (path.name for path in bridge.iterdir() if (path / "vendor").exists())
    return Bdf.parse(child)


def use_drive(parts: list[tuple[int, int]], seeds: list[int]) -> dict[str, object]:
    """Partition the drive, fill the partitions, and read all back past the page cache."""
    wait_for(DRIVE)
    with open(DRIVE, "r+b", buffering=0) as drive:
        drive.write(partition_table(parts))
        os.fsync(drive.fileno())
        fcntl.ioctl(drive, BLKRRPART)
    digests = []
    for number, ((_first, count), seed) in enumerate(zip(parts, seeds, strict=True), start=1):
        name = f"{DRIVE}p{number}"
        wait_for(name)
        data = mmap.mmap(-1, count * SECTOR)
        data[:] = pattern(seed, len(data))
        file = os.open(name, os.O_RDWR | os.O_DIRECT)
        assert os.pwrite(file, data, 0) == len(data)
        os.fsync(file)
        os.close(file)
        digests.append(digest(name, len(data)))
    return {"digests": digests, **facts()}


def read_drive(counts: list[int]) -> dict[str, object]:
    """Digests of the partitions that somebody else left."""
    found = []
    for number, count in enumerate(counts, start=1):
        wait_for(f"{DRIVE}p{number}")
        found.append(digest(f"{DRIVE}p{number}", count * SECTOR))
    return {"digests": found, **facts()}


def digest(name: str, length: int) -> str:
    back = mmap.mmap(-1, length)
    file = os.open(name, os.O_RDONLY | os.O_DIRECT)
    assert os.preadv(file, [back], 0) == length
    os.close(file)
    return hashlib.sha256(back).hexdigest()


def facts() -> dict[str, object]:
    """Who drives the drive, what it says it is, and how often it interrupted."""
    bdf = port_child()
    lines = Path("/proc/interrupts").read_text().splitlines()
    mine = [line.split() for line in lines if "nvme0q" in line]
    return {
        "driver": Path(f"/sys/bus/pci/devices/{bdf}/driver").resolve().name,
        "model": Path("/sys/class/nvme/nvme0/model").read_text().strip(),
        "interrupts": {words[-1]: int(words[1]) for words in mine},
    }


def use_edu(intx: bool) -> dict[str, object]:
    """DMA both ways and an interrupt, through the guest's own vfio-pci and IOMMU."""
    kernel, bdf = LinuxKernel(), port_child()
    done = apply(kernel, plan(kernel.tree, [bdf]), Path(f"/run/journals-{intx}"))
    with open_device(kernel, bdf) as device, Edu(device, intx=intx, timeout_s=20) as edu:
        with edu.allocate(4096) as buffer:
            buffer.view[:16] = b"through a socket"
            edu.to_device(buffer.iova, 16)
            buffer.view[:16] = bytes(16)
            edu.from_device(buffer.iova, 16)
            came_back = bytes(buffer.view[:16])
        answer = {
            "alive": edu.is_alive(),
            "factorial": edu.factorial(10),
            "interrupt": edu.raise_interrupt(0x4),
            "came_back": came_back.decode(),
            "signals": signals(bdf, "vfio-intx" if intx else "vfio-msi"),
        }
    assert done.journal is not None
    undo(kernel, done.journal)
    return answer


def signals(bdf: Bdf, kind: str) -> int:
    lines = Path("/proc/interrupts").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if kind in line and f"({bdf})" in line)

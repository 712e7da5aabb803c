"""What the boot tests do inside a guest: vfiokit itself on a real kernel."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.assign.undo import undo
from vfiokit.driver.edu import Edu
from vfiokit.driver.nvme import NvmeController
from vfiokit.errors import KernelError
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.lab import guest_devices
from vfiokit.pci.address import Bdf
from vfiokit.vfio import open_device

JOURNALS = Path("/run/journals")


def driver_of(bdf: Bdf) -> str:
    link = Path(f"/sys/bus/pci/devices/{bdf}/driver")
    return link.resolve().name if link.exists() else ""


def wait_for(path: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


@contextmanager
def assigned(name: str) -> Iterator[tuple[LinuxKernel, Bdf]]:
    """The function bound to vfio-pci by a plan, and given back by undoing it."""
    kernel = LinuxKernel()
    bdf = guest_devices()[name]
    done = apply(kernel, plan(kernel.tree, [bdf]), JOURNALS)
    assert driver_of(bdf) == "vfio-pci"
    yield kernel, bdf
    assert done.journal is not None
    undo(kernel, done.journal)


def edu_dma_with_msi(backend: str, name: str = "edu0") -> dict[str, object]:
    with (
        assigned(name) as (kernel, bdf),
        open_device(kernel, bdf, backend=backend) as device,
        Edu(device) as edu,
    ):
        with edu.allocate(4096) as buffer:
            buffer.view[:16] = b"through an IOMMU"
            edu.to_device(buffer.iova, 16)
            buffer.view[:16] = bytes(16)
            edu.from_device(buffer.iova, 16)
            came_back = bytes(buffer.view[:16])
            iova = buffer.iova
        answer = {
            "alive": edu.is_alive(),
            "factorial": edu.factorial(10),
            "interrupt": edu.raise_interrupt(0x4),
            "msi": device.msi.count,
            "came_back": came_back.decode(),
            "iova": iova,
        }
    return {**answer, "driver_afterwards": driver_of(bdf)}


def nvme_write_and_read(backend: str, name: str, length: int) -> dict[str, object]:
    wait_for("/dev/nvme0n1")
    data = b"".join(
        hashlib.sha256(f"{backend}{number}".encode()).digest() for number in range(length // 32)
    )
    with (
        assigned(name) as (kernel, bdf),
        open_device(kernel, bdf, backend=backend) as device,
        NvmeController(device) as controller,
    ):
        space = controller.namespace(1)
        space.write_bytes(0, data)
        read = space.read_bytes(0, length // space.block_size)
        signals = msix_signals(bdf)
    wait_for("/dev/nvme0n1")
    # The kernel's own driver is the witness of what the drive holds.
    with open("/dev/nvme0n1", "rb") as drive:
        witnessed = drive.read(length)
    return {
        "same": read == data,
        "witnessed": witnessed == data,
        "msix_signals": signals,
        "driver_afterwards": driver_of(bdf),
    }


def msix_signals(bdf: Bdf) -> list[int]:
    """How often the kernel signalled each MSI-X vector of a function to its user's eventfd."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    mine = [line.split() for line in lines if "vfio-msix" in line and f"({bdf})" in line]
    cpus = os.cpu_count() or 1
    return [sum(map(int, words[1 : 1 + cpus])) for words in mine]


def dma_to_unmapped_iova_is_refused(backend: str, name: str = "edu0") -> dict[str, object]:
    with (
        assigned(name) as (kernel, bdf),
        open_device(kernel, bdf, backend=backend) as device,
        Edu(device) as edu,
        edu.allocate(4096) as buffer,
    ):
        buffer.view[:8] = b"original"
        edu.to_device(buffer.iova, 8)
        edu.from_device(buffer.iova + 0x10000, 8)  # nothing is mapped there
        edu.from_device(buffer.iova, 8)
        held = bytes(buffer.view[:8])
    return {"held": held.decode()}


def map_errors(backend: str, name: str = "edu0") -> dict[str, int]:
    found: dict[str, int] = {}
    with (
        assigned(name) as (kernel, bdf),
        open_device(kernel, bdf, backend=backend) as device,
    ):
        memory = kernel.allocate(0x2000)
        space = device.address_space

        def attempt(what: str, iova: int, length: int) -> None:
            try:
                space.map(memory.vaddr, length, iova=iova)
            except KernelError as error:
                found[what] = error.errno or 0
            else:
                found[what] = 0

        attempt("first", 0x100000, 0x1000)
        attempt("twice", 0x100000, 0x1000)
        attempt("unaligned", 0x200800, 0x1000)
        attempt("msi window", 0xFEE00000, 0x1000)
    memory.close()
    return found


def addresses() -> dict[str, list[str]]:
    """Which class of device the kernel found where the topology says there is one."""
    found = {}
    for name, bdf in guest_devices().items():
        folder = Path(f"/sys/bus/pci/devices/{bdf}")
        found[name] = [
            (folder / field).read_text().strip() if (folder / field).exists() else "missing"
            for field in ("vendor", "device")
        ]
    return found


def acs_capability(name: str) -> bool:
    """Whether the function has the ACS extended capability, by walking its config space."""
    config = Path(f"/sys/bus/pci/devices/{guest_devices()[name]}/config").read_bytes()
    offset = 0x100
    while offset and offset + 4 <= len(config):
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header & 0xFFFF == 0x000D:
            return True
        offset = header >> 20
    return False


def groups() -> dict[str, int]:
    found = {}
    for name, bdf in guest_devices().items():
        link = Path(f"/sys/bus/pci/devices/{bdf}/iommu_group")
        if link.exists():
            found[name] = int(link.resolve().name)
    return found


def virtual_functions_move_into_vfio(name: str, count: int) -> dict[str, object]:
    """Enable virtual functions and open one: its ids, and who shares a group with it."""
    kernel = LinuxKernel()
    folder = Path(f"/sys/bus/pci/devices/{guest_devices()[name]}")
    (folder / "sriov_drivers_autoprobe").write_text("0")
    (folder / "sriov_numvfs").write_text(str(count))
    links = [folder / f"virtfn{number}" for number in range(count)]
    bdf = Bdf.parse(links[0].resolve().name)
    done = apply(kernel, plan(kernel.tree, [bdf]), JOURNALS)
    with open_device(kernel, bdf) as device:
        ids = [device.config.read(at, 2) for at in (0, 2)]
        regions = [device.region(index).size for index in (0, 3)]
    assert done.journal is not None
    undo(kernel, done.journal)
    return {
        "groups": len({(link / "iommu_group").resolve() for link in [folder, *links]}),
        # A virtual function's own registers read as ones; vfio-pci fills in what they stand for.
        "ids": [f"{word:04x}" for word in ids],
        "regions": regions,
    }


def total_vfs(name: str) -> int:
    return int(Path(f"/sys/bus/pci/devices/{guest_devices()[name]}/sriov_totalvfs").read_text())

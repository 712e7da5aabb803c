"""QEMU as a client: the devices of this package in a virtual machine with a real Linux kernel."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import qemu_scenarios as scenarios

from vfiokit.lab import Lab, Scenario
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import MemoryStore, NvmeFunction
from vfiokit.machine.function import Function
from vfiokit.pci.address import Bdf
from vfiokit.vfio_user.function import FunctionDevice
from vfiokit.vfio_user.listen import Listener, bind
from vfiokit.vfio_user.server import Server

pytestmark = pytest.mark.slow

MIB = 1 << 20
BDF = Bdf.parse("0000:00:00.0")
PARTS = [(2048, 8192), (10240, 4096)]
SEEDS = [1, 2]
MEMORY = {
    "shared": [
        *("-object", "memory-backend-memfd,id=m0,size=1024M,share=on"),
        *("-machine", "memory-backend=m0"),
    ],
    "by message": [],
    "private": [
        *("-object", "memory-backend-memfd,id=m0,size=1024M,share=off"),
        *("-machine", "memory-backend=m0"),
    ],
}
WARNINGS = {"shared": [], "by message": ["gave no file"], "private": ["is private to it"]}


@contextmanager
def served(function: Function, folder: Path) -> Iterator[str]:
    """The function at a socket, one client after the other."""
    path = str(folder / "device.sock")
    listener = Listener(Server(FunctionDevice(function)), bind(path))
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        yield path
    finally:
        listener.stop()
        thread.join(10)
    assert not thread.is_alive()


def machine(lab: Lab, path: str, memory: str, iommu: str = "none") -> Lab:
    """A lab whose root port has the device of the socket below it."""
    device = {
        "driver": "vfio-user-pci",
        "bus": "dev-rp0",
        "socket": {"type": "unix", "path": path},
    }
    arguments = (*MEMORY[memory], "-device", json.dumps(device))
    return lab.with_changes(topology="rp0", iommu=iommu, qemu_arguments=arguments)


@pytest.mark.parametrize("other", ["by message", "private"])
def test_the_guest_kernel_uses_the_nvme_as_a_disk(
    newer_lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    """The first guest shares its memory; the second, which finds what the first wrote, does not."""
    store = MemoryStore(64 * MIB)
    with served(NvmeFunction.synthetic(BDF, backing=store), tmp_path) as path:
        sharing, private = (machine(newer_lab, path, memory) for memory in ("shared", other))
        wrote = sharing.run_python(scenarios.use_drive, PARTS, SEEDS)
        check_disk(wrote, store, SEEDS)
        check_warnings(caplog, "shared")
        counts = [count for _first, count in PARTS]
        found, overwrote = private.run_batch(
            [
                Scenario(scenarios.read_drive, (counts,)),
                Scenario(scenarios.use_drive, (PARTS, SEEDS[::-1])),
            ]
        )
        assert found.require()["digests"] == wrote["digests"]
        check_disk(overwrote.require(), store, SEEDS[::-1])
        check_warnings(caplog, other)


def check_warnings(caplog: pytest.LogCaptureFixture, memory: str) -> None:
    """What the server warned of since the last time."""
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    assert len(said) == len(WARNINGS[memory])
    for words, line in zip(WARNINGS[memory], said, strict=True):
        assert words in line
        assert "share=on" in line


def check_disk(found: dict[str, Any], store: MemoryStore, seeds: list[int]) -> None:
    """What a guest saw, and what the blocks hold on this side of the socket."""
    assert (found["driver"], found["model"]) == ("nvme", "vfiokit NVMe")
    assert min(found["interrupts"].values()) > 0, "no vector came through an eventfd"
    assert bytes(store.read(0, 512)) == scenarios.partition_table(PARTS)
    for seed, (first, count), digest in zip(seeds, PARTS, found["digests"], strict=True):
        data = scenarios.pattern(seed, count * scenarios.SECTOR)
        assert digest == hashlib.sha256(data).hexdigest()
        assert bytes(store.read(first * scenarios.SECTOR, len(data))) == data


@pytest.mark.parametrize("memory", MEMORY)
def test_the_guest_drives_edu_with_its_own_vfio(
    newer_lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture, memory: str
) -> None:
    with served(EduFunction(BDF), tmp_path) as path:
        lab = machine(newer_lab, path, memory, iommu="intel")
        by_message, by_pin = lab.run_batch(
            [Scenario(scenarios.use_edu, (False,)), Scenario(scenarios.use_edu, (True,))]
        )
    check_warnings(caplog, memory)
    for outcome in (by_message, by_pin):
        assert outcome.require() == {
            "alive": True,
            "factorial": 3628800,
            "interrupt": 4,
            "came_back": "through a socket",
            "signals": 4,
        }

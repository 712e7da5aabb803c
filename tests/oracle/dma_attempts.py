"""DMA that is allowed, and DMA that is not: the same attempts on any kernel.

Two edu devices, each in a group and an address space of its own. What is told of an attempt is
what memory and device held afterwards, and what the IOMMU reported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.driver.edu import Edu
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.kernel.port import Kernel
from vfiokit.lab import guest_devices
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device, open_device

TOPOLOGY = "rp0(edu:a), rp1(edu:b)"
PAGE = 4096
BUFFER = 0x100000
"""IOVA at which each attempt finds memory."""
FREE = 0x200000
"""IOVA at which there is none."""
OLD, NEW = b"original", b"changed!"
WIDTH = len(OLD)

_DMA_RUN, _DMA_TO_RAM = 0x1, 0x2
_BUFFER_OFFSET = 0x40000

Faults: TypeAlias = Callable[[], list[str]]
"""What the IOMMU reported since the last call, in the words of the kernel's log."""


class Bench:
    """Both devices, open and driven."""

    def __init__(self, kernel: Kernel, addresses: Mapping[str, Bdf], backend: str) -> None:
        self._stack = ExitStack()
        self.devices: dict[str, Device] = {}
        self.edus: dict[str, Edu] = {}
        for name, bdf in addresses.items():
            device = self._stack.enter_context(open_device(kernel, bdf, backend=backend))
            self.devices[name] = device
            self.edus[name] = self._stack.enter_context(Edu(device))
        self.space = self.devices["a"].address_space

    def close(self) -> None:
        self._stack.close()

    def memory(self, name: str = "a", iova: int = BUFFER, **access: bool) -> Any:
        """A page at ``iova`` of the device's address space, with the old text in it."""
        buffer = self.devices[name].address_space.allocate(PAGE, iova=iova, **access)
        buffer.view[:] = OLD * (PAGE // WIDTH)
        return buffer

    def write(self, iova: int, count: int = WIDTH) -> None:
        """The device writes the new text to ``iova``."""
        self._fill(NEW * 8)
        self._copy(_BUFFER_OFFSET, iova, count, _DMA_TO_RAM)

    def read(self, iova: int, count: int = WIDTH) -> str:
        """The device reads from ``iova``; what its buffer holds then."""
        self._fill(NEW * 8)
        self._copy(iova, _BUFFER_OFFSET, count, 0)
        with self.space.allocate(PAGE, iova=FREE + 0x100000) as shown:
            self._copy(_BUFFER_OFFSET, shown.iova, count, _DMA_TO_RAM)
            return bytes(shown.view[:count]).decode("ascii", "backslashreplace")

    def _fill(self, text: bytes) -> None:
        with self.space.allocate(PAGE, iova=FREE + 0x100000) as source:
            source.view[: len(text)] = text
            self._copy(source.iova, _BUFFER_OFFSET, len(text), 0)

    def _copy(self, source: int, destination: int, count: int, direction: int) -> None:
        """The driver's own way checks the addresses, which is not wanted here."""
        registers = self.edus["a"].registers
        registers.DMA_SOURCE = source
        registers.DMA_DESTINATION = destination
        registers.DMA_COUNT = count
        registers.DMA_COMMAND = _DMA_RUN | direction
        deadline = time.monotonic() + 10
        while registers.DMA_COMMAND & _DMA_RUN:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def _held(buffer: Any, offset: int = 0, count: int = WIDTH) -> str:
    return bytes(buffer.view[offset : offset + count]).decode()


# -- attempts


def write_where_memory_is_mapped(bench: Bench) -> Any:
    with bench.memory() as buffer:
        bench.write(BUFFER + 16)
        return _held(buffer), _held(buffer, 16)


def read_where_memory_is_mapped(bench: Bench) -> Any:
    with bench.memory():
        return bench.read(BUFFER)


def write_where_nothing_is_mapped(bench: Bench) -> Any:
    with bench.memory() as buffer:
        bench.write(FREE)
        return _held(buffer)


def read_where_nothing_is_mapped(bench: Bench) -> Any:
    with bench.memory():
        return bench.read(FREE)


def write_inside_a_page_where_nothing_is_mapped(bench: Bench) -> Any:
    bench.write(FREE + 0x128)


def write_to_memory_mapped_for_reading(bench: Bench) -> Any:
    with bench.memory(write=False) as buffer:
        bench.write(BUFFER)
        return _held(buffer), bench.read(BUFFER)


def read_of_memory_mapped_for_writing(bench: Bench) -> Any:
    with bench.memory(read=False) as buffer:
        bench.write(BUFFER)
        return _held(buffer), bench.read(BUFFER)


def write_across_the_end_of_a_mapping(bench: Bench) -> Any:
    with bench.memory() as buffer:
        bench.write(BUFFER + PAGE - WIDTH, 2 * WIDTH)
        return _held(buffer, PAGE - WIDTH)


def read_across_the_end_of_a_mapping(bench: Bench) -> Any:
    with bench.memory():
        return bench.read(BUFFER + PAGE - WIDTH, 2 * WIDTH)


def write_across_two_mappings_of_separate_memory(bench: Bench) -> Any:
    with bench.memory() as first, bench.memory(iova=BUFFER + PAGE) as second:
        bench.write(BUFFER + PAGE - WIDTH, 2 * WIDTH)
        return _held(first, PAGE - WIDTH), _held(second)


def write_to_memory_of_another_device(bench: Bench) -> Any:
    with bench.memory("b", iova=FREE) as others:
        bench.write(FREE)
        return _held(others)


def write_where_both_devices_have_memory(bench: Bench) -> Any:
    with bench.memory() as own, bench.memory("b") as others:
        bench.write(BUFFER)
        return _held(own), _held(others)


def write_to_a_mapping_that_was_taken_away(bench: Bench) -> Any:
    with bench.memory() as kept:
        gone = bench.memory(iova=BUFFER + PAGE)
        bench.write(BUFFER + PAGE)
        gone.close()
        bench.write(BUFFER + PAGE)
        return _held(kept)


def write_to_a_mapping_that_became_writable(bench: Bench) -> Any:
    bench.memory(write=False).close()
    with bench.memory() as buffer:
        bench.write(BUFFER)
        return _held(buffer)


def write_with_bus_mastering_off(bench: Bench) -> Any:
    with bench.memory() as buffer:
        bench.devices["a"].set_bus_master(False)
        bench.write(BUFFER)
        bench.devices["a"].set_bus_master(True)
        return _held(buffer)


def write_beyond_the_address_bits_of_the_device(bench: Bench) -> Any:
    with bench.memory() as buffer, bench.memory(iova=(1 << 28) + BUFFER) as beyond:
        bench.write((1 << 28) + BUFFER)
        return _held(buffer), _held(beyond)


ATTEMPTS: tuple[Callable[[Bench], Any], ...] = (
    write_where_memory_is_mapped,
    read_where_memory_is_mapped,
    write_where_nothing_is_mapped,
    read_where_nothing_is_mapped,
    write_inside_a_page_where_nothing_is_mapped,
    write_to_memory_mapped_for_reading,
    read_of_memory_mapped_for_writing,
    write_across_the_end_of_a_mapping,
    read_across_the_end_of_a_mapping,
    write_across_two_mappings_of_separate_memory,
    write_to_memory_of_another_device,
    write_where_both_devices_have_memory,
    write_to_a_mapping_that_was_taken_away,
    write_to_a_mapping_that_became_writable,
    write_with_bus_mastering_off,
    write_beyond_the_address_bits_of_the_device,
)


def attempt_all(
    kernel: Kernel, addresses: Mapping[str, Bdf], journals: Path, backend: str, faults: Faults
) -> dict[str, Any]:
    """What came of every attempt, by its name, as JSON has it."""
    apply(kernel, plan(kernel.tree, list(addresses.values())), journals)
    outcomes = {}
    for attempt in ATTEMPTS:
        bench = Bench(kernel, addresses, backend)
        faults()
        try:
            held = attempt(bench)
        finally:
            bench.close()
        told = list(held) if isinstance(held, tuple) else held
        outcomes[attempt.__name__] = {"held": told, "faults": faults()}
    return outcomes


# -- in the guest


class GuestFaults:
    """The IOMMU's lines of the kernel's log."""

    PAUSE_S = 5.1
    """DEFAULT_RATELIMIT_INTERVAL of include/linux/ratelimit_types.h."""
    FAULTS = 3
    """In one interval ten lines may be asked for, and ``dmar_fault`` asks three times a fault."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._said = 0

    def __call__(self) -> list[str]:
        time.sleep(0.02)
        lines: list[str] = []
        with suppress(BlockingIOError):
            while True:
                line = os.read(self._fd, 8192).decode().split("\n")[0].partition(";")[2]
                if line.startswith("DMAR: [DMA"):
                    lines.append(line)
        self._said += len(lines)
        if self._said >= self.FAULTS:
            time.sleep(self.PAUSE_S)
            self._said = 0
        return lines


def attempt_all_on_this_kernel(backend: str) -> dict[str, Any]:
    addresses = {name: guest_devices()[name] for name in ("a", "b")}
    journals = Path("/run/journals")
    return attempt_all(LinuxKernel(), addresses, journals, backend, GuestFaults())

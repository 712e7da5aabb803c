"""Runs in a guest: make the kernel remember other ids for a function.

P2PDMA approves host bridges by the vendor and device that ``struct pci_dev`` holds, read once when
the bus was scanned. An emulator has few host bridges, so the ids are written into that structure:
by DMA of an edu device, which an IOMMU that is off or passes through does not stop. Where the
structure is, a probe on ``pci_user_read_config_byte`` tells. Needs ``nokaslr``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
TRACING = Path("/sys/kernel/tracing")
DIRECT_MAP = 0xFFFF_8880_0000_0000
"""Documentation/arch/x86/x86_64/mm.rst: all physical memory, without randomisation."""
PAGE = 4096
OFFSETS = range(32, 96, 2)
"""Where the vendor may be in the structure; the device follows it."""

_BUFFER = 0x40000
_SOURCE, _DESTINATION, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_RUN, _TO_RAM = 0x1, 0x2


class _Edu:
    """Just enough of the device to copy four bytes from memory to memory."""

    def __init__(self, bdf: str) -> None:
        folder = DEVICES / bdf
        (folder / "enable").write_text("1")
        fd = os.open(folder / "config", os.O_RDWR)
        os.pwrite(fd, bytes([os.pread(fd, 1, 4)[0] | 0x6]), 4)
        os.close(fd)
        fd = os.open(folder / "resource0", os.O_RDWR)
        self._registers = mmap.mmap(fd, PAGE)
        os.close(fd)
        self._page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE)
        self._page[:4] = bytes(4)
        vaddr = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mlock(ctypes.c_void_p(vaddr), ctypes.c_size_t(PAGE)) == 0
        fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        (entry,) = struct.unpack("<Q", os.pread(fd, 8, vaddr // PAGE * 8))
        os.close(fd)
        self._page_hpa = (entry & ((1 << 55) - 1)) * PAGE
        assert self._page_hpa

    def write(self, hpa: int, data: bytes) -> None:
        self._page[: len(data)] = data
        self._copy(self._page_hpa, _BUFFER, len(data), 0)
        self._copy(_BUFFER, hpa, len(data), _TO_RAM)

    def _copy(self, source: int, destination: int, count: int, direction: int) -> None:
        registers = memoryview(self._registers).cast("Q")
        registers[_SOURCE // 8] = source
        registers[_DESTINATION // 8] = destination
        registers[_COUNT // 8] = count
        registers[_COMMAND // 8] = _RUN | direction
        deadline = time.monotonic() + 10
        while registers[_COMMAND // 8] & _RUN:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        registers.release()


class Ids:
    """Vendor and device of functions, in the kernel's memory."""

    def __init__(self, edu: str) -> None:
        self._edu = _Edu(edu)
        self._places: dict[str, int] = {}
        self._changed: dict[str, int] = {}

    def restore(self) -> None:
        """Give every function its own ids back."""
        for bdf, value in self._changed.items():
            self._write(bdf, value)
        self._changed.clear()

    def change(self, wanted: Mapping[str, int]) -> None:
        """Give the functions at these addresses other ids."""
        self._changed.update({bdf: _ids(bdf) for bdf in wanted})
        for bdf, value in wanted.items():
            self._write(bdf, value)

    def _write(self, bdf: str, value: int) -> None:
        if bdf not in self._places:
            self._places[bdf] = _locate(bdf)
        self._edu.write(self._places[bdf], struct.pack("<HH", value >> 16, value & 0xFFFF))
        assert _ids(bdf) == value, f"{bdf} kept its ids"


def _ids(bdf: str) -> int:
    vendor, device = (int((DEVICES / bdf / name).read_text(), 16) for name in ("vendor", "device"))
    return vendor << 16 | device


def _append(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, text.encode())
    os.close(fd)


def _locate(bdf: str) -> int:
    """Physical address of the vendor in the function's ``struct pci_dev``."""
    fields = " ".join(f"at{offset}=+{offset}($arg1):x32" for offset in OFFSETS)
    _append(TRACING / "kprobe_events", f"p:ids/read pci_user_read_config_byte dev=$arg1 {fields}\n")
    _append(TRACING / "events/ids/read/enable", "1")
    fd = os.open(DEVICES / bdf / "config", os.O_RDONLY)
    os.pread(fd, 1, 0)
    os.close(fd)
    line = next(line for line in (TRACING / "trace").read_text().splitlines() if " read: " in line)
    _append(TRACING / "events/ids/read/enable", "0")
    _append(TRACING / "kprobe_events", "-:ids/read\n")
    os.close(os.open(TRACING / "trace", os.O_WRONLY | os.O_TRUNC))
    found = {name: int(value, 16) for name, value in re.findall(r"(\w+)=0x([0-9a-f]+)", line)}
    value = _ids(bdf)
    packed = (value & 0xFFFF) << 16 | value >> 16
    offset = next(offset for offset in OFFSETS if found[f"at{offset}"] == packed)
    vaddr = found["dev"] + offset
    assert vaddr > DIRECT_MAP
    return vaddr - DIRECT_MAP

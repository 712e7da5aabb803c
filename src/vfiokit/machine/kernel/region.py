"""Regions of an opened function: information, reads and writes, mappings.

Source: Linux ``vfio_pci_core.c`` (``vfio_pci_ioctl_get_region_info``, ``vfio_pci_core_mmap``),
``vfio_pci_rdwr.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from vfiokit.abi import vfio as abi
from vfiokit.machine.clock import Clock
from vfiokit.machine.kernel.argument import Argument, append_chain, fetch, store
from vfiokit.machine.kernel.config_space import VirtualConfig
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import IORESOURCE_MEM, PciDevice
from vfiokit.machine.kernel.process import PAGE_SIZE, AddressSpace
from vfiokit.machine.kernel.width_access import WidthAccess

BARS = 6
ROM, CONFIG, VGA, COUNT = 6, 7, 8, 9

_SHIFT = abi.VFIO_PCI_OFFSET_SHIFT
_READ_WRITE = abi.VFIO_REGION_INFO_FLAG_READ | abi.VFIO_REGION_INFO_FLAG_WRITE


class OpenState(Protocol):
    """What an opened function knows that its regions depend on."""

    @property
    def config(self) -> VirtualConfig:
        """The emulated configuration space."""
        ...

    @property
    def msix(self) -> tuple[int, int, int] | None:
        """``(bar, offset, size)`` of the MSI-X table."""
        ...

    @property
    def memory_accessible(self) -> bool:
        """Whether memory BARs may be accessed: decoding enabled by the user, and in D0 to D2."""
        ...


class Regions:
    """The regions of one opened function."""

    def __init__(
        self, device: PciDevice, state: OpenState, clock: Clock, process: AddressSpace
    ) -> None:
        self._device = device
        self._state = state
        self._clock = clock
        self._process = process

    # -- information --------------------------------------------------------------------------

    def get_info(self, argument: Argument) -> int:
        """``VFIO_DEVICE_GET_REGION_INFO``."""
        kind = abi.vfio_region_info
        info, view = fetch(kind, argument)
        index, asked = info.index, info.argsz
        if index >= COUNT or index == VGA:
            raise failure(errno.EINVAL, f"no region {index}")
        chain: list[bytes] = []
        info.flags = info.size = 0
        info.offset = index << _SHIFT
        if index == CONFIG:
            info.size, info.flags = self._device.config_size, _READ_WRITE
        elif index < BARS:
            info.size = self._device.resource(index).size
            info.flags = _READ_WRITE if info.size else 0
            if self.can_map(index):
                info.flags |= abi.VFIO_REGION_INFO_FLAG_MMAP
                if self._state.msix is not None and self._state.msix[0] == index:
                    head = abi.vfio_info_cap_header(
                        id=abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, version=1
                    )
                    chain.append(bytes(head.pack()))
        # The expansion ROM of a modelled function cannot be read, so its size is 0, as the
        # kernel answers for a ROM without a valid image.
        if chain:
            info.flags |= abi.VFIO_REGION_INFO_FLAG_CAPS
            info.cap_offset, info.argsz = append_chain(chain, view, asked, kind.SIZE)
        store(info, view)
        return 0

    def can_map(self, index: int) -> bool:
        """Whether a BAR can be mapped: memory, and nobody else's in its last page."""
        resource = self._device.resource(index)
        if not resource.size or not resource.flags & IORESOURCE_MEM:
            return False
        return resource.size >= PAGE_SIZE or not resource.start % PAGE_SIZE

    # -- read and write -----------------------------------------------------------------------

    def pread(self, length: int, offset: int) -> bytes:
        """``pread(2)`` at a file offset."""
        index, position = self._split(offset)
        if not length:
            return b""
        if index == CONFIG:
            return self._state.config.read(position, length)
        length = self._clip(index, position, length)
        taken = bytearray()
        for at, width in self._steps(index, position, length):
            if width:
                value = self._device.load(index, at, width)
                taken += value.to_bytes(width, "little")
            else:
                taken += b"\xff"
        return bytes(taken)

    def pwrite(self, data: bytes, offset: int) -> int:
        """``pwrite(2)`` at a file offset; returns the bytes written."""
        index, position = self._split(offset)
        if not data:
            return 0
        if index == CONFIG:
            self._state.config.write(position, data)
            return len(data)
        if index == ROM:
            raise failure(errno.EINVAL, "the expansion ROM cannot be written")
        length = self._clip(index, position, len(data))
        for at, width in self._steps(index, position, length):
            if width:
                start = at - position
                value = int.from_bytes(data[start : start + width], "little")
                self._device.store(index, at, width, value)
        return length

    def _split(self, offset: int) -> tuple[int, int]:
        index, position = offset >> _SHIFT, offset & abi.VFIO_PCI_OFFSET_MASK
        if offset < 0 or index >= COUNT or index == VGA:
            raise failure(errno.EINVAL, f"no region at file offset {offset:#x}")
        return index, position

    def _clip(self, index: int, position: int, length: int) -> int:
        resource = self._device.resource(index)
        if not resource.start or index == ROM:
            raise failure(errno.EINVAL, f"region {index} has no address or no contents")
        if position >= resource.size:
            raise failure(errno.EINVAL, f"{position:#x} is beyond the {resource.size:#x} bytes")
        if resource.flags & IORESOURCE_MEM and not self._state.memory_accessible:
            raise failure(errno.EIO, "memory decoding is off")
        return min(length, resource.size - position)

    def _steps(self, index: int, position: int, length: int) -> list[tuple[int, int]]:
        """``(offset, width)`` of the accesses a read or write is cut into; width 0: one byte of
        the MSI-X table, which is neither read nor written.
        """
        table = self._state.msix
        hidden = range(table[1], table[1] + table[2]) if table and table[0] == index else range(0)
        steps: list[tuple[int, int]] = []
        end = position + length
        while position < end:
            if position in hidden:
                steps.append((position, 0))
                position += 1
                continue
            # The table is 8-byte aligned, so that no aligned access runs into it.
            room = end - position
            width = next(w for w in (8, 4, 2, 1) if w <= room and not position % w)
            steps.append((position, width))
            position += width
        return steps

    # -- mmap ---------------------------------------------------------------------------------

    def mmap(self, length: int, offset: int, protection: int) -> DeviceMapping:
        """``mmap(2)`` of a BAR: EINVAL for other regions, or beyond the BAR's last page."""
        index, position = self._split(offset)
        if index >= BARS:
            raise failure(errno.EINVAL, f"region {index} cannot be mapped")
        if length <= 0 or position % PAGE_SIZE:
            raise failure(errno.EINVAL, f"{length:#x} bytes at {position:#x} are no pages")
        size = -(-self._device.resource(index).size // PAGE_SIZE) * PAGE_SIZE
        pages = -(-length // PAGE_SIZE) * PAGE_SIZE
        if not self.can_map(index) or position + pages > size:
            raise failure(errno.EINVAL, f"BAR {index} cannot be mapped there")
        del protection
        hpa = self._device.resource(index).start + position
        vaddr, unmap = self._process.map_device(hpa, pages)
        return DeviceMapping(
            self._device, index, position, length, vaddr, self._state, self._clock, unmap
        )


class DeviceMapping(WidthAccess):
    """A mapped BAR; implements :class:`vfiokit.kernel.port.Mapping`.

    Every access is one load or store of the device model. Where a real machine would raise
    SIGBUS (memory decoding off, or the device in D3hot), ``OSError`` EFAULT is raised.
    ``vaddr`` may be named by a map request, as on a real machine: that is peer-to-peer DMA.
    """

    view: memoryview | None = None

    def __init__(
        self,
        device: PciDevice,
        bar: int,
        position: int,
        length: int,
        vaddr: int,
        state: OpenState,
        clock: Clock,
        unmap: Callable[[], None],
    ) -> None:
        self.length = length
        self.vaddr = vaddr
        self._device = device
        self._bar = bar
        self._position = position
        self._state = state
        self._clock = clock
        self._unmap: Callable[[], None] | None = unmap
        self.on_close: Callable[[], None] = lambda: None
        """Drops the reference that a mapping holds to its file."""

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._unmap is not None:
            unmap, self._unmap = self._unmap, None
            unmap()
            self.on_close()

    def _load(self, offset: int, width: int) -> int:
        self._check(offset, width)
        value = self._device.load(self._bar, self._position + offset, width)
        if self._clock.pending:
            self._clock.settle()
        return value

    def _store(self, offset: int, width: int, value: int) -> None:
        self._check(offset, width)
        if value < 0 or value >> 8 * width:
            raise ValueError(f"{value:#x} does not fit in {width} bytes")
        self._device.store(self._bar, self._position + offset, width, value)
        if self._clock.pending:
            self._clock.settle()

    def _check(self, offset: int, width: int) -> None:
        if offset < 0 or offset % width or offset + width > self.length:
            raise IndexError(f"no {width}-byte register at {offset:#x} of {self.length:#x} bytes")
        if self._unmap is None:
            raise ValueError("the mapping is closed")
        if not self._state.memory_accessible:
            raise failure(errno.EFAULT, "memory decoding is off; a real machine would raise SIGBUS")

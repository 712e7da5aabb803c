"""Regions: the windows a VFIO device shows, by system call and by mapping.

Source: Linux ``drivers/vfio/pci/vfio_pci_core.c`` (info, mmap), ``vfio_pci_rdwr.c`` (read and
write), ``vfio_pci_config.c`` (configuration space).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.errors import ConfigRangeError, KernelError, UsageError
from vfiokit.kernel.port import PROT_READ, PROT_WRITE, Kernel, Mapping
from vfiokit.pci.config import ConfigSpace
from vfiokit.vfio.failure import kernel_error
from vfiokit.vfio.info import chain, query

_NAMES = {
    **{index: f"BAR{index}" for index in range(6)},
    abi.VFIO_PCI_ROM_REGION_INDEX: "ROM",
    abi.VFIO_PCI_CONFIG_REGION_INDEX: "config",
    abi.VFIO_PCI_VGA_REGION_INDEX: "VGA",
}


class SparseArea(NamedTuple):
    """A part of a region that can be mapped, in bytes from the region's start."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """Answer of ``VFIO_DEVICE_GET_REGION_INFO``, decoded."""

    index: int
    flags: int
    """``VFIO_REGION_INFO_FLAG_*``."""
    size: int
    """Bytes; 0 when the device has no such region."""
    offset: int
    """Where the region starts in the device's file."""
    sparse_areas: tuple[SparseArea, ...] | None
    """The only parts that can be mapped; ``None`` when the kernel names none."""
    msix_mappable: bool
    """Whether the MSI-X table may be mapped along."""
    type: tuple[int, int] | None
    """Type and subtype of a device-specific region."""


def decode_info(info: abi.vfio_region_info, buffer: bytearray) -> RegionInfo:
    """Read the struct and its capability chain."""
    areas: tuple[SparseArea, ...] | None = None
    mappable = False
    kind: tuple[int, int] | None = None
    start = info.cap_offset if info.flags & abi.VFIO_REGION_INFO_FLAG_CAPS else 0
    for capability in chain(buffer, start):
        if capability.id == abi.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            head = abi.vfio_region_info_cap_sparse_mmap
            count = head.unpack_from(buffer, capability.offset).nr_areas
            first = capability.offset + head.SIZE
            step = abi.vfio_region_sparse_mmap_area.SIZE
            found = (
                abi.vfio_region_sparse_mmap_area.unpack_from(buffer, first + step * index)
                for index in range(count)
            )
            areas = tuple(SparseArea(area.offset, area.size) for area in found if area.size)
        elif capability.id == abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE:
            mappable = True
        elif capability.id == abi.VFIO_REGION_INFO_CAP_TYPE:
            found_type = abi.vfio_region_info_cap_type.unpack_from(buffer, capability.offset)
            kind = (found_type.type, found_type.subtype)
    return RegionInfo(info.index, info.flags, info.size, info.offset, areas, mappable, kind)


class Region:
    """One region of an open device.

    ``readN``/``writeN`` go through ``pread``/``pwrite`` (N bits, naturally aligned); :meth:`map`
    gives direct access. Offsets are bytes from the region's start. Out of range or misaligned
    raises ``IndexError``, failures of the kernel :class:`KernelError`.
    """

    def __init__(
        self, kernel: Kernel, fd: int, info: RegionInfo, on_map: Callable[[Mapping], None]
    ) -> None:
        self._kernel = kernel
        self._fd = fd
        self._on_map = on_map
        self.info = info
        self.index = info.index
        self.size = info.size
        self.offset = info.offset
        self.flags = info.flags

    @classmethod
    def open(cls, kernel: Kernel, fd: int, index: int, on_map: Callable[[Mapping], None]) -> Region:
        """Ask the kernel about region ``index`` (:class:`KernelError` EINVAL beyond the last)."""
        name = _NAMES.get(index, f"region {index}")
        blank = abi.vfio_region_info(index=index)
        try:
            answer = query(kernel, fd, "VFIO_DEVICE_GET_REGION_INFO", blank, name)
        except KernelError as error:
            # So the kernel says that a function is no VGA; other regions just have size 0.
            if index != abi.VFIO_PCI_VGA_REGION_INDEX or error.errno != errno.EINVAL:
                raise
            return cls(kernel, fd, RegionInfo(index, 0, 0, 0, None, False, None), on_map)
        return cls(kernel, fd, decode_info(*answer), on_map)

    def __str__(self) -> str:
        return _NAMES.get(self.index, f"region {self.index}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self} size={self.size:#x} flags={self.flags:#x}>"

    @property
    def readable(self) -> bool:
        """Whether reads are allowed."""
        return bool(self.flags & abi.VFIO_REGION_INFO_FLAG_READ)

    @property
    def writable(self) -> bool:
        """Whether writes are allowed."""
        return bool(self.flags & abi.VFIO_REGION_INFO_FLAG_WRITE)

    @property
    def mappable(self) -> bool:
        """Whether some of the region can be mapped."""
        return bool(self.flags & abi.VFIO_REGION_INFO_FLAG_MMAP)

    @property
    def sparse_areas(self) -> tuple[SparseArea, ...]:
        """The parts that can be mapped: the whole region unless the kernel says less."""
        if not self.mappable:
            return ()
        if self.info.sparse_areas is None:
            return (SparseArea(0, self.size),)
        return self.info.sparse_areas

    @property
    def msix_mappable(self) -> bool:
        """Whether the MSI-X table in this region may be mapped along."""
        return self.info.msix_mappable

    # -- system calls -------------------------------------------------------------------------

    def read_bytes(self, offset: int, length: int) -> bytes:
        """``length`` bytes by ``pread``; the kernel cuts them into aligned accesses as it likes."""
        self._check_range(offset, length)
        parts: list[bytes] = []
        done = 0
        while done < length:
            try:
                part = self._kernel.pread(self._fd, length - done, self.offset + offset + done)
            except OSError as error:
                raise kernel_error("read", self, error, f"offset {offset + done:#x}") from error
            if not part:
                raise KernelError(
                    "read", str(self), errno.EIO, detail=f"ends at {offset + done:#x}"
                )
            parts.append(part)
            done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` by ``pwrite``."""
        self._check_range(offset, len(data))
        rest = memoryview(data)
        done = 0
        while done < len(data):
            try:
                written = self._kernel.pwrite(self._fd, rest[done:], self.offset + offset + done)
            except OSError as error:
                raise kernel_error("write", self, error, f"offset {offset + done:#x}") from error
            if written <= 0:
                raise KernelError("write", str(self), errno.EIO, detail=f"ends at {offset:#x}")
            done += written

    def read(self, offset: int, width: int) -> int:
        """One aligned read of ``width`` bytes (1, 2, 4, 8) as a number."""
        self._check_access(offset, width)
        return int.from_bytes(self.read_bytes(offset, width), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """One aligned write of ``width`` bytes; ``ValueError`` when ``value`` does not fit."""
        self._check_access(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit into {width} bytes")
        self.write_bytes(offset, value.to_bytes(width, "little"))

    def read8(self, offset: int) -> int:
        """One 8-bit read."""
        return self.read(offset, 1)

    def read16(self, offset: int) -> int:
        """One 16-bit read."""
        return self.read(offset, 2)

    def read32(self, offset: int) -> int:
        """One 32-bit read."""
        return self.read(offset, 4)

    def read64(self, offset: int) -> int:
        """One 64-bit read."""
        return self.read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """One 8-bit write."""
        self.write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """One 16-bit write."""
        self.write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """One 32-bit write."""
        self.write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """One 64-bit write."""
        self.write(offset, 8, value)

    # -- mapping ------------------------------------------------------------------------------

    def map(self, offset: int = 0, length: int | None = None) -> Mapping:
        """Map ``[offset, offset + length)``; offset 0 of the result is ``offset`` of the region.

        Without ``length`` up to the end of the mappable area that ``offset`` is in. The device
        closes the mapping at its own end if nobody did before. Raises :class:`UsageError` when
        the region cannot be mapped there, :class:`KernelError` when the kernel refuses.
        """
        area = self._area(offset)
        if length is None:
            length = area.offset + area.length - offset
        if length <= 0 or offset + length > area.offset + area.length:
            raise UsageError(
                f"{self}: [{offset:#x}, {offset + length:#x}) is not inside one mappable area",
                hint=self._areas_hint(),
            )
        if offset % self._kernel.page_size:
            raise UsageError(f"{self}: mappings start at a page boundary, not at {offset:#x}")
        protection = (PROT_READ if self.readable else 0) | (PROT_WRITE if self.writable else 0)
        try:
            mapping = self._kernel.mmap(self._fd, length, self.offset + offset, protection)
        except OSError as error:
            raise kernel_error("mmap", self, error, f"{length:#x} bytes at {offset:#x}") from error
        self._on_map(mapping)
        return mapping

    def window(self) -> Mapping | Region:
        """The fastest way to all registers of the region: mapped whole, else the region itself.

        Close it after use; closing a region does nothing.
        """
        whole = self.sparse_areas == (SparseArea(0, self.size),)
        return self.map() if whole else self

    def close(self) -> None:
        """Nothing to do: the region lives as long as its device."""

    def _area(self, offset: int) -> SparseArea:
        for area in self.sparse_areas:
            if area.offset <= offset < area.offset + area.length:
                return area
        if not self.size:
            raise UsageError(f"the device has no {self}")
        raise UsageError(f"{self} cannot be mapped at {offset:#x}", hint=self._areas_hint())

    def _areas_hint(self) -> str:
        listed = ", ".join(
            f"[{area.offset:#x}, {area.offset + area.length:#x})" for area in self.sparse_areas
        )
        return f"mappable: {listed}" if listed else "use read and write"

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise IndexError(
                f"{self}: {length} bytes at {offset:#x} lie outside its {self.size:#x} bytes"
            )

    def _check_access(self, offset: int, width: int) -> None:
        if width not in (1, 2, 4, 8) or offset % width:
            raise IndexError(f"{self}: no aligned {width}-byte access at {offset:#x}")


class ConfigRegion:
    """Configuration space of an open device, as VFIO virtualises it.

    Registers may sit at any offset; the kernel cuts accesses at capability boundaries. Raises
    :class:`ConfigRangeError` outside its :attr:`size`.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self.size = region.size
        """Bytes: 256 or 4096."""

    def __len__(self) -> int:
        return self.size

    def u8(self, offset: int) -> int:
        """Read the byte at ``offset``."""
        return self.read(offset, 1)

    def u16(self, offset: int) -> int:
        """Read the 16-bit word at ``offset``."""
        return self.read(offset, 2)

    def u32(self, offset: int) -> int:
        """Read the 32-bit dword at ``offset``."""
        return self.read(offset, 4)

    def set_u8(self, offset: int, value: int) -> None:
        """Write the byte at ``offset``."""
        self.write(offset, 1, value)

    def set_u16(self, offset: int, value: int) -> None:
        """Write the 16-bit word at ``offset``."""
        self.write(offset, 2, value)

    def set_u32(self, offset: int, value: int) -> None:
        """Write the 32-bit dword at ``offset``."""
        self.write(offset, 4, value)

    def read(self, offset: int, width: int) -> int:
        """Read ``width`` bytes as an unsigned number."""
        self._check(offset, width)
        return int.from_bytes(self.region.read_bytes(offset, width), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Write ``width`` bytes; ``ValueError`` when ``value`` does not fit."""
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit into {width} bytes")
        self.region.write_bytes(offset, value.to_bytes(width, "little"))

    def snapshot(self) -> ConfigSpace:
        """All bytes at once, for :func:`vfiokit.pci.capability.capabilities`."""
        return ConfigSpace(self.region.read_bytes(0, self.size))

    def _check(self, offset: int, width: int) -> None:
        if offset < 0 or offset + width > self.size:
            raise ConfigRangeError(offset, width, self.size)

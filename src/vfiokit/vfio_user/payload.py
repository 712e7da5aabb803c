"""What the messages carry: one value for each command and each reply, with ``pack``/``unpack``.

``unpack`` takes the payload without its header and raises :class:`ProtocolError` (EINVAL) where
lengths, counts or offsets do not fit together; it never reads beyond the payload and never believes
a count. Whether a region or an address exists is for the device to say.

Source: QEMU ``docs/interop/vfio-user.rst``; the habits of its peers are named where they differ.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from vfiokit.abi import vfio as vfio_abi
from vfiokit.abi import vfio_user as abi
from vfiokit.errors import ProtocolError

ACCESS = struct.Struct("<QII")
"""Head of a region access: offset, region, count."""
DMA_ACCESS = struct.Struct("<QQ")
"""Head of a DMA access: address, count."""
_DMA_MAP = struct.Struct("<IIQQQ")
DMA_MAP_SIZE = _DMA_MAP.size
_DMA_UNMAP = struct.Struct("<IIQQ")
_INFO = struct.Struct("<IIII")
_IRQ_SET = struct.Struct("<IIIII")
_FEATURE = struct.Struct("<II")
_COUNT = struct.Struct("<Q")
_WRITE = struct.Struct("<QIIQ")
_IO_FD = struct.Struct("<QQIIIIQ")
_REGION_INFO_SIZE = vfio_abi.vfio_region_info.SIZE
_CHAIN_LIMIT = 64


def _need(payload: bytes, size: int, what: str, *, exact: bool = False) -> None:
    length = len(payload)
    if length < size or (exact and length != size):
        raise ProtocolError(f"{what} of {length} bytes; it has {size}")


class DmaMap(NamedTuple):
    """``DMA_MAP``: the client's memory at ``address`` becomes reachable."""

    address: int
    size: int
    flags: int = abi.VFIO_USER_F_DMA_REGION_READ | abi.VFIO_USER_F_DMA_REGION_WRITE
    offset: int = 0
    """Where the memory begins in the file of the descriptor that comes along, if one does."""

    def pack(self) -> bytes:
        """32 bytes."""
        return _DMA_MAP.pack(_DMA_MAP.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read a command's payload."""
        if len(payload) != _DMA_MAP.size:
            _need(payload, _DMA_MAP.size, "DMA_MAP", exact=True)
        argsz, flags, offset, address, size = _DMA_MAP.unpack(payload)
        if argsz < _DMA_MAP.size:
            _check_argsz(argsz, _DMA_MAP.size, "DMA_MAP")
        return cls(address, size, flags, offset)


class DmaUnmap(NamedTuple):
    """``DMA_UNMAP``, and its reply, which repeats it."""

    address: int
    size: int
    flags: int = 0

    def pack(self) -> bytes:
        """24 bytes."""
        return _DMA_UNMAP.pack(_DMA_UNMAP.size, self.flags, self.address, self.size)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read a command's or a reply's payload; what a dirty bitmap appends is ignored."""
        _need(payload, _DMA_UNMAP.size, "DMA_UNMAP")
        argsz, flags, address, size = _DMA_UNMAP.unpack_from(payload)
        _check_argsz(argsz, _DMA_UNMAP.size, "DMA_UNMAP")
        return cls(address, size, flags)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """``DEVICE_GET_INFO``; the command leaves all but the size zero."""

    flags: int = 0
    """``VFIO_DEVICE_FLAGS_*``."""
    num_regions: int = 0
    num_irqs: int = 0

    def pack(self) -> bytes:
        """16 bytes."""
        return _INFO.pack(_INFO.size, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read either payload. cloud-hypervisor's command says an ``argsz`` of 32."""
        _need(payload, _INFO.size, "DEVICE_GET_INFO")
        argsz, flags, num_regions, num_irqs = _INFO.unpack_from(payload)
        _check_argsz(argsz, _INFO.size, "DEVICE_GET_INFO")
        return cls(flags, num_regions, num_irqs)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """``DEVICE_GET_IRQ_INFO``; the command leaves ``flags`` and ``count`` zero."""

    index: int
    flags: int = 0
    """``VFIO_IRQ_INFO_*``."""
    count: int = 0

    def pack(self) -> bytes:
        """16 bytes."""
        return _INFO.pack(_INFO.size, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read either payload."""
        _need(payload, _INFO.size, "DEVICE_GET_IRQ_INFO")
        argsz, flags, index, count = _INFO.unpack_from(payload)
        _check_argsz(argsz, _INFO.size, "DEVICE_GET_IRQ_INFO")
        return cls(index, flags, count)


@dataclass(frozen=True, slots=True)
class SparseArea:
    """A part of a region that can be mapped, in bytes from the region's start."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """``DEVICE_GET_REGION_INFO``.

    The command says by ``argsz`` how much of the answer fits; a longer one is cut to its first
    32 bytes, with the ``argsz`` it needs and without the CAPS flag.
    """

    index: int
    flags: int = 0
    """``VFIO_REGION_INFO_FLAG_*``; packing sets CAPS as needed."""
    size: int = 0
    offset: int = 0
    """Where the region starts in the file of the descriptor that comes along."""
    sparse_areas: tuple[SparseArea, ...] | None = None
    type: tuple[int, int] | None = None
    msix_mappable: bool = False
    argsz: int = _REGION_INFO_SIZE
    """The command's: room for the answer. The answer's: the room it needs."""

    def _chain(self) -> bytes:
        """The capabilities, as they follow the 32 bytes."""
        parts: list[tuple[int, bytes]] = []
        if self.sparse_areas is not None:
            body = struct.pack("<II", len(self.sparse_areas), 0)
            body += b"".join(
                struct.pack("<QQ", area.offset, area.length) for area in self.sparse_areas
            )
            parts.append((vfio_abi.VFIO_REGION_INFO_CAP_SPARSE_MMAP, body))
        if self.type is not None:
            parts.append((vfio_abi.VFIO_REGION_INFO_CAP_TYPE, struct.pack("<II", *self.type)))
        if self.msix_mappable:
            parts.append((vfio_abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, b""))
        at, made = _REGION_INFO_SIZE, b""
        for number, (kind, body) in enumerate(parts):
            at += 8 + len(body)
            made += struct.pack("<HHI", kind, 1, at if number + 1 < len(parts) else 0) + body
        return made

    @property
    def needed(self) -> int:
        """Bytes of the whole answer."""
        return _REGION_INFO_SIZE + len(self._chain())

    def pack(self, room: int | None = None) -> bytes:
        """The answer for a client that has ``room`` bytes, or whole; without one, the command."""
        chain = self._chain()
        needed = _REGION_INFO_SIZE + len(chain)
        flags = self.flags & ~vfio_abi.VFIO_REGION_INFO_FLAG_CAPS
        cut = room is not None and room < needed
        if chain and not cut:
            flags |= vfio_abi.VFIO_REGION_INFO_FLAG_CAPS
        head = vfio_abi.vfio_region_info(
            argsz=max(needed, self.argsz),
            flags=flags,
            index=self.index,
            cap_offset=_REGION_INFO_SIZE if chain and not cut else 0,
            size=self.size,
            offset=self.offset,
        )
        return bytes(head.pack()) + (b"" if cut else chain)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read either payload; a chain of capabilities that leaves it or turns back is refused."""
        _need(payload, _REGION_INFO_SIZE, "DEVICE_GET_REGION_INFO")
        head = vfio_abi.vfio_region_info.unpack_from(payload)
        _check_argsz(head.argsz, _REGION_INFO_SIZE, "DEVICE_GET_REGION_INFO")
        areas, kind, mappable = None, None, False
        at = head.cap_offset if head.flags & vfio_abi.VFIO_REGION_INFO_FLAG_CAPS else 0
        before = _REGION_INFO_SIZE - 1
        for _step in range(_CHAIN_LIMIT):
            if not at:
                break
            if at <= before or at + 8 > len(payload):
                raise ProtocolError(f"region info whose capability is at {at:#x}")
            identity, _version, following = struct.unpack_from("<HHI", payload, at)
            if identity == vfio_abi.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                areas = _areas(payload, at + 8)
            elif identity == vfio_abi.VFIO_REGION_INFO_CAP_TYPE:
                _need(payload, at + 16, "a region type capability's message")
                kind = struct.unpack_from("<II", payload, at + 8)
            elif identity == vfio_abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE:
                mappable = True
            before, at = at, following
        flags = head.flags & ~vfio_abi.VFIO_REGION_INFO_FLAG_CAPS
        return cls(head.index, flags, head.size, head.offset, areas, kind, mappable, head.argsz)


def _areas(payload: bytes, at: int) -> tuple[SparseArea, ...]:
    _need(payload, at + 8, "a sparse mmap capability's message")
    (count, _reserved) = struct.unpack_from("<II", payload, at)
    if count > (len(payload) - at - 8) // 16:
        raise ProtocolError(f"region info that claims {count} sparse areas")
    return tuple(
        SparseArea(*struct.unpack_from("<QQ", payload, at + 8 + 16 * number))
        for number in range(count)
    )


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """``DEVICE_SET_IRQS``; descriptors of EVENTFD travel beside the message, one each."""

    flags: int
    """One data type and one action of ``VFIO_IRQ_SET_*``."""
    index: int
    start: int
    count: int
    values: bytes = b""
    """With the BOOL data type one byte each."""

    def pack(self) -> bytes:
        """20 bytes and the values."""
        size = _IRQ_SET.size + len(self.values)
        return _IRQ_SET.pack(size, self.flags, self.index, self.start, self.count) + self.values

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read a command's payload; its flags must name one data type and one action."""
        _need(payload, _IRQ_SET.size, "DEVICE_SET_IRQS")
        argsz, flags, index, start, count = _IRQ_SET.unpack_from(payload)
        _check_argsz(argsz, _IRQ_SET.size, "DEVICE_SET_IRQS")
        kind = flags & vfio_abi.VFIO_IRQ_SET_DATA_TYPE_MASK
        action = flags & vfio_abi.VFIO_IRQ_SET_ACTION_TYPE_MASK
        if kind.bit_count() != 1 or action.bit_count() != 1 or flags != kind | action:
            raise ProtocolError(f"DEVICE_SET_IRQS with flags {flags:#x}")
        values = payload[_IRQ_SET.size :]
        if len(values) != (count if kind == vfio_abi.VFIO_IRQ_SET_DATA_BOOL else 0):
            raise ProtocolError(f"DEVICE_SET_IRQS of {count} with {len(values)} bytes of values")
        return cls(flags, index, start, count, values)


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """``REGION_READ`` and ``REGION_WRITE``; data follows where it goes."""

    offset: int
    region: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        """16 bytes and the data."""
        return ACCESS.pack(self.offset, self.region, self.count) + self.data

    @classmethod
    def unpack(cls, payload: bytes, *, data: bool) -> Self:
        """Read a payload that carries ``count`` bytes of data, or none."""
        _need(payload, ACCESS.size, "a region access")
        offset, region, count = ACCESS.unpack_from(payload)
        _need(payload, ACCESS.size + (count if data else 0), "a region access", exact=True)
        return cls(offset, region, count, payload[ACCESS.size :])


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """``DMA_READ`` and ``DMA_WRITE``; data follows where it goes."""

    address: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        """16 bytes and the data."""
        return DMA_ACCESS.pack(self.address, self.count) + self.data

    @classmethod
    def unpack(cls, payload: bytes, *, data: bool) -> Self:
        """Read a payload that carries ``count`` bytes of data, or none."""
        _need(payload, DMA_ACCESS.size, "a DMA access")
        address, count = DMA_ACCESS.unpack_from(payload)
        _need(payload, DMA_ACCESS.size + (count if data else 0), "a DMA access", exact=True)
        return cls(address, count, payload[DMA_ACCESS.size :])


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """One write of a ``REGION_WRITE_MULTI``: at most 8 bytes."""

    offset: int
    region: int
    data: bytes


def pack_writes(writes: Sequence[RegionWrite]) -> bytes:
    """The payload of ``REGION_WRITE_MULTI``; ``ValueError`` for a write of more than 8 bytes."""
    made = [_COUNT.pack(len(writes))]
    for write in writes:
        if len(write.data) > 8:
            raise ValueError(f"a write of {len(write.data)} bytes among several; 8 fit")
        value = int.from_bytes(write.data, "little")
        made.append(_WRITE.pack(write.offset, write.region, len(write.data), value))
    return b"".join(made)


def unpack_writes(payload: bytes) -> tuple[RegionWrite, ...]:
    """Read the payload of ``REGION_WRITE_MULTI``."""
    _need(payload, _COUNT.size, "REGION_WRITE_MULTI")
    (count,) = _COUNT.unpack_from(payload)
    if count > len(payload) // _WRITE.size:
        raise ProtocolError(f"REGION_WRITE_MULTI of {count} writes in {len(payload)} bytes")
    _need(payload, _COUNT.size + count * _WRITE.size, "REGION_WRITE_MULTI", exact=True)
    made = []
    for offset, region, length, value in _WRITE.iter_unpack(payload[_COUNT.size :]):
        if length > 8:
            raise ProtocolError(f"REGION_WRITE_MULTI with a write of {length} bytes")
        made.append(RegionWrite(offset, region, value.to_bytes(8, "little")[:length]))
    return tuple(made)


def pack_count(count: int) -> bytes:
    """The reply to ``REGION_WRITE_MULTI``: how many writes were done."""
    return _COUNT.pack(count)


def unpack_count(payload: bytes) -> int:
    """Read the reply to ``REGION_WRITE_MULTI``."""
    _need(payload, _COUNT.size, "the reply to REGION_WRITE_MULTI", exact=True)
    (count,) = _COUNT.unpack(payload)
    return int(count)


@dataclass(frozen=True, slots=True)
class IoFd:
    """A descriptor that stands for writes to part of a region."""

    offset: int
    size: int
    fd_index: int
    """Which of the descriptors that came along."""
    type: int = abi.VFIO_USER_IO_FD_TYPE_IOEVENTFD
    flags: int = 0
    """KVM's flags for an ioeventfd."""
    datamatch: int = 0

    def pack(self) -> bytes:
        """40 bytes."""
        where = (self.offset, self.size, self.fd_index)
        return _IO_FD.pack(*where, self.type, self.flags, 0, self.datamatch)


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """``DEVICE_GET_REGION_IO_FDS``; the command has no entries."""

    index: int
    entries: tuple[IoFd, ...] = ()
    argsz: int = _INFO.size
    """The command's: room for the answer."""

    @property
    def needed(self) -> int:
        """Bytes of the whole answer."""
        return _INFO.size + _IO_FD.size * len(self.entries)

    def pack(self, room: int | None = None) -> bytes:
        """The answer for a client with ``room`` bytes, or the command.

        Where the entries do not fit, the head alone, with the ``argsz`` that they need.
        """
        needed = self.needed
        argsz = max(needed, self.argsz)
        head = _INFO.pack(argsz if room is None else needed, 0, self.index, len(self.entries))
        if room is not None and room < needed:
            return head
        return head + b"".join(entry.pack() for entry in self.entries)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read either payload. libvfio-user's entries have 48 bytes, so their step is computed."""
        _need(payload, _INFO.size, "DEVICE_GET_REGION_IO_FDS")
        argsz, flags, index, count = _INFO.unpack_from(payload)
        _check_argsz(argsz, _INFO.size, "DEVICE_GET_REGION_IO_FDS")
        if flags:
            raise ProtocolError(f"DEVICE_GET_REGION_IO_FDS with flags {flags:#x}")
        room = len(payload) - _INFO.size
        if not count or not room:
            return cls(index, (), argsz)
        step = min(argsz - _INFO.size, room) // count
        if step < _IO_FD.size:
            raise ProtocolError(f"DEVICE_GET_REGION_IO_FDS with {count} entries in {room} bytes")
        entries = []
        for number in range(count):
            offset, size, fd_index, kind, extra, _padding, match = _IO_FD.unpack_from(
                payload, _INFO.size + number * step
            )
            entries.append(IoFd(offset, size, fd_index, kind, extra, match))
        return cls(index, tuple(entries), argsz)


@dataclass(frozen=True, slots=True)
class Feature:
    """``DEVICE_FEATURE``, command and reply."""

    flags: int
    """``VFIO_DEVICE_FEATURE_*``: its number in the low 16 bits, and what is asked of it."""
    data: bytes = b""
    argsz: int = 0
    """The command's: room for the answer; 0 stands for the length of this one."""

    @property
    def number(self) -> int:
        """Which feature."""
        return self.flags & vfio_abi.VFIO_DEVICE_FEATURE_MASK

    def pack(self) -> bytes:
        """8 bytes and the data."""
        size = _FEATURE.size + len(self.data)
        return _FEATURE.pack(max(size, self.argsz), self.flags) + self.data

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read either payload."""
        _need(payload, _FEATURE.size, "DEVICE_FEATURE")
        argsz, flags = _FEATURE.unpack_from(payload)
        _check_argsz(argsz, _FEATURE.size, "DEVICE_FEATURE")
        return cls(flags, payload[_FEATURE.size :], argsz)


@dataclass(frozen=True, slots=True)
class MigrationData:
    """``MIG_DATA_READ`` (the reply has data) and ``MIG_DATA_WRITE`` (the command has)."""

    size: int
    data: bytes = b""

    def pack(self) -> bytes:
        """8 bytes and the data."""
        return _FEATURE.pack(_FEATURE.size + len(self.data), self.size) + self.data

    @classmethod
    def unpack(cls, payload: bytes, *, data: bool) -> Self:
        """Read a payload with ``size`` bytes of data, or none.

        libvfio-user pads the data of a reply to the size that was asked for; ``size`` counts.
        """
        _need(payload, _FEATURE.size, "migration data")
        _argsz, size = _FEATURE.unpack_from(payload)
        if not data:
            _need(payload, _FEATURE.size, "migration data", exact=True)
            return cls(size)
        _need(payload, _FEATURE.size + size, "migration data")
        return cls(size, payload[_FEATURE.size : _FEATURE.size + size])


def _check_argsz(argsz: int, least: int, what: str) -> None:
    if argsz < least:
        raise ProtocolError(f"{what} with an argsz of {argsz}; it has {least}")

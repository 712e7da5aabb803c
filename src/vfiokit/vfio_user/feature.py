"""Device features over the socket: migration, and the log of what the device wrote.

Source: Linux ``include/uapi/linux/vfio.h`` (``VFIO_DEVICE_FEATURE``); vfio-user carries the bitmaps
and ranges in the message where the kernel takes pointers.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from vfiokit.abi import vfio as abi
from vfiokit.errors import ProtocolError
from vfiokit.vfio_user.device import Device, Migratable
from vfiokit.vfio_user.dma import DmaTable
from vfiokit.vfio_user.migration import Migration
from vfiokit.vfio_user.payload import Feature

_GET: Final = abi.VFIO_DEVICE_FEATURE_GET
_SET: Final = abi.VFIO_DEVICE_FEATURE_SET
_PROBE: Final = abi.VFIO_DEVICE_FEATURE_PROBE
_CONTROL: Final = struct.Struct("<QII")
_RANGE: Final = struct.Struct("<QQ")
_REPORT: Final = struct.Struct("<QQQ")
_STATE: Final = struct.Struct("<Ii")
_MAX_RANGES: Final = 4096
_MAX_BITMAP: Final = (1 << 20) - 4096
"""Bytes of a report: it travels in one message."""
_MOST_PAGES: Final = 1 << 20
"""Pages that are remembered."""


class DirtyLog:
    """The pages that the device wrote since they were last asked for.

    ``ranges`` are pairs of IOVA and length; none stands for all memory.
    """

    def __init__(self, page_size: int, ranges: list[tuple[int, int]]) -> None:
        self.page_size = page_size
        self._ranges = ranges or [(0, 1 << 64)]
        self._pages: set[int] = set()
        self._full = False

    def note(self, iova: int, length: int) -> None:
        """The device wrote ``length`` bytes at ``iova``."""
        for start, size in self._ranges:
            first, end = max(iova, start), min(iova + length, start + size)
            if first < end:
                self._pages.update(range(first // self.page_size, -(-end // self.page_size)))
        if len(self._pages) > _MOST_PAGES:
            # Whoever never asks is told that everything was written, which is allowed.
            self._full = True
            self._pages.clear()

    def report(self, iova: int, length: int, page_size: int) -> bytes:
        """A bit for each page of the range, in 64-bit words; what is reported is forgotten.

        Raises :class:`ProtocolError`: EINVAL for another page size than the log's, or a range that
        is no multiple of it; E2BIG for too many pages.
        """
        if page_size != self.page_size or iova % page_size or length % page_size or not length:
            raise ProtocolError(
                f"a report of {length:#x} bytes at {iova:#x} in pages of {page_size:#x}; the log "
                f"has pages of {self.page_size:#x}"
            )
        count, first = length // page_size, iova // page_size
        size = -(-count // 64) * 8
        if size > _MAX_BITMAP:
            raise ProtocolError(f"a report of {count} pages", errno=errno.E2BIG)
        if self._full:
            return ((1 << count) - 1).to_bytes(size, "little")
        bits = bytearray(size)
        for page in [page for page in self._pages if first <= page < first + count]:
            bits[page - first >> 3] |= 1 << (page - first & 7)
            self._pages.discard(page)
        return bytes(bits)


class FeatureSet:
    """The features of one device as a client may probe, get and set them."""

    def __init__(self, device: Device, dma: DmaTable) -> None:
        self._dma = dma
        moves = device if isinstance(device, Migratable) and device.movable else None
        self.migration = Migration(moves)
        self._log: DirtyLog | None = None
        self._known: dict[int, tuple[int, Callable[[int, bytes], bytes]]] = {
            abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START: (_SET, self._log_start),
            abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: (_SET, self._log_stop),
            abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: (_GET, self._log_report),
        }
        if self.migration.possible:
            self._known[abi.VFIO_DEVICE_FEATURE_MIGRATION] = (_GET, self._ability)
            self._known[abi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE] = (_GET | _SET, self._state)

    def handle(self, request: Feature) -> bytes:
        """The data of the reply.

        Raises :class:`ProtocolError`: ENOTTY for a feature that the device lacks, EINVAL for a use
        that the feature has not.
        """
        ways = request.flags & (_GET | _SET | _PROBE)
        asked = ways & (_GET | _SET)
        if request.flags & ~(ways | abi.VFIO_DEVICE_FEATURE_MASK) or not ways:
            raise ProtocolError(f"DEVICE_FEATURE with flags {request.flags:#x}")
        if request.number not in self._known:
            raise ProtocolError(f"there is no feature {request.number}", errno=errno.ENOTTY)
        allowed, action = self._known[request.number]
        if asked & ~allowed or (asked.bit_count() != 1 and not ways & _PROBE):
            raise ProtocolError(f"feature {request.number} with flags {request.flags:#x}")
        return b"" if ways & _PROBE else action(asked, request.data)

    def reset(self) -> None:
        """The device was reset: it runs again, whatever state it was in."""
        self.migration.reset()

    def _ability(self, _way: int, _data: bytes) -> bytes:
        return abi.VFIO_MIGRATION_STOP_COPY.to_bytes(8, "little")

    def _state(self, way: int, data: bytes) -> bytes:
        if way == _SET:
            if len(data) < _STATE.size:
                raise ProtocolError(f"a migration state of {len(data)} bytes")
            self.migration.go(_STATE.unpack_from(data)[0])
        return _STATE.pack(self.migration.state, -1)

    def _log_start(self, _way: int, data: bytes) -> bytes:
        if len(data) < _CONTROL.size:
            raise ProtocolError(f"DMA logging of {len(data)} bytes")
        page_size, count, _reserved = _CONTROL.unpack_from(data)
        if page_size < 4096 or page_size & page_size - 1 or page_size > 1 << 40:
            raise ProtocolError(f"DMA logging in pages of {page_size:#x}")
        if count > _MAX_RANGES or len(data) != _CONTROL.size + count * _RANGE.size:
            raise ProtocolError(f"DMA logging of {count} ranges in {len(data)} bytes")
        if self._log is not None:
            raise ProtocolError("DMA logging runs already", errno=errno.EBUSY)
        ranges = list(_RANGE.iter_unpack(data[_CONTROL.size :]))
        if any(iova + length > 1 << 64 for iova, length in ranges):
            raise ProtocolError("DMA logging of a range that ends beyond all addresses")
        self._log = DirtyLog(page_size, ranges)
        self._dma.log = self._log.note
        return data

    def _log_stop(self, _way: int, _data: bytes) -> bytes:
        if self._log is None:
            raise ProtocolError("DMA logging does not run")
        self._log = self._dma.log = None
        return b""

    def _log_report(self, _way: int, data: bytes) -> bytes:
        if len(data) < _REPORT.size:
            raise ProtocolError(f"a report of {len(data)} bytes")
        if self._log is None:
            raise ProtocolError("DMA logging does not run")
        head = data[: _REPORT.size]
        return head + self._log.report(*_REPORT.unpack(head))

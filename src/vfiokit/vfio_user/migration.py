"""The states of a device that can move, and the stream that its state travels in.

Source: Linux ``include/uapi/linux/vfio.h`` (``VFIO_DEVICE_STATE_*`` and the arcs between them),
``vfio_mig_get_next_state`` for the way from one to another.
"""

from __future__ import annotations

import errno
import json
import struct
from typing import Any, Final

from vfiokit.abi import vfio as abi
from vfiokit.errors import ProtocolError
from vfiokit.vfio_user.device import Migratable

ERROR: Final = abi.VFIO_DEVICE_STATE_ERROR
STOP: Final = abi.VFIO_DEVICE_STATE_STOP
RUNNING: Final = abi.VFIO_DEVICE_STATE_RUNNING
STOP_COPY: Final = abi.VFIO_DEVICE_STATE_STOP_COPY
RESUMING: Final = abi.VFIO_DEVICE_STATE_RESUMING
_STATES: Final = (STOP, RUNNING, STOP_COPY, RESUMING)
_MAGIC: Final = b"vfiokit-state-1\n"
_HEAD: Final = struct.Struct("<II")
_MOST: Final = 64 << 20
"""Bytes of a state that are accepted: a client may send as much as it likes."""
_MOST_TEXT: Final = 4 << 20
"""Bytes of its JSON: a list of empty lists takes thirty times its text."""


def encode(state: dict[str, Any]) -> bytes:
    """A state as it travels.

    A magic, the lengths of two parts, JSON in which bytes are ``{"bytes": [start, length]}``, and
    those bytes.
    """
    parts: list[bytes] = []
    length = 0

    def spelled(value: object) -> object:
        nonlocal length
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"a device state with a {type(value).__name__}")
        parts.append(bytes(value))
        place = [length, len(parts[-1])]
        length += len(parts[-1])
        return {"bytes": place}

    text = json.dumps(state, default=spelled).encode()
    return b"".join((_MAGIC, _HEAD.pack(len(text), length), text, *parts))


def decode(data: bytes) -> dict[str, Any]:
    """The state of :func:`encode`; :class:`ProtocolError` for anything else."""
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start or not data.startswith(_MAGIC):
        raise ProtocolError("a device state of another kind")
    size, length = _HEAD.unpack_from(data, len(_MAGIC))
    if size > _MOST_TEXT or len(data) != start + size + length:
        raise ProtocolError(f"a device state of {len(data)} bytes, with {size} and {length}")
    held = memoryview(data)[start + size :]

    def plain(value: dict[str, Any]) -> object:
        place = value.get("bytes")
        if value.keys() != {"bytes"} or not isinstance(place, list):
            return value
        at, count = place
        if type(at) is not int or type(count) is not int or not 0 <= at <= at + count <= length:
            raise ValueError(f"bytes at {place}")
        return bytes(held[at : at + count])

    try:
        state = json.loads(data[start : start + size], object_hook=plain)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a device state that cannot be read: {error}") from None
    if not isinstance(state, dict):
        raise ProtocolError("a device state that is no object")
    return state


class Migration:
    """State machine of one device; ``device`` is ``None`` where it cannot move."""

    def __init__(self, device: Migratable | None) -> None:
        self._device = device
        self.state: int = RUNNING
        self._out = b""
        self._at = 0
        self._in = bytearray()

    @property
    def possible(self) -> bool:
        """Whether the device can move."""
        return self._device is not None

    def reset(self) -> None:
        """After a reset every device runs, and so it does for the next client."""
        stopped = self.state != RUNNING
        self.state, self._out, self._at = RUNNING, b"", 0
        self._in.clear()
        if stopped and self._device is not None:
            self._device.resume()

    def go(self, wanted: int) -> None:
        """Walk to another state, through STOP where there is no arc.

        Raises :class:`ProtocolError` (EINVAL) for a state that there is not, and out of ERROR. A
        state that the device does not take leads to ERROR, and raises.
        """
        if wanted not in _STATES:
            raise ProtocolError(f"migration state {wanted}")
        if self.state == ERROR:
            raise ProtocolError("only a reset leads out of the error state")
        if wanted == self.state:
            return
        device = self._device
        assert device is not None
        if self.state == RUNNING:
            device.pause()
        elif self.state == RESUMING:
            self._take(device)
        self._out, self._at = b"", 0
        self._in.clear()
        self.state = STOP
        if wanted == STOP_COPY:
            self._out = encode(device.state())
        self.state = wanted
        if wanted == RUNNING:
            device.resume()

    def _take(self, device: Migratable) -> None:
        if not self._in:  # nothing was sent: the device stays what it is
            return
        try:
            device.load(decode(bytes(self._in)))
        except Exception as error:  # noqa: BLE001  # a state of any shape
            self.state = ERROR
            self._in.clear()
            raise ProtocolError(f"the device does not take the state: {error!r}") from None

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes of the state; fewer at its end. EINVAL outside STOP_COPY."""
        if self.state != STOP_COPY:
            raise ProtocolError("MIG_DATA_READ outside STOP_COPY")
        piece = self._out[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def write(self, data: bytes) -> None:
        """More of the state; EINVAL outside RESUMING, ENOSPC where it becomes too large."""
        if self.state != RESUMING:
            raise ProtocolError("MIG_DATA_WRITE outside RESUMING")
        if len(self._in) + len(data) > _MOST:
            raise ProtocolError(f"a device state of more than {_MOST} bytes", errno=errno.ENOSPC)
        self._in += data

"""The states of a device that can move, and the stream that its state travels in.

Source: Linux ``include/uapi/linux/vfio.h`` (``VFIO_DEVICE_STATE_*`` and the arcs between them),
``vfio_mig_get_next_state`` for the way from one to another.
"""

from __future__ import annotations

import errno
import json
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
_FORMAT: Final = "vfiokit-device-state/1"
_MOST: Final = 64 << 20
"""Bytes of a state that are accepted: a client may send as much as it likes."""


def encode(state: dict[str, Any]) -> bytes:
    """A state as it travels: JSON, with bytes as ``{"hex": "…"}``."""

    def spelled(value: object) -> object:
        if isinstance(value, bytes | bytearray | memoryview):
            return {"hex": bytes(value).hex()}
        raise TypeError(f"a device state with a {type(value).__name__}")

    return json.dumps({"format": _FORMAT, "state": state}, default=spelled).encode()


def decode(data: bytes) -> dict[str, Any]:
    """The state of :func:`encode`; :class:`ProtocolError` for anything else."""

    def plain(value: dict[str, Any]) -> object:
        if value.keys() == {"hex"} and isinstance(value["hex"], str):
            return bytes.fromhex(value["hex"])
        return value

    try:
        document = json.loads(data, object_hook=plain)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a device state that cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ProtocolError("a device state of another kind")
    state = document.get("state")
    if not isinstance(state, dict):
        raise ProtocolError("a device state without a state")
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
        """After a reset every device runs."""
        self.state, self._out, self._at = RUNNING, b"", 0
        self._in.clear()

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
        if self.state == RESUMING:
            self._resume()
        self._out, self._at = b"", 0
        self._in.clear()
        self.state = STOP
        if wanted == STOP_COPY:
            assert self._device is not None
            self._out = encode(self._device.state())
        self.state = wanted

    def _resume(self) -> None:
        if not self._in:  # nothing was sent: the device stays what it is
            return
        assert self._device is not None
        try:
            self._device.load(decode(bytes(self._in)))
        except (ProtocolError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            self.state = ERROR
            raise ProtocolError(f"the device does not take the state: {error}") from None

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

"""``VFIO_DEVICE_FEATURE``: which features a plain vfio-pci function has, and their checks.

Source: Linux ``vfio_main.c`` (``vfio_ioctl_device_feature``, ``vfio_check_feature``),
``vfio_pci_core.c`` (``vfio_pci_core_ioctl_feature``).
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from typing import NamedTuple, Protocol

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, buffer_of, fetch
from vfiokit.machine.kernel.event import Event
from vfiokit.machine.kernel.failure import failure

MIG_PRECOPY_INFO_V2 = 12
"""Newer than the header that ``abi/`` follows."""

_GET = abi.VFIO_DEVICE_FEATURE_GET
_SET = abi.VFIO_DEVICE_FEATURE_SET
_PROBE = abi.VFIO_DEVICE_FEATURE_PROBE
_KNOWN = abi.VFIO_DEVICE_FEATURE_MASK | _GET | _SET | _PROBE


class FeatureOwner(Protocol):
    """An opened function, as its features change it."""

    @property
    def has_token(self) -> bool:
        """Whether it is a PF that guards its VFs with a token."""
        ...

    def set_token(self, token: str) -> None:
        """A new VF token."""
        ...

    def enter_low_power(self, wakeup: Event | None) -> None:
        """Low power until the next access; EINVAL when it is there already."""
        ...

    def leave_low_power(self) -> None:
        """Back to normal; idempotent."""
        ...

    def export(self, payload: bytes) -> int:
        """A dma-buf of a BAR; its descriptor."""
        ...


class _Feature(NamedTuple):
    operations: int
    payload: int
    action: Callable[[FeatureOwner, bytes], int | None]
    """Given all that follows the header; its number, if any, is the result."""


def _token(owner: FeatureOwner, payload: bytes) -> None:
    owner.set_token(str(uuid.UUID(bytes=payload[:16])))


def _enter(owner: FeatureOwner, payload: bytes) -> None:
    del payload
    owner.enter_low_power(None)


def _enter_with_wakeup(owner: FeatureOwner, payload: bytes) -> None:
    fd = int.from_bytes(payload[:4], "little", signed=True)
    if fd < 0:
        raise failure(errno.EINVAL, "a wakeup eventfd is needed")
    owner.enter_low_power(Event(fd))


def _leave(owner: FeatureOwner, payload: bytes) -> None:
    del payload
    owner.leave_low_power()


def _export(owner: FeatureOwner, payload: bytes) -> int:
    return owner.export(payload)


_FEATURES = {
    abi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: _Feature(_SET, 16, _token),
    abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: _Feature(_SET, 0, _enter),
    abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: _Feature(_SET, 8, _enter_with_wakeup),
    abi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: _Feature(_SET, 0, _leave),
    abi.VFIO_DEVICE_FEATURE_DMA_BUF: _Feature(_GET, abi.vfio_device_feature_dma_buf.SIZE, _export),
}


def device_feature(owner: FeatureOwner, argument: Argument) -> int:
    """Carry out ``VFIO_DEVICE_FEATURE``.

    ENOTTY for a feature the function does not have: migration, DMA logging and bus mastering are
    for variant drivers.
    """
    head, view = fetch(abi.vfio_device_feature, argument)
    flags = head.flags
    if flags & ~_KNOWN:
        raise failure(errno.EINVAL, f"unknown flags {flags:#x}")
    if flags & _GET and flags & _SET and not flags & _PROBE:
        raise failure(errno.EINVAL, "GET and SET exclude each other")
    number = flags & abi.VFIO_DEVICE_FEATURE_MASK
    if number == MIG_PRECOPY_INFO_V2:
        raise failure(errno.EINVAL, "the device has no pre-copy migration")
    feature = _FEATURES.get(number)
    if feature is None or (number == abi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN and not owner.has_token):
        raise failure(errno.ENOTTY, f"no feature {number}")
    if flags & (_GET | _SET) & ~feature.operations:
        raise failure(errno.EINVAL, f"feature {number} cannot do that")
    if flags & _PROBE:
        return 0
    if not flags & (_GET | _SET):
        raise failure(errno.EINVAL, "GET, SET or PROBE is needed")
    size = abi.vfio_device_feature.SIZE + feature.payload
    if head.argsz < size:
        raise failure(errno.EINVAL, f"argsz is {head.argsz}, at least {size} is needed")
    payload = bytes(buffer_of(view, size)[abi.vfio_device_feature.SIZE :])
    return feature.action(owner, payload) or 0

"""Device features: probe, get and set, as raw payloads; and those that need no more than that.

Others have modules of their own: ``migration``, ``low_power``, ``dma_log``, ``export``.

Source: Linux ``vfio_main.c`` ``vfio_ioctl_device_feature``, ``vfio_pci_core.c``
``vfio_pci_core_ioctl_feature``.
"""

from __future__ import annotations

import errno
from uuid import UUID

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.failure import request

_NAME = "VFIO_DEVICE_FEATURE"
_HEAD = abi.vfio_device_feature.SIZE

FEATURE_NAMES = {
    value: name.removeprefix("VFIO_DEVICE_FEATURE_")
    for name, value in vars(abi).items()
    if name.startswith("VFIO_DEVICE_FEATURE_")
    and not name.endswith(("_MASK", "_GET", "_SET", "_PROBE", "_CLEAR_MASTER", "_SET_MASTER"))
}
"""Name of every feature by number, for messages."""

_HINTS = {
    (abi.VFIO_DEVICE_FEATURE_DMA_BUF, errno.EINVAL): "areas are whole pages within a memory BAR",
    (abi.VFIO_DEVICE_FEATURE_DMA_BUF, errno.ENODEV): "only BARs 0 to 5 can be exported",
    (
        abi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
        errno.EINVAL,
    ): "the device has no such state, or there is no way there; ERROR is left by a reset",
    (abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, errno.EINVAL): "it is in low power already",
    (
        abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
        errno.EINVAL,
    ): "it is in low power already",
    (
        abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
        errno.EINVAL,
    ): "at least one range, of whole pages, none overlapping; stop the log that runs",
    (abi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START, errno.E2BIG): "join ranges: 256 are the most",
    (abi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, errno.ENOTTY): "only physical functions have one",
}


class Features:
    """``VFIO_DEVICE_FEATURE`` of one device; ``feature`` is ``VFIO_DEVICE_FEATURE_*``."""

    def __init__(self, kernel: Kernel, fd: int, device: str) -> None:
        self.kernel = kernel
        """Who understands the device's descriptor."""
        self._fd = fd
        self._device = device

    def __str__(self) -> str:
        return self._device

    def probe(self, feature: int, *, get: bool = False, set: bool = False) -> bool:  # noqa: A002
        """Whether the device has ``feature``, and lets it be got or set if so asked."""
        operations = (abi.VFIO_DEVICE_FEATURE_GET if get else 0) | (
            abi.VFIO_DEVICE_FEATURE_SET if set else 0
        )
        try:
            self._request(feature, operations | abi.VFIO_DEVICE_FEATURE_PROBE, b"")
        except KernelError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
                return False
            raise
        return True

    def get(self, feature: int, payload: bytes | int) -> tuple[int, bytes]:
        """Get a feature; returns the ioctl's result and the payload as the kernel left it.

        ``payload`` holds the input fields, or is the payload's size in bytes. Raises
        :class:`KernelError`: ENOTTY without the feature, EINVAL when it cannot be got.
        """
        data = bytes(payload)
        result, buffer = self._request(feature, abi.VFIO_DEVICE_FEATURE_GET, data)
        return result, bytes(buffer[_HEAD:])

    def set(self, feature: int, payload: bytes = b"") -> bytes:
        """Set a feature; returns the payload as the kernel left it. Raises as :meth:`get`."""
        _result, buffer = self._request(feature, abi.VFIO_DEVICE_FEATURE_SET, payload)
        return bytes(buffer[_HEAD:])

    def set_vf_token(self, token: UUID) -> None:
        """The secret that openers of this function's virtual functions must name from now on.

        For a physical function on vfio-pci (KernelError ENOTTY otherwise). Pass it as
        ``vf_token`` to ``open_device``, for the virtual functions and for this one again while
        they are in use.
        """
        self.set(abi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, token.bytes)

    @property
    def bus_master(self) -> bool:
        """Whether the device may do DMA, for those whose bus has this feature (CDX).

        A PCI function has a bit of its command register instead:
        :meth:`Device.set_bus_master`.
        """
        size = abi.vfio_device_feature_bus_master.SIZE
        _result, payload = self.get(abi.VFIO_DEVICE_FEATURE_BUS_MASTER, size)
        master = abi.vfio_device_feature_bus_master.unpack_from(payload)
        return master.op == abi.VFIO_DEVICE_FEATURE_SET_MASTER

    def set_bus_master(self, enabled: bool) -> None:
        """Allow or forbid DMA, as :attr:`bus_master`."""
        operation = (
            abi.VFIO_DEVICE_FEATURE_SET_MASTER if enabled else abi.VFIO_DEVICE_FEATURE_CLEAR_MASTER
        )
        payload = abi.vfio_device_feature_bus_master(op=operation).pack()
        self.set(abi.VFIO_DEVICE_FEATURE_BUS_MASTER, bytes(payload))

    def _request(self, feature: int, operations: int, payload: bytes) -> tuple[int, bytearray]:
        size = _HEAD + len(payload)
        head = abi.vfio_device_feature(argsz=size, flags=feature | operations)
        buffer = head.pack() + payload
        name = FEATURE_NAMES.get(feature, f"feature {feature}")
        try:
            result = request(self.kernel, self._fd, _NAME, buffer, self._device, f"{name}, {head}")
        except KernelError as error:
            error.hint = _HINTS.get((feature, error.errno or 0), error.hint)
            raise
        return result, buffer

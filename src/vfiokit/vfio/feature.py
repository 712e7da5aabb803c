"""Device features: probe, get and set, as raw payloads.

Source: Linux ``vfio_main.c`` ``vfio_ioctl_device_feature``.
"""

from __future__ import annotations

import errno

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.failure import request

_NAME = "VFIO_DEVICE_FEATURE"


class Features:
    """``VFIO_DEVICE_FEATURE`` of one device; ``feature`` is ``VFIO_DEVICE_FEATURE_*``."""

    def __init__(self, kernel: Kernel, fd: int, device: str) -> None:
        self._kernel = kernel
        self._fd = fd
        self._device = device

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
        return result, bytes(buffer[abi.vfio_device_feature.SIZE :])

    def set(self, feature: int, payload: bytes = b"") -> bytes:
        """Set a feature; returns the payload as the kernel left it. Raises as :meth:`get`."""
        _result, buffer = self._request(feature, abi.VFIO_DEVICE_FEATURE_SET, payload)
        return bytes(buffer[abi.vfio_device_feature.SIZE :])

    def _request(self, feature: int, operations: int, payload: bytes) -> tuple[int, bytearray]:
        size = abi.vfio_device_feature.SIZE + len(payload)
        head = abi.vfio_device_feature(argsz=size, flags=feature | operations)
        buffer = head.pack() + payload
        result = request(self._kernel, self._fd, _NAME, buffer, self._device, head)
        return result, buffer

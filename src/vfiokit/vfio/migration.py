"""Moving a device's state to another host: its states, and the stream that the state travels in.

The kernel walks from state to state by itself, through those between; see
``include/uapi/linux/vfio.h`` for what each means. Source: Linux ``vfio_main.c``
``vfio_mig_get_next_state``.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.failure import request
from vfiokit.vfio.feature import Features
from vfiokit.vfio.owner import Owner


class MigrationState(IntEnum):
    """``VFIO_DEVICE_STATE_*``."""

    ERROR = abi.VFIO_DEVICE_STATE_ERROR
    """Something failed; only a reset leads out."""
    STOP = abi.VFIO_DEVICE_STATE_STOP
    RUNNING = abi.VFIO_DEVICE_STATE_RUNNING
    """Where a device starts."""
    STOP_COPY = abi.VFIO_DEVICE_STATE_STOP_COPY
    """Stopped, its state readable from the stream."""
    RESUMING = abi.VFIO_DEVICE_STATE_RESUMING
    """Stopped, a state writable to the stream."""
    RUNNING_P2P = abi.VFIO_DEVICE_STATE_RUNNING_P2P
    """Running, but starting no access to other devices."""
    PRE_COPY = abi.VFIO_DEVICE_STATE_PRE_COPY
    """Running, with what is known of its state readable already."""
    PRE_COPY_P2P = abi.VFIO_DEVICE_STATE_PRE_COPY_P2P


class MigrationAbility(IntFlag):
    """``VFIO_MIGRATION_*``: the states that a device has beyond STOP, RUNNING and RESUMING."""

    STOP_COPY = abi.VFIO_MIGRATION_STOP_COPY
    P2P = abi.VFIO_MIGRATION_P2P
    PRE_COPY = abi.VFIO_MIGRATION_PRE_COPY


class PrecopyInfo(NamedTuple):
    """How much a stream in PRE_COPY still has, in bytes."""

    initial_bytes: int
    """To transfer before stopping pays off."""
    dirty_bytes: int
    """That changed since they were read."""
    restarted: bool
    """Whether the device began anew, and all that was read before is void."""


class MigrationStream(Owner):
    """The descriptor that a device's state is read from, or written to.

    Read and write it as a file of this process; the stream ends by an empty read. A read in
    PRE_COPY fails with ENOMSG when there is nothing new for now.
    """

    def __init__(self, kernel: Kernel, fd: int, device: str) -> None:
        self._kernel = kernel
        self._fd = fd
        self._device = device

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}"
        return f"<MigrationStream of {self._device} {state}>"

    @property
    def _holds(self) -> bool:
        return self._fd >= 0

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def precopy_info(self) -> PrecopyInfo:
        """What is left to read; raises :class:`KernelError` EINVAL outside PRE_COPY."""
        buffer = abi.vfio_precopy_info(argsz=abi.vfio_precopy_info.SIZE).pack()
        request(self._kernel, self._fd, "VFIO_MIG_GET_PRECOPY_INFO", buffer, self._device)
        info = abi.vfio_precopy_info.unpack_from(buffer)
        restarted = bool(info.flags & abi.VFIO_PRECOPY_INFO_REINIT)
        return PrecopyInfo(info.initial_bytes, info.dirty_bytes, restarted)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._kernel.close(fd)


class Migration:
    """Migration of one device; :attr:`abilities` is 0 when it cannot."""

    def __init__(self, features: Features) -> None:
        self._features = features

    @property
    def abilities(self) -> MigrationAbility:
        """What the device and its driver can do; 0 for plain vfio-pci."""
        size = abi.vfio_device_feature_migration.SIZE
        try:
            _result, payload = self._features.get(abi.VFIO_DEVICE_FEATURE_MIGRATION, size)
        except KernelError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                return MigrationAbility(0)
            raise
        return MigrationAbility(abi.vfio_device_feature_migration.unpack_from(payload).flags)

    @property
    def state(self) -> MigrationState:
        """Where the device is; raises :class:`KernelError` ENOTTY when it cannot migrate."""
        size = abi.vfio_device_feature_mig_state.SIZE
        _result, payload = self._features.get(abi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, size)
        return MigrationState(abi.vfio_device_feature_mig_state.unpack_from(payload).device_state)

    def set_state(self, state: MigrationState) -> MigrationStream | None:
        """Go to ``state``; returns the stream that comes with entering some of them.

        Raises :class:`KernelError`: EINVAL when there is no way from here. The device is then
        in the state before, on the way, or in ERROR: ask :attr:`state`.
        """
        wanted = abi.vfio_device_feature_mig_state(device_state=state, data_fd=-1)
        payload = self._features.set(abi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, bytes(wanted.pack()))
        fd = abi.vfio_device_feature_mig_state.unpack_from(payload).data_fd
        if fd < 0:
            return None
        return MigrationStream(self._features.kernel, fd, str(self._features))

    @property
    def stop_copy_size(self) -> int:
        """Bytes that the stream would have if the device were stopped now, an estimate."""
        size = abi.vfio_device_feature_mig_data_size.SIZE
        _result, payload = self._features.get(abi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, size)
        return abi.vfio_device_feature_mig_data_size.unpack_from(payload).stop_copy_length

    def announce_restarts(self) -> None:
        """Let :attr:`PrecopyInfo.restarted` be told, in kernels that know of it.

        Raises :class:`KernelError`: ENOTTY in others, EINVAL without PRE_COPY.
        """
        self._features.set(abi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2)

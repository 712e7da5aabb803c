"""``/dev/iommu``: requests to their handlers, and options of the whole descriptor.

Source: Linux ``drivers/iommu/iommufd/main.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from vfiokit.abi import iommufd as abi
from vfiokit.kernel.port import Mapping
from vfiokit.machine.kernel import iommufd_hwpt as hwpt
from vfiokit.machine.kernel import iommufd_ioas as ioas
from vfiokit.machine.kernel.argument import Argument, buffer_of, store
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommufd_compat import vfio_request
from vfiokit.machine.kernel.iommufd_context import IommufdContext

_VFIO_FIRST, _VFIO_LAST = abi.IOMMU_DESTROY - 28, abi.IOMMU_DESTROY - 1
"""VFIO's requests, which an iommufd understands in part."""


class IommufdFile(IommufdContext):
    """An open ``/dev/iommu``."""

    def ioctl(self, request: int, argument: Argument) -> int:
        """A command of :data:`vfiokit.abi.iommufd.COMMANDS`, or one of VFIO's container.

        EINVAL for a ``size`` below the command's least, E2BIG for nonzero bytes beyond the
        struct that is known here; a shorter struct reads as if zeros followed.
        """
        if _VFIO_FIRST <= request <= _VFIO_LAST:
            return vfio_request(self, request, argument)
        handler = _HANDLERS.get(request)
        if handler is None:
            return super().ioctl(request, argument)
        kind, least = abi.COMMANDS[request]
        view = buffer_of(argument, 4)
        size = int.from_bytes(view[:4], "little")
        if size < least:
            raise failure(errno.EINVAL, f"size is {size}, at least {least} is needed")
        if len(view) < size:
            raise failure(errno.EFAULT, f"size is {size}, but the buffer holds {len(view)} bytes")
        if any(view[kind.SIZE : size]):
            raise failure(errno.E2BIG, f"bytes beyond {kind.SIZE} are not zero")
        command = kind.unpack_from(bytes(view[:size]).ljust(kind.SIZE, b"\0"))

        def respond() -> None:
            store(command, view, min(size, kind.SIZE))

        handler(self, command, respond)
        respond()
        return 0

    def mmap(self, length: int, offset: int, protection: int) -> Mapping:
        """ENXIO: no object here offers a page."""
        del length, offset, protection
        raise failure(errno.ENXIO, "nothing is offered to map")


def _destroy(context: IommufdContext, command: abi.iommu_destroy, _respond: ioas.Respond) -> None:
    context.objects.destroy(command.id)


def _option(context: IommufdContext, command: abi.iommu_option, _respond: ioas.Respond) -> None:
    if command.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    if command.option_id == abi.IOMMU_OPTION_RLIMIT_MODE:
        _rlimit_mode(context, command)
    elif command.option_id == abi.IOMMU_OPTION_HUGE_PAGES:
        _huge_pages(context.objects.get(command.object_id, ioas.Ioas), command)
    else:
        raise failure(errno.EOPNOTSUPP, f"no option {command.option_id}")


def _rlimit_mode(context: IommufdContext, command: abi.iommu_option) -> None:
    if command.object_id:
        raise failure(errno.EOPNOTSUPP, "the mode is of the whole descriptor")
    if command.op == abi.IOMMU_OPTION_OP_GET:
        command.val64 = int(context.account.by_process)
        return
    _require_set(command)
    if context.objects:
        raise failure(errno.EBUSY, "the mode is set before any object is made")
    context.account.by_process = _boolean(command)


def _huge_pages(target: ioas.Ioas, command: abi.iommu_option) -> None:
    if command.op == abi.IOMMU_OPTION_OP_GET:
        command.val64 = int(target.table.large_pages)
        return
    _require_set(command)
    target.table.set_large_pages(_boolean(command))


def _require_set(command: abi.iommu_option) -> None:
    if command.op != abi.IOMMU_OPTION_OP_SET:
        raise failure(errno.EOPNOTSUPP, f"no operation {command.op}")


def _boolean(command: abi.iommu_option) -> bool:
    if command.val64 > 1:
        raise failure(errno.EINVAL, f"{command.val64} is neither 0 nor 1")
    return bool(command.val64)


def _vfio_ioas(
    context: IommufdContext, command: abi.iommu_vfio_ioas, _respond: ioas.Respond
) -> None:
    if command.reserved:
        raise failure(errno.EOPNOTSUPP, "reserved is not 0")
    if command.op == abi.IOMMU_VFIO_IOAS_GET:
        if context.compat_ioas is None:
            raise failure(errno.ENODEV, "no IOAS is set for VFIO's requests")
        command.ioas_id = context.compat_ioas.id
    elif command.op == abi.IOMMU_VFIO_IOAS_SET:
        context.compat_ioas = context.objects.get(command.ioas_id, ioas.Ioas)
    elif command.op == abi.IOMMU_VFIO_IOAS_CLEAR:
        context.compat_ioas = None
    else:
        raise failure(errno.EOPNOTSUPP, f"no operation {command.op}")


# Each handler takes the struct of its own command.
_HANDLERS: dict[int, Callable[[IommufdContext, Any, ioas.Respond], None]] = {
    abi.IOMMU_DESTROY: _destroy,
    abi.IOMMU_IOAS_ALLOC: ioas.alloc,
    abi.IOMMU_IOAS_ALLOW_IOVAS: ioas.allow_iovas,
    abi.IOMMU_IOAS_COPY: ioas.copy,
    abi.IOMMU_IOAS_IOVA_RANGES: ioas.iova_ranges,
    abi.IOMMU_IOAS_MAP: ioas.map_user,
    abi.IOMMU_IOAS_UNMAP: ioas.unmap,
    abi.IOMMU_OPTION: _option,
    abi.IOMMU_VFIO_IOAS: _vfio_ioas,
    abi.IOMMU_HWPT_ALLOC: hwpt.alloc,
    abi.IOMMU_GET_HW_INFO: hwpt.hw_info,
    abi.IOMMU_HWPT_SET_DIRTY_TRACKING: hwpt.set_dirty_tracking,
    abi.IOMMU_HWPT_GET_DIRTY_BITMAP: hwpt.get_dirty_bitmap,
    abi.IOMMU_HWPT_INVALIDATE: hwpt.invalidate,
    abi.IOMMU_FAULT_QUEUE_ALLOC: hwpt.fault_queue_alloc,
    abi.IOMMU_IOAS_MAP_FILE: ioas.map_file,
    abi.IOMMU_VIOMMU_ALLOC: hwpt.viommu_alloc,
    abi.IOMMU_VDEVICE_ALLOC: hwpt.vdevice_alloc,
    abi.IOMMU_IOAS_CHANGE_PROCESS: ioas.change_process,
    abi.IOMMU_VEVENTQ_ALLOC: hwpt.veventq_alloc,
    abi.IOMMU_HW_QUEUE_ALLOC: hwpt.hw_queue_alloc,
}

"""``/dev/vfio/devices/vfioN``: a device by its own node.

Source: Linux ``drivers/vfio/device_cdev.c``, ``drivers/vfio/iommufd.c``.
"""

from __future__ import annotations

import errno
import uuid

from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.argument import Argument, buffer_of, fetch, store
from vfiokit.machine.kernel.container import VfioGroup
from vfiokit.machine.kernel.device import DeviceFile, VfioPciDevice
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.hot_reset import ByIommufd
from vfiokit.machine.kernel.iommufd_context import IommufdContext
from vfiokit.machine.kernel.iommufd_device import IommufdDevice, has_group
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.process import AddressSpace

_BIND = abi.vfio_device_bind_iommufd
_ATTACH = abi.vfio_device_attach_iommufd_pt
_DETACH = abi.vfio_device_detach_iommufd_pt


class CdevFile(DeviceFile):
    """An open node of a device: nothing but binding works before it is bound to an iommufd."""

    def __init__(self, owner: VfioPciDevice, group: VfioGroup, process: AddressSpace) -> None:
        super().__init__(owner)
        self._group = group
        self._process = process

    def ioctl(self, request: int, argument: Argument) -> int:
        """Binding and attaching, and what every device has; EINVAL before it is bound."""
        if request == abi.VFIO_DEVICE_BIND_IOMMUFD:
            return self._bind(argument)
        if request == abi.VFIO_DEVICE_ATTACH_IOMMUFD_PT:
            return self._attach(self._binding, argument)
        if request == abi.VFIO_DEVICE_DETACH_IOMMUFD_PT:
            return self._detach(self._binding, argument)
        return super().ioctl(request, argument)

    def release(self) -> None:
        """The last descriptor and mapping are gone."""
        if self._started is not None:
            self._group.bound_devices -= 1
        super().release()

    @property
    def _binding(self) -> IommufdDevice:
        self._opened.touched()
        assert self._owner.binding is not None
        return self._owner.binding

    @property
    def _ownership(self) -> ByIommufd | None:
        return _Ownership(self._owner, self._binding.context)

    # -- requests -----------------------------------------------------------------------------

    def _bind(self, argument: Argument) -> int:
        """``VFIO_DEVICE_BIND_IOMMUFD``.

        EINVAL for unknown flags, when it is bound or open elsewhere; EBUSY while the group is
        open; EBADF, EBADFD; what tokens and taking the device over meet.
        """
        least = _BIND.OFFSETS["out_devid"] + 4
        request, view = fetch(_BIND, argument, least)
        if any(buffer_of(view, request.argsz)[_BIND.SIZE : request.argsz]):
            raise failure(errno.E2BIG, f"bytes beyond {_BIND.SIZE} are not zero")
        if request.flags & ~abi.VFIO_DEVICE_BIND_FLAG_TOKEN or request.iommufd < 0:
            raise failure(errno.EINVAL, "unknown flags, or no descriptor")
        if self._group.opened is not None:
            raise failure(errno.EBUSY, f"group {self._group.number} is open")
        if self._started is not None:
            raise failure(errno.EINVAL, "the device is bound already")
        context = self._owner.host.file_of(request.iommufd)
        if not isinstance(context, IommufdContext):
            raise failure(errno.EBADFD, f"{context.name} is no iommufd")
        self._owner.check_token(self._token(request))
        if self._owner.open_count:
            raise failure(errno.EINVAL, f"{self._owner.device.bdf} is open elsewhere")
        self._begin(self._owner.start(context))
        self._group.bound_devices += 1
        request.out_devid = self._binding.id
        store(request, view, least)
        return 0

    def _token(self, request: abi.vfio_device_bind_iommufd) -> str | None:
        if not request.flags & abi.VFIO_DEVICE_BIND_FLAG_TOKEN:
            return None
        return str(uuid.UUID(bytes=bytes(self._process.bytes_at(request.token_uuid_ptr, 16))))

    def _attach(self, binding: IommufdDevice, argument: Argument) -> int:
        """``VFIO_DEVICE_ATTACH_IOMMUFD_PT``: the answer names the page table."""
        least = _ATTACH.OFFSETS["pt_id"] + 4
        request, view = fetch(_ATTACH, argument, least)
        with_pasid = _check_pasid_flag(request.flags, request.argsz, _ATTACH.SIZE)
        if with_pasid:
            request.pt_id = binding.attach_pasid(request.pasid, request.pt_id)
        else:
            request.pt_id = binding.attach(request.pt_id)
        store(request, view, least)
        return 0

    def _detach(self, binding: IommufdDevice, argument: Argument) -> int:
        """``VFIO_DEVICE_DETACH_IOMMUFD_PT``."""
        request, _view = fetch(_DETACH, argument, _DETACH.OFFSETS["flags"] + 4)
        if _check_pasid_flag(request.flags, request.argsz, _DETACH.SIZE):
            binding.detach_pasid(request.pasid)
        else:
            binding.detach()
        return 0


class _Ownership:
    """What an iommufd owns, as hot reset sees it (``vfio_iommufd_get_dev_id``)."""

    def __init__(self, owner: VfioPciDevice, context: IommufdContext) -> None:
        self._host = owner.host
        self._context = context

    def number(self, device: PciDevice) -> int:
        """Id of a bound device; OWNED for one in a group with such a one; NOT_OWNED."""
        other = self._host.vfio_device(device)
        if other is None:
            return abi.VFIO_PCI_DEVID_NOT_OWNED
        if other.binding is not None and other.binding.context is self._context:
            return other.binding.id
        if has_group(self._context, self._host.group_of(device)):
            return abi.VFIO_PCI_DEVID_OWNED
        return abi.VFIO_PCI_DEVID_NOT_OWNED


def _check_pasid_flag(flags: int, argsz: int, size: int) -> bool:
    """Whether a PASID is named; EINVAL for other flags, or no room for it."""
    if flags & ~abi.VFIO_DEVICE_ATTACH_PASID:
        raise failure(errno.EINVAL, f"unknown flags {flags:#x}")
    if flags and argsz < size:
        raise failure(errno.EINVAL, f"argsz is {argsz}, at least {size} is needed for a PASID")
    return bool(flags)

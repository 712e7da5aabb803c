"""Where a device's descriptor comes from, and which address space it does DMA in."""

from __future__ import annotations

import contextlib
from typing import Protocol
from uuid import UUID

from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio.address_space import AddressSpace
from vfiokit.vfio.cdev import Cdev, require_cdev_node
from vfiokit.vfio.container import Container, IommuType
from vfiokit.vfio.group import Group, group_number
from vfiokit.vfio.hwpt import Hwpt
from vfiokit.vfio.ioas import Ioas


class Backend(Protocol):
    """An open device: descriptor, address space, and how to give both back.

    ``kernel`` understands ``fd``: ``ioctl`` with the ``VFIO_DEVICE_*`` requests, ``pread``,
    ``pwrite``, ``mmap``. Anything that answers those is a device, wherever it lives.
    """

    @property
    def kernel(self) -> Kernel:
        """Who understands the descriptor."""
        ...

    @property
    def fd(self) -> int:
        """The device's descriptor."""
        ...

    @property
    def address_space(self) -> AddressSpace:
        """What the device's DMA goes through."""
        ...

    @property
    def group_fds(self) -> dict[int, int]:
        """Descriptor of every group owned with the device, by number; empty without groups."""
        ...

    def close(self) -> None:
        """Close the device, then what was opened for it. Idempotent."""
        ...


class GroupBackend:
    """A device opened through its IOMMU group and a type1 container."""

    def __init__(
        self, kernel: Kernel, fd: int, group: Group, container: Container, *, owns_container: bool
    ) -> None:
        self.kernel = kernel
        self.fd = fd
        self.address_space = container
        self._group: Group | None = group
        self._owns_container = owns_container

    @classmethod
    def open(
        cls,
        kernel: Kernel,
        bdf: Bdf,
        *,
        iommu_type: IommuType | int | None = None,
        container: Container | None = None,
        vf_token: UUID | None = None,
    ) -> GroupBackend:
        """Open the function in ``container``, or in one of its own.

        Raises :class:`DeviceNotFoundError`, :class:`GroupNotViableError`,
        :class:`DeviceBusyError`, :class:`KernelError`; nothing stays open then.
        """
        number = group_number(kernel.tree, bdf)
        name = str(bdf) if vf_token is None else f"{bdf} vf_token={vf_token}"
        space = Container.open(kernel, iommu_type) if container is None else container
        with contextlib.ExitStack() as stack:
            if container is None:
                stack.callback(space.close)
            group = space.attach(number)
            stack.callback(space.detach, group)
            fd = group.device_fd(name)
            stack.callback(kernel.close, fd)
            space.refresh()
            stack.pop_all()
        return cls(kernel, fd, group, space, owns_container=container is None)

    @property
    def group_fds(self) -> dict[int, int]:
        """Descriptor of every group in the container, by number."""
        return self.address_space.group_fds

    def close(self) -> None:
        """Device, then group, then container: the order in which the kernel lets go."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        group, self._group = self._group, None
        with contextlib.ExitStack() as stack:
            if self._owns_container:
                stack.callback(self.address_space.close)
            if group is not None and group.fd >= 0:
                stack.callback(self.address_space.detach, group)
            stack.callback(self.kernel.close, fd)


class CdevBackend:
    """A device opened by its own node, attached to an IOAS or to a page table made over one."""

    def __init__(self, kernel: Kernel, cdev: Cdev, ioas: Ioas, *, owns_ioas: bool) -> None:
        self.kernel = kernel
        self.cdev = cdev
        """The node; its ``device_id`` and ``iommufd`` are what page tables are made for."""
        self.address_space = ioas
        self._owned = ioas if owns_ioas else None

    @classmethod
    def open(
        cls,
        kernel: Kernel,
        bdf: Bdf,
        *,
        ioas: Ioas | None = None,
        vf_token: UUID | None = None,
    ) -> CdevBackend:
        """Open the function in ``ioas``, or in one of its own.

        Raises :class:`DeviceNotFoundError`, :class:`GroupNotViableError`,
        :class:`DeviceBusyError`, :class:`KernelError`; nothing stays open then.
        """
        require_cdev_node(kernel.tree, bdf)
        space = Ioas.open(kernel) if ioas is None else ioas
        with contextlib.ExitStack() as stack:
            if ioas is None:
                stack.callback(space.close)
            cdev = Cdev.open(kernel, bdf)
            stack.callback(cdev.close)
            cdev.bind(space.iommufd, vf_token)
            cdev.attach(space)
            space.refresh()
            stack.pop_all()
        return cls(kernel, cdev, space, owns_ioas=ioas is None)

    @property
    def fd(self) -> int:
        """The device's descriptor."""
        return self.cdev.fd

    @property
    def group_fds(self) -> dict[int, int]:
        """None: ownership is the iommufd's."""
        return {}

    def attach(self, target: Ioas | Hwpt, pasid: int | None = None) -> int:
        """Attach to ``target`` in place of what there was; see :meth:`Cdev.attach`.

        Without ``pasid`` its IOAS is the device's address space from then on.
        """
        number = self.cdev.attach(target, pasid)
        if pasid is None:
            before = self.address_space
            self.address_space = target if isinstance(target, Ioas) else target.ioas
            for space in {before, self.address_space}:
                space.refresh()
        return number

    def detach(self, pasid: int | None = None) -> None:
        """Detach; see :meth:`Cdev.detach`."""
        self.cdev.detach(pasid)
        if pasid is None:
            self.address_space.refresh()

    def close(self) -> None:
        """Device, then the IOAS that was opened for it. Idempotent."""
        if self.cdev.fd < 0:
            return
        with contextlib.ExitStack() as stack:
            if self._owned is not None:
                stack.callback(self._owned.close)
            elif self.address_space.id and self.address_space.iommufd.fd >= 0:
                stack.callback(self.address_space.refresh)
            stack.callback(self.cdev.close)

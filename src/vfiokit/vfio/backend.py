"""Where a device's descriptor comes from, and which address space it does DMA in."""

from __future__ import annotations

import contextlib
from typing import Protocol

from vfiokit.kernel.port import Kernel
from vfiokit.vfio.address_space import AddressSpace
from vfiokit.vfio.container import Container, IommuType
from vfiokit.vfio.group import Group


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
        name: str,
        number: int,
        *,
        iommu_type: IommuType | int | None = None,
        container: Container | None = None,
    ) -> GroupBackend:
        """Open device ``name`` of group ``number``, in ``container`` or in one of its own."""
        space = Container.open(kernel, iommu_type) if container is None else container
        owned = container is None
        try:
            group = space.attach(number)
            try:
                fd = group.device_fd(name)
            except BaseException:
                space.detach(group)
                raise
        except BaseException:
            if owned:
                space.close()
            raise
        return cls(kernel, fd, group, space, owns_container=owned)

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

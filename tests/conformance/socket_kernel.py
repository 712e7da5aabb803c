"""The device requests of a kernel, answered by vfio-user servers.

Groups and containers, which the protocol does not have, are empty shells around the devices: a
device of a group is a connection to a server of its function, and what is mapped in a container is
mapped at each of its devices. Binding and sysfs are the software machine's, whose functions are
served.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from dataclasses import dataclass, field
from itertools import count

from vfiokit.abi import vfio as abi
from vfiokit.kernel import linux
from vfiokit.kernel.port import EFD_CLOEXEC, EFD_NONBLOCK, PROT_READ, PROT_WRITE, Kernel, Mapping
from vfiokit.machine.fabric import Fabric
from vfiokit.pci.address import Bdf
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.function import FunctionDevice
from vfiokit.vfio_user.kernel import DEVICE_FD, SharedMemory, SocketKernel
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap
from vfiokit.vfio_user.server import Server

FIRST_FD = 1 << 20
"""Numbers of descriptors that are none of the system's."""


@dataclass
class Container:
    """Mappings, and the devices that they are made at."""

    devices: list[SocketKernel] = field(default_factory=list)


@dataclass
class Group:
    """A group's node, opened."""

    path: str
    container: Container | None = None


class ServedKernel:
    """The seam of ``kernel``, with the devices of ``fabric`` reached over sockets."""

    def __init__(self, kernel: Kernel, fabric: Fabric) -> None:
        self.tree = kernel.tree
        self._fabric = fabric
        self._numbers = count(FIRST_FD)
        self._files: dict[int, Container | Group | SocketKernel] = {}
        self._memory: list[SharedMemory] = []

    page_size = 4096

    def open(self, path: str, flags: int = 2) -> int:
        if not self.tree.exists(path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._add(Container() if path == "/dev/vfio/vfio" else Group(path))

    def _add(self, file: Container | Group | SocketKernel) -> int:
        fd = next(self._numbers)
        self._files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        if fd < FIRST_FD:
            linux.close(fd)
            return
        file = self._files.pop(fd, None)
        if file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if isinstance(file, SocketKernel):
            file.close(DEVICE_FD)

    def _device(self, fd: int) -> SocketKernel:
        file = self._files.get(fd)
        if not isinstance(file, SocketKernel):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return file

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        match self._files.get(fd):
            case SocketKernel() as device:
                return device.ioctl(DEVICE_FD, request, argument)
            case Group() as group:
                return self._group(group, request, argument)
            case Container() as container:
                return self._container(container, request, argument)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _group(self, group: Group, request: int, argument: int | bytearray | memoryview) -> int:
        assert not isinstance(argument, int)
        if request == abi.VFIO_GROUP_SET_CONTAINER:
            found = self._files[int.from_bytes(argument[:4], "little")]
            assert isinstance(found, Container)
            group.container = found
            return 0
        assert request == abi.VFIO_GROUP_GET_DEVICE_FD, hex(request)
        made = self._connect(Bdf.parse(bytes(argument).rstrip(b"\0").decode().split()[0]))
        if group.container is not None:
            group.container.devices.append(made)
        return self._add(made)

    def _connect(self, bdf: Bdf) -> SocketKernel:
        server = Server(FunctionDevice(self._fabric.functions[bdf]))
        ours, theirs = socket.socketpair()
        threading.Thread(target=server.serve, args=(theirs,), daemon=True).start()
        return SocketKernel(Client(ours, name=str(bdf)))

    def _container(
        self, container: Container, request: int, argument: int | bytearray | memoryview
    ) -> int:
        if request == abi.VFIO_IOMMU_MAP_DMA:
            assert not isinstance(argument, int)
            wish = abi.vfio_iommu_type1_dma_map.unpack_from(argument)
            memory, start = self._resolve(wish.vaddr, wish.size)
            for device in container.devices:
                given = DmaMap(wish.iova, wish.size, wish.flags & 3, start)
                device.client.dma_map(given, memory.fd)
        elif request == abi.VFIO_IOMMU_UNMAP_DMA:
            assert not isinstance(argument, int)
            gone = abi.vfio_iommu_type1_dma_unmap.unpack_from(argument)
            for device in container.devices:
                device.client.dma_unmap(DmaUnmap(gone.iova, gone.size))
        else:
            assert request == abi.VFIO_SET_IOMMU, hex(request)
        return 0

    def _resolve(self, vaddr: int, length: int) -> tuple[SharedMemory, int]:
        for memory in self._memory:
            if memory.vaddr <= vaddr and vaddr + length <= memory.vaddr + memory.length:
                return memory, vaddr - memory.vaddr
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return self._device(fd).pread(DEVICE_FD, length, offset)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        return self._device(fd).pwrite(DEVICE_FD, data, offset)

    def mmap(
        self, fd: int, length: int, offset: int, protection: int = PROT_READ | PROT_WRITE
    ) -> Mapping:
        return self._device(fd).mmap(DEVICE_FD, length, offset, protection)

    def allocate(self, length: int, *, huge_page_size: int = 0) -> SharedMemory:
        made = SharedMemory(length)
        self._memory.append(made)
        return made

    def eventfd(self, initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
        return linux.eventfd(initial, flags)

    def eventfd_read(self, fd: int) -> int:
        return linux.eventfd_read(fd)

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        linux.eventfd_write(fd, value)

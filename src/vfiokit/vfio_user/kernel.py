"""A vfio-user server as a device of :mod:`vfiokit.vfio`: the seam's calls over the socket.

The device descriptor is a number of this kernel; eventfds are real. Memory that it allocates lies
in files that the server maps, or with ``share=False`` is reached by the server's messages only.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from typing import Final, NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.abi import vfio_user as user_abi
from vfiokit.errors import UsageError
from vfiokit.kernel import linux
from vfiokit.kernel.port import (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    PROT_READ,
    PROT_WRITE,
    Mapping,
    Memory,
    WritableTree,
)
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.device import Device
from vfiokit.vfio.failure import kernel_error
from vfiokit.vfio.mapping import MappedSpace
from vfiokit.vfio_user.client import OFFER, Client
from vfiokit.vfio_user.connection import ClosedError
from vfiokit.vfio_user.payload import (
    DmaMap,
    DmaUnmap,
    Feature,
    RegionInfo,
    SetIrqs,
)
from vfiokit.vfio_user.session import Capabilities

DEVICE_FD: Final = 3
"""The one descriptor that :class:`SocketKernel` hands out for a device."""
_SHIFT: Final = abi.VFIO_PCI_OFFSET_SHIFT
_RANGES: Final = (IovaRange(0, (1 << 48) - 1),)


class SharedMemory:
    """Memory in a file, so that another process can map it; page aligned and zeroed."""

    def __init__(self, length: int) -> None:
        kernel = linux.LinuxKernel()
        self.length = -(-length // kernel.page_size) * kernel.page_size
        self.fd = linux.memory_file("vfiokit-dma", self.length)
        try:
            self._mapping = kernel.mmap(self.fd, self.length, 0)
        except BaseException:
            linux.close(self.fd)
            raise
        self.vaddr = linux.address_of(self.view)

    @property
    def view(self) -> memoryview:
        """The bytes."""
        view = self._mapping.view
        assert view is not None
        return view

    def close(self) -> None:
        """Free; ``BufferError`` while slices of :attr:`view` are in use."""
        self._mapping.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            linux.close(fd)


class SocketKernel:
    """The calls of :class:`~vfiokit.kernel.port.Kernel` that a device needs, over a client."""

    def __init__(self, client: Client, *, share: bool = True) -> None:
        self.client = client
        self.share = share
        """Whether the server gets the files of DMA memory."""
        self._infos: dict[int, tuple[RegionInfo, int]] = {}
        self._memory: dict[int, SharedMemory] = {}
        self._starts: list[int] = []
        self._requests: dict[int, Callable[[bytearray | memoryview], int]] = {
            abi.VFIO_DEVICE_GET_INFO: self._device_info,
            abi.VFIO_DEVICE_GET_REGION_INFO: self._region_info,
            abi.VFIO_DEVICE_GET_IRQ_INFO: self._irq_info,
            abi.VFIO_DEVICE_SET_IRQS: self._set_irqs,
            abi.VFIO_DEVICE_FEATURE: self._feature,
        }

    @property
    def tree(self) -> WritableTree:
        """A device on a socket has no files; this host's are not its own."""
        raise UsageError("a device on a socket has no files in sysfs")

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return linux.LinuxKernel().page_size

    def open(self, path: str, flags: int = 2) -> int:
        """There is nothing to open: ENOENT."""
        del flags
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def close(self, fd: int) -> None:
        """Close an eventfd, or the connection with its device."""
        if fd != DEVICE_FD:
            linux.close(fd)
            return
        for _info, file in self._infos.values():
            if file >= 0:
                linux.close(file)
        self._infos.clear()
        self.client.close()

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        """The requests of a device; ENOTTY for what the protocol does not carry, ENODEV once the
        server is gone.
        """
        self._require_device(fd)
        action = self._requests.get(request)
        if action is None and request != abi.VFIO_DEVICE_RESET:
            raise OSError(errno.ENOTTY, "vfio-user carries no such request")
        try:
            if action is None:
                self.client.reset()
                return 0
            if isinstance(argument, int):
                raise OSError(errno.EFAULT, "this request takes a buffer")
            return action(argument)
        except ClosedError as end:
            raise OSError(errno.ENODEV, str(end)) from end

    def _require_device(self, fd: int) -> None:
        if fd != DEVICE_FD:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.client.closed:
            raise OSError(errno.ENODEV, f"the connection to {self.client.name} has ended")

    # -- requests -----------------------------------------------------------------------------

    def _device_info(self, buffer: bytearray | memoryview) -> int:
        info = self.client.device_info()
        made = abi.vfio_device_info(
            argsz=abi.vfio_device_info.SIZE,
            flags=info.flags,
            num_regions=info.num_regions,
            num_irqs=info.num_irqs,
        )
        return _put(buffer, bytes(made.pack()), least=16)

    def region(self, index: int) -> tuple[RegionInfo, int]:
        """A region and the file behind it (-1 without), asked once; ``OSError`` EINVAL."""
        if index not in self._infos:
            self._infos[index] = self.client.region_info(index)
        return self._infos[index]

    def _region_info(self, buffer: bytearray | memoryview) -> int:
        head = _head(buffer, abi.vfio_region_info.SIZE)
        info, _file = self.region(int.from_bytes(buffer[8:12], "little"))
        packed = bytearray(info.pack(head))
        # The offset is a place in the file of the region; a device's own file has them apart.
        place = info.index << _SHIFT
        packed[24:32] = place.to_bytes(8, "little")
        return _put(buffer, bytes(packed), least=abi.vfio_region_info.SIZE)

    def _irq_info(self, buffer: bytearray | memoryview) -> int:
        _head(buffer, abi.vfio_irq_info.SIZE)
        info = self.client.irq_info(int.from_bytes(buffer[8:12], "little"))
        return _put(buffer, info.pack(), least=16)

    def _set_irqs(self, buffer: bytearray | memoryview) -> int:
        size = abi.vfio_irq_set.SIZE
        length = _head(buffer, size)
        wanted = abi.vfio_irq_set.unpack_from(buffer)
        values = bytes(buffer[size:length])
        flags = wanted.flags
        if not flags & abi.VFIO_IRQ_SET_DATA_EVENTFD:
            request = SetIrqs(flags, wanted.index, wanted.start, wanted.count, values)
            self.client.set_irqs(request)
            return 0
        if len(values) < 4 * wanted.count:
            raise OSError(errno.EINVAL, f"{wanted.count} eventfds in {len(values)} bytes")
        fds = [
            int.from_bytes(values[at : at + 4], "little", signed=True)
            for at in range(0, 4 * wanted.count, 4)
        ]
        if min(fds, default=0) < -1:
            raise OSError(errno.EINVAL, "-1 takes an eventfd away; nothing below means anything")
        for start, run in _runs(fds):
            part = SetIrqs(flags, wanted.index, wanted.start + start, len(run))
            self.client.set_irqs(part, [] if run[0] < 0 else run)
        return 0

    def _feature(self, buffer: bytearray | memoryview) -> int:
        size = abi.vfio_device_feature.SIZE
        length = _head(buffer, size)
        flags = int.from_bytes(buffer[4:8], "little")
        reply = self.client.feature(Feature(flags, bytes(buffer[size:length]), length))
        room = len(buffer) - size
        buffer[size : size + min(room, len(reply.data))] = reply.data[:room]
        return 0

    # -- regions ------------------------------------------------------------------------------

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Read a region; what is beyond its end is not read, and nothing can begin there.

        ``OSError`` EINVAL for that, or EFAULT in configuration space, as vfio-pci has it.
        """
        self._require_device(fd)
        index, start = offset >> _SHIFT, offset & abi.VFIO_PCI_OFFSET_MASK
        return self.client.region_read(index, start, self._inside(index, start, length))

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write a region, up to its end; returns how much. ``OSError`` as for :meth:`pread`."""
        self._require_device(fd)
        index, start = offset >> _SHIFT, offset & abi.VFIO_PCI_OFFSET_MASK
        length = self._inside(index, start, len(data))
        self.client.region_write(index, start, bytes(data[:length]))
        return length

    def _inside(self, index: int, start: int, length: int) -> int:
        """How much of an access is inside the region."""
        size = self.region(index)[0].size
        if start + length <= size:
            return length
        if index == abi.VFIO_PCI_CONFIG_REGION_INDEX:
            raise OSError(errno.EFAULT, f"configuration space has {size} bytes")
        if start >= size:
            raise OSError(errno.EINVAL, f"region {index} has {size:#x} bytes")
        return size - start

    def mmap(
        self, fd: int, length: int, offset: int, protection: int = PROT_READ | PROT_WRITE
    ) -> Mapping:
        """Map a region from the file that the server gave; EINVAL where it gave none."""
        self._require_device(fd)
        index, start = offset >> _SHIFT, offset & abi.VFIO_PCI_OFFSET_MASK
        info, file = self.region(index)
        if file < 0 or start + length > info.size:
            raise OSError(errno.EINVAL, f"region {index} cannot be mapped there")
        _mode, size, _sealed = linux.file_facts(file)
        if info.offset + start + length > size:
            raise OSError(errno.ENXIO, f"the server's file for region {index} is too short")
        return linux.LinuxKernel().mmap(file, length, info.offset + start, protection)

    # -- memory and eventfds ------------------------------------------------------------------

    def allocate(self, length: int, *, huge_page_size: int = 0) -> Memory:
        """Memory that the server can be given."""
        if huge_page_size:
            raise OSError(errno.ENOMEM, "no huge pages over a socket")
        made = SharedMemory(length)
        at = bisect_right(self._starts, made.vaddr)
        self._starts.insert(at, made.vaddr)
        self._memory[made.vaddr] = made
        return made

    def resolve(self, vaddr: int, length: int) -> tuple[SharedMemory, int]:
        """The memory that holds the range, and where it starts there; ``OSError`` EFAULT."""
        at = bisect_right(self._starts, vaddr) - 1
        while at >= 0:
            memory = self._memory[self._starts[at]]
            if memory.fd < 0:  # closed meanwhile
                del self._memory[self._starts.pop(at)]
                at -= 1
                continue
            if vaddr + length <= memory.vaddr + memory.length:
                return memory, vaddr - memory.vaddr
            break
        raise OSError(errno.EFAULT, "memory that was not allocated here cannot be shared")

    def eventfd(self, initial: int = 0, flags: int = EFD_CLOEXEC | EFD_NONBLOCK) -> int:
        """``eventfd(2)``."""
        return linux.eventfd(initial, flags)

    def eventfd_read(self, fd: int) -> int:
        """Take the counter."""
        return linux.eventfd_read(fd)

    def eventfd_write(self, fd: int, value: int = 1) -> None:
        """Add to the counter."""
        linux.eventfd_write(fd, value)


def _head(buffer: bytearray | memoryview, least: int) -> int:
    """The ``argsz`` of a request, within its buffer; ``OSError`` EINVAL below ``least``."""
    size = min(int.from_bytes(buffer[0:4], "little"), len(buffer))
    if size < least:
        raise OSError(errno.EINVAL, f"argsz {size}; {least} are needed")
    return size


def _put(buffer: bytearray | memoryview, packed: bytes, *, least: int) -> int:
    room = _head(buffer, least)
    count = min(room, len(packed))
    buffer[:count] = packed[:count]
    return 0


def _runs(fds: list[int]) -> list[tuple[int, list[int]]]:
    """Descriptors in runs that are all valid or all absent, with where each starts."""
    found: list[tuple[int, list[int]]] = []
    for position, fd in enumerate(fds):
        if found and (found[-1][1][0] < 0) == (fd < 0):
            found[-1][1].append(fd)
        else:
            found.append((position, [fd]))
    return found


class _View(NamedTuple):
    """A mapping as the server's own requests need it."""

    length: int
    flags: int
    memory: SharedMemory
    offset: int
    """Where it starts in the memory."""


class SocketSpace(MappedSpace):
    """The addresses of a device on a socket: whatever this client maps."""

    def __init__(self, kernel: SocketKernel) -> None:
        super().__init__(kernel)
        self._socket = kernel
        page = kernel.client.agreed.pgsizes
        self._renew_allocator(_RANGES, page & -page or kernel.page_size)
        self._views: dict[int, _View] = {}
        self._view_starts: list[int] = []
        kernel.client.memory = self

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """48 bits: the protocol names no limit."""
        return _RANGES

    def _require_usable(self) -> None:
        if self._socket.client.closed:
            raise UsageError("the connection is closed")

    def _ask_map(self, vaddr: int, length: int, iova: int | None, read: bool, write: bool) -> int:
        assert iova is not None
        flags = user_abi.VFIO_USER_F_DMA_REGION_READ if read else 0
        flags |= user_abi.VFIO_USER_F_DMA_REGION_WRITE if write else 0
        try:
            memory, start = self._socket.resolve(vaddr, length)
            fd = memory.fd if self._socket.share else -1
            offset = start if self._socket.share else 0
            self._socket.client.dma_map(DmaMap(iova, length, flags, offset), fd)
        except OSError as error:
            raise kernel_error("VFIO_USER_DMA_MAP", f"IOVA {iova:#x}", error) from error
        self._add_view(iova, _View(length, flags, memory, start))
        return iova

    def unmap(self, iova: int, length: int) -> None:
        """Take one mapping back, as a whole."""
        if self._socket.client.closed:  # the server dropped it with the connection
            self._drop_view(iova)
            return
        try:
            self._socket.client.dma_unmap(DmaUnmap(iova, length))
        except OSError as error:
            raise kernel_error("VFIO_USER_DMA_UNMAP", f"IOVA {iova:#x}", error) from error
        self._drop_view(iova)
        self._forget(iova)

    def unmap_all(self) -> None:
        """Take every mapping back."""
        self._socket.client.dma_unmap(DmaUnmap(0, 0, user_abi.VFIO_DMA_UNMAP_FLAG_ALL))
        self._views, self._view_starts = {}, []
        for iova in list(self._mappings):
            self._forget(iova)

    def drop(self) -> None:
        """The connection ended: note that every mapping is gone."""
        self._views, self._view_starts = {}, []
        self._drop_mappings()

    # -- the server's own requests ------------------------------------------------------------

    def read(self, iova: int, length: int) -> bytes:
        """What the server asked for by ``DMA_READ``; EFAULT, EPERM."""
        return b"".join(
            bytes(piece)
            for piece in self._pieces(iova, length, user_abi.VFIO_USER_F_DMA_REGION_READ)
        )

    def write(self, iova: int, data: bytes) -> None:
        """What the server sent by ``DMA_WRITE``; EFAULT, EPERM."""
        at = 0
        for piece in self._pieces(iova, len(data), user_abi.VFIO_USER_F_DMA_REGION_WRITE):
            piece[:] = data[at : at + len(piece)]
            at += len(piece)

    def _pieces(self, iova: int, length: int, need: int) -> list[memoryview]:
        found = []
        at, left = iova, length
        # Requests come in a thread of their own, while mappings come and go in another.
        starts, views = self._view_starts, self._views
        while left:
            index = bisect_right(starts, at) - 1
            start = starts[index] if index >= 0 else 0
            view = views.get(start)
            if view is None or not start <= at < start + view.length:
                raise OSError(errno.EFAULT, f"nothing is mapped at {at:#x}")
            if not view.flags & need:
                raise OSError(errno.EPERM, f"the mapping at {start:#x} forbids it")
            taken = min(left, start + view.length - at)
            begin = view.offset + at - start
            found.append(view.memory.view[begin : begin + taken])
            at += taken
            left -= taken
        return found

    def _add_view(self, iova: int, view: _View) -> None:
        self._views[iova] = view
        insort(self._view_starts, iova)

    def _drop_view(self, iova: int) -> None:
        if self._views.pop(iova, None) is not None:
            del self._view_starts[bisect_left(self._view_starts, iova)]


class SocketBackend:
    """A device opened at a server's socket."""

    def __init__(self, kernel: SocketKernel) -> None:
        self.kernel = kernel
        self.fd = DEVICE_FD
        self.address_space = SocketSpace(kernel)

    @property
    def group_fds(self) -> dict[int, int]:
        """There are no groups."""
        return {}

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        self.kernel.close(fd)
        self.address_space.drop()


def open_socket(
    path: str | os.PathLike[str],
    *,
    share: bool = True,
    offer: Capabilities = OFFER,
    timeout: float | None = 10.0,
) -> Device:
    """Open the device that is served at ``path``; use the result in a ``with`` block.

    ``share=False`` gives the server no file of DMA memory: it must ask for every byte. Raises
    :class:`~vfiokit.errors.KernelError` and :class:`~vfiokit.errors.ProtocolError`.
    """
    client = Client.connect(path, offer=offer, timeout=timeout)
    try:
        backend = SocketBackend(SocketKernel(client, share=share))
        return Device(backend, os.fspath(path))
    except BaseException:
        client.close()
        raise

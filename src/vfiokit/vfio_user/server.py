"""The server's end: one device, one client at a time.

:class:`Server` serves connected sockets; :mod:`vfiokit.vfio_user.listen` makes them. Commands are
handled in order. Whatever a client sends, the reply is an errno or the connection ends; nothing
that it sends stays behind when it goes.

Source: QEMU ``docs/interop/vfio-user.rst``; refusals as libvfio-user has them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vfiokit.abi import vfio as vfio_abi
from vfiokit.errors import ProtocolError
from vfiokit.vfio_user import wire
from vfiokit.vfio_user.backchannel import BackChannel
from vfiokit.vfio_user.client_memory import MemoryWatch
from vfiokit.vfio_user.connection import ClosedError, Connection, close_all
from vfiokit.vfio_user.device import Device, Doorbells, ServedRegion
from vfiokit.vfio_user.dma import DmaTable
from vfiokit.vfio_user.feature import FeatureSet
from vfiokit.vfio_user.irq import IrqTable
from vfiokit.vfio_user.payload import (
    ACCESS,
    DMA_MAP_SIZE,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    Feature,
    IrqInfo,
    MigrationData,
    RegionInfo,
    RegionIoFds,
    SetIrqs,
    pack_count,
    unpack_writes,
)
from vfiokit.vfio_user.poller import Poller
from vfiokit.vfio_user.session import (
    Capabilities,
    Session,
    State,
    Version,
    answer,
    message_limit,
)
from vfiokit.vfio_user.wire import HEADER, HEADER_SIZE, Command, Message

DEFAULT: Final = Capabilities(max_msg_fds=16, twin_socket=True, write_multiple=True)
"""What a server accepts unless told otherwise. QEMU takes no more than 16 descriptors."""
_REPLY: Final = 1
_ACCESS: Final = struct.Struct("<HHIIIQII")
"""Header and head of a region access in one."""
_SMALL: Final = 64
"""Bytes of a register access that goes without ceremony."""
_NO_REPLY: Final = 0x10
_READ: Final = int(Command.REGION_READ)
_WRITE: Final = int(Command.REGION_WRITE)
_DMA_MAP: Final = int(Command.DMA_MAP)
_log = logging.getLogger(__name__)

Observer = Callable[[str, int, int, bytes], None]
"""Told what happens: ``read`` or ``write`` with region, offset and data; ``dma read`` or
``dma write`` with 0, IOVA and data; ``signal`` with interrupt index and vector; ``reset``."""


class Server:
    """Serves ``device``; ``limits`` are what it accepts from a client.

    ``observer`` sees every access to a region, for traces.
    """

    def __init__(
        self,
        device: Device,
        *,
        limits: Capabilities = DEFAULT,
        observer: Observer | None = None,
        dma_timeout: float = 30.0,
    ) -> None:
        """``dma_timeout`` is how many seconds a client has to answer a request of the device's."""
        self.device = device
        self.limits = limits
        self.observer = observer
        self.dma_timeout = dma_timeout
        self._client: _Client | None = None

    def serve(self, sock: socket.socket) -> str:
        """Serve one client until it goes; returns why it ended, in words. ``sock`` is closed.

        The device keeps its state, so that the next client finds it as this one left it.
        """
        client = self._client = _Client(self, sock)
        try:
            return client.run()
        finally:
            self._client = None
            client.close()

    def stop(self) -> None:
        """End :meth:`serve` soon. May be called from a signal handler or another thread."""
        client = self._client
        if client is not None:
            client.interrupt()


class _Client:
    """One connection: the :class:`~vfiokit.vfio_user.device.Host` of the device meanwhile."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._device = server.device
        self._observer = server.observer
        self._link = Connection(sock, limit=message_limit(server.limits))
        self._session = Session(True, server.limits)
        self._channel = BackChannel(self._link, self._session, timeout=server.dma_timeout)
        self._dma = DmaTable(max_maps=server.limits.max_dma_maps)
        watch = MemoryWatch(sock)
        self._dma.is_useless, self._channel.notice = watch.is_useless, watch.by_message
        self._poller = Poller(self._link.fileno())
        self._irqs = IrqTable(server.device.irq_counts, self._poller)
        self._features = FeatureSet(server.device, self._dma)
        self._regions = tuple(server.device.regions)
        self._readable = tuple(each.size if each.readable else 0 for each in self._regions)
        self._most = server.limits.max_data_xfer_size
        self._connected = False
        self._alone = {_ACCESS.size: self._read_alone}
        if server.limits.max_msg_fds:
            self._alone[HEADER_SIZE + DMA_MAP_SIZE] = self._map_alone
        self._plain = False
        """Whether small accesses need nothing but the device: a client, and no observer."""
        self._handlers: dict[Command, Callable[[Message], bytes | None]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._write_multi,
            Command.DEVICE_RESET: self._reset,
            Command.DEVICE_FEATURE: self._feature,
            Command.MIG_DATA_READ: self._migration_read,
            Command.MIG_DATA_WRITE: self._migration_write,
        }

    def run(self) -> str:
        """Until the stream ends."""
        link, channel, session = self._link, self._channel, self._session
        later = channel.later
        try:
            while not session.closed:
                if later:
                    self._handle(channel.take())
                    continue
                if link.idle:
                    if self._poller.active:
                        link.flush()
                        self._poller.wait()
                    elif self._plain and link.serve_alone(self._alone):
                        continue
                if link.fill() and self._take_small():
                    continue
                # The device may have waited for the client: then what came is in ``later``, or
                # nothing is left, or there is no client any more.
                if not (later or link.idle or session.closed):
                    self._handle(link.receive())
        except ProtocolError as error:
            with contextlib.suppress(OSError):
                link.flush()
            return f"the client broke the protocol: {error}"
        except OSError as end:
            return str(end)
        return channel.broken

    def interrupt(self) -> None:
        """Let whatever waits for the client see the end of the stream."""
        for link in (self._link, self._channel.twin):
            if link is not None:
                link.shut_down()

    def close(self) -> None:
        """Give everything of the client's back."""
        self._session.state = State.CLOSED
        if self._connected:
            for step in (self._device.disconnect, self._features.reset):
                try:
                    step()
                except Exception as error:  # noqa: BLE001  # see _handle
                    _log.error("%s failed as its client left", self._device.name, exc_info=error)
        self._channel.close()
        self._irqs.clear()
        self._poller.close()
        self._dma.clear()
        self._link.close()

    # -- one message --------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:
        try:
            if message.is_reply:
                raise ProtocolError(f"a reply to {message.name}, which nobody asked", fatal=True)
            payload = self._handlers[self._session.check_command(message)](message)
        except ProtocolError as error:
            close_all(message.fds)
            self._refuse(message, error.errno, str(error))
            if error.fatal:
                raise
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001  # what a device does wrong is no reason to end
            self._failed(message, error)
        else:
            if payload is not None and message.wants_reply:
                size = HEADER_SIZE + len(payload)
                head = HEADER.pack(message.id, message.command, size, _REPLY, 0)
                self._link.post(head + payload)

    def _failed(self, message: Message, error: Exception) -> None:
        """The device refused, or has a mistake of its own: tell the client, and go on."""
        if isinstance(error, OSError):
            code = error.errno or 0
            self._refuse(message, code if 0 < code < 4096 else errno.EIO, str(error))
            return
        _log.error("%s failed at %s", self._device.name, message.name, exc_info=error)
        self._refuse(message, errno.EIO, "the device failed")

    def _refuse(self, message: Message, code: int, why: str) -> None:
        _log.debug("%s: %s refused: %s", self._device.name, message.name, why)
        if message.wants_reply:
            self._link.post(wire.error_reply(message, code).pack())

    def _read_alone(self, data: bytes, fd: int) -> bytes | None:
        """The reply to a read of a register or two; ``None`` for whatever else it may be."""
        number, command, size, flags, _error, offset, index, count = _ACCESS.unpack(data)
        readable = self._readable
        if (
            command != _READ
            or size != 32
            or flags
            or fd >= 0
            or index >= len(readable)
            or not 0 < count <= _SMALL
            or offset + count > readable[index]
        ):
            return None
        try:
            found = self._device.region_read(index, offset, count)
            if len(found) != count:
                raise _wrong_length(found, count)
            return _ACCESS.pack(number, _READ, 32 + count, _REPLY, 0, offset, index, count) + found
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001  # see _handle
            self._failed(Message(number, command, flags), error)
            return b""

    def _map_alone(self, data: bytes, fd: int) -> bytes | None:
        """The reply to a ``DMA_MAP``, if it is one."""
        number, command, size, flags, _error = HEADER.unpack_from(data)
        if command != _DMA_MAP or size != len(data) or flags:
            return None
        fds = (fd,) if fd >= 0 else ()
        try:
            self._dma.add(DmaMap.unpack(data[HEADER_SIZE:]), fds)
        except ProtocolError as error:
            close_all(fds)
            self._refuse(Message(number, command), error.errno, str(error))
            return b""
        return HEADER.pack(number, _DMA_MAP, HEADER_SIZE, _REPLY, 0)

    def _take_small(self) -> bool:
        """Deal with the small register accesses at the head of what came; whether that was all.

        They need no :class:`Message`. What is out of line is left to those who check everything.
        """
        link, regions, device = self._link, self._regions, self._device
        if not self._plain:
            return False
        chunk, unpack, pack = link.chunk, _ACCESS.unpack_from, _ACCESS.pack
        while len(chunk) - link.at >= 32:
            at = link.at
            number, command, size, flags, _error, offset, index, count = unpack(chunk, at)
            if index >= len(regions) or count > _SMALL or not count:
                return False
            region = regions[index]
            if offset + count > region.size:
                return False
            reads = command == _READ
            if reads:
                if size != 32 or flags or not region.readable:
                    return False
            elif (
                command != _WRITE
                or size != 32 + count
                or at + size > len(chunk)
                or flags & ~_NO_REPLY
                or not region.writable
            ):
                return False
            # Taken out before the device sees it: it may wait for the client, and so read on.
            link.at = at + size
            try:
                if reads:
                    data = device.region_read(index, offset, count)
                    if len(data) != count:
                        raise _wrong_length(data, count)
                    size = 32 + count
                    link.post(pack(number, _READ, size, _REPLY, 0, offset, index, count) + data)
                else:
                    device.region_write(index, offset, chunk[at + 32 : at + size])
                    if not flags:
                        link.post(pack(number, _WRITE, 32, _REPLY, 0, offset, index, count))
            except ClosedError:
                raise
            except Exception as error:  # noqa: BLE001  # see _handle
                self._failed(Message(number, command, flags), error)
            if link.chunk is not chunk:  # somebody read on
                return False
        return link.at >= len(chunk)

    # -- negotiation --------------------------------------------------------------------------

    def _version(self, message: Message) -> bytes | None:
        offer = Version.unpack(message.payload)
        reply = answer(offer, self._session.own)
        self._device.connect(self)
        self._connected = True
        self._plain = self._observer is None
        self._most = reply.capabilities.max_data_xfer_size
        self._session.agreed(reply, offer.capabilities)
        if not reply.capabilities.twin_socket or not message.wants_reply:
            return reply.pack()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:  # too many files are open
            _log.warning("no twin socket: %s", error)
            shared = replace(reply.capabilities, twin_socket=False)
            return replace(reply, capabilities=shared).pack()
        with theirs:
            self._channel.twin = Connection(ours, limit=message_limit(self._session.own))
            self._answer(message, replace(reply, twin_fd=0).pack(), [theirs.fileno()])
        return None

    # -- memory -------------------------------------------------------------------------------

    def _dma_map(self, message: Message) -> bytes:
        self._dma.add(DmaMap.unpack(message.payload), message.fds)
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        request = DmaUnmap.unpack(message.payload)
        self._dma.remove(request)
        return request.pack()

    def dma_read(self, iova: int, length: int) -> bytes:
        """The client's memory; :class:`~vfiokit.vfio_user.dma.DmaFault`."""
        data = self._dma.read(iova, length, self._channel.read)
        if self._observer is not None:
            self._observer("dma read", 0, iova, data)
        return data

    def dma_write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """The client's memory; :class:`~vfiokit.vfio_user.dma.DmaFault`."""
        self._dma.write(iova, data, self._channel.write)
        if self._observer is not None:
            self._observer("dma write", 0, iova, bytes(data))

    # -- the device ---------------------------------------------------------------------------

    def _info(self, message: Message) -> bytes:
        DeviceInfo.unpack(message.payload)
        flags = vfio_abi.VFIO_DEVICE_FLAGS_PCI | vfio_abi.VFIO_DEVICE_FLAGS_RESET
        return DeviceInfo(flags, len(self._regions), len(self._device.irq_counts)).pack()

    def _reset(self, _message: Message) -> bytes:
        if self._observer is not None:
            self._observer("reset", 0, 0, b"")
        self._device.reset()
        self._features.reset()
        return b""

    def _feature(self, message: Message) -> bytes:
        request = Feature.unpack(message.payload)
        return Feature(request.flags, self._features.handle(request)).pack()

    def _migration_read(self, message: Message) -> bytes:
        wanted = MigrationData.unpack(message.payload, data=False).size
        if wanted > self._most:
            raise ProtocolError(f"MIG_DATA_READ of {wanted} bytes; {self._most} fit")
        data = self._features.migration.read(wanted)
        return MigrationData(len(data), data).pack()

    def _migration_write(self, message: Message) -> bytes:
        self._features.migration.write(MigrationData.unpack(message.payload, data=True).data)
        return b""

    # -- regions ------------------------------------------------------------------------------

    def _region(self, index: int) -> ServedRegion:
        if index >= len(self._regions):
            raise ProtocolError(f"region {index}; there are {len(self._regions)}")
        return self._regions[index]

    def _region_info(self, message: Message) -> bytes | None:
        request = RegionInfo.unpack(message.payload)
        region = self._region(request.index)
        shared = region.fd >= 0 and region.size > 0 and self._session.peer.max_msg_fds > 0
        flags = 0
        if region.size:
            flags = vfio_abi.VFIO_REGION_INFO_FLAG_READ if region.readable else 0
            flags |= vfio_abi.VFIO_REGION_INFO_FLAG_WRITE if region.writable else 0
            flags |= vfio_abi.VFIO_REGION_INFO_FLAG_MMAP if shared else 0
        info = RegionInfo(
            request.index,
            flags,
            region.size,
            region.fd_offset if shared else 0,
            region.areas if shared else None,
        )
        whole = request.argsz >= info.needed
        if not (shared and whole):
            return info.pack(request.argsz)
        self._answer(message, info.pack(request.argsz), [region.fd])
        return None

    def _answer(self, message: Message, payload: bytes, fds: list[int]) -> None:
        """A reply that descriptors travel with; they go alone, so that they are its own."""
        if message.wants_reply:
            self._link.send(wire.reply(message, payload, fds))

    def _io_fds(self, message: Message) -> bytes | None:
        request = RegionIoFds.unpack(message.payload)
        self._region(request.index)
        if not isinstance(self._device, Doorbells):
            return RegionIoFds(request.index).pack(request.argsz)
        entries = tuple(self._device.io_fds(request.index))
        fds = list(self._device.doorbell_fds(request.index))
        if len(fds) > self._session.peer.max_msg_fds:
            raise ProtocolError(
                f"region {request.index} has {len(fds)} descriptors; the client takes "
                f"{self._session.peer.max_msg_fds}",
                errno=errno.ENOSPC,
            )
        reply = RegionIoFds(request.index, entries)
        payload = reply.pack(request.argsz)
        if not fds or request.argsz < reply.needed:
            return payload
        self._watch_doorbells(self._device, request.index, fds)
        self._answer(message, payload, fds)
        return None

    def _watch_doorbells(self, device: Doorbells, region: int, fds: list[int]) -> None:
        """Tell the device when the client's kernel writes one of its eventfds."""

        def rung(number: int) -> None:
            try:
                device.rung(region, number)
            except Exception as error:  # noqa: BLE001  # see _handle
                _log.error("%s failed at a doorbell", self._device.name, exc_info=error)

        for number, fd in enumerate(fds):
            self._poller.watch(fd, functools.partial(rung, number))

    def _checked(self, index: int, offset: int, count: int) -> ServedRegion:
        region = self._region(index)
        if count > self._most or offset + count > region.size:
            raise ProtocolError(
                f"{count} bytes at {offset:#x} of region {index}, which has {region.size:#x}"
            )
        return region

    def _region_read(self, message: Message) -> bytes:
        payload = message.payload
        if len(payload) != ACCESS.size:
            raise ProtocolError(f"REGION_READ of {len(payload)} bytes")
        offset, index, count = ACCESS.unpack(payload)
        if not self._checked(index, offset, count).readable:
            raise ProtocolError(f"region {index} cannot be read", errno=errno.EPERM)
        data = self._device.region_read(index, offset, count) if count else b""
        if len(data) != count:
            raise _wrong_length(data, count)
        if self._observer is not None:
            self._observer("read", index, offset, data)
        return payload + data

    def _region_write(self, message: Message) -> bytes:
        payload = message.payload
        if len(payload) < ACCESS.size:
            raise ProtocolError(f"REGION_WRITE of {len(payload)} bytes")
        offset, index, count = ACCESS.unpack_from(payload)
        if len(payload) != ACCESS.size + count:
            raise ProtocolError(f"REGION_WRITE of {count} bytes with {len(payload) - 16}")
        self._write(index, offset, payload[16:])
        return payload[:16]

    def _write(self, index: int, offset: int, data: bytes) -> None:
        if not self._checked(index, offset, len(data)).writable:
            raise ProtocolError(f"region {index} cannot be written", errno=errno.EPERM)
        if self._observer is not None:
            self._observer("write", index, offset, data)
        if data:
            self._device.region_write(index, offset, data)

    def _write_multi(self, message: Message) -> bytes:
        done = 0
        for write in unpack_writes(message.payload):
            try:
                self._write(write.region, write.offset, write.data)
            except (ProtocolError, OSError):
                if not done:
                    raise
                break
            done += 1
        return pack_count(done)

    # -- interrupts ---------------------------------------------------------------------------

    def _irq_info(self, message: Message) -> bytes:
        return self._irqs.info(IrqInfo.unpack(message.payload).index).pack()

    def _set_irqs(self, message: Message) -> bytes:
        request = SetIrqs.unpack(message.payload)
        before = self._irqs.vectors(request.index)
        self._irqs.set(request, message.fds)
        after = self._irqs.vectors(request.index)
        if after != before:
            self._device.irqs_changed(request.index, after)
        return b""

    def signal(self, index: int, vector: int) -> bool:
        """Signal an interrupt."""
        if self._observer is not None:
            self._observer("signal", index, vector, b"")
        return self._irqs.signal(index, vector)

    def set_intx(self, level: bool) -> None:
        """Drive the pin."""
        self._irqs.set_level(level)


def _wrong_length(data: bytes, count: int) -> ValueError:
    return ValueError(f"{len(data)} bytes for a read of {count}")

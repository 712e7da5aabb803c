"""Client and server for programs that run on asyncio.

The protocol's ends are blocking; here each connection has one thread, and the event loop awaits
what it does. Calls of one client are done in the order they were made. A device that is served
this way is called in the connection's thread: it must not touch the loop except by
``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from vfiokit.errors import UsageError
from vfiokit.vfio_user.client import OFFER, Client, ClientMemory
from vfiokit.vfio_user.listen import Listener, bind
from vfiokit.vfio_user.payload import (
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    Feature,
    IrqInfo,
    RegionInfo,
    RegionWrite,
    SetIrqs,
)
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities
from vfiokit.vfio_user.wire import Command, Message

Result = TypeVar("Result")


class AsyncClient:
    """A :class:`~vfiokit.vfio_user.client.Client` whose calls are awaited.

    Made by :meth:`connect`; use it in an ``async with`` block. Methods raise what the client's own
    raise. A call that is cancelled is still done: the other end has it already.
    """

    def __init__(self, client: Client, executor: ThreadPoolExecutor) -> None:
        self.client = client
        """The blocking end; to be used from elsewhere only when nothing is awaited here."""
        self._executor = executor
        self._closed = False

    @classmethod
    async def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        offer: Capabilities = OFFER,
        memory: ClientMemory | None = None,
        timeout: float | None = 10.0,
    ) -> Self:
        """Connect to the socket at ``path``; see :meth:`Client.connect`.

        ``memory`` is called in the connection's threads.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"vfio-user {os.fspath(path)}")
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(
            executor,
            lambda: Client.connect(path, offer=offer, memory=memory, timeout=timeout),
        )
        try:
            return cls(await asyncio.shield(opening), executor)
        except BaseException:
            # A connection that is made after the caller has gone is nobody's.
            opening.add_done_callback(_close_unwanted)
            executor.shutdown(wait=False)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, after the calls before it. Idempotent."""
        if self._closed:
            return
        await self._do(self.client.close)
        self._closed = True
        self._executor.shutdown(wait=False)

    async def _do(self, call: Callable[[], Result]) -> Result:
        if self._closed:
            raise UsageError(f"the connection to {self.client.name} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def device_info(self) -> DeviceInfo:
        """See :meth:`Client.device_info`."""
        return await self._do(self.client.device_info)

    async def region_info(self, index: int) -> tuple[RegionInfo, int]:
        """See :meth:`Client.region_info`."""
        return await self._do(lambda: self.client.region_info(index))

    async def irq_info(self, index: int) -> IrqInfo:
        """See :meth:`Client.irq_info`."""
        return await self._do(lambda: self.client.irq_info(index))

    async def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """See :meth:`Client.set_irqs`; ``loop.add_reader`` awaits the eventfds."""
        await self._do(lambda: self.client.set_irqs(request, fds))

    async def region_read(self, region: int, offset: int, length: int) -> bytes:
        """See :meth:`Client.region_read`."""
        return await self._do(lambda: self.client.region_read(region, offset, length))

    async def region_write(
        self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False
    ) -> None:
        """See :meth:`Client.region_write`."""
        await self._do(lambda: self.client.region_write(region, offset, data, posted=posted))

    async def region_write_multi(self, writes: Sequence[RegionWrite]) -> int:
        """See :meth:`Client.region_write_multi`."""
        return await self._do(lambda: self.client.region_write_multi(writes))

    async def pipeline(self, commands: Sequence[tuple[Command, bytes]]) -> list[Message]:
        """See :meth:`Client.pipeline`: what makes many small requests worth a thread's change."""
        return await self._do(lambda: self.client.pipeline(commands))

    async def flush(self) -> None:
        """See :meth:`Client.flush`."""
        await self._do(self.client.flush)

    async def dma_map(self, request: DmaMap, fd: int = -1) -> None:
        """See :meth:`Client.dma_map`."""
        await self._do(lambda: self.client.dma_map(request, fd))

    async def dma_unmap(self, request: DmaUnmap) -> None:
        """See :meth:`Client.dma_unmap`."""
        await self._do(lambda: self.client.dma_unmap(request))

    async def feature(self, request: Feature) -> Feature:
        """See :meth:`Client.feature`."""
        return await self._do(lambda: self.client.feature(request))

    async def reset(self) -> None:
        """See :meth:`Client.reset`."""
        await self._do(self.client.reset)


def _close_unwanted(opening: asyncio.Future[Client]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class AsyncServer:
    """Serves a device at a socket while the event loop does other things.

    ::

        async with AsyncServer(Server(device), "/run/device.sock"):
            ...

    Clients come one after the other, as with :class:`~vfiokit.vfio_user.listen.Listener`. Leaving
    the block ends the connection of a client that is there.
    """

    def __init__(self, server: Server, at: str | os.PathLike[str] | socket.socket) -> None:
        """``at`` is a path or a listening socket; nothing is bound before the block is entered."""
        self._server = server
        self._at = at
        self._listener: Listener | None = None
        self._done: asyncio.Future[None] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vfio-user server")

    async def __aenter__(self) -> Self:
        path = None if isinstance(self._at, socket.socket) else self._at
        sock = self._at if isinstance(self._at, socket.socket) else bind(self._at)
        self._listener = Listener(self._server, sock, path=path)
        loop = asyncio.get_running_loop()
        self._done = loop.run_in_executor(self._executor, self._listener.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        self._listener.stop()
        await self.finished()
        self._executor.shutdown(wait=False)

    async def finished(self) -> None:
        """Wait until nobody is served any more; raises what ended the listener."""
        assert self._done is not None
        await asyncio.shield(self._done)

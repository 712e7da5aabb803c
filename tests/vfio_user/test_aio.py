"""Client and server on an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from served import Plain

from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel import linux
from vfiokit.vfio_user.aio import AsyncClient, AsyncServer
from vfiokit.vfio_user.payload import DmaMap, DmaUnmap, RegionAccess, RegionWrite, SetIrqs
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.session import Capabilities
from vfiokit.vfio_user.wire import Command


def run(work: Coroutine[Any, Any, None]) -> None:
    before = threading.active_count()
    asyncio.run(asyncio.wait_for(work, 20))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before, "a thread stays behind"


class Slow(Plain):
    """Takes its time for a read at 0x300."""

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        if offset == 0x300:
            time.sleep(0.3)
        return super().region_read(region, offset, length)


def test_the_loop_goes_on_while_a_reply_is_awaited(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            AsyncServer(Server(Slow()), tmp_path / "s"),
            await AsyncClient.connect(tmp_path / "s") as client,
        ):
            reading = asyncio.create_task(client.region_read(0, 0x300, 4))
            ticks = 0
            while not reading.done():
                ticks += 1
                await asyncio.sleep(0.01)
            assert await reading == bytes(4)
            assert ticks > 5

    run(work())


def test_calls_made_at_once_are_done_in_order(tmp_path: Path) -> None:
    device = Plain()

    async def work() -> None:
        async with (
            AsyncServer(Server(device), tmp_path / "s"),
            await AsyncClient.connect(tmp_path / "s") as client,
        ):
            await asyncio.gather(
                *(client.region_write(0, 0, bytes([value])) for value in range(100)),
                client.region_write(0, 1, b"x"),
            )
            assert await client.region_read(0, 0, 2) == b"\x63x"

    run(work())


@pytest.mark.parametrize("twin", [False, True])
def test_requests_reach_the_device(tmp_path: Path, twin: bool) -> None:
    device = Plain()

    class Memory:
        def read(self, iova: int, length: int) -> bytes:
            return b"m" * length

        def write(self, iova: int, data: bytes) -> None:
            raise AssertionError("nobody writes")

    async def work() -> None:
        offer = Capabilities(max_msg_fds=16, twin_socket=twin, write_multiple=True)
        async with AsyncServer(Server(device), tmp_path / "s"):
            client = await AsyncClient.connect(tmp_path / "s", offer=offer, memory=Memory())
            assert (await client.device_info()).num_regions == 9
            info, file = await client.region_info(0)
            assert (info.size, file) == (4096, -1)
            assert (await client.irq_info(2)).count == 4
            await client.dma_map(DmaMap(0x1000, 4096))
            await client.region_write(0, 0x100, (0x1000).to_bytes(8, "little"))
            assert await client.region_read(0, 0x200, 16) == b"m" * 16
            await client.dma_unmap(DmaUnmap(0x1000, 4096))
            assert await client.region_write_multi([RegionWrite(8, 0, b"ab")]) == 1
            await client.region_write(0, 10, b"c", posted=True)
            await client.flush()
            command = (Command.REGION_READ, RegionAccess(8, 0, 3).pack())
            assert [each.payload[16:] for each in await client.pipeline([command] * 3)] == [
                b"abc"
            ] * 3
            await client.reset()
            await client.close()
            await client.close()
            with pytest.raises(UsageError, match="closed"):
                await client.reset()

    run(work())


def test_an_interrupt_wakes_the_loop(tmp_path: Path) -> None:
    device = Plain()

    async def work() -> None:
        event = linux.eventfd(0, 0o4000)
        woken = asyncio.Event()
        asyncio.get_running_loop().add_reader(event, woken.set)
        async with (
            AsyncServer(Server(device), tmp_path / "s"),
            await AsyncClient.connect(tmp_path / "s") as client,
        ):
            await client.set_irqs(SetIrqs(0x24, 2, 0, 1), [event])
            assert device.host is not None
            assert device.host.signal(2, 0)
            await asyncio.wait_for(woken.wait(), 5)
            asyncio.get_running_loop().remove_reader(event)
            assert linux.eventfd_read(event) == 1
        linux.close(event)

    run(work())


def test_errors_are_the_clients(tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(KernelError, match="ENOENT"):
            await AsyncClient.connect(tmp_path / "nobody")
        async with (
            AsyncServer(Server(Plain()), tmp_path / "s"),
            await AsyncClient.connect(tmp_path / "s") as client,
        ):
            with pytest.raises(KernelError, match="EINVAL"):
                await client.region_read(0, 4096, 4)

    run(work())


def test_a_server_that_is_left_ends_the_connection_of_its_client(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncServer(Server(Plain()), tmp_path / "s"):
            client = await AsyncClient.connect(tmp_path / "s")
            await client.region_read(0, 0, 4)
        with pytest.raises(ConnectionError):
            await client.region_read(0, 0, 4)
        await client.close()
        assert not (tmp_path / "s").exists()

    run(work())


def test_an_attempt_to_connect_can_be_given_up(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncServer(Server(Plain()), tmp_path / "s"):
            async with await AsyncClient.connect(tmp_path / "s") as first:
                # The server has its client: this one waits in the queue of the socket.
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(AsyncClient.connect(tmp_path / "s", timeout=3), 0.2)
                assert await first.region_read(0, 0, 1) == b"\0"
            async with await AsyncClient.connect(tmp_path / "s") as next_one:
                assert await next_one.region_read(0, 0, 1) == b"\0"

    run(work())

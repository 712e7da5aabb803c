"""Device, regions, interrupts, features on the fake host."""

from __future__ import annotations

import asyncio
import errno
import selectors
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfio_fake import BDF, GROUP, PAGE, FakeHost

from vfiokit.abi import vfio as abi
from vfiokit.errors import (
    ConfigRangeError,
    DeviceNotFoundError,
    DeviceTimeoutError,
    KernelError,
    UsageError,
)
from vfiokit.vfio import Container, Device, open_device
from vfiokit.vfio.info import chain, query
from vfiokit.vfio.irq import pack_irq_set


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def device(host: FakeHost):
    with open_device(host, BDF) as opened:
        yield opened


# -- life -----------------------------------------------------------------------------------


def test_device_closes_before_group_and_group_before_container(host: FakeHost) -> None:
    with open_device(host, BDF) as device:
        mapping = device.region(0).map()
        device.msix.enable(2)
        device.address_space.allocate(PAGE)
    device.close()
    assert host.closed_order == ["device", "group", "container"]
    assert host.open_fds == {}
    assert mapping.closed
    assert host.active == {}


def test_device_is_silenced_before_it_is_closed(host: FakeHost) -> None:
    with open_device(host, BDF) as device:
        device.set_bus_master(True)
        assert host.config[4] & 4
    assert not host.config[4] & 4


def test_function_without_vfio_driver_leaves_nothing_open() -> None:
    host = FakeHost(members={BDF: None})
    with pytest.raises(KernelError) as caught:
        open_device(host, BDF)
    assert caught.value.errno == errno.ENODEV
    assert "vfio-pci" in caught.value.hint
    assert host.open_fds == {}


def test_unknown_function_is_not_found(host: FakeHost) -> None:
    with pytest.raises(DeviceNotFoundError):
        open_device(host, "0000:00:05.0")


def test_shared_container_survives_its_device(host: FakeHost) -> None:
    with Container.open(host) as space:
        with open_device(host, BDF, address_space=space) as device:
            assert device.address_space is space
        assert "container" in host.open_fds.values()
        assert "group" not in host.open_fds.values()


def test_forgotten_device_warns(host: FakeHost) -> None:
    device = open_device(host, BDF)
    space = device.address_space
    with pytest.warns(ResourceWarning, match="unclosed <Device"):
        del device
    space.close()


def test_closed_device_refuses_further_use(host: FakeHost) -> None:
    device = open_device(host, BDF)
    device.close()
    with pytest.raises(UsageError, match="closed"):
        device.region(0)


def test_reset_reaches_the_kernel(host: FakeHost, device: Device) -> None:
    assert device.can_reset
    device.reset()
    assert host.resets == 1


# -- info -----------------------------------------------------------------------------------


def test_info_that_never_fits_is_an_error_not_a_loop() -> None:
    class Greedy:
        def ioctl(self, fd: int, request: int, argument: bytearray) -> int:
            size = struct.unpack_from("<I", argument)[0]
            struct.pack_into("<I", argument, 0, size * 2)
            return 0

    with pytest.raises(KernelError) as caught:
        query(Greedy(), 0, "VFIO_DEVICE_GET_INFO", abi.vfio_device_info(), "x")
    assert caught.value.errno == errno.EPROTO


@given(st.binary(max_size=200), st.integers(0, 300))
def test_capability_chain_of_any_bytes_ends(data: bytes, start: int) -> None:
    buffer = bytearray(data)
    found = list(chain(buffer, start))
    assert len({capability.offset for capability in found}) == len(found)
    assert all(capability.offset + 8 <= len(buffer) for capability in found)


# -- regions --------------------------------------------------------------------------------


def test_region_reads_and_writes_by_width(host: FakeHost, device: Device) -> None:
    region = device.region(0)
    region.write32(0x10, 0xDEADBEEF)
    region.write64(0x18, 1 << 63)
    assert host.bars[0][0x10:0x14] == b"\xef\xbe\xad\xde"
    assert (region.read8(0x11), region.read16(0x12), region.read64(0x18)) == (0xBE, 0xDEAD, 1 << 63)


def test_long_transfers_go_on_where_the_kernel_stopped(host: FakeHost, device: Device) -> None:
    data = bytes(range(256)) * 4
    device.region(0).write_bytes(8, data)
    assert device.region(0).read_bytes(8, len(data)) == data


@pytest.mark.parametrize("offset", [1, 2, -4, 4 * PAGE, 4 * PAGE - 2])
def test_region_refuses_misaligned_and_outside_accesses(device: Device, offset: int) -> None:
    with pytest.raises(IndexError):
        device.region(0).read32(offset)


def test_value_that_does_not_fit_is_refused(device: Device) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        device.region(0).write16(0, 0x10000)


def test_mapping_starts_at_the_offset_asked_for(host: FakeHost, device: Device) -> None:
    host.bars[0][PAGE : PAGE + 4] = b"\x78\x56\x34\x12"
    mapping = device.region(0).map(PAGE)
    assert mapping.length == 3 * PAGE
    assert mapping.read32(0) == 0x12345678


def test_sparse_region_maps_inside_one_area_only() -> None:
    host = FakeHost(sparse=[(0, PAGE), (2 * PAGE, 2 * PAGE)])
    with open_device(host, BDF) as device:
        region = device.region(0)
        assert region.map(2 * PAGE).length == 2 * PAGE
        assert region.map().length == PAGE
        assert region.window() is region
        for offset, length in ((PAGE, PAGE), (0, 2 * PAGE), (PAGE, None), (2 * PAGE, 3 * PAGE)):
            with pytest.raises(UsageError) as caught:
                region.map(offset, length)
            assert "0x2000" in caught.value.hint


def test_region_that_is_absent_or_not_mappable_cannot_be_mapped(device: Device) -> None:
    with pytest.raises(UsageError, match="no BAR3"):
        device.region(3).map()
    with pytest.raises(UsageError):
        device.region(7).map()
    with pytest.raises(UsageError):
        device.region(9)


def test_mapping_must_start_at_a_page(device: Device) -> None:
    with pytest.raises(UsageError, match="page"):
        device.region(0).map(0x10, 0x100)


def test_config_is_read_written_and_captured(host: FakeHost, device: Device) -> None:
    host.config[0:4] = b"\x34\x12\xe8\x11"
    assert (device.config.u8(0), device.config.u16(2), device.config.u32(0)) == (
        0x34,
        0x11E8,
        0x11E81234,
    )
    device.config.set_u8(0x3C, 9)
    assert device.config.snapshot().data == bytes(host.config)
    assert len(device.config) == 256
    with pytest.raises(ConfigRangeError):
        device.config.u32(0xFE)


# -- interrupts -----------------------------------------------------------------------------


@given(
    st.integers(0, 4),
    st.sampled_from([0x08, 0x10, 0x20]),
    st.integers(0, 2000),
    st.one_of(st.none(), st.lists(st.integers(-1, 2**31 - 1), max_size=40)),
)
def test_irq_set_packs_as_the_header_says(index, action, start, fds) -> None:
    count = 1 if fds is None else len(fds)
    buffer = pack_irq_set(index, action, start, count, fds)
    argsz, flags, *numbers = struct.unpack_from("<IIIII", buffer)
    assert argsz == len(buffer)
    assert flags == action | (1 if fds is None else 4)
    assert numbers == [index, start, count]
    assert buffer[20:] == b"".join(fd.to_bytes(4, "little", signed=True) for fd in fds or [])


def test_loopback_trigger_reaches_its_vector_only(device: Device) -> None:
    with device.msix.enable(3) as vectors:
        device.msix.trigger(1)
        assert vectors[1].wait(1) == 1
        assert [vector.poll() for vector in vectors] == [0, 0, 0]


def test_counts_are_kept_until_taken(host: FakeHost, device: Device) -> None:
    with device.msix.enable(1) as (vector,):
        for _ in range(5):
            host.signal(abi.VFIO_PCI_MSIX_IRQ_INDEX, 0)
        assert vector.wait() == 5
        assert vector.poll() == 0


def test_wait_without_interrupt_times_out_in_time(device: Device) -> None:
    with device.msix.enable(1) as (vector,):
        start = time.monotonic()
        with pytest.raises(DeviceTimeoutError, match=r"MSI-X of 0000:00:04\.0, vector 0"):
            vector.wait(0.05)
        assert 0.04 < time.monotonic() - start < 5


def test_wait_sleeps_until_another_thread_interrupts(host: FakeHost, device: Device) -> None:
    with device.msix.enable(1) as (vector,):
        timer = threading.Timer(0.05, host.signal, (abi.VFIO_PCI_MSIX_IRQ_INDEX, 0))
        timer.start()
        assert vector.wait(10) == 1
        timer.join()


def test_vector_works_with_selectors(host: FakeHost, device: Device) -> None:
    with device.msix.enable(1) as (vector,), selectors.DefaultSelector() as selector:
        selector.register(vector, selectors.EVENT_READ)
        assert selector.select(0) == []
        host.signal(abi.VFIO_PCI_MSIX_IRQ_INDEX, 0)
        assert len(selector.select(1)) == 1


def test_kinds_of_interrupts_exclude_each_other(device: Device) -> None:
    with device.msi.enable(1):
        with pytest.raises(KernelError) as caught:
            device.msix.enable(1)
        assert caught.value.errno == errno.EINVAL
        assert "at a time" in caught.value.hint
    with device.msix.enable(8) as vectors:
        assert len(vectors) == 8


def test_host_with_too_few_vectors_is_enospc() -> None:
    host = FakeHost(irqs_to_give=3)
    with open_device(host, BDF) as device:
        with pytest.raises(KernelError, match="3 vectors") as caught:
            device.msix.enable(8)
        assert caught.value.errno == errno.ENOSPC
        assert device.msix.vectors == {}


def test_vectors_that_do_not_exist_or_cannot_be_added_are_refused(device: Device) -> None:
    with pytest.raises(UsageError):
        device.msix.enable(9)
    with pytest.raises(UsageError):
        device.error_irq.enable()
    with device.msix.enable(2), pytest.raises(UsageError, match="cannot be added"):
        device.msix.enable(1, start=2)


def test_best_interrupt_is_msix_then_msi_then_the_pin() -> None:
    for counts, expected in (
        ((1, 1, 8, 0, 1), 2),
        ((1, 1, 0, 0, 1), 1),
        ((1, 0, 0, 0, 1), 0),
    ):
        with open_device(FakeHost(irq_counts=counts), BDF) as device:
            irq = device.best_irq()
            assert irq is not None
            assert irq.index == expected
    with open_device(FakeHost(irq_counts=(0, 0, 0, 0, 1)), BDF) as device:
        assert device.best_irq() is None


def test_pin_stays_masked_until_unmasked(host: FakeHost, device: Device) -> None:
    with device.intx.enable() as (vector,):
        host.signal(0, 0)
        host.signal(0, 0)
        assert vector.wait(1) == 1
        device.intx.unmask()
        host.signal(0, 0)
        assert vector.wait(1) == 1
        device.intx.unmask()
        device.intx.mask()
        host.signal(0, 0)
        assert vector.poll() == 0


def test_resample_fd_is_one_and_taken_back(host: FakeHost, device: Device) -> None:
    with device.intx.enable():
        fd = device.intx.resample_fd()
        assert device.intx.resample_fd() == fd == host.resample
    assert host.resample == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        host.real.eventfd_read(fd)


def test_mask_of_message_interrupts_is_enotty(device: Device) -> None:
    with device.msix.enable(1), pytest.raises(KernelError) as caught:
        device.msix.mask()
    assert caught.value.errno == errno.ENOTTY


# -- asyncio --------------------------------------------------------------------------------

MSIX = abi.VFIO_PCI_MSIX_IRQ_INDEX


def test_async_wait_keeps_counts_and_one_reader(host: FakeHost, device: Device) -> None:
    async def run(vector) -> list[int]:
        loop = asyncio.get_running_loop()
        counts = []
        host.signal(MSIX, 0)
        counts.append(await vector.wait_async(1))
        loop.call_later(0.01, host.signal, MSIX, 0)
        counts.append(await vector.wait_async(5))
        host.signal(MSIX, 0)
        host.signal(MSIX, 0)
        await asyncio.sleep(0.02)
        counts.append(vector.poll())
        with pytest.raises(DeviceTimeoutError):
            await vector.wait_async(0.02)
        return counts

    with device.msix.enable(1) as (vector,):
        assert asyncio.run(run(vector)) == [1, 1, 2]
        assert asyncio.run(run(vector)) == [1, 1, 2]


def test_async_waiters_wake_one_after_the_other(host: FakeHost, device: Device) -> None:
    async def run(vector) -> list[int]:
        tasks = [asyncio.create_task(vector.wait_async(5)) for _ in range(3)]
        await asyncio.sleep(0)
        done = []
        for task in tasks:
            host.signal(MSIX, 0)
            done.append(await task)
        return done

    with device.msix.enable(1) as (vector,):
        assert asyncio.run(run(vector)) == [1, 1, 1]


def test_cancelled_waiter_loses_no_interrupt(host: FakeHost, device: Device) -> None:
    async def run(vector) -> int:
        task = asyncio.create_task(vector.wait_async(5))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        host.signal(MSIX, 0)
        return await vector.wait_async(1)

    with device.msix.enable(1) as (vector,):
        assert asyncio.run(run(vector)) == 1


def test_disabling_wakes_those_who_wait(device: Device) -> None:
    async def run(vector) -> None:
        task = asyncio.create_task(vector.wait_async(5))
        await asyncio.sleep(0)
        device.msix.disable()
        with pytest.raises(UsageError, match="disabled"):
            await task

    (vector,) = device.msix.enable(1)
    asyncio.run(run(vector))


def test_subscriber_is_called_with_the_count(host: FakeHost, device: Device) -> None:
    async def run(vector) -> list[int]:
        seen: list[int] = []
        vector.subscribe(seen.append)
        vector.subscribe(seen.append)
        host.signal(MSIX, 0)
        host.signal(MSIX, 0)
        await asyncio.sleep(0.02)
        vector.unsubscribe(seen.append)
        host.signal(MSIX, 0)
        await asyncio.sleep(0.02)
        return seen

    with device.msix.enable(1) as (vector,):
        assert asyncio.run(run(vector)) == [2]
        assert vector.poll() == 1


# -- features -------------------------------------------------------------------------------


def test_features_are_probed_and_got(device: Device) -> None:
    features = device.features
    assert features.probe(abi.VFIO_DEVICE_FEATURE_MIGRATION, get=True)
    assert not features.probe(abi.VFIO_DEVICE_FEATURE_MIGRATION, set=True)
    assert not features.probe(abi.VFIO_DEVICE_FEATURE_DMA_BUF)
    _result, payload = features.get(abi.VFIO_DEVICE_FEATURE_MIGRATION, 8)
    assert payload == abi.VFIO_MIGRATION_STOP_COPY.to_bytes(8, "little")
    with pytest.raises(KernelError) as caught:
        features.set(abi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)
    assert caught.value.errno == errno.ENOTTY


def test_second_open_of_the_group_is_busy(host: FakeHost, device: Device) -> None:
    with pytest.raises(KernelError) as caught:
        open_device(host, BDF)
    assert caught.value.errno == errno.EBUSY
    assert f"/dev/vfio/{GROUP}" in str(caught.value)
    assert device.region(0).read32(0) == 0

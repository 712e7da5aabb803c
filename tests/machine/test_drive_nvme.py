"""The NVMe driver on the software machine, through its kernel's VFIO."""

from __future__ import annotations

import asyncio
import random

import pytest
from drive_rig import Rig

from vfiokit.driver.nvme import NvmeController
from vfiokit.driver.nvme.spec import CC_ENABLE, AdminOpcode, Feature, IoOpcode
from vfiokit.errors import (
    ControllerFatalError,
    DeviceTimeoutError,
    DriverError,
    NvmeCommandError,
    UsageError,
)
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import Limits, NvmeFunction
from vfiokit.pci.address import Bdf

BDF = Bdf.parse("0000:01:00.0")
CAPACITY = 32 << 20


def machine_with(**wishes) -> Rig[NvmeFunction]:
    wishes.setdefault("capacity", CAPACITY)
    return Rig(lambda bdf: NvmeFunction.synthetic(bdf, **wishes))


@pytest.fixture
def rig():
    with machine_with() as made:
        yield made


@pytest.fixture(params=[True, False], ids=["interrupts", "polling"])
def controller(request, rig):
    with NvmeController(rig.device, io_queues=3, interrupts=request.param) as started:
        yield started


def random_bytes(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def test_controller_identifies_itself(rig, controller) -> None:
    assert controller.version == (1, 4, 0)
    assert controller.identity.model == "vfiokit NVMe"
    assert controller.admin.active_namespaces() == (1,)
    assert len(controller.io_queues) == 3
    (namespace,) = controller.namespaces()
    assert namespace.block_size * namespace.block_count == CAPACITY


@pytest.mark.parametrize("length", [512, 4096, 8192, 12288, 512 << 10, (3 << 20) + 512])
def test_what_is_written_is_read_back(rig, controller, length: int) -> None:
    namespace = controller.namespace(1)
    data = random_bytes(length)
    namespace.write_bytes(3, data)
    namespace.flush()
    assert namespace.read_bytes(3, length // 512) == data
    assert rig.function.controller.namespace.store.read(3 * 512, length) == data
    pool = controller.list_pool
    assert pool.free_pages == pool.total_pages


def test_every_access_passes_the_iommu_without_a_fault(rig, controller) -> None:
    controller.namespace(1).write_bytes(0, bytes(64 << 10))
    counters = rig.machine.counters()
    assert counters["dmar0_walks"] > 0
    assert counters["dmar0_faults"] == 0


def test_transfer_at_any_dword_offset_of_a_buffer(rig, controller) -> None:
    namespace = controller.namespace(1)
    data = random_bytes(9 * 512)
    namespace.write_bytes(0, data)
    with rig.device.address_space.allocate(64 << 10) as buffer:
        for offset in (4, 508, 4092, 5000):
            namespace.read(0, 9, buffer, offset=offset)
            assert bytes(buffer.view[offset : offset + len(data)]) == data


def test_every_queue_reaches_the_same_blocks(controller) -> None:
    data = random_bytes(4096)
    controller.namespace(1, queue=0).write_bytes(8, data)
    assert controller.namespace(1, queue=2).read_bytes(8, 8) == data
    with pytest.raises(UsageError):
        controller.namespace(1, queue=3)


def test_each_queue_signals_its_own_vector(rig) -> None:
    with NvmeController(rig.device, io_queues=3) as controller:
        vectors = rig.device.msix.vectors
        assert sorted(vectors) == [0, 1, 2, 3]
        for vector in vectors.values():
            vector.poll()
        controller.io_queues[1].execute(1.0, IoOpcode.FLUSH, 1)
        assert [bool(vectors[number].poll()) for number in range(4)] == [False, False, True, False]


def test_polling_uses_no_vector(rig) -> None:
    with NvmeController(rig.device, interrupts=False) as controller:
        controller.namespace(1).write_bytes(0, bytes(512))
        assert rig.device.msix.vectors == {}


def test_function_with_msi_only_uses_it() -> None:
    with machine_with(vectors=None, msi=4) as rig, NvmeController(rig.device) as controller:
        assert rig.device.msi.vectors
        controller.namespace(1).write_bytes(0, bytes(512))


def test_write_zeroes_and_forced_write(controller) -> None:
    namespace = controller.namespace(1)
    namespace.write_bytes(0, b"\xff" * 4096)
    namespace.write_zeroes(2, 3)
    data = namespace.read_bytes(0, 8)
    assert data == b"\xff" * 1024 + bytes(1536) + b"\xff" * 1536
    with controller.device.address_space.allocate(4096) as buffer:
        namespace.write(0, 1, buffer, force=True)
    assert namespace.read_bytes(0, 1) == bytes(512)


def test_read_past_the_end_is_named_and_logged(controller) -> None:
    namespace = controller.namespace(1)
    with pytest.raises(NvmeCommandError, match="LBA Out of Range") as caught:
        namespace.read_bytes(namespace.block_count, 1)
    assert (caught.value.status_type, caught.value.status_code) == (0, 0x80)
    newest = controller.admin.errors()[0]
    assert newest.lba == namespace.block_count
    assert newest.status & 0x7FF == 0x80
    assert namespace.read_bytes(0, 1) == bytes(512)


def test_split_transfer_with_one_bad_part_raises_and_leaves_the_queue_empty(controller) -> None:
    namespace = controller.namespace(1)
    blocks = 4 * namespace.max_blocks
    with controller.device.address_space.allocate(blocks * 512) as buffer:
        with pytest.raises(NvmeCommandError):
            namespace.read(namespace.block_count - blocks + 1, blocks, buffer)
        assert controller.io_queues[0].outstanding == 0


def test_transfer_longer_than_the_queue_is_deep() -> None:
    with machine_with(mdts=1) as rig, NvmeController(rig.device, queue_entries=4) as controller:
        namespace = controller.namespace(1)
        assert namespace.max_blocks == 16
        data = random_bytes(50 * 8192)
        namespace.write_bytes(0, data)
        assert namespace.read_bytes(0, 800) == data


def test_buffer_too_small_is_refused_before_the_device_sees_it(controller) -> None:
    namespace = controller.namespace(1)
    with controller.device.address_space.allocate(4096) as buffer:
        for count, offset in ((9, 0), (8, 4), (1, 2), (0, 0), (-1, 0), (1, -4)):
            with pytest.raises(UsageError):
                namespace.read(0, count, buffer, offset=offset)
    with pytest.raises(UsageError, match="whole number"):
        namespace.write_bytes(0, b"x")


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_sizes(block_size: int) -> None:
    with (
        machine_with(block_size=block_size) as rig,
        NvmeController(rig.device) as controller,
    ):
        namespace = controller.namespace(1)
        data = random_bytes(8 * block_size)
        namespace.write_bytes(1, data)
        assert namespace.read_bytes(1, 8) == data


@pytest.mark.parametrize("stride", [0, 3])
def test_doorbell_strides(stride: int) -> None:
    limits = Limits(queue_pairs=4, doorbell_stride=stride)
    with (
        machine_with(limits=limits, vectors=5) as rig,
        NvmeController(rig.device, io_queues=8) as controller,
    ):
        assert len(controller.io_queues) == 4
        for queue in range(4):
            controller.namespace(1, queue=queue).write_bytes(queue, bytes([queue]) * 512)
        assert controller.namespace(1).read_bytes(2, 1) == b"\2" * 512


def test_smart_counts_and_features(controller) -> None:
    before = controller.admin.smart()
    namespace = controller.namespace(1)
    namespace.write_bytes(0, bytes(512))
    namespace.read_bytes(0, 1)
    after = controller.admin.smart()
    assert after.host_reads == before.host_reads + 1
    assert after.host_writes == before.host_writes + 1
    assert after.temperature_kelvin > 0
    assert controller.admin.get_feature(Feature.VOLATILE_WRITE_CACHE) in (0, 1)


def test_unknown_admin_opcode_is_named(controller) -> None:
    with pytest.raises(NvmeCommandError, match="Invalid Command Opcode"):
        controller.admin.execute("Nonsense", 0x7F)


def test_namespace_that_does_not_exist(controller) -> None:
    with pytest.raises((NvmeCommandError, UsageError)):
        controller.namespace(9)


def test_batches_complete_in_full(rig, controller) -> None:
    queue = controller.io_queues[0]
    with rig.device.address_space.allocate(32 * 512) as buffer:
        buffer.view[:] = random_bytes(32 * 512)
        writes = [
            (IoOpcode.WRITE, 1, buffer.iova + 512 * index, 0, index, 0, 0) for index in range(32)
        ]
        cids = queue.submit_many(writes)
        done = queue.wait_many(cids, 5)
        assert [entry[:2] for entry in done] == [(cid, 0) for cid in cids]
        assert controller.namespace(1).read_bytes(0, 32) == bytes(buffer.view[: 32 * 512])


def test_wrapping_many_times_loses_nothing(rig) -> None:
    with NvmeController(rig.device, queue_entries=4) as controller:
        namespace = controller.namespace(1)
        for number in range(50):
            namespace.write_bytes(number, bytes([number]) * 512)
        assert [namespace.read_bytes(number, 1)[0] for number in range(50)] == list(range(50))


def test_many_async_transfers_at_once(rig, controller) -> None:
    namespace = controller.namespace(1)

    async def one(number: int) -> bool:
        with rig.device.address_space.allocate(8192) as buffer:
            buffer.view[:] = bytes([number]) * 8192
            await namespace.write_async(16 * number, 16, buffer)
            buffer.view[:] = bytes(8192)
            await namespace.read_async(16 * number, 16, buffer)
            return bytes(buffer.view) == bytes([number]) * 8192

    async def run() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(20)))

    assert all(asyncio.run(run()))


def test_reset_keeps_data_queues_and_namespaces(controller) -> None:
    namespace = controller.namespace(1)
    namespace.write_bytes(0, b"\x5a" * 512)
    controller.admin.request_events()
    controller.reset()
    assert namespace.read_bytes(0, 1) == b"\x5a" * 512
    assert controller.io_queues[0].outstanding == 0


def test_event_after_an_invalid_doorbell(rig, controller) -> None:
    controller.admin.request_events()
    assert controller.admin.poll_event() is None
    # A tail beyond the queue's end.
    controller.registers.write32(0x1000 + 2 * 4, 5000)
    event = controller.admin.wait_event(2)
    assert event.type == 0
    assert event.log_page == 1


def test_no_event_times_out(controller) -> None:
    with pytest.raises(DeviceTimeoutError):
        controller.admin.wait_event(0.05)


def test_abort_of_nothing_says_so(controller) -> None:
    assert controller.admin.abort(1, 77) is False


def test_fatal_status_ends_a_wait_with_its_own_error(rig, controller) -> None:
    # Bus mastering off: the controller cannot fetch the command and gives up.
    rig.device.set_bus_master(False)
    queue = controller.io_queues[0]
    with pytest.raises((ControllerFatalError, DeviceTimeoutError)):
        queue.execute(0.2, IoOpcode.FLUSH, 1)


def test_controller_that_never_answers_times_out_with_its_state(rig, controller) -> None:
    rig.freeze()
    with pytest.raises(DeviceTimeoutError, match="CSTS 0x1") as caught:
        controller.io_queues[0].execute(0.05, IoOpcode.FLUSH, 1)
    assert "1 of 255 commands outstanding" in str(caught.value)
    rig.thaw()
    controller.io_queues[0].execute(1, IoOpcode.FLUSH, 1)


def test_close_shuts_down_and_leaves_the_controller_disabled(rig) -> None:
    controller = NvmeController(rig.device)
    controller.start()
    with pytest.raises(UsageError, match="started already"):
        controller.start()
    controller.close()
    controller.close()
    assert not rig.function.bus_master
    assert rig.function.bar_read(0, 0x14, 4) & CC_ENABLE == 0
    assert rig.device.msix.vectors == {}
    assert rig.device.address_space.mappings == {}
    with pytest.raises(UsageError, match="not started"):
        _ = controller.identity


def test_driver_can_start_again_after_close(rig) -> None:
    for number in range(3):
        with NvmeController(rig.device) as controller:
            controller.namespace(1).write_bytes(number, b"\1" * 512)


def test_driver_takes_over_a_controller_left_running(rig) -> None:
    first = NvmeController(rig.device)
    first.start()
    # The first driver vanishes without a word; its interrupts go with it.
    rig.device.msix.disable()
    with NvmeController(rig.device) as second:
        assert second.namespace(1).read_bytes(0, 1) == bytes(512)


def test_failed_start_leaves_nothing_behind(rig, monkeypatch) -> None:
    def refuse(*_arguments, **_wishes):
        raise NvmeCommandError("Create SQ", AdminOpcode.CREATE_SQ, 1, 1, True)

    monkeypatch.setattr("vfiokit.driver.nvme.admin.AdminCommands.create_submission_queue", refuse)
    with pytest.raises(NvmeCommandError):
        NvmeController(rig.device).start()
    assert rig.device.address_space.mappings == {}
    assert rig.device.msix.vectors == {}
    assert not rig.function.bus_master


def test_controller_that_never_becomes_ready_times_out_and_is_released(rig, monkeypatch) -> None:
    monkeypatch.setattr(NvmeController, "_ready_timeout_s", lambda self: 0.05)
    rig.freeze()
    with pytest.raises(DeviceTimeoutError, match="enabling not done within"):
        NvmeController(rig.device).start()
    assert rig.device.address_space.mappings == {}
    rig.thaw()
    with NvmeController(rig.device) as controller:
        assert controller.version == (1, 4, 0)


def test_registers_of_a_function_that_left_the_bus_are_fatal(rig, controller, monkeypatch) -> None:
    monkeypatch.setattr(type(rig.function), "mmio_read", lambda *_: 0xFFFFFFFF)
    with pytest.raises(ControllerFatalError, match="all ones"):
        controller.check("looking")
    with pytest.raises(ControllerFatalError, match="all ones"):
        controller.reset()
    controller.close()
    assert rig.device.address_space.mappings == {}


def test_device_that_is_no_nvme_controller_is_refused() -> None:
    with Rig(EduFunction) as rig, pytest.raises(DriverError, match="no NVMe controller"):
        NvmeController(rig.device).start()


def test_reset_after_a_fatal_status_brings_the_controller_back(rig) -> None:
    with NvmeController(rig.device) as controller:
        namespace = controller.namespace(1)
        # Without bus mastering the next fetch fails, which is fatal to the controller.
        rig.device.set_bus_master(False)
        with pytest.raises((ControllerFatalError, DeviceTimeoutError)):
            controller.io_queues[0].execute(0.1, IoOpcode.FLUSH, 1)
        rig.device.set_bus_master(True)
        controller.reset()
        namespace.flush()

"""Every way a drive's DMA can be wrong, on the twin of the captured server: caught and named.

The drive's own driver is used up to the last command, which then names memory it may not touch.
What must not happen is checked too: no other memory changes, and the drive goes on working.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.driver.nvme import Namespace, NvmeController
from vfiokit.driver.nvme.spec import IoOpcode
from vfiokit.driver.nvme.status import status_name
from vfiokit.errors import DeviceTimeoutError, DriverError
from vfiokit.host.source import open_tree
from vfiokit.machine.iommu.fault import FaultLog, FaultReason
from vfiokit.machine.twin import Twin, build_twin
from vfiokit.machine.txn import AddressType, Completion, Kind, Txn
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device, open_device

DRIVE = Bdf.parse("0000:05:00.0")
NEIGHBOUR = Bdf.parse("0000:04:00.0")
PAGE = 4096


class Bench(NamedTuple):
    twin: Twin
    device: Device
    controller: NvmeController
    namespace: Namespace

    @property
    def faults(self) -> FaultLog:
        iommu = self.twin.machine.iommu_of(DRIVE)
        assert iommu is not None
        return iommu.faults

    def command(self, opcode: IoOpcode, iova: int) -> tuple[int, int]:
        """Status type and code of one command of 8 blocks at LBA 0 on memory at ``iova``."""
        queue = self.controller.io_queues[0]
        done = queue.execute(2.0, opcode, self.namespace.nsid, iova, 0, 0, 0, 7)
        return done[1] >> 8 & 7, done[1] & 0xFF


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    twin = build_twin(open_tree("demo"))
    apply(twin.kernel, plan(twin.kernel.tree, [DRIVE]), tmp_path)
    with open_device(twin.kernel, DRIVE) as device, NvmeController(device) as controller:
        namespace = controller.namespace(1)
        namespace.write_bytes(0, b"\xa5" * PAGE)
        made = Bench(twin, device, controller, namespace)
        made.faults.drain()
        yield made


def still_works(bench: Bench) -> bool:
    return bench.namespace.read_bytes(0, 8) == b"\xa5" * PAGE and not bench.faults.drain()


def test_reading_an_unmapped_address_is_faulted_and_the_drive_says_so(bench: Bench) -> None:
    assert bench.command(IoOpcode.WRITE, 0x4000_0000) == (0, 0x04)
    assert status_name(0, 0x04) == "Data Transfer Error"
    (fault,) = bench.faults.drain()
    assert fault.requester_id == DRIVE.requester_id
    assert fault.iova == 0x4000_0000
    assert not fault.write
    assert fault.reason is FaultReason.READ_NOT_PERMITTED
    assert still_works(bench)


def test_writing_an_unmapped_address_is_faulted_though_nobody_tells_the_drive(
    bench: Bench,
) -> None:
    assert bench.command(IoOpcode.READ, 0x4000_0000) == (0, 0)
    (fault,) = bench.faults.drain()
    assert (fault.iova, fault.write) == (0x4000_0000, True)
    assert fault.reason is FaultReason.WRITE_NOT_PERMITTED
    assert still_works(bench)


def test_memory_mapped_for_reading_only_keeps_its_content(bench: Bench) -> None:
    with bench.device.address_space.allocate(PAGE, write=False) as buffer:
        buffer.view[:] = b"\x11" * PAGE
        assert bench.command(IoOpcode.READ, buffer.iova) == (0, 0)
        (fault,) = bench.faults.drain()
        assert fault.reason is FaultReason.WRITE_NOT_PERMITTED
        assert fault.iova == buffer.iova
        assert bytes(buffer.view) == b"\x11" * PAGE
        assert bench.command(IoOpcode.WRITE, buffer.iova) == (0, 0)
        assert not bench.faults.drain()
    bench.namespace.write_bytes(0, b"\xa5" * PAGE)
    assert still_works(bench)


def test_memory_mapped_for_writing_only_cannot_be_read(bench: Bench) -> None:
    with bench.device.address_space.allocate(PAGE, read=False) as buffer:
        assert bench.command(IoOpcode.WRITE, buffer.iova) == (0, 0x04)
        (fault,) = bench.faults.drain()
        assert fault.reason is FaultReason.READ_NOT_PERMITTED
    assert still_works(bench)


def test_a_buffer_given_back_is_out_of_reach_at_once(bench: Bench) -> None:
    buffer = bench.device.address_space.allocate(PAGE)
    iova = buffer.iova
    assert bench.command(IoOpcode.READ, iova) == (0, 0)
    buffer.close()
    assert bench.command(IoOpcode.WRITE, iova) == (0, 0x04)
    (fault,) = bench.faults.drain()
    assert fault.iova == iova
    assert still_works(bench)


def test_another_function_s_requester_id_does_not_reach_the_drive_s_memory(bench: Bench) -> None:
    fabric = bench.twin.machine.fabric
    with bench.device.address_space.allocate(PAGE) as buffer:
        buffer.view[:] = b"\x22" * PAGE
        neighbour = bench.twin.machine.functions[NEIGHBOUR]
        neighbour.config_write(0x04, 2, 0x0006)
        txn = Txn(Kind.WRITE, buffer.iova, 4, NEIGHBOUR.requester_id, data=b"evil")
        assert fabric.route(txn) is Completion.UNSUPPORTED_REQUEST
        assert bytes(buffer.view[:4]) == b"\x22" * 4
        # The neighbour has its host driver's address space, where this IOVA is nothing.
        assert txn.path[0].where == str(NEIGHBOUR)
        assert txn.path[-1].action in ("fault", "unclaimed")
    assert still_works(bench)


def test_a_forged_requester_id_is_blocked_by_the_port_above(bench: Bench) -> None:
    """Source Validation: the root port passes only requester IDs of the buses below it."""
    with bench.device.address_space.allocate(PAGE) as buffer:
        buffer.view[:] = b"\x33" * PAGE
        sender = bench.twin.machine.functions[NEIGHBOUR]
        sender.config_write(0x04, 2, 0x0006)
        txn = Txn(Kind.WRITE, buffer.iova, 4, DRIVE.requester_id, data=b"evil")
        bench.twin.machine.fabric.route(txn, sender)
        assert any(hop.action == "block" for hop in txn.path), txn.path
        assert bytes(buffer.view[:4]) == b"\x33" * 4
    assert still_works(bench)


def test_with_bus_mastering_off_nothing_leaves_the_drive(bench: Bench) -> None:
    before = bench.twin.machine.counters()
    bench.device.set_bus_master(False)
    with pytest.raises(DriverError) as caught:
        bench.namespace.read_bytes(0, 8)
    assert isinstance(caught.value, DeviceTimeoutError) or "fatal" in str(caught.value).lower()
    after = bench.twin.machine.counters()
    moved = {name: after[name] - before[name] for name in ("bytes_written", "interrupts")}
    assert moved == {"bytes_written": 0, "interrupts": 0}


def test_a_translated_request_is_refused_where_ats_is_off(bench: Bench) -> None:
    """A device cannot skip translation by claiming that it did it itself."""
    hpa = bench.twin.machine.memory.base
    secret = bench.twin.machine.memory.read(hpa, 16)
    txn = Txn(Kind.WRITE, hpa, 4, DRIVE.requester_id, data=b"evil", at=AddressType.TRANSLATED)
    assert bench.twin.machine.fabric.route(txn) is Completion.UNSUPPORTED_REQUEST
    assert txn.path[-1].action == "block"
    assert "ATS" in txn.path[-1].detail
    assert bench.twin.machine.memory.read(hpa, 16) == secret
    assert still_works(bench)

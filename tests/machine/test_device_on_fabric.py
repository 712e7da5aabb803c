"""Device models plugged into a machine: real routing, real message delivery, one clock."""

from __future__ import annotations

import struct

import pytest
from device_host import BASE, HostMemory
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_host import CSTS, PAGE, NvmeHost

from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.machine import Machine
from vfiokit.machine.txn import DmaError
from vfiokit.pci.address import Bdf

NVME = Bdf(0, 0, 3, 0)
EDU = Bdf(0, 0, 4, 0)
NVME_BAR = 0xE000_0000
CMB_BAR = 0xE010_0000
EDU_BAR = 0xE020_0000


class Rig:
    """A machine with RAM from 0, an NVMe controller with a memory buffer, and an edu device."""

    def __init__(self) -> None:
        self.machine = Machine(ram=16 << 20, ram_base=0)
        self.machine.add_host_bridge()
        self.nvme = NvmeFunction.synthetic(NVME, capacity=1 << 20, cmb_size=0x10000)
        self.edu = EduFunction(EDU, dma_mask=(1 << 64) - 1)
        self.host = NvmeHost(self.nvme)
        self.machine.add(self.nvme)
        self.machine.add(self.edu)
        for function, bars in (
            (self.nvme, {0x10: NVME_BAR, 0x14: 0, 0x18: CMB_BAR, 0x1C: 0}),
            (self.edu, {0x10: EDU_BAR}),
        ):
            for offset, value in bars.items():
                function.config_write(offset, 4, value)
            function.config_write(4, 2, 6)
        memory = HostMemory(0)
        memory.view = self.machine.memory.view[BASE : BASE + (4 << 20)]
        memory.data = bytearray(4 << 20)  # its length bounds the allocator
        self.host.memory = memory
        self.interrupts = 0
        message = self.machine.interrupts.allocate(NVME.requester_id, self._interrupted)
        msix = self.nvme.msix
        assert msix is not None
        for offset, value in ((0, message.address & 0xFFFFFFFF), (4, 0), (8, message.data)):
            self.nvme.bar_write(0, msix.table_offset + 16 + offset, 4, value)
        self.host.enable()
        self.host.create_queue()

    def _interrupted(self) -> None:
        self.interrupts += 1


def test_commands_cross_the_fabric_and_interrupts_arrive() -> None:
    rig = Rig()
    page = rig.host.allocate(PAGE)
    rig.host.poke(page, b"fabric!!" * 512)
    assert rig.host.submit(1, 1, nsid=1, prp1=page, cdw12=7).status == 0
    rig.host.poke(page, bytes(PAGE))
    assert rig.host.submit(1, 2, nsid=1, prp1=page, cdw12=7).status == 0
    assert rig.host.peek(page, PAGE) == b"fabric!!" * 512
    assert rig.interrupts == 2


def test_one_device_fills_the_memory_buffer_of_another() -> None:
    rig = Rig()
    rig.edu.buffer[:8] = b"from edu"
    for offset, value in ((0x80, 0x40000), (0x88, CMB_BAR + 0x100), (0x90, 8), (0x98, 3)):
        rig.edu.bar_write(0, offset, 8, value)
    rig.machine.clock.settle()
    assert rig.nvme.bar_read(2, 0x100, 8) == int.from_bytes(b"from edu", "little")


def test_data_sent_to_its_own_doorbells_does_not_hang_the_controller() -> None:
    rig = Rig()
    page = rig.host.allocate(PAGE)
    rig.host.poke(page, struct.pack("<I", 1) * 1024)
    assert rig.host.submit(1, 1, nsid=1, prp1=page).status == 0
    queue = rig.host.queues[1]
    for _ in range(4):
        queue.push(rig.host.entry(2, nsid=1, prp1=NVME_BAR + 0x1008))
        queue.ring_tail()
        queue.reap()
    rig.host.memory.view[:] = bytes(len(rig.host.memory.view))
    rig.host._next = BASE
    rig.host.enable()
    assert rig.host.read(CSTS) == 1


def test_queues_at_the_end_of_the_address_space_end_in_a_fatal_status() -> None:
    rig = Rig()
    last = 2**64 - PAGE
    for opcode, cdw11 in ((5, 1), (1, 2 << 16 | 1)):
        cdw10 = 1023 << 16 | 2
        assert rig.host.admin(opcode, prp1=last, cdw10=cdw10, cdw11=cdw11).status == 0
    rig.host.admin(0x09, cdw10=1, cdw11=7)  # no burst limit: one fetch runs over the end
    rig.host.doorbell(4, 1000)
    assert rig.host.read(CSTS) == 3


def test_a_ring_that_runs_over_the_last_address_does_not_hang_the_bus() -> None:
    rig = Rig()
    for iova in (2**64 - 32, 2**64):
        with pytest.raises(DmaError):
            rig.nvme.dma.read(iova, 64)
        rig.nvme.dma.write(iova, bytes(64))


prps = st.one_of(
    st.sampled_from(
        [0, NVME_BAR, NVME_BAR + 0x1000, CMB_BAR, CMB_BAR + 0x10000, EDU_BAR, 0xFEE00000]
    ),
    st.sampled_from([2**64 - 4096, 2**64 - 8, 2**64 - 1, 16 << 20, (16 << 20) - 512]),
    st.integers(0, 4095).map(lambda page: page * PAGE),
    st.integers(0, 2**64 - 1),
)


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 13), prps, prps, st.integers(0, 255)),
        max_size=12,
    )
)
@settings(max_examples=80, deadline=None)
def test_any_address_on_the_bus_is_survived(
    commands: list[tuple[int, int, int, int, int]],
) -> None:
    rig = Rig()
    for queue_id, opcode, prp1, prp2, count in commands:
        queue = rig.host.queues[queue_id]
        queue.push(rig.host.entry(opcode, nsid=1, prp1=prp1, prp2=prp2, cdw10=count, cdw12=count))
        queue.ring_tail()
        queue.reap()
    rig.nvme.config_write(4, 2, 6)
    rig.host.memory.view[:] = bytes(len(rig.host.memory.view))
    rig.host._next = BASE
    rig.host.enable()
    assert rig.host.admin(0x0A, cdw10=7).status == 0

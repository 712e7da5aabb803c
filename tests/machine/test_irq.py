"""Interrupts end to end: MSI, MSI-X and INTx from a function to a handler."""

from __future__ import annotations

import pytest
from fabric_host import Card, machine, send, steps
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import MachineError
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import (
    MsiLayout,
    MsixLayout,
    pci_bridge,
    root_port,
    switch_downstream,
    switch_upstream,
)
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

ENABLE, FUNCTION_MASK = 0x8000, 0x4000
BAR = 0xE000_0000


class Host:
    """One card below a root port; handlers append their name to ``heard``."""

    def __init__(self, *, remapping: bool = False, **card) -> None:
        self.m: Machine = machine()
        self.unit = self.m.add_iommu()
        self.m.add_host_bridge(iommu=self.unit)
        self.m.add(root_port(Bdf.parse("00:01.0"), 1, window=(BAR, BAR + 0x100000)))
        self.card = self.m.add(Card("01:00.0", BAR, **card))
        self.heard: list[object] = []
        if remapping:
            self.unit.remapper.set_table(self.m.memory.allocate(4096), 256)
            self.unit.remapper.enabled = True

    def allocate(self, name: object):
        return self.m.interrupts.allocate(self.card.requester_id, lambda: self.heard.append(name))

    def program_msix(self, vector: int, message, *, masked: bool = False) -> None:
        at = self.card.msix.table_offset + 16 * vector
        words = (message.address, message.address >> 32, message.data, int(masked))
        for index, word in enumerate(words):
            self.m.fabric.cpu_write(BAR + at + 4 * index, 4, word & 0xFFFFFFFF)

    def msix_control(self, value: int) -> None:
        self.card.config.write(self.card.msix.offset + 2, 2, value)

    def program_msi(self, messages, *, enable: bool = True) -> None:
        msi = self.card.msi
        self.card.config.write(msi.offset + 4, 4, messages[0].address)
        self.card.config.write(msi.offset + (0x0C if msi.wide else 8), 2, messages[0].data)
        granted = len(messages).bit_length() - 1
        self.card.config.write(msi.offset + 2, 2, granted << 4 | int(enable))


def msix_host(vectors: int = 4, **kwargs) -> Host:
    return Host(msix=MsixLayout(vectors, 0, 0x2000, 0x3000), **kwargs)


# -- MSI-X ------------------------------------------------------------------------------------


@pytest.mark.parametrize("remapping", [False, True])
def test_msix_vector_reaches_its_handler(remapping):
    host = msix_host(remapping=remapping)
    for vector in range(4):
        host.program_msix(vector, host.allocate(vector))
    host.msix_control(ENABLE)
    for vector in (2, 0, 3, 2):
        host.card.raise_msix(vector)
    assert host.heard == [2, 0, 3, 2]
    assert host.m.interrupts.delivered == 4
    assert host.m.fabric.counters.interrupts == 4


def test_disabled_msix_drops_vectors():
    host = msix_host()
    host.program_msix(0, host.allocate("never"))
    host.card.raise_msix(0)
    host.msix_control(ENABLE)
    assert (host.heard, host.card.msix.dropped) == ([], 1)


def test_masked_vector_becomes_pending_and_unmasking_sends_it_once():
    host = msix_host()
    message = host.allocate("pending")
    host.program_msix(1, message, masked=True)
    host.msix_control(ENABLE)
    for _ in range(3):
        host.card.raise_msix(1)
    assert host.heard == []
    assert host.m.fabric.cpu_read(BAR + 0x3000, 8) == 0b10
    host.program_msix(1, message, masked=False)
    assert host.heard == ["pending"]
    assert host.m.fabric.cpu_read(BAR + 0x3000, 8) == 0


def test_function_mask_holds_all_vectors_back():
    host = msix_host()
    for vector in range(4):
        host.program_msix(vector, host.allocate(vector))
    host.msix_control(ENABLE | FUNCTION_MASK)
    host.card.raise_msix(3)
    host.card.raise_msix(1)
    assert host.heard == []
    host.msix_control(ENABLE)
    assert host.heard == [1, 3]


def test_table_and_pending_bits_never_reach_the_device_model():
    host = msix_host(vectors=70)
    fabric = host.m.fabric
    fabric.cpu_write(BAR + 0x2000, 8, 0x1_FEE0_0003)
    assert fabric.cpu_read(BAR + 0x2000, 8) == 0x1_FEE0_0000
    fabric.cpu_write(BAR + 0x200C, 4, 0xFFFFFFFF)
    assert fabric.cpu_read(BAR + 0x200C, 4) == 1
    fabric.cpu_write(BAR + 0x3000, 8, 0xFFFFFFFF)
    assert fabric.cpu_read(BAR + 0x3000, 8) == 0
    assert host.card.accesses == []
    host.msix_control(ENABLE)
    host.card.raise_msix(69)
    assert fabric.cpu_read(BAR + 0x3008, 8) == 1 << 5
    fabric.cpu_write(BAR + 0x2000 + 70 * 16, 4, 5)
    assert host.card.accesses == [("write", 0x2000 + 70 * 16, 4)]


def test_interrupts_need_bus_mastering():
    host = msix_host()
    host.program_msix(0, host.allocate("x"))
    host.msix_control(ENABLE)
    host.card.config.write(4, 2, 0x0002)
    host.card.raise_msix(0)
    assert host.heard == []


def test_message_may_be_aimed_at_memory():
    """A vector is a write: software that programs RAM gets its data there."""
    host = msix_host()
    base = host.m.memory.base
    for offset, word in ((0, base & 0xFFFFFFFF), (4, base >> 32), (8, 0xABCD), (12, 0)):
        host.m.fabric.cpu_write(BAR + 0x2000 + offset, 4, word)
    host.msix_control(ENABLE)
    host.card.raise_msix(0)
    assert host.m.memory.read(base, 4) == bytes.fromhex("cdab0000")


def test_reset_disables_and_masks_everything():
    host = msix_host()
    host.program_msix(0, host.allocate("x"))
    host.msix_control(ENABLE | FUNCTION_MASK)
    host.card.raise_msix(0)
    host.card.reset(ResetKind.FUNCTION_LEVEL)
    assert not host.card.msix.enabled
    assert not host.card.msix.pending
    host.card.place(BAR)
    assert host.m.fabric.cpu_read(BAR + 0x200C, 4) == 1
    assert host.m.fabric.cpu_read(BAR + 0x2000, 8) == 0
    host.msix_control(ENABLE)
    assert host.heard == []


def test_vectors_a_function_does_not_have_are_refused():
    host = msix_host()
    with pytest.raises(MachineError, match="vector 4 of 4"):
        host.card.raise_msix(4)
    with pytest.raises(MachineError, match="no MSI capability"):
        host.card.raise_msi()
    plain = Card("02:00.0")
    with pytest.raises(MachineError, match="no MSI-X capability"):
        plain.raise_msix(0)


events = st.lists(
    st.one_of(
        st.tuples(st.just("raise"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("mask"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("function"), st.just(0), st.booleans()),
    ),
    max_size=30,
)


@given(events)
def test_no_masked_vector_is_sent_and_no_raised_vector_is_lost(plan):
    host = msix_host()
    messages = [host.allocate(vector) for vector in range(4)]
    for vector, message in enumerate(messages):
        host.program_msix(vector, message)
    host.msix_control(ENABLE)
    masked, whole, pending = [False] * 4, False, [False] * 4
    want: list[int] = []
    for verb, vector, value in plan:
        if verb == "raise":
            host.card.raise_msix(vector)
            pending[vector] = True
        elif verb == "mask":
            host.program_msix(vector, messages[vector], masked=value)
            masked[vector] = value
        else:
            host.msix_control(ENABLE | (FUNCTION_MASK if value else 0))
            whole = value
        for number in range(4):
            if pending[number] and not masked[number] and not whole:
                pending[number] = False
                want.append(number)
        assert host.heard == want
    assert host.card.msix.pending == {number for number in range(4) if pending[number]}


# -- MSI --------------------------------------------------------------------------------------


@pytest.mark.parametrize("remapping", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_msi_block_reaches_consecutive_handlers(remapping, wide):
    host = Host(remapping=remapping, msi=MsiLayout(4, wide=wide))
    handlers = [lambda name=name: host.heard.append(name) for name in range(4)]
    messages = host.m.interrupts.allocate_block(host.card.requester_id, handlers)
    host.program_msi(messages)
    for vector in (3, 0, 1):
        host.card.raise_msi(vector)
    assert host.heard == [3, 0, 1]


def test_msi_granted_fewer_vectors_shares_the_first():
    host = Host(msi=4)
    host.program_msi([host.allocate("only")])
    host.card.raise_msi(3)
    assert host.heard == ["only"]
    assert host.card.msi.granted == 1
    with pytest.raises(MachineError, match="vector 4 of 4"):
        host.card.raise_msi(4)


def test_disabled_msi_drops_vectors():
    host = Host(msi=1)
    host.program_msi([host.allocate("x")], enable=False)
    host.card.raise_msi()
    assert (host.heard, host.card.msi.dropped) == ([], 1)


def test_masked_msi_becomes_pending_and_unmasking_sends_it():
    host = Host(msi=MsiLayout(2, maskable=True))
    handlers = [lambda name=name: host.heard.append(name) for name in range(2)]
    host.program_msi(host.m.interrupts.allocate_block(host.card.requester_id, handlers))
    mask = host.card.msi.offset + 0x10
    host.card.config.write(mask, 4, 0b10)
    host.card.raise_msi(1)
    host.card.raise_msi(0)
    assert (host.heard, host.card.msi.pending) == ([0], 0b10)
    host.card.config.write(mask, 4, 0)
    assert (host.heard, host.card.msi.pending) == ([0, 1], 0)
    host.card.config.write(mask, 4, 0b11)
    host.card.raise_msi(0)
    host.card.reset(ResetKind.FUNCTION_LEVEL)
    assert (host.card.msi.pending, host.card.msi.enabled) == (0, False)


# -- the interrupt range ----------------------------------------------------------------------


def test_forged_message_reaches_a_handler_only_without_remapping():
    host = Host()
    victim = host.allocate("victim")
    send(host.m, host.card, victim.address, victim.data.to_bytes(4, "little"))
    assert host.heard == ["victim"]  # any device can do this: what remapping is for
    guarded = Host(remapping=True)
    victim = guarded.m.interrupts.allocate(0x0010, lambda: guarded.heard.append("victim"))
    guarded.card.dma.write(victim.address, victim.data.to_bytes(4, "little"))
    assert guarded.heard == []
    assert guarded.m.interrupts.blocked == 1
    assert guarded.unit.faults.records[0].reason == 0x26


def test_freed_message_is_spurious_or_faults():
    host = Host()
    message = host.allocate("x")
    host.m.interrupts.free(message.handle)
    _completion, txn = send(host.m, host.card, message.address, message.data.to_bytes(4, "little"))
    assert steps(txn)[-1] == "interrupt unclaimed"
    assert host.m.interrupts.spurious == 1
    with pytest.raises(MachineError, match="not allocated"):
        host.m.interrupts.free(message.handle)
    guarded = Host(remapping=True)
    message = guarded.allocate("x")
    guarded.m.interrupts.free(message.handle)
    guarded.card.dma.write(message.address, message.data.to_bytes(4, "little"))
    assert guarded.unit.faults.records[0].reason == 0x22


@pytest.mark.parametrize(("offset", "length"), [(0, 8), (0, 2), (2, 4), (0, 64)])
def test_anything_but_an_aligned_dword_is_no_message(offset, length):
    host = Host()
    host.card.dma.write(0xFEE00000 + offset, bytes(length))
    assert (host.m.interrupts.malformed, host.m.interrupts.spurious) == (1, 0)


def test_interrupt_range_cannot_be_read_nor_translated():
    host = Host()
    from vfiokit.machine.txn import DmaError

    with pytest.raises(DmaError) as failed:
        host.card.dma.read(0xFEE00000, 4)
    assert failed.value.txn.path[-1].detail == "the interrupt range cannot be read"


def test_messages_of_a_conventional_device_carry_the_alias():
    m = machine()
    unit = m.add_iommu()
    m.add_host_bridge(iommu=unit)
    m.add(root_port(Bdf.parse("00:01.0"), 1, 2))
    m.add(pci_bridge(Bdf.parse("01:00.0"), 2))
    card = m.add(Card("02:05.0", express=False, msi=1))
    unit.remapper.set_table(m.memory.allocate(4096), 256)
    unit.remapper.enabled = True
    heard = []
    message = m.interrupts.allocate(card.requester_id, lambda: heard.append(1))
    card.dma.write(message.address, message.data.to_bytes(4, "little"))
    assert heard == [1]
    assert m.memory.read64(unit.remapper.table + 8) & 0xFFFF == 0x0200


def test_blocks_and_entries_run_out_with_a_clear_error():
    host = Host(remapping=True)
    host.unit.remapper.set_table(host.m.memory.allocate(4096), 4)
    for _ in range(4):
        host.allocate("x")
    with pytest.raises(MachineError, match="all 4 interrupt remapping entries"):
        host.allocate("x")
    for count in (0, 3, 64):
        with pytest.raises(MachineError, match="impossible"):
            host.m.interrupts.allocate_block(host.card.requester_id, [lambda: None] * count)


# -- INTx -------------------------------------------------------------------------------------


class Wires:
    """Two cards whose pins meet on one wire, and one elsewhere."""

    def __init__(self) -> None:
        self.m = machine()
        self.m.add_host_bridge()
        self.one = self.m.add(Card("00:01.0", interrupt_pin=1))
        self.other = self.m.add(Card("00:05.0", interrupt_pin=1))
        self.apart = self.m.add(Card("00:02.0", interrupt_pin=1))
        self.heard: list[tuple[str, bool]] = []

    def connect(self, name: str):
        card = getattr(self, name)
        return self.m.interrupts.connect_intx(card, lambda level: self.heard.append((name, level)))


def test_intx_level_reaches_the_handler_and_the_status_bit():
    w = Wires()
    w.connect("one")
    w.one.intx.set(True)
    w.one.intx.set(True)
    assert w.one.config.read(6, 2) & 8
    w.one.intx.set(False)
    assert not w.one.config.read(6, 2) & 8
    assert w.heard == [("one", True), ("one", False)]


def test_shared_wire_stays_high_until_the_last_function_lets_go():
    w = Wires()
    w.connect("one")
    w.connect("other")
    w.apart.intx.set(True)
    assert w.heard == []
    w.one.intx.set(True)
    w.other.intx.set(True)
    w.one.intx.set(False)
    assert (w.heard.count(("one", False)), w.m.interrupts.line_of(w.one).level) == (0, True)
    w.other.intx.set(False)
    assert w.heard == [("one", True), ("other", True)] * 2 + [("one", False), ("other", False)]
    assert w.m.interrupts.line_of(w.apart).unhandled == 1


def test_interrupt_disable_takes_the_pin_off_the_wire():
    w = Wires()
    w.connect("one")
    w.one.intx.set(True)
    w.one.config.write(4, 2, 0x0406)
    assert w.one.config.read(6, 2) & 8  # still pending inside the function
    w.one.config.write(4, 2, 0x0006)
    w.one.intx.set(False)
    assert w.heard == [("one", True), ("one", False), ("one", True), ("one", False)]


def test_handler_that_masks_its_device_silences_the_wire():
    w = Wires()
    calls = []

    def handler(level: bool) -> None:
        calls.append(level)
        if level:
            w.one.config.write(4, 2, 0x0406)

    w.m.interrupts.connect_intx(w.one, handler)
    w.connect("other")
    w.one.intx.set(True)
    assert calls == [True, False]
    assert w.heard == [("other", False)]


def test_connecting_to_a_high_wire_tells_at_once_and_closing_ends_it():
    w = Wires()
    w.one.intx.set(True)
    connection = w.connect("one")
    assert w.heard == [("one", True)]
    connection.close()
    connection.close()
    w.one.intx.set(False)
    assert w.heard == [("one", True)]


def test_reset_releases_the_wire():
    w = Wires()
    w.connect("one")
    w.one.intx.set(True)
    w.one.reset(ResetKind.FUNCTION_LEVEL)
    assert w.heard == [("one", True), ("one", False)]


def test_function_without_a_pin_has_no_wire():
    w = Wires()
    mute = w.m.add(Card("00:07.0"))
    mute.intx.set(True)
    with pytest.raises(MachineError, match="no INTx pin"):
        w.m.interrupts.connect_intx(mute, lambda _level: None)


def test_pins_turn_by_the_device_number_at_every_bridge():
    m = machine()
    m.add_host_bridge()
    m.add(root_port(Bdf.parse("00:03.0"), 1, 5))
    m.add(switch_upstream(Bdf.parse("01:00.0"), 2, 5))
    m.add(switch_downstream(Bdf.parse("02:01.0"), 3))
    m.add(switch_downstream(Bdf.parse("02:02.0"), 4))
    pins = {}
    for text, pin in (("03:00.0", 1), ("03:00.1", 2), ("04:00.0", 1), ("04:00.1", 4)):
        card = m.add(Card(text, interrupt_pin=pin))
        pins[text] = m.interrupts.root_pin(card)
    # INTA below port 1: +0 at 03:00, +1 at 02:01, +0 at 01:00, +3 at 00:03.
    assert pins == {"03:00.0": 0, "03:00.1": 1, "04:00.0": 1, "04:00.1": 0}

"""Interrupts of a guest: controllers by registers, tables by masks, pins by wires."""

from __future__ import annotations

import pytest
from device_rig import Host, Registers
from guest_rig import ScriptedVcpu, load, store
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.machine.build import MsiLayout, MsixLayout
from vfiokit.machine.device.edu import EduFunction
from vfiokit.machine.function import BarModel
from vfiokit.pci.address import Bdf
from vfiokit.vmm.chipset import FIRST_PIRQ_GSI
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.io_apic import IO_APIC_BASE, LEVEL, MASKED, REMOTE_IRR, IoApic
from vfiokit.vmm.irqchip import IrqChip, decode_message
from vfiokit.vmm.local_apic import APIC_BASE, LocalApic
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.msix import MsixVectors, PendingBits
from vfiokit.vmm.policy import Delivery, Policy
from vfiokit.vmm.root_port import RootPort

EOI, TPR, ISR, IRR, SVR = 0xB0, 0x80, 0x100, 0x200, 0xF0
MESSAGE = 0xFEE0_0000


# --- the local APIC ---


def test_higher_class_comes_first_and_waits_for_the_one_in_service() -> None:
    apic = LocalApic(0)
    for vector in (0x31, 0x52, 0x41):
        assert apic.accept(vector)
    assert apic.take() == 0x52
    assert apic.next_vector() is None
    assert apic.accept(0x55)
    assert apic.next_vector() is None  # same class
    assert apic.accept(0x61)
    assert apic.take() == 0x61
    apic.write(EOI, 4, 0)
    assert apic.read(ISR + 0x20, 4) == 1 << 0x12
    assert apic.read(IRR + 0x20, 4) == 1 << 0x15 | 1 << 1
    apic.write(EOI, 4, 0)
    assert apic.take() == 0x55


@given(st.sets(st.integers(16, 255), max_size=20), st.integers(0, 255))
def test_vectors_come_by_priority_and_none_is_lost(vectors, tpr) -> None:
    apic = LocalApic(0)
    apic.write(TPR, 4, tpr)
    for vector in vectors:
        apic.accept(vector)
    served = []
    while apic.next_vector() is not None:
        served.append(apic.take())
        apic.end_of_interrupt()
    assert served == sorted((v for v in vectors if v >> 4 > tpr >> 4), reverse=True)
    assert {v for v in vectors if apic.irr >> v & 1} == vectors - set(served)


@pytest.mark.parametrize("vector", [0, 15, 256, 1000])
def test_illegal_vector_is_not_taken(vector) -> None:
    assert not LocalApic(0).accept(vector)


def test_disabled_controller_takes_nothing() -> None:
    apic = LocalApic(0)
    apic.write(SVR, 4, 0xFF)
    assert not apic.accept(0x40)


def test_registers_of_the_page_are_dwords_in_their_places() -> None:
    apic = LocalApic(3)
    assert apic.read(0x20, 4) == 3 << 24
    apic.write(0x30, 4, 0)
    assert apic.read(0x30, 4) == 0x0005_0014
    assert apic.read(0x24, 4) == 0
    apic.write(0x350, 4, 0x700)
    assert apic.read(0x350, 4) == 0x700
    apic.write(TPR, 1, 0x50)
    assert apic.read(TPR, 4) == 0


# --- messages ---


def chip(count: int = 2) -> IrqChip:
    made = IrqChip()
    for _ in range(count):
        made.add_processor()
    return made


def test_message_reaches_the_processor_it_names() -> None:
    made = chip()
    assert made.message(MESSAGE | 1 << 12, 0x41)
    assert [apic.irr for apic in made.apics] == [0, 1 << 0x41]
    assert made.delivered == {1: 1}


def test_logical_message_reaches_a_set_and_lowest_priority_only_one() -> None:
    made = chip()
    for apic in made.apics:
        apic.write(0xD0, 4, 1 << 24 + apic.id)
    made.message(MESSAGE | 3 << 12 | 4, 0x41)
    assert [apic.irr for apic in made.apics] == [1 << 0x41] * 2
    made.apics[0].write(TPR, 4, 0x80)
    made.message(MESSAGE | 3 << 12 | 4 | 8, 0x51)
    assert [apic.irr >> 0x51 & 1 for apic in made.apics] == [0, 1]


@pytest.mark.parametrize(
    ("address", "data", "why"),
    [
        (0x1000, 0x41, "message to memory"),
        (1 << 32 | MESSAGE, 0x41, "message to memory"),
        (MESSAGE | 9 << 12, 0x41, "no such processor"),
        (MESSAGE, 0x441, "delivery mode"),
        (MESSAGE, 0x05, "vector or processor not enabled"),
    ],
)
def test_message_for_nobody_is_counted_as_lost(address, data, why) -> None:
    made = chip()
    assert not made.message(address, data)
    assert made.lost == {why: 1}


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_no_message_breaks_the_controllers(address, data) -> None:
    made = chip()
    taken = made.message(address, data)
    target = decode_message(address, data)
    assert taken == bool(sum(made.delivered.values()))
    assert taken or sum(made.lost.values()) == 1
    assert target is not None or not taken


def test_processors_interrupt_each_other() -> None:
    made = chip(3)
    made.apics[0].write(0x310, 4, 2 << 24)
    made.apics[0].write(0x300, 4, 0x45)
    made.apics[0].write(0x300, 4, 0x46 | 1 << 18)  # self
    made.apics[0].write(0x300, 4, 0x47 | 3 << 18)  # all others
    assert [apic.irr for apic in made.apics] == [1 << 0x46, 1 << 0x47, 1 << 0x45 | 1 << 0x47]


# --- the IOAPIC ---


def io_apic(entry: int, number: int = 5) -> tuple[IoApic, list[int]]:
    sent: list[int] = []
    made = IoApic(lambda vector, destination, logical, level: sent.append(vector))
    write_entry(made, number, entry)
    return made, sent


def write_entry(made: IoApic, number: int, entry: int) -> None:
    for half in (1, 0):
        made.write(0, 4, 0x10 + 2 * number + half)
        made.write(0x10, 4, entry >> 32 * half & 0xFFFF_FFFF)


def test_level_interrupts_once_and_again_while_it_stays_high() -> None:
    made, sent = io_apic(0x40 | LEVEL)
    made.set_input(5, "a", True)
    made.set_input(5, "b", True)
    assert sent == [0x40]
    assert made.entries[5] & REMOTE_IRR
    made.end_of_interrupt(0x40)
    assert sent == [0x40, 0x40]
    made.set_input(5, "a", False)
    made.set_input(5, "b", False)
    made.end_of_interrupt(0x40)
    assert sent == [0x40, 0x40]
    assert not made.entries[5] & REMOTE_IRR


def test_masked_level_comes_with_the_unmasking() -> None:
    made, sent = io_apic(0x40 | LEVEL | MASKED)
    made.set_input(5, "a", True)
    assert sent == []
    write_entry(made, 5, 0x40 | LEVEL)
    assert sent == [0x40]


def test_edge_comes_once_even_if_it_was_masked() -> None:
    made, sent = io_apic(0x40 | MASKED)
    made.set_input(5, "a", True)
    made.set_input(5, "a", False)
    write_entry(made, 5, 0x41)
    assert sent == [0x41]
    made.set_input(5, "a", True)
    assert sent == [0x41, 0x41]
    made.end_of_interrupt(0x41)
    assert sent == [0x41, 0x41]


def test_end_tells_listeners_which_input() -> None:
    made, _sent = io_apic(0x40 | LEVEL)
    told = []
    made.on_end.append(told.append)
    made.set_input(5, "a", True)
    made.write(0x40, 4, 0x40)  # the EOI register
    assert told == [5]


def test_guest_cannot_write_what_is_read_only() -> None:
    made, _sent = io_apic(0x40 | LEVEL | REMOTE_IRR)
    assert not made.entries[5] & REMOTE_IRR
    made.write(0, 4, 1)
    assert made.read(0x10, 4) >> 16 == 23
    made.write(0, 4, 0xF0)
    made.write(0x10, 4, 1)
    assert made.read(0x10, 4) == 0


@given(st.lists(st.tuples(st.integers(0, 0x1000), st.integers(0, (1 << 32) - 1)), max_size=30))
def test_no_register_write_breaks_the_io_apic(writes) -> None:
    made = IoApic(lambda *_: None)
    for offset, value in writes:
        made.write(offset & ~3, 4, value)
        made.set_input(value % 30, "x", bool(value & 64))
        assert 0 <= made.read(offset & ~3, 4) <= 0xFFFF_FFFF
        assert all(0 <= entry < 1 << 64 for entry in made.entries)


# --- MSI-X of the guest ---


def table(count: int = 4) -> tuple[MsixVectors, list[tuple[int, int, int]], list[int]]:
    sent: list[tuple[int, int, int]] = []
    used: list[int] = []
    vectors = MsixVectors(count, lambda v, m: sent.append((v, *m)), used.append)
    return vectors, sent, used


def program(vectors: MsixVectors, vector: int, data: int, control: int = 0) -> None:
    for field, value in ((0, MESSAGE), (4, 0), (8, data), (12, control)):
        vectors.write(16 * vector + field, 4, value)


def test_masked_vector_pends_and_comes_when_unmasked() -> None:
    vectors, sent, used = table()
    vectors.set_control(enabled=True, function_masked=False)
    program(vectors, 2, 0x42, control=1)
    vectors.fire(2)
    assert sent == []
    assert PendingBits(vectors).read(0, 8) == 1 << 2
    vectors.write(16 * 2 + 12, 4, 0)
    assert sent == [(2, MESSAGE, 0x42)]
    assert used == [2]
    assert PendingBits(vectors).read(0, 4) == 0


def test_function_mask_holds_all_and_disabling_forgets() -> None:
    vectors, sent, _used = table()
    vectors.set_control(enabled=True, function_masked=True)
    program(vectors, 0, 0x40)
    vectors.fire(0)
    vectors.fire(1)
    vectors.set_control(enabled=True, function_masked=False)
    assert sent == [(0, MESSAGE, 0x40)]
    vectors.set_control(enabled=False, function_masked=False)
    vectors.fire(0)
    assert vectors.pending == frozenset()
    assert len(sent) == 1


def test_entry_takes_quadwords_and_refuses_bytes() -> None:
    vectors, _sent, _used = table()
    vectors.write(0, 8, 0x1_FEE0_1000)
    vectors.write(8, 1, 0xFF)
    vectors.write(12, 4, 0xFFFF_FFFF)
    assert vectors.message(0) == (0x1_FEE0_1000, 0)
    assert vectors.read(12, 4) == 1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 15), st.integers(0, 0xFFFF)),
            st.tuples(st.just("fire"), st.integers(0, 3), st.just(0)),
            st.tuples(st.just("control"), st.integers(0, 3), st.just(0)),
        ),
        max_size=40,
    )
)
def test_every_interrupt_is_sent_pending_or_forgotten_by_disabling(actions) -> None:
    vectors, sent, _used = table()
    expected: set[int] = set()
    for kind, where, value in actions:
        before = len(sent)
        if kind == "write":
            vectors.write(4 * where, 4, value)
        elif kind == "fire":
            masked = vectors.masked(where)
            vectors.fire(where)
            if vectors.enabled and masked:
                expected.add(where)
            assert len(sent) - before == (vectors.enabled and not masked)
        else:
            vectors.set_control(enabled=bool(where & 1), function_masked=bool(where & 2))
            if not where & 1:
                expected.clear()
        if kind != "fire":
            expected -= {v for v, *_ in sent[before:]}
        assert vectors.pending == expected
        assert all(vectors.masked(vector) for vector in expected)


# --- devices ---


def entry(number: int, entry_value: int) -> list[Exit]:
    return [
        store(IO_APIC_BASE, 0x10 + 2 * number),
        store(IO_APIC_BASE + 0x10, entry_value),
    ]


class Guest:
    """A machine with one processor that does as it is told."""

    def __init__(
        self, host: Host, *, delivery: Delivery = Delivery.INJECTED, cpus: int = 1
    ) -> None:
        memory = GuestMemory.of_size(host.kernel, 1 << 20)
        self.vm = VirtualMachine(host.kernel, memory, policy=Policy(delivery=delivery))
        for _ in range(cpus):
            self.vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        self.cpu: ScriptedVcpu = self.vm.vcpus[0]

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.close()

    def do(self, *exits: Exit) -> list[int]:
        """Run these; the vectors that came meanwhile."""
        before = len(self.cpu.taken)
        self.cpu.script += exits
        for _ in range(3):
            self.vm.run(len(exits) + 10)
        return self.cpu.taken[before:]

    def config(self, function, offset: int, width: int, value: int) -> None:
        place = self.vm.pci.guest_address(function)
        self.vm.pci.config_write(place.bus, place.devfn, offset, width, value)


@pytest.fixture
def msix_host():
    return Host(
        lambda bdf: Registers(bdf, msix=MsixLayout(8, 0, 0x2000), msi=MsiLayout(4, maskable=True))
    )


def capability(function, cap_id: int) -> int:
    at = function.config.read(0x34, 1)
    while function.config.read(at, 1) != cap_id:
        at = function.config.read(at + 1, 1)
        assert at
    return at


def place(guest: Guest, function) -> int:
    place_everything(guest.vm.pci, command=0x0006)
    placed = {each.bar.index: each.address for each in function.placed()}
    return placed[0]


def test_msix_of_a_device_reaches_the_chosen_processor_and_counts_by_delivery(msix_host) -> None:
    for delivery in (Delivery.INJECTED, Delivery.POSTED):
        with Guest(msix_host, delivery=delivery, cpus=2) as guest:
            function = guest.vm.assign(msix_host.open())
            bar = place(guest, function)
            entry_at = bar + 0x2000 + 16 * 3
            guest.do(
                store(entry_at, MESSAGE | 1 << 12),
                store(entry_at + 8, 0x51),
                store(entry_at + 12, 0),
            )
            guest.config(function, capability(function, 0x11) + 2, 2, 0x8000)
            msix_host.functions[0].raise_msix(3)
            guest.do()
            assert guest.vm.vcpus[1].taken == [0x51]
            assert guest.cpu.taken == []
            counts = (guest.vm.exits["inject"], guest.vm.events["posted"])
            assert counts == ((0, 1) if delivery is Delivery.POSTED else (1, 0))


def test_vector_the_guest_masked_pends_and_its_bits_are_shown(msix_host) -> None:
    with Guest(msix_host) as guest:
        function = guest.vm.assign(msix_host.open())
        bar = place(guest, function)
        at = bar + 0x2000
        guest.do(store(at, MESSAGE), store(at + 8, 0x51), store(at + 12, 0))
        guest.config(function, capability(function, 0x11) + 2, 2, 0x8000)
        guest.do(store(at + 12, 1))
        msix_host.functions[0].raise_msix(0)
        assert guest.do(load(bar + 0x2080, 4)) == []
        assert guest.cpu.completed[-1] == (1,)
        assert guest.do(store(at + 12, 0)) == [0x51]
        assert guest.do(load(bar + 0x2080, 4)) == []


def test_vectors_that_cannot_be_added_are_enabled_anew_and_none_is_lost(msix_host) -> None:
    with Guest(msix_host) as guest:
        device = msix_host.open()
        device.msix.info.flags |= 8  # VFIO_IRQ_INFO_NORESIZE
        assert not device.msix.resizable
        function = guest.vm.assign(device)
        bar = place(guest, function)
        guest.config(function, capability(function, 0x11) + 2, 2, 0x8000)
        for vector in (0, 5):
            at = bar + 0x2000 + 16 * vector
            guest.do(store(at, MESSAGE), store(at + 8, 0x50 + 4 * vector), store(at + 12, 0))
            if vector == 0:
                msix_host.functions[0].raise_msix(0)  # signalled, not yet looked at
        assert sorted(device.msix.vectors) == [0, 1, 2, 3, 4, 5]
        msix_host.functions[0].raise_msix(5)
        guest.do()
        assert sorted(guest.cpu.taken) == [0x50, 0x64]


def test_msi_takes_its_number_into_the_data_and_obeys_masks(msix_host) -> None:
    with Guest(msix_host) as guest:
        function = guest.vm.assign(msix_host.open())
        place(guest, function)
        at = capability(function, 0x05)
        guest.config(function, at + 4, 4, MESSAGE)
        guest.config(function, at + 12, 2, 0x60)
        guest.config(function, at + 2, 2, 0x21)  # four vectors
        hardware = msix_host.functions[0]
        hardware.raise_msi(2)
        assert guest.do() == [0x62]
        guest.do(store(APIC_BASE + EOI, 0))
        guest.config(function, at + 16, 4, 1 << 3)
        hardware.raise_msi(3)
        assert guest.do() == []
        assert function.config.read(at + 20, 4) == 1 << 3
        guest.config(function, at + 16, 4, 0)
        assert guest.do() == [0x63]
        guest.config(function, at + 2, 2, 0)
        assert function.interrupts.mode.value == "intx"


@pytest.fixture
def pin_host():
    return Host(lambda bdf: Registers(bdf, bars=(BarModel(0, 0x1000),)))


PIN_GSI = FIRST_PIRQ_GSI + 4  # slot 4, INTA: the first wire of the second four


def test_pin_interrupts_until_the_device_is_served_and_its_end_unmasks(pin_host) -> None:
    with Guest(pin_host) as guest:
        function = guest.vm.assign(pin_host.open(), "0000:00:04.0")
        place(guest, function)
        wire = pin_host.functions[0].intx
        assert guest.vm.pins.gsi_of(function) == PIN_GSI
        guest.do(*entry(PIN_GSI, 0x70 | LEVEL))
        wire.set(True)
        assert guest.do() == [0x70]
        assert guest.do() == []  # masked until the guest is done
        assert guest.do(store(APIC_BASE + EOI, 0)) == [0x70]  # not served: again
        wire.set(False)
        assert guest.do(store(APIC_BASE + EOI, 0)) == []
        wire.set(True)
        assert guest.do() == [0x70]
        assert guest.vm.exits["eoi"] == 2


def test_guest_that_reroutes_a_wire_in_flight_gets_its_interrupt_elsewhere(pin_host) -> None:
    with Guest(pin_host) as guest:
        function = guest.vm.assign(pin_host.open(), "0000:00:04.0")
        place(guest, function)
        wire = pin_host.functions[0].intx
        guest.do(*entry(PIN_GSI, 0x70 | LEVEL), *entry(11, 0x50 | LEVEL))
        wire.set(True)
        assert guest.do() == [0x70]
        guest.config(guest.vm.isa_bridge, 0x68, 1, 11)  # PIRQE
        assert guest.vm.pins.gsi_of(function) == 11
        assert function.interrupts.asserted
        assert guest.do() == []  # 0x50 waits for 0x70, whose class is higher
        assert guest.do(store(APIC_BASE + EOI, 0)) == [0x50]
        assert function.interrupts.asserted  # the end of the old one is not its end
        wire.set(False)
        guest.do(store(APIC_BASE + EOI, 0))
        assert not function.interrupts.asserted
        wire.set(True)
        assert guest.do() == [0x50]


def test_guest_that_masks_and_moves_the_entry_in_flight_loses_nothing(pin_host) -> None:
    with Guest(pin_host) as guest:
        function = guest.vm.assign(pin_host.open(), "0000:00:04.0")
        place(guest, function)
        wire = pin_host.functions[0].intx
        guest.do(*entry(PIN_GSI, 0x70 | LEVEL | MASKED))
        wire.set(True)
        assert guest.do() == []
        assert guest.do(*entry(PIN_GSI, 0x71 | LEVEL)) == [0x71]
        wire.set(False)
        guest.do(store(APIC_BASE + EOI, 0))
        assert not function.interrupts.asserted


def test_disabled_pin_is_low_and_comes_back(pin_host) -> None:
    with Guest(pin_host) as guest:
        function = guest.vm.assign(pin_host.open(), "0000:00:04.0")
        place(guest, function)
        guest.do(*entry(PIN_GSI, 0x70 | LEVEL))
        guest.config(function, 0x04, 2, 0x0402)
        wire = pin_host.functions[0].intx
        wire.set(True)
        assert guest.do() == []
        guest.config(function, 0x04, 2, 0x0002)
        assert guest.do() == [0x70]


def test_pins_swizzle_through_a_port(pin_host) -> None:
    with Guest(pin_host) as guest:
        port = RootPort(3)
        guest.vm.pci.add(port)
        function = guest.vm.assign(pin_host.open(), Bdf(0, 0, 2, 0), below=port)
        # INTA of slot 2 comes out of the port as INTC; that of slot 3 is the wire of 3 + 2.
        assert guest.vm.pins.gsi_of(function) == FIRST_PIRQ_GSI + 4 + (3 + 2) % 4


def test_edu_of_qemu_interrupts_by_pin_and_by_message() -> None:
    host = Host(lambda bdf: EduFunction(bdf))
    with Guest(host) as guest:
        function = guest.vm.assign(host.open(), "0000:00:04.0")
        bar = place(guest, function)
        guest.do(*entry(PIN_GSI, 0x70 | LEVEL))
        assert guest.do(Exit(ExitReason.HLT)) == []
        guest.vm.bus.write(bar + 0x60, 4, 1)
        assert guest.do() == [0x70]
        guest.vm.bus.write(bar + 0x64, 4, 1)
        guest.do(store(APIC_BASE + EOI, 0))
        at = capability(function, 0x05)
        guest.config(function, at + 4, 4, MESSAGE)
        guest.config(function, at + 12, 2, 0x60)
        guest.config(function, at + 2, 2, 1)
        guest.config(function, 0x04, 2, 0x0006)
        guest.vm.bus.write(bar + 0x60, 4, 1)
        assert guest.do() == [0x60]


def reroute(guest: Guest, gsi: int) -> None:
    value = 0x80 if gsi == PIN_GSI else gsi
    guest.config(guest.vm.isa_bridge, 0x68, 1, value)


PIN_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "high",
                "low",
                "end",
                "mask",
                "unmask",
                "edge",
                "wire",
                "disable",
                "enable",
                "tpr",
                "save",
            ]
        ),
        st.sampled_from([PIN_GSI, 10, 11]),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(PIN_ACTIONS)
def test_no_level_is_lost_or_stuck_whatever_the_guest_does_with_its_routing(actions) -> None:
    host = Host(lambda bdf: Registers(bdf, bars=(BarModel(0, 0x1000),)))
    with Guest(host) as guest:
        function = guest.vm.assign(host.open(), "0000:00:04.0")
        place(guest, function)
        wire = host.functions[0].intx
        vectors = {PIN_GSI: 0x70, 10: 0x80, 11: 0x60}
        state = guest.vm.state(in_place=True)
        for action, gsi in actions:
            if action in ("high", "low"):
                wire.set(action == "high")
            elif action == "end":
                guest.do(store(APIC_BASE + EOI, 0))
            elif action in ("mask", "unmask", "edge"):
                flags = {"mask": LEVEL | MASKED, "unmask": LEVEL, "edge": 0}[action]
                guest.do(*entry(gsi, vectors[gsi] | flags))
            elif action == "wire":
                reroute(guest, gsi)
            elif action in ("disable", "enable"):
                guest.config(function, 0x04, 2, 0x0402 if action == "disable" else 0x0002)
            elif action == "tpr":
                guest.do(store(APIC_BASE + TPR, gsi * 8))
            elif action == "save":
                guest.vm.load(state)
                state = guest.vm.state(in_place=True)
            guest.do()
        # Whatever was done: a guest that sets all right again gets the interrupt,
        wire.set(True)
        guest.config(function, 0x04, 2, 0x0002)
        reroute(guest, PIN_GSI)
        guest.do(*entry(10, MASKED), *entry(11, MASKED), *entry(PIN_GSI, 0x70 | LEVEL))
        taken = guest.do(store(APIC_BASE + TPR, 0))
        for _ in range(4):
            taken += guest.do(store(APIC_BASE + EOI, 0))
        assert 0x70 in taken
        # and once it served the device, no more of them.
        wire.set(False)
        for _ in range(4):
            guest.do(store(APIC_BASE + EOI, 0))
        assert guest.do(store(APIC_BASE + EOI, 0)) == []
        assert not function.interrupts.asserted
        assert guest.vm.irqchip.apics[0].isr == guest.vm.irqchip.apics[0].irr == 0

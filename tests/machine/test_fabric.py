"""The fabric: ACS rule by rule, policies, bridges, decoding, DMA, resets."""

from __future__ import annotations

import pytest
from fabric_host import RAM, SIZE, Card, fetch, machine, send, steps

from vfiokit.errors import MachineError
from vfiokit.machine.acs import Decision, decide
from vfiokit.machine.fabric import P2pPolicy
from vfiokit.machine.function import Function
from vfiokit.machine.iommu.tables import ContextTables, SecondStage
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import (
    MsixLayout,
    endpoint_config,
    pci_bridge,
    root_port,
    switch_downstream,
    switch_upstream,
)
from vfiokit.machine.registers import AER_ACS_VIOLATION
from vfiokit.machine.reset import ResetKind
from vfiokit.machine.txn import AddressType, Completion, DmaError, Kind, Txn
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs

WINDOW = (0xE000_0000, 0xE040_0000)
A_BAR, B_BAR, SIDE_BAR = 0xE000_0000, 0xE010_0000, 0xE100_0000
OK, UR = Completion.SUCCESS, Completion.UNSUPPORTED_REQUEST
ISOLATED = Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT
ISOLATED |= Acs.UPSTREAM_FORWARDING


class Switch:
    """Cards a and b below one switch, card side below another root port."""

    def __init__(self, *, p2p: P2pPolicy = P2pPolicy.ALLOWED, iommu: bool = False, **card) -> None:
        self.host: Machine = machine()
        self.unit = self.host.add_iommu() if iommu else None
        self.host.add_host_bridge(iommu=self.unit, p2p=p2p)
        self.root = self.add(root_port(Bdf.parse("00:01.0"), 1, 4, window=WINDOW))
        self.up = self.add(switch_upstream(Bdf.parse("01:00.0"), 2, 4, window=WINDOW))
        self.port_a = self.add(
            switch_downstream(Bdf.parse("02:00.0"), 3, window=(A_BAR, A_BAR + 0x100000))
        )
        self.port_b = self.add(
            switch_downstream(Bdf.parse("02:01.0"), 4, window=(B_BAR, B_BAR + 0x100000))
        )
        side = (SIDE_BAR, SIDE_BAR + 0x100000)
        self.side_port = self.add(root_port(Bdf.parse("00:02.0"), 5, window=side))
        self.a = self.add(Card("03:00.0", A_BAR, **card))
        self.b = self.add(Card("04:00.0", B_BAR, **card))
        self.side = self.add(Card("05:00.0", SIDE_BAR))

    def add(self, function):
        return self.host.add(function)

    def second_stage(self, *cards: Card, ats: bool = False) -> SecondStage:
        stage, contexts = SecondStage(self.host.memory), ContextTables(self.host.memory)
        for card in cards:
            contexts.attach(card.requester_id, 1, stage.root, ats=ats)
        self.unit.set_root_table(contexts.root)
        self.unit.enable_translation()
        return stage


# -- peers below one switch -------------------------------------------------------------------


def test_without_acs_a_peer_below_the_switch_is_reached_directly():
    m = Switch()
    completion, txn = send(m.host, m.a, B_BAR + 0x10, b"12345678")
    assert completion is OK
    assert m.b.ram[0x10:0x18] == b"12345678"
    assert steps(txn) == [
        "0000:03:00.0 emit",
        "0000:02:00.0 direct",
        "0000:02:01.0 down",
        "0000:04:00.0 deliver",
    ]
    assert m.host.fabric.counters.direct == 1


def test_request_redirect_sends_it_over_the_host_bridge():
    m = Switch()
    m.port_a.acs.control = ISOLATED
    completion, txn = send(m.host, m.a, B_BAR, b"12345678")
    assert completion is OK
    assert m.b.ram[:8] == b"12345678"
    assert steps(txn) == [
        "0000:03:00.0 emit",
        "0000:02:00.0 redirect",
        "0000:01:00.0 up",
        "0000:00:01.0 up",
        "pci0000:00 down",
        "0000:00:01.0 down",
        "0000:01:00.0 down",
        "0000:02:01.0 down",
        "0000:04:00.0 deliver",
    ]


def test_redirect_with_an_iommu_translates_the_address_of_the_peer():
    m = Switch(iommu=True)
    stage = m.second_stage(m.a)
    stage.map(0x10000, B_BAR, 0x1000)
    m.port_a.acs.control = ISOLATED
    assert send(m.host, m.a, 0x10000, b"mapped!!")[0] is OK
    assert m.b.ram[:8] == b"mapped!!"
    # The bus address itself means nothing to the IOMMU once ports redirect ...
    completion, txn = send(m.host, m.a, B_BAR, b"no......")
    assert completion is UR
    assert "dmar0 fault" in steps(txn)
    # ... and bypasses it completely where they do not.
    m.port_a.acs.control = 0
    assert send(m.host, m.a, B_BAR, b"bypassed")[0] is OK
    assert m.b.ram[:8] == b"bypassed"


def test_refusing_root_complex_loses_redirected_traffic():
    m = Switch(p2p=P2pPolicy.REFUSED)
    m.port_a.acs.control = Acs.REQUEST_REDIRECT
    completion, txn = send(m.host, m.a, B_BAR, b"12345678")
    assert completion is UR
    assert steps(txn)[-1] == "pci0000:00 block"
    assert m.b.ram[:8] == bytes(8)
    with pytest.raises(DmaError) as failed:
        m.a.dma.read(B_BAR, 8)
    assert failed.value.completion is UR


def test_completion_redirect_brings_data_back_over_the_root_complex():
    m = Switch()
    m.b.ram[:4] = b"data"
    m.port_b.acs.control = Acs.COMPLETION_REDIRECT
    completion, txn = fetch(m.host, m.a, B_BAR, 4)
    assert (completion, bytes(txn.data)) == (OK, b"data")
    assert steps(txn)[-2:] == ["0000:02:01.0 redirect", "pci0000:00 down"]
    assert steps(send(m.host, m.a, B_BAR)[1])[-1] == "0000:04:00.0 deliver"
    m.host.fabric.host_bridges[0, 0].p2p = P2pPolicy.REFUSED
    assert fetch(m.host, m.a, B_BAR, 4)[0] is UR


def egress(m: Switch, control: int, *, allow: bool) -> None:
    m.port_a.acs.control = control
    m.port_a.acs.set_egress_bit(m.port_b.port_number, not allow)


@pytest.mark.parametrize(
    ("redirect", "allow", "outcome"),
    [
        (False, True, Decision.DIRECT),
        (False, False, Decision.BLOCK),
        (True, True, Decision.DIRECT),
        (True, False, Decision.REDIRECT),
    ],
)
def test_egress_control_combines_with_request_redirect(redirect, allow, outcome):
    m = Switch()
    egress(m, Acs.EGRESS_CONTROL | (Acs.REQUEST_REDIRECT if redirect else 0), allow=allow)
    txn = Txn(Kind.WRITE, B_BAR, 8, m.a.requester_id)
    assert decide(m.port_a, txn, m.port_b) is outcome
    action = {"direct": "direct", "block": "block", "redirect": "redirect"}[outcome.value]
    assert f"0000:02:00.0 {action}" in steps(send(m.host, m.a, B_BAR)[1])


def test_egress_control_lets_through_what_the_kernel_believes_redirected():
    """RR and EC set with a clear vector bit: Linux counts RR and calls the port isolating."""
    m = Switch()
    egress(m, ISOLATED | Acs.EGRESS_CONTROL, allow=True)
    assert "0000:02:00.0 direct" in steps(send(m.host, m.a, B_BAR)[1])


def violations(port: Function) -> int:
    aer = port.capabilities().find_extended(0x01)
    return port.config.read(aer.offset + 4, 4) & AER_ACS_VIOLATION


def test_source_validation_blocks_a_forged_requester_and_logs_it():
    m = Switch()
    m.port_a.acs.control = Acs.SOURCE_VALIDATION
    m.port_a.config.write(0x19, 1, 9)  # the port now believes that bus 9 is below it
    m.port_a.config.write(0x1A, 1, 9)
    completion, txn = send(m.host, m.a, m.host.memory.base)
    assert completion is UR
    assert txn.path[-1].where == "0000:02:00.0"
    assert "source validation" in txn.path[-1].detail
    assert violations(m.port_a)
    assert not violations(m.port_b)
    assert m.host.memory.read(m.host.memory.base, 8) == bytes(8)


@pytest.mark.parametrize("at", [AddressType.TRANSLATED, AddressType.TRANSLATION_REQUEST])
def test_translation_blocking_stops_everything_but_untranslated(at):
    m = Switch(iommu=True, ats=True)
    m.second_stage(m.a, ats=True).map(0, m.host.memory.base, 0x1000)
    m.a.config.write(m.a.ats_offset + 6, 2, 0x8000)
    assert fetch(m.host, m.a, m.host.memory.base, at=at)[0] is OK
    m.port_a.acs.control = Acs.TRANSLATION_BLOCKING
    completion, txn = fetch(m.host, m.a, m.host.memory.base, at=at)
    assert (completion, txn.path[-1].detail) == (UR, "translation blocking")
    assert violations(m.port_a)
    assert fetch(m.host, m.a, 0)[0] is OK


def test_direct_translated_goes_to_the_peer_in_spite_of_request_redirect():
    m = Switch()
    m.port_a.acs.control = ISOLATED | Acs.DIRECT_TRANSLATED
    assert "0000:02:00.0 redirect" in steps(send(m.host, m.a, B_BAR)[1])
    completion, txn = send(m.host, m.a, B_BAR, at=AddressType.TRANSLATED)
    assert completion is OK
    assert "0000:02:00.0 direct" in steps(txn)


def test_upstream_forwarding_decides_about_a_nested_switch():
    m = machine()
    m.add_host_bridge()
    window = (A_BAR, A_BAR + 0x400000)
    m.add(root_port(Bdf.parse("00:01.0"), 1, 6, window=window))
    m.add(switch_upstream(Bdf.parse("01:00.0"), 2, 6, window=window))
    outer = m.add(switch_downstream(Bdf.parse("02:00.0"), 3, 6, window=window))
    m.add(switch_upstream(Bdf.parse("03:00.0"), 4, 6, window=window))
    inner = [
        m.add(
            switch_downstream(
                Bdf.parse(f"04:0{i}.0"),
                5 + i,
                window=(A_BAR + i * 0x100000, A_BAR + (i + 1) * 0x100000),
                acs_control=Acs.REQUEST_REDIRECT,
            )
        )
        for i in range(2)
    ]
    one, other = (m.add(Card(f"0{5 + i}:00.0", A_BAR + i * 0x100000)) for i in range(2))
    completion, txn = send(m, one, A_BAR + 0x100000)
    assert completion is UR
    assert steps(txn)[-1] == "0000:02:00.0 block"
    assert not violations(outer)
    outer.acs.control = Acs.UPSTREAM_FORWARDING
    completion, txn = send(m, one, A_BAR + 0x100000)
    assert completion is OK
    assert {"0000:04:00.0 redirect", "0000:02:00.0 redirect", "pci0000:00 down"} <= set(steps(txn))
    inner[0].acs.control = 0
    assert "0000:04:00.0 direct" in steps(send(m, one, A_BAR + 0x100000)[1])
    assert bytes(other.ram[:8]) == b"\x5a" * 8


def test_a_hole_in_the_windows_of_a_switch_is_an_unsupported_request():
    m = Switch()
    completion, txn = send(m.host, m.a, 0xE020_0000)
    assert completion is UR
    assert steps(txn)[-1] == "0000:01:00.0 unclaimed"


# -- other places -----------------------------------------------------------------------------


def multifunction(acs: int | None, control: int = 0) -> tuple[Machine, Card, Card]:
    m = machine()
    m.add_host_bridge()
    m.add(root_port(Bdf.parse("00:01.0"), 1, window=WINDOW, acs_control=Acs.UPSTREAM_FORWARDING))
    one = m.add(Card("01:00.0", A_BAR, multifunction=True, acs=acs, acs_control=control))
    other = m.add(Card("01:00.1", B_BAR, acs=acs, acs_control=control))
    return m, one, other


@pytest.mark.parametrize(
    ("acs", "control", "first"),
    [
        (None, 0, "0000:01:00.0 direct"),
        (0x0C, 0, "0000:01:00.0 direct"),
        (0x0C, 0x0C, "0000:01:00.0 redirect"),
        (0x00, 0x00, "0000:01:00.0 redirect"),
    ],
)
def test_functions_of_one_device_follow_their_own_acs(acs, control, first):
    m, one, other = multifunction(acs, control)
    completion, txn = send(m, one, B_BAR)
    assert completion is OK
    assert steps(txn)[1] == first
    assert other.ram[:8] == b"\x5a" * 8


def test_virtual_functions_always_go_up():
    """Linux calls VFs isolated whatever ACS says, so no device may connect them inside."""
    m = machine()
    m.add_host_bridge()
    m.add(root_port(Bdf.parse("00:01.0"), 1, 2, window=WINDOW))
    physical = m.add(Card("01:00.0", A_BAR))
    virtual = Card("02:00.1", B_BAR)
    virtual.physfn = physical.bdf
    m.add(virtual)
    assert m.fabric.parent(virtual) is m.fabric.parent(physical)
    assert "pci0000:00 down" in steps(send(m, virtual, A_BAR)[1])
    assert "pci0000:00 down" in steps(send(m, physical, B_BAR)[1])


def test_different_root_ports_meet_at_the_host_bridge_only():
    m = Switch()
    completion, txn = send(m.host, m.a, SIDE_BAR)
    assert completion is OK
    assert "pci0000:00 down" in steps(txn)
    m.host.fabric.host_bridges[0, 0].p2p = P2pPolicy.REFUSED
    assert send(m.host, m.a, SIDE_BAR)[0] is UR


def test_across_host_bridges_both_must_allow_it():
    m = machine()
    m.add_host_bridge(0, 0)
    far = m.add_host_bridge(0, 0x80)
    one, other = m.add(Card("00:01.0", A_BAR)), m.add(Card("80:01.0", B_BAR))
    completion, txn = send(m, one, B_BAR)
    assert completion is OK
    assert steps(txn) == ["0000:00:01.0 emit", "pci0000:80 down", "0000:80:01.0 deliver"]
    far.p2p = P2pPolicy.REFUSED
    for card, address in ((one, B_BAR), (other, A_BAR)):
        assert send(m, card, address)[0] is UR


def conventional() -> tuple[Machine, Card, Card]:
    m = machine()
    unit = m.add_iommu()
    m.add_host_bridge(iommu=unit)
    m.add(root_port(Bdf.parse("00:01.0"), 1, 3, window=WINDOW, acs_control=int(ISOLATED)))
    m.add(pci_bridge(Bdf.parse("01:00.0"), 2, 3, window=WINDOW))
    one = m.add(Card("02:01.0", A_BAR, express=False, msi=1))
    other = m.add(Card("02:02.0", B_BAR, express=False))
    return m, one, other


def test_functions_on_a_conventional_bus_hear_each_other():
    m, one, other = conventional()
    completion, txn = send(m, one, B_BAR)
    assert completion is OK
    assert steps(txn) == ["0000:02:01.0 emit", "0000:02:01.0 direct", "0000:02:02.0 deliver"]
    assert other.ram[:8] == b"\x5a" * 8


def test_bridge_to_pci_takes_ownership_of_requests():
    m, one, _other = conventional()
    stage, contexts = SecondStage(m.memory), ContextTables(m.memory)
    stage.map(0x1000, m.memory.base, 0x1000)
    contexts.attach(0x0200, 1, stage.root)  # 02:00.0, the alias, and nobody else
    m.iommus[0].set_root_table(contexts.root)
    m.iommus[0].enable_translation()
    completion, txn = send(m, one, 0x1000, b"aliased!")
    assert completion is OK
    assert txn.path[1].detail == "as requester 0000:02:00.0"
    assert m.fabric.wire_id(one.requester_id) == 0x0200
    one.dma.write(0x1008, b"by port!")
    assert m.memory.read(m.memory.base, 16) == b"aliased!by port!"


def test_conventional_bridge_below_a_bridge_to_pci_is_hidden_by_it():
    m, _one, _other = conventional()
    inner = (0xE020_0000, 0xE030_0000)
    m.add(pci_bridge(Bdf.parse("02:03.0"), 3, express=False, window=inner))
    deep = m.add(Card("03:00.0", inner[0], express=False))
    assert m.fabric.wire_id(deep.requester_id) == 0x0200
    assert "0000:02:03.0 up" in steps(send(m, deep, B_BAR)[1])
    assert send(m, deep, B_BAR)[0] is OK
    assert send(m, deep, 0xE021_0000)[0] is UR  # in the window of its own bridge, claimed by none


def test_conventional_bridge_on_a_root_bus_uses_its_own_id():
    m = machine()
    m.add_host_bridge()
    m.add(pci_bridge(Bdf.parse("00:1e.0"), 1, express=False))
    card = m.add(Card("01:00.0", express=False))
    assert m.fabric.wire_id(card.requester_id) == Bdf.parse("00:1e.0").requester_id


# -- switches of the command register ---------------------------------------------------------


def test_bus_master_off_keeps_requests_inside():
    m = Switch()
    m.a.config.write(4, 2, 0x0002)
    base = m.host.memory.base
    m.a.dma.write(base, b"never")
    assert m.host.memory.read(base, 5) == bytes(5)
    with pytest.raises(DmaError) as failed:
        m.a.dma.read(base, 4)
    assert failed.value.txn.path[-1].detail == "bus mastering is off"


@pytest.mark.parametrize("name", ["root", "up", "port_a"])
def test_bus_master_off_in_a_bridge_cuts_off_what_is_below(name):
    m = Switch()
    m.a.dma.write(m.host.memory.base, b"before")
    getattr(m, name).config.write(4, 2, 0x0002)
    m.a.dma.write(m.host.memory.base, b"after!")
    assert m.host.memory.read(m.host.memory.base, 6) == b"before"
    with pytest.raises(DmaError):
        m.a.dma.read(m.host.memory.base, 4)
    getattr(m, name).config.write(4, 2, 0x0006)
    m.a.dma.write(m.host.memory.base, b"again!")
    assert m.a.dma.read(m.host.memory.base, 6) == b"again!"


def test_memory_decode_off_drops_writes_and_reads_all_ones():
    m = Switch()
    m.b.ram[:4] = b"keep"
    m.b.config.write(4, 2, 0x0004)
    assert send(m.host, m.a, B_BAR)[0] is UR
    assert m.host.fabric.cpu_read(B_BAR, 4) == 0xFFFFFFFF
    m.host.fabric.cpu_write(B_BAR, 4, 0)
    assert m.b.bar_read(0, 0, 4) == 0xFFFFFFFF
    m.b.bar_write(0, 0, 4, 0)
    m.b.config.write(4, 2, 0x0006)
    assert m.host.fabric.cpu_read(B_BAR, 4) == int.from_bytes(b"keep", "little")


def test_memory_decode_off_in_a_bridge_hides_what_is_below():
    m = Switch()
    assert m.host.fabric.cpu_read(B_BAR, 4) == 0
    m.up.config.write(4, 2, 0x0004)
    assert m.host.fabric.cpu_read(B_BAR, 4) == 0xFFFFFFFF
    assert m.host.fabric.decode(B_BAR) is None


def test_d3hot_stops_both_directions():
    m = Switch()
    m.a.config.write(m.a.power_offset, 2, 3)
    assert m.a.bar_read(0, 0, 4) == 0xFFFFFFFF
    m.a.dma.write(m.host.memory.base, b"asleep")
    assert m.host.memory.read(m.host.memory.base, 6) == bytes(6)
    m.a.config.write(m.a.power_offset, 2, 0)
    m.a.dma.write(m.host.memory.base, b"awake!")
    assert m.host.memory.read(m.host.memory.base, 6) == b"awake!"


# -- ATS --------------------------------------------------------------------------------------


def test_translated_requests_need_ats_enabled_and_permitted():
    m = Switch(iommu=True, ats=True)
    stage = m.second_stage(m.a, ats=True)
    stage.map(0x5000, m.host.memory.base + 0x2000, 0x1000, write=False)
    with pytest.raises(DmaError, match="UR"):
        m.a.dma.read(m.host.memory.base, 4, at=AddressType.TRANSLATED)
    m.a.config.write(m.a.ats_offset + 6, 2, 0x8000)
    answer = m.a.dma.translate(0x5123)
    assert answer == (m.host.memory.base + 0x2000, 0x1000, True, False)
    m.host.memory.write(answer.hpa, b"ats")
    assert m.a.dma.read(answer.hpa, 3, at=AddressType.TRANSLATED) == b"ats"
    assert m.a.dma.translate(0x9000)[2:] == (False, False)


def test_translated_request_is_blocked_where_the_context_entry_forbids_ats():
    m = Switch(iommu=True, ats=True)
    m.second_stage(m.a, ats=False)
    m.a.config.write(m.a.ats_offset + 6, 2, 0x8000)
    with pytest.raises(DmaError):
        m.a.dma.read(m.host.memory.base, 4, at=AddressType.TRANSLATED)
    with pytest.raises(DmaError):
        m.a.dma.translate(0)
    assert [record.reason for record in m.unit.faults.records] == [0x0D, 0x0D]


# -- DMA --------------------------------------------------------------------------------------


def test_one_write_over_scattered_pages_lands_in_each():
    m = Switch(iommu=True)
    stage = m.second_stage(m.a)
    memory = m.host.memory
    for page, frame in enumerate((5, 2, 9)):
        stage.map(0x10000 + page * 0x1000, memory.base + 0x100000 + frame * 0x1000, 0x1000)
    data = bytes(range(256)) * 34
    m.a.dma.write(0x10800, data)
    pieces = (data[:0x800], data[0x800:0x1800], data[0x1800:])
    for frame, offset, piece in zip((5, 2, 9), (0x800, 0, 0), pieces, strict=True):
        at = memory.base + 0x100000 + frame * 0x1000 + offset
        assert memory.read(at, len(piece)) == piece
    assert m.a.dma.read(0x10800, len(data)) == data
    buffer = bytearray(len(data))
    m.a.dma.read_into(0x10800, memoryview(buffer))
    assert buffer == data


def test_write_before_the_fault_lands_and_the_device_is_not_told():
    m = Switch(iommu=True)
    m.second_stage(m.a).map(0x1000, m.host.memory.base + 0x100000, 0x1000)
    m.a.dma.write(0x1FFC, b"goodlost")
    assert m.host.memory.read(m.host.memory.base + 0x100FFC, 8) == b"good" + bytes(4)
    (record,) = m.unit.faults.drain()
    assert (record.iova, record.write, record.reason) == (0x2000, True, 5)


def test_failed_read_carries_the_path_to_the_fault():
    m = Switch(iommu=True)
    m.second_stage(m.a)
    with pytest.raises(DmaError) as failed:
        m.a.dma.read(0x7000, 16)
    by_port = failed.value.txn
    _completion, routed = fetch(m.host, m.a, 0x7000, 16)
    assert by_port.path == routed.path
    assert m.unit.faults.total == 2


def test_dma_into_a_scattered_mix_of_memory_and_a_bar():
    m = Switch(iommu=True)
    stage = m.second_stage(m.a)
    stage.map(0x1000, m.host.memory.base + 0x100000, 0x1000)
    stage.map(0x2000, SIDE_BAR, 0x1000)
    m.a.dma.write(0x1FF8, b"into RAMinto BAR")
    assert m.host.memory.read(m.host.memory.base + 0x100FF8, 8) == b"into RAM"
    assert m.side.ram[:8] == b"into BAR"
    assert m.a.dma.read(0x1FF8, 16) == b"into RAMinto BAR"


def test_bars_are_accessed_in_naturally_aligned_pieces():
    m = Switch()
    send(m.host, m.a, B_BAR + 3, bytes(16))
    assert m.b.accesses == [
        ("write", 3, 1),
        ("write", 4, 4),
        ("write", 8, 8),
        ("write", 16, 2),
        ("write", 18, 1),
    ]


def test_memory_behind_a_bar_is_copied_at_once():
    class Buffer(Card):
        def bar_view(self, bar: int, offset: int, length: int) -> memoryview:
            return memoryview(self.ram)[offset : offset + length]

    m = machine()
    m.add_host_bridge()
    sender, buffer = m.add(Card("00:01.0", A_BAR)), m.add(Buffer("00:02.0", B_BAR))
    sender.dma.write(B_BAR + 1, b"x" * 4096)
    assert sender.dma.read(B_BAR, 4098) == b"\0" + b"x" * 4096 + b"\0"
    assert buffer.accesses == []


def test_request_over_the_edge_of_a_bar_is_cut_there():
    m = Switch()
    completion, txn = fetch(m.host, m.a, B_BAR + SIZE - 4, 8)
    assert completion is UR
    assert "0000:04:00.0 deliver" in steps(txn)
    m.a.dma.write(B_BAR + SIZE - 4, b"kepttail")
    assert m.b.ram[-4:] == b"kept"


def test_nobody_at_an_address_is_recorded():
    m = Switch()
    with pytest.raises(DmaError) as failed:
        m.a.dma.read(0x1000, 4)
    assert failed.value.txn.path[-1].action == "unclaimed"
    m.a.dma.write(0x1000, b"gone")
    m.a.dma.write(m.host.memory.end - 2, b"edge")
    assert m.host.memory.read(m.host.memory.end - 2, 2) == b"ed"
    assert m.host.fabric.counters.unclaimed == 3


def test_empty_requests_do_nothing():
    m = Switch()
    m.a.dma.write(m.host.memory.base, b"")
    assert m.a.dma.read(m.host.memory.base, 0) == b""


def test_unknown_requester_is_refused():
    m = Switch()
    txn = Txn(Kind.WRITE, m.host.memory.base, 4, 0x7777, data=b"evil")
    assert m.host.fabric.route(txn) is UR
    assert txn.path[0].detail == "no such requester"


def test_trace_keeps_the_last_transactions_when_asked():
    m = Switch()
    m.a.dma.write(m.host.memory.base, b"untraced")
    assert not m.host.fabric.trace
    m.host.fabric.trace_enabled = True
    for number in range(1030):
        m.a.dma.write(m.host.memory.base + 8 * number, b"traced!!")
    assert len(m.host.fabric.trace) == 1024
    assert steps(m.host.fabric.trace[-1])[-1] == "memory deliver"
    assert m.host.fabric.counters.writes == 1031


# -- decoding by processors -------------------------------------------------------------------


def test_processors_reach_memory_and_bars_through_windows():
    m = Switch()
    fabric = m.host.fabric
    fabric.cpu_write(B_BAR + 0x40, 2, 0xBEEF)
    assert m.b.accesses == [("write", 0x40, 2)]
    assert fabric.cpu_read(B_BAR + 0x40, 2) == 0xBEEF
    fabric.cpu_write(m.host.memory.base, 8, 0x1122334455667788)
    assert fabric.cpu_read(m.host.memory.base, 4) == 0x55667788
    assert fabric.cpu_read(0x5000, 4) == 0xFFFFFFFF
    m.b.place(B_BAR + 0x20000)
    assert fabric.cpu_read(B_BAR + 0x40, 2) == 0xFFFF
    assert fabric.cpu_read(B_BAR + 0x20040, 2) == 0xBEEF


def test_prefetchable_bars_above_4_gib_decode_through_64_bit_windows():
    m = machine()
    m.add_host_bridge()
    base = 1 << 40
    port = m.add(root_port(Bdf.parse("00:01.0"), 1, prefetch=(base, base + (1 << 30))))
    m.add(Card("01:00.0", base + (1 << 29), prefetch=True))
    assert port.prefetch_window == (base, base + (1 << 30))
    assert port.memory_window is None
    m.fabric.cpu_write(base + (1 << 29), 4, 5)
    assert m.fabric.cpu_read(base + (1 << 29), 4) == 5


def test_bar_outside_the_window_above_it_is_unreachable():
    m = Switch()
    m.port_b.set_window(0xE030_0000, 0xE040_0000)
    assert m.host.fabric.cpu_read(B_BAR, 4) == 0xFFFFFFFF
    assert send(m.host, m.a, B_BAR)[0] is UR


@pytest.mark.parametrize(
    "window", [(0xE0000001, 0xE0100000), (0xE0000000, 0xE0000001), (1 << 40, (1 << 40) + (1 << 20))]
)
def test_impossible_windows_are_refused(window):
    with pytest.raises(MachineError, match="window"):
        root_port(Bdf.parse("00:01.0"), 1, window=window)


def test_configuration_requests_follow_bus_numbers():
    m = Switch()
    fabric, bdf = m.host.fabric, m.a.bdf
    assert fabric.config_read(bdf, 0, 4) == 0x56781234
    fabric.config_write(bdf, 0x3C, 1, 0x55)
    assert m.a.config.read(0x3C, 1) == 0x55
    m.root.config.write(0x1A, 1, 2)
    assert fabric.config_read(bdf, 0, 4) == 0xFFFFFFFF
    fabric.config_write(bdf, 0x3C, 1, 0xAA)
    assert m.a.config.read(0x3C, 1) == 0x55
    assert fabric.config_read(Bdf.parse("77:00.0"), 0, 2) == 0xFFFF


# -- plugging and resets ----------------------------------------------------------------------


def test_plugging_where_nothing_leads_is_refused():
    m = machine()
    with pytest.raises(MachineError, match="nothing leads to bus 00"):
        m.add(Card("00:01.0"))
    m.add_host_bridge()
    m.add(Card("00:01.0"))
    with pytest.raises(MachineError, match="already"):
        m.add(Card("00:01.0"))
    with pytest.raises(MachineError, match="already"):
        m.add_host_bridge()
    with pytest.raises(MachineError, match="nothing leads to bus 05"):
        m.add(Card("05:00.0"))


def test_unplugged_functions_can_do_nothing():
    m = Switch()
    m.host.remove(m.up.bdf)
    assert set(m.host.functions) == {m.root.bdf, m.side_port.bdf, m.side.bdf}
    with pytest.raises(MachineError, match="unplugged"):
        m.a.dma.write(m.host.memory.base, b"x")
    assert m.host.fabric.cpu_read(A_BAR, 4) == 0xFFFFFFFF
    assert not list(m.host.fabric.below(m.root))
    with pytest.raises(MachineError, match="no function"):
        m.host.remove(m.up.bdf)


def test_secondary_bus_reset_reaches_everything_below_and_nothing_else():
    m = Switch()
    m.up.config.write(0x3E, 2, 0x0040)
    for card in (m.a, m.b):
        assert (card.command, card.bar_address(0)) == (0, 0)
    assert (m.port_a.secondary, m.port_a.windows()) == (0, ())
    assert (m.side.command, m.root.command, m.up.secondary) == (6, 6, 2)
    m.a.config.write(4, 2, 6)
    m.up.config.write(0x3E, 2, 0x0040)  # still held: no second edge
    assert m.a.command == 6
    m.up.config.write(0x3E, 2, 0)
    m.up.config.write(0x3E, 2, 0x0040)
    assert m.a.command == 0


def test_initiate_flr_resets_and_reads_as_zero():
    m = Switch()
    express = m.a.capabilities().find(0x10)
    m.a.config.write(0x3C, 1, 0x99)
    m.a.config.write(express.offset + 8, 2, 0x8000 | 0x2810)
    assert m.a.command == 0
    assert m.a.config.read(0x3C, 1) == 0
    assert m.a.config.read(express.offset + 8, 2) & 0x8000 == 0
    assert m.b.command == 6


def test_flr_bit_of_a_function_without_flr_does_nothing():
    m = Switch(flr=False)
    express = m.a.capabilities().find(0x10)
    m.a.config.write(express.offset + 8, 2, 0x8000)
    assert m.a.command == 6


@pytest.mark.parametrize(("no_soft_reset", "command"), [(True, 6), (False, 0)])
def test_leaving_d3hot_resets_unless_the_function_promises_not_to(no_soft_reset, command):
    m = Switch(no_soft_reset=no_soft_reset)
    m.a.config.write(m.a.power_offset, 2, 3)
    m.a.config.write(m.a.power_offset, 2, 0)
    assert m.a.command == command


def test_machine_resets_by_kind():
    m = Switch()
    m.host.reset_function(m.a.bdf)
    assert (m.a.command, m.b.command) == (0, 6)
    m.host.reset_function(m.b.bdf, ResetKind.BUS)
    assert m.b.command == 0
    with pytest.raises(MachineError, match="root bus"):
        m.host.reset_function(m.root.bdf, ResetKind.BUS)
    with pytest.raises(MachineError, match="no function"):
        m.host.reset_function(Bdf.parse("7f:00.0"))


def test_hardware_reset_leaves_nothing_enabled():
    m = Switch(iommu=True)
    m.second_stage(m.a)
    m.host.hardware_reset()
    assert not m.unit.enabled
    assert all(function.command == 0 for function in m.host.functions.values())
    assert m.root.secondary == 0


def test_acs_control_goes_back_to_power_on_at_reset():
    m = Switch()
    m.port_a.config.write(m.port_a.acs.offset + 6, 2, 0x1D)
    m.port_a.reset(ResetKind.BUS)
    assert m.port_a.acs.control == 0


def test_acs_control_takes_only_supported_bits_from_software():
    port = root_port(Bdf.parse("00:01.0"), 1, acs_capability=0x05)
    port.config.write(port.acs.offset + 6, 2, 0xFFFF)
    assert port.acs.control == 0x05


# -- building configuration spaces ------------------------------------------------------------


def test_capabilities_of_a_built_endpoint_are_found_by_the_decoder():
    config = endpoint_config(
        0x8086,
        0x1572,
        0x020000,
        msi=4,
        msix=MsixLayout(129, 3),
        aer=True,
        acs=0x1F,
        ari=True,
        ats=True,
        serial_number=0x1122334455667788,
    )
    function = Function(Bdf.parse("00:05.0"), config)
    found = [(item.extended, item.id) for item in function.capabilities()]
    assert found == [
        *((False, cap) for cap in (0x01, 0x05, 0x10, 0x11)),
        *((True, cap) for cap in (0x01, 0x03, 0x0D, 0x0E, 0x0F)),
    ]
    assert not function.capabilities().findings
    assert (function.msix.count, function.msix.pending_offset) == (129, 129 * 16)
    assert function.msi.count == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"express": False, "acs": 1},
        {"express": False, "ats": True},
        {"msi": 3},
        {"msi": 64},
        {"msix": MsixLayout(0, 0)},
        {"msix": MsixLayout(4, 0, table_offset=4)},
    ],
)
def test_impossible_endpoints_are_refused(wrong):
    with pytest.raises(MachineError):
        endpoint_config(1, 2, 3, **wrong)


def test_bridges_have_buses_below_them():
    for secondary, subordinate in ((0, 0), (5, 4), (1, 256)):
        with pytest.raises(MachineError, match="buses"):
            root_port(Bdf.parse("00:01.0"), secondary, subordinate)


def test_report_names_everything_that_is_there():
    m = Switch(iommu=True)
    m.a.dma.write(B_BAR, b"x")
    report = m.host.report()
    assert "pci0000:00: dmar0 disabled, peer-to-peer allowed" in report
    assert f"0000:04:00.0 endpoint: BAR0 {B_BAR:#x}-{B_BAR + SIZE - 1:#x}" in report
    assert "direct: 1" in report
    assert m.host.counters()["writes"] == 1
    assert m.host.memory.size == RAM

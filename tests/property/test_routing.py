"""Random machines: every pair of functions is routed and compared with an oracle.

The oracle knows the tree that was drawn, not the configuration bytes: it walks the two chains of
ancestors to where they meet and applies the rules of ACS there, written a second time from the
specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfiokit.isolation import acs as isolation
from vfiokit.machine.build import endpoint_config
from vfiokit.machine.fabric import P2pPolicy
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import (
    Bridge,
    pci_bridge,
    root_port,
    switch_downstream,
    switch_upstream,
)
from vfiokit.machine.txn import AddressType, Completion, Kind, Txn
from vfiokit.pci import topology
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace

SV, TB, RR, CR, UF, EC, DT = (1 << bit for bit in range(7))
BAR = 0x1000
MIB = 1 << 20
FIRST_ADDRESS = 0x8000_0000


# -- drawing a machine ------------------------------------------------------------------------


@dataclass(eq=False)
class Node:
    """A function or bridge of the drawn tree."""

    kind: str  # ep rciep conv | rp up down pcie-pci conv-bridge
    device: int = 0
    function: int = 0
    multi: bool = False
    capability: int | None = None
    control: int = 0
    vector: int = 0
    master: bool = True
    memory: bool = True
    ats: bool = True
    children: list[Node] = field(default_factory=list)
    parent: Node | None = None
    host: Host | None = None
    bdf: Bdf | None = None
    bar: int = 0
    model: Function | None = None

    @property
    def acs(self) -> int:
        return (self.capability or 0) & self.control

    @property
    def link(self) -> bool:
        return self.kind in ("rp", "down")

    @property
    def shared(self) -> bool:
        return self.kind in ("pcie-pci", "conv-bridge")


@dataclass(eq=False)
class Host:
    bus: int
    refuses: bool
    children: list[Node]


# Mostly on: a tree where everything is switched off tells nothing.
mostly = st.integers(0, 11).map(bool)
port_acs = st.one_of(st.none(), st.integers(0, 0x7F))


@st.composite
def nodes(draw, kind: str, device: int, function: int = 0, *, multi: bool = False) -> Node:
    is_port = kind in ("rp", "down")
    may_have_acs = is_port or (kind in ("ep", "rciep") and multi)
    capability = draw(port_acs) if may_have_acs else None
    if is_port and capability is not None and draw(st.booleans()):
        capability = 0x7F
    return Node(
        kind,
        device,
        function,
        multi,
        capability,
        draw(st.integers(0, 0x7F)),
        draw(st.integers(0, 0xFF)),
        draw(mostly),
        draw(mostly),
        draw(st.booleans()),
    )


@st.composite
def devices(draw, kind: str, device: int) -> list[Node]:
    """One endpoint device of one or two functions."""
    count = draw(st.integers(1, 2))
    return [draw(nodes(kind, device, function, multi=count > 1)) for function in range(count)]


@st.composite
def below_link(draw, depth: int) -> list[Node]:
    """What hangs on a PCIe link."""
    kinds = ["ep", "ep", "switch", "bridge"] if depth else ["ep"]
    kind = draw(st.sampled_from(kinds))
    if kind == "ep":
        return draw(devices("ep", 0))
    if kind == "bridge":
        bridge = draw(nodes("pcie-pci", 0))
        bridge.children = draw(shared_bus(depth - 1))
        return [bridge]
    upstream = draw(nodes("up", 0))
    for number in range(draw(st.integers(1, 3))):
        port = draw(nodes("down", number))
        port.children = draw(below_link(depth - 1))
        upstream.children.append(port)
    return [upstream]


@st.composite
def shared_bus(draw, depth: int) -> list[Node]:
    """What sits on a conventional bus."""
    found: list[Node] = []
    for number in range(draw(st.integers(1, 2))):
        if depth > 0 and draw(st.booleans()):
            bridge = draw(nodes("conv-bridge", number))
            bridge.children = draw(shared_bus(depth - 1))
            found.append(bridge)
        else:
            found += draw(devices("conv", number))
    return found


@st.composite
def hosts(draw, bus: int) -> Host:
    children: list[Node] = []
    for number in range(1, draw(st.integers(2, 3)) + 1):
        if draw(st.integers(0, 3)):
            port = draw(nodes("rp", number))
            port.children = draw(below_link(2))
            children.append(port)
        else:
            children += draw(devices("rciep", number))
    return Host(bus, draw(st.integers(0, 3)) == 0, children)


machines = st.tuples(hosts(0), hosts(0x80)).map(list) | hosts(0).map(lambda host: [host])


# -- building it ------------------------------------------------------------------------------


class Card(Function):
    """A page of registers that remember."""

    def __init__(self, bdf: Bdf, node: Node) -> None:
        express = {"conv": False, "ep": True}.get(node.kind)
        kind = {} if express is None else {"express": express}
        if node.kind == "rciep":
            kind["express"] = PortType.RC_INTEGRATED_ENDPOINT
        if node.kind != "conv":
            kind |= {"acs": node.capability, "acs_control": node.control, "ats": True}
        config = endpoint_config(
            0x1234, 0x11, 0xFF0000, multifunction=node.multi and not node.function, **kind
        )
        super().__init__(bdf, config, (BarModel(0, BAR),))
        self.page = bytearray(BAR)

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        return int.from_bytes(self.page[offset : offset + width], "little")

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.page[offset : offset + width] = value.to_bytes(width, "little")


class Builder:
    def __init__(self, drawn: list[Host]) -> None:
        self.machine = Machine(ram=1 << 20)
        self.address = FIRST_ADDRESS
        self.leaves: list[Node] = []
        self.bridges: list[Node] = []
        for host in drawn:
            policy = P2pPolicy.REFUSED if host.refuses else P2pPolicy.ALLOWED
            self.machine.add_host_bridge(0, host.bus, p2p=policy)
            self.next_bus = host.bus + 1
            self.bus(host, None, host.bus, host.children)

    def bus(self, host: Host, parent: Node | None, number: int, children: list[Node]) -> None:
        for node in children:
            node.host, node.parent = host, parent
            node.bdf = Bdf(0, number, node.device, node.function)
            if node.kind in ("ep", "rciep", "conv"):
                self.leaf(node)
            else:
                self.bridge(node)

    def leaf(self, node: Node) -> None:
        node.bar, self.address = self.address, self.address + BAR
        card = Card(node.bdf, node)
        card.config.write(0x10, 4, node.bar)
        card.config.write(4, 2, (2 if node.memory else 0) | (4 if node.master else 0))
        if card.ats_offset and node.ats:
            card.config.write(card.ats_offset + 6, 2, 0x8000)
        node.model = self.machine.add(card)
        set_vector(node)
        self.leaves.append(node)

    def bridge(self, node: Node) -> None:
        secondary = self.next_bus
        self.next_bus += 1
        acs = {"acs_capability": node.capability, "acs_control": node.control}
        made = {
            "rp": lambda: root_port(node.bdf, secondary, 0xFF, **acs),
            "up": lambda: switch_upstream(node.bdf, secondary, 0xFF),
            "down": lambda: switch_downstream(node.bdf, secondary, 0xFF, **acs),
            "pcie-pci": lambda: pci_bridge(node.bdf, secondary, 0xFF),
            "conv-bridge": lambda: pci_bridge(node.bdf, secondary, 0xFF, express=False),
        }[node.kind]()
        assert isinstance(made, Bridge)
        node.model = self.machine.add(made)
        self.bridges.append(node)
        self.address = -(-self.address // MIB) * MIB
        start = self.address
        self.bus(node.host, node, secondary, node.children)
        self.address = max(-(-self.address // MIB) * MIB, start + MIB)
        made.config.set(0x1A, 1, self.next_bus - 1)
        made.set_window(start, self.address)
        made.config.write(4, 2, (2 if node.memory else 0) | (4 if node.master else 0))
        set_vector(node)


def set_vector(node: Node) -> None:
    """Program the low bits of the Egress Control Vector, where there is one."""
    acs = node.model.acs
    if acs is not None and acs.vector_bits:
        for bit in range(8):
            acs.set_egress_bit(bit, bool(node.vector >> bit & 1))


# -- the oracle -------------------------------------------------------------------------------


def chain(node: Node) -> list[Node]:
    """Bridges above ``node``, nearest first."""
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def between_peers(one: Node, other_number: int, translated: bool) -> str:
    """Table of §6.12.3: what Request Redirect, Egress Control and Direct Translated make of it."""
    if one.capability is not None and not one.capability & RR:
        return "up"
    if translated and one.acs & DT:
        return "direct"
    blocked_by_vector = bool(one.vector >> other_number & 1)
    return {
        (False, False): "direct",
        (True, False): "up",
        (False, True): "refused" if blocked_by_vector else "direct",
        (True, True): "up" if blocked_by_vector else "direct",
    }[bool(one.acs & RR), bool(one.acs & EC)]


def expected(one: Node, other: Node, at: AddressType, *, read: bool) -> str:
    """``direct``, ``host`` or ``refused``."""
    translated = at is AddressType.TRANSLATED
    up, down = chain(one), chain(other)
    if not one.master:
        return "refused"
    meeting = next((bridge for bridge in up if bridge in down), None)
    turn = [one, *up][([one, *up]).index(meeting) - 1] if meeting else [one, *up][-1]
    answers = [other, *down]
    peer = answers[answers.index(meeting) - 1] if meeting else answers[-1]

    redirected = False
    for bridge in [one, *up][1:]:
        if bridge is meeting:
            break
        if refuses(bridge, translated):
            return "refused"
    # Where the two chains meet, or on the root bus.
    decision = "up"
    same_device = (
        turn.device == peer.device and turn.multi and one.host is other.host and not turn.link
    )
    if peer.memory:
        if meeting is None:
            if same_device:
                decision = between_peers(turn, peer.function, translated)
        elif meeting.shared:
            decision = "direct" if meeting.master else "refused"
        elif meeting.kind == "up":
            decision = between_peers(turn, peer.device, translated)
        elif same_device:
            decision = between_peers(turn, peer.function, translated)
        redirected = decision == "up" and (
            (meeting is not None and meeting.kind == "up") or same_device
        )
    if decision == "refused":
        return "refused"
    if decision == "direct":
        reached = all(bridge.memory for bridge in answers[: answers.index(peer) + 1])
        if not reached:
            return "refused"
        lost = read and peer.acs & CR and peer.host.refuses
        return "refused" if lost else "direct"

    above = [] if meeting is None else up[up.index(meeting) :]
    for bridge in above:
        if refuses(bridge, translated):
            return "refused"
        if not bridge.memory:
            continue  # it claims nothing, so it passes everything up
        if bridge.kind == "down":
            if not bridge.acs & UF:
                return "refused"
            redirected = True
        elif bridge.kind == "rp":
            pass
        elif not redirected:
            return "refused"
    return at_host(one, other, answers, translated)


def refuses(bridge: Node, translated: bool) -> bool:
    return not bridge.master or bool(bridge.link and bridge.acs & TB and translated)


def at_host(one: Node, other: Node, answers: list[Node], translated: bool) -> str:
    if translated and (one.kind == "conv" or not one.ats):
        return "refused"
    if not all(node.memory for node in answers) or one.host.refuses or other.host.refuses:
        return "refused"
    return "host"


# -- properties -------------------------------------------------------------------------------


def outcome(machine: Machine, one: Node, other: Node, at: AddressType, kind: Kind) -> str:
    """Route a request for real and see where it went and whether it arrived."""
    page = other.model.page
    page[0:4] = bytes(4)
    data = b"\xc0\xff\xee\x01" if kind is Kind.WRITE else None
    if kind is Kind.READ:
        page[0:4] = b"\xc0\xff\xee\x01"
    txn = Txn(kind, other.bar, 4, one.model.requester_id, data=data, at=at)
    completion = machine.fabric.route(txn)
    arrived = bytes(page[0:4] if kind is Kind.WRITE else txn.data) == b"\xc0\xff\xee\x01"
    if completion is not Completion.SUCCESS:
        assert kind is Kind.READ or not arrived
        return "refused"
    assert arrived
    assert txn.path[0].action == "emit"
    direct = [hop for hop in txn.path if hop.action == "direct"]
    delivered = next(index for index, hop in enumerate(txn.path) if hop.action == "deliver")
    assert txn.path[delivered].where == str(other.bdf)
    through = any(hop.where.startswith("pci") for hop in txn.path[:delivered])
    assert bool(direct) != through
    return "direct" if direct else "host"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines)
def test_every_pair_is_routed_as_the_oracle_says(drawn):
    built = Builder(drawn)
    for one in built.leaves:
        for other in built.leaves:
            if one is other:
                continue
            for at in (AddressType.UNTRANSLATED, AddressType.TRANSLATED):
                for kind in (Kind.WRITE, Kind.READ):
                    assert outcome(built.machine, one, other, at, kind) == expected(
                        one, other, at, read=kind is Kind.READ
                    ), f"{kind.value} {one.bdf} -> {other.bdf} {at.name}"


def view_of(machine: Machine) -> topology.Topology:
    """What a kernel sees of the machine: configuration bytes and nothing else."""
    return topology.Topology(
        [
            topology.Function(function.bdf, ConfigSpace(bytes(function.config.data)))
            for function in machine.functions.values()
        ],
        list(machine.fabric.host_bridges),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines)
def test_what_the_kernel_calls_isolated_never_reaches_a_peer_below_the_host_bridge(drawn):
    built = Builder(drawn)
    for node in (*built.leaves, *built.bridges):
        if node.model.acs is not None:
            # Egress control lets traffic through that the kernel believes redirected: see
            # test_fabric.py. Everything else must hold.
            node.model.acs.control = node.model.acs.control & ~EC
    seen = view_of(built.machine)
    for one in built.leaves:
        function = seen[one.bdf]
        path = isolation.path_enabled(seen, function, isolation.REQUIRED)
        if not path:
            continue
        for other in built.leaves:
            if other is not one:
                went = outcome(built.machine, one, other, AddressType.UNTRANSLATED, Kind.WRITE)
                assert went != "direct", f"{one.bdf} -> {other.bdf}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines, st.data())
def test_dma_port_and_route_agree_after_any_reconfiguration(drawn, data):
    """The port's remembered way to memory must never outlive the configuration it came from."""
    built = Builder(drawn)
    memory = built.machine.memory
    everything = [*built.leaves, *built.bridges]
    for _ in range(3):
        one = data.draw(st.sampled_from(built.leaves))
        address = data.draw(
            st.sampled_from([memory.base + 64, *(leaf.bar for leaf in built.leaves)])
        )
        before = _everything(built)
        one.model.dma.write(address, b"port" * 4)
        by_port = _everything(built)
        _restore(built, before)
        txn = Txn(Kind.WRITE, address, 16, one.model.requester_id, data=b"port" * 4)
        built.machine.fabric.route(txn)
        assert by_port == _everything(built)
        _restore(built, before)
        changed = data.draw(st.sampled_from(everything))
        changed.model.config_write(4, 2, data.draw(st.sampled_from([0, 2, 4, 6])))


def _everything(built: Builder) -> list[bytes]:
    memory = built.machine.memory
    return [memory.read(memory.base, 4096), *(bytes(leaf.model.page) for leaf in built.leaves)]


def _restore(built: Builder, state: list[bytes]) -> None:
    built.machine.memory.write(built.machine.memory.base, state[0])
    for leaf, page in zip(built.leaves, state[1:], strict=True):
        leaf.model.page[:] = page

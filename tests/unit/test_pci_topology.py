from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import DeviceNotFoundError
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, HostBridge, Identity, Resource, Topology


def endpoint(bdf: str, *, multifunction: bool = False, physfn: str | None = None) -> Function:
    data = bytearray(256)
    struct.pack_into("<HH", data, 0, 0x8086, 0x1572)
    data[0x0E] = 0x80 if multifunction else 0
    return Function(Bdf.parse(bdf), ConfigSpace(data), physfn=Bdf.parse(physfn) if physfn else None)


def bridge(
    bdf: str, secondary: int, subordinate: int | None = None, *, ari: bool = False
) -> Function:
    data = bytearray(256)
    struct.pack_into("<HH", data, 0, 0x8086, 0x2030)
    data[0x0E] = 1
    data[0x18] = Bdf.parse(bdf).bus
    data[0x19] = secondary
    data[0x1A] = secondary if subordinate is None else subordinate
    data[0x06] = 0x10
    data[0x34] = 0x40
    struct.pack_into("<BBH", data, 0x40, 0x10, 0, 0x0042)
    struct.pack_into("<H", data, 0x68, 0x20 if ari else 0)
    return Function(Bdf.parse(bdf), ConfigSpace(data))


def names(functions) -> list[str]:
    return [str(function.bdf) for function in functions]


@pytest.fixture
def switch() -> Topology:
    """A root port, a switch with two ports below, an endpoint under each, and one beside."""
    return Topology(
        [
            endpoint("00:00.0"),
            bridge("00:01.0", 1, 4),
            bridge("01:00.0", 2, 4),
            bridge("02:00.0", 3),
            bridge("02:01.0", 4),
            endpoint("03:00.0"),
            endpoint("04:00.0"),
        ]
    )


def test_path_to_root_lists_bridges_nearest_first(switch):
    path = switch.path_to_root(switch[Bdf.parse("04:00.0")])
    assert names(path) == ["0000:02:01.0", "0000:01:00.0", "0000:00:01.0"]
    assert switch.path_to_root(switch[Bdf.parse("00:00.0")]) == ()


def test_every_function_hangs_from_the_one_host_bridge(switch):
    assert switch.host_bridges == (HostBridge(0, 0),)
    assert {str(switch.host_bridge_of(function)) for function in switch} == {"pci0000:00"}


def test_secondary_bus_is_the_one_a_bridge_owns(switch):
    bus = switch.secondary(switch[Bdf.parse("02:01.0")])
    assert names(bus.functions) == ["0000:04:00.0"]
    assert switch.secondary(switch[Bdf.parse("04:00.0")]) is None
    assert switch.parent_bus(bus).number == 2


def test_absent_address_is_device_not_found(switch):
    with pytest.raises(DeviceNotFoundError, match=r"0000:09:00\.0"):
        switch[Bdf.parse("09:00.0")]


def test_port_type_comes_from_the_express_capability(switch):
    assert switch[Bdf.parse("00:01.0")].port_type is PortType.ROOT_PORT
    assert switch[Bdf.parse("03:00.0")].port_type is None


def test_vf_on_a_bus_of_its_own_hangs_below_its_pfs_bridge():
    topology = Topology(
        [
            bridge("00:01.0", 1, 2),
            endpoint("01:00.0", multifunction=True),
            endpoint("01:00.2", physfn="01:00.0"),
            endpoint("02:00.0", physfn="01:00.0"),
            endpoint("02:00.1", physfn="01:00.0"),
        ]
    )
    near, far = topology[Bdf.parse("01:00.2")], topology[Bdf.parse("02:00.1")]
    assert topology.bus_of(far).virtual_of == 1
    assert topology.bus_of(far).bridge is None
    assert not topology.bus_of(far).is_root
    assert topology.parent_bus(topology.bus_of(far)).number == 1
    assert str(topology.upstream_bridge(near).bdf) == "0000:00:01.0"
    assert str(topology.upstream_bridge(far).bdf) == "0000:00:01.0"
    assert str(topology.host_bridge_of(far)) == "pci0000:00"
    assert topology.host_bridges == (HostBridge(0, 0),)
    assert names(topology.virtual_functions(topology[Bdf.parse("01:00.0")])) == [
        "0000:01:00.2",
        "0000:02:00.0",
        "0000:02:00.1",
    ]
    assert not topology.is_multifunction(far)


def test_vf_whose_pf_is_missing_still_has_a_place():
    topology = Topology([bridge("00:01.0", 1, 2), endpoint("02:00.0", physfn="01:00.0")])
    function = topology[Bdf.parse("02:00.0")]
    assert topology.path_to_root(function) == ()
    assert topology.host_bridge_of(function) == HostBridge(0, 2)


def test_wide_domains_are_kept_apart():
    topology = Topology(
        [
            bridge("00:01.0", 1),
            endpoint("01:00.0"),
            bridge("ffffffff:00:01.0", 1),
            endpoint("ffffffff:01:00.0"),
        ]
    )
    assert [str(host) for host in topology.host_bridges] == ["pci0000:00", "pciffffffff:00"]
    far = topology[Bdf.parse("ffffffff:01:00.0")]
    assert topology.upstream_bridge(far).bdf.domain == 0xFFFFFFFF


@pytest.mark.parametrize("secondary", [0, 1, 3])
def test_bridge_cannot_own_its_own_or_an_earlier_bus(secondary):
    topology = Topology([bridge("03:00.0", secondary, 255), endpoint("01:00.0")])
    assert topology.upstream_bridge(topology[Bdf.parse("01:00.0")]) is None
    assert topology.upstream_bridge(topology[Bdf.parse("03:00.0")]) is None


def test_first_of_two_bridges_that_claim_a_bus_owns_it():
    topology = Topology([bridge("00:02.0", 5), bridge("00:01.0", 5), endpoint("05:00.0")])
    assert str(topology.upstream_bridge(topology[Bdf.parse("05:00.0")]).bdf) == "0000:00:01.0"
    assert topology.secondary(topology[Bdf.parse("00:02.0")]) is None


def test_named_root_bus_stays_a_root_though_a_bridge_claims_it():
    topology = Topology([bridge("00:01.0", 0x80), endpoint("80:00.0")], [(0, 0), (0, 0x80)])
    assert [str(host) for host in topology.host_bridges] == ["pci0000:00", "pci0000:80"]
    assert topology.upstream_bridge(topology[Bdf.parse("80:00.0")]) is None


def test_empty_buses_below_a_bridge_or_host_bridge_exist():
    topology = Topology([bridge("00:01.0", 7)], [(0, 0), (0, 0xFF)])
    assert topology.buses[0, 7].functions == ()
    assert topology.buses[0, 0xFF].is_root


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(0, 9),
            st.integers(0, 3),
            st.integers(0, 3),
            st.sampled_from(["endpoint", "bridge", "vf", "short"]),
            st.integers(0, 255),
        ),
        max_size=25,
    ),
    st.one_of(st.none(), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), max_size=4)),
)
def test_no_walk_of_any_topology_loops_or_raises(rows, roots):
    functions = []
    for domain, bus, device, number, kind, other in rows:
        bdf = Bdf(domain, bus, device, number)
        if kind == "endpoint":
            functions.append(endpoint(str(bdf)))
        elif kind == "bridge":
            functions.append(bridge(str(bdf), other % 10, other))
        elif kind == "vf":
            functions.append(endpoint(str(bdf), physfn=str(Bdf(domain, other % 10, 0, other & 3))))
        else:
            functions.append(Function(bdf, ConfigSpace(bytes([1] * (other % 0x30)))))
    topology = Topology(functions, roots)
    for function in topology:
        path = topology.path_to_root(function)
        assert len({bridge.bdf for bridge in path}) == len(path)
        assert function in topology.slot(function)
        assert topology.host_bridge_of(function).domain == function.bdf.domain
        topology.is_multifunction(function)
    for bus in topology.buses.values():
        steps, at = 0, bus
        while at is not None:
            steps, at = steps + 1, topology.parent_bus(at)
            assert steps <= len(topology.buses) + 1


def test_function_above_zero_is_multifunction():
    topology = Topology([endpoint("00:01.0"), endpoint("00:01.1"), endpoint("00:02.0")])
    answers = [topology.is_multifunction(function) for function in topology]
    assert answers == [False, True, False]


@pytest.mark.parametrize(("ari", "answer"), [(False, False), (True, True)])
def test_with_ari_the_device_number_belongs_to_the_function(ari, answer):
    topology = Topology([bridge("00:01.0", 1, ari=ari), endpoint("01:00.0"), endpoint("01:01.0")])
    assert topology.is_multifunction(topology[Bdf.parse("01:01.0")]) is answer
    assert topology.is_multifunction(topology[Bdf.parse("01:00.0")]) is False


def test_dead_function_is_no_bridge():
    function = Function(Bdf(0, 0, 1, 0), ConfigSpace(b"\xff" * 64))
    assert (function.header_type, function.is_bridge, function.secondary_bus) == (0, False, None)
    assert not function.multifunction_bit
    assert [finding.code for finding in function.capabilities.findings] == ["no-function"]


def test_bridge_with_a_short_capture_has_no_bus_below():
    data = bytearray(0x18)
    data[0x0E] = 1
    function = Function(Bdf(0, 0, 1, 0), ConfigSpace(data))
    assert function.is_bridge
    assert (function.secondary_bus, function.subordinate_bus) == (None, None)
    assert len(Topology([function])) == 1


def test_vf_has_capabilities_though_its_ids_read_all_ones():
    data = bytearray(256)
    data[0:4] = b"\xff" * 4
    data[0x06], data[0x34], data[0x40] = 0x10, 0x40, 0x11
    function = Function(Bdf(0, 1, 0, 2), ConfigSpace(data), physfn=Bdf(0, 1, 0, 0))
    assert function.capabilities.find(0x11) is not None


def test_identity_comes_from_the_header():
    data = bytearray(64)
    struct.pack_into("<HH", data, 0, 0x10DE, 0x2330)
    struct.pack_into("<I", data, 8, 0x030200A1)
    struct.pack_into("<HH", data, 0x2C, 0x10DE, 0x16C1)
    assert Function(Bdf(0, 0, 0, 0), ConfigSpace(data)).identity == Identity(
        0x10DE, 0x2330, 0x030200, 0xA1, 0x10DE, 0x16C1
    )


def test_subsystem_of_a_bridge_comes_from_its_capability():
    data = bytearray(256)
    data[0x0E], data[0x06], data[0x34] = 1, 0x10, 0x50
    struct.pack_into("<BBHHH", data, 0x50, 0x0D, 0, 0, 0x103C, 0x8890)
    identity = Function(Bdf(0, 0, 0, 0), ConfigSpace(data)).identity
    assert (identity.subsystem_vendor_id, identity.subsystem_device_id) == (0x103C, 0x8890)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ((0, 0xE0000000, 0xE00FFFFF, 0x40200), 0x100000),
        ((0, 0, 0, 0), 0),
        ((0, 16, 0, 0x200), 0),
    ],
)
def test_resource_size_counts_the_last_byte(line, size):
    assert Resource(*line).size == size

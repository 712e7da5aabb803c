"""Guest trees: what is built for a host, and what the guest's kernel will see of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm_hosts import INTEL, MIXED, REDIRECTING, SPREAD, SWITCH, ZEN, Host, host_texts

from vfiokit.errors import DeviceNotFoundError, UsageError
from vfiokit.machine.assembly import assemble
from vfiokit.p2p import MapType, Peers
from vfiokit.p2p.guest import (
    CLOUD_HYPERVISOR,
    LIBVIRT,
    XL,
    GuestPlan,
    Variant,
    Viommu,
    flat,
    host_nodes,
)
from vfiokit.p2p.guest_topology import ENABLED, EXPANDER, expander_addresses, groups, topology
from vfiokit.p2p.guest_tree import replicated
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import Blueprint
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.edit import with_acs_control
from vfiokit.pci.topology import Function, Topology

EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pairs(plan: GuestPlan) -> list[tuple[Bdf, Bdf]]:
    return [(one, other) for one in plan.functions.values() for other in plan.functions.values()]


# -- random hosts -----------------------------------------------------------------------------


@EXAMPLES
@given(host_texts(), st.sampled_from(Viommu), st.booleans(), st.booleans())
def test_the_software_machine_built_from_a_plan_shows_the_topology_foretold(
    text: str, viommu: Viommu, is_flat: bool, seen_by_libvirt: bool
) -> None:
    host = Host(text)
    machine = {"machine": LIBVIRT} if seen_by_libvirt else {}
    if is_flat:
        plan = flat(host.functions, viommu=viommu, **machine)
    else:
        plan = replicated(host.topology, host.functions, viommu=viommu, **machine)
    expected = topology(plan, host.topology)
    real = assemble(plan.blueprint, iommu=viommu is not Viommu.NONE).topology()
    for name in plan.places:
        one, other = expected[plan.places[name].bdf], real[plan.places[name].bdf]
        assert one.header_type == other.header_type
        assert one.multifunction_bit == other.multifunction_bit
        if name in plan.functions:
            assert one.identity[:3] == host.topology[plan.functions[name]].identity[:3]
            continue
        assert one.secondary_bus == other.secondary_bus
        assert one.subordinate_bus == other.subordinate_bus
        assert one.acs_capability == other.acs_capability
        if viommu is not Viommu.NONE:
            assert one.acs_control == other.acs_control
        # The software machine has downstream ports where QEMU puts root ports.
        if one.port_type is not other.port_type:
            assert (one.port_type, other.port_type) == (PortType.ROOT_PORT, PortType.DOWNSTREAM)
        else:
            assert one.identity[:2] == other.identity[:2]
    assert [str(each) for each in expected.host_bridges] == [
        str(each) for each in real.host_bridges
    ]


@EXAMPLES
@given(host_texts(), st.sampled_from([INTEL, ZEN]), st.booleans())
def test_ports_of_the_seed_make_the_guest_believe_what_the_host_knows(
    text: str, cpu: object, clear: bool
) -> None:
    host = Host(text)
    if clear:
        ports = [each for each in host.topology if each.acs is not None and each.is_bridge]
        cleared = {each.bdf: Acs(0) for each in ports[::2]}
        host.topology = with_acs_control(host.topology, cleared)
    plan = replicated(host.topology, host.functions, seed=True)
    assert plan.variant is Variant.SEED
    truth = Peers(host.topology, cpu=cpu)
    belief = Peers(topology(plan, host.topology), cpu=cpu)
    for one, other in pairs(plan):
        expected = truth.map_type(one, other)
        found = belief.map_type(plan.address(one), plan.address(other))
        assert found.map_type is expected.map_type
        assert found.distance == expected.distance
        assert found.code == expected.code
        assert len(found.redirecting) == len(expected.redirecting)


@EXAMPLES
@given(host_texts(), st.sampled_from([INTEL, ZEN]))
def test_a_replicated_tree_has_the_host_s_shape(text: str, cpu: object) -> None:
    host = Host(text)
    plan = replicated(host.topology, host.functions)
    truth = Peers(host.topology, cpu=cpu)
    belief = Peers(topology(plan, host.topology), cpu=cpu)
    for one, other in pairs(plan):
        expected = truth.map_type(one, other)
        found = belief.map_type(plan.address(one), plan.address(other))
        assert found.distance == expected.distance
        if expected.map_type is MapType.BUS_ADDR:
            assert found.map_type is MapType.BUS_ADDR
        if expected.common is None:
            assert found.common is None


@EXAMPLES
@given(host_texts())
def test_every_function_of_a_flat_plan_is_alone_below_a_root_port(text: str) -> None:
    host = Host(text)
    plan = flat(host.functions)
    guest = topology(plan, host.topology)
    for bdf in plan.functions.values():
        function = guest[plan.address(bdf)]
        (above,) = guest.path_to_root(function)
        assert above.port_type is PortType.ROOT_PORT
        assert guest.bus_of(function).functions == (function,)


# -- hosts with a story -----------------------------------------------------------------------


def test_a_switch_and_a_port_come_back_below_an_expander() -> None:
    host = Host(SWITCH)
    plan = replicated(host.topology, host.functions)
    expected = "hb:pxb0 bus=20(rp0(sw0(nvme:fn0 cmb=2M, nvme:fn1 cmb=2M)), rp1(nvme:fn2 cmb=2M))"
    assert plan.blueprint == Blueprint.parse(expected.replace("bus=20", "bus=0x20"))
    assert [str(plan.address(host[name])) for name in "abc"] == [
        "0000:23:00.0",
        "0000:24:00.0",
        "0000:25:00.0",
    ]
    assert plan.mirrors == {
        "rp0": host["rp0"],
        "sw0": host["sw0"],
        "sw0.0": host["sw0.0"],
        "sw0.1": host["sw0.1"],
        "rp1": host["rp1"],
    }


def test_only_what_leads_to_assigned_functions_is_rebuilt() -> None:
    host = Host(SPREAD)
    plan = replicated(host.topology, [host.topology[host["d"]]])
    assert str(plan.blueprint) == "hb:pxb0 bus=0x20(rp0(nvme:fn0 cmb=2M))"


def test_a_switch_port_that_redirects_becomes_a_root_port_in_its_place() -> None:
    host = Host(REDIRECTING)
    plan = replicated(host.topology, host.functions, viommu=Viommu.INTEL)
    guest = topology(plan, host.topology)
    port = guest[plan.places["sw0.0"].bdf]
    assert port.identity[:2] == (0x1B36, 0x000C)
    assert port.acs_control == ENABLED
    assert any("xio3130-downstream has no ACS" in limit for limit in plan.limits)
    answer = Peers(guest, cpu=INTEL).map_type(plan.address(host["a"]), plan.address(host["b"]))
    assert answer.map_type is MapType.NOT_SUPPORTED
    assert answer.redirecting == (plan.places["sw0.0"].bdf, plan.places["sw0.1"].bdf)


def test_libvirt_cannot_put_a_root_port_below_a_switch_and_says_so() -> None:
    host = Host(REDIRECTING)
    plan = replicated(host.topology, host.functions, machine=LIBVIRT, viommu=Viommu.INTEL)
    guest = topology(plan, host.topology)
    assert guest[plan.places["sw0.0"].bdf].identity[:2] == (0x104C, 0x8233)
    assert any(
        "emulated root port has ACS, an emulated switch port" in each for each in plan.limits
    )
    answer = Peers(guest, cpu=INTEL).map_type(plan.address(host["a"]), plan.address(host["b"]))
    assert answer.map_type is MapType.BUS_ADDR


def test_acs_of_emulated_ports_is_off_without_an_iommu_in_the_guest() -> None:
    host = Host(REDIRECTING)
    plan = replicated(host.topology, host.functions)
    guest = topology(plan, host.topology)
    assert all(function.acs_control == Acs(0) for function in guest)
    assert groups(plan, guest) is None
    behind = plan.with_viommu(Viommu.VIRTIO)
    assert groups(behind, topology(behind, host.topology)) is not None


def test_a_root_port_without_acs_stays_one() -> None:
    host = Host(MIXED)
    plan = replicated(host.topology, host.functions, viommu=Viommu.INTEL)
    guest = topology(plan, host.topology)
    assert guest[plan.places["rp0"].bdf].acs is None
    assert guest[plan.places["rp1"].bdf].acs is not None
    one, other = plan.address(host["a"]), plan.address(host["b"])
    assert (one[:3], one.function, other.function) == (other[:3], 0, 1)
    assert Peers(guest, cpu=INTEL).map_type(one, other).map_type is MapType.BUS_ADDR


def test_numa_nodes_become_those_of_expanders() -> None:
    host = Host(SPREAD, numa=True)
    plan = replicated(host.topology, host.functions)
    assert plan.nodes == (0, 1)
    assert plan.numa == {"pxb0": 0, "pxb1": 1}
    guest = topology(plan, host.topology)
    assert guest[plan.address(host["d"])].recorded.numa_node == 1
    without = replicated(host.topology, host.functions, numa=False)
    assert (without.nodes, without.numa) == ((), {})


def test_a_far_node_alone_is_the_guest_s_first() -> None:
    host = Host(SPREAD, numa=True)
    plan = replicated(host.topology, [host.topology[host["c"]]])
    assert (plan.nodes, plan.numa) == ((1,), {"pxb0": 0})


def test_expanders_are_functions_of_the_first_bus() -> None:
    host = Host(SPREAD)
    plan = replicated(host.topology, host.functions)
    guest = topology(plan, host.topology)
    assert {name: str(bdf) for name, bdf in expander_addresses(plan).items()} == {
        "pxb0": "0000:00:1c.0",
        "pxb1": "0000:00:1b.0",
    }
    assert guest[Bdf(0, 0, 0x1C, 0)].identity[:2] == EXPANDER


def test_virtual_functions_get_ports_of_their_own() -> None:
    host = Host("rp0(sw0(nvme:a, nvme:b))")
    a = host["a"]
    functions = [
        Function(
            Bdf(a.domain, a.bus, a.device, number),
            host.topology[a].config,
            host.topology[a].identity,
            physfn=a,
        )
        for number in (1, 2)
    ]
    known = Topology([*host.topology, *functions], [(0, 0)])
    plan = replicated(known, functions)
    assert str(plan.blueprint) == "hb:pxb0 bus=0x20(rp0(sw0(nvme:fn0 cmb=2M, nvme:fn1 cmb=2M)))"
    assert plan.mirrors["sw0.0"] == plan.mirrors["sw0.1"] == host["sw0.0"]
    assert any("virtual functions get a port each" in limit for limit in plan.limits)


def test_a_function_of_the_root_complex_gets_a_root_port_and_a_word() -> None:
    host = Host("nvme:a, rp0(nvme:b)")
    plan = replicated(host.topology, host.functions)
    guest = topology(plan, host.topology)
    assert guest[plan.address(host["a"])].port_type is PortType.ENDPOINT
    assert any("root complex" in limit for limit in plan.limits)


def test_a_conventional_bridge_is_left_out_with_a_word() -> None:
    host = Host("rp0(pcie-pci-bridge(edu:a, edu:b))")
    plan = replicated(host.topology, host.functions)
    assert any("conventional bridge" in limit for limit in plan.limits)
    guest = topology(plan, host.topology)
    assert guest[plan.address(host["a"])].express is None


def test_hypervisors_without_ports_have_everything_on_the_root_bus() -> None:
    host = Host(SWITCH)
    for machine in (CLOUD_HYPERVISOR, XL):
        plan = replicated(host.topology, host.functions, machine=machine)
        assert plan.variant is Variant.ROOT_BUS
        guest = topology(plan, host.topology)
        assert guest[Bdf(0, 0, 0, 0)].identity[:2] == machine.host_bridge
        for name in "abc":
            function = guest[plan.address(host[name])]
            assert guest.path_to_root(function) == ()
            assert (function.express is not None) == machine.express
        answer = Peers(guest, cpu=INTEL).map_type(plan.address(host["a"]), plan.address(host["b"]))
        assert answer.map_type is MapType.NOT_SUPPORTED


def many(count: int) -> Host:
    # 127 functions at most on a bus's worth of slots.
    slots = -(-count // 8)
    text = ", ".join(
        f"rp{n}(slot({', '.join(['edu'] * min(8, count - 8 * n))}))" for n in range(slots)
    )
    return Host(text)


def test_more_functions_than_devices_share_slots_of_root_ports() -> None:
    host = many(40)
    plan = flat(host.functions)
    guest = topology(plan, host.topology)
    addresses = {plan.address(bdf) for bdf in plan.functions.values()}
    assert len(addresses) == 40
    assert all(guest[each].bdf.device == 0 for each in addresses)
    ports = [guest.path_to_root(guest[each])[0] for each in addresses]
    assert all(port.multifunction_bit for port in ports)
    assert len({port.bdf for port in ports}) == 40


@pytest.mark.parametrize("build", [flat, lambda given: replicated(many(1).topology, given)])
def test_what_makes_no_sense_is_refused(build: object) -> None:
    host = Host(SWITCH)
    with pytest.raises(UsageError, match="no function"):
        build([])
    with pytest.raises(UsageError, match="is a bridge"):
        build([host.topology[host["rp0"]]])
    with pytest.raises(UsageError, match="named twice"):
        build([host.functions[0]] * 2)


def test_an_overfull_root_bus_is_an_error() -> None:
    host = many(28)
    flat(host.functions[:27], machine=XL)
    with pytest.raises(UsageError, match="no room for 28"):
        flat(host.functions, machine=XL)


def test_a_function_that_is_not_assigned_has_no_address() -> None:
    host = Host(SWITCH)
    plan = flat(host.functions[:1])
    with pytest.raises(DeviceNotFoundError, match="not assigned"):
        plan.address(host["c"])


def test_host_nodes_are_those_above_the_functions() -> None:
    host = Host(SPREAD, numa=True)
    assert host_nodes(host.topology, host.functions) == (0, 1)
    assert host_nodes(host.topology, []) == ()
    assert host_nodes(Host(SPREAD).topology, Host(SPREAD).functions) == ()


def test_many_root_ports_of_one_host_bridge_share_devices() -> None:
    host = Host(
        ", ".join(f"slot({', '.join(f'rp:r{n}{m}(nvme)' for m in range(8))})" for n in range(4))
    )
    plan = replicated(host.topology, host.functions)
    guest = topology(plan, host.topology)
    ports = [guest.path_to_root(guest[plan.address(bdf)])[-1] for bdf in plan.functions.values()]
    assert len({port.bdf for port in ports}) == 32
    assert {port.bdf.device for port in ports} == {1, 2, 3, 4}
    assert plan.mirrors["rp31"] == host["r37"]

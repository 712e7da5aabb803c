"""Planned VMs on a real kernel: the generated arguments give the guest that was predicted.

Hosts are software machines; their NVMe drives are assigned, and drives of QEMU's stand in for
them. The guest's kernel is asked for its tree, groups, NUMA nodes and P2P decisions.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import vm_plan_guest

from vfiokit.assign.vmconfig import qemu
from vfiokit.assign.vmconfig.assessment import assess
from vfiokit.assign.vmconfig.settings import GIB, Settings
from vfiokit.host.processor import Cpu
from vfiokit.lab import Lab, Scenario, guest_run
from vfiokit.lab.qemu_arguments import Disk, Hardware
from vfiokit.machine.assembly import assemble
from vfiokit.p2p import MapType, Peers
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu, flat
from vfiokit.p2p.guest_topology import groups, topology
from vfiokit.p2p.guest_tree import replicated
from vfiokit.p2p.guest_verdict import Verdict, compare
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Recorded, Topology

sys.path.append(str(Path(__file__).resolve().parents[1] / "oracle"))

import p2p_guest

INTEL, ZEN = Cpu("GenuineIntel", 6, 0x55), Cpu("AuthenticAMD", 0x17, 1)
PRESETS = {INTEL: "intel", ZEN: "zen"}

PLAIN = "rp0(sw0(nvme:a, nvme:b)), rp1(nvme:c)"
REDIRECTING = "rp0(sw0 acs(nvme:a, nvme:b)), rp1(sw1(nvme:c, nvme:d))"
SPREAD = "rp0(sw0(nvme:a, nvme:b)), hb:far bus=40(rp1(sw1(nvme:c)), rp2(nvme:d))"
MIXED = "rp0 noacs(slot(nvme:a, nvme:b)), rp1(sw0(port acs(nvme:c), port(sw1(nvme:d))))"


@dataclass(frozen=True)
class Vm:
    """One planned machine."""

    host: str
    variant: str
    cpu: Cpu
    viommu: Viommu = Viommu.NONE
    nodes: int = 0
    """NUMA nodes of the host, a host bridge to each; 0: it tells of none."""

    def __str__(self) -> str:
        return f"{self.variant}-{PRESETS[self.cpu]}-{self.viommu}-{self.host.split('(')[1][:8]}"


VMS = (
    Vm(PLAIN, "flat", INTEL),
    Vm(PLAIN, "replicated", INTEL),
    Vm(REDIRECTING, "replicated", INTEL, Viommu.INTEL),
    Vm(REDIRECTING, "replicated", ZEN, Viommu.INTEL_PT),
    Vm(SPREAD, "replicated", ZEN, Viommu.VIRTIO, nodes=2),
    Vm(MIXED, "replicated", INTEL, Viommu.INTEL_PT),
    Vm(SPREAD, "flat", ZEN, Viommu.INTEL),
    Vm(SPREAD, "islands", INTEL, nodes=2),
)


def host_of(vm: Vm) -> tuple[Topology, list[Function]]:
    assembly = assemble(vm.host)
    known = assembly.topology()
    names = [node.name for node in assembly.blueprint.endpoints()]
    if vm.nodes:
        changed = [
            Function(
                each.bdf,
                each.config,
                each.identity,
                resources=each.resources,
                recorded=Recorded(numa_node=int(each.bdf.bus >= 0x40)),
            )
            for each in known
        ]
        known = Topology(changed, [(bus.domain, bus.bus) for bus in known.host_bridges])
    return known, [known[assembly[name]] for name in names]


def plan_of(vm: Vm, host: Topology, functions: list[Function]) -> GuestPlan:
    if vm.variant == "flat":
        return flat(functions, viommu=vm.viommu)
    if vm.variant == "islands":
        made = assess(host, functions, cpu=vm.cpu, viommu=vm.viommu, numa=bool(vm.nodes))
        return made.view(Variant.ISLANDS).plan
    return replicated(host, functions, viommu=vm.viommu, numa=bool(vm.nodes))


def boot(lab: Lab, vm: Vm, plan: GuestPlan, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the kernel says, in a guest of the plan's own arguments."""
    settings = Settings(memory=GIB, cpus=2)

    def build(_blueprint: object, _qemu: object, folder: str) -> Hardware:
        disks = [Disk(f"{folder}/disk{n}", 1 << 20) for n in range(len(plan.functions))]
        stand_ins = {
            host: qemu.nvme_stand_in(number, disks[number].path)
            for number, host in enumerate(plan.functions.values())
        }
        # The machine that tests run on need not have the host's NUMA nodes.
        memory = (re.sub(",host-nodes=.*", "", word) for word in qemu.numa(plan, settings))
        words = (*memory, *qemu.devices(plan, settings, stand_ins))
        return Hardware(words, tuple(disks))

    monkeypatch.setattr(guest_run, "build", build)
    changed = lab.with_changes(
        topology=plan.blueprint, cpu=PRESETS[vm.cpu], iommu=str(vm.viommu), smp=2, timeout_s=240
    )
    scenarios = [
        Scenario(p2p_guest.record, ([{}], {}, ""), timeout_s=200),
        Scenario(vm_plan_guest.numa_nodes),
    ]
    record, nodes = changed.run_batch(scenarios)
    answer: dict[str, Any] = record.require()[0]
    return {**answer, "numa": nodes.require()}


def seen(answer: dict[str, Any]) -> dict[Bdf, Function]:
    return {
        Bdf.parse(name): Function(Bdf.parse(name), ConfigSpace(bytes.fromhex(each["config"])))
        for name, each in answer["functions"].items()
    }


@pytest.mark.parametrize(
    "vm",
    [
        vm if number in (0, 2, 7) else pytest.param(vm, marks=pytest.mark.slow)
        for number, vm in enumerate(VMS)
    ],
    ids=str,
)
def test_a_real_guest_is_as_planned(vm: Vm, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    host, functions = host_of(vm)
    plan = plan_of(vm, host, functions)
    guest = topology(plan, host)
    peers = Peers(guest, cpu=vm.cpu)
    answer = boot(lab, vm, plan, monkeypatch)
    real = seen(answer)

    for function in guest:
        told, actual = answer["functions"][str(function.bdf)], real[function.bdf]
        above = guest.upstream_bridge(function)
        parent = str(above.bdf) if above is not None else str(guest.host_bridge_of(function))
        assert told["parent"] == parent
        assert (function.identity[:3]) == (actual.identity[:3])
        assert function.port_type == actual.port_type
        assert function.header_type == actual.header_type
        assert function.acs_capability == actual.acs_capability
        assert function.acs_control == actual.acs_control
        assert function.secondary_bus == actual.secondary_bus
        assert function.subordinate_bus == actual.subordinate_bus
        if function.recorded.numa_node is not None:
            assert answer["numa"][str(function.bdf)] == function.recorded.numa_node

    pairs = {(pair["provider"], pair["client"]): pair for pair in answer["pairs"]}
    assert len(pairs) == len(functions) ** 2
    compared = compare(Peers(host, cpu=vm.cpu), plan, peers)
    for (provider, client), pair in pairs.items():
        expected = peers.map_type(Bdf.parse(provider), Bdf.parse(client))
        assert pair["map_type"] == expected.map_type.name, pair
        if expected.map_type is MapType.NOT_SUPPORTED:
            assert (pair["errno"], pair["data"]) == ("EINVAL", "wrong"), pair
            continue
        assert pair["distance"] == expected.distance, pair
        if provider == client:
            continue
        # By bus address around a translating IOMMU: what the comparison calls corruption.
        (verdict,) = (
            each.verdict
            for each in compared
            if {plan.address(each.one), plan.address(each.other)}
            == {Bdf.parse(provider), Bdf.parse(client)}
        )
        bypasses = expected.map_type is MapType.BUS_ADDR and vm.viommu.translates
        assert pair["data"] == ("wrong" if bypasses else "right"), pair
        assert bypasses <= (verdict is Verdict.CORRUPTS)

    check_groups(plan, guest, answer)


def check_groups(plan: GuestPlan, guest: Topology, answer: dict[str, Any]) -> None:
    predicted = groups(plan, guest)
    numbers = {name: each["iommu_group"] for name, each in answer["functions"].items()}
    if predicted is None:
        assert set(numbers.values()) == {None}
        return
    ours = {str(function.bdf) for function in guest}
    together: dict[int, set[str]] = {}
    for name in ours:
        together.setdefault(numbers[name], set()).add(name)
    expected = {frozenset(map(str, group.members)) for group in predicted.groups}
    assert {frozenset(group) for group in together.values()} == expected

"""NCCL topology files for guests, by the rules that NCCL's documentation and issues state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm_hosts import GPU, INTEL, NIC, SPREAD, Host, host_texts

from vfiokit.assign.vmconfig import nccl
from vfiokit.assign.vmconfig.settings import Settings
from vfiokit.errors import UsageError
from vfiokit.host.nccl import NcclSystem, Node, read, write
from vfiokit.p2p import Peers
from vfiokit.p2p.guest import GuestPlan, flat
from vfiokit.p2p.guest_topology import topology
from vfiokit.p2p.guest_tree import replicated
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.selector import select
from vfiokit.pci.topology import Topology

SHARED = Path(os.environ.get("VFIOKIT_SHARED") or Path(__file__).resolve().parents[2] / "../shared")
FOLDER = SHARED / "data" / "nccl"
FILES = sorted(FOLDER.glob("*.xml")) if FOLDER.exists() else []


def missing() -> None:
    if os.environ.get("CI"):
        pytest.fail("no NCCL topology files; VFIOKIT_SHARED names their folder")
    pytest.skip("no NCCL topology files")


# -- what NCCL accepts ------------------------------------------------------------------------


def violations(text: str, guest: Topology, plan: GuestPlan) -> Iterator[str]:
    """Where a file breaks the rules for one that describes a guest.

    NVIDIA/nccl#1843 and nccl-tests#86: keep cpu and pci only, bus ids are the guest's, parents may
    be invented with ids that the guest does not have; aws-ofi-nccl#476: a cpu without arch is
    fatal. xml.cc takes what is missing from sysfs, which has nothing about an invented parent.
    """
    system = read(text)
    if system.root.tag != "system" or system.version != "1":
        yield "the root is <system version=1>"
    if {node.tag for node in system.root.walk()} - {"system", "cpu", "pci"}:
        yield "only cpu and pci"
    numbers = [cpu.attributes.get("numaid") for cpu in system.root.children]
    if any(cpu.tag != "cpu" for cpu in system.root.children) or len(set(numbers)) != len(numbers):
        yield "below the root are cpus, a NUMA node each"
    for cpu in system.root.children:
        for name in ("numaid", "affinity", "arch", "vendor", "familyid", "modelid"):
            if name not in cpu.attributes:
                yield f"a cpu has {name}"
        if not re.fullmatch("[0-9a-f]{8}(,[0-9a-f]{8})*", cpu.attributes["affinity"]):
            yield "affinity is a mask as sysfs prints it"
    yield from _pci_violations(system, guest, plan)
    if write(system) != text:
        yield "it reads back to what was written"


def _pci_violations(system: NcclSystem, guest: Topology, plan: GuestPlan) -> Iterator[str]:
    ours = {plan.address(bdf) for bdf in plan.functions.values()}
    seen: set[Bdf] = set()
    for node in system.root.walk():
        if node.tag != "pci":
            continue
        bdf = Bdf.parse(node.attributes["busid"])
        if bdf in seen:
            yield f"{bdf} is there twice"
        seen.add(bdf)
        if node.children:
            if bdf in guest:
                yield f"the switch {bdf} has an address that the guest has too"
            if node.attributes.get("class") != "0x060400":
                yield f"the switch {bdf} is a bridge"
            for name in ("vendor", "device", "subsystem_vendor", "subsystem_device"):
                if node.attributes.get(name) != "0x0000":
                    yield f"{name} of the switch {bdf} is invented"
            if not {"link_speed", "link_width"} <= node.attributes.keys():
                yield f"the switch {bdf} has a link: the guest's sysfs tells nothing of it"
        elif bdf not in ours:
            yield f"{bdf} is no function of the guest"
        elif int(node.attributes["class"], 16) != guest[bdf].identity.class_code:
            yield f"the class of {bdf} is the guest's"


def paths(system: NcclSystem) -> dict[frozenset[str], str]:
    """NCCL's path type of each pair of leaves: PIX PXB PHB SYS (``src/graph/topo.h``).

    PIX: one switch; PXB: several, without the CPU; PHB: the same CPU; SYS: different ones.
    """
    ways: dict[str, list[str]] = {}

    def visit(node: Node, above: list[str]) -> None:
        here = node.attributes.get("busid") or f"cpu{node.attributes.get('numaid')}"
        if node.tag == "pci" and not node.children:
            ways[here] = above
        for child in node.children:
            visit(child, [*above, here])

    for cpu in system.root.children:
        visit(cpu, [])
    found = {}
    for one, other in combinations(ways, 2):
        ours, theirs = ways[one], ways[other]
        common = [a for a, b in zip(ours, theirs, strict=False) if a == b]
        if not common:
            kind = "SYS"
        elif len(common) == 1:
            kind = "PHB"
        else:
            switches = len(ours) - len(common) + len(theirs) - len(common) + 1
            kind = "PIX" if switches == 1 else "PXB"
        found[frozenset((one, other))] = kind
    return found


def planned(given: Topology, is_flat: bool, *selectors: str) -> GuestPlan:
    names = selectors or ("gpu", "nic")
    functions = list({each.bdf: each for name in names for each in select(given, name)}.values())
    return flat(functions) if is_flat else replicated(given, functions)


# -- real files -------------------------------------------------------------------------------


def test_there_are_files_to_read() -> None:
    if not FILES:
        missing()
    assert len(FILES) >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_file_survives_reading_and_writing(path: Path) -> None:
    system = read(path.read_bytes())
    assert read(write(system)) == system


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_matrix_of_a_real_machine_has_its_islands(path: Path) -> None:
    host = read(path.read_bytes()).topology()
    functions = [*select(host, "gpu"), *select(host, "nic")]
    assert len(functions) >= 9
    peers = Peers(host)
    codes = {
        frozenset((one.bdf, other.bdf)): peers.code(one.bdf, other.bdf)
        for one, other in combinations(functions, 2)
    }
    assert set(codes.values()) <= {"PIX", "PXB", "PHB", "NODE", "SYS"}
    # Every GPU has a network card below its own switch.
    nics = {function.bdf for function in select(host, "nic")}
    for gpu in select(host, "gpu"):
        assert any(codes[frozenset((gpu.bdf, nic))] in ("PIX", "PXB") for nic in nics), gpu


@pytest.mark.parametrize("is_flat", [True, False], ids=["flat", "replicated"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_guest_of_a_real_machine_gets_a_file_by_the_rules(path: Path, is_flat: bool) -> None:
    host = read(path.read_bytes()).topology()
    plan = planned(host, is_flat)
    text = nccl.render(plan, Settings(cpus=96), host, None)
    guest = topology(plan, host)
    assert list(violations(text, guest, plan)) == []
    assert len(paths(read(text))) == len(list(combinations(plan.functions, 2)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_paths_of_a_real_machine_are_those_of_its_guest(path: Path) -> None:
    """The file that was read is the witness: NCCL's own path types, before and after."""
    system = read(path.read_bytes())
    host = system.topology()
    plan = planned(host, False)
    before = paths(stripped(system))
    after = paths(nccl.system(plan, Settings(cpus=96), host, None))
    renamed = {
        frozenset(str(plan.address(Bdf.parse(busid))) for busid in pair): kind
        for pair, kind in before.items()
    }
    assert after == renamed


def stripped(system: NcclSystem) -> NcclSystem:
    """GPUs and network cards as leaves; everything else that is no switch left out."""

    def keep(node: Node) -> Node | None:
        if node.tag not in ("system", "cpu", "pci"):
            return None
        children = tuple(kept for child in node.children if (kept := keep(child)) is not None)
        code = node.attributes.get("class", "")
        if node.tag == "pci" and not children and not code.startswith(("0x0302", "0x0300", "0x02")):
            return None
        return Node(node.tag, node.attributes, children)

    root = keep(system.root)
    assert root is not None
    return NcclSystem(root)


# -- software machines ------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(host_texts(), st.booleans(), st.booleans(), st.data())
def test_any_guest_s_file_keeps_the_rules_and_the_distances(
    text: str, is_flat: bool, numa: bool, data: st.DataObject
) -> None:
    base = Host(text)
    kinds = {name: data.draw(st.sampled_from([GPU, NIC])) for name in base.names}
    host = Host(text, numa=numa, **kinds)
    plan = flat(host.functions) if is_flat else replicated(host.topology, host.functions)
    system = nccl.system(plan, Settings(), host.topology, INTEL)
    guest = topology(plan, host.topology)
    assert list(violations(write(system), guest, plan)) == []
    peers = Peers(host.topology, cpu=INTEL)
    kinds_of = paths(system)
    for one, other in combinations(plan.functions.values(), 2):
        found = kinds_of[frozenset((str(plan.address(one)), str(plan.address(other))))]
        code = peers.code(one, other)
        common = peers.map_type(one, other).common
        above = host.topology.path_to_root(host.topology[one])
        if common is not None and any(each.port_type is PortType.UPSTREAM for each in above):
            assert found == code
        elif common is not None:
            assert found == "PHB"  # functions below one root port: NCCL knows no root ports
        elif is_flat or not numa:
            assert found == "PHB"  # one NUMA node in the guest
        else:
            assert (found == "SYS") == (code == "SYS")


def test_affinity_is_a_mask_of_words() -> None:
    assert nccl.affinity(0, 8, 16) == "000000ff"
    assert nccl.affinity(8, 8, 16) == "0000ff00"
    assert nccl.affinity(48, 48, 96) == "ffffffff,ffff0000,00000000"
    assert nccl.affinity(0, 1, 33) == "00000000,00000001"


@given(st.integers(1, 200), st.integers(0, 199), st.integers(1, 200))
def test_masks_hold_the_processors(count: int, first: int, total: int) -> None:
    text = nccl.affinity(first, count, max(total, first + count))
    assert int(text.replace(",", ""), 16) == ((1 << count) - 1) << first


def test_nothing_for_nccl_is_an_error() -> None:
    host = Host(SPREAD)
    with pytest.raises(UsageError, match="no GPU and no network card"):
        nccl.system(flat(host.functions), Settings(), host.topology, INTEL)


def test_what_nccl_does_not_use_is_left_out() -> None:
    host = Host(SPREAD, a=GPU, c=NIC)
    plan = flat(host.functions)
    system = nccl.system(plan, Settings(), host.topology, INTEL)
    leaves = [node for node in system.root.walk() if node.tag == "pci" and not node.children]
    assert [node.attributes["busid"] for node in leaves] == [
        str(plan.address(host["a"])),
        str(plan.address(host["c"])),
    ]


def test_a_single_guest_node_hides_the_host_s_and_it_is_known() -> None:
    host = Host(SPREAD, numa=True)
    assert nccl.numa_is_lost(flat(host.functions), host.topology)
    assert not nccl.numa_is_lost(replicated(host.topology, host.functions), host.topology)

"""Predicted IOMMU groups against those that a real kernel forms, for random topologies."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from random import Random
from typing import NamedTuple

import group_scenarios
import pytest
from drawing import Artist, Drawn

from vfiokit.host.archive import read_capture
from vfiokit.host.sysfs import read_topology
from vfiokit.isolation import compare, predict
from vfiokit.lab import Lab, Scenario
from vfiokit.machine.assembly import assemble
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import Endpoint
from vfiokit.pci.topology import Topology

SEED = int(os.environ.get("VFIOKIT_ORACLE_SEED", "1"))
"""Another number draws other topologies."""

IOMMU_FUNCTIONS = {(0x1AF4, 0x1057), (0x1022, 0x1419)}
"""Ids of virtio-iommu and of AMD-Vi."""
CONSTRUCTS = (
    "rp(",
    "rp noacs(",
    "slot(rp",
    "sw(port(",
    "sw(port acs(",
    "pcie-pci-bridge(",
    "pci-bridge(",
    "vfs=",
    "virtio-blk",
    "ivshmem",
)


class Boot(NamedTuple):
    """One guest of the oracle."""

    iommu: str
    acs_parameter: bool
    """Whether ``pci=config_acs=`` sets random ACS bits."""
    bridges: bool = True
    """QEMU's virtio-iommu does not know the requester ID of conventional bridges."""
    newer: bool = False
    """Needs a newer QEMU."""


BOOTS = (
    Boot("intel", acs_parameter=False),
    Boot("intel", acs_parameter=True),
    Boot("intel-pt", acs_parameter=True),
    Boot("virtio", acs_parameter=True, bridges=False),
    Boot("amd", acs_parameter=True, newer=True),
)


def draw(boot: Boot) -> tuple[Drawn, str]:
    artist = Artist(Random(f"{SEED} {BOOTS.index(boot)}"), bridges=boot.bridges)
    drawn = artist.machine(1000 * SEED + BOOTS.index(boot))
    return drawn, artist.acs_parameter(drawn) if boot.acs_parameter else ""


def captured(lab: Lab, boot: Boot, folder: Path) -> tuple[Drawn, Topology]:
    """Boot and bring the host's files out, read back as any user would."""
    drawn, parameter = draw(boot)
    vfs = {
        node.name: node.vfs
        for node in drawn.blueprint.walk()
        if isinstance(node, Endpoint) and node.vfs
    }
    changed = lab.with_changes(
        topology=drawn.blueprint, iommu=boot.iommu, append=[parameter] if parameter else []
    )
    (outcome,) = changed.run_batch([Scenario(group_scenarios.capture, (vfs,))])
    path = folder / "capture.tar.zst"
    path.write_bytes(base64.b64decode(outcome.require()))
    topology = read_topology(read_capture(str(path)))
    assert sum(function.is_virtual for function in topology) == sum(vfs.values())
    return drawn, topology


def below(topology: Topology, addresses: set[Bdf]) -> set[Bdf]:
    """The functions at ``addresses``, and virtual functions of theirs."""
    return {
        function.bdf
        for function in topology
        if function.bdf in addresses or function.physfn in addresses
    }


def recorded_groups(topology: Topology) -> dict[int, set[Bdf]]:
    groups: dict[int, set[Bdf]] = {}
    for function in topology:
        number = function.recorded.iommu_group
        if number is None:
            # An IOMMU that is a PCI function does not translate for itself.
            assert function.identity[:2] in IOMMU_FUNCTIONS, function
            continue
        groups.setdefault(number, set()).add(function.bdf)
    return groups


def test_what_is_drawn_is_worth_asking() -> None:
    trees = [tree for boot in BOOTS for tree in draw(boot)[0].trees]
    assert len(set(trees)) >= 30
    if "VFIOKIT_ORACLE_SEED" not in os.environ:
        for construct in CONSTRUCTS:
            assert sum(construct in tree for tree in trees) >= 2, construct
    assert all(len(draw(boot)[0].blueprint.host_bridges) == 3 for boot in BOOTS)


@pytest.mark.slow
@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: f"{boot.iommu}-{boot.acs_parameter}")
def test_groups_of_random_trees_are_the_kernel_s(
    request: pytest.FixtureRequest, boot: Boot, tmp_path: Path
) -> None:
    lab = request.getfixturevalue("newer_lab" if boot.newer else "lab")
    drawn, topology = captured(lab.with_changes(timeout_s=240), boot, tmp_path)
    grouping = predict(topology)
    wrong = []
    recorded = recorded_groups(topology)
    places = drawn.blueprint.places()
    for text, names in drawn.names():
        members = below(topology, {places[name].bdf for name in names})
        assert members >= {places[name].bdf for name in names}, text
        for bdf in members:
            number = topology[bdf].recorded.iommu_group
            assert number is not None
            if set(grouping.of(bdf).members) != recorded[number]:
                steps = [step.sentence for step in grouping.steps(bdf)]
                wrong.append((text, str(bdf), sorted(map(str, recorded[number])), steps))
    assert not wrong
    # The chipset and the lab's own devices too.
    comparison = compare(grouping, topology)
    assert comparison.differences == ()
    assert comparison.total == comparison.agree == len(recorded)
    sizes = [len(members) for members in recorded.values()]
    assert sizes.count(1) >= 5, "nothing is isolated: the oracle cannot tell much"
    assert sum(size > 2 for size in sizes) >= 2, "nothing is shared: the oracle cannot tell much"
    if not boot.acs_parameter:
        check_software_machine(drawn, topology)


def check_software_machine(drawn: Drawn, topology: Topology) -> None:
    """The machine assembled from the same text has the same groups at the same addresses."""
    assembly = assemble(drawn.blueprint)
    addresses = {place.bdf for place in drawn.blueprint.places().values()}

    def parts(of: Topology) -> set[frozenset[Bdf]]:
        groups = recorded_groups(of).values()
        return {frozenset(members & addresses) for members in groups if members & addresses}

    assert parts(assembly.topology()) == parts(topology)

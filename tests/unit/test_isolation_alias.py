"""``pci_for_each_dma_alias``: under which requester IDs DMA reaches the IOMMU."""

from __future__ import annotations

import pytest
from isolation_topologies import Builder, bdf

from vfiokit.isolation.alias import AliasSource, alias_devfns, aliases, are_dma_aliases
from vfiokit.pci.capability.express import PortType


def ids(builder, address, *, quirks=True):
    topology = builder.topology()
    found = aliases(topology, topology[bdf(address)], quirks=quirks)
    return [(alias.requester_id, alias.source) for alias in found]


def test_function_behind_ports_has_only_its_own_id():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.upstream("01:00.0", 2)
    builder.downstream("02:00.0", 3)
    builder.endpoint("03:00.0")
    assert ids(builder, "03:00.0") == [(0x0300, AliasSource.OWN)]


def test_pcie_to_pci_bridge_replaces_the_id_by_its_secondary_bus():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.add("01:00.0", PortType.PCIE_TO_PCI_BRIDGE, below=2)
    builder.add("02:03.0")
    topology = builder.topology()
    found = aliases(topology, topology[bdf("02:03.0")])
    assert [alias.requester_id for alias in found] == [0x0218, 0x0200]
    assert found[1].device == bdf("01:00.0")
    assert "0000:02:00.0" in found[1].text()
    assert "0000:01:00.0" in found[1].text()


def test_aspeed_bridge_passes_ids_on():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.add("01:00.0", PortType.PCIE_TO_PCI_BRIDGE, below=2, ids=(0x1A03, 0x1150))
    builder.add("02:03.0")
    assert ids(builder, "02:03.0") == [(0x0218, AliasSource.OWN)]
    assert len(ids(builder, "02:03.0", quirks=False)) == 2


def test_conventional_bridge_uses_its_own_id():
    builder = Builder()
    builder.add("00:1e.0", below=1)
    builder.add("01:05.0")
    assert ids(builder, "01:05.0") == [
        (0x0128, AliasSource.OWN),
        (0x00F0, AliasSource.CONVENTIONAL_BRIDGE),
    ]


def test_cardbus_bridge_counts_as_conventional():
    builder = Builder()
    builder.add("00:1e.0", below=1, bridge_header=2, class_code=0x060700)
    builder.add("01:00.0")
    assert ids(builder, "01:00.0")[1] == (0x00F0, AliasSource.CONVENTIONAL_BRIDGE)


def test_pci_to_pcie_bridge_uses_its_own_id():
    builder = Builder()
    builder.add("00:1e.0", PortType.PCI_TO_PCIE_BRIDGE, below=1)
    builder.endpoint("01:00.0")
    assert ids(builder, "01:00.0")[1] == (0x00F0, AliasSource.PCI_TO_PCIE_BRIDGE)


@pytest.mark.parametrize(
    "bridge", [(0x1B21, 0x1080), (0x10E3, 0x8113), (0x1283, 0x8893), (0x8086, 0x244E)]
)
def test_bridge_without_pcie_capability_on_pcie_aliases_as_pcie_to_pci(bridge):
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.add("01:00.0", below=2, ids=bridge)
    builder.add("02:03.0")
    assert ids(builder, "02:03.0")[1] == (0x0200, AliasSource.PCIE_TO_PCI_BRIDGE)
    assert ids(builder, "02:03.0", quirks=False)[1] == (0x0100, AliasSource.CONVENTIONAL_BRIDGE)


def test_such_a_bridge_on_a_root_bus_or_below_a_pci_bridge_stays_conventional():
    root = Builder()
    root.add("00:1e.0", below=1, ids=(0x8086, 0x244E))
    root.add("01:05.0")
    assert ids(root, "01:05.0")[1] == (0x00F0, AliasSource.CONVENTIONAL_BRIDGE)
    nested = Builder()
    nested.add("00:01.0", PortType.PCIE_TO_PCI_BRIDGE, below=1)
    nested.add("01:02.0", below=2, ids=(0x1B21, 0x1080))
    nested.add("02:05.0")
    assert [alias for alias, _ in ids(nested, "02:05.0")] == [0x0228, 0x0110, 0x0100]


def test_nothing_is_seen_above_a_translation_root():
    builder = Builder()
    builder.add("00:1e.0", below=1)
    builder.add("01:00.0", below=2, ids=(0x14E4, 0x9000))
    builder.add("02:00.0")
    assert ids(builder, "02:00.0") == [(0x0200, AliasSource.OWN)]


def test_virtual_bus_is_skipped_on_the_way_up():
    builder = Builder()
    builder.add("00:1e.0", PortType.PCI_TO_PCIE_BRIDGE, below=1)
    builder.endpoint("01:00.0")
    builder.virtual("02:00.0", "01:00.0")
    assert ids(builder, "02:00.0") == [
        (0x0200, AliasSource.OWN),
        (0x00F0, AliasSource.PCI_TO_PCIE_BRIDGE),
    ]


@pytest.mark.parametrize(
    ("device", "address", "expected"),
    [
        ((0x1180, 0xE832), "05:00.3", {0x00}),
        ((0x1180, 0xE832), "05:00.0", set()),
        ((0x1B4B, 0x9230), "05:00.0", {0x01}),
        ((0x1B4B, 0x9230), "05:00.1", set()),
        ((0x8086, 0x2260), "05:00.0", {0x80, 0x88, 0x93}),
        ((0x10B5, 0x87B0), "05:00.0", set(range(1, 256))),
        ((0x8086, 0x2955), "05:00.0", {s << 3 | f for s in range(32) for f in range(5)} - {0}),
    ],
)
def test_alias_quirks_add_devfns_of_the_same_bus(device, address, expected):
    builder = Builder()
    builder.endpoint(address, ids=device)
    function = builder.functions[0]
    assert alias_devfns(function) == expected
    assert alias_devfns(function, quirks=False) == frozenset()


def test_adaptec_alias_asks_for_the_subsystem():
    builder = Builder()
    builder.endpoint("05:00.0", ids=(0x9005, 0x0285), subsystem=(0x9005, 0x02BC))
    builder.endpoint("06:00.0", ids=(0x9005, 0x0285), subsystem=(0x9005, 0x0290))
    assert ids(builder, "05:00.0")[1] == (0x0508, AliasSource.QUIRK)
    assert len(ids(builder, "06:00.0")) == 1


def test_alias_relation_holds_both_ways():
    builder = Builder()
    builder.endpoint("05:00.0", ids=(0x1B4B, 0x9230))
    builder.endpoint("05:00.1")
    builder.endpoint("05:00.2")
    first, second, third = builder.functions
    assert are_dma_aliases(first, second)
    assert are_dma_aliases(second, first)
    assert not are_dma_aliases(first, third)


def vmd():
    builder = Builder()
    builder.add("00:0e.0", PortType.RC_INTEGRATED_ENDPOINT, ids=(0x8086, 0x9A0B))
    builder.add("80:0e.0", PortType.RC_INTEGRATED_ENDPOINT, ids=(0x8086, 0x9A0B))
    for domain in ("10000", "10001"):
        builder.add(f"{domain}:e0:1d.0", PortType.ROOT_PORT, below=0xE1)
        builder.endpoint(f"{domain}:e1:00.0")
    return builder


def test_functions_behind_vmd_use_the_id_of_their_vmd_device():
    builder = vmd()
    assert ids(builder, "10000:e1:00.0") == [(0x0070, AliasSource.VMD)]
    assert ids(builder, "10001:e1:00.0") == [(0x8070, AliasSource.VMD)]


def test_capture_whose_virtual_buses_go_round_does_not_hang():
    builder = Builder()
    builder.virtual("05:00.0", "06:00.0")
    builder.virtual("06:00.0", "05:00.0")
    assert ids(builder, "05:00.0") == [(0x0500, AliasSource.OWN)]

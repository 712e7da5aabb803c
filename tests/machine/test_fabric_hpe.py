"""A recorded server rebuilt from its configuration bytes decodes addresses as its kernel did.

The oracle is sysfs ``resource`` of the recording: what Linux assigned and found decoded there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import vfiokit.data
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import Bridge
from vfiokit.pci.topology import Topology

CAPTURE = Path(vfiokit.data.__file__).parent / "hpe-gen9-vgpu-node.umockdev.zst"
IO, PREFETCH, WIDE = 0x100, 0x2000, 0x100000  # IORESOURCE_IO, _PREFETCH, _MEM_64
MEMORY_WINDOW, PREFETCH_WINDOW = 14, 15  # lines of a bridge's resource file


@pytest.fixture(scope="module")
def server() -> tuple[Topology, Machine]:
    topology = read_topology(open_tree(str(CAPTURE)))
    machine = Machine(ram=1 << 30, ram_base=1 << 44)
    for bridge in topology.host_bridges:
        machine.add_host_bridge(bridge.domain, bridge.bus)
    for function in topology:
        model = Bridge if function.is_bridge else Function
        config = ConfigModel(function.config.data, size=max(256, len(function.config)))
        bars = tuple(
            BarModel(
                bar.index,
                bar.size,
                memory=not bar.flags & IO,
                wide=bool(bar.flags & WIDE),
                prefetchable=bool(bar.flags & PREFETCH),
            )
            for bar in function.resources[: 2 if function.is_bridge else 6]
            if bar.size
        )
        made = model(function.bdf, config, bars)
        made.physfn = function.physfn
        machine.add(made)
    return topology, machine


def test_every_decoding_bar_answers_at_the_address_the_kernel_recorded(server):
    topology, machine = server
    checked = 0
    for function in machine.functions.values():
        for claim in machine.fabric.bar_claims(function):
            recorded = topology[function.bdf].resources[claim.bar]
            assert (claim.start, claim.end - 1) == (recorded.start, recorded.end)
            assert machine.fabric.decode(claim.start) == claim
            assert machine.fabric.decode(claim.end - 1) == claim
            checked += 1
    assert checked == 41


def test_bridge_windows_are_the_ones_the_kernel_recorded(server):
    topology, machine = server
    checked = 0
    for bridge in machine.functions.values():
        if not isinstance(bridge, Bridge):
            continue
        lines = topology[bridge.bdf].resources
        for index, window in (
            (MEMORY_WINDOW, bridge.memory_window),
            (PREFETCH_WINDOW, bridge.prefetch_window),
        ):
            recorded = lines[index] if index < len(lines) else None
            if recorded is not None and recorded.size:
                assert window == (recorded.start, recorded.end + 1)
                checked += 1
            else:
                assert window is None
    assert checked == 7


def test_every_recorded_function_hangs_below_the_bridge_the_topology_says(server):
    topology, machine = server
    for function in topology:
        above = topology.upstream_bridge(function)
        parent = machine.fabric.parent(machine.functions[function.bdf])
        assert (parent and parent.bdf) == (above and above.bdf)

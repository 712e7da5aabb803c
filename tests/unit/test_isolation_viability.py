"""Which drivers keep a group from being claimed."""

from __future__ import annotations

import pytest
from isolation_topologies import Builder, bdf

from vfiokit.isolation import blockers, predict
from vfiokit.isolation.viability import manages_own_dma


@pytest.mark.parametrize(
    "driver",
    ["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci", "xe-vfio-pci", "pci-stub", "pcieport"],
)
def test_drivers_that_leave_a_group_viable(driver):
    assert manages_own_dma(driver)


@pytest.mark.parametrize("driver", ["nvme", "shpchp", "vfio-platform", "notvfio-pci", "vfio-pcix"])
def test_drivers_that_do_not(driver):
    assert not manages_own_dma(driver)


def shared_group():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=None, driver="pcieport")
    builder.endpoint("01:00.0", driver="vfio-pci")
    builder.endpoint("01:01.0", driver="nvme")
    builder.endpoint("01:02.0")
    topology = builder.topology()
    return topology, predict(topology).groups[0]


def test_only_the_host_driver_blocks():
    topology, group = shared_group()
    assert blockers(topology, group) == {bdf("01:01.0"): "nvme"}


def test_current_drivers_can_be_given():
    topology, group = shared_group()
    assert blockers(topology, group, lambda _: None) == {}
    now = {bdf("00:01.0"): "pcieport", bdf("01:02.0"): "ahci"}
    assert blockers(topology, group, now.get) == {bdf("01:02.0"): "ahci"}

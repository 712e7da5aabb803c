"""May a group be handed to user space? Which drivers of its members stand in the way.

Source: Linux 7.2 ``drivers/iommu/iommu.c`` (DMA ownership): a group can be claimed while no member
is bound to a driver that uses the kernel's DMA API. Drivers that set ``driver_managed_dma`` do
not count: vfio-pci and its variants, pci-stub, and pcieport on bridges.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vfiokit.isolation.group import Group
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Topology

_VFIO = re.compile(r"(?:.*[-_])?vfio[-_]pci")
_HARMLESS = frozenset({"pci-stub", "pcieport"})


def manages_own_dma(driver: str) -> bool:
    """Whether a driver of this name leaves its group viable: ``vfio-pci``, ``mlx5_vfio_pci``…"""
    return driver in _HARMLESS or _VFIO.fullmatch(driver) is not None


def blockers(
    topology: Topology, group: Group, driver_of: Callable[[Bdf], str | None] | None = None
) -> dict[Bdf, str]:
    """Members of ``group`` that keep it from being claimed, with the driver each is bound to.

    Empty: the group is viable. ``driver_of`` gives the driver a function is bound to now;
    without it, the drivers recorded in ``topology`` count.
    """
    found: dict[Bdf, str] = {}
    for bdf in group.members:
        if driver_of is not None:
            driver = driver_of(bdf)
        else:
            function = topology.functions.get(bdf)
            driver = function.recorded.driver if function is not None else None
        if driver and not manages_own_dma(driver):
            found[bdf] = driver
    return found

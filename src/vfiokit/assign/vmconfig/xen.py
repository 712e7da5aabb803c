"""An ``xl`` domain configuration for a guest plan.

Xen's HVM guests have QEMU's i440FX: one conventional bus, where each function gets a virtual slot.
Source: ``xl.cfg(5)``, ``xl-pci-configuration(5)``.
"""

from __future__ import annotations

import json

from vfiokit.assign.vmconfig.settings import MIB, Settings
from vfiokit.errors import UsageError
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu
from vfiokit.pci.address import Bdf


def render(plan: GuestPlan, settings: Settings) -> str:
    """The text of a configuration file; it has no disk and no network yet.

    Raises :class:`~vfiokit.errors.UsageError` for a plan with ports, for an IOMMU in the guest and
    for huge pages, which Xen's guests have not.
    """
    if plan.variant is not Variant.ROOT_BUS:
        raise UsageError("Xen's HVM guests have no PCI ports", hint="use the flat variant")
    if plan.viommu is not Viommu.NONE:
        raise UsageError("xl has no IOMMU for guests")
    if settings.hugepages:
        raise UsageError("Xen's guests take no huge pages from the host")
    lines = [
        f"name = {json.dumps(settings.name)}",
        'type = "hvm"',
        f"memory = {settings.memory // MIB}",
        f"vcpus = {settings.cpus}",
        "# Reserved ranges of the devices are left out of the guest's memory.",
        'rdm = "strategy=host,policy=relaxed"',
        "pci = [",
        *(f"    {json.dumps(_device(plan, host))}," for host in plan.functions.values()),
        "]",
    ]
    return "\n".join(lines) + "\n"


def _device(plan: GuestPlan, host: Bdf) -> str:
    return f"{host}@{plan.address(host).device:02x},seize=1"

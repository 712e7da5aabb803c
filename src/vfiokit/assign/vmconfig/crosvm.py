"""crosvm's command line for a guest plan.

Functions are on the root bus, each at the address of the plan. Source: crosvm ``run --vfio``
(``guest-address``, ``iommu``), the crosvm book.
"""

from __future__ import annotations

from vfiokit.assign.vmconfig.settings import MIB, Settings
from vfiokit.errors import UsageError
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu
from vfiokit.pci.address import Bdf


def render(plan: GuestPlan, settings: Settings) -> str:
    """A shell command; one option a line, the kernel's path last.

    Raises :class:`~vfiokit.errors.UsageError` for a plan with ports, for a VT-d and for cliques.
    """
    if plan.variant is not Variant.ROOT_BUS:
        raise UsageError("crosvm has no PCI ports to plan with", hint="use the flat variant")
    if plan.viommu not in (Viommu.NONE, Viommu.VIRTIO):
        raise UsageError("crosvm's IOMMU is virtio-iommu", hint="use --viommu virtio")
    lines = ["crosvm run", f"--cpus num-cores={settings.cpus}"]
    lines.append(f"--mem size={settings.memory // MIB}")
    if settings.hugepages:
        lines.append("--hugepages")
    lines += [f"--vfio {_device(plan, host)}" for host in plan.functions.values()]
    lines.append("KERNEL")
    return " \\\n  ".join(lines) + "\n"


def _device(plan: GuestPlan, host: Bdf) -> str:
    iommu = "viommu" if plan.viommu is Viommu.VIRTIO else "off"
    address = str(plan.address(host)).partition(":")[2]
    return f"/sys/bus/pci/devices/{host},iommu={iommu},guest-address={address}"

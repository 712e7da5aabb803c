"""Cloud Hypervisor's command line for a guest plan.

It has no root ports and no switches: functions are on the root bus, at device numbers given in the
order of the command line. Source: cloud-hypervisor ``docs/vfio.md``, ``docs/memory.md``.
"""

from __future__ import annotations

from vfiokit.assign.vmconfig.settings import Settings, size_text
from vfiokit.errors import UsageError
from vfiokit.p2p.guest import GuestPlan, Variant, Viommu
from vfiokit.pci.address import Bdf


def render(plan: GuestPlan, settings: Settings) -> str:
    """A shell command; one option a line.

    Raises :class:`~vfiokit.errors.UsageError` for a plan with ports, and for a VT-d, which it has
    not.
    """
    if plan.variant is not Variant.ROOT_BUS:
        raise UsageError("Cloud Hypervisor has no PCI ports", hint="use the flat variant")
    if plan.viommu not in (Viommu.NONE, Viommu.VIRTIO):
        raise UsageError("Cloud Hypervisor's IOMMU is virtio-iommu", hint="use --viommu virtio")
    memory = f"size={size_text(settings.memory)}"
    if settings.hugepages:
        memory += f",hugepages=on,hugepage_size={size_text(settings.hugepages)}"
    lines = [
        "cloud-hypervisor",
        f"--cpus boot={settings.cpus}",
        f"--memory {memory}",
        "--device",
        *(f"  {_device(plan, settings, host)}" for host in plan.functions.values()),
    ]
    return " \\\n  ".join(lines) + "\n"


def _device(plan: GuestPlan, settings: Settings, host: Bdf) -> str:
    words = [f"path=/sys/bus/pci/devices/{host}/", f"id={plan.name(host)}"]
    if plan.viommu is Viommu.VIRTIO:
        words.append("iommu=on")
    if host in settings.cliques:
        words.append(f"x_nv_gpudirect_clique={settings.cliques[host]}")
    return ",".join(words)

"""From the name of a hypervisor to what it takes."""

from __future__ import annotations

from collections.abc import Callable

from vfiokit.assign.vmconfig import cloud_hypervisor, crosvm, libvirt, nccl, qemu, xen
from vfiokit.assign.vmconfig.settings import Settings
from vfiokit.errors import UsageError
from vfiokit.host.processor import Cpu
from vfiokit.p2p.guest import (
    CLOUD_HYPERVISOR,
    CROSVM,
    LIBVIRT,
    QEMU,
    XL,
    GuestPlan,
    Machine,
)
from vfiokit.pci.topology import Topology

NCCL = "nccl"
"""No hypervisor, but a file for the guest: NCCL's topology, with addresses of QEMU's machine."""

_RENDERERS: dict[str, tuple[Machine, Callable[[GuestPlan, Settings], str]]] = {
    "qemu": (QEMU, qemu.render),
    "libvirt": (LIBVIRT, libvirt.render),
    "cloud-hypervisor": (CLOUD_HYPERVISOR, cloud_hypervisor.render),
    "crosvm": (CROSVM, crosvm.render),
    "xl": (XL, xen.render),
}
TARGETS = (*_RENDERERS, NCCL)
"""What a plan can be written for."""


def machine_of(target: str) -> Machine:
    """The machine behind a target of :data:`TARGETS` (:class:`~vfiokit.errors.UsageError`)."""
    if target == NCCL:
        return QEMU
    try:
        return _RENDERERS[target][0]
    except KeyError:
        raise UsageError(f"{target!r} is none of {', '.join(TARGETS)}") from None


def render(
    target: str, plan: GuestPlan, settings: Settings, host: Topology, cpu: Cpu | None
) -> str:
    """The text of ``plan`` for ``target``; :class:`~vfiokit.errors.UsageError` for what the target
    cannot express.
    """
    if target == NCCL:
        return nccl.render(plan, settings, host, cpu)
    machine_of(target)
    return _RENDERERS[target][1](plan, settings)

"""Facts about a machine that its configuration bytes do not carry."""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.pci.topology import Topology

_AMD_VENDORS = frozenset({0x1002, 0x1022, 0x1D94})
_CLASS_IOMMU = 0x0806


class Platform(NamedTuple):
    """What firmware and kernel parameters add to the configuration bytes."""

    acs_requested: bool = True
    """Whether an IOMMU driver asked for ACS (``pci_request_acs``: Intel DMAR, AMD IVRS, Arm IORT,
    VIOT, device tree, Xen dom0), so that the kernel's enabling, quirks included, ran."""
    ivrs: bool | None = None
    """Whether ACPI has an IVRS table (AMD-Vi). ``None``: guessed from the functions present."""
    noats: bool = False
    """``pci=noats``: the kernel adds Translation Blocking to what it enables."""
    program_acs: bool = False
    """Take ACS Control as ``pci_enable_acs`` would leave it, not as captured: for a capture made
    before an IOMMU was switched on. Needs ``acs_requested``."""

    def resolve(self, topology: Topology) -> Platform:
        """The same facts with every guess made."""
        if self.ivrs is not None:
            return self
        return self._replace(ivrs=has_amd_iommu(topology))


CAPTURED = Platform()
"""The defaults: an IOMMU in use, registers as captured."""


def has_amd_iommu(topology: Topology) -> bool:
    """Whether an AMD or Hygon IOMMU function (class 08.06) is present.

    AMD-Vi is a PCI function of its own, and firmware that leaves out the IVRS table hides it.
    """
    return any(
        function.identity.class_code >> 8 == _CLASS_IOMMU
        and function.identity.vendor_id in _AMD_VENDORS
        for function in topology
    )

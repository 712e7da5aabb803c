"""Configuration space of an assigned function: what the guest sees of the device's own.

Source: QEMU ``hw/vfio/pci.c`` (``vfio_pci_add_capability``, ``vfio_pci_setup_pcie_cap``,
``vfio_add_ext_cap``), on top of what Linux ``vfio_pci_config.c`` shows.
"""

from __future__ import annotations

from vfiokit.abi import pci_regs as regs
from vfiokit.pci.capability import Capability, capabilities
from vfiokit.pci.config import ConfigSpace
from vfiokit.vmm.guest_config import GuestConfig, Registers, Source

HIDDEN_EXTENDED = frozenset(
    {
        0,
        regs.PCI_EXT_CAP_ID_ARI,
        regs.PCI_EXT_CAP_ID_SRIOV,
        regs.PCI_EXT_CAP_ID_REBAR,
    }
)
"""Extended capabilities that make no sense for one function in a guest."""
_DISCOVERY = ((0x00, 4), (0x08, 4), (0x28, 8))
_VIRTUALISED = ((0x04, 2), (0x3C, 2))
_FAKE_LINK = 1 << 4 | 1
"""Width 1, 2.5 GT/s."""


def assigned_config(
    snapshot: ConfigSpace, device: Registers, *, on_root_bus: bool, multifunction: bool = False
) -> GuestConfig:
    """The guest's space over ``device``, whose bytes were ``snapshot``.

    Everything passes through but BARs, capability pointers, the multifunction bit, the interrupt
    line and what of PCI Express depends on the place. BARs, MSI and MSI-X are put in by those
    who emulate them. ``on_root_bus`` says that no port is above.
    """
    config = GuestConfig(snapshot.data, device)
    config.pass_through(0, len(config))
    for offset, width in _DISCOVERY:
        config.pass_through(offset, width, source=Source.DISCOVERY)
    for offset, width in _VIRTUALISED:
        config.pass_through(offset, width, source=Source.VIRTUALISED)
    config.emulate(0x10, 0x18)
    config.set(0x10, 24, 0)
    config.emulate(0x30, 5)
    config.set(0x30, 4, 0)
    config.emulate(0x3C, 1)
    config.allow(0x3C, 1, 0xFF)
    header_type = config.get(0x0E, 1)
    config.emulate(0x0E, 1)
    config.set(0x0E, 1, header_type & 0x7F | (0x80 if multifunction else 0))
    listed = capabilities(snapshot)
    _link_standard(config, [each for each in listed if not each.extended])
    _link_extended(config, [each for each in listed if each.extended])
    express = listed.find(regs.PCI_CAP_ID_EXP)
    if express is not None:
        _place_express(config, express.offset, on_root_bus=on_root_bus)
    return config


def _link_standard(config: GuestConfig, listed: list[Capability]) -> None:
    pointer = 0x34
    config.emulate(pointer, 1)
    for each in listed:
        config.emulate(each.offset, 2)
        config.set(pointer, 1, each.offset)
        pointer = each.offset + 1
    config.set(pointer, 1, 0)


def _link_extended(config: GuestConfig, listed: list[Capability]) -> None:
    """Leave hidden ones out of the list; the first is blanked, since the list begins there."""
    if len(config) <= 0x100:
        return
    shown = [each for each in listed if each.id not in HIDDEN_EXTENDED]
    for each in listed:
        config.emulate(each.offset, 4)
        if each not in shown:
            config.set(each.offset, 4, 0)
    config.emulate(0x100, 4)
    if not shown:
        config.set(0x100, 4, 0)
        return
    if shown[0].offset != 0x100:
        config.set(0x100, 4, shown[0].offset << 20)
    for each, following in zip(shown, [*shown[1:], None], strict=True):
        identity = config.get(each.offset, 4) & 0xFFFFF
        after = following.offset if following is not None else 0
        config.set(each.offset, 4, identity | after << 20)


def _place_express(config: GuestConfig, at: int, *, on_root_bus: bool) -> None:
    """Make the port type fit the place: an endpoint below a port, an integrated one on bus 0."""
    flags = config.get(at + regs.PCI_EXP_FLAGS, 2)
    kind = (flags & regs.PCI_EXP_FLAGS_TYPE) >> 4
    integrated = kind == regs.PCI_EXP_TYPE_RC_END
    if kind not in (
        regs.PCI_EXP_TYPE_ENDPOINT,
        regs.PCI_EXP_TYPE_LEG_END,
        regs.PCI_EXP_TYPE_RC_END,
    ):
        return
    version_2 = flags & regs.PCI_EXP_FLAGS_VERS > 1
    if on_root_bus and not integrated:
        kind = regs.PCI_EXP_TYPE_RC_END
        _set_link(config, at, 0, version_2=version_2)
    elif integrated and not on_root_bus:
        kind = regs.PCI_EXP_TYPE_ENDPOINT
        _set_link(config, at, _FAKE_LINK, version_2=version_2)
    flags = flags & ~regs.PCI_EXP_FLAGS_TYPE | kind << 4
    if not flags & regs.PCI_EXP_FLAGS_VERS:
        flags |= 1
    config.emulate(at + regs.PCI_EXP_FLAGS, 2)
    config.set(at + regs.PCI_EXP_FLAGS, 2, flags)


def _set_link(config: GuestConfig, at: int, link: int, *, version_2: bool) -> None:
    for offset, width, value in (
        (regs.PCI_EXP_LNKCAP, 4, link),
        (regs.PCI_EXP_LNKCTL, 4, link << 16),
    ):
        config.emulate(at + offset, width)
        config.set(at + offset, width, value)
    if version_2:
        config.emulate(at + regs.PCI_EXP_LNKCAP2, 8)
        config.set(at + regs.PCI_EXP_LNKCAP2, 4, 2 if link else 0)
        config.set(at + regs.PCI_EXP_LNKCTL2, 4, 1 if link else 0)

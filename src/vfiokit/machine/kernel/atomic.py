"""AtomicOp completer widths of the path to the root port.

Asking changes hardware: for every width the root port completes, the function's AtomicOp
Requester Enable bit is set. That is what Linux does, whoever asks.
Source: Linux ``vfio_pci_core.c:vfio_pci_info_atomic_cap``, ``pci.c:pci_enable_atomic_ops_to_root``.
"""

from __future__ import annotations

from vfiokit.abi import pci_regs as regs
from vfiokit.abi import vfio as abi
from vfiokit.machine.kernel.hot_reset import Buses
from vfiokit.machine.kernel.pci_device import PciDevice

_REQUESTERS = (regs.PCI_EXP_TYPE_ENDPOINT, regs.PCI_EXP_TYPE_LEG_END, regs.PCI_EXP_TYPE_RC_END)
_WIDTHS = (
    (regs.PCI_EXP_DEVCAP2_ATOMIC_COMP32, abi.VFIO_PCI_ATOMIC_COMP32),
    (regs.PCI_EXP_DEVCAP2_ATOMIC_COMP64, abi.VFIO_PCI_ATOMIC_COMP64),
    (regs.PCI_EXP_DEVCAP2_ATOMIC_COMP128, abi.VFIO_PCI_ATOMIC_COMP128),
)


def enable_atomics(device: PciDevice, buses: Buses) -> int:
    """``VFIO_PCI_ATOMIC_COMP*`` of the root port above ``device``; 0 without any."""
    at = device.find_capability(regs.PCI_CAP_ID_EXP)
    if not at or device.is_virtual or _port_type(device, at) not in _REQUESTERS:
        return 0
    available = _completers(device, buses)
    found = 0
    for bit, flag in _WIDTHS:
        if available & bit:
            found |= flag
    if found:
        control = at + regs.PCI_EXP_DEVCTL2
        device.update(control, 2, set_bits=regs.PCI_EXP_DEVCTL2_ATOMIC_REQ)
    return found


def _completers(device: PciDevice, buses: Buses) -> int:
    """DEVCAP2 completer bits of the root port; 0 where a switch on the way does not route."""
    bridge = buses.bridge_above(device)
    while bridge is not None:
        at = bridge.find_capability(regs.PCI_CAP_ID_EXP)
        if not at:
            return 0
        capabilities = bridge.read(at + regs.PCI_EXP_DEVCAP2, 4)
        kind = _port_type(bridge, at)
        if kind == regs.PCI_EXP_TYPE_ROOT_PORT:
            return capabilities
        if not capabilities & regs.PCI_EXP_DEVCAP2_ATOMIC_ROUTE:
            return 0
        if kind == regs.PCI_EXP_TYPE_UPSTREAM:
            control = bridge.read(at + regs.PCI_EXP_DEVCTL2, 2)
            if control & regs.PCI_EXP_DEVCTL2_ATOMIC_EGRESS_BLOCK:
                return 0
        bridge = buses.bridge_above(bridge)
    return 0


def _port_type(device: PciDevice, at: int) -> int:
    return (device.read(at + regs.PCI_EXP_FLAGS, 2) & regs.PCI_EXP_FLAGS_TYPE) >> 4

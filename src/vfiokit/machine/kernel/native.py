"""Drivers of the host, as far as the rest of the machine can tell that they are there.

They do no work. A driver owns the DMA of its function's group, enables the function, and makes
folders below it (``nvme/nvme0``, ``net/eth0``) with links from ``/sys/class``; unbinding takes all
of that away, and binding brings it back byte for byte.
"""

from __future__ import annotations

import posixpath
import re

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.vfs import Dir, FileSystem, Link, Node

_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE)
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}", re.IGNORECASE)

# Folders and files that the PCI core makes for every function, whatever drives it.
_CORE_FOLDERS = frozenset(
    {"power", "link", "aer", "pci_bus", "doe_features", "tsm", "firmware_node", "wakeup"}
)
_DRIVER_FILES = ("pools",)  # dma_pool_create

_LINK_HOMES = ("/sys/class", "/sys/bus", "/sys/block", "/sys/dev", "/sys/devices/virtual")


class Footprint:
    """What a driver leaves at a function, while the driver is away."""

    def __init__(
        self,
        nodes: dict[str, Node],
        registers: dict[tuple[int, int], int],
        enable_count: int,
    ) -> None:
        self.nodes = nodes
        self.registers = registers
        self.enable_count = enable_count


def start(device: PciDevice, files: FileSystem, left: Footprint | None) -> None:
    """A driver's probe: the function works for it; ``left`` is what it had before, if anything."""
    if left is None:
        device.enable()
        device.set_master(True)
        return
    device.restore(left.registers)
    device.enable_count = left.enable_count
    for path, node in left.nodes.items():
        files.add(path, node)


def stop(device: PciDevice, files: FileSystem, folder: str) -> Footprint:
    """A driver's removal; ``folder`` is the function's folder in sysfs."""
    nodes: dict[str, Node] = {}
    for name in _made_by_driver(files, folder):
        path = f"{folder}/{name}"
        for home in _LINK_HOMES:
            for link, node in _links_into(files, home, path):
                nodes[link] = node
                files.remove(link)
        removed = files.remove(path)
        if removed is not None:
            nodes[path] = removed
    footprint = Footprint(nodes, device.save(), device.enable_count)
    for cap_id, bit in (
        (regs.PCI_CAP_ID_MSIX, regs.PCI_MSIX_FLAGS_ENABLE),
        (regs.PCI_CAP_ID_MSI, regs.PCI_MSI_FLAGS_ENABLE),
    ):
        at = device.find_capability(cap_id)
        if at:
            device.update(at + regs.PCI_MSI_FLAGS, 2, clear=bit)
    device.update(regs.PCI_COMMAND, 2, clear=regs.PCI_COMMAND_INTX_DISABLE)
    device.enable_count = min(device.enable_count, 1)
    device.disable()
    return footprint


def _made_by_driver(files: FileSystem, folder: str) -> list[str]:
    here = files.lookup(folder)
    assert isinstance(here, Dir)
    return [
        name
        for name in here.names()
        if name in _DRIVER_FILES
        or (
            isinstance(here.get(name), Dir)
            and name not in _CORE_FOLDERS
            and not _FUNCTION.fullmatch(name)
            and not _HOST_BRIDGE.fullmatch(name)
        )
    ]


def _links_into(files: FileSystem, home: str, path: str) -> list[tuple[str, Node]]:
    """Links below ``home`` that lead to ``path`` or below it."""
    if not files.exists(home):
        return []
    found: list[tuple[str, Node]] = []
    for where, node in files.walk(home):
        if isinstance(node, Link):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(where), node.target))
            if target == path or target.startswith(path + "/"):
                found.append((where, node))
    return found

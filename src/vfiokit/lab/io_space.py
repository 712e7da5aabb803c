"""I/O ports: the firmware has few of them to give to bridges, and stops without a word when asked
for more.

Source: SeaBIOS ``src/fw/pciinit.c``: a bridge gets what is below it in steps of 4 KiB; one with a
standard hot-plug controller gets a step in any case. How many steps there are was found by booting:
14 with QEMU 7.2 and 11.1, on any number of host bridges.
"""

from __future__ import annotations

from vfiokit.lab.failure import UnsupportedError
from vfiokit.pci.blueprint import (
    Blueprint,
    Bridge,
    DownstreamPort,
    Endpoint,
    Model,
    Node,
    RootPort,
    Slot,
    Switch,
)

STEP = 0x1000
MOST_STEPS = 14
_PORTS = {Model.E1000E: 0x20, Model.IGB: 0x20, Model.PCI_TESTDEV: 0x100}
"""Bytes of I/O ports in the BARs of models that have any."""


def check(blueprint: Blueprint) -> None:
    """Raise :class:`UnsupportedError` when the bridges need more I/O ports than there are."""
    windows = {
        node.name: io_window(node)
        for host_bridge in blueprint.host_bridges
        for item in host_bridge.items
        for node in (item.functions if isinstance(item, Slot) else (item,))
        if not isinstance(node, Endpoint)
    }
    steps = sum(windows.values()) // STEP
    if steps > MOST_STEPS:
        wanting = ", ".join(name for name, window in windows.items() if window)
        raise UnsupportedError(
            f"bridges need {steps} windows of 4 KiB of I/O ports ({wanting}), and the firmware has "
            f"{MOST_STEPS}; it would stop without a word",
            hint="conventional bridges need one each, and so do ports above e1000e, igb and "
            "pci-testdev",
        )


def io_window(node: Node) -> int:
    """Bytes of I/O ports that the firmware sets aside for a function and what is below it."""
    match node:
        case Endpoint():
            return _PORTS.get(node.model, 0)
        case Slot():
            return sum(map(io_window, node.functions))
        case RootPort() | DownstreamPort():
            return _stepped(io_window(node.child)) if node.child is not None else 0
        case Switch():
            return _stepped(sum(map(io_window, node.ports)))
        case Bridge():
            return max(_stepped(sum(map(io_window, node.items))), STEP)
        case _:
            return 0


def _stepped(size: int) -> int:
    return -(-size // STEP) * STEP

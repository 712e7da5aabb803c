"""One way to name devices on every command line.

A selector is one of

``0000:03:00.0`` or ``03:00.0``
    an address;
``10de:2330`` or ``10de:2330#1``
    vendor and device id in hex, and which of them (0-based, in address order);
``pci0000:00/02.0/00.0``
    the path of device.function numbers from a host bridge down, which survives bus renumbering;
``nvme``, ``gpu``, ``nic``, ``bridge``, ``usb``, ``sata``, ``audio``, ``accelerator``
    a kind of device by class code;
``all``
    everything.
"""

from __future__ import annotations

import re

from vfiokit.errors import DeviceNotFoundError, UsageError
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Bus, Function, Topology

CLASSES: dict[str, tuple[int, ...]] = {
    "nvme": (0x010802,),
    "gpu": (0x0300, 0x0302),
    "nic": (0x0200, 0x0207, 0x0280),
    "bridge": (0x0604, 0x0609),
    "usb": (0x0C03,),
    "sata": (0x0106,),
    "audio": (0x0403,),
    "accelerator": (0x12,),
}
"""Kinds of device by class code prefix: 2, 4 or 6 hex digits (PCI Code and ID Assignment)."""

_PATH = re.compile(r"pci([0-9a-f]{4,8}):([0-9a-f]{2})((?:/[0-9a-f]{1,2}\.[0-7])+)", re.IGNORECASE)
_IDS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4}|\*)(?:#(\d+))?", re.IGNORECASE)


def select(topology: Topology, text: str) -> tuple[Function, ...]:
    """Every function that ``text`` names, in address order.

    Raises :class:`~vfiokit.errors.UsageError` for a text that is no selector and
    :class:`~vfiokit.errors.DeviceNotFoundError` when nothing answers to it.
    """
    wanted = text.strip().lower()
    found = _candidates(topology, wanted)
    if not found:
        raise DeviceNotFoundError(
            f"no PCI function on this host answers to {text!r}",
            hint="'vfiokit show' lists what there is",
        )
    return found


def select_one(topology: Topology, text: str) -> Function:
    """The one function that ``text`` names; :class:`DeviceNotFoundError` if there are several."""
    found = select(topology, text)
    if len(found) > 1:
        listed = ", ".join(str(function.bdf) for function in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise DeviceNotFoundError(
            f"{text!r} names {len(found)} functions: {listed}{more}",
            hint="name one of them by its address, or append #0, #1 … to vendor:device",
        )
    return found[0]


def is_class(function: Function, kind: str) -> bool:
    """Whether ``function`` is of a kind of :data:`CLASSES`."""
    code = f"{function.identity.class_code:06x}"
    return any(code.startswith(_prefix(prefix)) for prefix in CLASSES[kind])


def _prefix(prefix: int) -> str:
    width = 2 if prefix <= 0xFF else 4 if prefix <= 0xFFFF else 6
    return f"{prefix:0{width}x}"


def _candidates(topology: Topology, wanted: str) -> tuple[Function, ...]:
    if wanted == "all":
        return tuple(topology)
    if wanted in CLASSES:
        return tuple(function for function in topology if is_class(function, wanted))
    ids = _IDS.fullmatch(wanted)
    if ids is not None:
        return _by_ids(topology, *ids.groups())
    path = _PATH.fullmatch(wanted)
    if path is not None:
        return _by_path(topology, int(path[1], 16), int(path[2], 16), path[3].split("/")[1:])
    try:
        bdf = Bdf.parse(wanted)
    except UsageError:
        kinds = ", ".join(sorted(CLASSES))
        raise UsageError(
            f"{wanted!r} names no device",
            hint="use an address (0000:03:00.0), ids (10de:2330 or 10de:2330#1), "
            f"a path (pci0000:00/02.0/00.0) or a kind ({kinds}, all)",
        ) from None
    return (topology[bdf],)


def _by_ids(
    topology: Topology, vendor: str, device: str, which: str | None
) -> tuple[Function, ...]:
    found = tuple(
        function
        for function in topology
        if function.identity.vendor_id == int(vendor, 16)
        and (device == "*" or function.identity.device_id == int(device, 16))
    )
    if which is None:
        return found
    return found[int(which) : int(which) + 1]


def _by_path(topology: Topology, domain: int, root: int, steps: list[str]) -> tuple[Function, ...]:
    bus: Bus | None = topology.buses.get((domain, root))
    function: Function | None = None
    for step in steps:
        device, number = step.split(".")
        wanted = (int(device, 16), int(number))
        function = next(
            (
                candidate
                for candidate in (bus.functions if bus is not None else ())
                if (candidate.bdf.device, candidate.bdf.function) == wanted
            ),
            None,
        )
        if function is None:
            return ()
        bus = topology.secondary(function)
    return (function,) if function is not None else ()


def slot_path(topology: Topology, function: Function) -> str:
    """The selector of ``function`` that survives bus renumbering."""
    chain = [*reversed(topology.path_to_root(function)), function]
    steps = "/".join(f"{item.bdf.device:02x}.{item.bdf.function}" for item in chain)
    return f"{topology.host_bridge_of(function)}/{steps}"

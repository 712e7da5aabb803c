"""Words for functions: class, device, link, sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfiokit.pci.ids import Name
    from vfiokit.pci.topology import Function, Topology


def class_text(function: Function) -> str:
    """The name of the function's class."""
    recorded = function.recorded.names.get("class")
    if recorded:
        return recorded
    from vfiokit.pci import ids

    return ids.class_name(function.identity.class_code)


def device_text(topology: Topology, function: Function) -> str:
    """Vendor and device names where known, and the ids."""
    identity = function.identity
    recorded = function.recorded.names
    known = _names(topology).get((identity.vendor_id, identity.device_id))
    vendor = recorded.get("vendor") or (known.vendor if known is not None else None)
    device = recorded.get("device") or (known.device if known is not None else None)
    words = " ".join(word for word in (vendor, device) if word)
    if function.is_virtual:
        words = f"{words} (VF of {function.physfn})".lstrip()
    numbers = f"[{identity.vendor_id:04x}:{identity.device_id:04x}]"
    return f"{words} {numbers}".lstrip()


@lru_cache(maxsize=1)
def _names(topology: Topology) -> dict[tuple[int, int], Name]:
    """Names from the system's pci.ids for what the source does not name; one pass for all."""
    from vfiokit.pci import ids

    return ids.names(
        (function.identity.vendor_id, function.identity.device_id)
        for function in topology
        if "device" not in function.recorded.names
    )


def size_text(size: int | None) -> str:
    """Bytes with a binary unit: ``16 KiB``; ``?`` when unknown."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:g} {unit}"
        value /= 1024
    return f"{value:g} TiB"


def link_text(function: Function) -> str:
    """``8.0 GT/s PCIe x4``, with what it could be when it runs below that; empty when unknown."""
    recorded = function.recorded
    if not recorded.current_link_speed or not recorded.current_link_width:
        return ""
    text = f"{recorded.current_link_speed} x{recorded.current_link_width}"
    best = f"{recorded.max_link_speed} x{recorded.max_link_width}"
    if recorded.max_link_speed and recorded.max_link_width and best != text:
        text += f" (could be {best})"
    return text

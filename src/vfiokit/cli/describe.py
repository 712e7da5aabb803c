"""Words for functions: class, device, link, ACS, sizes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.capability.express import (
    CAPABILITIES,
    LINK_CAPABILITIES,
    LINK_CAPABILITIES_2,
    LINK_STATUS,
    SPEEDS,
    PortType,
)

if TYPE_CHECKING:
    from vfiokit.pci.capability import Capability
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
    numbers = f"[{identity.vendor_id:04x}:{identity.device_id:04x}]"
    return f"{name_text(topology, function)} {numbers}".lstrip()


def name_text(topology: Topology, function: Function) -> str:
    """Vendor and device names as far as they are known; empty where neither is."""
    identity = function.identity
    recorded = function.recorded.names
    known = _names(topology).get((identity.vendor_id, identity.device_id))
    vendor = recorded.get("vendor") or (known.vendor if known is not None else None)
    device = recorded.get("device") or (known.device if known is not None else None)
    words = " ".join(word for word in (vendor, device) if word)
    if function.is_virtual:
        words = f"{words} (VF of {function.physfn})".lstrip()
    return words


@lru_cache(maxsize=1)
def _names(topology: Topology) -> dict[tuple[int, int], Name]:
    """Names from the system's pci.ids for what the source does not name; one pass for all."""
    from vfiokit.pci import ids

    return ids.names(
        (function.identity.vendor_id, function.identity.device_id)
        for function in topology
        if "device" not in function.recorded.names
    )


class Link(NamedTuple):
    """How fast a link runs and could run; ``None`` where that is not known."""

    speed: str | None
    width: int | None
    max_speed: str | None
    max_width: int | None


_WITHOUT_LINK = (PortType.RC_INTEGRATED_ENDPOINT, PortType.RC_EVENT_COLLECTOR)
_NO_LINK = Link(None, None, None, None)


def link(function: Function) -> Link:
    """The function's link, as its kernel recorded it; else as its registers say."""
    recorded = function.recorded
    if recorded.current_link_speed or recorded.current_link_width:
        return Link(
            recorded.current_link_speed,
            recorded.current_link_width,
            recorded.max_link_speed,
            recorded.max_link_width,
        )
    if function.express is None or function.port_type in _WITHOUT_LINK:
        return _NO_LINK
    try:
        status = function.express.value(LINK_STATUS)
        able = function.express.value(LINK_CAPABILITIES)
    except ConfigRangeError:
        return _NO_LINK
    best = _best_speed(function.express) or able & 15
    return Link(_speed(status & 15), status >> 4 & 63, _speed(best), able >> 4 & 63)


def _best_speed(express: Capability) -> int:
    """The code of the fastest speed that Link Capabilities 2 lists; 0 where it lists none.

    As Linux ``pcie_get_speed_cap``: Link Capabilities may name a slower one.
    """
    try:
        if express.field(CAPABILITIES, "version") < 2:
            return 0
        return express.field(LINK_CAPABILITIES_2, "supported_speeds").bit_length()
    except ConfigRangeError:
        return 0


def _speed(code: int) -> str | None:
    return SPEEDS.get(code)


def link_text(function: Function) -> str:
    """``8.0 GT/s PCIe x4``, with what it could be when it runs below that; empty when unknown."""
    found = link(function)
    if not found.speed or not found.width:
        return ""
    text = f"{found.speed} x{found.width}"
    best = f"{found.max_speed} x{found.max_width}"
    if found.max_speed and found.max_width and best != text:
        text += f" (could be {best})"
    return text


def speed_text(function: Function) -> str | None:
    """A link in a cell: ``8 GT/s x4``, ``2.5 GT/s x8 of 16 GT/s x16``; ``None`` when unknown."""
    found = link(function)
    if not found.speed or not found.width:
        return None
    speed, best = _short(found.speed), _short(found.max_speed or found.speed)
    text = f"{speed} x{found.width}"
    if best != speed:
        return f"{text} of {best} x{found.max_width or found.width}"
    return f"{text} of x{found.max_width}" if found.max_width != found.width else text


def _short(speed: str) -> str:
    return speed.removesuffix(" PCIe").replace(".0 ", " ")


_LETTERS = "VBRCUED"


def acs_text(function: Function) -> str:
    """ACS in seven letters: capital when on, small when it could be on, ``.`` when it cannot.

    source Validation, translation Blocking, Request redirect, Completion redirect, Upstream
    forwarding, Egress control, Direct translated. ``-`` without the capability, ``?`` where the
    bytes that tell are not in the description.
    """
    if function.acs is not None:
        able, on = int(function.acs_capability), int(function.acs_control)
        return "".join(
            letter if on >> bit & 1 else letter.lower() if able >> bit & 1 else "."
            for bit, letter in enumerate(_LETTERS)
        )
    length = len(function.config)
    known = length > 0x100 or (length == 0x100 and function.express is None)
    return "-" if known else "?"

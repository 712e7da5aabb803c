"""Which module describes which capability, so that only those met are loaded.

An id names the module of its family and the layout in it. Walking the lists of a whole machine
needs none of them; asking a capability for its registers loads one.
Source of the ids: PCI Code and ID Assignment Specification 1.15, ``linux/pci_regs.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfiokit.pci.capability.register import Layout

STANDARD = {
    0x00: "undescribed.NULL",
    0x01: "power.LAYOUT",
    0x02: "agp.AGP",
    0x03: "vital_product.LAYOUT",
    0x04: "slot.IDENTIFICATION",
    0x05: "msi.LAYOUT",
    0x06: "slot.COMPACT_HOT_SWAP",
    0x07: "pci_x.LAYOUT",
    0x08: "hypertransport.LAYOUT",
    0x09: "vendor.LAYOUT",
    0x0A: "host_controller.DEBUG_PORT",
    0x0B: "slot.COMPACT_RESOURCE",
    0x0C: "slot.HOT_PLUG",
    0x0D: "bridge.SUBSYSTEM",
    0x0E: "agp.AGP_8X",
    0x0F: "secure.LAYOUT",
    0x10: "express.LAYOUT",
    0x11: "msix.LAYOUT",
    0x12: "host_controller.SATA",
    0x13: "advanced.LAYOUT",
    0x14: "enhanced_allocation.LAYOUT",
    0x15: "bridge.FLATTENING_PORTAL",
}
"""Standard capabilities: id to ``module.LAYOUT``."""

EXTENDED = {
    0x01: "error_reporting.LAYOUT",
    0x02: "virtual_channel.LAYOUT",
    0x03: "identity.SERIAL_NUMBER",
    0x04: "power_budget.BUDGETING",
    0x05: "root_complex.LINK_DECLARATION",
    0x06: "root_complex.INTERNAL_LINK",
    0x07: "root_complex.EVENT_COLLECTOR",
    0x08: "virtual_channel.MULTIFUNCTION",
    0x09: "virtual_channel.LAYOUT_9",
    0x0A: "root_complex.REGISTER_BLOCK",
    0x0B: "vendor.EXTENDED",
    0x0C: "identity.CONFIGURATION_ACCESS",
    0x0D: "acs.LAYOUT",
    0x0E: "ari.LAYOUT",
    0x0F: "ats.LAYOUT",
    0x10: "sriov.LAYOUT",
    0x11: "undescribed.MULTI_ROOT",
    0x12: "multicast.LAYOUT",
    0x13: "pri.LAYOUT",
    0x15: "resizable_bar.LAYOUT",
    0x16: "power_budget.DYNAMIC_ALLOCATION",
    0x17: "hints.PROCESSING_HINTS",
    0x18: "latency.TOLERANCE",
    0x19: "physical.SECONDARY",
    0x1A: "protocol.MULTIPLEXING",
    0x1B: "pasid.LAYOUT",
    0x1C: "hints.LIGHTWEIGHT_NOTIFICATION",
    0x1D: "containment.LAYOUT",
    0x1E: "latency.L1_SUBSTATES",
    0x1F: "time_measurement.LAYOUT",
    0x20: "mobile.LAYOUT",
    0x21: "readiness.STATUS_QUEUEING",
    0x22: "readiness.TIME_REPORTING",
    0x23: "designated.LAYOUT",
    0x24: "resizable_bar.VIRTUAL",
    0x25: "physical.DATA_LINK_FEATURE",
    0x26: "physical.RATE_16GT",
    0x27: "physical.LANE_MARGINING",
    0x28: "identity.HIERARCHY",
    0x29: "enclosure.LAYOUT",
    0x2A: "physical.RATE_32GT",
    0x2B: "protocol.ALTERNATE",
    0x2C: "protocol.SYSTEM_FIRMWARE",
    0x2D: "protocol.SHADOW_FUNCTIONS",
    0x2E: "data_object.LAYOUT",
    0x2F: "device_3.LAYOUT",
    0x30: "encryption.LAYOUT",
    0x31: "physical.RATE_64GT",
    0x32: "flit.LOGGING",
    0x33: "flit.PERFORMANCE",
    0x34: "flit.ERROR_INJECTION",
    0x35: "virtual_channel.STREAMLINED",
    0x36: "register_block.LAYOUT",
    0x37: "flit.NOP",
    0x38: "scalable.LAYOUT",
    0x39: "undescribed.RATE_128GT",
    0x3A: "undescribed.CAPTURED_DATA",
}
"""Extended capabilities: id to ``module.LAYOUT``."""

_loaded: dict[tuple[int, bool], Layout] = {}


def layout(cap_id: int, *, extended: bool) -> Layout | None:
    """The layout of a capability id, its module loaded now; ``None`` for an id not assigned."""
    known = _loaded.get((cap_id, extended))
    if known is not None:
        return known
    place = (EXTENDED if extended else STANDARD).get(cap_id)
    if place is None:
        return None
    from importlib import import_module

    module, _, name = place.partition(".")
    found: Layout = getattr(import_module(f"vfiokit.pci.capability.{module}"), name)
    _loaded[cap_id, extended] = found
    return found


def layouts() -> Iterator[Layout]:
    """Every layout there is, variants after the one they refine; loads every family."""
    for extended, table in ((False, STANDARD), (True, EXTENDED)):
        for cap_id in table:
            found = layout(cap_id, extended=extended)
            if found is not None:
                yield found
                yield from (variant.layout for variant in found.variants)

"""Scalable I/O Virtualization: the capability (0x38), and Intel's designated one before it.

Sources: Linux ``drivers/pci/siov.c`` as proposed to linux-pci (``PCI_SIOV_*``), and Intel Scalable
I/O Virtualization Technical Specification 1.0 §3.7.1 (DVSEC of vendor 8086, id 5).
"""

from __future__ import annotations

from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.designated_header import HEADER_1, HEADER_2, length
from vfiokit.pci.capability.register import Capability, Field, Layout, Register, fixed, flag

CAPABILITIES = Register("capabilities", 0x04, 4)
TOTAL_INTERFACES = Register("total_interfaces", 0x08, 2, (Field("count", 15, 0),))
STATUS = Register(
    "status", 0x0B, 1, (flag("enabled", 0, doc="at least one scalable device interface is on"),)
)
FIRST_OFFSET = Register("first_offset", 0x0C, 2, (Field("offset", 15, 0),))
STRIDE = Register("stride", 0x0E, 2, (Field("stride", 15, 0),))


def interface_address(capability: Capability, function: Bdf, index: int) -> Bdf:
    """Whose requester ID the scalable device interface ``index`` (0-based) of ``function`` has.

    Linux ``pci_siov_sdi_bus``: found as a VF's is, by offset and stride.
    """
    routing = capability.value(FIRST_OFFSET) + capability.value(STRIDE) * index
    return Bdf.from_requester_id(function.requester_id + routing & 0xFFFF, function.domain)


LAYOUT = Layout(
    "siov",
    "Scalable I/O Virtualization",
    0x38,
    True,
    (CAPABILITIES, TOTAL_INTERFACES, STATUS, FIRST_OFFSET, STRIDE),
    "Linux siov",
    fixed(0x10),
)

INTEL_VENDOR_ID = 0x8086
INTEL_DVSEC_ID = 5

_SIZES = (Field("sizes", 31, 0, doc="bit n: 4 KiB << n"),)
INTEL = Layout(
    "intel-siov",
    "Intel Scalable I/O Virtualization",
    0x23,
    True,
    (
        HEADER_1,
        HEADER_2,
        Register("function_dependency_link", 0x0A, 1, (Field("function", 7, 0),)),
        Register("flags", 0x0B, 1, (flag("homogeneous", 0),)),
        Register("supported_page_sizes", 0x0C, 4, _SIZES),
        Register("system_page_size", 0x10, 4, (Field("size", 31, 0, "rw"),)),
        Register(
            "capabilities", 0x14, 4, (flag("interrupt_message_storage", 0, doc="IMS supported"),)
        ),
    ),
    "SIOV §3.7.1",
    length,
)

"""Single Root I/O Virtualization (extended id 0x10).

Source: PCI Express Base Specification 6.0 §9.3.3.
"""

from __future__ import annotations

from vfiokit.pci.address import Bdf
from vfiokit.pci.base_address import BaseAddress, base_addresses
from vfiokit.pci.capability.register import Capability, Field, Layout, Register, flag

CAPABILITIES = Register(
    "capabilities",
    0x04,
    4,
    (
        flag("vf_migration_capable", 0),
        flag("ari_capable_hierarchy_preserved", 1),
        flag("vf_10bit_tag_requester", 2),
        Field("vf_migration_interrupt_message_number", 31, 21),
    ),
    "§9.3.3.2",
)
CONTROL = Register(
    "control",
    0x08,
    2,
    (
        flag("vf_enable", 0, "rw"),
        flag("vf_migration_enable", 1, "rw"),
        flag("vf_migration_interrupt_enable", 2, "rw"),
        flag("vf_memory_space_enable", 3, "rw"),
        flag("ari_capable_hierarchy", 4, "rw"),
        flag("vf_10bit_tag_requester_enable", 5, "rw"),
    ),
    "§9.3.3.3",
)
STATUS = Register("status", 0x0A, 2, (flag("vf_migration_status", 0, "rw1c"),), "§9.3.3.4")
INITIAL_VFS = Register("initial_vfs", 0x0C, 2, (Field("count", 15, 0),), "§9.3.3.5")
TOTAL_VFS = Register("total_vfs", 0x0E, 2, (Field("count", 15, 0),), "§9.3.3.6")
NUM_VFS = Register("num_vfs", 0x10, 2, (Field("count", 15, 0, "rw"),), "§9.3.3.7")
FUNCTION_DEPENDENCY_LINK = Register(
    "function_dependency_link", 0x12, 1, (Field("function", 7, 0),), "§9.3.3.8"
)
FIRST_VF_OFFSET = Register("first_vf_offset", 0x14, 2, (Field("offset", 15, 0),), "§9.3.3.9")
VF_STRIDE = Register("vf_stride", 0x16, 2, (Field("stride", 15, 0),), "§9.3.3.10")
VF_DEVICE_ID = Register("vf_device_id", 0x1A, 2, (Field("device_id", 15, 0),), "§9.3.3.11")
SUPPORTED_PAGE_SIZES = Register(
    "supported_page_sizes",
    0x1C,
    4,
    (Field("sizes", 31, 0, doc="bit n: 4 KiB << n"),),
    "§9.3.3.12",
)
SYSTEM_PAGE_SIZE = Register(
    "system_page_size",
    0x20,
    4,
    (Field("size", 31, 0, "rw", doc="one bit as above"),),
    "§9.3.3.13",
)
VF_BARS = tuple(
    Register(f"vf_bar{index}", 0x24 + 4 * index, 4, (Field("bar", 31, 0, "rw"),), "§9.3.3.14")
    for index in range(6)
)
MIGRATION_STATE_ARRAY = Register(
    "migration_state_array",
    0x3C,
    4,
    (Field("bir", 2, 0), Field("offset", 31, 3, unit="8 bytes")),
    "§9.3.3.15",
)


def vf_address(capability: Capability, physfn: Bdf, index: int) -> Bdf:
    """The address of VF ``index`` (0-based) of the PF at ``physfn``.

    Linux ``pci_iov_virtfn_bus`` and ``pci_iov_virtfn_devfn``: the PF's requester ID plus First
    VF Offset plus ``index`` times VF Stride, modulo 2**16.
    """
    offset = capability.value(FIRST_VF_OFFSET)
    stride = capability.value(VF_STRIDE)
    return Bdf.from_requester_id(
        physfn.requester_id + offset + stride * index & 0xFFFF, physfn.domain
    )


def vf_base_addresses(capability: Capability) -> tuple[BaseAddress, ...]:
    """The VF BARs: where VF 0's lie; each VF follows at its BAR's size."""
    return base_addresses([capability.value(register) for register in VF_BARS])


def _derive(capability: Capability) -> dict[str, object]:
    supported = capability.value(SUPPORTED_PAGE_SIZES)
    chosen = capability.value(SYSTEM_PAGE_SIZE)
    return {
        "vf_bars": [bar._asdict() for bar in vf_base_addresses(capability)],
        "page_sizes": [4096 << bit for bit in range(32) if supported >> bit & 1],
        "page_size": 4096 * (chosen & -chosen),
    }


LAYOUT = Layout(
    "sriov",
    "Single Root I/O Virtualization",
    0x10,
    True,
    (
        CAPABILITIES,
        CONTROL,
        STATUS,
        INITIAL_VFS,
        TOTAL_VFS,
        NUM_VFS,
        FUNCTION_DEPENDENCY_LINK,
        FIRST_VF_OFFSET,
        VF_STRIDE,
        VF_DEVICE_ID,
        SUPPORTED_PAGE_SIZES,
        SYSTEM_PAGE_SIZE,
        *VF_BARS,
        MIGRATION_STATE_ARRAY,
    ),
    "§9.3.3",
    lambda _: 0x40,
    derive=_derive,
)

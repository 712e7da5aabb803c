"""Capabilities that are recognised by name only: their registers are not described.

Source: PCI Code and ID Assignment Specification 1.15, ``linux/pci_regs.h``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Layout

_STANDARD = (
    (0x02, "agp", "AGP"),
    (0x03, "vpd", "Vital Product Data"),
    (0x04, "slot-id", "Slot Identification"),
    (0x06, "compact-hot-swap", "CompactPCI Hot Swap"),
    (0x07, "pci-x", "PCI-X"),
    (0x08, "hypertransport", "HyperTransport"),
    (0x09, "vendor", "Vendor Specific"),
    (0x0A, "debug-port", "Debug Port"),
    (0x0B, "compact-resource", "CompactPCI Central Resource Control"),
    (0x0C, "hot-plug", "Standard Hot-Plug Controller"),
    (0x0D, "subsystem", "Bridge Subsystem Vendor ID"),
    (0x0E, "agp-8x", "AGP 8x"),
    (0x0F, "secure", "Secure Device"),
    (0x12, "sata", "SATA Configuration"),
    (0x14, "enhanced-allocation", "Enhanced Allocation"),
    (0x15, "flattening-portal", "Flattening Portal Bridge"),
)
_EXTENDED = (
    (0x01, "aer", "Advanced Error Reporting"),
    (0x02, "virtual-channel", "Virtual Channel"),
    (0x03, "serial-number", "Device Serial Number"),
    (0x04, "power-budgeting", "Power Budgeting"),
    (0x05, "root-complex-link", "Root Complex Link Declaration"),
    (0x06, "root-complex-internal-link", "Root Complex Internal Link Control"),
    (0x07, "event-collector", "Root Complex Event Collector Endpoint Association"),
    (0x08, "multifunction-virtual-channel", "Multi-Function Virtual Channel"),
    (0x09, "virtual-channel-9", "Virtual Channel"),
    (0x0A, "rcrb", "Root Complex Register Block Header"),
    (0x0B, "vendor-specific", "Vendor-Specific Extended Capability"),
    (0x0C, "configuration-access", "Configuration Access Correlation"),
    (0x11, "mriov", "Multi-Root I/O Virtualization"),
    (0x12, "multicast", "Multicast"),
    (0x15, "resizable-bar", "Resizable BAR"),
    (0x16, "dynamic-power", "Dynamic Power Allocation"),
    (0x17, "tph", "TPH Requester"),
    (0x18, "ltr", "Latency Tolerance Reporting"),
    (0x19, "secondary-express", "Secondary PCI Express"),
    (0x1A, "protocol-multiplexing", "Protocol Multiplexing"),
    (0x1D, "dpc", "Downstream Port Containment"),
    (0x1E, "l1-substates", "L1 PM Substates"),
    (0x1F, "ptm", "Precision Time Measurement"),
    (0x23, "dvsec", "Designated Vendor-Specific"),
    (0x24, "vf-resizable-bar", "VF Resizable BAR"),
    (0x25, "data-link-feature", "Data Link Feature"),
    (0x26, "physical-16gt", "Physical Layer 16.0 GT/s"),
    (0x27, "lane-margining", "Lane Margining at the Receiver"),
    (0x28, "hierarchy-id", "Hierarchy ID"),
    (0x29, "npem", "Native PCIe Enclosure Management"),
    (0x2A, "physical-32gt", "Physical Layer 32.0 GT/s"),
    (0x2B, "alternate-protocol", "Alternate Protocol"),
    (0x2C, "system-firmware", "System Firmware Intermediary"),
    (0x2D, "shadow-functions", "Shadow Functions"),
    (0x2E, "doe", "Data Object Exchange"),
    (0x2F, "device-3", "Device 3"),
    (0x30, "ide", "Integrity and Data Encryption"),
    (0x31, "physical-64gt", "Physical Layer 64.0 GT/s"),
)

LAYOUTS = tuple(
    Layout(name, title, cap_id, extended, (), "", lambda _: 4 if _.extended else 2)
    for extended, table in ((False, _STANDARD), (True, _EXTENDED))
    for cap_id, name, title in table
)

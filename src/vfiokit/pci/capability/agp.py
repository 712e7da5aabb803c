"""Accelerated Graphics Port (ids 0x02 and 0x0e).

Source: AGP V3.0 Interface Specification 1.0, ``linux/pci_regs.h``.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Layout, Register, fixed, flag

AGP = Layout(
    "agp",
    "AGP",
    0x02,
    False,
    (
        Register("version", 0x02, 1, (Field("minor", 3, 0), Field("major", 7, 4))),
        Register(
            "status",
            0x04,
            4,
            (
                Field("rates", 2, 0, doc="1x, 2x, 4x; 4x, 8x in AGP3 mode"),
                flag("agp3", 3),
                flag("fast_write", 4),
                flag("over_4g", 5),
                flag("no_host_translation", 6),
                flag("gart_64", 7),
                flag("aperture_coherent", 8),
                flag("sideband", 9),
                Field("calibration", 12, 10),
                Field("request_size", 15, 13, unit="log2 16 bytes"),
                flag("isochronous", 16),
                Field("request_queue", 31, 24, doc="requests minus one"),
            ),
            "§6.1.3",
        ),
        Register(
            "command",
            0x08,
            4,
            (
                Field("rate", 2, 0, "rw"),
                flag("fast_write", 4, "rw"),
                flag("over_4g", 5, "rw"),
                flag("gart_64", 7, "rw"),
                flag("enable", 8, "rw"),
                flag("sideband", 9, "rw"),
                Field("calibration", 12, 10, "rw"),
                Field("request_size", 15, 13, "rw", unit="log2 16 bytes"),
                Field("request_queue", 31, 24, "rw", doc="requests minus one"),
            ),
            "§6.1.4",
        ),
    ),
    "AGP 3.0",
    fixed(12),
)
AGP_8X = Layout("agp-8x", "AGP 8x", 0x0E, False, (), "AGP 3.0", fixed(2))

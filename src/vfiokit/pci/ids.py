"""Names for vendor, device and class ids.

Vendor and device names come from the system's ``pci.ids`` file where there is one, else from the
package's compact copy; it is read line by line, once per question, for just the ids asked. Class
names are built in (PCI Code and ID Assignment Specification 1.15).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

DATABASES = ("/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids")
"""Where distributions keep the file, the more often updated first."""

PACKAGED = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "pci.ids.zst")
"""The package's own copy, of April 2023: vendors and devices, without subsystems."""


_MAX_BYTES = 16 << 20  # the whole list takes 1.4 MiB: more is not it


class Name(NamedTuple):
    """What a device is called; ``None`` where the file does not know."""

    vendor: str | None
    device: str | None


def names(ids: Iterable[tuple[int, int]], path: str | None = None) -> dict[tuple[int, int], Name]:
    """Names for ``(vendor_id, device_id)`` pairs: every pair asked has an entry.

    ``path`` is a file in the format of ``pci.ids``, compressed where it ends in ``.zst``; without
    it the first of :data:`DATABASES` that can be read, or the :data:`PACKAGED` one. A file that is
    missing or damaged knows no names: never raises.
    """
    wanted: dict[int, set[int]] = {}
    for vendor_id, device_id in ids:
        wanted.setdefault(vendor_id, set()).add(device_id)
    vendors: dict[int, str] = {}
    devices: dict[tuple[int, int], str] = {}
    candidates = (*DATABASES, PACKAGED) if path is None else (path,)
    for candidate in candidates if wanted else ():
        try:
            if candidate.endswith(".zst"):
                _search(_unpacked(candidate), wanted, vendors, devices)
            else:
                with open(candidate, encoding="utf-8", errors="replace") as file:
                    _search(file, wanted, vendors, devices)
        except OSError:
            continue
        break
    return {
        (vendor_id, device_id): Name(vendors.get(vendor_id), devices.get((vendor_id, device_id)))
        for vendor_id, device_ids in wanted.items()
        for device_id in device_ids
    }


def _unpacked(path: str) -> list[str]:
    """The lines of a file compressed with zstd; ``OSError`` where that fails."""
    import zstandard  # only here: names are asked for, and the system has no file

    with open(path, "rb") as file:
        try:
            content = zstandard.ZstdDecompressor().stream_reader(file).read(_MAX_BYTES)
        except zstandard.ZstdError as failure:
            raise OSError(f"{path}: {failure}") from None
    return content.decode("utf-8", errors="replace").splitlines(keepends=True)


def _search(
    lines: Iterable[str],
    wanted: dict[int, set[int]],
    vendors: dict[int, str],
    devices: dict[tuple[int, int], str],
) -> None:
    """Vendors start a line, their devices follow after one tab, subsystems after two."""
    missing = set(wanted)
    here: int | None = None
    for line in lines:
        if line.startswith("\t"):
            if here is None or line.startswith("\t\t"):
                continue
            found = _entry(line[1:])
            if found is not None and found[0] in wanted[here]:
                devices.setdefault((here, found[0]), found[1])
            continue
        if line.startswith(("#", "\n")):
            continue
        if line.startswith("C ") or not missing:
            return
        found = _entry(line)
        here = found[0] if found is not None and found[0] in wanted else None
        if here is not None and found is not None:
            missing.discard(here)
            vendors.setdefault(here, found[1])


def _entry(line: str) -> tuple[int, str] | None:
    """``10de  NVIDIA Corporation`` as a number and a text; ``None`` for anything else."""
    try:
        number = int(line[:4], 16)
    except ValueError:
        return None
    text = line[4:].strip()
    return (number, text) if text and line[4:5].isspace() else None


def class_name(class_code: int) -> str:
    """The name of a 24-bit class code: the most specific one known, or the number in hex."""
    for shift in (0, 8, 16):
        name = _CLASSES.get((shift, class_code >> shift))
        if name is not None:
            return name
    return f"Class {class_code >> 8 & 0xFFFF:04x}"


_SUBCLASSES = {
    0x00: ("Unclassified device", ("Non-VGA unclassified device", "VGA compatible device")),
    0x01: (
        "Mass storage controller",
        (
            "SCSI storage controller",
            "IDE interface",
            "Floppy disk controller",
            "IPI bus controller",
            "RAID bus controller",
            "ATA controller",
            "SATA controller",
            "Serial Attached SCSI controller",
            "Non-Volatile memory controller",
            "Universal Flash Storage controller",
        ),
    ),
    0x02: (
        "Network controller",
        (
            "Ethernet controller",
            "Token ring network controller",
            "FDDI network controller",
            "ATM network controller",
            "ISDN controller",
            "WorldFip controller",
            "PICMG controller",
            "Infiniband controller",
            "Fabric controller",
        ),
    ),
    0x03: (
        "Display controller",
        ("VGA compatible controller", "XGA compatible controller", "3D controller"),
    ),
    0x04: (
        "Multimedia controller",
        (
            "Multimedia video controller",
            "Multimedia audio controller",
            "Computer telephony device",
            "Audio device",
        ),
    ),
    0x05: ("Memory controller", ("RAM memory", "FLASH memory", "CXL")),
    0x06: (
        "Bridge",
        (
            "Host bridge",
            "ISA bridge",
            "EISA bridge",
            "MicroChannel bridge",
            "PCI bridge",
            "PCMCIA bridge",
            "NuBus bridge",
            "CardBus bridge",
            "RACEway bridge",
            "Semi-transparent PCI-to-PCI bridge",
            "InfiniBand to PCI host bridge",
        ),
    ),
    0x07: (
        "Communication controller",
        (
            "Serial controller",
            "Parallel controller",
            "Multiport serial controller",
            "Modem",
            "GPIB controller",
            "Smart Card controller",
        ),
    ),
    0x08: (
        "Generic system peripheral",
        (
            "PIC",
            "DMA controller",
            "Timer",
            "RTC",
            "PCI Hot-plug controller",
            "SD Host controller",
            "IOMMU",
            "Root Complex Event Collector",
        ),
    ),
    0x09: (
        "Input device controller",
        (
            "Keyboard controller",
            "Digitizer Pen",
            "Mouse controller",
            "Scanner controller",
            "Gameport controller",
        ),
    ),
    0x0A: ("Docking station", ("Generic Docking Station",)),
    0x0B: ("Processor", ("386", "486", "Pentium")),
    0x0C: (
        "Serial bus controller",
        (
            "FireWire (IEEE 1394)",
            "ACCESS Bus",
            "SSA",
            "USB controller",
            "Fibre Channel",
            "SMBus",
            "InfiniBand",
            "IPMI Interface",
            "SERCOS interface",
            "CANBUS",
        ),
    ),
    0x0D: (
        "Wireless controller",
        ("IRDA controller", "Consumer IR controller"),
    ),
    0x0E: ("Intelligent controller", ("I2O",)),
    0x0F: ("Satellite communications controller", ()),
    0x10: ("Encryption controller", ("Network and computing encryption device",)),
    0x11: ("Signal processing controller", ("DPIO module",)),
    0x12: ("Processing accelerators", ()),
    0x13: ("Non-Essential Instrumentation", ()),
    0x40: ("Coprocessor", ()),
    0xFF: ("Unassigned class", ()),
}

_CLASSES: dict[tuple[int, int], str] = {(16, base): name for base, (name, _) in _SUBCLASSES.items()}
_CLASSES |= {
    (8, base << 8 | number): name
    for base, (_, subclasses) in _SUBCLASSES.items()
    for number, name in enumerate(subclasses)
}
_CLASSES |= {
    (8, 0x0B40): "Co-processor",
    (8, 0x0880): "System peripheral",
    (8, 0x0D11): "Bluetooth",
    (8, 0x1101): "Performance counters",
    (8, 0x1110): "Communication synchronizer",
    (8, 0x1120): "Signal processing management",
}

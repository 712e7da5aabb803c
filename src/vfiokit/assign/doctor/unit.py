"""What IOMMU units say of themselves.

Sources: Intel VT-d specification 4.1 §11.4.2 (Capability) and §11.4.3 (Extended Capability);
AMD IOMMU specification 3.08 §3.4.9 (Extended Feature Register); Linux
``drivers/iommu/intel/iommu.c`` and ``drivers/iommu/amd/init.c`` (the files of ``class/iommu``).
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.assign.doctor.facts import Facts
from vfiokit.assign.doctor.finding import Evidence

_CLASS = "/sys/class/iommu"
_SAGAW_BITS = {1: 39, 2: 48, 3: 57}
_HATS_BITS = {0: 48, 1: 57, 2: 64}


class Unit(NamedTuple):
    """One IOMMU, as far as its files tell; ``None`` where they do not."""

    name: str
    kind: str
    """``intel``, ``amd`` or ``other``."""
    evidence: tuple[Evidence, ...] = ()
    address_bits: int | None = None
    """Width of the IOVAs that it translates."""
    interrupt_remapping: bool | None = None
    snoop_control: bool | None = None
    """Whether it can force DMA to be coherent, whatever the device asks for."""
    coherent_walks: bool | None = None
    pasid: bool | None = None
    nested: bool | None = None
    posted_interrupts: bool | None = None
    caching_mode: bool | None = None
    """Set by an emulated unit only: this host is itself a guest."""

    @property
    def abilities(self) -> str:
        """What it can do, in words."""
        named = (
            ("interrupt remapping", self.interrupt_remapping),
            ("posted interrupts", self.posted_interrupts),
            ("snoop control", self.snoop_control),
            ("coherent table walks", self.coherent_walks),
            ("PASID", self.pasid),
            ("nested translation", self.nested),
        )
        return ", ".join(name for name, able in named if able) or "nothing optional"


def units(facts: Facts) -> tuple[Unit, ...]:
    """Every unit in ``/sys/class/iommu``."""
    return tuple(_unit(facts, name) for name in facts.units or ())


def _unit(facts: Facts, name: str) -> Unit:
    for kind, folder in (("intel", "intel-iommu"), ("amd", "amd-iommu")):
        if facts.tree.exists(f"{_CLASS}/{name}/{folder}"):
            files = ("cap", "ecap") if kind == "intel" else ("cap", "features")
            readings = [facts.read(f"{_CLASS}/{name}/{folder}/{each}") for each in files]
            evidence = tuple(reading.evidence for reading in readings)
            values = [_hexadecimal(reading.text) for reading in readings]
            decode = decode_intel if kind == "intel" else decode_amd
            return decode(Unit(name, kind, evidence), *values)
    return Unit(name, "other")


def _hexadecimal(text: str | None) -> int | None:
    """The first of the numbers that a file shows; AMD's ``features`` holds two."""
    try:
        return int((text or "").partition(":")[0], 16)
    except ValueError:
        return None


def decode_intel(unit: Unit, cap: int | None, ecap: int | None) -> Unit:
    """``unit`` with what the Capability and Extended Capability registers hold."""
    if cap is not None:
        # Linux uses the widest table that the unit walks, and no more than MGAW.
        widths = [bits for bit, bits in _SAGAW_BITS.items() if cap >> (8 + bit) & 1]
        guest_width = (cap >> 16 & 0x3F) + 1
        unit = unit._replace(
            address_bits=min(guest_width, max(widths)) if widths else None,
            posted_interrupts=bool(cap >> 59 & 1),
            caching_mode=bool(cap >> 7 & 1),
        )
    if ecap is not None:
        unit = unit._replace(
            coherent_walks=bool(ecap & 1),
            interrupt_remapping=bool(ecap >> 3 & 1),
            snoop_control=bool(ecap >> 7 & 1),
            nested=bool(ecap >> 26 & 1),
            pasid=bool(ecap >> 40 & 1),
        )
    return unit


def decode_amd(unit: Unit, cap: int | None, features: int | None) -> Unit:
    """``unit`` with what the Extended Feature Register holds.

    Interrupt remapping and coherency are part of every AMD-Vi.
    """
    del cap
    unit = unit._replace(interrupt_remapping=True, snoop_control=True)
    if features is None:
        return unit
    return unit._replace(
        address_bits=_HATS_BITS.get(features >> 10 & 3),
        pasid=bool(features >> 4 & 1),
        posted_interrupts=bool(features >> 21 & 7),
        nested=bool(features >> 4 & 1),
    )

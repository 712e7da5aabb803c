"""PCI addresses: domain, bus, device, function, and the requester ID on the wire.

Source: PCI Express Base Specification 6.0 §2.2.4.2 (IDs), Linux ``include/linux/pci.h``
(``PCI_DEVFN``, ``pci_domain_nr``); Linux prints domains with at least four hex digits and
uses up to eight of them (VMD, Hyper-V).
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.errors import AddressError

_HEX = frozenset("0123456789abcdefABCDEF")


class Bdf(NamedTuple):
    """The address of one PCI function; prints as ``0000:03:00.0`` and sorts as Linux lists it."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Bdf:
        """Read ``[domain:]bus:device.function`` in hex; a missing domain is 0.

        Raises :class:`AddressError` for anything else.
        """
        # By hand: compiling a regular expression would cost more than the rest of this module.
        head, _, function = text.partition(".")
        parts = head.split(":")
        if (
            len(function) == 1
            and function in "01234567"
            and len(parts) in (2, 3)
            and all(0 < len(part) <= 2 and _HEX.issuperset(part) for part in parts[-2:])
            and (len(parts) == 2 or (0 < len(parts[0]) <= 8 and _HEX.issuperset(parts[0])))
        ):
            domain = parts[0] if len(parts) == 3 else "0"
            return cls.of(int(domain, 16), int(parts[-2], 16), int(parts[-1], 16), int(function))
        raise AddressError(
            f"{text!r} is not a PCI address",
            hint="write it as [domain:]bus:device.function in hex, such as 0000:03:00.0",
        )

    @classmethod
    def of(cls, domain: int, bus: int, device: int, function: int) -> Bdf:
        """Build an address from numbers, checking their ranges (:class:`AddressError`)."""
        if not (
            0 <= domain <= 0xFFFFFFFF
            and 0 <= bus <= 0xFF
            and 0 <= device <= 0x1F
            and 0 <= function <= 7
        ):
            raise AddressError(
                f"no such PCI address: domain {domain:#x} bus {bus:#x} "
                f"device {device:#x} function {function}"
            )
        return cls(domain, bus, device, function)

    @classmethod
    def from_requester_id(cls, requester_id: int, domain: int = 0) -> Bdf:
        """The function whose 16-bit requester ID this is, in ``domain``."""
        if not 0 <= requester_id <= 0xFFFF:
            raise AddressError(f"{requester_id:#x} is not a 16-bit requester ID")
        return cls(domain, requester_id >> 8, requester_id >> 3 & 0x1F, requester_id & 7)

    @property
    def devfn(self) -> int:
        """Device and function as one byte, as Linux's ``devfn``."""
        return self.device << 3 | self.function

    @property
    def requester_id(self) -> int:
        """The 16-bit number on the wire: bus ``[15:8]``, device ``[7:3]``, function ``[2:0]``."""
        return self.bus << 8 | self.device << 3 | self.function

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"

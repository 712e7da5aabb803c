"""Vital Product Data: part and serial numbers that a device carries.

Bytes in, items out; whatever is wrong becomes a finding, never an exception.
Source: PCI Local Bus Specification 3.0 appendix I, PCI Express Base Specification 6.0 §6.27;
what counts as missing is that of Linux ``drivers/pci/vpd.c`` (``pci_vpd_size``).
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.pci.capability.walk import Finding

_IDENTIFIER = 0x82
_READ_ONLY = 0x90
_READ_WRITE = 0x91
_END = 0x0F  # the type of a small resource
_SECTIONS = {_READ_ONLY: "read-only", _READ_WRITE: "read-write"}
_BINARY = ("CP", "RV", "RW")

KEYWORDS = {
    "PN": "part number",
    "EC": "engineering changes",
    "FG": "fabric geography",
    "LC": "location",
    "MN": "manufacturer",
    "PG": "PCI geography",
    "SN": "serial number",
    "CP": "extended capability",
    "RV": "checksum and reserved",
    "RW": "remaining read-write space",
    "YA": "asset tag",
    "CC": "customer card identification",
    "FC": "feature code",
    "FN": "field replaceable unit",
    "NA": "network address",
    "RM": "firmware level",
}
"""What the keywords that have a meaning of their own stand for."""


class Item(NamedTuple):
    """One keyword with its data."""

    offset: int
    """Where the keyword starts, in bytes."""
    section: str
    """``read-only`` or ``read-write``."""
    keyword: str
    data: bytes

    @property
    def meaning(self) -> str:
        """What the keyword stands for; empty for one that nobody defined."""
        known = KEYWORDS.get(self.keyword)
        if known is not None:
            return known
        return {"V": "vendor specific", "Y": "system specific", "Z": "product specific"}.get(
            self.keyword[:1], ""
        )

    @property
    def text(self) -> str:
        """The data as text without its padding; in hexadecimal where it is binary."""
        if self.keyword in _BINARY:
            return self.data.hex(" ")
        return _text(self.data)


class VitalProductData(NamedTuple):
    """All that a device's VPD says."""

    identifier: str | None
    """The product's name; ``None`` where there is no identifier string."""
    items: tuple[Item, ...]
    length: int
    """Bytes up to and including the end tag, or up to where reading had to stop."""
    checksum_ok: bool | None
    """Whether the bytes up to the checksum add up to 0; ``None`` without a checksum."""
    findings: tuple[Finding, ...]
    """Codes ``absent``, ``truncated``, ``bad-tag``, ``bad-keyword``, ``no-end``, ``checksum``, and
    ``incomplete`` without a read-only section or its checksum, which every VPD must have."""

    def item(self, keyword: str) -> Item | None:
        """The first item with this keyword."""
        return next((item for item in self.items if item.keyword == keyword), None)


def parse(data: bytes) -> VitalProductData:
    """Decode VPD as read through the capability or sysfs ``vpd``. Never raises.

    A device without contents reads as all zeroes or all ones: then there are no items, and the
    finding ``absent``.
    """
    data = bytes(data)
    if not data or data[0] in (0x00, 0xFF):
        finding = Finding(0, "absent", "there is no vital product data: no tag at its start")
        return VitalProductData(None, (), 0, None, (finding,))
    reader = _Reader(data)
    reader.resources()
    if reader.checksum_ok is None:
        reader.finding(reader.at, "incomplete", "there is no read-only section with a checksum")
    return VitalProductData(
        reader.identifier,
        tuple(reader.items),
        reader.at,
        reader.checksum_ok,
        tuple(reader.findings),
    )


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.identifier: str | None = None
        self.items: list[Item] = []
        self.checksum_ok: bool | None = None
        self.findings: list[Finding] = []

    def finding(self, offset: int, code: str, text: str) -> None:
        self.findings.append(Finding(offset, code, text))

    def resources(self) -> None:
        """Large resources have a 16-bit length after the tag, small ones 3 bits inside it."""
        while self.at < len(self.data):
            tag = self.data[self.at]
            if tag & 0x80:
                start = self.at + 3
                length = int.from_bytes(self.data[self.at + 1 : start], "little")
                if start > len(self.data):
                    break
            else:
                start, length = self.at + 1, tag & 7
                if tag >> 3 == _END:
                    self.at = min(start + length, len(self.data))
                    return
            end = min(start + length, len(self.data))
            if not self.resource(tag, start, end):
                return
            self.at = end
            if start + length > len(self.data):
                text = f"a resource claims {length} bytes; {end - start} are there"
                self.finding(start, "truncated", text)
                return
        self.finding(self.at, "no-end", "no end tag")

    def resource(self, tag: int, start: int, end: int) -> bool:
        """Read one resource; whether the next one can be found after it."""
        if tag == _IDENTIFIER:
            self.identifier = _text(self.data[start:end])
        elif tag in _SECTIONS:
            self.keywords(_SECTIONS[tag], start, end)
        else:
            self.finding(self.at, "bad-tag", f"unknown tag {tag:#04x}")
            return False
        return True

    def keywords(self, section: str, at: int, end: int) -> None:
        while at + 3 <= end:
            name, length = self.data[at : at + 2], self.data[at + 2]
            if not name.isalnum() or not name.isascii():
                text = f"{name.hex()} is no keyword; the rest of the section is skipped"
                self.finding(at, "bad-keyword", text)
                return
            first, last = at + 3, min(at + 3 + length, end)
            item = Item(at, section, name.decode("ascii"), self.data[first:last])
            self.items.append(item)
            if first + length > end:
                text = f"{item.keyword} claims {length} bytes; its section has {last - first}"
                self.finding(at, "truncated", text)
            elif item.keyword == "RV" and length:
                self.check(first)
            at = first + length
        if at < end:
            self.finding(at, "truncated", f"{end - at} bytes after the last keyword")

    def check(self, first: int) -> None:
        """The checksum makes all bytes from the start up to itself add up to 0."""
        self.checksum_ok = sum(self.data[: first + 1]) & 0xFF == 0
        if not self.checksum_ok:
            self.finding(first, "checksum", "the checksum does not match")


def _text(data: bytes) -> str:
    plain = data.rstrip(b"\x00 ").decode("ascii", errors="replace")
    return "".join(letter if letter.isprintable() else "�" for letter in plain)

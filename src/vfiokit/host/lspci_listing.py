"""The output of ``lspci`` cut into listings, one a function: head line, decoded lines, bytes.

Everything else in the text is passed over: the rest of a bug report, a log, a mail around it.
What counts as a head line and as a row of bytes, and that an empty line ends a listing, is as
lspci itself reads dumps (pciutils ``lib/dump.c``). Beyond that, lines may be of any length, and
quoted (``> ``) or indented.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from vfiokit.host.lspci_hex import FIRST_ROW, standard_block
from vfiokit.pci.address import Bdf

_PIECE_BYTES = 1 << 20
_QUOTE = b" \t>|"
_ADDRESS = rb"((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7])"
_HEAD = re.compile(_ADDRESS + rb"(?: (.*))?")
_ROW = re.compile(rb"([0-9a-fA-F]{2,3}): ((?:[0-9a-fA-F]{2} )*[0-9a-fA-F]{2})")
_KNOWN_BY = re.compile(
    rb"^[ \t>|]*" + _ADDRESS + rb" [^\n]*?(?:[a-z] \[[0-9a-f]{4}\]|[0-9a-f]{4}|[a-zA-Z)]): [^\n]*\n"
    rb"|^[ \t>|]*" + _ADDRESS + rb"[^\n]*\n[ \t>|]*00: (?:[0-9a-fA-F]{2} ){15}",
    re.MULTILINE,
)


class Listing:
    """What a text says of one function."""

    __slots__ = ("bdf", "broken", "data", "head", "lines")

    def __init__(self, bdf: Bdf, head: bytes, data: bytes = b"") -> None:
        self.bdf = bdf
        self.head = head
        """The first line, after the address."""
        self.data = data
        """Configuration bytes from offset 0, as far as they go without a gap."""
        self.lines: list[bytes] = []
        """Decoded lines, without indentation."""
        self.broken = False
        """Whether rows of bytes were there that do not continue ``data``."""

    def add_row(self, offset: int, digits: bytes) -> None:
        """Append one row of bytes, when it is the next; after one that is not, none is trusted."""
        if offset == len(self.data) < 4096 and not self.broken:
            self.data += bytes.fromhex(digits.decode("ascii"))
        else:
            self.broken = True


def is_listing(data: bytes) -> bool:
    """Whether there is a listing anywhere in ``data``."""
    return _KNOWN_BY.search(data) is not None


def pieces(file: BinaryIO, size: int = _PIECE_BYTES) -> Iterator[bytes]:
    """The content of ``file`` in pieces of about ``size`` bytes that end where a listing may."""
    rest: list[bytes] = []
    while data := file.read(size):
        end = data.rfind(b"\n\n")
        if end < 0:
            rest.append(data)
            continue
        rest.append(data[: end + 2])
        yield b"".join(rest)
        rest = [data[end + 2 :]]
    yield b"".join(rest)


def listings(texts: Iterable[bytes]) -> Iterator[Listing]:
    """Every listing, in the order of the text; ``texts`` are pieces that end between listings."""
    for text in texts:
        yield from _of_piece(text.replace(b"\r\n", b"\n") if b"\r" in text else text)


def _of_piece(text: bytes) -> Iterator[Listing]:
    """Dumps as lspci prints them go by whole blocks, at the cost of a search; others by line."""
    cutter = _Cutter()
    begin = 0
    while (at := text.find(FIRST_ROW, begin)) >= 0:
        data, end = standard_block(text, at + 1)
        head = text[begin:at].lstrip(b"\n")
        if data and b"\n" not in head:
            match = _HEAD.fullmatch(head)
            if match is not None:
                yield Listing(_address(match[1]), match[2] or b"", data)
                begin = end
                continue
        cutter.add(text[begin:at])
        if data and cutter.current is not None and not cutter.current.data:
            cutter.current.data = data
            begin = end
        else:
            begin = text.find(b"\n", at + 1) + 1 or len(text)
            cutter.add(text[at + 1 : begin].rstrip(b"\n"))
        if text.startswith(b"\n\n", begin - 1):
            yield from cutter.finish()
    cutter.add(text[begin:])
    yield from cutter.finish()


def _address(text: bytes) -> Bdf:
    head, _, function = text.decode("ascii").partition(".")
    domain, _, rest = head.rpartition(":")[0].rpartition(":")
    return Bdf(int(domain or "0", 16), int(rest, 16), int(head[-2:], 16), int(function))


class _Cutter:
    """Goes through a text line by line."""

    def __init__(self) -> None:
        self.current: Listing | None = None
        """The listing that a line would belong to."""
        self._found: list[Listing] = []

    def add(self, text: bytes) -> None:
        """Take some whole lines."""
        for line in text.split(b"\n"):
            self._add_line(line.lstrip(_QUOTE).rstrip())

    def finish(self) -> list[Listing]:
        """The listings found since the last call; what only looked like one is left out."""
        found = [
            listing
            for listing in self._found
            if listing.data or b": " in listing.head or b": " in b"\n".join(listing.lines)
        ]
        self._found.clear()
        self.current = None
        return found

    def _add_line(self, line: bytes) -> None:
        if not line:
            self.current = None
            return
        head = _HEAD.fullmatch(line)
        if head is not None:
            self.current = Listing(_address(head[1]), head[2] or b"")
            self._found.append(self.current)
            return
        if self.current is None:
            return
        row = _ROW.fullmatch(line)
        if row is None:
            self.current.lines.append(line)
        else:
            self.current.add_row(int(row[1], 16), row[2])

"""Configuration bytes as the rows that lspci prints, for people and for whatever reads dumps.

Source of the form: pciutils ``lspci.c`` (``show_hex_dump``): an offset of two digits, three from
0x100 on, a colon, and 16 bytes.
"""

from __future__ import annotations

_OFFSETS = tuple(f"{16 * row:02x}: " for row in range(256))


def rows(data: bytes) -> list[str]:
    """``data``, at most 4096 bytes from offset 0, a line for each 16 bytes."""
    text = data[:4096].hex(" ")
    return [
        offset + text[at : at + 47]
        for offset, at in zip(_OFFSETS, range(0, len(text), 48), strict=False)
    ]

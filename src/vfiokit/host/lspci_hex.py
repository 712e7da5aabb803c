"""Configuration bytes from the rows that ``lspci -x``, ``-xxx`` and ``-xxxx`` print.

A row is its offset in two or three hex digits, a colon, and 16 bytes. Source: pciutils ``lspci.c``
(``show_hex_dump``): 64, 128 (CardBus), 256 or 4096 bytes, and three digits from 0x100 on.
"""

from __future__ import annotations

FIRST_ROW = b"\n00: "
"""What precedes the bytes of a function."""

_LOW_ROW = len("00: ") + 48
_HIGH_ROW = len("100: ") + 48
_LOW_END = 16 * _LOW_ROW
_HIGH_END = _LOW_END + 240 * _HIGH_ROW
_SHORT_ENDS = (4 * _LOW_ROW, 8 * _LOW_ROW)

# A well-formed dump looks like this once every hex digit is an x. Comparing whole blocks, and
# cutting the offsets out by strides, costs a twentieth of going row by row.
_BYTES_OF_ROW = b" ".join([b"xx"] * 16) + b"\n"
_SHAPE = (b"xx: " + _BYTES_OF_ROW) * 16 + (b"xxx: " + _BYTES_OF_ROW) * 240
_TO_SHAPE = bytes(
    ord("x") if chr(code) in "0123456789abcdefABCDEF" else 0 if code == ord("x") else code
    for code in range(256)
)
_OFFSETS = "".join(f"{16 * row:02x}" for row in range(16)).encode()
_HIGH_OFFSETS = "".join(f"{16 * row:03x}" for row in range(16, 256)).encode()
_SEPARATORS = b" :\n"


def standard_block(text: bytes, start: int) -> tuple[bytes, int]:
    """The bytes dumped at ``start`` (a ``00:``), and where the block ends in ``text``.

    Only a block exactly as lspci prints it; no bytes for any other: it must be read row by row.
    """
    end = start + _LOW_END
    if text.startswith(b"100: ", end):
        end = start + _HIGH_END
    elif not _ends(text, end):
        for size in _SHORT_ENDS:
            if _ends(text, start + size):
                end = start + size
                break
    if not _ends(text, end):
        return b"", start
    block = text[start:end]
    if len(block) < end - start:  # the last line of the file need not end
        block += b"\n"
    if block.translate(_TO_SHAPE) != _SHAPE[: len(block)]:
        return b"", start
    return _decode(block), end


def _ends(text: bytes, end: int) -> bool:
    """Whether a block ends at ``end``: the text does, or an empty line follows."""
    return text.startswith(b"\n", end) or end in (len(text), len(text) + 1)


def _decode(block: bytes) -> bytes:
    """Bytes of a block of the right shape; none when its offsets are not in order."""
    digits = bytearray(block[:_LOW_END].translate(None, _SEPARATORS))
    if digits[0::34] != _OFFSETS[0 : len(digits) // 17 : 2]:
        return b""
    if digits[1::34] != _OFFSETS[1 : len(digits) // 17 : 2]:
        return b""
    del digits[0::34], digits[0::33]
    if len(block) > _LOW_END:
        high = bytearray(block[_LOW_END:].translate(None, _SEPARATORS))
        if any(high[n::35] != _HIGH_OFFSETS[n::3] for n in range(3)):
            return b""
        del high[0::35], high[0::34], high[0::33]
        digits += high
    return bytes.fromhex(digits.decode("ascii"))

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.pci.vpd import Item, parse


def large(tag: int, body: bytes) -> bytes:
    return struct.pack("<BH", tag, len(body)) + body


def item(keyword: str, data: bytes) -> bytes:
    return keyword.encode() + bytes([len(data)]) + data


def vpd(read_only: list[tuple[str, bytes]], read_write: list[tuple[str, bytes]] = []) -> bytes:  # noqa: B006
    """A well-formed VPD, its checksum computed."""
    body = b"".join(item(*each) for each in read_only)
    start = large(0x82, b"Widget 9000  ")
    head = start + struct.pack("<BH", 0x90, len(body) + 4) + body + b"RV\x01"
    data = head + bytes([-sum(head) & 0xFF])
    if read_write:
        data += large(0x91, b"".join(item(*each) for each in read_write))
    return data + b"\x78"


GOOD = vpd(
    [("PN", b"6181682A"), ("SN", b"1234567890\x00\x00")], [("YA", b"asset"), ("RW", b"\0\0")]
)


def test_items_are_read_in_order():
    found = parse(GOOD + b"\xff" * 100)
    assert found.identifier == "Widget 9000"
    assert [(each.section, each.keyword) for each in found.items] == [
        ("read-only", "PN"),
        ("read-only", "SN"),
        ("read-only", "RV"),
        ("read-write", "YA"),
        ("read-write", "RW"),
    ]
    assert found.item("SN").text == "1234567890"
    assert found.item("PN").meaning == "part number"
    assert found.length == len(GOOD)
    assert found.checksum_ok is True
    assert found.findings == ()


def test_offsets_point_at_the_keywords():
    for each in parse(GOOD).items:
        assert GOOD[each.offset : each.offset + 2].decode() == each.keyword


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"\xff" * 64])
def test_empty_memory_is_absent(data):
    found = parse(data)
    assert [finding.code for finding in found.findings] == ["absent"]
    assert (found.items, found.identifier, found.length) == ((), None, 0)


def test_flipped_bit_breaks_the_checksum():
    damaged = bytearray(GOOD)
    damaged[5] ^= 0x20
    found = parse(damaged)
    assert found.checksum_ok is False
    assert [finding.code for finding in found.findings] == ["checksum"]


def test_a_missing_checksum_is_a_finding():
    found = parse(large(0x90, item("PN", b"1")) + b"\x78")
    assert found.checksum_ok is None
    assert [finding.code for finding in found.findings] == ["incomplete"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (GOOD[:-1], "no-end"),
        (GOOD[:30], "truncated"),
        (large(0x90, b"PN\x20abc") + b"\x78", "truncated"),
        (large(0x90, item("PN", b"1") + b"S") + b"\x78", "truncated"),
        (large(0x90, b"\x01\x02\x00") + b"\x78", "bad-keyword"),
        (large(0x85, b"abc") + b"\x78", "bad-tag"),
        (b"\x0a\x00\x00\x78", "bad-tag"),
        (b"\x82", "no-end"),
    ],
)
def test_damage_is_a_finding(data, code):
    assert code in [finding.code for finding in parse(data).findings]


def test_what_comes_before_the_damage_is_kept():
    found = parse(large(0x82, b"Name") + large(0x90, item("SN", b"7") + b"\x00\x00\x00"))
    assert (found.identifier, found.item("SN").text) == ("Name", "7")


@pytest.mark.parametrize(
    ("keyword", "data", "text", "meaning"),
    [
        ("V0", b"a\x01b ", "a�b", "vendor specific"),
        ("Y3", b"x", "x", "system specific"),
        ("CP", b"\x01\x02", "01 02", "extended capability"),
        ("QQ", b"", "", ""),
    ],
)
def test_items_tell_what_they_are(keyword, data, text, meaning):
    each = Item(0, "read-only", keyword, data)
    assert (each.text, each.meaning) == (text, meaning)


@given(st.binary(max_size=600))
def test_any_bytes_are_read(data):
    found = parse(data)
    assert 0 <= found.length <= len(data)
    for each in found.items:
        assert data[each.offset : each.offset + 2].decode() == each.keyword
        assert each.text is not None
    assert all(0 <= finding.offset <= len(data) for finding in found.findings)


_letters = st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_items = st.lists(
    st.tuples(
        st.builds(lambda a, b: a + b, _letters, _letters).filter(lambda word: word != "RV"),
        st.binary(max_size=40),
    ),
    max_size=8,
)


@given(_items, _items)
def test_what_was_written_is_read(read_only, read_write):
    found = parse(vpd(read_only, read_write))
    assert [(each.keyword, each.data) for each in found.items if each.keyword != "RV"] == [
        *read_only,
        *read_write,
    ]
    assert found.checksum_ok is True
    assert found.findings == ()


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_damage_in_the_checked_part_never_goes_unseen(offset, flip):
    checked = parse(GOOD).item("RV").offset + 4
    damaged = bytearray(GOOD)
    damaged[offset % checked] ^= flip
    assert parse(damaged).findings

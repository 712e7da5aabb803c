"""The fuzz targets of a guest's accesses and of QEMU's listings, on inputs near to real ones."""

from __future__ import annotations

import struct

import fuzz_guest
import fuzz_mtree
from hypothesis import given, settings
from hypothesis import strategies as st

step = st.builds(
    fuzz_guest.STEP.pack,
    st.integers(0, 255),
    st.integers(0, 7) | st.just(6),
    st.integers(0, 0xFFFF) | st.sampled_from((0x04, 0x10, 0x18, 0x58, 0x5A, 0x52, 0x42, 0x2C)),
    st.integers(0, (1 << 64) - 1)
    | st.sampled_from((0, 0xFFFF_FFFF, 0x8000, 0xC000, 1, 7, 0x0729, 0xFEE0_0000, 0x8000_0010)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=60).map(b"".join))
def test_machine_survives_every_guest(data) -> None:
    fuzz_guest.one_input(data)


line = st.builds(
    lambda start, length, kind, name, tail: (
        f"  {start:016x}-{start + length:016x} (prio 0, {kind}): {name}{tail}\n"
    ),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 20),
    st.sampled_from(("ram", "ramd", "i/o", "rom", "")),
    st.sampled_from(("a", "0000:03:00.3 BAR 0 mmaps[0]", "msix-table", "", "@0", " KVM")),
    st.sampled_from(("", " KVM", " @0000000000001000", " @000000000000000810 KVM", " @")),
)
head = st.sampled_from(('FlatView #1\n AS "memory", root: system\n', "FlatView #2\n", "(qemu)\n"))


@settings(max_examples=200, deadline=None)
@given(st.lists(head | line, max_size=12).map("".join).map(str.encode) | st.binary(max_size=100))
def test_reader_of_listings_survives_every_file(data) -> None:
    fuzz_mtree.one_input(data)


def test_replayed_input_reaches_the_table() -> None:
    """An entry of the table is written: kind 5 × 8 is its page."""
    write = struct.pack("<BBHQ", 5 * 8 + 1, 6, 8, 0x41)
    fuzz_guest.one_input(write)

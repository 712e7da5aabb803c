"""The fuzz targets of what a guest asks about its peers, on inputs near to what drivers do."""

from __future__ import annotations

import struct

import fuzz_hypercall
import fuzz_virtqueue
from hypothesis import given, settings
from hypothesis import strategies as st

descriptor = st.builds(
    lambda gpa, length, flags, following: struct.pack("<QIHH", gpa, length, flags, following),
    st.integers(0, 0x3000) | st.integers(0, (1 << 64) - 1),
    st.sampled_from((16, 16, 16, 32, 1, 0)) | st.integers(0, (1 << 32) - 1),
    st.integers(0, 7),
    st.integers(0, 16),
)


def good(index: int) -> bytes:
    """Descriptors of a request and of its reply, in turn."""
    at = 0x1800 + 32 * (index & ~1)
    if index & 1:
        return struct.pack("<QIHH", at + 16, 16, 2, 0)
    return struct.pack("<QIHH", at, 16, 1, index + 1)


@st.composite
def memories(draw) -> bytes:
    """Registers and rings that a driver would leave, with some of it spoilt."""
    size = draw(st.sampled_from((16, 16, 8, 64, 15, 0)))
    options = draw(st.sampled_from((0, 0, 0, 1, 2, 4, 8, 15)))
    head = struct.pack("<BHBB", options, size, draw(st.integers(0, 15)), 1)
    places = draw(st.lists(st.sampled_from((0, 0x800, 0x1000)), min_size=3, max_size=3))
    raw = bytearray((head + b"\0" + struct.pack("<3H", *places)).ljust(16, b"\0"))
    table = [good(index) for index in range(16)]
    for index, spoilt in draw(st.dictionaries(st.integers(0, 15), descriptor, max_size=3)).items():
        table[index] = spoilt
    heads = draw(st.lists(st.integers(0, 7).map(lambda each: 2 * each) | st.integers(0, 16),
                          max_size=16))  # fmt: skip
    available = struct.pack(f"<HH{len(heads)}H", 0, len(heads), *heads)
    rings = b"".join(table).ljust(0x800, b"\0") + available.ljust(0x1000, b"\0")
    return bytes(raw) + rings + draw(st.binary(max_size=64))


@settings(max_examples=250, deadline=None)
@given(memories() | st.binary(max_size=256))
def test_virtqueue_survives_every_driver(data):
    fuzz_virtqueue.one_input(data)


action = st.builds(
    lambda kind, one, two, flags: struct.pack("<BQQB", kind, one, two, flags),
    st.integers(0, 15),
    st.sampled_from((0x100, 0x200, 0x300, 0x010100, 0x020200)) | st.integers(0, (1 << 64) - 1),
    st.sampled_from((0x100, 0x200, 0x300)) | st.integers(0, (1 << 64) - 1),
    st.integers(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(action, max_size=12).map(b"".join) | st.binary(max_size=80))
def test_hypercall_answers_for_the_guests_own_functions_alone(data):
    fuzz_hypercall.one_input(data)

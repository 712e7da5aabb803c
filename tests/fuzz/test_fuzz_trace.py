"""The tracer's fuzz target, on inputs that Hypothesis makes."""

from __future__ import annotations

import struct

from fuzz_trace import one_input
from hypothesis import given, settings
from hypothesis import strategies as st

_STEP = st.builds(
    struct.pack,
    st.just("<BH5s"),
    st.integers(0, 63),
    st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0x14, 0x1C, 0x24, 0, 4, 0x2000])),
    st.binary(min_size=5, max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_STEP, max_size=40).map(b"".join))
def test_any_steps_are_explained(data: bytes) -> None:
    one_input(data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_explained(data: bytes) -> None:
    one_input(data)

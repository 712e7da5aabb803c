"""The fuzz target of the processor, on random bytes and on random instructions."""

from __future__ import annotations

import fuzz_cpu
from hypothesis import given, settings
from hypothesis import strategies as st

opcodes = st.sampled_from(
    [
        *(b"\x0f\x01", b"\x0f\x00", b"\x0f\x22\xc0", b"\x0f\x30", b"\x0f\x32", b"\x0f\xa2"),
        *(b"\xf3\xa4", b"\xf3\x6c", b"\xf3\x6e", b"\xcf", b"\x48\xcf", b"\xcd\x80", b"\xfb\xf4"),
        *(b"\xc4", b"\x9a", b"\xea", b"\xcb", b"\x8e\xd8", b"\x0f\xc7", b"\xf0\x0f\xb1", b"\x9d"),
    ]
)
code = st.lists(opcodes | st.binary(min_size=1, max_size=6), max_size=20).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=9, max_size=9), code)
def test_any_code_runs_faults_or_leaves(head: bytes, program: bytes) -> None:
    fuzz_cpu.one_input(head + program)

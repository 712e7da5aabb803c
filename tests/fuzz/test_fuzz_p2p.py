"""The fuzz target of P2P answers, on bytes that look like machines."""

from __future__ import annotations

import fuzz_p2p
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def functions(draw) -> bytes:
    """One function: often a bridge, often with ACS."""
    raw = bytearray(fuzz_p2p.STEP)
    raw[0:3] = draw(st.binary(min_size=3, max_size=3))
    config = bytearray(fuzz_p2p.STEP - 3)
    config[0:4] = bytes.fromhex(draw(st.sampled_from(("8680a209", "8680002f", "22108014"))))
    config[0x0E] = draw(st.sampled_from((0, 1, 1, 2, 0x81)))
    config[0x18:0x1B] = draw(
        st.binary(min_size=3, max_size=3).map(lambda b: bytes(x & 7 for x in b))
    )
    config[0x06], config[0x34] = 0x10, 0x40
    config[0x40:0x44] = bytes((0x10, 0, draw(st.integers(0, 255)), 0))
    if draw(st.booleans()):
        config[0x100:0x108] = bytes((0x0D, 0, 1, 0, 0x7F, 0, draw(st.integers(0, 255)), 0))
    raw[3:] = config
    return bytes(raw)


@settings(max_examples=150, deadline=None)
@given(st.lists(functions(), max_size=8).map(b"".join) | st.binary(max_size=400))
def test_every_machine_gets_the_same_answers_twice(data):
    fuzz_p2p.one_input(data)

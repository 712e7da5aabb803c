"""The fuzz target's own invariant on a few inputs, so that it cannot rot without a fuzzer."""

from __future__ import annotations

import pytest
from fuzz_config import one_input
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(max_size=512))
def test_any_input_keeps_the_invariant(data):
    one_input(data)


@pytest.mark.parametrize("first", [0x00, 0x07, 0x80, 0xFF])
def test_long_inputs_keep_the_invariant(first):
    one_input(bytes([first]) + bytes(range(256)) * 17)

"""Sizes and counts as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.pci.quantity import counted, size_text

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (16 << 10, "16 KiB"),
        (1 << 40, "1 TiB"),
        (2_000_398_934_016, "1.8 TiB"),
        (1 << 51, "2048 TiB"),
    ],
)
def test_size_is_readable(size: int | None, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(0, 1 << 64))
def test_a_size_read_back_is_off_by_less_than_a_decimal(size: int) -> None:
    number, unit = size_text(size).split()
    assert abs(float(number) * UNITS[unit] - size) <= 0.051 * UNITS[unit]


def test_one_is_no_plural() -> None:
    assert [counted(number, "group") for number in (0, 1, 2)] == ["0 groups", "1 group", "2 groups"]

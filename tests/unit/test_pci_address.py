from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import AddressError, ConfigRangeError
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace

addresses = st.builds(
    Bdf,
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)


@given(addresses)
def test_text_round_trips(bdf):
    assert Bdf.parse(str(bdf)) == bdf
    assert Bdf.parse(str(bdf).upper()) == bdf


@given(addresses)
def test_requester_id_round_trips_within_its_domain(bdf):
    assert Bdf.from_requester_id(bdf.requester_id, bdf.domain) == bdf
    assert bdf.requester_id == bdf.bus << 8 | bdf.devfn


@given(st.text(alphabet="0123456789abcdefABCDEFgx:._-+ \t²", max_size=16))
def test_any_text_is_an_address_or_an_address_error(text):
    try:
        bdf = Bdf.parse(text)
    except AddressError:
        return
    canonical = str(bdf).split(":")
    given_parts = text.lower().split(":")
    given_parts = given_parts if len(given_parts) == 3 else ["0", *given_parts]
    assert [int(part.split(".")[0], 16) for part in given_parts] == [
        int(part.split(".")[0], 16) for part in canonical
    ]


@pytest.mark.parametrize(
    ("text", "bdf"),
    [
        ("03:00.0", Bdf(0, 3, 0, 0)),
        ("0000:03:1f.7", Bdf(0, 3, 31, 7)),
        ("10000:e1:00.0", Bdf(0x10000, 0xE1, 0, 0)),
        ("ffffffff:ff:1f.7", Bdf(0xFFFFFFFF, 0xFF, 0x1F, 7)),
        ("0:0:0.0", Bdf(0, 0, 0, 0)),
    ],
)
def test_parse_reads_what_linux_and_people_write(text, bdf):
    assert Bdf.parse(text) == bdf


@pytest.mark.parametrize(
    "text",
    [
        "",
        "03:00",
        "03:00.8",
        "03:20.0",
        "100:00:00.0.0",
        "123456789:00:00.0",
        "003:00.0",
        "0x3:00.0",
        "+3:00.0",
        "0_0:00.0",
        " 03:00.0",
        "03:00.0\n",
        "03:00.٣",
        ":03:00.0",
        "0:0:0:0.0",
    ],
)
def test_parse_refuses_everything_else(text):
    with pytest.raises(AddressError) as caught:
        Bdf.parse(text)
    assert isinstance(caught.value, ValueError)


def test_addresses_sort_as_linux_lists_them():
    texts = ["0000:00:1f.0", "0000:02:00.0", "0000:10:00.0", "0001:00:00.0", "10000:00:00.0"]
    assert [str(bdf) for bdf in sorted(map(Bdf.parse, reversed(texts)))] == texts


@pytest.mark.parametrize("numbers", [(-1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 256, 0, 0)])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(AddressError):
        Bdf.of(*numbers)


@pytest.mark.parametrize("requester_id", [-1, 0x10000])
def test_requester_id_beyond_16_bits_is_refused(requester_id):
    with pytest.raises(AddressError):
        Bdf.from_requester_id(requester_id)


def test_registers_are_little_endian():
    config = ConfigSpace(bytes(range(64)))
    assert (config.u8(4), config.u16(4), config.u32(4)) == (4, 0x0504, 0x07060504)


@pytest.mark.parametrize(("offset", "width"), [(63, 2), (64, 1), (-1, 1), (61, 4)])
def test_read_outside_the_capture_says_where(offset, width):
    with pytest.raises(ConfigRangeError, match="64 bytes") as caught:
        ConfigSpace(bytes(64)).read(offset, width)
    assert (caught.value.offset, caught.value.width, caught.value.size) == (offset, width, 64)


def test_config_space_ends_at_4_kib():
    assert len(ConfigSpace(bytes(5000))) == 4096

"""Dumps of lspci become the bytes they show, whatever is around them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_dumps import SHARED, dumps

from vfiokit.errors import FormatError
from vfiokit.host.lspci import read
from vfiokit.host.lspci_listing import is_listing, listings, pieces
from vfiokit.host.source import open_host
from vfiokit.pci.address import Bdf

HEAD = "0000:03:00.0 0200: 8086:1521 (rev 01)\n"
SIZES = (64, 128, 256, 4096)


def rows(data: bytes, start: int = 0) -> str:
    return "".join(
        f"{start + at:0{2 if start + at < 0x100 else 3}x}: {data[at : at + 16].hex(' ')}\n"
        for at in range(0, len(data), 16)
    )


def function_bytes(size: int, vendor: int = 0x8086) -> bytes:
    body = bytes((7 * index + index // 256) % 251 for index in range(size))
    return vendor.to_bytes(2, "little") + body[2:6] + b"\0\0" + body[8:14] + b"\0" + body[15:]


def parsed(text: str | bytes) -> dict[str, bytes]:
    data = text.encode() if isinstance(text, str) else text
    return {str(found.bdf): found.data for found in listings([data])}


def by_line(text: str) -> dict[str, bytes]:
    """What lspci's own reader does (pciutils lib/dump.c), for text without surprises."""
    found: dict[str, bytearray] = {}
    current: bytearray | None = None
    for line in text.splitlines():
        head = re.match(r"((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]) ", line)
        row = re.fullmatch(r"([0-9a-f]{2,3}): ((?:[0-9a-f]{2} ?)+)", line)
        if head:
            current = found.setdefault(str(Bdf.parse(head[1])), bytearray())
        elif not line:
            current = None
        elif row and current is not None:
            assert int(row[1], 16) == len(current)
            current += bytes.fromhex(row[2])
    return {address: bytes(data) for address, data in found.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("end", ["\n", "", "\nBye.\n"])
def test_each_size_that_lspci_prints_is_read(size: int, end: str) -> None:
    data = function_bytes(size)
    text = HEAD + rows(data) + end
    assert parsed(text) == {"0000:03:00.0": data}
    assert parsed(text.rstrip("\n")) == {"0000:03:00.0": data}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: re.sub("^", "> ", text, flags=re.MULTILINE),
        lambda text: re.sub("^", "    ", text, flags=re.MULTILINE),
        lambda text: re.sub(r"(?<=: ).*", lambda row: row[0].upper(), text).replace("REV", "rev"),
        lambda text: re.sub("$", " ", text, flags=re.MULTILINE),
        lambda text: "Linux version 6.1\n[ 0.1] pci 0000:03:00.0: enabled\n\n" + text,
        lambda text: "00: 11 22 33\n" + text,
        lambda text: text.replace("(rev 01)", "(rev 01) " + "long " * 100),
    ],
    ids=["crlf", "quoted", "indented", "upper", "trailing", "log", "row-first", "long-line"],
)
def test_what_mail_and_terminals_do_to_a_dump_changes_nothing(size: int, change) -> None:
    data = function_bytes(size)
    other = function_bytes(256, 0x10DE)
    text = change(HEAD + rows(data) + "\n0000:04:00.0 x: y\n" + rows(other) + "\n")
    assert parsed(text) == {"0000:03:00.0": data, "0000:04:00.0": other}


def test_text_between_head_and_bytes_belongs_to_the_function() -> None:
    data = function_bytes(4096)
    (found,) = listings([(HEAD + "\tKernel driver in use: igb\n" + rows(data)).encode()])
    assert (found.data, found.lines) == (data, [b"Kernel driver in use: igb"])


def test_lines_that_lspci_refuses_are_read() -> None:
    data = function_bytes(256)
    long_line = "\tCapabilities: [40] " + "x" * 5000
    assert parsed(HEAD + long_line + "\n" + rows(data)) == {"0000:03:00.0": data}


@pytest.mark.parametrize("domain", ["", "0000:", "10000:", "abcdef12:"])
def test_domains_have_up_to_eight_digits(domain: str) -> None:
    data = function_bytes(256)
    text = f"{domain}03:00.0 0200: 8086:1521\n{rows(data)}"
    assert [int(domain[:-1] or "0", 16)] == [
        found.bdf.domain for found in listings([text.encode()])
    ]
    host = read([text.encode()])
    assert next(iter(host.topology)).bdf.domain == int(domain[:-1] or "0", 16)


def test_bytes_after_a_missing_row_stay_unknown() -> None:
    lines = rows(function_bytes(256)).splitlines(keepends=True)
    host = read([(HEAD + "".join(lines[:5] + lines[6:])).encode()])
    (function,) = host.topology
    assert len(function.config) == 0x50
    assert any("0000:03:00.0: rows are missing" in limit for limit in host.limits)


@pytest.mark.parametrize("row", [3, 15, 16, 200, 255])
@pytest.mark.parametrize("at", [0, 1, 6, 20])
def test_a_damaged_row_ends_the_bytes(row: int, at: int) -> None:
    data = function_bytes(4096)
    lines = rows(data).splitlines()
    lines[row] = lines[row][:at] + "z" + lines[row][at + 1 :]
    assert parsed(HEAD + "\n".join(lines) + "\n") == {"0000:03:00.0": data[: 16 * row]}


def test_offsets_out_of_order_are_not_taken_for_a_whole_dump() -> None:
    data = function_bytes(4096)
    lines = rows(data).splitlines()
    lines[30], lines[31] = lines[31], lines[30]
    assert parsed(HEAD + "\n".join(lines) + "\n") == {"0000:03:00.0": data[: 16 * 30]}


def test_rows_of_a_function_without_a_head_do_not_go_to_the_one_before() -> None:
    text = HEAD + rows(function_bytes(64)) + rows(function_bytes(256, 0x10DE))
    assert parsed(text) == {"0000:03:00.0": function_bytes(64)}


def test_an_empty_line_ends_a_function() -> None:
    text = HEAD + "\n" + rows(function_bytes(256))
    assert parsed(text) == {"0000:03:00.0": b""}


def test_addresses_in_a_log_are_no_functions() -> None:
    text = b"0000:03:00.0 is fine\n\n01:00.0\nwords\n\n99:99.9 x: y\n0000:03:00.8 x: y\n"
    assert list(listings([text])) == []
    assert not is_listing(text)
    with pytest.raises(FormatError, match="no PCI function"):
        read([text], "log")


def test_a_function_shown_twice_keeps_the_longer_dump() -> None:
    data = function_bytes(4096)
    text = HEAD + rows(data[:64]) + "\n" + HEAD + rows(data) + "\n" + HEAD + rows(data[:256])
    (function,) = read([text.encode()]).topology
    assert function.config.data == data


def test_two_machines_in_one_file_are_an_error() -> None:
    text = HEAD + rows(function_bytes(64)) + "\n" + HEAD + rows(function_bytes(64, 0x10DE))
    with pytest.raises(FormatError, match=r"two different functions 0000:03:00\.0") as caught:
        read([text.encode()], "both.txt")
    assert "both.txt" in str(caught.value)
    assert caught.value.hint


def test_every_public_dump_reads_to_the_bytes_it_shows() -> None:
    expected: dict[str, dict[str, bytes]] = {}
    for dump in dumps():
        address = str(Bdf.parse(dump.bdf))
        expected.setdefault(dump.file, {})[address] = dump.config.data
    assert len(expected) == 21
    for name, functions in expected.items():
        topology = open_host(str(SHARED / "data/lspci" / name)).topology()
        assert {str(item.bdf): item.config.data for item in topology} == functions, name


def test_ids_are_those_that_lspci_reads_from_the_same_dumps() -> None:
    lspci = shutil.which("lspci")
    if lspci is None:
        if os.environ.get("CI"):
            pytest.fail("lspci is not installed; apt-get install pciutils")
        pytest.skip("lspci is not installed (pciutils)")
    dumps()
    for path in sorted((SHARED / "data/lspci").iterdir()):
        printed = subprocess.run(
            [lspci, "-F", str(path), "-Dn"], capture_output=True, text=True, check=True
        ).stdout
        ours = [
            f"{item.bdf} {item.identity.class_code >> 8:04x}: "
            f"{item.identity.vendor_id:04x}:{item.identity.device_id:04x}"
            for item in open_host(str(path)).topology()
        ]
        assert ours == [line.partition(" (rev")[0] for line in sorted(printed.splitlines())], path


configs = st.sampled_from(SIZES).flatmap(
    lambda size: st.binary(min_size=16, max_size=64).map(lambda seed: (seed * size)[:size])
)


@given(
    st.lists(
        st.tuples(configs, st.sampled_from(["", "\tKernel driver in use: x\n", "\n"])), max_size=6
    ),
    st.integers(20, 5000),
)
def test_any_dump_reads_as_lspci_reads_it_in_pieces_of_any_size(functions, size) -> None:
    text = "".join(
        f"{number:02x}:00.0 0200: 8086:1521\n{between}{rows(data)}\n"
        for number, (data, between) in enumerate(functions)
    )
    cut = {str(item.bdf): item.data for item in listings(pieces(io.BytesIO(text.encode()), size))}
    assert cut == parsed(text) == by_line(text)


def test_virtual_functions_are_named_by_their_physical_function() -> None:
    host = read([virtual_dump(enabled=True).encode()])
    function = host.topology[Bdf(0, 3, 0x10, 0)]
    assert function.physfn == Bdf(0, 3, 0, 0)
    assert function.identity[:2] == (0x8086, 0x1520)
    assert host.topology[Bdf(0, 3, 0x10, 4)].physfn == Bdf(0, 3, 0, 0)
    assert not any("virtual function" in limit for limit in host.limits)


def test_virtual_functions_without_a_physical_one_are_said_to_be() -> None:
    for text in (
        virtual_dump(enabled=False),
        virtual_dump(enabled=True)[virtual_dump(enabled=True).index("03:10.0") :],
    ):
        host = read([text.encode()])
        function = host.topology[Bdf(0, 3, 0x10, 0)]
        assert not function.is_virtual
        assert function.identity[:2] == (0x8086, 0x1520)  # from the head line
        assert any("03:10.0, 0000:03:10.4: a virtual function" in limit for limit in host.limits)


def virtual_dump(*, enabled: bool) -> str:
    physical = bytearray(4096)
    physical[0:4] = bytes.fromhex("86802115")
    physical[0x100:0x104] = bytes.fromhex("10000100")
    physical[0x108] = enabled
    physical[0x110] = 2  # VFs
    physical[0x114:0x118] = bytes.fromhex("80000400")  # offset 0x80, stride 4
    physical[0x11A:0x11C] = bytes.fromhex("2015")
    virtual = b"\xff" * 4 + bytes(252)
    return "".join(
        f"{address} 0200: 8086:{device}\n{rows(data)}\n"
        for address, device, data in (
            ("03:00.0", "1521", bytes(physical)),
            ("03:10.0", "1520", virtual),
            ("03:10.4", "1520", virtual),
        )
    )

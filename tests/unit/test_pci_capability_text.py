"""Registers in words: nothing is left out, the quick way says what the slow way says."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.host.source import open_host
from vfiokit.pci.capability import Capability, Field, Register, capabilities, catalog
from vfiokit.pci.capability.register import flag
from vfiokit.pci.capability.text import (
    FULL,
    PLAIN,
    WIDTH,
    Style,
    capability_lines,
    field_text,
    header_lines,
    register_text,
    reserved,
)
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.header import TYPE1
from vfiokit.pci.hex_dump import rows

WORD = re.compile(r"^([a-z][a-z0-9_]*)(?:([+-])$| (.*))", re.DOTALL)


@pytest.fixture(scope="module")
def functions():
    return list(open_host("demo").topology())


def slow(capability: Capability, style: Style) -> list[str]:
    """Every register as the description lists it, one after the other."""
    lines = []
    for register in capability.registers():
        text = register_text(register, capability.value(register), style)
        lines += f"    {register.name} {text}".split("\n")
    return lines


def written(capability: Capability, style: Style) -> list[str]:
    """The lines of registers alone, without the head, what follows from them, and raw bytes."""
    lines = "\n".join(capability_lines(capability, style)[1:]).split("\n")
    return [line for line in lines if line and not line.startswith(("    = ", "    raw "))]


@pytest.mark.parametrize("style", [PLAIN, FULL, Style(True, ("<", ">"), ("(", ")"))])
def test_the_quick_way_says_what_the_slow_way_says(functions, style):
    compared = 0
    for function in functions:
        for capability in function.capabilities:
            if style.faint[0]:
                lines = [line for line in written(capability, style) if "    (raw" not in line]
            else:
                lines = written(capability, style)
            assert lines == slow(capability, style)
            compared += len(lines)
    assert compared > 5000


def test_random_bytes_of_every_layout_are_written_both_ways_alike():
    chance = random.Random(7)
    for layout in catalog.layouts():
        for _ in range(6):
            data = bytearray(4096)
            start = 0x100 if layout.extended else 0x40
            data[start:] = chance.randbytes(4096 - start)
            for length in (4096, start + 24):
                config = ConfigSpace(bytes(data[:length]))
                capability = Capability(
                    config, start, layout.cap_id, extended=layout.extended, version=1
                )
                assert written(capability, FULL) == slow(capability, FULL)


def test_corrupted_spaces_are_written_without_exception(functions):
    chance = random.Random(11)
    spaces = [bytearray(function.config.data) for function in functions[::7]]
    for _ in range(1500):
        data = bytearray(chance.choice(spaces))
        for _ in range(chance.randrange(1, 40)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        config = ConfigSpace(bytes(data[: chance.choice((64, 200, 256, 4096))]))
        header_lines(config, FULL)
        for capability in capabilities(config):
            assert capability_lines(capability, FULL)


def test_every_field_is_there_with_its_value(functions):
    """Names, flags and plain numbers of the text, read back, are what ``decode`` gives."""
    checked = 0
    for function in functions:
        for capability in function.capabilities:
            decoded = capability.decode()["registers"]
            for register in capability.registers():
                raw = capability.value(register)
                _, _, fields = register_text(register, raw).partition(":")
                said = " " + " ".join(fields.split())
                for field in register.fields:
                    value = decoded[register.name][field.name]
                    if (flagged := f" {field.name}+" in said) or f" {field.name}-" in said:
                        assert flagged == bool(value)
                    elif value in field.meaning:
                        assert f" {field.name} {field.meaning[value]}" in said
                    else:
                        (shown,) = re.findall(rf" {field.name} (0x[0-9a-f]+|[0-9]+)\b", said)
                        assert int(shown, 0) == value
                    checked += 1
    assert checked > 15000


def test_lines_are_not_longer_than_can_be_read(functions):
    for function in functions:
        for capability in function.capabilities:
            for line in written(capability, PLAIN):
                assert len(line) <= WIDTH + 10, line


def test_reserved_bits_are_those_without_a_field():
    register = Register("r", 0, 2, (flag("a", 15), Field("b", 11, 4), flag("c", 0)))
    assert reserved(register) == ((14, 12), (3, 1))
    assert register_text(register, 0x7002, FULL).endswith(
        "a- b 0, c- reserved[14:12] 0x7, reserved[3:1] 0x1"
    )


@given(st.integers(1, 8), st.integers(0, 2**64 - 1), st.data())
def test_fields_and_reserved_bits_make_up_the_register(width, raw, data):
    bits = 8 * width
    cuts = sorted(set(data.draw(st.lists(st.integers(0, bits), max_size=8))))
    fields = tuple(Field(f"f{low}", high - 1, low) for low, high in list(pairwise(cuts))[::2])
    register = Register("r", 0, width, fields)
    runs = [((1 << high - low + 1) - 1) << low for high, low in reserved(register)]
    masks = [field.mask for field in fields] + runs
    assert sum(masks) == (1 << bits) - 1
    assert register_text(register, raw & (1 << bits) - 1, FULL)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        (flag("enable", 0), 1, "enable+"),
        (flag("enable", 0), 0, "enable-"),
        (Field("speed", 3, 0, meaning={3: "8 GT/s"}), 3, "speed 8 GT/s,"),
        (Field("speed", 3, 0, meaning={3: "8 GT/s"}), 9, "speed 9,"),
        (Field("payload", 2, 0, meaning={1: "256"}, unit="bytes, as named"), 1,
         "payload 256 bytes,"),
        (Field("payload", 2, 0, meaning={1: "256"}, unit="bytes, as named"), 7,
         "payload 7 bytes code,"),
        (Field("vectors", 2, 0, meaning={5: "32"}, unit="log2 vectors"), 5, "vectors 32 vectors,"),
        (Field("offset", 31, 3, unit="8 bytes"), 1024, "offset 1024 × 8 bytes,"),
        (Field("bar", 31, 0), 0xFEE00000, "bar 0xfee00000,"),
        (Field("num_vfs", 15, 0), 16, "num_vfs 16,"),
        (Field("lanes", 5, 0, unit="lanes"), 16, "lanes 16 lanes,"),
    ],
)  # fmt: skip
def test_a_field_is_said_as_people_say_it(field, value, text):
    assert field_text(field, value) == text


def test_raw_bytes_are_those_of_the_capability(functions):
    (function,) = [each for each in functions if str(each.bdf) == "0000:05:00.0"]
    for capability in function.capabilities:
        raw = [line.split(": ")[1] for line in capability_lines(capability, FULL) if "raw " in line]
        start = capability.offset
        expected = function.config.data[start : start + capability.size]
        assert bytes.fromhex(" ".join(raw)) == expected


def test_the_header_is_in_words_and_in_full_with_every_register(functions):
    (port,) = [each for each in functions if str(each.bdf) == "0000:00:02.0"]
    brief = "\n".join(header_lines(port.config, PLAIN))
    assert "bus_master+" in brief
    assert "secondary_bus " not in brief
    full = "\n".join(header_lines(port.config, FULL))
    assert all(f"    {register.name} " in full for register in TYPE1)
    assert "secondary_bus 0x05" in full


@given(st.binary(max_size=4200))
def test_rows_are_those_that_the_reader_reads(data):
    text = rows(data)
    assert b"".join(bytes.fromhex(row.partition(": ")[2]) for row in text) == data[:4096]
    assert [int(row.partition(":")[0], 16) for row in text] == list(range(0, len(data[:4096]), 16))

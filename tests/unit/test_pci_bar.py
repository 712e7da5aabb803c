from __future__ import annotations

import re
import struct

import pytest
from pci_dumps import dumps

from vfiokit.errors import UsageError
from vfiokit.pci.address import Bdf
from vfiokit.pci.bar import Bar, Window, bars, rom, windows
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Resource

IO, MEM32, MEM64 = 0x40101, 0x40200, 0x14220C
"""Flag words as sysfs shows them for I/O, 32-bit and 64-bit prefetchable BARs."""


def function(
    *resources: Resource,
    registers: tuple[int, ...] = (),
    msix: tuple[int, int, int] | None = None,
    header: int = 0,
    virtual: bool = False,
) -> Function:
    """``msix`` is vectors, table register, pending bit array register."""
    data = bytearray(256)
    data[0x0E] = header
    struct.pack_into(f"<{len(registers)}I", data, 0x10, *registers)
    if msix is not None:
        data[0x06], data[0x34] = 0x10, 0x70
        struct.pack_into("<BBHII", data, 0x70, 0x11, 0, msix[0] - 1, msix[1], msix[2])
    return Function(
        Bdf(0, 3, 0, 3),
        ConfigSpace(data),
        resources=resources,
        physfn=Bdf(0, 3, 0, 0) if virtual else None,
    )


def only(device: Function) -> Bar:
    (bar,) = bars(device)
    return bar


# --- BARs ---


def test_kernel_record_gives_address_and_size():
    device = function(
        Resource(0, 0xC1800000, 0xC1FFFFFF, MEM64),
        Resource(3, 0xC4000000, 0xC4007FFF, MEM64),
        Resource(4, 0xE000, 0xE01F, IO),
        Resource(5, 0, 0, 0),
        Resource(6, 0xFEB80000, 0xFEBBFFFF, 0x46200),
        Resource(7, 0xD0000000, 0xD00FFFFF, MEM64),
    )
    assert bars(device) == (
        Bar(0, "memory64", True, 0xC1800000, 0x800000),
        Bar(3, "memory64", True, 0xC4000000, 0x8000),
        Bar(4, "io", False, 0xE000, 32),
    )
    assert rom(device) == Bar(6, "memory32", False, 0xFEB80000, 0x40000)


def test_unassigned_resource_has_a_size_and_no_address():
    device = function(Resource(0, 0, 0xFFF, MEM32 | 0x20000000))
    assert only(device) == Bar(0, "memory32", False, 0, 0x1000)
    assert windows(device, only(device)) == (Window(0, 0x1000, True, "has no address"),)


def test_registers_alone_tell_no_size():
    device = function(registers=(0xC180000C, 0x1, 0, 0xE001, 0, 0))
    assert bars(device) == (
        Bar(0, "memory64", True, 0x1C1800000, None),
        Bar(3, "io", False, 0xE000, None),
    )
    assert windows(device, bars(device)[0]) == ()


def test_bridge_has_two_bars():
    device = function(registers=(0xFE000000, 0, 0x00030201, 0xF1F1), header=1)
    assert [bar.index for bar in bars(device)] == [0]


def test_vf_has_bars_only_where_the_kernel_recorded_them():
    assert bars(function(registers=(0xFE000000,), virtual=True)) == ()
    device = function(Resource(0, 0xFE000000, 0xFE003FFF, MEM64), virtual=True)
    assert only(device).size == 0x4000
    assert rom(device) is None


def test_dead_function_has_no_bars():
    device = Function(Bdf(0, 0, 0, 0), ConfigSpace(b"\xff" * 256))
    assert bars(device) == ()
    assert rom(device) is None


def test_rom_without_a_record_comes_from_its_register():
    device = function()
    data = bytearray(device.config.data)
    struct.pack_into("<I", data, 0x30, 0xFEB80001)
    found = rom(Function(device.bdf, ConfigSpace(data)))
    assert found == Bar(6, "memory32", False, 0xFEB80000, None)
    assert rom(device) is None


def test_bars_agree_with_lspci():
    checked = 0
    for dump in dumps():
        header = dump.text.split("Capabilities:")[0]
        found = {bar.index: bar for bar in bars(Function(Bdf(0, 0, 0, 0), dump.config))}
        for index, rest in re.findall(r"^\s+Region (\d): (.*)$", header, re.MULTILINE):
            ports = re.match(r"I/O ports at (\w+)", rest)
            memory = re.match(r"Memory at (\w+) \((\d\d)-bit, (non-)?prefetchable\)", rest)
            if ports:
                assert found[int(index)][1:4] == ("io", False, int(ports[1], 16))
            elif memory:
                expected = (f"memory{memory[2]}", not memory[3], int(memory[1], 16))
                assert found[int(index)][1:4] == expected, (dump.file, dump.bdf)
            checked += bool(ports or memory)
    assert checked == 27


# --- Windows ---


def test_40_gigabit_adapter_is_split_as_qemu_splits_it():
    device = function(
        Resource(0, 0xC1800000, 0xC1FFFFFF, MEM64),
        Resource(3, 0xC4000000, 0xC4007FFF, MEM64),
        msix=(129, 0x3, 0x1003),
    )
    first, third = bars(device)
    assert windows(device, first) == (Window(0, 0x800000, False, ""),)
    assert windows(device, third) == (
        Window(0x0, 0x810, True, "MSI-X table"),
        Window(0x810, 0x7F0, True, "shares a page with the MSI-X table"),
        Window(0x1000, 0x7000, False, ""),
    )


def test_larger_pages_trap_more():
    device = function(Resource(3, 0xC4000000, 0xC401FFFF, MEM64), msix=(129, 0x8003, 0x9003))
    assert windows(device, only(device), 0x10000) == (
        Window(0x0, 0x8000, True, "shares a page with the MSI-X table"),
        Window(0x8000, 0x810, True, "MSI-X table"),
        Window(0x8810, 0x77F0, True, "shares a page with the MSI-X table"),
        Window(0x10000, 0x10000, False, ""),
    )


def test_table_in_the_last_page_leaves_the_front_mapped():
    device = function(Resource(0, 0xFE000000, 0xFE003FFF, MEM32), msix=(256, 0x3000, 0x2000))
    assert windows(device, only(device)) == (
        Window(0, 0x3000, False, ""),
        Window(0x3000, 0x1000, True, "MSI-X table"),
    )


def test_io_bar_is_trapped_whole():
    device = function(Resource(2, 0x1020, 0x103F, IO), msix=(4, 0x2, 0x12))
    assert windows(device, only(device)) == (Window(0, 32, True, "I/O ports"),)


def test_small_bar_at_the_start_of_a_page_may_be_mapped():
    device = function(Resource(0, 0xFE001000, 0xFE0010FF, MEM32))
    (window,) = windows(device, only(device))
    assert (window.length, window.trapped) == (0x100, False)
    assert "rest of its page" in window.reason


def test_small_bar_elsewhere_in_a_page_is_trapped():
    device = function(Resource(0, 0xFE001100, 0xFE0011FF, MEM32))
    (window,) = windows(device, only(device))
    assert (window.trapped, window.reason) == (
        True,
        "smaller than a page and not at the start of one",
    )


def test_small_bar_beside_another_of_the_same_function_is_trapped():
    device = function(
        Resource(0, 0xFE001000, 0xFE0010FF, MEM32), Resource(1, 0xFE001100, 0xFE0011FF, MEM32)
    )
    (window,) = windows(device, bars(device)[0])
    assert (window.trapped, window.reason) == (True, "shares its page with BAR 1")


def test_small_bar_with_the_msix_table_is_trapped():
    device = function(Resource(1, 0xFE001000, 0xFE0010FF, MEM32), msix=(2, 0x1, 0x81))
    (window,) = windows(device, only(device))
    assert (window.trapped, window.reason) == (True, "holds the MSI-X table")


def test_table_beyond_the_bar_is_no_table():
    device = function(Resource(0, 0xFE000000, 0xFE000FFF, MEM32), msix=(2, 0x8000, 0x9000))
    assert windows(device, only(device)) == (Window(0, 0x1000, False, ""),)


def test_table_that_runs_out_of_the_bar_is_cut():
    device = function(Resource(0, 0xFE000000, 0xFE000FFF, MEM32), msix=(2048, 0x800, 0))
    assert windows(device, only(device))[-1] == Window(0x800, 0x800, True, "MSI-X table")


@pytest.mark.parametrize("page_size", [0, -4096, 4095, 12288])
def test_page_size_must_be_a_power_of_two(page_size):
    device = function(Resource(0, 0xFE000000, 0xFE000FFF, MEM32))
    with pytest.raises(UsageError, match="power of two"):
        windows(device, only(device), page_size)

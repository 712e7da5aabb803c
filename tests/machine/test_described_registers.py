"""Registers of modelled functions behave as the description of their capability says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vfiokit.host.source import open_tree
from vfiokit.machine.function import Function
from vfiokit.machine.reset import ResetKind
from vfiokit.machine.twin import Twin, build_twin
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import Capability
from vfiokit.pci.capability.register import Register

BY_INSTANCE = {"acs", "msi", "msix", "resizable-bar", "sriov", "vpd"}
"""Capabilities whose writable bits the description alone does not tell."""
FLR = 0x8000


@pytest.fixture(scope="module")
def twin() -> Twin:
    return build_twin(open_tree("demo"))


def described(twin: Twin) -> Iterator[tuple[Function, Capability, Register, int]]:
    for function in twin.machine.functions.values():
        for capability in function.capabilities():
            if capability.name in BY_INSTANCE:
                continue
            for register in capability.registers():
                yield function, capability, register, capability.offset + register.offset


def test_a_write_changes_what_the_description_calls_writable(twin: Twin) -> None:
    checked = 0
    for function, capability, register, at in described(twin):
        if capability.name in ("power", "advanced"):
            continue  # a change of power state and a reset have effects of their own
        writable, clears = register.writable("rw"), register.writable("rw1c")
        if (capability.name, register.name) == ("express", "device_control"):
            writable &= ~FLR  # starts a reset, or is not there
        if (capability.name, register.name) == ("express", "link_control"):
            writable &= ~0x20  # Retrain Link reads zero
        width, before = register.width, function.config.read(at, register.width)
        function.config_write(at, width, writable)
        after = function.config.read(at, width)
        assert after & writable == writable, (str(function.bdf), capability.name, register.name)
        assert after & ~(writable | clears) == before & ~(writable | clears)
        function.config_write(at, width, 0)
        assert function.config.read(at, width) & writable == 0
        checked += 1
    assert checked > 1500


def test_status_bits_clear_where_one_is_written(twin: Twin) -> None:
    seen = 0
    for function, capability, register, at in described(twin):
        clears = register.writable("rw1c")
        if not clears or capability.name == "power":
            continue
        function.config.set(at, register.width, clears)
        lowest = clears & -clears
        function.config_write(at, register.width, lowest)
        assert function.config.read(at, register.width) & clears == clears & ~lowest
        seen += 1
    assert seen > 150


def test_error_registers_survive_a_reset_and_link_control_does_not() -> None:
    machine = build_twin(open_tree("demo")).machine
    drive = machine.functions[Bdf.parse("05:00.0")]
    express = next(item for item in drive.capabilities() if item.name == "express")
    errors = next(item for item in drive.capabilities() if item.name == "aer")
    link, mask = express.offset + 0x10, errors.offset + 0x08
    before = drive.config.read(link, 2)
    drive.config_write(link, 2, before ^ 0x40)
    drive.config_write(mask, 4, 0x1000)
    machine.reset_function(drive.bdf, ResetKind.FUNCTION_LEVEL)
    assert drive.config.read(link, 2) == before
    assert drive.config.read(mask, 4) == 0x1000


def test_a_function_without_flr_has_no_bit_to_start_one(twin: Twin) -> None:
    for function in twin.machine.functions.values():
        for capability in function.capabilities():
            if capability.name != "express":
                continue
            resets = function.config.read(capability.offset + 4, 4) >> 28 & 1
            mask = int.from_bytes(function.config.write_mask[capability.offset + 8 :][:2], "little")
            assert bool(mask & FLR) == bool(resets)

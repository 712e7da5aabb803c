from __future__ import annotations

import json
import re
import struct

import pytest
from pci_dumps import dumps

from vfiokit.abi import pci_regs
from vfiokit.pci import header
from vfiokit.pci.config import ConfigSpace


@pytest.mark.parametrize("table", [header.TYPE0, header.TYPE1, header.TYPE2])
def test_registers_do_not_overlap_or_repeat(table):
    names, taken = set(), set()
    for register in (*header.COMMON, *table):
        assert register.name not in names
        names.add(register.name)
        if register.name in ("class_code", "revision_id"):
            continue  # one dword holds both
        bytes_used = set(range(register.offset, register.offset + register.width))
        assert not bytes_used & taken, register.name
        taken |= bytes_used
    assert taken | set(range(8, 12)) >= set(range(0x10))


@pytest.mark.parametrize(
    ("register", "name"),
    [
        (header.COMMAND, "PCI_COMMAND"),
        (header.STATUS, "PCI_STATUS"),
        (header.HEADER_TYPE, "PCI_HEADER_TYPE"),
        (header.EXPANSION_ROM, "PCI_ROM_ADDRESS"),
        (header.BRIDGE_EXPANSION_ROM, "PCI_ROM_ADDRESS1"),
        (header.SECONDARY_BUS, "PCI_SECONDARY_BUS"),
        (header.SUBORDINATE_BUS, "PCI_SUBORDINATE_BUS"),
        (header.MEMORY_BASE, "PCI_MEMORY_BASE"),
        (header.PREFETCH_LIMIT_UPPER, "PCI_PREF_LIMIT_UPPER32"),
        (header.BRIDGE_CONTROL, "PCI_BRIDGE_CONTROL"),
        (header.INTERRUPT_PIN, "PCI_INTERRUPT_PIN"),
        (header.SUBSYSTEM_ID, "PCI_SUBSYSTEM_ID"),
        (header.BARS[5], "PCI_BASE_ADDRESS_5"),
    ],
)
def test_offsets_are_those_of_linux(register, name):
    assert register.offset == getattr(pci_regs, name)


@pytest.mark.parametrize(
    ("field", "mask"),
    [
        (header.COMMAND.field("bus_master"), pci_regs.PCI_COMMAND_MASTER),
        (header.COMMAND.field("interrupt_disable"), pci_regs.PCI_COMMAND_INTX_DISABLE),
        (header.STATUS.field("devsel_timing"), pci_regs.PCI_STATUS_DEVSEL_MASK),
        (header.STATUS.field("received_master_abort"), pci_regs.PCI_STATUS_REC_MASTER_ABORT),
        (header.BRIDGE_CONTROL.field("secondary_bus_reset"), pci_regs.PCI_BRIDGE_CTL_BUS_RESET),
        (header.HEADER_TYPE.field("multifunction"), pci_regs.PCI_HEADER_TYPE_MFD),
    ],
)
def test_fields_are_those_of_linux(field, mask):
    assert field.mask == mask


def test_bridge_header_decodes():
    data = bytearray(64)
    data[0x0E] = 0x81
    data[0x18:0x1B] = bytes([0, 1, 4])
    struct.pack_into("<H", data, 0x3E, 0x0043)
    decoded = header.decode(ConfigSpace(data))
    assert decoded["header_type"] == {"value": 0x81, "layout": 1, "multifunction": 1}
    assert decoded["secondary_bus"]["value"] == 1
    assert decoded["subordinate_bus"]["value"] == 4
    assert decoded["bridge_control"]["secondary_bus_reset"] == 1
    assert "subsystem_id" not in decoded


def test_unknown_header_type_decodes_the_common_part():
    data = bytearray(64)
    data[0x0E] = 0x7F
    assert set(header.decode(ConfigSpace(data))) == {register.name for register in header.COMMON}


@pytest.mark.parametrize("length", [0, 1, 3, 14, 15, 63])
def test_truncated_header_decodes_what_is_there(length):
    decoded = header.decode(ConfigSpace(bytes(length)))
    assert ("vendor_id" in decoded) == (length >= 2)
    assert "max_latency" not in decoded


def test_command_and_status_agree_with_lspci():
    commands = {
        "I/O": "io_space",
        "Mem": "memory_space",
        "BusMaster": "bus_master",
        "SERR": "system_error",
        "DisINTx": "interrupt_disable",
    }
    statuses = {
        "Cap": "capabilities_list",
        "66MHz": "capable_66mhz",
        "INTx": "interrupt",
        "<MAbort": "received_master_abort",
        "ParErr": "master_data_parity_error",
    }
    checked = 0
    for dump in dumps():
        decoded = header.decode(dump.config)
        json.dumps(decoded)
        for label, register, names in (
            ("Control", "command", commands),
            ("Status", "status", statuses),
        ):
            line = re.search(rf"^\s+{label}: (.*)$", dump.text, re.MULTILINE)
            if line is None:
                continue
            shown = dict(re.findall(r"(\S+?)([+-])(?:\s|$)", line[1]))
            for short, name in names.items():
                if short in shown:
                    assert decoded[register][name] == (shown[short] == "+"), (dump.bdf, short)
                    checked += 1
    assert checked >= 100

from __future__ import annotations

import json
import re
import struct

import pytest
from pci_dumps import Dump, dumps

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.address import Bdf
from vfiokit.pci.base_address import BaseAddress, base_addresses
from vfiokit.pci.capability import (
    Capability,
    acs,
    advanced,
    ats,
    capabilities,
    catalog,
    express,
    msi,
    msix,
    power,
    sriov,
)
from vfiokit.pci.config import ConfigSpace


@pytest.fixture(scope="module")
def real() -> list[Dump]:
    return dumps()


def at(offset: int, body: bytes, *, size: int = 4096, next_offset: int = 0) -> Capability:
    """The one capability of a configuration space: ``body`` follows the header."""
    data = bytearray(size)
    data[0x06] = 0x10
    if offset >= 0x100:
        data[offset : offset + 4 + len(body[2:])] = (
            body[:2] + struct.pack("<H", next_offset << 4 | 1) + body[2:]
        )
    else:
        data[0x34] = offset
        data[offset : offset + len(body) + 1] = body[:1] + bytes([next_offset]) + body[1:]
    return next(iter(capabilities(ConfigSpace(data[:size]))))


def standard(cap_id: int, *registers: int, size: int = 256) -> Capability:
    """A standard capability at 0x40: 16 bits after the header, then dwords."""
    head = struct.pack("<BH", cap_id, registers[0])
    return at(0x40, head + struct.pack(f"<{len(registers) - 1}I", *registers[1:]), size=size)


def extended(cap_id: int, *dwords: int) -> Capability:
    return at(0x100, struct.pack(f"<H{len(dwords)}I", cap_id, *dwords))


# --- Descriptions ---


def check_registers(registers):
    names = [register.name for register in registers]
    assert len(names) == len(set(names))
    for register in registers:
        assert register.width in (1, 2, 4)
        assert register.offset % register.width == 0
        fields = [field.name for field in register.fields]
        assert len(fields) == len(set(fields))
        assert "value" not in fields
        taken = 0
        for field in register.fields:
            assert 0 <= field.low <= field.high < register.width * 8
            assert field.access in {"ro", "rw", "rw1c", "hwinit", "rsvd"}
            assert not taken & field.mask
            taken |= field.mask


@pytest.mark.parametrize("layout", [*catalog.layouts()], ids=lambda layout: layout.name)
def test_descriptions_are_well_formed(layout):
    check_registers(layout.registers)
    for register in layout.registers:
        assert register.offset >= (4 if layout.extended else 2)
        assert layout.register(register.name) is register
    for repeated in layout.repeated:
        check_registers(repeated.registers)
        assert repeated.label
    for variant in layout.variants:
        assert (variant.layout.cap_id, variant.layout.extended) == (layout.cap_id, layout.extended)
        assert not variant.layout.variants


def test_names_are_unique():
    names = [layout.name for layout in catalog.layouts()]
    assert len(names) == len(set(names))
    assert len(names) > 100


@pytest.mark.parametrize("extended", [False, True])
def test_catalog_leads_to_the_layout_of_the_id(extended):
    for cap_id in catalog.EXTENDED if extended else catalog.STANDARD:
        layout = catalog.layout(cap_id, extended=extended)
        assert (layout.cap_id, layout.extended) == (cap_id, extended)


def test_unknown_register_and_field_are_key_errors():
    with pytest.raises(KeyError, match="nonsense"):
        msix.LAYOUT.register("nonsense")
    with pytest.raises(KeyError, match="nonsense"):
        msix.CONTROL.field("nonsense")


def test_writable_bits_follow_the_access():
    assert msix.CONTROL.writable() == 0xC000
    assert msi.CONTROL.writable() == 0x0471
    assert express.DEVICE_STATUS.writable("rw1c") == 0x4F


# --- Walks ---


def codes(config: ConfigSpace) -> list[str]:
    return [finding.code for finding in capabilities(config).findings]


def test_loop_in_the_standard_list_is_a_finding():
    data = bytearray(256)
    data[0x06], data[0x34] = 0x10, 0x40
    data[0x40:0x42], data[0x50:0x52] = b"\x01\x50", b"\x05\x40"
    found = capabilities(ConfigSpace(data))
    assert [capability.id for capability in found] == [0x01, 0x05]
    assert [finding.code for finding in found.findings] == ["loop"]


def test_loop_in_the_extended_list_is_a_finding():
    data = bytearray(4096)
    struct.pack_into("<I", data, 0x100, 0x140 << 20 | 0x1000D)
    struct.pack_into("<I", data, 0x140, 0x100 << 20 | 0x1000E)
    found = capabilities(ConfigSpace(data))
    assert [capability.id for capability in found] == [0x0D, 0x0E]
    assert [finding.code for finding in found.findings] == ["loop"]


@pytest.mark.parametrize("pointer", [0x04, 0x10, 0x3C])
def test_pointer_into_the_header_is_a_finding(pointer):
    data = bytearray(256)
    data[0x06], data[0x34] = 0x10, pointer
    assert codes(ConfigSpace(data)) == ["bad-pointer"]


def test_extended_pointer_below_256_is_a_finding():
    data = bytearray(4096)
    struct.pack_into("<I", data, 0x100, 0x40 << 20 | 0x1000D)
    assert codes(ConfigSpace(data)) == ["bad-pointer"]


def test_capability_that_reads_all_ones_is_a_finding():
    data = bytearray(256)
    data[0x06], data[0x34], data[0x40] = 0x10, 0x40, 0xFF
    assert codes(ConfigSpace(data)) == ["bad-pointer"]


def test_capture_without_privilege_is_truncated_not_wrong():
    data = bytearray(64)
    data[0x06], data[0x34] = 0x10, 0x40
    assert codes(ConfigSpace(data)) == ["truncated"]


def test_low_pointer_bits_are_ignored():
    data = bytearray(256)
    data[0x06], data[0x34], data[0x40] = 0x10, 0x43, 0x11
    assert capabilities(ConfigSpace(data)).find(0x11).offset == 0x40


def test_without_the_status_bit_there_is_no_list():
    data = bytearray(256)
    data[0x34], data[0x40] = 0x40, 0x11
    assert len(capabilities(ConfigSpace(data))) == 0


def test_cardbus_bridge_has_its_pointer_elsewhere():
    data = bytearray(256)
    data[0x06], data[0x0E], data[0x14], data[0xA0] = 0x10, 2, 0xA0, 0x01
    assert capabilities(ConfigSpace(data)).find(0x01).offset == 0xA0


def test_extended_capability_that_reads_all_ones_is_a_finding():
    data = bytearray(b"\xff" * 4096)
    data[:256] = bytes(256)
    assert codes(ConfigSpace(data)) == []  # conventional: there is no extended space
    struct.pack_into("<I", data, 0x100, 0x140 << 20 | 0x1000D)
    assert codes(ConfigSpace(data)) == ["bad-pointer"]


def test_contents_are_examined_when_asked():
    data = bytearray(4096)
    struct.pack_into("<II", data, 0x100, 0x108 << 20 | 0x1000B, 0x02000001)  # 32 bytes, not 8
    struct.pack_into("<II", data, 0x108, 0xFFC << 20 | 0x1000B, 0x00400001)  # 4 bytes
    struct.pack_into("<I", data, 0xFFC, 0x1000D)
    found = capabilities(ConfigSpace(data))
    assert found.findings == ()
    assert [(finding.offset, finding.code) for finding in found.examine()] == [
        (0x100, "overlap"),
        (0x108, "bad-length"),
        (0xFFC, "truncated"),
    ]


def test_real_contents_have_nothing_to_find(real):
    found = {
        (dump.file, finding.code)
        for dump in real
        for finding in capabilities(dump.config).examine()
    }
    # A loop for which the dump was kept, and an Intel capability that says it has 255 bytes.
    assert found == {("broken-ecaps", "loop"), ("tree-asus-p6t6", "past-end")}


def test_placeholder_at_0x100_leads_to_the_first_extended_capability():
    data = bytearray(4096)
    struct.pack_into("<I", data, 0x100, 0x150 << 20)
    struct.pack_into("<I", data, 0x150, 0x2000D)
    found = capabilities(ConfigSpace(data))
    assert [(capability.offset, capability.version) for capability in found] == [(0x150, 2)]


def test_find_keeps_the_two_id_spaces_apart():
    data = bytearray(4096)
    data[0x06], data[0x34], data[0x40] = 0x10, 0x40, 0x0D
    struct.pack_into("<I", data, 0x100, 0x1000D)
    found = capabilities(ConfigSpace(data))
    assert found.find(0x0D).name == "subsystem"
    assert found.find_extended(0x0D).name == "acs"
    assert found.find(0x10) is None


def test_unknown_capability_is_named_by_its_number():
    assert standard(0x7E, 0).name == "cap-0x7e"
    assert standard(0x7E, 0).title == "Capability ID 0x7e"
    assert extended(0x7777).name == "ext-0x7777"
    assert extended(0x7777).decode()["registers"] == {}
    assert (standard(0x7E, 0).size, extended(0x7777).size) == (2, 4)


def test_truncated_capability_decodes_as_far_as_it_goes():
    capability = standard(0x11, 0x8010, 0x3, 0x1003, size=0x48)
    decoded = capability.decode()
    assert set(decoded["registers"]) == {"control", "table"}
    assert "0x48" in decoded["truncated"]
    with pytest.raises(ConfigRangeError):
        msix.pba(capability)


def test_size_of_a_truncated_capability_is_its_header():
    assert standard(0x05, 0, size=0x42).size == 2


def test_standard_capability_does_not_reach_into_the_extended_space():
    data = bytearray(4096)
    data[0x06], data[0x34], data[0xF8] = 0x10, 0xF8, 0x11
    decoded = capabilities(ConfigSpace(data)).find(0x11).decode()
    assert set(decoded["registers"]) == {"control", "table"}


# --- Families ---


@pytest.mark.parametrize(
    ("control", "size", "present"),
    [
        (0x0000, 10, {"control", "address", "data_32"}),
        (0x0080, 14, {"control", "address", "address_upper", "data_64"}),
        (0x0100, 20, {"control", "address", "data_32", "mask_32", "pending_32"}),
        (
            0x0180,
            24,
            {"control", "address", "address_upper", "data_64", "mask_64", "pending_64"},
        ),
        (0x0200, 12, {"control", "address", "data_32", "extended_data_32"}),
    ],
)
def test_msi_has_four_forms(control, size, present):
    capability = standard(0x05, control, 0xFEE00000, 0, 0, 0, 0)
    assert capability.size == size
    assert {register.name for register in capability.registers()} == present


def test_msi_message_is_put_together():
    capability = standard(0x05, 0x00A7, 0xFEE01004, 0x1, 0x4041)
    decoded = capability.decode()
    assert decoded["message_address"] == 0x1FEE01004
    assert decoded["message_data"] == 0x4041
    assert (decoded["vectors"], decoded["vectors_enabled"]) == (8, 4)


def test_msi_reserved_count_is_at_most_32_vectors():
    assert msi.vectors(standard(0x05, 0x000E, 0, 0)) == 32


def test_msix_structures_are_derived():
    capability = standard(0x11, 0x8080, 0x3, 0x1003)
    assert msix.vectors(capability) == 129
    assert msix.table(capability) == msix.Structure(3, 0, 0x810)
    assert msix.pba(capability) == msix.Structure(3, 0x1000, 24)
    assert capability.decode()["vector_table"] == {"bar": 3, "offset": 0, "length": 0x810}


def test_acs_egress_vector_of_size_0_has_256_bits():
    vector = [0xFFFFFFFF, *[0] * 6, 0x80000000]
    capability = extended(0x0D, 0x00000020, *vector)
    bits = acs.egress_vector(capability)
    assert (len(bits), sum(bits), bits[255]) == (256, 33, 1)
    assert capability.size == 8 + 32


def test_acs_egress_vector_has_as_many_bits_as_it_says():
    capability = extended(0x0D, 0x00000520, 0b10101)
    assert acs.egress_vector(capability) == (1, 0, 1, 0, 1)
    assert capability.size == 12
    assert capability.decode()["egress_vector"] == [1, 0, 1, 0, 1]


def test_acs_without_egress_control_has_no_vector():
    capability = extended(0x0D, 0x001D001F, 0xFFFFFFFF)
    assert acs.egress_vector(capability) == ()
    assert capability.size == 8
    assert capability.field(acs.CONTROL, "request_redirect") == 1
    assert capability.field(acs.CONTROL, "translation_blocking") == 0


def test_ats_depth_0_means_32():
    decoded = extended(0x0F, 0x80010000).decode()
    assert (decoded["queue_depth"], decoded["translation_unit"]) == (32, 8192)
    assert extended(0x0F, 0x80010000).field(ats.CONTROL, "enable") == 1


@pytest.mark.parametrize(
    ("version", "kind", "slot", "groups", "size"),
    [
        (1, 0x0, False, {"link"}, 0x14),
        (1, 0x4, True, {"link", "slot", "root"}, 0x24),
        (1, 0x6, True, {"link", "slot"}, 0x1C),
        (1, 0x9, False, set(), 0x0C),
        (2, 0x0, True, {"link", "link_2", "device_2"}, 0x3C),
        (2, 0x4, False, {"link", "root", "link_2", "device_2"}, 0x3C),
        (2, 0x6, True, {"link", "slot", "link_2", "slot_2", "device_2"}, 0x3C),
        (2, 0xA, False, {"root", "device_2"}, 0x3C),
    ],
)
def test_express_registers_depend_on_version_and_port_type(version, kind, slot, groups, size):
    flags = slot << 8 | kind << 4 | version
    capability = standard(0x10, flags, *[0] * 16)
    names = {register.name for register in capability.registers()}
    assert {"capabilities", "device_capabilities", "device_control", "device_status"} <= names
    found = {
        name.rsplit("_", 2)[0] + "_2" if name.endswith("_2") else name.rsplit("_", 1)[0]
        for name in names
    }
    assert found - {"capabilities", "device"} == groups
    assert capability.size == size


def test_vf_addresses_follow_offset_and_stride():
    capability = extended(
        0x10, 0, 0x19, 0x00100010, 0x10, 0x00040010, 0x1EB80000, 0x553, 1, 0xD000000C, 0x42
    )
    physfn = Bdf.parse("0000:09:00.0")
    addresses = [str(sriov.vf_address(capability, physfn, index)) for index in (0, 1, 61)]
    assert addresses == ["0000:09:02.0", "0000:09:02.4", "0000:0a:00.4"]
    decoded = capability.decode()
    assert decoded["vf_bars"] == [
        {"index": 0, "kind": "memory64", "prefetchable": True, "address": 0x42D0000000}
    ]
    assert decoded["page_size"] == 4096
    assert decoded["page_sizes"][:3] == [4096, 8192, 65536]


def test_vf_address_wraps_at_16_bits():
    capability = extended(0x10, 0, 0, 0, 0, 0x00010100)
    assert str(sriov.vf_address(capability, Bdf(5, 0xFF, 0, 1), 1)) == "0005:00:00.2"


def test_pme_states_are_named():
    assert standard(0x01, 0xC803, 0).decode()["pme_from"] == ["D0", "D3hot", "D3cold"]


def test_advanced_features_tell_function_level_reset():
    capability = standard(0x13, 0x0306, 0)
    assert capability.field(advanced.CAPABILITIES, "function_level_reset") == 1
    assert capability.field(advanced.LENGTH, "length") == 6


def test_base_address_registers_decode():
    registers = [0xE001, 0xFEB00000, 0xC000000C, 0x42, 0, 0xFEC00004]
    assert base_addresses(registers) == (
        BaseAddress(0, "io", False, 0xE000),
        BaseAddress(1, "memory32", False, 0xFEB00000),
        BaseAddress(2, "memory64", True, 0x42C0000000),
        BaseAddress(5, "memory64", False, 0xFEC00000),
    )


# --- What lspci, an independent decoder, says of real devices ---


def lspci_flags(text: str, label: str) -> dict[str, bool]:
    line = re.search(rf"{label}:\s*(.*)", text)
    assert line is not None
    return {
        name: sign == "+" for name, sign in re.findall(r"([\w()-]+?)([+-])(?=[\s,]|$)", line[1])
    }


def test_msi_agrees_with_lspci(real):
    checked = 0
    for dump in real:
        capability = capabilities(dump.config).find(0x05)
        text = capability and dump.about(capability.offset)
        match = text and re.search(r"Count=(\d+)/(\d+)", text)
        if not match:
            continue
        decoded = capability.decode()
        assert decoded["vectors_enabled"] == int(match[1]), (dump.file, dump.bdf)
        assert 1 << capability.field(msi.CONTROL, "multiple_message_capable") == int(match[2])
        assert capability.field(msi.CONTROL, "enable") == ("Enable+" in text)
        assert capability.field(msi.CONTROL, "address_64") == ("64bit+" in text)
        message = re.search(r"Address: (\w+)\s+Data: (\w+)", text)
        assert decoded["message_address"] == int(message[1], 16)
        assert decoded["message_data"] == int(message[2], 16)
        masks = re.search(r"Masking: (\w+)\s+Pending: (\w+)", text)
        registers = decoded["registers"]
        width = "64" if "64bit+" in text else "32"
        assert (f"mask_{width}" in registers) == bool(masks)
        if masks:
            assert registers[f"mask_{width}"]["mask"] == int(masks[1], 16)
            assert registers[f"pending_{width}"]["pending"] == int(masks[2], 16)
        checked += 1
    assert checked == 13


def test_msix_agrees_with_lspci(real):
    checked = 0
    for dump in real:
        capability = capabilities(dump.config).find(0x11)
        text = capability and dump.about(capability.offset)
        match = text and re.search(r"(?:Count|TabSize)=(\d+)", text)
        if not match:
            continue
        assert msix.vectors(capability) == int(match[1])
        assert capability.field(msix.CONTROL, "enable") == ("Enable+" in text)
        for label, structure in (("Vector table", msix.table), ("PBA", msix.pba)):
            place = re.search(rf"{label}: BAR=(\d) offset=(\w+)", text)
            assert structure(capability)[:2] == (int(place[1]), int(place[2], 16))
        checked += 1
    assert checked >= 8


def test_power_state_agrees_with_lspci(real):
    checked = 0
    for dump in real:
        capability = capabilities(dump.config).find(0x01)
        text = capability and dump.about(capability.offset)
        match = text and re.search(r"Power Management version (\d)", text)
        if not match:
            continue
        assert capability.field(power.CAPABILITIES, "version") == int(match[1])
        states = re.search(r"PME\((.*?)\)", text)[1].split(",")
        assert capability.decode()["pme_from"] == [item[:-1] for item in states if item[-1] == "+"]
        code = capability.field(power.CONTROL, "power_state")
        state = re.search(r"Status: (D\d(?:hot)?)", text)[1]
        assert power.CONTROL.field("power_state").meaning[code].startswith(state)
        soft = re.search(r"NoSoftRst([+-])", text)
        if soft:
            assert capability.field(power.CONTROL, "no_soft_reset") == (soft[1] == "+")
        checked += 1
    assert checked == 14


_PORTS = {
    "Endpoint": 0x0,
    "Legacy Endpoint": 0x1,
    "Root Port": 0x4,
    "Upstream Port": 0x5,
    "Downstream Port": 0x6,
    "PCI-Express to PCI/PCI-X Bridge": 0x7,
    "PCI/PCI-X to PCI-Express Bridge": 0x8,
    "Root Complex Integrated Endpoint": 0x9,
    "Root Complex Event Collector": 0xA,
}


def test_express_agrees_with_lspci(real):
    kinds = set()
    for dump in real:
        capability = capabilities(dump.config).find(0x10)
        text = capability and dump.about(capability.offset)
        match = text and re.search(r"Express \(v(\d)\) ([^(,]+?)(?: \(Slot([+-])\))?, ", text)
        if not match:
            continue
        flags = express.CAPABILITIES
        assert capability.field(flags, "version") == int(match[1])
        assert capability.field(flags, "port_type") == _PORTS[match[2]], dump.file
        if match[3]:
            assert capability.field(flags, "slot_implemented") == (match[3] == "+")
        registers = capability.decode()["registers"]
        payload = registers["device_capabilities"]["max_payload_size"]
        assert re.search(rf"DevCap:\s+MaxPayload {128 << payload} bytes", text)
        control = registers["device_control"]
        assert f"MaxPayload {128 << control['max_payload_size']} bytes, MaxReadReq" in text
        assert f"MaxReadReq {128 << control['max_read_request_size']} bytes" in text
        status = lspci_flags(text, "DevSta")
        unsupported = status.get("UnsuppReq", status.get("UnsupReq"))
        assert registers["device_status"]["unsupported_request"] == unsupported
        assert registers["device_status"]["transactions_pending"] == status["TransPend"]
        if "FLReset" in text:
            reset = re.search(r"FLReset([+-])", text)[1] == "+"
            assert registers["device_capabilities"]["function_level_reset"] == reset
        assert ("link_status" in registers) == ("LnkSta:" in text), (dump.file, dump.bdf)
        assert ("slot_status" in registers) == ("SltSta:" in text), (dump.file, dump.bdf)
        assert ("root_status" in registers) == ("RootSta:" in text), (dump.file, dump.bdf)
        link = re.search(r"LnkSta:\s*Speed ([\d.]+)GT/s.*?, Width x(\d+)", text)
        if link:
            speed = registers["link_status"]["speed"]
            meaning = express.LINK_STATUS.field("speed").meaning[speed]
            assert meaning == f"{link[1]} GT/s"
            assert registers["link_status"]["width"] == int(link[2])
        kinds.add(match[2])
    assert len(kinds) >= 6


def test_acs_agrees_with_lspci(real):
    names = {
        "SrcValid": "source_validation",
        "TransBlk": "translation_blocking",
        "ReqRedir": "request_redirect",
        "CmpltRedir": "completion_redirect",
        "UpstreamFwd": "upstream_forwarding",
        "EgressCtrl": "egress_control",
        "DirectTrans": "direct_translated",
    }
    checked = 0
    for dump in real:
        capability = capabilities(dump.config).find_extended(0x0D)
        text = capability and dump.about(capability.offset)
        if not text or "ACSCap" not in text:
            continue
        for label, register in (("ACSCap", acs.CAPABILITY), ("ACSCtl", acs.CONTROL)):
            for short, value in lspci_flags(text, label).items():
                assert capability.field(register, names[short]) == value
        checked += 1
    assert checked == 3


def test_sriov_agrees_with_lspci(real):
    checked = 0
    for dump in real:
        capability = capabilities(dump.config).find_extended(0x10)
        text = capability and dump.about(capability.offset)
        match = text and re.search(
            r"Initial VFs: (\d+), Total VFs: (\d+), Number of VFs: (\d+).*?"
            r"VF offset: (\d+), stride: (\d+), Device ID: (\w+).*?"
            r"Supported Page Size: (\w+), System Page Size: (\w+)",
            text,
            re.DOTALL,
        )
        if not match:
            continue
        registers = (
            sriov.INITIAL_VFS,
            sriov.TOTAL_VFS,
            sriov.NUM_VFS,
            sriov.FIRST_VF_OFFSET,
            sriov.VF_STRIDE,
        )
        assert [capability.value(item) for item in registers] == [
            int(match[i]) for i in range(1, 6)
        ]
        assert capability.value(sriov.VF_DEVICE_ID) == int(match[6], 16)
        assert capability.value(sriov.SUPPORTED_PAGE_SIZES) == int(match[7], 16)
        assert capability.value(sriov.SYSTEM_PAGE_SIZE) == int(match[8], 16)
        for index, address in re.findall(r"Region (\d): Memory at (\w+) \(", text):
            bars = {bar.index: bar.address for bar in sriov.vf_base_addresses(capability)}
            assert bars[int(index)] == int(address, 16)
        checked += 1
    assert checked == 4


@pytest.mark.parametrize(
    ("cap_id", "label", "register", "field", "pattern", "base"),
    [
        (0x0E, "ari", "capability", "next_function", r"Next Function: (\d+)", 10),
        (0x0F, "ats", "capability", "invalidate_queue_depth", r"Queue Depth: (\w+)", 16),
        (0x0F, "ats", "control", "smallest_translation_unit", r"Translation Unit: (\w+)", 16),
        (0x1B, "pasid", "capability", "max_pasid_width", r"Max PASID Width: (\w+)", 16),
        (0x13, "pri", "capacity", "outstanding_requests", r"Request Capacity: (\w+)", 16),
        (0x13, "pri", "allocation", "outstanding_requests", r"Request Allocation: (\w+)", 16),
    ],
)
def test_small_extended_capabilities_agree_with_lspci(
    real, cap_id, label, register, field, pattern, base
):
    checked = 0
    for dump in real:
        capability = capabilities(dump.config).find_extended(cap_id)
        text = capability and dump.about(capability.offset)
        match = text and re.search(pattern, text)
        if match:
            assert capability.name == label
            described = capability.layout.register(register)
            assert capability.field(described, field) == int(match[1], base)
            checked += 1
    assert checked


def test_every_real_capability_is_listed_where_lspci_lists_it(real):
    checked = 0
    for dump in real:
        if "Capabilities: [" not in dump.text:
            continue
        listed = {int(x, 16) for x in re.findall(r"Capabilities: \[([0-9a-f]+)", dump.text)}
        found = {capability.offset for capability in capabilities(dump.config)}
        assert {offset for offset in listed if offset < len(dump.config)} <= found, dump.file
        checked += 1
    assert checked >= 15


def test_every_real_capability_is_plain_data(real):
    assert sum(len(capabilities(dump.config)) for dump in real) > 350
    for dump in real:
        for capability in capabilities(dump.config):
            assert json.loads(json.dumps(capability.decode()))["offset"] == capability.offset


def test_broken_extended_list_is_found(real):
    broken = [dump for dump in real if dump.file == "broken-ecaps"]
    assert [finding.code for dump in broken for finding in capabilities(dump.config).findings] == [
        "loop"
    ]

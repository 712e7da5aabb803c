"""Capabilities that no dump shows in full, from bytes put together by the specification."""

from __future__ import annotations

import struct

import pytest

from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import (
    Capability,
    capabilities,
    catalog,
    containment,
    hypertransport,
    scalable,
    virtual_channel,
)
from vfiokit.pci.config import ConfigSpace

ENDPOINT, ROOT_PORT, DOWNSTREAM, EVENT_COLLECTOR = 0x0, 0x4, 0x6, 0xA


def space(
    *,
    vendor: int = 0x8086,
    device: int = 0x1234,
    header: int = 0,
    port: int | None = ENDPOINT,
    width: int = 4,
    prefixes: bool = False,
) -> bytearray:
    """A function with a PCI Express capability at 0x40, unless ``port`` is ``None``."""
    data = bytearray(4096)
    struct.pack_into("<HH", data, 0, vendor, device)
    data[0x06], data[0x0E] = 0x10, header
    if port is not None:
        data[0x34] = 0x40
        struct.pack_into("<BBHI", data, 0x40, 0x10, 0, port << 4 | 2, 0)
        struct.pack_into("<I", data, 0x4C, width << 4 | 4)
        struct.pack_into("<I", data, 0x64, 0x00200000 if prefixes else 0)
    return data


def extended(cap_id: int, *dwords: int, version: int = 1, **function) -> Capability:
    data = space(**function)
    struct.pack_into(f"<I{len(dwords)}I", data, 0x100, version << 16 | cap_id, *dwords)
    return capabilities(ConfigSpace(data)).find_extended(cap_id)


def standard(cap_id: int, body: bytes, **function) -> Capability:
    data = space(port=None, **function)
    data[0x34] = 0x80
    data[0x80 : 0x82 + len(body)] = bytes([cap_id, 0]) + body
    return capabilities(ConfigSpace(data[:256])).find(cap_id)


def names(capability: Capability) -> set[str]:
    return {register.name for register in capability.registers()}


# --- Errors ---


@pytest.mark.parametrize(
    ("port", "prefixes", "size", "root"),
    [
        (ENDPOINT, False, 0x2C, False),
        (ROOT_PORT, False, 0x38, True),
        (EVENT_COLLECTOR, False, 0x38, True),
        (DOWNSTREAM, True, 0x48, False),
        (None, False, 0x2C, False),
    ],
)
def test_error_reporting_depends_on_the_port(port, prefixes, size, root):
    capability = extended(0x01, port=port, prefixes=prefixes)
    assert capability.size == size
    assert ("root_command" in names(capability)) == root
    assert ("prefix_log3" in names(capability)) == prefixes


def test_errors_are_named():
    decoded = extended(0x01, 0x00104000, 0x00400000, 0, 0x00002001).decode()
    assert decoded["uncorrectable_errors"] == ["completion_timeout", "unsupported_request"]
    assert decoded["uncorrectable_masked"] == ["internal"]
    assert decoded["correctable_errors"] == ["receiver", "advisory_nonfatal"]


@pytest.mark.parametrize(
    ("register", "log", "size", "last"),
    [
        (0x0000, 0, 0x0C, "error_source"),
        (0x0420, 4, 0x30, "pio_header_log3"),
        (0x0520, 5, 0x34, "pio_specific_log"),
        (0x0920, 9, 0x44, "pio_prefix_log3"),
    ],
)
def test_containment_logs_as_much_as_it_says(register, log, size, last):
    capability = extended(0x1D, register, port=ROOT_PORT)
    assert containment.log_size(capability) == log
    assert capability.size == size
    assert capability.registers()[-1].name == last


def test_containment_names_the_reason():
    capability = extended(0x1D, 0x00090020, 0x0A080065)
    status = capability.decode()["registers"]["status"]
    assert (status["triggered"], status["trigger_reason"]) == (1, 2)
    assert containment.STATUS.field("trigger_reason").meaning[2] == "fatal message"
    assert capability.decode()["registers"]["error_source"]["requester_id"] == 0x0A08


# --- Virtual channels ---


def test_arbitration_tables_are_unpacked():
    # Two channels; VC arbitration by 32 phases at 0x30, VC1's port arbitration by 64 at 0x40,
    # two bits each.
    phases = sum((n % 2) << 4 * n for n in range(32))
    ports = sum((n % 4) << 2 * n for n in range(64))
    words = [0x401, 0x03000002, 0x2, *[0, 0x80000001, 0], *[0x04000004, 0x81040002, 0]]
    body = struct.pack(f"<{len(words)}I", *words).ljust(0x2C, b"\0")
    body += phases.to_bytes(16, "little") + ports.to_bytes(16, "little")
    capability = extended(0x02, *struct.unpack(f"<{len(body) // 4}I", body))
    assert virtual_channel.channels(capability) == 2
    assert virtual_channel.arbitration_table(capability) == [0, 1] * 16
    assert virtual_channel.arbitration_table(capability, 0) == []
    assert virtual_channel.arbitration_table(capability, 1) == [0, 1, 2, 3] * 16
    assert capability.size == 0x50
    assert {"vc0_control", "vc1_status"} <= names(capability)


@pytest.mark.parametrize(("cap_id", "spec"), [(0x02, "§7.9.1"), (0x08, "§7.9.2"), (0x09, "§7.9.1")])
def test_channels_of_all_three_ids_are_described(cap_id, spec):
    capability = extended(cap_id, 7)
    assert capability.layout.spec == spec
    assert "vc7_control" in names(capability)


def test_streamlined_channels_follow_each_other():
    capability = extended(0x35, 1, 0, 0, 0, *range(1, 7))
    assert capability.size == 0x14 + 2 * 12
    assert capability.decode()["registers"]["vc1_status"]["value"] == 6


# --- Steering tags, BARs, power ---


@pytest.mark.parametrize(
    ("capability_register", "tags", "size"),
    [
        (0x00030206, 4, 0x14),  # in the capability
        (0x00030406, 0, 0x0C),  # in the MSI-X table
        (0x00030006, 0, 0x0C),  # none
    ],
)
def test_steering_tags_lie_where_they_say(capability_register, tags, size):
    capability = extended(0x17, capability_register, 0x101, 0x22221111, 0x44443333)
    assert capability.decode()["steering_tags"] == tags
    assert capability.size == size
    assert ("entry3_tag" in names(capability)) == bool(tags)
    if tags:
        entry = capability.decode()["registers"]["entry3_tag"]
        assert (entry["value"], entry["upper"]) == (0x4444, 0x44)


def test_resizable_bars_tell_sizes_up_to_exabytes():
    capability = extended(0x15, 0x000003F0, 0x00010840, 0x80000010, 0x00000C02)
    assert capability.decode()["bars"] == [
        {
            "bar": 0,
            "size": 256 << 20,
            "sizes": [*(1 << 20 + bit for bit in range(6)), 256 << 40],
        },
        {"bar": 2, "size": 4 << 30, "sizes": [1 << 20, 128 << 40]},
    ]
    assert capability.size == 4 + 2 * 8


def test_virtual_functions_bars_resize_alike():
    capability = extended(0x24, 0x10, 0x20)
    assert (capability.name, len(capability.decode()["bars"])) == ("vf-resizable-bar", 1)


@pytest.mark.parametrize(
    ("data", "milliwatts"),
    [(0x000A, 10_000), (0x010A, 1000), (0x03FF, 255), (0x00F1, 275_000), (0x00FF, None)],
)
def test_power_budget_is_in_milliwatts(data, milliwatts):
    assert extended(0x04, 0, data, 1).decode()["selected_milliwatts"] == milliwatts


def test_power_allocation_has_a_level_for_each_substate():
    capability = extended(0x16, 0x00001002, 0, 0, 0x00050A14)
    assert capability.decode()["substate_milliwatts"] == [20_000, 10_000, 5_000]
    assert capability.size == 0x13
    assert "substate2_power" in names(capability)


@pytest.mark.parametrize(
    ("value", "scale", "milliwatts"),
    [(75, 0, 75_000), (250, 1, 25_000), (0xF0, 0, 250_000), (0xFE, 0, 600_000), (0xFF, 0, None)],
)
def test_slot_power_limits(value, scale, milliwatts):
    data = space(port=ENDPOINT)
    struct.pack_into("<I", data, 0x44, scale << 26 | value << 18)
    express = capabilities(ConfigSpace(data)).find(0x10)
    assert express.decode()["captured_power_limit_milliwatts"] == milliwatts


@pytest.mark.parametrize(
    ("vector", "speeds"),
    [
        (0x00, ["2.5 GT/s", "5 GT/s", "8 GT/s", "16 GT/s"]),  # all up to the maximum
        (0x14, ["5 GT/s", "16 GT/s"]),
    ],
)
def test_supported_speeds(vector, speeds):
    data = space(port=ENDPOINT)
    struct.pack_into("<I", data, 0x6C, vector)
    assert capabilities(ConfigSpace(data)).find(0x10).decode()["supported_speeds"] == speeds


# --- Latencies and readiness ---


def test_latencies_are_in_nanoseconds():
    assert extended(0x18, 0x10031001).decode()["max_snoop_ns"] == 32**4
    decoded = extended(0x18, 0x18010C02).decode()
    assert (decoded["max_snoop_ns"], decoded["max_no_snoop_ns"]) == (2 * 32**3, None)


def test_substates_have_a_status_where_links_can_be_activated():
    assert "status" in names(extended(0x1E, 0x3F))
    assert "status" not in names(extended(0x1E, 0x1F))


def test_readiness_times_are_decoded():
    decoded = extended(0x22, 0x80000000 | 0x205 << 12 | 0x10, 0x405).decode()
    assert decoded["reset_time_ns"] == 16
    assert decoded["data_link_up_time_ns"] == 5 * 32
    assert decoded["function_level_reset_time_ns"] == 5 * 32 * 32
    assert decoded["registers"]["times_1"]["valid"] == 1


def test_readiness_queue_tells_who_is_ready():
    queue = extended(0x21, 0x00020010, 0x00010001, 0x00130300).decode()["registers"]["queue"]
    assert (queue["function_id"], queue["reason"], queue["depth"]) == (0x0300, 3, 1)


# --- Links ---


@pytest.mark.parametrize(
    ("cap_id", "first", "each"), [(0x19, 0x0C, 2), (0x26, 0x20, 1), (0x31, 0x10, 1)]
)
@pytest.mark.parametrize("width", [1, 4, 16, 32])
def test_lanes_are_as_many_as_the_link_has(cap_id, first, each, width):
    capability = extended(cap_id, *range(64), width=width)
    lanes = [name for name in names(capability) if name.startswith("lane") and "equal" in name]
    assert len(lanes) == width
    assert first + each * width <= capability.size <= first + each * width + 3


def test_margining_has_a_control_and_a_status_for_each_lane():
    capability = extended(0x27, 0x00030001, 0xABCD1234, width=2)
    registers = capability.decode()["registers"]
    assert registers["lane0_control"]["value"] == 0x1234
    assert registers["lane0_status"]["payload"] == 0xAB
    assert capability.size == 16


def test_data_link_features_of_both_sides():
    registers = extended(0x25, 0x80000003, 0x80000001).decode()["registers"]
    assert registers["capabilities"]["immediate_readiness"] == 1
    assert (registers["status"]["remote_valid"], registers["status"]["immediate_readiness"]) == (
        1,
        0,
    )


# --- Root complexes ---


def test_links_to_configuration_space_have_an_address_on_the_bus():
    address = 0x12 << 20 | 0x1F << 15 | 3 << 12
    capability = extended(0x05, 0x00000102, 0, 0, 0x3, 0, address, 0x1)
    assert capability.decode()["links"] == [
        {"bus": 0x12, "device": 0x1F, "function": 3, "ecam_base": 0x100000000}
    ]


@pytest.mark.parametrize(
    ("version", "buses", "found"), [(1, 0x00050300, []), (2, 0x00050300, [3, 5]), (2, 0xFF00, [])]
)
def test_event_collectors_tell_whose_events(version, buses, found):
    decoded = extended(0x07, 0x9, buses, version=version, port=EVENT_COLLECTOR).decode()
    assert (decoded["devices"], decoded["buses"]) == ([0, 3], found)
    assert ("associated_buses" in decoded["registers"]) == (version == 2)


def test_hierarchy_id_and_guid():
    registers = extended(0x28, 0x30000100, 0xBEEF0001, 1, 2, 3, 4, 5).decode()["registers"]
    assert (registers["status"]["valid"], registers["status"]["writeable"]) == (1, 1)
    assert registers["data"]["hierarchy_id"] == 0xBEEF
    assert registers["guid5"]["value"] == 5


# --- Encryption ---


def test_encrypted_streams_lie_one_after_the_other():
    selective = [
        *(2, 0x05000001, 2, 0xFFFF00, 1),  # two address blocks
        *(0x00100001, 0, 0),
        *(0xFFF00001, 0xF, 0xE),
        *(0, 0x06000000, 0, 0, 0),  # none
    ]
    capability = extended(0x30, 0x00012003, 0, 1, 2, 3, 4, *selective)
    registers = capability.decode()["registers"]
    assert registers["link1_status"]["value"] == 4
    assert registers["selective0_control"]["stream_id"] == 5
    assert registers["selective1_control"]["stream_id"] == 6
    assert "selective1_address0_lower" not in registers
    first, second = capability.decode()["selective_streams"]
    assert first["addresses"][1] == {
        "valid": 1,
        "base": 0xE << 32,
        "limit": 0xF_FFFF_FFFF,
    }
    assert second["addresses"] == []
    assert capability.size == 0x0C + 2 * 8 + 0x14 + 2 * 12 + 0x14


def test_streams_without_end_stop_at_the_end():
    capability = extended(0x30, 0x00FF0002, *[0xF] * 900)
    assert capability.offset + capability.size <= 4096 + 0x14 + 15 * 12
    assert len(capability.registers()) < 4096


# --- Vendors ---


def virtio(kind: int, *, size: int = 0x18) -> Capability:
    body = struct.pack("<BBBBHIIII", size, kind, 2, 7, 0, 0x1000, 0x2000, 4, 1)
    return standard(0x09, body, vendor=0x1AF4, device=0x1042)


@pytest.mark.parametrize(
    ("kind", "only"),
    [
        (1, set()),
        (2, {"notify_multiplier"}),
        (5, {"data"}),
        (8, {"offset_upper", "structure_length_upper"}),
    ],
)
def test_virtio_structures_have_what_their_type_has(kind, only):
    capability = virtio(kind)
    optional = {"notify_multiplier", "data", "offset_upper", "structure_length_upper"}
    assert capability.name == "virtio"
    assert names(capability) & optional == only


def test_shared_memory_of_virtio_is_64_bits_wide():
    assert virtio(8).decode()["structure"] == {
        "bar": 2,
        "offset": 4 << 32 | 0x1000,
        "length": 1 << 32 | 0x2000,
    }


def test_other_vendors_capability_is_just_a_length():
    capability = standard(0x09, b"\x10\x01", vendor=0x10DE)
    assert (capability.name, capability.size) == ("vendor", 0x10)


@pytest.mark.parametrize(
    ("kind", "found"), [(0x01, {"capability_a", "capability_b"}), (0x02, set()), (0x11, set())]
)
def test_intel_fuses_of_version_1(kind, found):
    capability = standard(0x09, bytes([0x0C, kind]) + b"\xff" * 12)
    assert capability.name == "intel"
    assert {name for name in names(capability) if name.startswith("capability_")} == found


def test_vendor_extended_capability_has_a_length():
    assert extended(0x0B, 0x03420001).size == 0x34


# --- CXL ---


def dvsec(identifier: int, revision: int, body: bytes, vendor: int = 0x1E98) -> Capability:
    length = 10 + len(body)
    data = space()
    struct.pack_into(
        "<IIH", data, 0x100, 0x10023, length << 20 | revision << 16 | vendor, identifier
    )
    data[0x10A : 0x10A + len(body)] = body
    return capabilities(ConfigSpace(data)).find_extended(0x23)


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        (0, "cxl-device"),
        (2, "cxl-function-map"),
        (3, "cxl-port"),
        (4, "cxl-flush-port"),
        (5, "cxl-flush-device"),
        (7, "cxl-flex-bus"),
        (8, "cxl-register-locator"),
        (9, "cxl-multi-logical-device"),
        (6, "dvsec"),
    ],
)
def test_cxl_is_told_by_vendor_and_id(identifier, name):
    assert dvsec(identifier, 1, bytes(64)).name == name
    assert dvsec(identifier, 1, bytes(64), vendor=0x8087).name == "dvsec"


@pytest.mark.parametrize(("length", "third"), [(0x10, False), (0x38, False), (0x3C, True)])
def test_cxl_registers_end_where_the_length_says(length, third):
    capability = dvsec(0, 2, bytes(length - 10))
    assert ("capability_3" in names(capability)) == third
    assert ("ranges" in capability.decode()) == (length >= 0x38)


def test_cxl_ports_have_an_alternate_bus_range():
    body = struct.pack("<HHBB", 1, 0x4, 0x10, 0x1F) + bytes(24)
    registers = dvsec(3, 0, body).decode()["registers"]
    assert registers["control"]["alternate_memory_and_id"] == 1
    assert (registers["alternate_bus_base"]["bus"], registers["alternate_bus_limit"]["bus"]) == (
        0x10,
        0x1F,
    )


def test_register_blocks_are_located():
    capability = extended(0x36, 24, 0x00010102, 0x1, 0x00000000, 0)
    assert capability.decode()["blocks"][0] == {"bar": 2, "id": 1, "offset": 0x1_0001_0000}
    assert capability.size == 24


# --- Conventional PCI ---


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x00, "primary"),
        (0x04, "secondary"),
        (0x08, "switch"),
        (0x10, "interrupt"),
        (0x11, "revision"),
        (0x12, "unit-id-clumping"),
        (0x13, "extended-configuration"),
        (0x14, "address-mapping"),
        (0x15, "msi-mapping"),
        (0x16, "direct-route"),
        (0x17, "vcset"),
        (0x18, "retry"),
        (0x1A, "gen3"),
        (0x1C, "power"),
    ],
)
def test_hypertransport_kinds(code, name):
    capability = standard(0x08, struct.pack("<H", code << 11) + bytes(28))
    assert capability.name == f"hypertransport-{name}"


def test_unknown_kind_of_hypertransport_is_still_that():
    assert standard(0x08, struct.pack("<H", 0x1F << 11)).name == "hypertransport"


def test_fixed_msi_mapping_has_no_address_registers():
    capability = standard(0x08, struct.pack("<HII", 0xA803, 0xFEE00000, 0))
    assert names(capability) == {"command"}
    assert hypertransport.msi_address(capability) == 0xFEE00000
    capability = standard(0x08, struct.pack("<HII", 0xA801, 0xFD123456, 0x1))
    assert hypertransport.msi_address(capability) == 0x1FD100000


@pytest.mark.parametrize(("header", "name"), [(0, "pci-x"), (1, "pci-x-bridge")])
@pytest.mark.parametrize(("version", "ecc"), [(0, False), (1, True)])
def test_pci_x_depends_on_the_header_and_the_version(header, name, version, ecc):
    capability = standard(0x07, struct.pack("<H", version << 12) + bytes(32), header=header)
    assert capability.name == name
    assert ("ecc_control" in names(capability)) == ecc


def test_enhanced_allocation_with_64_bit_entries():
    body = struct.pack("<BB", 2, 0)
    body += struct.pack("<IIIII", 0x80FF0004, 0x10000002, 0xFFFFE, 0x84, 0x3)
    body += struct.pack("<III", 0x00FF0202, 0x1000, 0xFC)
    capability = standard(0x14, body)
    assert capability.decode()["resources"] == [
        {
            "equivalent": "BAR 0",
            "properties": "memory",
            "base": 0x84_1000_0000,
            "length": 0x3_0010_0000,
            "enabled": True,
        },
        {
            "equivalent": "BAR 0",
            "properties": "I/O",
            "base": 0x1000,
            "length": 0x100,
            "enabled": False,
        },
    ]
    assert capability.size == 4 + 20 + 12
    assert {"resource0_base_upper", "resource0_max_offset_upper"} <= names(capability)
    assert "resource1_base_upper" not in names(capability)


def test_enhanced_allocation_of_a_bridge_fixes_its_buses():
    capability = standard(0x14, struct.pack("<BBI", 0, 0, 0x0502), header=1)
    registers = capability.decode()["registers"]
    assert (registers["secondary_bus"]["bus"], registers["subordinate_bus"]["bus"]) == (2, 5)
    assert "secondary_bus" not in names(standard(0x14, struct.pack("<BBI", 0, 0, 0)))


def test_amd_iommu_hides_in_the_secure_device():
    body = struct.pack("<HIIIII", 0x1B, 0xFEB80001, 0, 0xFF000080, 0x00203040, 0)
    capability = standard(0x0F, body, vendor=0x1022)
    assert (capability.name, capability.decode()["mmio_base"]) == ("amd-iommu", 0xFEB80000)
    assert standard(0x0F, body, vendor=0x8086).name == "secure"


def test_sata_registers_may_lie_in_the_capability():
    inline = standard(0x12, struct.pack("<BBIII", 0x10, 0, 0xF, 0x24, 0x42))
    assert (inline.size, names(inline) >= {"index", "data"}) == (16, True)
    assert standard(0x12, struct.pack("<BBI", 0x10, 0, 0x4)).size == 8


def test_debug_port_counts_bars_from_1():
    assert standard(0x0A, struct.pack("<H", 1 << 13 | 0xA0)).decode()["bar"] == 0


def test_flattening_portal_is_described():
    capability = standard(0x15, struct.pack("<HIIIIIIII", 0, 0x7, 1, 0, 1, 0, 0, 0, 0))
    registers = capability.decode()["registers"]
    assert registers["rid_vector_control_1"]["decode_enable"] == 1
    assert registers["memory_low_control"]["decode_enable"] == 1
    assert capability.size == 0x24


# --- All of them ---


SHORT_OF_REGISTERS = {
    "agp-8x",
    "captured-data",
    "compact-resource",
    "mriov",
    "null",
    "physical-128gt",
    "secure",
}


def test_everything_with_public_registers_is_described():
    bare = {
        layout.name for layout in catalog.layouts() if not layout.registers and not layout.repeated
    }
    assert bare == SHORT_OF_REGISTERS


@pytest.mark.parametrize("cap_id", [*catalog.EXTENDED])
@pytest.mark.parametrize("fill", [0x00000000, 0xFFFFFFFF, 0x01010101])
def test_any_contents_of_any_extended_capability_decode(cap_id, fill):
    capability = extended(cap_id, *[fill] * 900, width=fill & 0x3F)
    assert capability.decode()["registers"] is not None
    assert len(capability.registers()) < 4096
    assert capability.size >= 4


@pytest.mark.parametrize("cap_id", [*catalog.STANDARD])
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x11])
@pytest.mark.parametrize("header", [0, 1])
def test_any_contents_of_any_standard_capability_decode(cap_id, fill, header):
    capability = standard(cap_id, bytes([fill]) * 120, header=header)
    assert capability.decode()["registers"] is not None
    assert capability.size >= 2


def test_scalable_interfaces_lie_at_offset_and_stride():
    capability = extended(0x38, 0, 0x01000000 | 64, 0x00020100)
    registers = capability.decode()["registers"]
    assert registers["total_interfaces"]["count"] == 64
    assert registers["status"]["enabled"] == 1
    physical = Bdf(0, 0x10, 0, 0)
    assert scalable.interface_address(capability, physical, 0) == Bdf(0, 0x11, 0, 0)
    assert scalable.interface_address(capability, physical, 5) == Bdf(0, 0x11, 1, 2)


def test_intel_s_own_scalable_capability_tells_of_interrupt_message_storage():
    body = struct.pack("<BBIII", 1, 1, 0x553, 1, 1)
    capability = dvsec(5, 0, body, vendor=0x8086)
    assert capability.name == "intel-siov"
    registers = capability.decode()["registers"]
    assert registers["capabilities"]["interrupt_message_storage"] == 1
    assert registers["supported_page_sizes"]["sizes"] == 0x553
    assert dvsec(5, 0, body).name == "cxl-flush-device"


def test_links_over_m_phy_have_a_width_each_way():
    capability = extended(0x20, 0x02048001, 1, 0x02044001, 0, 0xC1000042, 0xA00000FF)
    registers = capability.decode()["registers"]
    assert registers["capabilities"]["max_transmit_width"] == 4
    assert registers["capabilities"]["max_receive_width"] == 2
    assert registers["status"]["rate_series"] == 1
    assert registers["phy_address"]["read"] == registers["phy_address"]["configure"] == 1
    assert registers["phy_data"]["pending"] == registers["phy_data"]["error"] == 1


def test_configuration_access_shows_its_correlation():
    capability = extended(0x0C, 0x33221100)
    assert capability.decode()["registers"]["device_correlation"]["value"] == 0x33221100

"""What vendors define: the standard (0x09) and the extended (0x0b) capability.

virtio's and Intel's standard ones are described; an extended one tells its owner's id and length.
Source: PCI Express Base Specification 6.0 §7.9.4 and §7.9.5, Virtual I/O Device Version 1.2
§4.1.4, Intel processor datasheets volume 2 (CAPID0_A to CAPID0_C).
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Capability, Field, Layout, Register, Variant, flag

_VIRTIO_VENDOR = 0x1AF4
_VIRTIO_DEVICES = range(0x1000, 0x1080)
_INTEL_VENDOR = 0x8086

LENGTH = Register("length", 0x02, 1, (Field("length", 7, 0, unit="bytes"),), "§7.9.4")


def _length(capability: Capability) -> int:
    return capability.field(LENGTH, "length")


# --- virtio ---

_COMMON, _NOTIFY, _ISR, _DEVICE, _CONFIG_ACCESS, _SHARED_MEMORY = 1, 2, 3, 4, 5, 8

VIRTIO_TYPE = Register(
    "structure_type",
    0x03,
    1,
    (
        Field(
            "type",
            7,
            0,
            meaning={
                _COMMON: "common configuration",
                _NOTIFY: "notification",
                _ISR: "ISR status",
                _DEVICE: "device configuration",
                _CONFIG_ACCESS: "configuration access",
                _SHARED_MEMORY: "shared memory",
                9: "vendor",
            },
        ),
    ),
    "virtio §4.1.4",
)
VIRTIO_BAR = Register("bar", 0x04, 1, (Field("bar", 7, 0),), "virtio §4.1.4")
VIRTIO_ID = Register("id", 0x05, 1, (Field("id", 7, 0),), "virtio §4.1.4")
VIRTIO_OFFSET = Register(
    "offset", 0x08, 4, (Field("offset", 31, 0, unit="bytes"),), "virtio §4.1.4"
)
VIRTIO_LENGTH = Register(
    "structure_length", 0x0C, 4, (Field("length", 31, 0, unit="bytes"),), "virtio §4.1.4"
)
VIRTIO_MULTIPLIER = Register(
    "notify_multiplier", 0x10, 4, (Field("multiplier", 31, 0),), "virtio §4.1.4.4"
)
VIRTIO_DATA = Register("data", 0x10, 4, (Field("data", 31, 0, "rw"),), "virtio §4.1.4.9")
VIRTIO_OFFSET_UPPER = Register(
    "offset_upper", 0x10, 4, (Field("offset", 31, 0),), "virtio §4.1.4.7"
)
VIRTIO_LENGTH_UPPER = Register(
    "structure_length_upper", 0x14, 4, (Field("length", 31, 0),), "virtio §4.1.4.7"
)
_VIRTIO_ONLY = {
    VIRTIO_MULTIPLIER.name: _NOTIFY,
    VIRTIO_DATA.name: _CONFIG_ACCESS,
    VIRTIO_OFFSET_UPPER.name: _SHARED_MEMORY,
    VIRTIO_LENGTH_UPPER.name: _SHARED_MEMORY,
}


def _is_virtio(capability: Capability) -> bool:
    return (
        capability.config.u16(0) == _VIRTIO_VENDOR
        and capability.config.u16(2) in _VIRTIO_DEVICES
        and _length(capability) >= 16
    )


def _virtio_present(capability: Capability, register: Register) -> bool:
    kind = _VIRTIO_ONLY.get(register.name)
    if kind is None:
        return True
    return capability.field(
        VIRTIO_TYPE, "type"
    ) == kind and register.offset + register.width <= _length(capability)


def _virtio_structure(capability: Capability) -> dict[str, object]:
    offset, size = capability.value(VIRTIO_OFFSET), capability.value(VIRTIO_LENGTH)
    if capability.field(VIRTIO_TYPE, "type") == _SHARED_MEMORY:
        offset |= capability.value(VIRTIO_OFFSET_UPPER) << 32
        size |= capability.value(VIRTIO_LENGTH_UPPER) << 32
    return {
        "structure": {
            "bar": capability.field(VIRTIO_BAR, "bar"),
            "offset": offset,
            "length": size,
        }
    }


VIRTIO = Layout(
    "virtio",
    "virtio structure",
    0x09,
    False,
    (
        LENGTH,
        VIRTIO_TYPE,
        VIRTIO_BAR,
        VIRTIO_ID,
        VIRTIO_OFFSET,
        VIRTIO_LENGTH,
        VIRTIO_MULTIPLIER,
        VIRTIO_DATA,
        VIRTIO_OFFSET_UPPER,
        VIRTIO_LENGTH_UPPER,
    ),
    "virtio §4.1.4",
    _length,
    _virtio_present,
    _virtio_structure,
)

# --- Intel ---

INTEL_KIND = Register(
    "kind",
    0x03,
    1,
    (Field("version", 3, 0), Field("type", 7, 4, meaning={0: "fuses", 1: "feature detection"})),
)
INTEL_A = Register(
    "capability_a",
    0x04,
    4,
    (
        flag("ddr3l", 0),
        flag("ddr_write_vref", 1),
        flag("overclocking", 2),
        flag("ddr_overclocking", 3),
        Field("compatibility_revision_id", 7, 4),
        Field("compatibility_device_id", 9, 8),
        flag("internal_graphics_disabled", 11),
        flag("second_channel_disabled", 12),
        flag("x2apic", 13),
        flag("dual_dimm_disabled", 14),
        flag("camarillo_disabled", 15),
        flag("n1_timing_disabled", 17),
        Field(
            "max_memory",
            20,
            19,
            meaning={0: "no limit", 1: "8 GiB", 2: "2 GiB", 3: "512 MiB"},
            unit="a channel, as named",
        ),
        flag("peg_gen2_disabled", 21),
        flag("dmi_gen2_disabled", 22),
        flag("vtd_disabled", 23),
        flag("ecc_forced", 24),
        flag("ecc_disabled", 25),
        flag("dmi_x2", 26),
        flag("peg_upconfigure_disabled", 27),
        flag("peg10_disabled", 28),
        flag("peg11_disabled", 29),
        flag("peg12_disabled", 30),
        flag("peg60_disabled", 31),
    ),
)
INTEL_B = Register(
    "capability_b",
    0x08,
    4,
    (
        flag("lpddr3", 2),
        Field("ddr3_max_frequency", 6, 4),
        flag("gmm_disabled", 8),
        flag("dmi_gen3_disabled", 15),
        flag("peg_x16_disabled", 16),
        flag("additive_graphics_capable", 17),
        flag("additive_graphics", 18),
        flag("package_type", 19),
        flag("peg_gen3_disabled", 20),
        Field("ddr3_max_frequency_ref100", 23, 21),
        flag("soft_bin_capable", 24),
        Field("cache_size", 27, 25),
        flag("smt_capable", 28),
        flag("overclocking_by_sku", 29),
        flag("overclocking_by_sku_capable", 30),
        flag("imaging_disabled", 31),
    ),
)
INTEL_C = Register(
    "capability_c",
    0x0C,
    4,
    (
        Field("gear1_max_frequency", 3, 0),
        flag("pipe3_disabled", 5),
        flag("idd_disabled", 6),
        Field("base_clock_overclocking", 8, 7),
        flag("sgx_disabled", 9),
        flag("qclk_gv_disabled", 14),
        flag("lpddr4", 16),
        Field("lpddr4_max_frequency", 20, 17),
        flag("lpddr", 22),
        Field("ddr4_max_frequency", 26, 23),
        flag("peg_gen4_disabled", 28),
    ),
)


def _is_intel(capability: Capability) -> bool:
    return capability.config.u16(0) == _INTEL_VENDOR and capability.value(INTEL_KIND) >> 4 <= 1


def _intel_present(capability: Capability, register: Register) -> bool:
    if register in (LENGTH, INTEL_KIND):
        return True
    # Fuses of version 1, since Sandy Bridge; others have other meanings.
    return capability.value(INTEL_KIND) == 0x01 and register.offset + 4 <= _length(capability)


INTEL = Layout(
    "intel",
    "Intel Capabilities",
    0x09,
    False,
    (LENGTH, INTEL_KIND, INTEL_A, INTEL_B, INTEL_C),
    "datasheets",
    _length,
    _intel_present,
)

LAYOUT = Layout(
    "vendor",
    "Vendor Specific",
    0x09,
    False,
    (LENGTH,),
    "§7.9.4",
    _length,
    variants=(Variant(_is_virtio, VIRTIO), Variant(_is_intel, INTEL)),
)

# --- Extended ---

HEADER = Register(
    "header",
    0x04,
    4,
    (Field("vsec_id", 15, 0), Field("revision", 19, 16), Field("length", 31, 20, unit="bytes")),
    "§7.9.5.2",
)
EXTENDED = Layout(
    "vendor-specific",
    "Vendor-Specific Extended Capability",
    0x0B,
    True,
    (HEADER,),
    "§7.9.5",
    lambda capability: capability.field(HEADER, "length"),
)

"""``pci_acs_enabled``, rule by rule."""

from __future__ import annotations

import pytest
from isolation_topologies import BARE, FULL, OFF, Builder

from vfiokit.isolation.acs import (
    REQUIRED,
    AcsReason,
    bit_names,
    control,
    enabled,
    path_enabled,
    required_bits_missing,
)
from vfiokit.isolation.platform import Platform
from vfiokit.isolation.quirk import ACS_QUIRKS
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType

NEITHER = (PortType.PCIE_TO_PCI_BRIDGE, PortType.PCI_TO_PCIE_BRIDGE, PortType.RC_EVENT_COLLECTOR)
ENDPOINTS = (
    PortType.ENDPOINT,
    PortType.LEGACY_ENDPOINT,
    PortType.UPSTREAM,
    PortType.RC_INTEGRATED_ENDPOINT,
)


def verdict(port, flags=REQUIRED, *, platform=None, quirks=True, address="00:01.0", **more):
    builder = Builder()
    at = builder.add(address, port, **more)
    topology = builder.topology()
    return enabled(topology, topology[at], flags, platform=platform or Platform(), quirks=quirks)


def test_required_is_the_kernels_0x1d():
    assert REQUIRED == 0x1D


@pytest.mark.parametrize("port", [PortType.ROOT_PORT, PortType.DOWNSTREAM])
def test_port_without_acs_is_not_isolated(port):
    found = verdict(port, below=1)
    assert not found
    assert found.why.reason is AcsReason.NO_CAPABILITY
    assert found.why.missing == REQUIRED


@pytest.mark.parametrize("port", [PortType.ROOT_PORT, PortType.DOWNSTREAM])
def test_port_with_every_required_bit_on_is_isolated(port):
    assert verdict(port, below=1, acs=FULL)


@pytest.mark.parametrize("bit", [0x01, 0x04, 0x08, 0x10])
def test_one_required_bit_off_is_named(bit):
    found = verdict(PortType.ROOT_PORT, below=1, acs=(0x1F, 0x1D & ~bit))
    assert not found
    assert found.why.missing == bit
    assert bit_names(Acs(bit)) in found.why.text()


def test_bits_absent_from_the_capability_count_as_satisfied():
    assert verdict(PortType.DOWNSTREAM, below=1, acs=BARE)
    assert verdict(PortType.DOWNSTREAM, below=1, acs=(0x11, 0x11))
    assert not verdict(PortType.DOWNSTREAM, below=1, acs=(0x15, 0x11))


def test_egress_control_is_asked_even_when_absent():
    assert not verdict(PortType.DOWNSTREAM, Acs.EGRESS_CONTROL, below=1, acs=FULL)


def test_no_capability_fails_even_for_no_flags():
    assert not verdict(PortType.DOWNSTREAM, Acs(0), below=1)


@pytest.mark.parametrize("port", ENDPOINTS)
def test_single_function_needs_no_acs(port):
    found = verdict(port)
    assert found
    assert found.why.reason is AcsReason.SINGLE_FUNCTION


@pytest.mark.parametrize("port", ENDPOINTS)
def test_multifunction_needs_acs(port):
    assert not verdict(port, multifunction=True)
    assert not verdict(port, multifunction=True, acs=OFF)
    assert verdict(port, multifunction=True, acs=FULL)


def test_function_above_zero_is_multifunction_without_the_header_bit():
    assert not verdict(PortType.ENDPOINT, address="00:01.3")


@pytest.mark.parametrize("port", NEITHER)
def test_kinds_without_acs_are_never_isolated(port):
    assert not verdict(port, acs=FULL)
    assert verdict(port, acs=FULL).why.reason is AcsReason.NO_ACS_TYPE


def test_conventional_function_is_never_isolated():
    found = verdict(None)
    assert not found
    assert found.why.reason is AcsReason.CONVENTIONAL
    assert not found.why.truncated


def test_64_bytes_are_called_truncated_not_conventional_for_sure():
    found = verdict(PortType.ROOT_PORT, below=1, acs=FULL, size=64)
    assert not found
    assert found.why.truncated
    assert "captured" in found.why.text()


def test_virtual_function_is_isolated_whatever_its_slot():
    builder = Builder()
    builder.endpoint("05:00.0", multifunction=True)
    builder.virtual("05:00.4", "05:00.0")
    topology = builder.topology()
    found = enabled(topology, topology.functions[builder.functions[1].bdf])
    assert found
    assert found.why.reason is AcsReason.SINGLE_FUNCTION


def test_path_fails_at_the_first_bridge_that_fails():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=OFF)
    builder.upstream("01:00.0", 2)
    port = builder.downstream("02:00.0", 3, FULL)
    topology = builder.topology()
    found = path_enabled(topology, topology[port])
    assert not found
    assert str(found.why.subject) == "0000:00:01.0"


def test_path_passes_when_every_bridge_passes():
    builder = Builder()
    builder.root_port("00:01.0", 1)
    builder.upstream("01:00.0", 2)
    port = builder.downstream("02:00.0", 3, FULL)
    topology = builder.topology()
    assert path_enabled(topology, topology[port])


def test_required_bits_missing_lists_what_is_off():
    builder = Builder()
    at = builder.root_port("00:01.0", 1, acs=(0x1F, 0x11))
    topology = builder.topology()
    missing = required_bits_missing(topology, topology[at])
    assert missing == Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT


# --- what the kernel would program -------------------------------------------------------------


def test_program_acs_turns_on_what_is_supported_and_required():
    off = Platform(program_acs=True)
    assert verdict(PortType.ROOT_PORT, below=1, acs=OFF, platform=off)
    assert not verdict(PortType.ROOT_PORT, below=1, platform=off)
    nobody = Platform(program_acs=True, acs_requested=False)
    assert not verdict(PortType.ROOT_PORT, below=1, acs=OFF, platform=nobody)


def test_translation_blocking_is_programmed_only_with_noats():
    builder = Builder()
    builder.root_port("00:01.0", 1, acs=OFF)
    function = builder.functions[0]
    assert control(function, platform=Platform(program_acs=True)) == 0x1D
    assert control(function, platform=Platform(program_acs=True, noats=True)) == 0x1F
    assert control(function) == 0


# --- device-specific rules ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "ids"),
    [
        (PortType.ENDPOINT, (0x8086, 0x10FB)),
        (PortType.ENDPOINT, (0x1924, 0x0903)),
        (PortType.ENDPOINT, (0x14E4, 0x1751)),
        (PortType.RC_INTEGRATED_ENDPOINT, (0x8086, 0x2F21)),
        (PortType.ROOT_PORT, (0x17CB, 0x0400)),
        (PortType.ROOT_PORT, (0x177D, 0xA3FF)),
        (PortType.ROOT_PORT, (0x0014, 0x7A39)),
        (PortType.ROOT_PORT, (0x1C36, 0x0031)),
        (PortType.ROOT_PORT, (0x1957, 0x8DB9)),
        (PortType.ROOT_PORT, (0x8086, 0x8D10)),
        (PortType.DOWNSTREAM, (0x1D17, 0x0723)),
        (PortType.ENDPOINT, (0x8088, 0x0105)),
    ],
)
def test_listed_device_is_isolated_by_quirk_only(port, ids):
    assert verdict(port, ids=ids, multifunction=True)
    assert not verdict(port, ids=ids, multifunction=True, quirks=False)
    found = verdict(port, ids=ids, multifunction=True)
    assert found.why.quirk is not None
    assert found.why.quirk.name in found.why.text()


@pytest.mark.parametrize(
    ("port", "ids"),
    [
        (PortType.ENDPOINT, (0x8086, 0x2F21)),  # Intel, but no integrated endpoint
        (PortType.DOWNSTREAM, (0x8086, 0x8D10)),  # a PCH id, but no root port
        (PortType.ENDPOINT, (0x177D, 0xA3FF)),
        (PortType.ENDPOINT, (0x1C36, 0x0031)),
        (PortType.ROOT_PORT, (0x8086, 0x1D11)),  # odd ids of this PCH are not listed
        (PortType.ROOT_PORT, (0x0014, 0x7A0A)),
    ],
)
def test_row_that_does_not_fit_leaves_it_to_the_registers(port, ids):
    found = verdict(port, ids=ids, multifunction=True)
    assert not found
    assert found.why.reason is AcsReason.NO_CAPABILITY
    assert verdict(port, ids=ids, multifunction=True, acs=FULL)


@pytest.mark.parametrize(
    ("port", "ids"),
    [(PortType.ENDPOINT, (0x8088, 0x0200)), (PortType.ROOT_PORT, (0x1D17, 0x0722))],
)
def test_unlisted_device_of_strict_vendor_is_denied_despite_acs(port, ids):
    found = verdict(port, ids=ids, acs=FULL)
    assert not found
    assert found.why.reason is AcsReason.QUIRK
    assert verdict(port, ids=ids, acs=FULL, quirks=False)


def test_unlisted_zhaoxin_endpoint_is_left_to_the_registers():
    assert verdict(PortType.ENDPOINT, ids=(0x1D17, 0x0001), multifunction=True, acs=FULL)


def test_intel_pch_is_denied_where_no_iommu_driver_asked():
    nobody = Platform(acs_requested=False)
    found = verdict(PortType.ROOT_PORT, ids=(0x8086, 0x8D10), acs=FULL, platform=nobody)
    assert not found
    assert "workaround" in found.why.text()


def test_endpoint_claims_cover_translation_bits_but_not_egress_control():
    ids = (0x8086, 0x10FB)
    assert verdict(PortType.ENDPOINT, Acs(0x5F), ids=ids, multifunction=True)
    assert not verdict(PortType.ENDPOINT, Acs(0x20), ids=ids, multifunction=True)


def test_200_series_pch_registers_are_read_as_dwords():
    ids = (0x8086, 0xA110)
    assert verdict(PortType.ROOT_PORT, ids=ids, below=1, acs_dwords=FULL)
    found = verdict(PortType.ROOT_PORT, ids=ids, below=1, acs_dwords=OFF)
    assert not found
    assert found.why.missing == REQUIRED
    assert "32-bit" in found.why.text()
    will = Platform(program_acs=True)
    assert verdict(PortType.ROOT_PORT, ids=ids, below=1, acs_dwords=OFF, platform=will)


def test_200_series_pch_without_capability_is_left_to_the_registers():
    found = verdict(PortType.ROOT_PORT, ids=(0x8086, 0xA110), below=1)
    assert found.why.reason is AcsReason.NO_CAPABILITY


def amd_southbridge(platform, *, iommu_function=False, multifunction=True):
    builder = Builder()
    at = builder.add("00:14.0", ids=(0x1002, 0x4385), multifunction=multifunction)
    if iommu_function:
        builder.add("00:00.2", ids=(0x1022, 0x1451), class_code=0x080600)
    topology = builder.topology()
    return enabled(topology, topology[at], platform=platform)


def test_amd_southbridge_is_isolated_only_with_ivrs():
    assert amd_southbridge(Platform(ivrs=True))
    assert not amd_southbridge(Platform(ivrs=False))
    assert not amd_southbridge(Platform(ivrs=True), multifunction=False)


def test_ivrs_is_guessed_from_an_amd_iommu_function():
    assert amd_southbridge(Platform(), iommu_function=True)
    assert not amd_southbridge(Platform())
    assert not amd_southbridge(Platform(ivrs=False), iommu_function=True)


def test_idt_switch_source_validation_is_ignored():
    acs = (0x1F, 0x1C)
    assert verdict(PortType.DOWNSTREAM, ids=(0x111D, 0x80B5), below=1, acs=acs)
    assert not verdict(PortType.DOWNSTREAM, ids=(0x111D, 0x80B5), below=1, acs=acs, quirks=False)
    assert not verdict(PortType.DOWNSTREAM, ids=(0x111D, 0x80B6), below=1, acs=acs)


def test_no_two_rows_answer_for_the_same_device_and_port():
    rows = [row for row in ACS_QUIRKS if row.device_ids is not None]
    for index, one in enumerate(rows):
        for other in rows[index + 1 :]:
            if (one.vendor_id, one.port_types) == (other.vendor_id, other.port_types):
                assert not one.device_ids & other.device_ids, (one.name, other.name)

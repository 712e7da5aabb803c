"""Configuration space as vfio-pci emulates it: on a captured NVMe drive, and on made-up spaces."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_host import EDU, GIB, NIC, NIC_BAR, NIC_IO_BAR, NIC_SMALL_BAR, KernelHost, refuses

from vfiokit.host.source import open_tree
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.kernel.config_space import VirtualConfig
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import root_port
from vfiokit.machine.reset import ResetKind
from vfiokit.machine.twin import build_twin
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import capabilities
from vfiokit.pci.config import ConfigSpace

DRIVE = Bdf.parse("0000:05:00.0")


class Owner:
    """Records what configuration writes set off."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.msi_enabled = False
        self.msi_qmax = 0

    def set_intx_disabled(self, disabled: bool) -> None:
        self.log.append(("intx", disabled))

    def decoding_changed(self) -> None:
        self.log.append("decoding")

    def reset_by_write(self) -> None:
        self.log.append("reset")

    def set_power_state(self, state: int) -> None:
        self.log.append(("power", state))


def made_up(data: bytes, bars: tuple[BarModel, ...] = ()) -> tuple[VirtualConfig, Function, Owner]:
    """The emulation of a function with these configuration bytes."""
    function = Function(Bdf(0, 1, 0, 0), ConfigModel(data), bars)
    owner = Owner()
    return VirtualConfig(PciDevice(function), owner, has_intx=True), function, owner


def number(config: VirtualConfig, offset: int, width: int) -> int:
    return int.from_bytes(config.read(offset, width), "little")


def put(config: VirtualConfig, offset: int, width: int, value: int) -> None:
    config.write(offset, value.to_bytes(width, "little"))


# --- the captured drive ---


@pytest.fixture(scope="module")
def drive() -> tuple[SoftwareKernel, int, bytes]:
    """The NVMe drive of the recorded server, opened on its twin; and its captured bytes."""
    twin = build_twin(open_tree("demo"))
    captured = twin.topology()[DRIVE].config.data
    kernel = twin.kernel
    device = f"/sys/bus/pci/devices/{DRIVE}"
    kernel.tree.write(f"{device}/driver/unbind", str(DRIVE).encode())
    kernel.tree.write(f"{device}/driver_override", b"vfio-pci")
    kernel.tree.write("/sys/bus/pci/drivers_probe", str(DRIVE).encode())
    group = kernel.open("/dev/vfio/37")
    container = kernel.open("/dev/vfio/vfio")
    kernel.ioctl(group, 0x3B68, bytearray(container.to_bytes(4, "little")))
    kernel.ioctl(container, 0x3B66, 3)
    return kernel, kernel.ioctl(group, 0x3B6A, bytearray(f"{DRIVE}\0".encode())), captured


def test_ids_of_the_drive_are_those_of_sysfs(drive: tuple[SoftwareKernel, int, bytes]) -> None:
    kernel, fd, captured = drive
    assert kernel.pread(fd, 4, 7 << 40) == captured[:4]
    assert kernel.pread(fd, 8, (7 << 40) + 8) == captured[8:16]


def test_capability_lists_of_the_drive_lose_only_what_is_hidden(
    drive: tuple[SoftwareKernel, int, bytes],
) -> None:
    kernel, fd, captured = drive
    seen = capabilities(ConfigSpace(kernel.pread(fd, 4096, 7 << 40)))
    whole = capabilities(ConfigSpace(captured))
    assert not seen.findings
    hidden = {0x19, 0x1E}  # secondary PCI Express, L1 PM substates
    kept = [(each.id, each.offset) for each in whole if not (each.extended and each.id in hidden)]
    assert [(each.id, each.offset) for each in seen] == kept
    assert len(whole) > len(seen)


def test_bars_of_the_drive_size_as_on_a_bus(drive: tuple[SoftwareKernel, int, bytes]) -> None:
    kernel, fd, _captured = drive
    base = 7 << 40
    before = kernel.pread(fd, 8, base + 0x10)
    assert int.from_bytes(before, "little") == 0x94700004
    kernel.pwrite(fd, b"\xff" * 8, base + 0x10)
    assert int.from_bytes(kernel.pread(fd, 8, base + 0x10), "little") == 0xFFFF_FFFF_FFFF_C004
    kernel.pwrite(fd, before, base + 0x10)
    assert kernel.pread(fd, 8, base + 0x10) == before
    assert kernel.device(DRIVE).function.bar_address(0) == 0x94700000  # the hardware never moved


def test_writes_to_msix_control_are_ignored(drive: tuple[SoftwareKernel, int, bytes]) -> None:
    kernel, fd, _captured = drive
    at = kernel.device(DRIVE).find_capability(0x11)
    before = kernel.pread(fd, 12, (7 << 40) + at)
    kernel.pwrite(fd, b"\xff" * 10, (7 << 40) + at + 2)
    assert kernel.pread(fd, 12, (7 << 40) + at) == before


# --- header ---


@pytest.fixture
def host() -> KernelHost:
    return KernelHost()


@pytest.fixture
def nic(host: KernelHost) -> int:
    return host.open_device(NIC)


@pytest.mark.parametrize(
    ("bar", "address", "sized"),
    [
        (0, NIC_BAR | 4, 0xFFFF_0004),
        (1, 0, 0xFFFF_FFFF),
        (2, NIC_SMALL_BAR, 0xFFFF_FF00),
        (3, NIC_IO_BAR | 1, 0xFFFF_FFE1),
        (4, 0, 0),
        (5, 0, 0),
    ],
)
def test_bar_sizing(host: KernelHost, nic: int, bar: int, address: int, sized: int) -> None:
    assert host.config(nic, 0x10 + 4 * bar, 4) == address
    host.set_config(nic, 0x10 + 4 * bar, 4, 0xFFFF_FFFF)
    assert host.config(nic, 0x10 + 4 * bar, 4) == sized


@pytest.mark.parametrize("offset", [0x00, 0x02, 0x08, 0x0A, 0x0E, 0x2C, 0x2E, 0x34, 0x3D, 0x3E])
def test_identity_cannot_be_written(host: KernelHost, nic: int, offset: int) -> None:
    before = host.config(nic, offset, 1)
    host.set_config(nic, offset, 1, before ^ 0xFF)
    assert host.config(nic, offset, 1) == before


def test_interrupt_line_is_the_users_own(host: KernelHost, nic: int) -> None:
    host.set_config(nic, 0x3C, 1, 0x2A)
    assert host.config(nic, 0x3C, 1) == 0x2A
    assert host.nic.config_read(0x3C, 1) == 0


def test_bus_master_and_decoding_reach_hardware(host: KernelHost, nic: int) -> None:
    host.set_config(nic, 4, 2, 0x0407)
    assert host.config(nic, 4, 2) == 0x0407
    assert host.nic.config_read(4, 2) & 0x0007 == 0x0007


def test_intx_disable_is_the_real_bit_while_nobody_takes_intx(host: KernelHost, nic: int) -> None:
    host.set_config(nic, 4, 2, 0x0400)
    assert host.nic.config_read(4, 2) & 0x0400
    host.set_config(nic, 4, 2, 0)
    assert not host.nic.config_read(4, 2) & 0x0400


def test_expansion_rom_of_a_function_without_one_reads_zero(host: KernelHost, nic: int) -> None:
    host.set_config(nic, 0x30, 4, 0xFFFF_FFFF)
    assert host.config(nic, 0x30, 4) == 0


def test_a_read_beyond_the_space_is_efault(host: KernelHost) -> None:
    edu = host.open_device(EDU)
    with refuses(errno.EFAULT):
        host.config(edu, 256, 4)
    with refuses(errno.EFAULT):
        host.config(edu, 254, 4)
    with refuses(errno.EFAULT):
        host.set_config(edu, 255, 2, 0)


def test_bars_lost_behind_the_users_back_come_back_with_decoding(
    host: KernelHost, nic: int
) -> None:
    host.set_config(nic, 4, 2, 0x0006)
    host.nic.reset(ResetKind.FUNCTION_LEVEL)
    assert host.nic.bar_address(0) == 0
    host.set_config(nic, 4, 2, 0x0006)
    assert host.nic.bar_address(0) == NIC_BAR
    assert host.nic.config_read(4, 2) & 6 == 6


# --- PCI Express, power, MSI ---


def test_flr_by_writing_its_bit_resets_and_reads_zero(host: KernelHost, nic: int) -> None:
    at = host.kernel.device(NIC).find_capability(0x10)
    host.nic.stored[0, 0] = (1, 4)
    seen: list[ResetKind] = []
    reset = host.nic.reset
    host.nic.reset = lambda kind: (seen.append(kind), reset(kind))[1]  # type: ignore[func-returns-value, method-assign]
    host.set_config(nic, at + 8, 2, host.config(nic, at + 8, 2) | 0x8000)
    assert seen == [ResetKind.FUNCTION_LEVEL]
    assert host.config(nic, at + 8, 2) & 0x8000 == 0
    assert host.nic.bar_address(0) == NIC_BAR


def test_payload_size_is_virtual_and_read_requests_are_not_made_smaller_than_it(
    host: KernelHost, nic: int
) -> None:
    at = host.kernel.device(NIC).find_capability(0x10) + 8
    host.nic.config_write(at, 2, 0x2810 & ~0x70E0 | 1 << 5 | 2 << 12)  # 256-byte payload
    host.set_config(nic, at, 2, 0x00E0)  # asks for 4096-byte payloads, 128-byte requests
    assert host.config(nic, at, 2) & 0x70E0 == 0x00E0
    assert host.nic.config_read(at, 2) & 0x70E0 == 1 << 5 | 1 << 12


def test_link_control_cannot_be_written_but_device_control_2_can(
    host: KernelHost, nic: int
) -> None:
    at = host.kernel.device(NIC).find_capability(0x10)
    before = host.config(nic, at + 0x10, 2)
    host.set_config(nic, at + 0x10, 2, 0x0040)
    assert host.config(nic, at + 0x10, 2) == before
    host.set_config(nic, at + 0x28, 2, 0x0025)
    assert host.config(nic, at + 0x28, 2) == 0x0005  # ARI forwarding stays as it was


def test_power_state_follows_writes_and_d3_closes_bars(host: KernelHost, nic: int) -> None:
    at = host.kernel.device(NIC).find_capability(0x01)
    host.set_config(nic, 4, 2, 0x0006)
    host.nic.config_write(0x0C, 1, 0x10)
    host.set_config(nic, at + 4, 2, 3)
    assert host.config(nic, at + 4, 2) & 3 == 3
    with refuses(errno.EIO):
        host.kernel.pread(nic, 4, 0)
    host.set_config(nic, at + 4, 2, 0)
    assert len(host.kernel.pread(nic, 4, 0)) == 4  # state lost in D3hot was restored
    assert host.nic.bar_address(0) == NIC_BAR
    assert host.nic.config_read(0x0C, 1) == 0x10


def test_pme_is_hidden() -> None:
    data = header(0x40)
    data[0x40:0x48] = bytes([0x01, 0, 0x03, 0xC8, 0x08, 0x81, 0, 0])
    config, _function, owner = made_up(bytes(data))
    assert number(config, 0x42, 2) == 0x0003
    assert number(config, 0x44, 2) == 0x0008
    put(config, 0x44, 2, 0x8102)
    assert number(config, 0x44, 2) == 0x0008
    assert owner.log == [("power", 2)]


def test_msi_enable_is_refused_and_the_message_stays_virtual(host: KernelHost, nic: int) -> None:
    at = host.kernel.device(NIC).find_capability(0x05)
    host.set_config(nic, at + 4, 4, 0xFEE0_1000)
    host.set_config(nic, at + 2, 2, 0x0021)
    assert host.config(nic, at + 4, 4) == 0xFEE0_1000
    assert host.nic.config_read(at + 4, 4) == 0
    assert host.config(nic, at + 2, 2) & 0x71 == 0
    assert host.nic.config_read(at + 2, 2) & 1 == 0


def test_msi_mask_bits_reach_hardware(host: KernelHost, nic: int) -> None:
    at = host.kernel.device(NIC).find_capability(0x05)
    host.set_config(nic, at + 0x10, 4, 0x5)
    assert host.nic.config_read(at + 0x10, 4) == 0x5
    assert host.config(nic, at + 0x10, 4) == 0x5


def test_aer_masks_are_the_users(host: KernelHost, nic: int) -> None:
    at = next(c.offset for c in host.nic.capabilities() if c.extended and c.id == 1)
    host.set_config(nic, at + 8, 4, 0xFFFF_FFFF)
    assert host.nic.config_read(at + 8, 4) == 0x03FF_F031
    before = host.config(nic, at, 4)
    host.set_config(nic, at, 4, 0)
    assert host.config(nic, at, 4) == before


# --- lists with holes ---


def header(first: int = 0) -> bytearray:
    """A conventional function whose capability list starts at ``first``."""
    data = bytearray(256)
    data[0:4] = bytes.fromhex("86801234")
    data[6] = 0x10 if first else 0
    data[0x34] = first
    return data


def with_capabilities(*ids: int, stride: int = 0x10) -> bytearray:
    data = header(0x40)
    for index, cap_id in enumerate(ids):
        at = 0x40 + stride * index
        data[at] = cap_id
        data[at + 1] = at + stride if index + 1 < len(ids) else 0
    return data


def listed(config: VirtualConfig, size: int = 256) -> list[int]:
    found = capabilities(ConfigSpace(config.read(0, size)))
    assert not found.findings
    return [each.offset for each in found]


@pytest.mark.parametrize(
    "cap_id", [0x00, 0x04, 0x06, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x14, 0x15, 0x42]
)
def test_hidden_capabilities_are_unlinked_and_their_bytes_stay_raw(cap_id: int) -> None:
    data = with_capabilities(0x01, cap_id, 0x12)
    data[0x58] = 0x77
    config, function, _owner = made_up(bytes(data))
    assert listed(config) == [0x40, 0x60]
    assert number(config, 0x58, 1) == 0x77
    function.config.allow(0x58, 1, 0xFF)
    put(config, 0x58, 1, 0x11)
    assert function.config_read(0x58, 1) == 0x11


def test_a_hidden_first_capability_moves_the_pointer() -> None:
    config, _function, _owner = made_up(bytes(with_capabilities(0x0D, 0x01)))
    assert number(config, 0x34, 1) == 0x50
    assert listed(config) == [0x50]


def test_without_visible_capability_the_status_bit_clears() -> None:
    config, _function, _owner = made_up(bytes(with_capabilities(0x0D, 0x0C)))
    assert number(config, 0x06, 2) & 0x10 == 0


def test_a_looping_list_ends() -> None:
    data = with_capabilities(0x01, 0x12)
    data[0x51] = 0x40
    config, _function, _owner = made_up(bytes(data))
    assert number(config, 0x40, 1) == 0x01


def express(*extended: int, version: int = 1) -> bytearray:
    """PCI Express, with these extended capabilities from 0x100 on."""
    data = bytearray(with_capabilities(0x10)) + bytearray(4096 - 256)
    data[0x42] = 2
    for index, cap_id in enumerate(extended):
        at = 0x100 + 0x40 * index
        following = at + 0x40 if index + 1 < len(extended) else 0
        data[at : at + 4] = (following << 20 | version << 16 | cap_id).to_bytes(4, "little")
    return data


@pytest.mark.parametrize(
    "cap_id", [0x05, 0x06, 0x07, 0x0A, 0x0C, 0x11, 0x14, 0x19, 0x1A, 0x1B, 0x1D, 0x1E, 0x1F, 0x2E]
)
def test_hidden_extended_capabilities_are_unlinked(cap_id: int) -> None:
    config, _function, _owner = made_up(bytes(express(0x03, cap_id, 0x0E)))
    assert listed(config, 4096) == [0x40, 0x100, 0x180]


def test_a_hidden_first_extended_capability_stays_as_a_placeholder() -> None:
    config, function, _owner = made_up(bytes(express(0x1B, 0x03)))
    assert number(config, 0x100, 4) == 0x140 << 20
    assert listed(config, 4096) == [0x40, 0x140]
    put(config, 0x100, 4, 0xFFFFFFFF)
    assert number(config, 0x100, 4) == 0x140 << 20
    function.config.allow(0x104, 4, 0xFFFFFFFF)
    put(config, 0x104, 4, 0x12345678)  # beyond the placeholder's four bytes: raw
    assert function.config_read(0x104, 4) == 0x12345678


def test_with_hidden_extended_capabilities_only_the_list_is_empty() -> None:
    config, _function, _owner = made_up(bytes(express(0x1B, 0x1E)))
    assert number(config, 0x100, 4) == 0


def test_extended_space_without_express_capability_is_raw() -> None:
    data = express(0x03)
    data[0x40] = 0x12  # SATA in place of PCI Express
    config, _function, _owner = made_up(bytes(data))
    assert number(config, 0x100, 4) & 0xFFFF == 0x03


@pytest.mark.parametrize(
    ("cap_id", "setup", "length"),
    [
        (0x0D, {}, 8),
        (0x0D, {4: 0x20, 5: 40}, 8 + 8),
        (0x0D, {4: 0x20}, 8 + 32),
        (0x15, {8: 0x40}, 4 + 16),
        (0x0B, {7: 0x01, 6: 0x40}, 0x14),
        (0x23, {7: 0x01, 6: 0x80}, 0x18),
        (0x02, {}, 0x1C),
        (0x02, {4: 1, 8: 2}, 0x30 + 16),
        (0x16, {4: 3}, 16 + 4),
        (0x17, {5: 2, 6: 3}, 12 + 8),
        (0x10, {}, 0x40),
    ],
)
def test_length_of_variable_capabilities(cap_id: int, setup: dict[int, int], length: int) -> None:
    """Bytes of a capability are not raw, the byte behind it is."""
    data = express(0x03)
    data[0x100:0x104] = (0x200 << 20 | 1 << 16 | 0x03).to_bytes(4, "little")
    data[0x200:0x204] = (1 << 16 | cap_id).to_bytes(4, "little")
    for offset, value in setup.items():
        data[0x200 + offset] = value
    config, function, _owner = made_up(bytes(data))
    end = 0x200 + length
    function.config.allow(end - 1, 2, 0xFFFF)
    raw = cap_id in (0x0B, 0x23)
    put(config, end - 1, 1, 0xA5)
    put(config, end, 1, 0xA5)
    assert (function.config_read(end - 1, 1) == 0xA5) is raw
    assert function.config_read(end, 1) == 0xA5


def test_advanced_features_reset_needs_both_capabilities() -> None:
    for capable, wanted in ((0x03, ["reset"]), (0x02, [])):
        data = with_capabilities(0x13)
        data[0x43] = capable
        config, _function, owner = made_up(bytes(data))
        put(config, 0x44, 1, 1)
        assert owner.log == wanted
        assert number(config, 0x44, 1) == 0


def test_vital_product_data_toggles_its_flag_only_when_the_device_answers() -> None:
    data = with_capabilities(0x03)
    config, function, _owner = made_up(bytes(data))
    put(config, 0x42, 2, 0x0010)
    assert number(config, 0x42, 2) == 0x0010
    function.config.allow(0x42, 2, 0xFFFF)

    def answer(_offset: int, _width: int) -> None:
        address = function.config.read(0x42, 2)
        if not address & 0x8000:
            function.config.set(0x44, 4, 0xCAFE0000 | address)
            function.config.set(0x42, 2, address | 0x8000)

    function.config.watch(0x42, 2, answer)
    put(config, 0x42, 2, 0x0020)
    assert number(config, 0x42, 2) == 0x8020
    assert number(config, 0x44, 4) == 0xCAFE0020


# --- virtual functions ---


def test_a_vf_shows_its_ids_and_memory_enable_and_no_pin() -> None:
    machine = Machine(ram=GIB)
    machine.add_host_bridge(iommu=machine.add_iommu())
    machine.add(root_port(Bdf.parse("00:01.0"), 1))
    physical = Function(Bdf.parse("01:00.0"), ConfigModel(bytes(express(0x10))))
    machine.add(physical)
    data = express(0x0E)
    data[0:4] = b"\xff" * 4
    data[0x3D] = 1
    virtual = Function(Bdf.parse("01:00.1"), ConfigModel(bytes(data)))
    virtual.physfn = physical.bdf
    machine.add(virtual)
    device = PciDevice(virtual)
    device.vendor_id, device.device_id = 0x8086, 0x154C
    config = VirtualConfig(device, Owner(), has_intx=True)
    assert number(config, 0, 4) == 0x154C8086
    assert number(config, 4, 2) & 2
    assert number(config, 0x3D, 1) == 0
    put(config, 4, 2, 0x0004)
    assert number(config, 4, 2) & 2 == 0
    assert not config.memory_enabled
    put(config, 4, 2, 0x0006)
    assert config.memory_enabled


# --- properties ---


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(min_size=256, max_size=256) | st.binary(min_size=4096, max_size=4096),
    at=st.integers(0, 255),
    width=st.integers(1, 16),
    written=st.binary(min_size=1, max_size=16),
)
def test_random_bytes_never_break_the_emulation(
    data: bytes, at: int, width: int, written: bytes
) -> None:
    config, _function, _owner = made_up(data)
    width = min(width, len(data) - at)
    assert len(config.read(at, width)) == width
    config.write(at, written[: len(data) - at])
    whole = config.read(0, len(data))
    assert whole[at : at + width] == config.read(at, width)
    assert whole == b"".join(config.read(each, 1) for each in range(len(data)))

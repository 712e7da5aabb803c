"""Regions, resets and features of an open device."""

from __future__ import annotations

import errno
import struct

import pytest
from kernel_host import (
    EDU,
    FIRST,
    GIB,
    NIC,
    NIC_BAR,
    PAGE,
    PORT,
    SECOND,
    TABLE_OFFSET,
    KernelHost,
    refuses,
)

from vfiokit.abi import vfio as abi
from vfiokit.machine.build import endpoint_config
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.machine.kernel.device import VfioPciDevice
from vfiokit.machine.machine import Machine
from vfiokit.machine.port import root_port
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

CONFIG = 7 << 40


class Opened:
    """One open device with memory decoding on."""

    def __init__(self, host: KernelHost | None = None, command: int = 0x0007) -> None:
        self.host = host or KernelHost()
        self.fd = self.host.open_device(NIC)
        self.host.set_config(self.fd, 4, 2, command)

    def ioctl(self, request: int, argument: int | bytearray = 0) -> int:
        return self.host.kernel.ioctl(self.fd, request, argument)

    def pread(self, length: int, offset: int) -> bytes:
        return self.host.kernel.pread(self.fd, length, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        return self.host.kernel.pwrite(self.fd, data, offset)


@pytest.fixture
def nic() -> Opened:
    return Opened()


# --- device information ---


def test_device_info(nic: Opened) -> None:
    buffer = abi.vfio_device_info(argsz=24).pack()
    nic.ioctl(abi.VFIO_DEVICE_GET_INFO, buffer)
    info = abi.vfio_device_info.unpack_from(buffer)
    assert (info.flags, info.num_regions, info.num_irqs, info.cap_offset) == (3, 9, 5, 0)


def test_device_info_of_sixteen_bytes_is_the_old_struct(nic: Opened) -> None:
    buffer = abi.vfio_device_info(argsz=16).pack()
    buffer[16:] = b"\xaa" * 8
    nic.ioctl(abi.VFIO_DEVICE_GET_INFO, buffer)
    assert bytes(buffer[16:]) == b"\xaa" * 8
    with refuses(errno.EINVAL):
        nic.ioctl(abi.VFIO_DEVICE_GET_INFO, abi.vfio_device_info(argsz=15).pack())


def test_atomic_completers_of_the_root_port_are_listed_and_requests_enabled() -> None:
    host = KernelHost()
    port = host.kernel.device(NIC).neighbours.bridge_above(host.kernel.device(NIC))
    assert port is not None
    at = port.find_capability(0x10)
    port.function.config.set(at + 0x24, 4, 0x180)
    nic = Opened(host)
    short = abi.vfio_device_info(argsz=24).pack()
    nic.ioctl(abi.VFIO_DEVICE_GET_INFO, short)
    info = abi.vfio_device_info.unpack_from(short)
    assert (info.flags & abi.VFIO_DEVICE_FLAGS_CAPS, info.cap_offset, info.argsz) == (0x80, 0, 40)
    full = bytearray(40)
    abi.vfio_device_info(argsz=40).pack_into(full)
    nic.ioctl(abi.VFIO_DEVICE_GET_INFO, full)
    found = abi.vfio_device_info_cap_pci_atomic_comp.unpack_from(full, 24)
    assert (found.id, found.flags, found.next) == (5, 3, 0)
    control = host.nic.capabilities().find(0x10)
    assert control is not None
    assert host.nic.config_read(control.offset + 0x28, 2) & 0x40


# --- region information ---


@pytest.mark.parametrize(
    ("index", "flags", "size"),
    [
        (0, 0xF, 0x10000),
        (1, 0, 0),
        (2, 0x7, 0x100),
        (3, 0x3, 0x20),
        (4, 0, 0),
        (5, 0, 0),
        (6, 0, 0),
        (7, 0x3, 4096),
    ],
)
def test_region_info(nic: Opened, index: int, flags: int, size: int) -> None:
    info = nic.host.region_info(nic.fd, index, 64)
    assert (info.flags, info.size, info.offset) == (flags, size, index << 40)


def test_the_bar_with_the_msix_table_says_that_it_can_be_mapped(nic: Opened) -> None:
    buffer = bytearray(40)
    abi.vfio_region_info(argsz=40, index=0).pack_into(buffer)
    nic.ioctl(abi.VFIO_DEVICE_GET_REGION_INFO, buffer)
    info = abi.vfio_region_info.unpack_from(buffer)
    header = abi.vfio_info_cap_header.unpack_from(buffer, info.cap_offset)
    assert (info.cap_offset, header.id, header.next) == (32, 3, 0)
    short = nic.host.region_info(nic.fd, 0)
    assert (short.cap_offset, short.argsz, short.flags) == (0, 40, 0xF)


@pytest.mark.parametrize("index", [8, 9, 77])
def test_regions_that_do_not_exist_are_einval(nic: Opened, index: int) -> None:
    with refuses(errno.EINVAL):
        nic.host.region_info(nic.fd, index)
    with refuses(errno.EINVAL):
        nic.pread(4, index << 40)
    with refuses(errno.EINVAL):
        nic.pwrite(b"1", index << 40)


def test_region_info_below_its_size_is_einval(nic: Opened) -> None:
    with refuses(errno.EINVAL):
        nic.host.region_info(nic.fd, 0, 31)


# --- read and write ---


def test_accesses_are_cut_into_aligned_pieces(nic: Opened) -> None:
    nic.host.nic.stored.clear()
    nic.pwrite(bytes(range(1, 20)), 0x101)
    assert {where[1]: width for where, (_value, width) in nic.host.nic.stored.items()} == {
        0x101: 1,
        0x102: 2,
        0x104: 4,
        0x108: 8,
        0x110: 4,
    }
    assert nic.host.nic.stored[0, 0x104] == (0x07060504, 4)


def test_reads_are_clipped_at_the_end_of_the_bar(nic: Opened) -> None:
    assert len(nic.pread(64, 0xFFF0)) == 16
    assert nic.pwrite(bytes(64), 0xFFF0) == 16
    assert nic.pread(0, 0x20000) == b""
    assert nic.pwrite(b"", 6 << 40) == 0


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (0x10000, errno.EINVAL),  # beyond BAR 0
        (1 << 40, errno.EINVAL),  # upper half of BAR 0
        (6 << 40, errno.EINVAL),  # no ROM
        ((7 << 40) + 4096, errno.EFAULT),
        ((7 << 40) + 4094, errno.EFAULT),
        (-8, errno.EINVAL),
    ],
)
def test_reading_there_is_refused(nic: Opened, offset: int, code: int) -> None:
    with refuses(code):
        nic.pread(4, offset)


def test_writing_the_rom_is_einval(nic: Opened) -> None:
    with refuses(errno.EINVAL):
        nic.pwrite(b"1234", 6 << 40)


def test_memory_bars_need_decoding_and_io_bars_do_not_say(nic: Opened) -> None:
    nic.host.set_config(nic.fd, 4, 2, 0x0000)
    with refuses(errno.EIO):
        nic.pread(4, 0)
    with refuses(errno.EIO):
        nic.pwrite(b"1234", 2 << 40)
    assert nic.pread(4, 3 << 40) == b"\xff" * 4
    nic.host.set_config(nic.fd, 4, 2, 0x0001)
    assert nic.pread(4, 3 << 40) == bytes(4)


def test_around_the_msix_table_the_registers_still_answer(nic: Opened) -> None:
    nic.host.nic.stored[0, TABLE_OFFSET - 4] = (0x11223344, 4)
    data = nic.pread(12, TABLE_OFFSET - 4)
    assert data == struct.pack("<I", 0x11223344) + b"\xff" * 8


# --- mappings ---


def test_a_mapped_access_is_one_access_of_its_width(nic: Opened) -> None:
    mapping = nic.host.kernel.mmap(nic.fd, 0x10000, 0)
    mapping.write16(0x10, 0xBEEF)
    mapping.write64(0x18, 0x0102030405060708)
    mapping.write8(0x21, 7)
    assert nic.host.nic.stored[0, 0x10] == (0xBEEF, 2)
    assert nic.host.nic.stored[0, 0x18] == (0x0102030405060708, 8)
    assert nic.host.nic.stored[0, 0x21] == (7, 1)
    assert (mapping.read16(0x10), mapping.read64(0x18), mapping.read32(0x18), mapping.read8(0)) == (
        0xBEEF,
        0x0102030405060708,
        0x05060708,
        0,
    )
    assert mapping.view is None
    mapping.close()


@pytest.mark.parametrize(
    ("length", "offset"),
    [
        (PAGE, 6 << 40),
        (PAGE, 7 << 40),
        (PAGE, 3 << 40),  # I/O
        (PAGE, 1 << 40),  # no BAR
        (PAGE, 0x10000),  # beyond
        (0x11000, 0),
        (PAGE, 0x800),  # no page
        (0, 0),
    ],
)
def test_mmap_is_refused(nic: Opened, length: int, offset: int) -> None:
    with refuses(errno.EINVAL):
        nic.host.kernel.mmap(nic.fd, length, offset)


def test_a_small_bar_on_a_page_of_its_own_maps_whole(nic: Opened) -> None:
    mapping = nic.host.kernel.mmap(nic.fd, PAGE, 2 << 40)
    mapping.write32(0xFC, 5)
    assert nic.host.nic.stored[2, 0xFC] == (5, 4)
    assert mapping.read32(0x100) == 0xFFFFFFFF


def test_offsets_and_values_that_do_not_fit(nic: Opened) -> None:
    mapping = nic.host.kernel.mmap(nic.fd, PAGE, PAGE)
    for offset in (-4, 2, PAGE, PAGE - 2):
        with pytest.raises(IndexError):
            mapping.read32(offset)
    with pytest.raises(ValueError, match="does not fit"):
        mapping.write8(0, 256)
    mapping.write8(0, 255)
    assert nic.host.nic.stored[0, PAGE] == (255, 1)


def test_a_mapping_of_disabled_memory_is_efault(nic: Opened) -> None:
    mapping = nic.host.kernel.mmap(nic.fd, PAGE, 0)
    nic.host.set_config(nic.fd, 4, 2, 0)
    with refuses(errno.EFAULT):
        mapping.read32(0)
    nic.host.set_config(nic.fd, 4, 2, 2)
    assert mapping.read32(0) == 0


def test_a_mapping_keeps_its_device_open(nic: Opened) -> None:
    mapping = nic.host.kernel.mmap(nic.fd, PAGE, 0)
    nic.host.kernel.close(nic.fd)
    assert mapping.read32(0) == 0
    with refuses(errno.EBUSY):
        nic.host.unbind(NIC)
    mapping.close()
    mapping.close()
    nic.host.unbind(NIC)


# --- open, close, reset ---


def test_bus_mastering_is_off_at_open_and_the_function_is_reset() -> None:
    host = KernelHost()
    host.nic.config_write(4, 2, 0x0006)
    host.nic.stored[0, 0] = (1, 4)
    seen: list[ResetKind] = []
    reset = host.nic.reset
    host.nic.reset = lambda kind: (seen.append(kind), reset(kind))[1]  # type: ignore[func-returns-value, method-assign]
    fd = host.open_device(NIC)
    assert host.config(fd, 4, 2) & 4 == 0
    assert seen[-1] is ResetKind.FUNCTION_LEVEL
    assert host.nic.bar_address(0) == NIC_BAR


def test_close_restores_what_open_saved(nic: Opened) -> None:
    nic.host.set_config(nic.fd, 0x0C, 1, 0x20)
    nic.host.kernel.close(nic.fd)
    nic.host.unbind(NIC)
    assert nic.host.nic.config_read(0x0C, 1) == 0
    assert nic.host.nic.bar_address(0) == NIC_BAR
    assert not nic.host.nic.bus_master


def test_device_reset_keeps_configuration(nic: Opened) -> None:
    before = nic.host.nic.config_read(0x10, 4)
    nic.host.set_config(nic.fd, 0x0C, 1, 0x10)
    assert nic.ioctl(abi.VFIO_DEVICE_RESET) == 0
    assert nic.host.nic.config_read(0x10, 4) == before
    assert nic.host.config(nic.fd, 0x0C, 1) == 0x10
    assert nic.host.config(nic.fd, 4, 2) == 0x0007


def test_a_function_that_cannot_be_reset_says_so() -> None:
    host = KernelHost()
    fd = host.open_device(EDU)
    buffer = abi.vfio_device_info(argsz=24).pack()
    host.kernel.ioctl(fd, abi.VFIO_DEVICE_GET_INFO, buffer)
    assert abi.vfio_device_info.unpack_from(buffer).flags == abi.VFIO_DEVICE_FLAGS_PCI
    with refuses(errno.EINVAL):
        host.kernel.ioctl(fd, abi.VFIO_DEVICE_RESET)


def test_a_reset_that_runs_already_aborts_open_with_eagain() -> None:
    host = KernelHost()
    _container, group = host.ready(NIC)
    host.kernel.device(NIC).resetting = True
    with refuses(errno.EAGAIN):
        host.device_fd(group, str(NIC))
    host.kernel.device(NIC).resetting = False
    fd = host.device_fd(group, str(NIC))
    host.kernel.device(NIC).resetting = True
    with refuses(errno.EAGAIN):
        host.kernel.ioctl(fd, abi.VFIO_DEVICE_RESET)


@pytest.mark.parametrize(
    "request_number",
    [abi.VFIO_DEVICE_QUERY_GFX_PLANE, abi.VFIO_DEVICE_GET_GFX_DMABUF, 0x3BFF, abi.VFIO_SET_IOMMU],
)
def test_unknown_device_requests_are_enotty(nic: Opened, request_number: int) -> None:
    with refuses(errno.ENOTTY):
        nic.ioctl(request_number, bytearray(64))


def test_binding_a_group_device_to_iommufd_is_einval(nic: Opened) -> None:
    with refuses(errno.EINVAL):
        nic.ioctl(abi.VFIO_DEVICE_BIND_IOMMUFD, abi.vfio_device_bind_iommufd(argsz=24).pack())


# --- hot reset ---


def pair() -> tuple[KernelHost, int, int]:
    """Two functions of one bus, the first one open: host, group, device."""
    host = KernelHost()
    host.bind(FIRST)
    host.bind(SECOND)
    _container, group = host.ready(FIRST)
    return host, group, host.device_fd(group, str(FIRST))


def hot_reset(host: KernelHost, fd: int, *groups: int, flags: int = 0, count: int = -1) -> int:
    head = abi.vfio_pci_hot_reset(
        argsz=12 + 4 * len(groups), flags=flags, count=len(groups) if count < 0 else count
    )
    data = head.pack() + struct.pack(f"<{len(groups)}i", *groups)
    return host.kernel.ioctl(fd, abi.VFIO_DEVICE_PCI_HOT_RESET, data)


def test_hot_reset_info_names_every_function_of_the_bus() -> None:
    host, _group, fd = pair()
    short = abi.vfio_pci_hot_reset_info(argsz=12).pack()
    with refuses(errno.ENOSPC):
        host.kernel.ioctl(fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, short)
    assert abi.vfio_pci_hot_reset_info.unpack_from(short).count == 2
    full = bytearray(12 + 16)
    abi.vfio_pci_hot_reset_info(argsz=28).pack_into(full)
    host.kernel.ioctl(fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, full)
    entries = [abi.vfio_pci_dependent_device.unpack_from(full, 12 + 8 * i) for i in (0, 1)]
    assert [(each.bus, each.devfn) for each in entries] == [(2, 0), (2, 1)]
    assert {each.group_id for each in entries} == {host.group_number(FIRST)}


def test_hot_reset_resets_both_functions_and_restores_them() -> None:
    host, group, fd = pair()
    functions = [host.machine.functions[bdf] for bdf in (FIRST, SECOND)]
    before = [function.bar_address(0) for function in functions]
    seen: list[object] = []
    for function in functions:
        reset = function.reset

        def spy(kind: ResetKind, reset: object = reset, function: object = function) -> None:
            seen.append((function, kind))
            reset(kind)  # type: ignore[operator]

        function.reset = spy  # type: ignore[method-assign]
    assert hot_reset(host, fd, group) == 0
    assert [kind for _function, kind in seen] == [ResetKind.BUS] * 2
    assert [function.bar_address(0) for function in functions] == before


def test_hot_reset_is_refused() -> None:
    host, group, fd = pair()
    with refuses(errno.EINVAL):
        hot_reset(host, fd, group, flags=1)
    with refuses(errno.EINVAL):
        hot_reset(host, fd)  # count 0 is for devices without group
    with refuses(errno.EINVAL):
        hot_reset(host, fd, group, group, group)  # more groups than functions
    with refuses(errno.EBADF):
        hot_reset(host, fd, 1 << 29)
    with refuses(errno.EINVAL):
        hot_reset(host, fd, fd)
    host.unbind(SECOND)
    with refuses(errno.EINVAL):
        hot_reset(host, fd, group)  # a neighbour is not on vfio-pci


def test_every_affected_group_must_be_passed() -> None:
    machine = Machine(ram=GIB)
    machine.add_host_bridge(iommu=machine.add_iommu())
    machine.add(root_port(PORT, 1, window=(0xE000_0000, 0xE010_0000)))
    bdfs = [Bdf(0, 1, 0, number) for number in (0, 1)]
    for number, bdf in enumerate(bdfs):
        config = endpoint_config(0x1AF4, 0x1041, 0x020000, multifunction=True, acs=0x1F)
        machine.add(Function(bdf, config, (BarModel(0, 0x10000),)))
        machine.functions[bdf].config_write(0x10, 4, 0xE000_0000 + number * 0x10000)
    host = KernelHost()
    host.kernel = SoftwareKernel(machine)
    opened = [host.ready(bdf)[1] for bdf in bdfs]
    assert host.group_number(bdfs[0]) != host.group_number(bdfs[1])
    fd = host.device_fd(opened[0], str(bdfs[0]))
    with refuses(errno.EINVAL):
        hot_reset(host, fd, opened[0])
    assert hot_reset(host, fd, *opened) == 0


def test_hot_reset_during_another_reset_is_ebusy() -> None:
    host, group, fd = pair()
    host.kernel.device(SECOND).resetting = True
    with refuses(errno.EBUSY):
        hot_reset(host, fd, group)


def test_a_root_bus_has_no_hot_reset() -> None:
    host = KernelHost()
    fd = host.open_device(EDU)
    with refuses(errno.ENODEV):
        host.kernel.ioctl(
            fd,
            abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            abi.vfio_pci_hot_reset_info(argsz=12).pack(),
        )


# --- features ---

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18


def feature(nic: Opened, flags: int, payload: bytes = b"", argsz: int | None = None) -> int:
    size = 8 + len(payload) if argsz is None else argsz
    return nic.ioctl(
        abi.VFIO_DEVICE_FEATURE, abi.vfio_device_feature(argsz=size, flags=flags).pack() + payload
    )


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        *[(number | PROBE | GET, errno.ENOTTY) for number in (0, 1, 2, 6, 7, 8, 9, 10, 99)],
        *[(number | PROBE | GET, errno.EINVAL) for number in (3, 4, 5, 12)],
        (3, errno.EINVAL),  # neither GET nor SET
        (3 | GET | SET, errno.EINVAL),
        (3 | 1 << 19, errno.EINVAL),
        (4 | SET, errno.EINVAL),  # no payload
    ],
)
def test_feature_is_refused(nic: Opened, flags: int, code: int) -> None:
    with refuses(code):
        feature(nic, flags)


def test_feature_with_short_argsz_is_einval(nic: Opened) -> None:
    with refuses(errno.EINVAL):
        feature(nic, 3 | SET, argsz=7)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_probing_a_feature_it_has_succeeds(nic: Opened, number: int) -> None:
    assert feature(nic, number | PROBE) == 0
    assert feature(nic, number | PROBE | SET) == 0


def test_low_power_closes_bars_until_it_ends(nic: Opened) -> None:
    mapping = nic.host.kernel.mmap(nic.fd, PAGE, 0)
    feature(nic, 3 | SET)
    with refuses(errno.EINVAL):
        feature(nic, 3 | SET)
    with refuses(errno.EIO):
        nic.pread(4, 0)
    with refuses(errno.EFAULT):
        mapping.read32(0)
    assert nic.host.config(nic.fd, 0, 2) == 0x8086  # configuration space wakes it for a moment
    feature(nic, 5 | SET)
    feature(nic, 5 | SET)
    assert mapping.read32(0) == 0


def test_low_power_with_wakeup_ends_at_the_first_access(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    with refuses(errno.EINVAL):
        feature(nic, 4 | SET, struct.pack("<iI", -1, 0))
    feature(nic, 4 | SET, struct.pack("<iI", event, 0))
    nic.host.config(nic.fd, 0, 2)
    assert nic.host.taken(event) == 1
    assert len(nic.pread(4, 0)) == 4


# --- VF tokens ---

TOKEN = "00112233-4455-6677-8899-aabbccddeeff"
PHYSICAL, VIRTUAL = Bdf.parse("0000:01:00.0"), Bdf.parse("0000:01:00.1")


def sriov_host(*, virtual: bool) -> KernelHost:
    """A PF with an SR-IOV capability, and maybe a VF of it."""
    machine = Machine(ram=GIB)
    machine.add_host_bridge(iommu=machine.add_iommu())
    machine.add(root_port(PORT, 1, window=(0xE000_0000, 0xE010_0000)))
    data = bytearray(endpoint_config(0x8086, 0x1572, 0x020000, acs=0x1F).data)
    data[0x102:0x104] = (0x200 << 4 | 1).to_bytes(2, "little")  # ACS links to SR-IOV
    data[0x200:0x204] = (1 << 16 | 0x10).to_bytes(4, "little")
    machine.add(Function(PHYSICAL, ConfigModel(bytes(data))))
    if virtual:
        function = Function(VIRTUAL, endpoint_config(0xFFFF, 0xFFFF, 0x020000))
        function.physfn = PHYSICAL
        machine.add(function)
    host = KernelHost()
    host.kernel = SoftwareKernel(machine)
    return host


def test_a_pf_takes_the_token_it_is_opened_with_and_one_set_later() -> None:
    host = sriov_host(virtual=False)
    _container, group = host.ready(PHYSICAL)
    fd = host.device_fd(group, f"{PHYSICAL} vf_token={TOKEN.upper()}")
    owner = host.kernel.vfio_device(host.kernel.device(PHYSICAL))
    assert owner is not None
    assert owner.token == TOKEN
    payload = bytes(range(16))
    buffer = abi.vfio_device_feature(argsz=24, flags=SET).pack() + payload
    assert host.kernel.ioctl(fd, abi.VFIO_DEVICE_FEATURE, buffer) == 0
    assert owner.token == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_a_vf_needs_no_token_while_its_pf_is_on_a_host_driver() -> None:
    host = sriov_host(virtual=True)
    _container, group = host.ready(VIRTUAL)
    with refuses(errno.EINVAL):
        host.device_fd(group, f"{VIRTUAL} vf_token={TOKEN}")
    assert host.device_fd(group, str(VIRTUAL)) > 0
    with refuses(errno.EBUSY):
        host.bind(PHYSICAL)


def test_a_vf_of_a_pf_on_vfio_needs_the_same_token() -> None:
    host = sriov_host(virtual=True)
    _container, group = host.ready(VIRTUAL)
    made = host.kernel.vfio_device(host.kernel.device(VIRTUAL))
    assert made is not None
    physical = VfioPciDevice(host.kernel.device(PHYSICAL), host.kernel)
    physical.token = TOKEN
    physical.virtual_users = lambda: made.open_count
    host.kernel.vfio.devices[PHYSICAL] = physical
    with refuses(errno.EACCES):
        host.device_fd(group, str(VIRTUAL))
    with refuses(errno.EACCES):
        host.device_fd(group, f"{VIRTUAL} vf_token={TOKEN.replace('0', '1')}")
    host.device_fd(group, f"{VIRTUAL} vf_token={TOKEN}")
    with refuses(errno.EACCES):  # the PF cannot change it under its open VFs
        physical.check_token(TOKEN.replace("0", "1"))
    with refuses(errno.EACCES):
        physical.check_token(None)
    physical.check_token(TOKEN)


# --- ioeventfd ---


def ioeventfd(
    nic: Opened, fd: int, offset: int = 0x20, data: int = 7, flags: int = 4, argsz: int = 32
) -> int:
    request = abi.vfio_device_ioeventfd(argsz=argsz, flags=flags, offset=offset, data=data, fd=fd)
    return nic.ioctl(abi.VFIO_DEVICE_IOEVENTFD, request.pack())


def test_a_signalled_ioeventfd_writes_the_register(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    ioeventfd(nic, event)
    nic.host.kernel.eventfd_write(event)
    assert nic.host.nic.stored[0, 0x20] == (7, 4)
    assert nic.host.taken(event) == 0
    ioeventfd(nic, -1)
    nic.host.nic.stored.clear()
    nic.host.kernel.eventfd_write(event)
    assert not nic.host.nic.stored


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"argsz": 27}, errno.EINVAL),
        ({"flags": 0}, errno.EINVAL),
        ({"flags": 3}, errno.EINVAL),
        ({"flags": 0x14}, errno.EINVAL),
        ({"flags": 8}, errno.EINVAL),
        ({"offset": CONFIG}, errno.EINVAL),
        ({"offset": 0x10000}, errno.EINVAL),
        ({"offset": TABLE_OFFSET + 4}, errno.EINVAL),
        ({"fd": -2}, errno.EINVAL),
        ({"fd": -1}, errno.ENODEV),
        ({"fd": 1 << 19}, errno.EBADF),
    ],
)
def test_ioeventfd_is_refused(nic: Opened, wishes: dict[str, int], code: int) -> None:
    (event,) = nic.host.events(1)
    with refuses(code):
        ioeventfd(nic, **{"fd": event, **wishes})


def test_the_same_ioeventfd_twice_is_eexist(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    ioeventfd(nic, event)
    with refuses(errno.EEXIST):
        ioeventfd(nic, event)
    ioeventfd(nic, event, data=8)

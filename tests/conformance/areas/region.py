"""Regions: what they are, reading and writing them, mapping them, eventfds that write them.

Facts: Linux ``drivers/vfio/pci/vfio_pci_core.c``, ``vfio_pci_rdwr.c``.
"""

from __future__ import annotations

import errno

from conformance.behaviour import CONTAINER, behaviour
from conformance.calls import (
    EDU_ID,
    EDU_LIVENESS,
    bar,
    chain,
    config,
    open_device,
    open_group,
    open_role,
    peek,
    poke,
    region_buffer,
    region_info,
    set_config,
)
from conformance.host import CONFIG_REGION, PAGE, Host
from vfiokit.abi import vfio as abi

SOURCE = "drivers/vfio/pci/vfio_pci_core.c, vfio_pci_rdwr.c"
READ, WRITE, MMAP, CAPS = (
    abi.VFIO_REGION_INFO_FLAG_READ,
    abi.VFIO_REGION_INFO_FLAG_WRITE,
    abi.VFIO_REGION_INFO_FLAG_MMAP,
    abi.VFIO_REGION_INFO_FLAG_CAPS,
)
CONFIG, ROM, VGA = (
    abi.VFIO_PCI_CONFIG_REGION_INDEX,
    abi.VFIO_PCI_ROM_REGION_INDEX,
    abi.VFIO_PCI_VGA_REGION_INDEX,
)
_EDU_ID_VALUE = 0x010000ED
_MEMORY = 0x2
_MSIX_TABLE = 0x2000


def case(name: str, *, error: int | tuple[int, ...] = (), binds: str | tuple[str, ...] = "edu"):
    """A behaviour of this area."""
    return behaviour(f"region/{name}", SOURCE, binds=binds, error=error, needs=CONTAINER)


# --- Information ---


@case("offsets-are-the-index-times-2-to-40")
def offsets(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in range(VGA):
        assert region_info(host, fd, index).offset == index << 40


@case("bar-of-registers")
def info_bar(host: Host) -> None:
    info = region_info(host, open_device(host, "edu"), 0)
    assert (info.size, info.flags) == (1 << 20, READ | WRITE | MMAP)
    assert info.argsz == 32
    assert info.cap_offset == 0


@case("bar-that-is-missing-has-no-size-and-no-flags")
def info_missing(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in range(1, 6):
        info = region_info(host, fd, index)
        assert (info.size, info.flags) == (0, 0)


@case("upper-half-of-a-64-bit-bar-is-no-region", binds="nvme")
def info_upper(host: Host) -> None:
    fd = open_device(host, "nvme")
    assert region_info(host, fd, 0).size == 16 << 10
    assert region_info(host, fd, 1).size == 0
    assert region_info(host, fd, 2).size == 1 << 20
    assert region_info(host, fd, 3).size == 0


@case("configuration-space-of-conventional-pci")
def info_config(host: Host) -> None:
    info = region_info(host, open_device(host, "edu"), CONFIG)
    assert (info.size, info.flags) == (256, READ | WRITE)


@case("configuration-space-of-pci-express", binds="nvme")
def info_config_express(host: Host) -> None:
    info = region_info(host, open_device(host, "nvme"), CONFIG)
    assert (info.size, info.flags) == (4096, READ | WRITE)


@case("rom-that-is-missing-has-no-size")
def info_rom(host: Host) -> None:
    info = region_info(host, open_device(host, "edu"), ROM)
    assert (info.size, info.flags) == (0, 0)


@case("vga-of-another-device-is-einval", error=errno.EINVAL)
def info_vga(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        region_info(host, fd, VGA)


@case("index-beyond-the-last-is-einval", error=errno.EINVAL)
def info_beyond(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in (9, 100, 0xFFFFFFFF):
        with host.refuses(errno.EINVAL):
            region_info(host, fd, index)


@case("info-with-short-argsz-is-einval", error=errno.EINVAL)
def info_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        region_info(host, fd, 0, argsz=31)


@case("bar-with-the-msix-table-says-that-it-can-be-mapped", binds="nvme")
def info_msix(host: Host) -> None:
    fd = open_device(host, "nvme")
    short = region_info(host, fd, 0)
    assert short.flags == READ | WRITE | MMAP | CAPS
    assert short.cap_offset == 0
    assert short.argsz == 40
    buffer = region_buffer(host, fd, 0, 256)
    full = abi.vfio_region_info.unpack_from(buffer)
    assert full.argsz == 256
    ids = [cap_id for cap_id, _data in chain(buffer, full.cap_offset, len(buffer))]
    assert ids == [abi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE]


@case("bar-of-ports-cannot-be-mapped", binds="testdev")
def info_ports(host: Host) -> None:
    fd = open_device(host, "testdev")
    info = region_info(host, fd, 1)
    assert (info.size, info.flags) == (256, READ | WRITE)


@case("aligned-bar-smaller-than-a-page-can-be-mapped", binds="shm")
def info_small(host: Host) -> None:
    fd = open_device(host, "shm")
    info = region_info(host, fd, 0)
    assert (info.size, info.flags) == (256, READ | WRITE | MMAP)


# --- Reading and writing ---


@case("registers-answer")
def read(host: Host) -> None:
    fd = open_device(host, "edu")
    assert peek(host, fd, 0, EDU_ID) == _EDU_ID_VALUE
    poke(host, fd, 0, EDU_LIVENESS, 0x1234)
    assert peek(host, fd, 0, EDU_LIVENESS) == ~0x1234 & 0xFFFFFFFF


@case("memory-bar-keeps-what-is-written", binds="shm")
def read_memory(host: Host) -> None:
    fd = open_device(host, "shm")
    data = bytes(range(64))
    assert host.kernel.pwrite(fd, data, bar(2, 0x100)) == 64
    assert host.kernel.pread(fd, 64, bar(2, 0x100)) == data
    assert host.kernel.pread(fd, 3, bar(2, 0x101)) == data[1:4]
    assert host.kernel.pread(fd, 13, bar(2, 0x103)) == data[3:16]


@case("long-access-is-cut-into-aligned-ones")
def read_cut(host: Host) -> None:
    fd = open_device(host, "edu")
    poke(host, fd, 0, EDU_LIVENESS, 7)
    # Offset 4 has room for 4 bytes only before the next 8-byte boundary.
    assert host.kernel.pread(fd, 4, bar(0, EDU_LIVENESS)) == (~7 & 0xFFFFFFFF).to_bytes(4, "little")


@case("access-of-0-bytes")
def read_nothing(host: Host) -> None:
    fd = open_device(host, "edu")
    assert host.kernel.pread(fd, 0, bar(0)) == b""
    assert host.kernel.pwrite(fd, b"", bar(0)) == 0


@case("access-at-the-end-is-clipped", binds="shm")
def read_clipped(host: Host) -> None:
    fd = open_device(host, "shm")
    size = 1 << 20
    assert host.kernel.pwrite(fd, b"12345678", bar(2, size - 4)) == 4
    assert host.kernel.pread(fd, 8, bar(2, size - 4)) == b"1234"


@case("access-beyond-the-end-is-einval", error=errno.EINVAL)
def read_beyond(host: Host) -> None:
    fd = open_device(host, "edu")
    for offset in (1 << 20, (1 << 20) + 8, (1 << 40) - 8):
        with host.refuses(errno.EINVAL):
            host.kernel.pread(fd, 4, bar(0, offset))
        with host.refuses(errno.EINVAL):
            host.kernel.pwrite(fd, b"1234", bar(0, offset))


@case("access-to-a-missing-bar-is-einval", error=errno.EINVAL)
def read_missing(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in (1, 5, ROM, VGA, 9):
        with host.refuses(errno.EINVAL):
            host.kernel.pread(fd, 4, bar(index))


@case("write-to-rom-is-einval", error=errno.EINVAL)
def write_rom(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        host.kernel.pwrite(fd, b"1234", bar(ROM))


@case("memory-bar-without-memory-enable-is-eio", error=errno.EIO)
def read_disabled(host: Host) -> None:
    fd = open_device(host, "edu")
    command = config(host, fd, 4, 2)
    assert command & _MEMORY
    set_config(host, fd, 4, 2, command & ~_MEMORY)
    with host.refuses(errno.EIO):
        peek(host, fd, 0, EDU_ID)
    with host.refuses(errno.EIO):
        poke(host, fd, 0, EDU_LIVENESS, 0)
    set_config(host, fd, 4, 2, command)
    assert peek(host, fd, 0, EDU_ID) == _EDU_ID_VALUE


@case("ports-are-accessed-by-read-and-write", binds="testdev")
def read_ports(host: Host) -> None:
    fd = open_device(host, "testdev")
    assert len(host.kernel.pread(fd, 4, bar(1))) == 4
    assert host.kernel.pwrite(fd, b"\0", bar(1)) == 1


@case("msix-table-reads-as-ones-and-drops-writes", binds="nvme")
def read_msix(host: Host) -> None:
    fd = open_device(host, "nvme")
    assert host.kernel.pread(fd, 16, bar(0, _MSIX_TABLE)) == b"\xff" * 16
    assert host.kernel.pwrite(fd, bytes(16), bar(0, _MSIX_TABLE)) == 16
    assert host.kernel.pread(fd, 16, bar(0, _MSIX_TABLE)) == b"\xff" * 16


@case("read-across-the-start-of-the-msix-table", binds="nvme")
def read_across(host: Host) -> None:
    fd = open_device(host, "nvme")
    data = host.kernel.pread(fd, 16, bar(0, _MSIX_TABLE - 8))
    assert len(data) == 16
    assert data[8:] == b"\xff" * 8


# --- Mapping ---


@case("mapped-registers-answer")
def mmap(host: Host) -> None:
    fd = open_device(host, "edu")
    window = host.map(fd, 1 << 20, bar(0))
    assert window.read32(EDU_ID) == _EDU_ID_VALUE
    window.write32(EDU_LIVENESS, 5)
    assert peek(host, fd, 0, EDU_LIVENESS) == ~5 & 0xFFFFFFFF


@case("part-of-a-bar-can-be-mapped", binds="shm")
def mmap_part(host: Host) -> None:
    fd = open_device(host, "shm")
    window = host.map(fd, PAGE, bar(2, 3 * PAGE))
    window.write32(8, 0xCAFE)
    assert peek(host, fd, 2, 3 * PAGE + 8) == 0xCAFE


@case("mmap-beyond-the-bar-is-einval", error=errno.EINVAL)
def mmap_beyond(host: Host) -> None:
    fd = open_device(host, "edu")
    for length, offset in ((2 << 20, 0), (PAGE, 1 << 20), (2 * PAGE, (1 << 20) - PAGE)):
        with host.refuses(errno.EINVAL):
            host.map(fd, length, bar(0, offset))


@case("mmap-of-other-regions-is-einval", error=errno.EINVAL)
def mmap_other(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in (1, ROM, CONFIG, VGA, 9):
        with host.refuses(errno.EINVAL):
            host.map(fd, PAGE, bar(index))


@case("mmap-of-ports-is-einval", binds="testdev", error=errno.EINVAL)
def mmap_ports(host: Host) -> None:
    fd = open_device(host, "testdev")
    with host.refuses(errno.EINVAL):
        host.map(fd, PAGE, bar(1))


@case("small-bar-is-mapped-as-a-page", binds="shm", error=errno.EINVAL)
def mmap_small(host: Host) -> None:
    fd = open_device(host, "shm")
    window = host.map(fd, PAGE, bar(0))
    window.read32(0)
    with host.refuses(errno.EINVAL):
        host.map(fd, 2 * PAGE, bar(0))


@case("msix-table-can-be-mapped", binds="nvme")
def mmap_msix(host: Host) -> None:
    fd = open_device(host, "nvme")
    window = host.map(fd, 16 << 10, bar(0))
    window.read32(_MSIX_TABLE)


@case("access-to-mapped-bar-without-memory-enable-is-a-bus-error")
def mmap_disabled(host: Host) -> None:
    fd = open_device(host, "edu")
    window = host.map(fd, PAGE, bar(0))
    command = config(host, fd, 4, 2)
    set_config(host, fd, 4, 2, command & ~_MEMORY)
    assert host.bus_error(lambda: window.read32(EDU_ID))
    set_config(host, fd, 4, 2, command)
    assert window.read32(EDU_ID) == _EDU_ID_VALUE


@case("mapping-keeps-the-device-open", error=errno.EBUSY)
def mmap_keeps(host: Host) -> None:
    opened = open_role(host, "edu")
    window = host.map(opened.fd, PAGE, bar(0))
    for fd in opened:
        host.close(fd)
    assert window.read32(EDU_ID) == _EDU_ID_VALUE
    with host.refuses(errno.EBUSY):
        open_group(host, "edu")


# --- I/O eventfds ---


def _ioeventfd(
    host: Host, fd: int, event: int, offset: int, data: int, flags: int, argsz: int = 32
) -> int:
    wish = abi.vfio_device_ioeventfd(argsz=argsz, flags=flags, offset=offset, data=data, fd=event)
    return host.ioctl(fd, abi.VFIO_DEVICE_IOEVENTFD, wish.pack())


_8, _16, _32, _64 = (
    abi.VFIO_DEVICE_IOEVENTFD_8,
    abi.VFIO_DEVICE_IOEVENTFD_16,
    abi.VFIO_DEVICE_IOEVENTFD_32,
    abi.VFIO_DEVICE_IOEVENTFD_64,
)


@case("ioeventfd-writes-its-value")
def ioeventfd(host: Host) -> None:
    fd = open_device(host, "edu")
    event = host.event()
    _ioeventfd(host, fd, event, bar(0, EDU_LIVENESS), 0xABCD, _32)
    poke(host, fd, 0, EDU_LIVENESS, 0)
    host.kernel.eventfd_write(event)
    assert host.until(lambda: peek(host, fd, 0, EDU_LIVENESS) == ~0xABCD & 0xFFFFFFFF)


@case("ioeventfd-that-is-removed-writes-nothing", error=errno.ENODEV)
def ioeventfd_removed(host: Host) -> None:
    fd = open_device(host, "edu")
    event = host.event()
    _ioeventfd(host, fd, event, bar(0, EDU_LIVENESS), 0xABCD, _32)
    _ioeventfd(host, fd, -1, bar(0, EDU_LIVENESS), 0xABCD, _32)
    poke(host, fd, 0, EDU_LIVENESS, 0)
    host.kernel.eventfd_write(event)
    assert host.fired(event, 0.05) == 1
    assert peek(host, fd, 0, EDU_LIVENESS) == 0xFFFFFFFF
    with host.refuses(errno.ENODEV):
        _ioeventfd(host, fd, -1, bar(0, EDU_LIVENESS), 0xABCD, _32)


@case("same-ioeventfd-again-is-eexist", error=errno.EEXIST)
def ioeventfd_twice(host: Host) -> None:
    fd = open_device(host, "edu")
    _ioeventfd(host, fd, host.event(), bar(0, EDU_LIVENESS), 1, _32)
    with host.refuses(errno.EEXIST):
        _ioeventfd(host, fd, host.event(), bar(0, EDU_LIVENESS), 1, _32)
    _ioeventfd(host, fd, host.event(), bar(0, EDU_LIVENESS), 2, _32)


@case("ioeventfd-of-8-bytes-is-einval", error=errno.EINVAL)
def ioeventfd_wide(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        _ioeventfd(host, fd, host.event(), bar(0, 0x80), 1, _64)


@case("ioeventfd-wants-exactly-one-width", error=errno.EINVAL)
def ioeventfd_widths(host: Host) -> None:
    fd = open_device(host, "edu")
    for flags in (0, _8 | _16, 0x10):
        with host.refuses(errno.EINVAL):
            _ioeventfd(host, fd, host.event(), bar(0), 1, flags)


@case("ioeventfd-outside-bars-is-einval", error=errno.EINVAL)
def ioeventfd_region(host: Host) -> None:
    fd = open_device(host, "edu")
    for offset in (CONFIG_REGION + 4, bar(ROM), bar(1), bar(0, 1 << 20)):
        with host.refuses(errno.EINVAL):
            _ioeventfd(host, fd, host.event(), offset, 1, _32)


@case("ioeventfd-on-the-msix-table-is-einval", binds="nvme", error=errno.EINVAL)
def ioeventfd_msix(host: Host) -> None:
    fd = open_device(host, "nvme")
    with host.refuses(errno.EINVAL):
        _ioeventfd(host, fd, host.event(), bar(0, _MSIX_TABLE + 4), 1, _32)


@case("ioeventfd-with-bad-descriptor", error=(errno.EINVAL, errno.EBADF))
def ioeventfd_fd(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        _ioeventfd(host, fd, -2, bar(0), 1, _32)
    with host.refuses(errno.EBADF):
        _ioeventfd(host, fd, 999, bar(0), 1, _32)


@case("ioeventfd-with-short-argsz-is-einval", error=errno.EINVAL)
def ioeventfd_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        _ioeventfd(host, fd, host.event(), bar(0), 1, _32, argsz=27)

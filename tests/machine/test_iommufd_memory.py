"""What is pinned and counted, files of memory, dma-bufs, and what devices reach of all that."""

from __future__ import annotations

import errno
import struct

import pytest
from iommufd_host import READ, RW, IommufdHost
from kernel_host import EDU, NIC, NIC_BAR, PAGE, refuses

from vfiokit.abi import iommufd as abi
from vfiokit.abi import vfio
from vfiokit.machine.txn import DmaError

LIMIT = 8 * PAGE
BASE = 0x10000


@pytest.fixture
def host() -> IommufdHost:
    return IommufdHost()


def reaches(host: IommufdHost, iova: int, length: int = 4) -> bytes | None:
    """What the NIC reads; ``None`` when its request is refused."""
    try:
        return host.nic.dma.read(iova, length)
    except DmaError:
        return None


# -- translation ------------------------------------------------------------------------------


def test_the_device_reads_and_writes_what_is_mapped(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    memory = host.memory()
    memory.view[:4] = b"here"
    host.map(ioas, memory.vaddr, PAGE, BASE)
    assert reaches(host, BASE) == b"here"
    host.nic.dma.write(BASE + 8, b"there")
    assert memory.view[8:13] == b"there"
    host.unmap(ioas, BASE, PAGE)
    assert reaches(host, BASE) is None


def test_permissions_are_of_each_mapping(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    memory = host.memory()
    host.map(ioas, memory.vaddr, PAGE, BASE, flags=READ)
    host.map(ioas, memory.vaddr, PAGE, BASE + PAGE)
    assert reaches(host, BASE) == bytes(4)
    host.nic.dma.write(BASE, b"no")  # posted: the device does not hear of the refusal
    assert memory.view[:2] == bytes(2)
    host.nic.dma.write(BASE + PAGE, b"yes")
    assert memory.view[:3] == b"yes"


def test_an_attached_device_reaches_what_was_mapped_before(host: IommufdHost) -> None:
    device, _number = host.bound()
    first, second = host.ioas(), host.ioas()
    for text, ioas in ((b"one ", first), (b"two ", second)):
        memory = host.memory()
        memory.view[:4] = text
        host.map(ioas, memory.vaddr, PAGE, BASE)
    host.enable(device)
    assert reaches(host, BASE) is None
    host.attach(device, first)
    assert reaches(host, BASE) == b"one "
    host.attach(device, second)
    assert reaches(host, BASE) == b"two "
    host.detach(device)
    assert reaches(host, BASE) is None


def test_a_refused_attach_leaves_the_device_where_it_was(host: IommufdHost) -> None:
    device, ioas = host.attached()
    memory = host.memory()
    memory.view[:4] = b"kept"
    host.map(ioas, memory.vaddr, PAGE, BASE)
    bad = host.ioas()
    host.map(bad, 0x1234000, PAGE, BASE)
    with refuses(errno.EFAULT):
        host.attach(device, bad)
    assert reaches(host, BASE) == b"kept"


def test_frames_stay_while_they_are_mapped(host: IommufdHost) -> None:
    device, ioas = host.attached()
    other = host.ioas()
    memory = host.memory()
    memory.view[:4] = b"live"
    before = host.machine.memory.allocated
    host.map(ioas, memory.vaddr, PAGE, BASE)
    memory.close()
    assert reaches(host, BASE) == b"live"
    host.copy(other, ioas, PAGE, BASE, BASE)  # the pages are pinned: no vaddr is needed
    with refuses(errno.EFAULT):
        host.map(ioas, memory.vaddr, PAGE, BASE + PAGE)
    host.detach(device)
    with refuses(errno.EFAULT):  # nothing pins them any more
        host.attach(device, ioas)
    host.unmap(ioas)
    assert host.machine.memory.allocated < before


def test_device_memory_by_its_vaddr_is_efault(host: IommufdHost) -> None:
    device, ioas = host.attached()
    mapping = host.kernel.mmap(device, PAGE, 0)
    with refuses(errno.EFAULT):
        host.map(ioas, mapping.vaddr, PAGE, BASE)  # type: ignore[attr-defined]


# -- RLIMIT_MEMLOCK ---------------------------------------------------------------------------


def test_only_what_hardware_maps_is_counted() -> None:
    host = IommufdHost(locked_limit=LIMIT)
    device, _number = host.bound()
    ioas, memory = host.ioas(), host.memory(32)
    host.map(ioas, memory.vaddr, 32 * PAGE, BASE)
    with refuses(errno.ENOMEM):
        host.attach(device, ioas)
    host.unmap(ioas)
    host.attach(device, ioas)
    host.map(ioas, memory.vaddr, 8 * PAGE, BASE)
    with refuses(errno.ENOMEM):
        host.map(ioas, memory.vaddr + 8 * PAGE, PAGE, 0x100000)
    with refuses(errno.ENOMEM):  # the same page by another request counts again
        host.map(ioas, memory.vaddr, PAGE, 0x100000)
    host.detach(device)
    host.map(ioas, memory.vaddr, PAGE, 0x100000)


def test_copies_are_counted_once() -> None:
    host = IommufdHost(locked_limit=LIMIT)
    _device, ioas = host.attached()
    memory = host.memory(16)
    host.map(ioas, memory.vaddr, 8 * PAGE, BASE)
    host.copy(ioas, ioas, 2 * PAGE, BASE, 0x200000)
    host.unmap(ioas, BASE, 8 * PAGE)
    host.map(ioas, memory.vaddr, 6 * PAGE, BASE)
    with refuses(errno.ENOMEM):
        host.map(ioas, memory.vaddr, PAGE, 0x100000)
    host.unmap(ioas, 0x200000, 2 * PAGE)
    host.map(ioas, memory.vaddr, 2 * PAGE, 0x100000)


@pytest.mark.parametrize("mode", [0, 1])
def test_containers_count_for_the_process_and_iommufds_for_whom_the_option_says(mode: int) -> None:
    host = IommufdHost(locked_limit=LIMIT)
    host.set_option(abi.IOMMU_OPTION_RLIMIT_MODE, mode)
    _device, ioas = host.attached()
    container, _group = host.ready(EDU)
    memory = host.memory(16)

    def map_dma(iova: int, pages: int) -> None:
        wish = vfio.vfio_iommu_type1_dma_map(
            argsz=32, flags=3, vaddr=memory.vaddr, iova=iova, size=pages * PAGE
        )
        host.kernel.ioctl(container, vfio.VFIO_IOMMU_MAP_DMA, wish.pack())

    host.map(ioas, memory.vaddr, 8 * PAGE, BASE)
    if mode == 0:
        map_dma(BASE, 8)
    with refuses(errno.ENOMEM):
        map_dma(0x100000, 1)
    host.unmap(ioas)
    if mode == 1:
        map_dma(0x100000, 1)


# -- files of memory --------------------------------------------------------------------------


def test_a_file_of_memory_is_mapped_by_offset(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    file = host.kernel.memfd(4 * PAGE)
    host.kernel.pwrite(file, b"file", 2 * PAGE)
    host.map_file(ioas, file, 2 * PAGE, BASE, start=PAGE)
    assert reaches(host, BASE + PAGE) == b"file"
    mapping = host.kernel.mmap(file, PAGE, 3 * PAGE)
    mapping.write32(0, 0x12345678)
    host.kernel.close(file)
    mapping.close()
    assert reaches(host, BASE + PAGE) == b"file"  # the mapping keeps the file
    host.unmap(ioas)
    with refuses(errno.EBADF):
        host.map_file(ioas, file)


def test_a_mapped_file_has_a_vaddr(host: IommufdHost) -> None:
    _device, ioas = host.attached()
    mapping = host.kernel.mmap(host.kernel.memfd(PAGE), PAGE, 0)
    mapping.write64(8, 0x1122334455667788)
    host.map(ioas, mapping.vaddr, PAGE, BASE)  # type: ignore[attr-defined]
    assert reaches(host, BASE + 8, 8) == struct.pack("<Q", 0x1122334455667788)
    assert mapping.read8(8) == 0x88


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"flags": 8, "ioas": 99}, errno.EOPNOTSUPP),
        ({"iova": (1 << 64) - 1}, errno.EOVERFLOW),
        ({"flags": 0, "ioas": 99}, errno.EINVAL),
        ({"ioas": 99, "file": 999}, errno.ENOENT),
        ({"length": 0, "file": 999}, errno.EINVAL),
        ({"start": (1 << 64) - 8, "file": 999}, errno.EOVERFLOW),
        ({"file": 999}, errno.EBADF),
        ({"file": -1}, errno.EBADF),
        ({"length": 5 * PAGE}, errno.EINVAL),
        ({"start": 4 * PAGE}, errno.EINVAL),
        ({"start": 8}, errno.EINVAL),
    ],
)
def test_mapping_a_file_is_refused(host: IommufdHost, fields: dict[str, int], code: int) -> None:
    _device, ioas = host.attached()
    wish = {"ioas": ioas, "file": host.kernel.memfd(4 * PAGE)} | fields
    with refuses(code):
        host.map_file(wish.pop("ioas"), wish.pop("file"), **wish)


def test_what_a_file_is_shows_when_it_is_pinned(host: IommufdHost) -> None:
    device, _number = host.bound()
    event = host.kernel.eventfd()
    for file, length in ((event, PAGE), (host.fd, PAGE), (host.kernel.memfd(PAGE), 2 * PAGE)):
        ioas = host.ioas()
        host.map_file(ioas, file, length)
        with refuses(errno.EINVAL):
            host.attach(device, ioas)
    host.kernel.close(event)


def test_change_process_is_for_files_alone(host: IommufdHost) -> None:
    ioas = host.ioas()

    def change(reserved: int = 0) -> None:
        wish = abi.iommu_ioas_change_process(reserved=reserved)
        host.ask(abi.IOMMU_IOAS_CHANGE_PROCESS, wish)

    host.map_file(ioas, host.kernel.memfd(PAGE))
    change()
    host.map(ioas, host.memory().vaddr)
    with refuses(errno.EINVAL):
        change()
    with refuses(errno.EOPNOTSUPP):
        change(1)


def test_files_of_nothing_and_beyond_their_end(host: IommufdHost) -> None:
    with refuses(errno.EINVAL):
        host.kernel.memfd(0)
    file = host.kernel.memfd(10)
    assert host.kernel.pread(file, 100, 4) == bytes(6)
    assert host.kernel.pread(file, 100, 10) == b""
    with refuses(errno.ENOSPC):
        host.kernel.pwrite(file, b"ab", 9)
    with refuses(errno.EINVAL):
        host.kernel.mmap(file, 2 * PAGE, 0)
    mapping = host.kernel.mmap(file, 8, 0)
    with pytest.raises(IndexError):
        mapping.read32(8)
    with pytest.raises(ValueError, match="fit"):
        mapping.write16(0, 1 << 16)
    mapping.close()
    mapping.close()
    with pytest.raises(ValueError, match="closed"):
        mapping.read8(0)


# -- dma-bufs ---------------------------------------------------------------------------------

BAR_SIZE = 0x10000


def export(
    host: IommufdHost,
    device: int,
    *ranges: tuple[int, int],
    region: int = 0,
    flags: int = 0,
    count: int | None = None,
    argsz: int | None = None,
) -> int:
    """``VFIO_DEVICE_FEATURE_DMA_BUF``."""
    head = vfio.vfio_device_feature_dma_buf(
        region_index=region, flags=flags, nr_ranges=len(ranges) if count is None else count
    )
    payload = head.pack() + b"".join(struct.pack("<QQ", *each) for each in ranges)
    wish = vfio.vfio_device_feature(
        argsz=8 + len(payload) if argsz is None else argsz,
        flags=vfio.VFIO_DEVICE_FEATURE_GET | vfio.VFIO_DEVICE_FEATURE_DMA_BUF,
    )
    return host.kernel.ioctl(device, vfio.VFIO_DEVICE_FEATURE, wish.pack() + payload)


@pytest.fixture
def peers(host: IommufdHost) -> tuple[int, int]:
    """The NIC, whose BAR is given away, and the IOAS that EDU is attached to."""
    nic, _number = host.bound(NIC)
    host.enable(nic)
    _edu, ioas = host.attached(EDU)
    return nic, ioas


EXPORT_ERRORS = [
    ("no ranges", {"ranges": [], "region": 99}, errno.EINVAL),
    ("flags", {"ranges": [(0, PAGE)], "flags": 1, "region": 99}, errno.EINVAL),
    ("ROM", {"ranges": [(8, PAGE)], "region": 6}, errno.ENODEV),
    ("BAR that is not there", {"ranges": [(0, PAGE)], "region": 5}, errno.ENODEV),
    ("ranges beyond the buffer", {"ranges": [(0, PAGE)], "count": 100}, errno.EFAULT),
    ("unaligned offset", {"ranges": [(8, PAGE)]}, errno.EINVAL),
    ("unaligned length", {"ranges": [(0, PAGE + 8)]}, errno.EINVAL),
    ("no length", {"ranges": [(0, 0)]}, errno.EINVAL),
    ("beyond the BAR", {"ranges": [(0, BAR_SIZE + PAGE)]}, errno.EINVAL),
    ("one of two beyond", {"ranges": [(0, PAGE), (BAR_SIZE, PAGE)]}, errno.EINVAL),
    ("wraps", {"ranges": [((1 << 64) - PAGE, PAGE)]}, errno.EOVERFLOW),
    ("I/O ports", {"ranges": [(0, PAGE)], "region": 3}, errno.EINVAL),
    ("short argsz", {"ranges": [(0, PAGE)], "argsz": 23}, errno.EINVAL),
]


@pytest.mark.parametrize(
    ("fields", "code"),
    [case[1:] for case in EXPORT_ERRORS],
    ids=[case[0] for case in EXPORT_ERRORS],
)
def test_export_is_refused(
    host: IommufdHost, peers: tuple[int, int], fields: dict[str, object], code: int
) -> None:
    wish = dict(fields)
    ranges = wish.pop("ranges")
    with refuses(code):
        export(host, peers[0], *ranges, **wish)  # type: ignore[misc, arg-type]


def test_a_peer_reaches_an_exported_bar(host: IommufdHost, peers: tuple[int, int]) -> None:
    nic, ioas = peers
    buffer = export(host, nic, (3 * PAGE, 4 * PAGE), argsz=24)  # argsz need not cover the ranges
    host.map_file(ioas, buffer, 2 * PAGE, BASE, start=PAGE)
    host.edu.dma.write(BASE + 0x10, b"\x78\x56\x34\x12")
    assert host.nic.stored[0, 4 * PAGE + 0x10] == (0x12345678, 4)
    host.kernel.close(buffer)
    host.edu.dma.write(BASE + 0x20, b"\1\0\0\0")
    assert host.nic.stored[0, 4 * PAGE + 0x20] == (1, 4)
    assert host.kernel.locked.by_user == 0


@pytest.mark.parametrize(
    ("start", "length", "code"),
    [(0, 5 * PAGE, errno.EINVAL), (4 * PAGE, PAGE, errno.EINVAL), (8, PAGE, errno.EINVAL)],
)
def test_beyond_a_dma_buf_is_refused(
    host: IommufdHost, peers: tuple[int, int], start: int, length: int, code: int
) -> None:
    nic, ioas = peers
    with refuses(code):
        host.map_file(ioas, export(host, nic, (0, 4 * PAGE)), length, BASE, start=start)


def test_a_dma_buf_of_two_ranges_cannot_be_mapped(
    host: IommufdHost, peers: tuple[int, int]
) -> None:
    nic, ioas = peers
    with refuses(errno.EOPNOTSUPP):
        host.map_file(ioas, export(host, nic, (0, PAGE), (2 * PAGE, PAGE)))


def test_a_dma_buf_is_nothing_for_the_processor(host: IommufdHost, peers: tuple[int, int]) -> None:
    buffer = export(host, peers[0], (0, PAGE))
    with refuses(errno.ESPIPE):
        host.kernel.pread(buffer, 4, 0)
    with refuses(errno.ESPIPE):
        host.kernel.pwrite(buffer, bytes(4), 0)
    with refuses(errno.EINVAL):
        host.kernel.mmap(buffer, PAGE, 0)
    with refuses(errno.ENOTTY):
        host.kernel.ioctl(buffer, abi.IOMMU_DESTROY, 0)


def decode(host: IommufdHost, device: int, on: bool) -> None:
    command = host.config(device, 4, 2)
    host.set_config(device, 4, 2, command | 2 if on else command & ~2)


def edu_reaches(host: IommufdHost, iova: int) -> bool:
    try:
        host.edu.dma.read(iova, 4)
    except DmaError:
        return False
    return True


def test_revoked_mappings_do_not_come_back(host: IommufdHost, peers: tuple[int, int]) -> None:
    nic, ioas = peers
    buffer = export(host, nic, (0, PAGE))
    host.map_file(ioas, buffer, PAGE, BASE)
    assert edu_reaches(host, BASE)
    decode(host, nic, False)
    assert not edu_reaches(host, BASE)
    with refuses(errno.ENODEV):
        host.map_file(ioas, buffer, PAGE, 2 * BASE)
    host.copy(ioas, ioas, PAGE, BASE, 3 * BASE)  # of nothing
    late = export(host, nic, (0, PAGE))  # revoked from the start
    with refuses(errno.ENODEV):
        host.map_file(ioas, late, PAGE, 2 * BASE)
    decode(host, nic, True)
    assert not edu_reaches(host, BASE)
    assert host.unmap(ioas, BASE, PAGE) == PAGE
    host.map_file(ioas, buffer, PAGE, BASE)
    host.map_file(ioas, late, PAGE, 2 * BASE)
    assert edu_reaches(host, BASE)
    assert edu_reaches(host, 2 * BASE)
    assert not edu_reaches(host, 3 * BASE)


def test_reset_revokes_what_is_mapped(host: IommufdHost, peers: tuple[int, int]) -> None:
    nic, ioas = peers
    buffer = export(host, nic, (0, PAGE))
    host.map_file(ioas, buffer, PAGE, BASE)
    host.kernel.ioctl(nic, vfio.VFIO_DEVICE_RESET)
    assert not edu_reaches(host, BASE)
    host.map_file(ioas, buffer, PAGE, 2 * BASE)  # decoding is on again


def test_low_power_revokes(host: IommufdHost, peers: tuple[int, int]) -> None:
    nic, ioas = peers
    buffer = export(host, nic, (0, PAGE))
    host.map_file(ioas, buffer, PAGE, BASE)

    def feature(number: int) -> None:
        wish = vfio.vfio_device_feature(argsz=8, flags=vfio.VFIO_DEVICE_FEATURE_SET | number)
        host.kernel.ioctl(nic, vfio.VFIO_DEVICE_FEATURE, wish.pack())

    feature(vfio.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)
    assert not edu_reaches(host, BASE)
    with refuses(errno.ENODEV):
        host.map_file(ioas, buffer, PAGE, 2 * BASE)
    feature(vfio.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)
    host.map_file(ioas, buffer, PAGE, 2 * BASE)
    assert edu_reaches(host, 2 * BASE)


def test_closing_the_device_revokes_for_good(host: IommufdHost, peers: tuple[int, int]) -> None:
    nic, ioas = peers
    buffer = export(host, nic, (0, PAGE))
    host.map_file(ioas, buffer, PAGE, BASE)
    host.kernel.close(nic)
    assert not edu_reaches(host, BASE)
    nic, _number = host.bound(NIC)
    host.enable(nic)
    assert not edu_reaches(host, BASE)
    with refuses(errno.ENODEV):
        host.map_file(ioas, buffer, PAGE, 2 * BASE)


def test_attaching_with_a_revoked_mapping_maps_the_rest(
    host: IommufdHost, peers: tuple[int, int]
) -> None:
    nic, _ioas = peers
    lazy = host.ioas()
    host.map_file(lazy, export(host, nic, (0, PAGE)), PAGE, BASE, flags=RW)
    decode(host, nic, False)
    memory = host.memory()
    host.map(lazy, memory.vaddr, PAGE, 2 * BASE)
    host.attach(nic, lazy)
    assert reaches(host, 2 * BASE) == bytes(4)
    assert reaches(host, BASE) is None
    assert host.nic.bar_address(0) == NIC_BAR

"""Dirty bitmaps: their decoding, and a container that tracks."""

from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfio_fake import GROUP, PAGE, FakeHost, error

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.vfio import Container, DirtyBitmap, IovaRange


@given(st.sets(st.integers(0, 300)), st.integers(301, 400), st.sampled_from([1, 4096, 1 << 21]))
def test_bitmap_tells_exactly_the_pages_whose_bits_are_set(pages, count, page_size) -> None:
    value = sum(1 << page for page in pages)
    # Bits beyond the last page are the kernel's to use as it likes.
    bits = (value | -1 << count).to_bytes(64, "little", signed=True)
    bitmap = DirtyBitmap(1 << 40, count * page_size, page_size, bits)
    wanted = [(1 << 40) + page * page_size for page in sorted(pages)]
    assert list(bitmap) == wanted
    assert len(bitmap) == len(wanted)
    assert all((iova in bitmap) == (page in pages) for page, iova in _pages(count, page_size))
    covered = [
        iova
        for one in bitmap.ranges()
        for iova in range(one.start, one.last + 1, page_size)
        if one.length % page_size == 0
    ]
    assert covered == wanted
    starts = [one.start for one in bitmap.ranges()]
    assert not set(starts) & {one.last + 1 for one in bitmap.ranges()}


def _pages(count: int, page_size: int) -> list[tuple[int, int]]:
    return [(page, (1 << 40) + page * page_size + page_size - 1) for page in range(count)]


def test_addresses_outside_the_bitmap_are_not_in_it() -> None:
    bitmap = DirtyBitmap(0x10000, 3 * PAGE, PAGE, b"\xff")
    assert list(bitmap.ranges()) == [IovaRange(0x10000, 0x12FFF)]
    assert 0xFFFF not in bitmap
    assert 0x13000 not in bitmap


@pytest.mark.parametrize(("length", "page_size", "bits"), [(PAGE, 3000, b"\0"), (PAGE, 64, b"\0")])
def test_bitmap_of_impossible_shape_is_refused(length, page_size, bits) -> None:
    with pytest.raises(UsageError):
        DirtyBitmap(0, length, page_size, bits)


# -- container ------------------------------------------------------------------------------


@dataclass
class TrackingHost(FakeHost):
    """A type1 container that tracks what the host's ``dirty`` says, as vfio_iommu_type1.c."""

    tracks: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tracking = False
        self.dirty: set[int] = set()

    def _container_17(self, buffer: bytearray) -> None:
        argsz, flag = struct.unpack_from("<II", buffer)
        if not self.tracks:
            raise error(errno.ENOTTY)
        if self.iommu != abi.VFIO_TYPE1v2_IOMMU:
            raise error(errno.EACCES)
        if flag == 4:
            iova, size, page, room, vaddr = struct.unpack_from("<QQQQQ", buffer, 8)
            if argsz != 48:
                raise error(errno.EINVAL)
            self._fill(iova, size, page, room, vaddr)
            self.dirty -= {one for one in self.dirty if iova <= one < iova + size}
        else:
            self.tracking = flag == 1

    def _fill(self, iova: int, size: int, page: int, room: int, vaddr: int) -> None:
        needed = -(-size // page // 64) * 8
        if room % 8 or room < needed or page != PAGE or not self.tracking:
            raise error(errno.EINVAL)
        for start, (length, _) in self.mappings.items():
            inside = iova <= start and start + length <= iova + size
            if start < iova + size and iova < start + length and not inside:
                raise error(errno.EINVAL)
        bits = sum(1 << (one - iova) // page for one in self.dirty if iova <= one < iova + size)
        ctypes.memmove(vaddr, bits.to_bytes(room, "little"), room)

    def _container_14(self, buffer: bytearray) -> None:
        _argsz, flags, iova, size = struct.unpack_from("<IIQQ", buffer)
        if flags & abi.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP:
            page, room, vaddr = struct.unpack_from("<QQQ", buffer, 24)
            self._fill(iova, size, page, room, vaddr)
        super()._container_14(buffer)


@pytest.fixture
def host() -> TrackingHost:
    return TrackingHost()


@pytest.fixture
def space(host: TrackingHost):
    with Container.open(host) as container:
        container.attach(GROUP)
        yield container


def test_container_tells_dirty_pages_once(host, space) -> None:
    buffer = space.allocate(70 * PAGE)
    space.start_dirty_tracking()
    host.dirty = {buffer.iova, buffer.iova + 65 * PAGE}
    assert list(space.dirty_bitmap(buffer.iova, 70 * PAGE)) == sorted(
        [buffer.iova, buffer.iova + 65 * PAGE]
    )
    assert len(space.dirty_bitmap(buffer.iova, 70 * PAGE)) == 0
    space.stop_dirty_tracking()
    with pytest.raises(KernelError) as caught:
        space.dirty_bitmap(buffer.iova, 70 * PAGE)
    assert caught.value.errno == errno.EINVAL
    assert "tracking" in caught.value.hint


def test_unmapping_tells_the_last_dirty_pages(host, space) -> None:
    buffer = space.allocate(4 * PAGE)
    space.start_dirty_tracking()
    host.dirty = {buffer.iova + PAGE}
    assert list(space.unmap_dirty(buffer.iova, 4 * PAGE)) == [buffer.iova + PAGE]
    assert space.mappings == host.mappings == {}
    buffer.close()


def test_bitmap_of_a_part_of_a_mapping_is_refused(space) -> None:
    buffer = space.allocate(4 * PAGE)
    space.start_dirty_tracking()
    with pytest.raises(KernelError) as caught:
        space.dirty_bitmap(buffer.iova, PAGE)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(UsageError):
        space.dirty_bitmap(buffer.iova, 0)


def test_container_of_version_1_does_not_track() -> None:
    with Container.open(TrackingHost(), 1) as container:
        container.attach(GROUP)
        with pytest.raises(KernelError) as caught:
            container.start_dirty_tracking()
    assert caught.value.errno == errno.EACCES


def test_iommufd_in_place_of_the_container_says_what_tracks_instead() -> None:
    with Container.open(TrackingHost(tracks=False)) as container:
        container.attach(GROUP)
        with pytest.raises(KernelError) as caught:
            container.start_dirty_tracking()
    assert caught.value.errno == errno.ENOTTY
    assert "Ioas" in caught.value.hint

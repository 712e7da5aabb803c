"""Payloads: byte layouts by the specification's tables, round trips, and refusals."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.abi import vfio as vfio_abi
from vfiokit.abi import vfio_user as abi
from vfiokit.errors import ProtocolError
from vfiokit.vfio_user import payload as p

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("header", 16),
        ("version", 4),
        ("dma_map", 32),
        ("dma_unmap", 24),
        ("device_info", 16),
        ("region_access", 16),
        ("dma_region_access", 16),
        ("region_io_fds", 16),
        ("sub_region_io_fd", 40),
        ("write_multi", 8),
        ("write_multi_entry", 24),
        ("mig_data", 8),
        ("device_feature", 8),
        ("irq_set", 20),
    ],
)
def test_struct_sizes_are_the_specifications(name: str, size: int) -> None:
    assert size == getattr(abi, f"vfio_user_{name}").SIZE


def test_dma_map_is_laid_out_as_the_table_has_it() -> None:
    made = p.DmaMap(0x1000, 0x2000, 3, 0x5000).pack()
    assert made == struct.pack("<IIQQQ", 32, 3, 0x5000, 0x1000, 0x2000)
    struct_made = abi.vfio_user_dma_map(argsz=32, flags=3, offset=0x5000, addr=0x1000, size=0x2000)
    assert made == bytes(struct_made.pack())


@given(st.builds(p.DmaMap, u64, u64, u32, u64))
def test_dma_map_survives(value: p.DmaMap) -> None:
    assert p.DmaMap.unpack(value.pack()) == value


@given(st.builds(p.DmaUnmap, u64, u64, u32), st.binary(max_size=16))
def test_dma_unmap_survives_with_a_bitmap_after_it(value: p.DmaUnmap, rest: bytes) -> None:
    assert p.DmaUnmap.unpack(value.pack() + rest) == value


@given(st.builds(p.DeviceInfo, u32, u32, u32), st.builds(p.IrqInfo, u32, u32, u32))
def test_infos_survive(device: p.DeviceInfo, irq: p.IrqInfo) -> None:
    assert p.DeviceInfo.unpack(device.pack()) == device
    assert p.IrqInfo.unpack(irq.pack()) == irq


areas = st.lists(st.builds(p.SparseArea, u64, u64), max_size=5).map(tuple)
regions = st.builds(
    p.RegionInfo,
    u32,
    u32.map(lambda flags: flags & ~vfio_abi.VFIO_REGION_INFO_FLAG_CAPS),
    u64,
    u64,
    st.none() | areas,
    st.none() | st.tuples(u32, u32),
    st.booleans(),
)


@given(regions)
def test_region_info_survives_and_vfio_reads_the_same(value: p.RegionInfo) -> None:
    from vfiokit.vfio.region import decode_info

    packed = value.pack(value.needed)
    found = p.RegionInfo.unpack(packed)
    assert found.argsz == value.needed == len(packed)
    assert (found.index, found.size, found.offset, found.flags) == (
        *(value.index, value.size, value.offset, value.flags),
    )
    assert (found.sparse_areas, found.type, found.msix_mappable) == (
        *(value.sparse_areas, value.type, value.msix_mappable),
    )
    # An independent reader of the same struct: the kernel's, in vfio/.
    kernel = decode_info(vfio_abi.vfio_region_info.unpack_from(packed), bytearray(packed))
    wanted = value.sparse_areas
    assert kernel.sparse_areas == (
        None if wanted is None else tuple((a.offset, a.length) for a in wanted if a.length)
    )
    assert (kernel.type, kernel.msix_mappable) == (value.type, value.msix_mappable)


@given(regions)
def test_region_info_for_a_client_without_room_is_the_head(value: p.RegionInfo) -> None:
    packed = value.pack(32)
    assert len(packed) == 32
    head = vfio_abi.vfio_region_info.unpack_from(packed)
    assert head.argsz == value.needed
    if value.needed > 32:
        assert not head.flags & vfio_abi.VFIO_REGION_INFO_FLAG_CAPS
        assert head.cap_offset == 0


def _region(chain: bytes, cap_offset: int = 32) -> bytes:
    flags = vfio_abi.VFIO_REGION_INFO_FLAG_CAPS
    head = vfio_abi.vfio_region_info(argsz=32 + len(chain), flags=flags, cap_offset=cap_offset)
    return bytes(head.pack()) + chain


@pytest.mark.parametrize(
    "message",
    [
        _region(b"", 32),
        _region(b"\0" * 8, 33),
        _region(b"\0" * 8, 4),
        _region(struct.pack("<HHI", 3, 1, 32)),
        _region(struct.pack("<HHI", 3, 1, 0xFFFFFFFF)),
        _region(struct.pack("<HHI", 1, 1, 0)),
        _region(struct.pack("<HHIII", 1, 1, 0, 0xFFFFFFFF, 0)),
        _region(struct.pack("<HHIII", 1, 1, 0, 1, 0)),
        _region(struct.pack("<HHI", 2, 1, 0)),
    ],
)
def test_a_hostile_capability_chain_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        p.RegionInfo.unpack(message)


@given(st.builds(p.RegionAccess, u64, u32, st.just(0)), st.binary(max_size=64))
def test_region_access_survives_with_and_without_data(head: p.RegionAccess, data: bytes) -> None:
    with_data = p.RegionAccess(head.offset, head.region, len(data), data)
    assert p.RegionAccess.unpack(with_data.pack(), data=True) == with_data
    without = p.RegionAccess(head.offset, head.region, 1234)
    assert p.RegionAccess.unpack(without.pack(), data=False) == without
    with pytest.raises(ProtocolError):
        p.RegionAccess.unpack(without.pack(), data=True)
    with pytest.raises(ProtocolError):
        p.RegionAccess.unpack(without.pack() + b"x", data=False)


@given(u64, st.binary(max_size=64))
def test_dma_access_has_a_64_bit_count(address: int, data: bytes) -> None:
    value = p.DmaAccess(address, len(data), data)
    assert value.pack()[:16] == struct.pack("<QQ", address, len(data))
    assert p.DmaAccess.unpack(value.pack(), data=True) == value
    with pytest.raises(ProtocolError):
        p.DmaAccess.unpack(value.pack() + b"x", data=True)


writes = st.lists(st.builds(p.RegionWrite, u64, u32, st.binary(max_size=8)), max_size=10)


@given(writes)
def test_several_writes_survive(value: list[p.RegionWrite]) -> None:
    packed = p.pack_writes(value)
    assert len(packed) == 8 + 24 * len(value)
    assert list(p.unpack_writes(packed)) == value


def test_several_writes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        p.pack_writes([p.RegionWrite(0, 0, b"123456789")])
    for bad in (
        b"",
        struct.pack("<Q", 1),
        struct.pack("<Q", 2**60),
        struct.pack("<QQIIQ", 1, 0, 0, 9, 0),
        struct.pack("<QQIIQ", 1, 0, 0, 8, 0) + b"x",
    ):
        with pytest.raises(ProtocolError):
            p.unpack_writes(bad)
    assert p.unpack_count(p.pack_count(2**63)) == 2**63
    with pytest.raises(ProtocolError):
        p.unpack_count(b"1234567")


@given(
    u32,
    st.lists(st.builds(p.IoFd, u64, u64, u32, u32, u32, u64), max_size=4).map(tuple),
    st.sampled_from([40, 48]),
)
def test_io_fds_are_read_with_either_size_of_entry(
    index: int, entries: tuple[p.IoFd, ...], stride: int
) -> None:
    packed = p.RegionIoFds(index, entries).pack(1 << 20)
    assert len(packed) == 16 + 40 * len(entries)
    if stride == 48:  # as libvfio-user sends them
        body = b"".join(packed[at : at + 40] + b"\xaa" * 8 for at in range(16, len(packed), 40))
        packed = struct.pack("<IIII", 16 + len(body), 0, index, len(entries)) + body
    found = p.RegionIoFds.unpack(packed)
    assert (found.index, found.entries) == (index, entries)


def test_io_fds_without_room_say_how_much_they_need() -> None:
    value = p.RegionIoFds(1, (p.IoFd(0, 4, 0), p.IoFd(8, 4, 1)))
    assert value.pack(16) == struct.pack("<IIII", 96, 0, 1, 2)
    with pytest.raises(ProtocolError):
        p.RegionIoFds.unpack(struct.pack("<IIII", 16 + 39, 0, 1, 1) + b"x" * 39)


SETS = [
    (vfio_abi.VFIO_IRQ_SET_DATA_NONE, b""),
    (vfio_abi.VFIO_IRQ_SET_DATA_BOOL, b"\1\0\1"),
    (vfio_abi.VFIO_IRQ_SET_DATA_EVENTFD, b""),
]


@pytest.mark.parametrize(("kind", "values"), SETS)
@pytest.mark.parametrize("action", [8, 16, 32])
def test_set_irqs_survives(kind: int, values: bytes, action: int) -> None:
    value = p.SetIrqs(kind | action, 2, 5, 3, values)
    assert p.SetIrqs.unpack(value.pack()) == value
    assert len(value.pack()) == 20 + len(values)


@pytest.mark.parametrize("flags", [0, 1, 8, 0x09 | 2, 0x08 | 0x10 | 1, 0x40 | 0x21])
def test_set_irqs_without_one_type_and_one_action_is_refused(flags: int) -> None:
    with pytest.raises(ProtocolError, match="flags"):
        p.SetIrqs.unpack(struct.pack("<IIIII", 20, flags, 0, 0, 0))


def test_set_irqs_whose_values_do_not_match_is_refused() -> None:
    for flags, count, tail in ((0x22, 2, b"x"), (0x21, 1, b"x"), (0x22, 2**31, b"xy")):
        with pytest.raises(ProtocolError, match="values"):
            p.SetIrqs.unpack(struct.pack("<IIIII", 20, flags, 0, 0, count) + tail)


@given(u32, st.binary(max_size=40))
def test_features_survive(flags: int, data: bytes) -> None:
    found = p.Feature.unpack(p.Feature(flags, data).pack())
    assert (found.flags, found.data, found.argsz) == (flags, data, 8 + len(data))
    assert found.number == flags & 0xFFFF


@given(st.binary(max_size=40), st.binary(max_size=8))
def test_migration_data_ignores_padding(data: bytes, padding: bytes) -> None:
    packed = p.MigrationData(len(data), data).pack()
    assert p.MigrationData.unpack(packed + padding, data=True).data == data
    with pytest.raises(ProtocolError):
        p.MigrationData.unpack(packed[:8] + b"", data=True) if data else p.MigrationData.unpack(
            b"", data=True
        )


EVERY: list[Any] = [
    p.DmaMap.unpack,
    p.DmaUnmap.unpack,
    p.DeviceInfo.unpack,
    p.IrqInfo.unpack,
    p.RegionInfo.unpack,
    p.SetIrqs.unpack,
    lambda data: p.RegionAccess.unpack(data, data=True),
    lambda data: p.RegionAccess.unpack(data, data=False),
    lambda data: p.DmaAccess.unpack(data, data=True),
    p.unpack_writes,
    p.unpack_count,
    p.RegionIoFds.unpack,
    p.Feature.unpack,
    lambda data: p.MigrationData.unpack(data, data=True),
]


@given(st.sampled_from(EVERY), st.binary(max_size=200))
def test_any_payload_is_read_or_refused(unpack: Any, data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack(data)

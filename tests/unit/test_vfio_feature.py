"""Typed device features on a fake device that has all of them."""

from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from vfio_fake import BDF, PAGE, FakeHost, error

from vfiokit.abi import vfio as abi
from vfiokit.errors import DeviceTimeoutError, KernelError, UsageError
from vfiokit.vfio import IovaRange, open_device
from vfiokit.vfio.export import export_region
from vfiokit.vfio.feature import FEATURE_NAMES
from vfiokit.vfio.migration import MigrationAbility, MigrationState
from vfiokit.vfio.region import SparseArea

TOKEN = UUID("2ab74924-c335-45f4-9b16-8569e5b08258")
GET, SET, PROBE = 1, 2, 4

# First hops of vfio_mig_get_next_state for a device with every ability.
_DIRECT = {
    (1, 5), (1, 3), (1, 4), (5, 1), (5, 2), (2, 5), (2, 6), (6, 2), (6, 7), (7, 6), (7, 3),
    (7, 5), (5, 7), (3, 1), (4, 1),
}  # fmt: skip


def next_state(now: int, wanted: int) -> int:
    if (now, wanted) in _DIRECT:
        return wanted
    if now == 3 and wanted in (6, 7):
        return 0
    return {1: 5, 2: 5, 3: 1, 4: 1, 5: 2 if wanted == 6 else 1, 6: 7 if wanted == 3 else 2, 7: 5}[
        now
    ]


@dataclass
class FeatureHost(FakeHost):
    """Its device has the features of a device that migrates, sleeps and exports."""

    missing: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.token = b""
        self.state = abi.VFIO_DEVICE_STATE_RUNNING
        self.streams: list[int] = []
        self.sleeping = False
        self.wakeup = -1
        self.watched: list[tuple[int, int]] = []
        self.written: set[int] = set()
        self.master = False
        self.dmabufs: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        self.restarts = False

    def ioctl(self, fd: int, request: int, argument: int | bytearray | memoryview = 0) -> int:
        if self.open_fds.get(fd) == "stream":
            if self.state not in (6, 7):
                raise error(errno.EINVAL)
            struct.pack_into("<IIQQ", argument, 0, 24, 1 if self.restarts else 0, 96, 7)
            return 0
        return super().ioctl(fd, request, argument)

    def _device_17(self, buffer: bytearray) -> int:
        argsz, flags = struct.unpack_from("<II", buffer)
        number, operation = flags & 0xFFFF, flags >> 16
        found = self._handlers().get(number)
        if found is None or number in self.missing:
            raise error(errno.ENOTTY)
        allowed, size, handler = found
        if operation & 3 & ~allowed:
            raise error(errno.EINVAL)
        if operation & PROBE:
            return 0
        if operation not in (GET, SET) or argsz < 8 + size:
            raise error(errno.EINVAL)
        payload = bytearray(buffer[8:])
        try:
            return handler(operation, payload) or 0
        finally:
            buffer[8:] = payload

    def _handlers(self):
        return {
            0: (SET, 16, self._token),
            1: (GET, 8, self._abilities),
            2: (GET | SET, 8, self._mig_state),
            3: (SET, 0, self._sleep),
            4: (SET, 8, self._sleep),
            5: (SET, 0, self._wake),
            6: (SET, 24, self._start_log),
            7: (SET, 0, lambda _operation, _payload: self.watched.clear()),
            8: (GET, 32, self._report),
            9: (GET, 8, self._data_size),
            10: (GET | SET, 4, self._bus_master),
            11: (GET, 16, self._export),
            12: (SET, 0, self._announce),
        }

    def _token(self, _operation: int, payload: bytearray) -> None:
        self.token = bytes(payload)

    def _abilities(self, _operation: int, payload: bytearray) -> None:
        payload[:] = struct.pack("<Q", 7)

    def _mig_state(self, operation: int, payload: bytearray) -> None:
        wanted = struct.unpack_from("<I", payload)[0]
        struct.pack_into("<i", payload, 4, -1)
        if operation == GET:
            struct.pack_into("<I", payload, 0, self.state)
            return
        if wanted == 0 or self.state == 0:
            raise error(errno.EINVAL)
        while self.state != wanted:
            step = next_state(self.state, wanted)
            if step == 0:
                raise error(errno.EINVAL)
            starts_stream = step == 4 or (step in (3, 6, 7) and self.state not in (6, 7))
            if starts_stream:
                self.streams.append(self._new_fd("stream"))
                struct.pack_into("<i", payload, 4, self.streams[-1])
            self.state = step

    def _sleep(self, _operation: int, payload: bytearray) -> None:
        if self.sleeping:
            raise error(errno.EINVAL)
        self.sleeping = True
        self.wakeup = struct.unpack_from("<i", payload)[0] if payload else -1

    def _wake(self, _operation: int, _payload: bytearray) -> None:
        self.sleeping = False

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if self.sleeping and offset >> 40 != abi.VFIO_PCI_CONFIG_REGION_INDEX:
            raise error(errno.EIO)
        if self.sleeping and self.wakeup >= 0:
            self.eventfd_write(self.wakeup)
            self.sleeping = False
        return super().pread(fd, length, offset)

    def _start_log(self, _operation: int, payload: bytearray) -> None:
        page, count, _, vaddr = struct.unpack("<QIIQ", payload)
        if not count or self.watched:
            raise error(errno.EINVAL)
        if count > 256:
            raise error(errno.E2BIG)
        pairs = list(struct.iter_unpack("<QQ", ctypes.string_at(vaddr, 16 * count)))
        if any(iova % page or length % page for iova, length in pairs):
            raise error(errno.EINVAL)
        self.watched = pairs
        struct.pack_into("<Q", payload, 0, max(page, 8192))

    def _report(self, _operation: int, payload: bytearray) -> None:
        iova, length, page, vaddr = struct.unpack("<QQQQ", payload)
        if not any(a <= iova and iova + length <= a + size for a, size in self.watched):
            raise error(errno.EINVAL)
        bits = sum(1 << (one - iova) // page for one in self.written if 0 <= one - iova < length)
        size = -(-length // page // 64) * 8 or 8
        ctypes.memmove(vaddr, bits.to_bytes(size, "little"), size)

    def _data_size(self, _operation: int, payload: bytearray) -> None:
        payload[:] = struct.pack("<Q", 123456)

    def _bus_master(self, operation: int, payload: bytearray) -> None:
        if operation == SET:
            self.master = bool(struct.unpack("<I", payload)[0])
        payload[:] = struct.pack("<I", self.master)

    def _export(self, _operation: int, payload: bytearray) -> int:
        region, open_flags, flags, count = struct.unpack_from("<IIII", payload)
        areas = [struct.unpack_from("<QQ", payload, 16 + 16 * n) for n in range(count)]
        if not count or flags or open_flags != 0o2000002:
            raise error(errno.EINVAL)
        if region >= 6:
            raise error(errno.ENODEV)
        for offset, length in areas:
            if not length or (offset | length) % PAGE or offset + length > self._size(region):
                raise error(errno.EINVAL)
        fd = self._new_fd("dmabuf")
        self.dmabufs[fd] = (region, areas)
        return fd

    def _announce(self, _operation: int, _payload: bytearray) -> None:
        self.restarts = True


@pytest.fixture
def host() -> FeatureHost:
    return FeatureHost()


@pytest.fixture
def device(host: FeatureHost):
    with open_device(host, BDF) as opened:
        yield opened


def test_every_feature_of_the_header_has_its_name() -> None:
    assert FEATURE_NAMES == {
        0: "PCI_VF_TOKEN",
        1: "MIGRATION",
        2: "MIG_DEVICE_STATE",
        3: "LOW_POWER_ENTRY",
        4: "LOW_POWER_ENTRY_WITH_WAKEUP",
        5: "LOW_POWER_EXIT",
        6: "DMA_LOGGING_START",
        7: "DMA_LOGGING_STOP",
        8: "DMA_LOGGING_REPORT",
        9: "MIG_DATA_SIZE",
        10: "BUS_MASTER",
        11: "DMA_BUF",
        12: "MIG_PRECOPY_INFOv2",
    }


def test_vf_token_is_set_in_the_byte_order_of_its_text(host, device) -> None:
    device.features.set_vf_token(TOKEN)
    assert host.token.hex() == str(TOKEN).replace("-", "")


def test_failed_feature_is_named_and_has_its_own_hint(host, device) -> None:
    host.missing.add(0)
    with pytest.raises(KernelError, match="PCI_VF_TOKEN") as caught:
        device.features.set_vf_token(TOKEN)
    assert caught.value.errno == errno.ENOTTY
    assert "physical function" in caught.value.hint


def test_bus_master_of_a_device_without_command_register(host, device) -> None:
    assert not device.features.bus_master
    device.features.set_bus_master(True)
    assert device.features.bus_master
    assert host.master
    device.features.set_bus_master(False)
    assert not host.master


# -- migration ------------------------------------------------------------------------------


def test_device_migrates_by_precopy_and_stop_copy(host, device) -> None:
    migration = device.migration
    assert migration.abilities == MigrationAbility(7)
    assert migration.state is MigrationState.RUNNING
    assert migration.stop_copy_size == 123456
    with migration.set_state(MigrationState.PRE_COPY) as stream:
        assert stream.fileno() == host.streams[0]
        info = stream.precopy_info()
        assert (info.initial_bytes, info.dirty_bytes, info.restarted) == (96, 7, False)
        migration.announce_restarts()
        assert stream.precopy_info().restarted
        assert migration.set_state(MigrationState.STOP_COPY) is None
        assert migration.state is MigrationState.STOP_COPY
        with pytest.raises(KernelError) as caught:
            stream.precopy_info()
        assert caught.value.errno == errno.EINVAL
    assert "stream" not in host.open_fds.values()


def test_way_that_does_not_exist_is_einval_and_leaves_the_state(device) -> None:
    with device.migration.set_state(MigrationState.STOP_COPY), pytest.raises(KernelError) as caught:
        device.migration.set_state(MigrationState.PRE_COPY)
    assert caught.value.errno == errno.EINVAL
    assert "no way" in caught.value.hint
    assert device.migration.state is MigrationState.STOP_COPY


def test_resuming_gives_a_stream_and_running_none(device) -> None:
    with device.migration.set_state(MigrationState.RESUMING) as stream:
        assert stream.fileno() >= 0
    assert device.migration.set_state(MigrationState.RUNNING) is None


def test_device_that_cannot_migrate_has_no_abilities(host, device) -> None:
    host.missing |= {1, 2}
    assert not device.migration.abilities
    with pytest.raises(KernelError) as caught:
        _ = device.migration.state
    assert caught.value.errno == errno.ENOTTY


def test_forgotten_stream_warns(device) -> None:
    stream = device.migration.set_state(MigrationState.STOP_COPY)
    with pytest.warns(ResourceWarning, match="unclosed <MigrationStream"):
        del stream


# -- low power ------------------------------------------------------------------------------


def test_device_sleeps_for_the_length_of_a_block(host, device) -> None:
    assert device.low_power.supported
    with device.low_power.asleep():
        assert host.sleeping
        with pytest.raises(KernelError) as caught:
            device.region(0).read32(0)
        assert caught.value.errno == errno.EIO
        with pytest.raises(KernelError) as twice:
            device.low_power.enter()
        assert "already" in twice.value.hint
    assert not host.sleeping
    device.low_power.exit()


def test_wakeup_is_told_by_a_vector(host, device) -> None:
    vector = device.low_power.enter_until_woken()
    with pytest.raises(DeviceTimeoutError):
        vector.wait(0)
    device.config.u16(0)
    assert vector.wait(1) == 1
    assert not host.sleeping
    vector.close()


# -- DMA log --------------------------------------------------------------------------------


def test_log_tells_the_pages_written(host, device) -> None:
    log = device.dma_log
    assert log.supported
    assert log.start([IovaRange(0x10000, 0x1FFFF), IovaRange(0x40000, 0x4FFFF)]) == 8192
    assert host.watched == [(0x10000, 0x10000), (0x40000, 0x10000)]
    host.written |= {0x12000, 0x14000, 0x44000}
    assert list(log.dirty_bitmap(0x10000, 0x10000, 8192)) == [0x12000, 0x14000]
    with pytest.raises(KernelError) as caught:
        log.dirty_bitmap(0x10000, 0x20000)
    assert caught.value.errno == errno.EINVAL
    log.stop()
    assert host.watched == []


@pytest.mark.parametrize(
    ("ranges", "number"),
    [
        ([], errno.EINVAL),
        ([IovaRange(5, 0x1004)], errno.EINVAL),
        ([IovaRange(n << 12, (n << 12) + 4095) for n in range(257)], errno.E2BIG),
    ],
)
def test_ranges_that_cannot_be_watched(device, ranges, number: int) -> None:
    with pytest.raises(KernelError) as caught:
        device.dma_log.start(ranges)
    assert caught.value.errno == number
    assert caught.value.hint


# -- export ---------------------------------------------------------------------------------


def test_bar_is_exported_whole_or_in_part(host, device) -> None:
    with device.export(0) as whole, device.export(0, PAGE, 2 * PAGE) as part:
        assert whole.length == 4 * PAGE
        assert host.dmabufs[whole.fileno()] == (0, [(0, 4 * PAGE)])
        assert host.dmabufs[part.fileno()] == (0, [(PAGE, 2 * PAGE)])
    assert part.fileno() == -1
    assert "dmabuf" not in host.open_fds.values()


def test_several_areas_go_into_one_export(host, device) -> None:
    areas = [SparseArea(0, PAGE), SparseArea(2 * PAGE, PAGE)]
    with export_region(device.features, 0, areas) as both:
        assert both.length == 2 * PAGE
        assert host.dmabufs[both.fileno()][1] == areas


@pytest.mark.parametrize(
    ("arguments", "number"),
    [((0, 5, PAGE), errno.EINVAL), ((0, 0, 8 * PAGE), errno.EINVAL), ((7,), errno.ENODEV)],
)
def test_what_cannot_be_exported_is_refused_with_a_hint(device, arguments, number: int) -> None:
    with pytest.raises(KernelError) as caught:
        device.export(*arguments)
    assert caught.value.errno == number
    assert caught.value.hint


def test_region_that_does_not_exist_is_a_usage_error(device) -> None:
    with pytest.raises(UsageError):
        device.export(77)

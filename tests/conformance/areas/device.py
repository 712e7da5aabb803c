"""A device as a whole: information, resets, features, VF tokens.

Facts: Linux ``drivers/vfio/pci/vfio_pci_core.c``, ``vfio_pci_dmabuf.c``, ``vfio_main.c``.
"""

from __future__ import annotations

import errno
import struct
import uuid

from conformance.behaviour import CONTAINER, SRIOV, behaviour
from conformance.calls import (
    EDU_RAISE,
    MSI,
    bar,
    config,
    container,
    device_fd,
    device_info,
    enable,
    feature,
    join,
    open_device,
    open_group,
    open_role,
    peek,
    poke,
    real_config,
    set_config,
    set_container,
    set_iommu,
)
from conformance.host import CONFIG_REGION, DEVICES, PAGE, Host
from vfiokit.abi import vfio as abi

GET, SET, PROBE = (
    abi.VFIO_DEVICE_FEATURE_GET,
    abi.VFIO_DEVICE_FEATURE_SET,
    abi.VFIO_DEVICE_FEATURE_PROBE,
)
RESET, PCI = abi.VFIO_DEVICE_FLAGS_RESET, abi.VFIO_DEVICE_FLAGS_PCI


def case(
    name: str,
    *,
    error: int | tuple[int, ...] = (),
    binds: str | tuple[str, ...] = "edu",
    native: str | tuple[str, ...] = (),
    source: str = "drivers/vfio/pci/vfio_pci_core.c",
):
    """A behaviour that needs a container."""
    return behaviour(name, source, binds=binds, native=native, error=error, needs=CONTAINER)


# --- Information ---


@case("device/info")
def info(host: Host) -> None:
    told = device_info(host, open_device(host, "edu"))
    assert told.flags == RESET | PCI
    assert (told.num_regions, told.num_irqs, told.cap_offset) == (9, 5, 0)


@case("device/info-of-the-first-version-of-the-struct")
def info_oldest(host: Host) -> None:
    fd = open_device(host, "edu")
    buffer = bytearray(b"\xaa" * 32)
    struct.pack_into("<I", buffer, 0, 16)
    host.ioctl(fd, abi.VFIO_DEVICE_GET_INFO, buffer)
    assert struct.unpack_from("<III", buffer, 4) == (RESET | PCI, 9, 5)
    assert buffer[16:] == b"\xaa" * 16, "it writes beyond argsz"


@case("device/info-with-short-argsz-is-einval", error=errno.EINVAL)
def info_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        device_info(host, fd, argsz=15)


@case("device/without-reset-says-so", binds="rooted", error=errno.EINVAL)
def info_no_reset(host: Host) -> None:
    fd = open_device(host, "rooted")
    assert device_info(host, fd).flags == PCI
    with host.refuses(errno.EINVAL):
        host.ioctl(fd, abi.VFIO_DEVICE_RESET)


@case("device/unknown-request-is-enotty", error=errno.ENOTTY)
def unknown(host: Host) -> None:
    fd = open_device(host, "edu")
    for request in (0x3BFF, abi.VFIO_DEVICE_QUERY_GFX_PLANE, abi.VFIO_GROUP_GET_STATUS):
        with host.refuses(errno.ENOTTY):
            host.ioctl(fd, request, bytearray(64))


# --- Reset ---


@case("device/reset", binds="nvme")
def reset(host: Host) -> None:
    fd = open_device(host, "nvme")
    before = host.kernel.pread(fd, 0x40, CONFIG_REGION)
    assert host.ioctl(fd, abi.VFIO_DEVICE_RESET) == 0
    assert host.kernel.pread(fd, 0x40, CONFIG_REGION) == before


@case("device/reset-keeps-mappings")
def reset_mapping(host: Host) -> None:
    fd = open_device(host, "edu")
    window = host.map(fd, PAGE, bar(0))
    assert window.read32(0) == 0x010000ED
    host.ioctl(fd, abi.VFIO_DEVICE_RESET)
    assert window.read32(0) == 0x010000ED


@case("device/reset-keeps-interrupts")
def reset_irqs(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    set_config(host, fd, 4, 2, config(host, fd, 4, 2) | 4)
    enable(host, fd, MSI, [event])
    host.ioctl(fd, abi.VFIO_DEVICE_RESET)
    set_config(host, fd, 4, 2, config(host, fd, 4, 2) | 4)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1


@case("device/closing-gives-the-function-back-as-it-was")
def close_restores(host: Host) -> None:
    fd = open_device(host, "edu")
    before = real_config(host, "edu", 0x0C, 4)
    set_config(host, fd, 0x0C, 1, before ^ 0x10 & 0xFF)
    host.close(fd)
    assert real_config(host, "edu", 0x0C, 4) == before


# --- Hot reset ---


def _hot_info(host: Host, fd: int, room: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Count, and ``(group, bus, devfn)`` of the functions that fit."""
    buffer = bytearray(12 + 8 * room)
    struct.pack_into("<III", buffer, 0, len(buffer), 0, 0)
    host.ioctl(fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
    count = struct.unpack_from("<I", buffer, 8)[0]
    rows = [struct.unpack_from("<IHBB", buffer, 12 + 8 * index) for index in range(count)]
    return count, [(group, bus, devfn) for group, _segment, bus, devfn in rows]


def _hot_reset(
    host: Host, fd: int, groups: list[int], *, flags: int = 0, count: int | None = None
) -> int:
    number = len(groups) if count is None else count
    head = struct.pack("<III", 12 + 4 * number, flags, number)
    return host.ioctl(
        fd,
        abi.VFIO_DEVICE_PCI_HOT_RESET,
        bytearray(head + struct.pack(f"<{len(groups)}i", *groups)),
    )


@case("hotreset/info-without-room-is-enospc", error=errno.ENOSPC)
def hot_room(host: Host) -> None:
    fd = open_device(host, "edu")
    buffer = bytearray(12)
    struct.pack_into("<III", buffer, 0, 12, 0, 0)
    with host.refuses(errno.ENOSPC):
        host.ioctl(fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
    assert struct.unpack_from("<I", buffer, 8)[0] == 1


@case("hotreset/info-lists-the-function-and-its-group")
def hot_info(host: Host) -> None:
    fd = open_device(host, "edu")
    count, rows = _hot_info(host, fd, 4)
    assert count == 1
    assert rows == [(host.group("edu"), host.roles["edu"].bus, 0)]


@case("hotreset/info-lists-every-function-of-the-slot", binds=("first", "second"))
def hot_pair(host: Host) -> None:
    fd = open_device(host, "first")
    count, rows = _hot_info(host, fd, 4)
    bus, number = host.roles["first"].bus, host.group("first")
    assert count == 2
    assert sorted(rows) == [(number, bus, 0), (number, bus, 1)]


@case("hotreset/info-with-short-argsz-is-einval", error=errno.EINVAL)
def hot_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    buffer = bytearray(12)
    struct.pack_into("<I", buffer, 0, 11)
    with host.refuses(errno.EINVAL):
        host.ioctl(fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)


@case("hotreset/on-the-root-bus-is-enodev", binds="rooted", error=errno.ENODEV)
def hot_rooted(host: Host) -> None:
    fd = open_device(host, "rooted")
    with host.refuses(errno.ENODEV):
        _hot_info(host, fd, 4)
    with host.refuses(errno.ENODEV):
        _hot_reset(host, fd, [0])


@case("hotreset/with-its-group")
def hot_reset(host: Host) -> None:
    opened = open_role(host, "edu")
    assert _hot_reset(host, opened.fd, [opened.group]) == 0
    assert peek(host, opened.fd, 0, 0) == 0x010000ED


@case("hotreset/of-two-functions-with-their-group", binds=("first", "second"))
def hot_reset_pair(host: Host) -> None:
    opened = open_role(host, "first")
    assert _hot_reset(host, opened.fd, [opened.group]) == 0


@case(
    "hotreset/with-an-unbound-function-is-einval",
    binds="first",
    native="second",
    error=errno.EINVAL,
)
def hot_unbound(host: Host) -> None:
    host.unbind("second")
    opened = open_role(host, "first")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, opened.fd, [opened.group])


@case("hotreset/with-flags-is-einval", error=errno.EINVAL)
def hot_flags(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, opened.fd, [opened.group], flags=1)


@case("hotreset/without-group-is-einval", error=errno.EINVAL)
def hot_none(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, opened.fd, [])


@case("hotreset/with-another-group-is-einval", binds=("edu", "below"), error=errno.EINVAL)
def hot_other(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, opened.fd, [open_group(host, "below")])


@case(
    "hotreset/with-more-groups-than-functions-is-einval", binds=("edu", "below"), error=errno.EINVAL
)
def hot_many(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EINVAL):
        _hot_reset(host, opened.fd, [opened.group, open_group(host, "below")])


@case("hotreset/with-something-else-as-group", error=(errno.EBADF, errno.EINVAL))
def hot_wrong(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EBADF):
        _hot_reset(host, opened.fd, [999])
    with host.refuses(errno.EINVAL):
        _hot_reset(host, opened.fd, [host.event()])


# --- Features ---

FEATURES = "drivers/vfio/vfio_main.c, pci/vfio_pci_dmabuf.c"
DMA_BUF, LOW_POWER, TOKEN, MIGRATION = (
    abi.VFIO_DEVICE_FEATURE_DMA_BUF,
    abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
    abi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN,
    abi.VFIO_DEVICE_FEATURE_MIGRATION,
)


@case("feature/short-argsz-is-einval", source=FEATURES, error=errno.EINVAL)
def feature_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        feature(host, fd, DMA_BUF | GET | PROBE, argsz=7)


@case("feature/unknown-is-enotty", source=FEATURES, error=errno.ENOTTY)
def feature_unknown(host: Host) -> None:
    fd = open_device(host, "edu")
    for number in (13, 99, 0xFFFF):
        with host.refuses(errno.ENOTTY):
            feature(host, fd, number | GET | PROBE)


@case("feature/migration-without-driver-is-enotty", source=FEATURES, error=errno.ENOTTY)
def feature_migration(host: Host) -> None:
    fd = open_device(host, "edu")
    for number in (1, 2, 9):
        with host.refuses(errno.ENOTTY):
            feature(host, fd, number | GET | PROBE)


@case("feature/dirty-logging-without-driver-is-enotty", source=FEATURES, error=errno.ENOTTY)
def feature_logging(host: Host) -> None:
    fd = open_device(host, "edu")
    for number, operation in ((6, SET), (7, SET), (8, GET)):
        with host.refuses(errno.ENOTTY):
            feature(host, fd, number | operation | PROBE)


@case("feature/bus-master-is-not-for-pci", source=FEATURES, error=errno.ENOTTY)
def feature_master(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.ENOTTY):
        feature(host, fd, abi.VFIO_DEVICE_FEATURE_BUS_MASTER | SET | PROBE)


@case("feature/precopy-without-migration-is-einval", source=FEATURES, error=errno.EINVAL)
def feature_precopy(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        feature(host, fd, abi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 | SET | PROBE)


@case("feature/probe-tells-what-is-there", source=FEATURES)
def feature_probe(host: Host) -> None:
    fd = open_device(host, "edu")
    assert feature(host, fd, DMA_BUF | GET | PROBE)[0] == 0
    for number in (3, 4, 5):
        assert feature(host, fd, number | SET | PROBE)[0] == 0


@case("feature/probe-without-operation", source=FEATURES)
def feature_probe_alone(host: Host) -> None:
    fd = open_device(host, "edu")
    assert feature(host, fd, DMA_BUF | PROBE)[0] == 0


@case("feature/wrong-operation-is-einval", source=FEATURES, error=errno.EINVAL)
def feature_operation(host: Host) -> None:
    fd = open_device(host, "edu")
    for flags in (DMA_BUF | SET | PROBE, LOW_POWER | GET | PROBE, DMA_BUF | SET):
        with host.refuses(errno.EINVAL):
            feature(host, fd, flags, bytes(32))


@case("feature/no-operation-is-einval", source=FEATURES, error=errno.EINVAL)
def feature_nothing(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        feature(host, fd, DMA_BUF, bytes(32))


@case("feature/unknown-flag-is-einval", source=FEATURES, error=errno.EINVAL)
def feature_flag(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        feature(host, fd, DMA_BUF | GET | PROBE | 1 << 20)


@case("feature/token-without-virtual-functions-is-enotty", source=FEATURES, error=errno.ENOTTY)
def feature_token(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.ENOTTY):
        feature(host, fd, TOKEN | SET, bytes(16))


def _dma_buf(
    host: Host,
    fd: int,
    ranges: list[tuple[int, int]],
    *,
    region: int = 0,
    flags: int = 0,
    argsz: int | None = None,
) -> int:
    payload = struct.pack("<IIII", region, 0o2000002, flags, len(ranges))
    payload += b"".join(struct.pack("<QQ", *each) for each in ranges)
    return host.own(feature(host, fd, DMA_BUF | GET, payload, argsz)[0])


@case("dmabuf/of-a-bar", source=FEATURES)
def dmabuf(host: Host) -> None:
    fd = open_device(host, "edu")
    assert _dma_buf(host, fd, [(0, 1 << 20)]) > 2
    _dma_buf(host, fd, [(PAGE, PAGE), (4 * PAGE, 2 * PAGE)])


@case("dmabuf/unaligned-is-einval", source=FEATURES, error=errno.EINVAL)
def dmabuf_unaligned(host: Host) -> None:
    fd = open_device(host, "edu")
    for each in ((8, PAGE), (0, PAGE + 8), (0, 0)):
        with host.refuses(errno.EINVAL):
            _dma_buf(host, fd, [each])


@case("dmabuf/beyond-the-bar-is-einval", source=FEATURES, error=errno.EINVAL)
def dmabuf_beyond(host: Host) -> None:
    fd = open_device(host, "edu")
    for each in ((0, 2 << 20), (1 << 20, PAGE)):
        with host.refuses(errno.EINVAL):
            _dma_buf(host, fd, [each])


@case("dmabuf/past-the-last-offset-is-eoverflow", source=FEATURES, error=errno.EOVERFLOW)
def dmabuf_wrap(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EOVERFLOW):
        _dma_buf(host, fd, [((1 << 64) - PAGE, 2 * PAGE)])


@case("dmabuf/of-no-range-is-einval", source=FEATURES, error=errno.EINVAL)
def dmabuf_none(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        _dma_buf(host, fd, [])


@case("dmabuf/with-flags-is-einval", source=FEATURES, error=errno.EINVAL)
def dmabuf_flags(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        _dma_buf(host, fd, [(0, PAGE)], flags=1)


@case("dmabuf/of-a-missing-bar-is-enodev", source=FEATURES, error=errno.ENODEV)
def dmabuf_region(host: Host) -> None:
    fd = open_device(host, "edu")
    for region in (1, 6, 7, 99):
        with host.refuses(errno.ENODEV):
            _dma_buf(host, fd, [(0, PAGE)], region=region)


@case("dmabuf/of-ports-is-einval", source=FEATURES, binds="testdev", error=errno.EINVAL)
def dmabuf_ports(host: Host) -> None:
    fd = open_device(host, "testdev")
    with host.refuses(errno.EINVAL):
        _dma_buf(host, fd, [(0, PAGE)], region=1)


@case("dmabuf/cannot-be-mapped-by-the-processor", source=FEATURES, error=errno.EINVAL)
def dmabuf_mmap(host: Host) -> None:
    fd = open_device(host, "edu")
    buffer = _dma_buf(host, fd, [(0, PAGE)])
    with host.refuses(errno.EINVAL):
        host.map(buffer, PAGE, 0)


@case("lowpower/entered-and-left", source=FEATURES)
def low_power(host: Host) -> None:
    fd = open_device(host, "edu")
    feature(host, fd, LOW_POWER | SET)
    feature(host, fd, abi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT | SET)
    feature(host, fd, abi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT | SET)


@case("lowpower/entered-twice-is-einval", source=FEATURES, error=errno.EINVAL)
def low_power_twice(host: Host) -> None:
    fd = open_device(host, "edu")
    feature(host, fd, LOW_POWER | SET)
    with host.refuses(errno.EINVAL):
        feature(host, fd, LOW_POWER | SET)


@case("lowpower/wakeup-wants-an-eventfd", source=FEATURES, error=(errno.EINVAL, errno.EBADF))
def low_power_wakeup(host: Host) -> None:
    fd = open_device(host, "edu")
    entry = abi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP | SET
    with host.refuses(errno.EINVAL):
        feature(host, fd, entry, struct.pack("<iI", -1, 0))
    with host.refuses(errno.EBADF):
        feature(host, fd, entry, struct.pack("<iI", 999, 0))
    with host.refuses(errno.EINVAL):
        feature(host, fd, entry, b"\0" * 4)
    feature(host, fd, entry, struct.pack("<iI", host.event(), 0))


# --- VF tokens ---

TOKENS = "drivers/vfio/pci/vfio_pci_core.c: vfio_pci_validate_vf_token"
_FIRST = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
_OTHER = uuid.UUID("ffeeddcc-bbaa-9988-7766-554433221100")


def token_case(name: str, *, error: int | tuple[int, ...] = ()):
    """A behaviour of a PF on vfio-pci with one virtual function enabled."""
    return behaviour(f"token/{name}", TOKENS, binds="pf", error=error, needs=(CONTAINER, SRIOV))


def _vf_group(host: Host, address: str) -> int:
    group = host.open(f"/dev/vfio/{host.link(f'{DEVICES}/{address}/iommu_group')}")
    fd = container(host)
    set_container(host, group, fd)
    set_iommu(host, fd)
    return group


class _Pf:
    """The PF, opened with a token, and then one VF of it; opened first, because QEMU forgets the
    VFs when opening resets the PF.
    """

    def __init__(self, host: Host, token: uuid.UUID | None = _FIRST) -> None:
        host.change("/sys/module/vfio_pci/parameters/enable_sriov", "Y")
        _fd, self.group = join(host, "pf")
        self.name = str(host.roles["pf"])
        self.fd = device_fd(host, self.group, _named(self.name, token))
        path = host.path("pf", "sriov_numvfs")
        host.finally_write(path, "0")
        host.write(path, "1")
        self.vf = host.link(host.path("pf", "virtfn0"))
        self.vf_group = _vf_group(host, self.vf)


def _named(name: str, token: uuid.UUID | None) -> str:
    return name if token is None else f"{name} vf_token={token}"


@token_case("of-the-pf-opens-the-vf", error=errno.EACCES)
def token(host: Host) -> None:
    pf = _Pf(host)
    for wrong in (None, _OTHER):
        with host.refuses(errno.EACCES):
            device_fd(host, pf.vf_group, _named(pf.vf, wrong))
    device_fd(host, pf.vf_group, _named(pf.vf, _FIRST))


@token_case("is-random-until-it-is-set", error=errno.EACCES)
def token_random(host: Host) -> None:
    host.unbind("pf")
    host.bind("pf")
    pf = _Pf(host, None)
    for wrong in (None, _FIRST, uuid.UUID(int=0)):
        with host.refuses(errno.EACCES):
            device_fd(host, pf.vf_group, _named(pf.vf, wrong))


@token_case("set-by-the-feature")
def token_feature(host: Host) -> None:
    pf = _Pf(host)
    feature(host, pf.fd, TOKEN | SET, _OTHER.bytes)
    device_fd(host, pf.vf_group, _named(pf.vf, _OTHER))


@token_case("of-the-pf-is-checked-while-the-vf-is-open", error=errno.EACCES)
def token_pf(host: Host) -> None:
    pf = _Pf(host)
    device_fd(host, pf.vf_group, _named(pf.vf, _FIRST))
    for wrong in (None, _OTHER):
        with host.refuses(errno.EACCES):
            device_fd(host, pf.group, _named(pf.name, wrong))
    device_fd(host, pf.group, _named(pf.name, _FIRST))


@token_case("can-change-while-no-vf-is-open")
def token_change(host: Host) -> None:
    pf = _Pf(host)
    device_fd(host, pf.group, _named(pf.name, _OTHER))
    device_fd(host, pf.vf_group, _named(pf.vf, _OTHER))


@token_case("of-the-pf-need-not-be-given-while-no-vf-is-open")
def token_optional(host: Host) -> None:
    pf = _Pf(host)
    device_fd(host, pf.group, pf.name)


@token_case("with-short-payload-is-einval", error=errno.EINVAL)
def token_short(host: Host) -> None:
    with host.refuses(errno.EINVAL):
        feature(host, open_device(host, "pf"), TOKEN | SET, bytes(15))


@behaviour(
    "token/for-a-vf-of-a-native-pf-is-einval",
    TOKENS,
    native="pf",
    error=errno.EINVAL,
    needs=(CONTAINER, SRIOV),
)
def token_native(host: Host) -> None:
    host.change(host.path("pf", "sriov_drivers_autoprobe"), "0")
    path = host.path("pf", "sriov_numvfs")
    host.finally_write(path, "0")
    host.write(path, "1")
    address = host.link(host.path("pf", "virtfn0"))
    host.write(f"{DEVICES}/{address}/driver_override", "vfio-pci")
    host.write("/sys/bus/pci/drivers_probe", address)
    group = _vf_group(host, address)
    with host.refuses(errno.EINVAL):
        device_fd(host, group, f"{address} vf_token={_FIRST}")
    fd = device_fd(host, group, address)
    assert config(host, fd, 0, 4) == 0x00101B36
    assert config(host, fd, 0x3D, 1) == 0
    assert config(host, fd, 4, 2) & 2

"""Configuration space as a user of vfio-pci sees it.

Facts: Linux ``drivers/vfio/pci/vfio_pci_config.c``.
"""

from __future__ import annotations

import errno

from conformance.behaviour import CONTAINER, behaviour
from conformance.calls import (
    bar,
    capability,
    config,
    device_fd,
    extended_capability,
    open_device,
    open_role,
    peek,
    real_config,
    set_config,
)
from conformance.host import CONFIG_REGION, Host

SOURCE = "drivers/vfio/pci/vfio_pci_config.c"
COMMAND, STATUS = 0x04, 0x06
IO, MEMORY, MASTER, INTX_DISABLE = 0x1, 0x2, 0x4, 0x400
BAR0, ROM_BAR = 0x10, 0x30
POWER, MSI, EXPRESS, MSIX = 0x01, 0x05, 0x10, 0x11
AER, SERIAL, SRIOV = 0x01, 0x03, 0x10
NVME_VS = 0x08


def case(name: str, *, error: int | tuple[int, ...] = (), binds: str | tuple[str, ...] = "edu"):
    """A behaviour of this area."""
    return behaviour(f"config/{name}", SOURCE, binds=binds, error=error, needs=CONTAINER)


@case("identity-is-the-functions", binds=("edu", "nvme"))
def identity(host: Host) -> None:
    for role in ("edu", "nvme"):
        fd = open_device(host, role)
        for offset, width in ((0, 2), (2, 2), (8, 4), (0x2C, 4)):
            assert config(host, fd, offset, width) == real_config(host, role, offset, width)


@case("identity-cannot-be-written")
def identity_fixed(host: Host) -> None:
    fd = open_device(host, "edu")
    before = [config(host, fd, offset, 4) for offset in (0, 8, 0x2C)]
    for offset in (0, 8, 0x2C):
        set_config(host, fd, offset, 4, 0xFFFFFFFF)
    assert [config(host, fd, offset, 4) for offset in (0, 8, 0x2C)] == before


@case("bus-mastering-is-off-when-opened", binds="nvme")
def master_off(host: Host) -> None:
    fd = open_device(host, "nvme")
    assert not config(host, fd, COMMAND, 2) & MASTER
    assert not real_config(host, "nvme", COMMAND, 2) & MASTER


@case("bus-mastering-reaches-the-hardware")
def master(host: Host) -> None:
    fd = open_device(host, "edu")
    command = config(host, fd, COMMAND, 2)
    set_config(host, fd, COMMAND, 2, command | MASTER)
    assert config(host, fd, COMMAND, 2) & MASTER
    assert real_config(host, "edu", COMMAND, 2) & MASTER
    set_config(host, fd, COMMAND, 2, command)
    assert not real_config(host, "edu", COMMAND, 2) & MASTER


@case("bus-mastering-ends-with-the-last-close")
def master_close(host: Host) -> None:
    fd = open_device(host, "edu")
    set_config(host, fd, COMMAND, 2, config(host, fd, COMMAND, 2) | MASTER)
    host.close(fd)
    assert not real_config(host, "edu", COMMAND, 2) & MASTER


@case("memory-is-enabled-when-opened")
def memory_on(host: Host) -> None:
    fd = open_device(host, "edu")
    assert config(host, fd, COMMAND, 2) & MEMORY


@case("memory-enable-reaches-the-hardware")
def memory(host: Host) -> None:
    fd = open_device(host, "edu")
    command = config(host, fd, COMMAND, 2)
    set_config(host, fd, COMMAND, 2, command & ~MEMORY)
    assert not real_config(host, "edu", COMMAND, 2) & MEMORY
    set_config(host, fd, COMMAND, 2, command | MEMORY)
    assert real_config(host, "edu", COMMAND, 2) & MEMORY


@case("one-byte-at-command")
def command_byte(host: Host) -> None:
    fd = open_device(host, "edu")
    low = config(host, fd, COMMAND, 1)
    set_config(host, fd, COMMAND, 1, low & ~MEMORY)
    assert not config(host, fd, COMMAND, 2) & MEMORY
    set_config(host, fd, COMMAND, 1, low | MEMORY)
    assert config(host, fd, COMMAND, 2) & MEMORY


@case("intx-disable-without-intx-reaches-the-hardware")
def intx_disable(host: Host) -> None:
    fd = open_device(host, "edu")
    command = config(host, fd, COMMAND, 2)
    set_config(host, fd, COMMAND, 2, command | INTX_DISABLE)
    assert config(host, fd, COMMAND, 2) & INTX_DISABLE
    assert real_config(host, "edu", COMMAND, 2) & INTX_DISABLE
    set_config(host, fd, COMMAND, 2, command & ~INTX_DISABLE)
    assert not config(host, fd, COMMAND, 2) & INTX_DISABLE


@case("intx-disable-by-the-upper-byte")
def intx_disable_byte(host: Host) -> None:
    fd = open_device(host, "edu")
    set_config(host, fd, COMMAND + 1, 1, INTX_DISABLE >> 8)
    assert config(host, fd, COMMAND, 2) & INTX_DISABLE


@case("status-cannot-be-written")
def status(host: Host) -> None:
    fd = open_device(host, "edu")
    before = config(host, fd, STATUS, 2)
    set_config(host, fd, STATUS, 2, 0xFFFF)
    assert config(host, fd, STATUS, 2) == before


@case("cache-line-and-latency-reach-the-hardware")
def latency(host: Host) -> None:
    fd = open_device(host, "edu")
    before = real_config(host, "edu", 0x0C, 1)
    set_config(host, fd, 0x0C, 1, 0x20)
    assert config(host, fd, 0x0C, 1) == real_config(host, "edu", 0x0C, 1) == 0x20
    set_config(host, fd, 0x0C, 1, before)


@case("interrupt-line-is-only-shown")
def line(host: Host) -> None:
    fd = open_device(host, "edu")
    before = real_config(host, "edu", 0x3C, 1)
    set_config(host, fd, 0x3C, 1, 0x55)
    assert config(host, fd, 0x3C, 1) == 0x55
    assert real_config(host, "edu", 0x3C, 1) == before


@case("interrupt-pin-is-the-functions", binds=("edu", "shm"))
def pin(host: Host) -> None:
    fd = open_device(host, "edu")
    assert config(host, fd, 0x3D, 1) == 1
    set_config(host, fd, 0x3D, 1, 3)
    assert config(host, fd, 0x3D, 1) == 1
    assert config(host, open_device(host, "shm"), 0x3D, 1) == 0


# --- BARs ---


@case("bar-shows-its-address")
def bar_address(host: Host) -> None:
    fd = open_device(host, "edu")
    assert config(host, fd, BAR0, 4) == real_config(host, "edu", BAR0, 4)


@case("bar-tells-its-size-to-a-write-of-ones")
def bar_size(host: Host) -> None:
    fd = open_device(host, "edu")
    set_config(host, fd, BAR0, 4, 0xFFFFFFFF)
    assert config(host, fd, BAR0, 4) == 0xFFF00000


@case("bar-of-64-bits-tells-its-size", binds="nvme")
def bar_size_64(host: Host) -> None:
    fd = open_device(host, "nvme")
    for offset in (BAR0, BAR0 + 4, BAR0 + 8, BAR0 + 12):
        set_config(host, fd, offset, 4, 0xFFFFFFFF)
    assert config(host, fd, BAR0, 4) == 0xFFFFC004
    assert config(host, fd, BAR0 + 4, 4) == 0xFFFFFFFF
    assert config(host, fd, BAR0 + 8, 4) == 0xFFF0000C
    assert config(host, fd, BAR0 + 12, 4) == 0xFFFFFFFF


@case("bar-of-ports-tells-its-size", binds="testdev")
def bar_size_ports(host: Host) -> None:
    fd = open_device(host, "testdev")
    set_config(host, fd, BAR0 + 4, 4, 0xFFFFFFFF)
    assert config(host, fd, BAR0 + 4, 4) == 0xFFFFFF01


@case("bar-that-is-missing-reads-0")
def bar_missing(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in range(1, 6):
        set_config(host, fd, BAR0 + 4 * index, 4, 0xFFFFFFFF)
        assert config(host, fd, BAR0 + 4 * index, 4) == 0


@case("bar-written-stays-where-it-is")
def bar_stays(host: Host) -> None:
    fd = open_device(host, "edu")
    before = real_config(host, "edu", BAR0, 4)
    set_config(host, fd, BAR0, 4, 0x12300000)
    assert config(host, fd, BAR0, 4) == 0x12300000
    assert real_config(host, "edu", BAR0, 4) == before
    assert peek(host, fd, 0, 0) == 0x010000ED


@case("bar-written-is-masked")
def bar_masked(host: Host) -> None:
    fd = open_device(host, "edu")
    set_config(host, fd, BAR0, 4, 0x123456FF)
    assert config(host, fd, BAR0, 4) == 0x12300000


@case("rom-that-is-missing-reads-0")
def rom(host: Host) -> None:
    fd = open_device(host, "edu")
    set_config(host, fd, ROM_BAR, 4, 0xFFFFFFFF)
    assert config(host, fd, ROM_BAR, 4) == 0


@case("bars-are-as-before-after-reopening")
def bar_reopen(host: Host) -> None:
    opened = open_role(host, "edu")
    before = config(host, opened.fd, BAR0, 4)
    set_config(host, opened.fd, BAR0, 4, 0x12300000)
    host.close(opened.fd)
    fd = device_fd(host, opened.group, str(host.roles["edu"]))
    assert config(host, fd, BAR0, 4) == before


# --- Capabilities ---


@case("capability-list-is-shown", binds=("edu", "nvme", "shm"))
def capabilities(host: Host) -> None:
    fd = open_device(host, "edu")
    assert capability(host, fd, MSI) == 0x40
    assert config(host, fd, 0x41, 1) == 0
    fd = open_device(host, "nvme")
    assert [capability(host, fd, each) for each in (MSIX, EXPRESS, POWER)] == [0x40, 0x80, 0x60]
    assert capability(host, fd, MSI) == 0
    fd = open_device(host, "shm")
    assert not config(host, fd, STATUS, 2) & 0x10
    assert config(host, fd, 0x34, 1) == 0


@case("extended-capabilities-are-shown", binds=("nic", "pf"))
def extended(host: Host) -> None:
    fd = open_device(host, "nic")
    assert extended_capability(host, fd, AER) == 0x100
    assert extended_capability(host, fd, SERIAL) == 0x140
    fd = open_device(host, "pf")
    assert extended_capability(host, fd, SRIOV) == 0x120


@case("no-extended-capability-reads-0", binds="nvme")
def extended_none(host: Host) -> None:
    fd = open_device(host, "nvme")
    assert config(host, fd, 0x100, 4) == 0


@case("capability-headers-cannot-be-written", binds="nvme")
def headers(host: Host) -> None:
    fd = open_device(host, "nvme")
    before = [config(host, fd, at, 2) for at in (0x40, 0x80, 0x60)]
    for at in (0x40, 0x80, 0x60):
        set_config(host, fd, at, 2, 0xFFFF)
    assert [config(host, fd, at, 2) for at in (0x40, 0x80, 0x60)] == before


@case("msix-control-cannot-be-written", binds="nvme")
def msix_control(host: Host) -> None:
    fd = open_device(host, "nvme")
    at = capability(host, fd, MSIX)
    before = config(host, fd, at + 2, 2)
    set_config(host, fd, at + 2, 2, 0xC000)
    assert config(host, fd, at + 2, 2) == before
    assert not real_config(host, "nvme", at + 2, 2) & 0x8000


@case("msi-cannot-be-enabled-by-a-write")
def msi_enable(host: Host) -> None:
    fd = open_device(host, "edu")
    at = capability(host, fd, MSI)
    set_config(host, fd, at + 2, 2, config(host, fd, at + 2, 2) | 1)
    assert not config(host, fd, at + 2, 2) & 1
    assert not real_config(host, "edu", at + 2, 2) & 1


@case("msi-address-and-data-are-only-shown")
def msi_message(host: Host) -> None:
    fd = open_device(host, "edu")
    at = capability(host, fd, MSI)
    set_config(host, fd, at + 4, 4, 0xFEE01000)
    set_config(host, fd, at + 8, 4, 0x12345678)
    set_config(host, fd, at + 12, 2, 0x4321)
    assert config(host, fd, at + 4, 4) == 0xFEE01000
    assert config(host, fd, at + 8, 4) == 0x12345678
    assert config(host, fd, at + 12, 2) == 0x4321
    assert real_config(host, "edu", at + 4, 4) != 0xFEE01000


@case("express-device-control-is-partly-shown", binds="nvme")
def device_control(host: Host) -> None:
    fd = open_device(host, "nvme")
    at = capability(host, fd, EXPRESS) + 8
    before = config(host, fd, at, 2)
    real = real_config(host, "nvme", at, 2)
    payload = 0x0020
    set_config(host, fd, at, 2, before | payload)
    assert config(host, fd, at, 2) & payload
    assert real_config(host, "nvme", at, 2) & 0x00E0 == real & 0x00E0
    set_config(host, fd, at, 2, before)


@case("express-link-control-cannot-be-written", binds="nvme")
def link_control(host: Host) -> None:
    fd = open_device(host, "nvme")
    at = capability(host, fd, EXPRESS) + 0x10
    before = config(host, fd, at, 2)
    set_config(host, fd, at, 2, before ^ 0x0003)
    assert config(host, fd, at, 2) == before


@case("function-level-reset-by-a-write", binds="nvme")
def flr(host: Host) -> None:
    fd = open_device(host, "nvme")
    version = peek(host, fd, 0, NVME_VS)
    at = capability(host, fd, EXPRESS) + 8
    set_config(host, fd, COMMAND, 2, config(host, fd, COMMAND, 2) | MASTER)
    before = host.kernel.pread(fd, 0x40, CONFIG_REGION)
    set_config(host, fd, at, 2, config(host, fd, at, 2) | 0x8000)
    assert not config(host, fd, at, 2) & 0x8000
    assert host.kernel.pread(fd, 0x40, CONFIG_REGION) == before
    assert peek(host, fd, 0, NVME_VS) == version


@case("virtual-functions-cannot-be-enabled-by-a-write", binds="pf")
def sriov(host: Host) -> None:
    fd = open_device(host, "pf")
    at = extended_capability(host, fd, SRIOV)
    set_config(host, fd, at + 0x10, 2, 2)
    set_config(host, fd, at + 0x08, 2, 0x0009)
    assert config(host, fd, at + 0x08, 2) & 0x9 == 0
    assert not real_config(host, "pf", at + 0x08, 2) & 0x1


@case("power-state-follows-a-write", binds="nvme", error=errno.EIO)
def power(host: Host) -> None:
    fd = open_device(host, "nvme")
    at = capability(host, fd, POWER) + 4
    state = config(host, fd, at, 2)
    set_config(host, fd, at, 2, state & ~3 | 3)
    assert config(host, fd, at, 2) & 3 == 3
    with host.refuses(errno.EIO):
        peek(host, fd, 0, 0)
    set_config(host, fd, at, 2, state & ~3)
    assert config(host, fd, at, 2) & 3 == 0
    peek(host, fd, 0, 0)


@case("pme-is-hidden", binds="nic")
def pme(host: Host) -> None:
    fd = open_device(host, "nic")
    at = capability(host, fd, POWER)
    assert not config(host, fd, at + 2, 2) & 0xF800
    set_config(host, fd, at + 4, 2, 0x8100)
    assert not config(host, fd, at + 4, 2) & 0x8100


@case("aer-mask-reaches-the-hardware", binds="nic")
def aer(host: Host) -> None:
    fd = open_device(host, "nic")
    at = extended_capability(host, fd, AER) + 0x14
    before = config(host, fd, at, 4)
    set_config(host, fd, at, 4, before ^ 0x2000)
    assert config(host, fd, at, 4) == real_config(host, "nic", at, 4) == before ^ 0x2000
    set_config(host, fd, at, 4, before)


@case("bytes-of-no-capability-are-the-hardwares", binds="nvme")
def raw(host: Host) -> None:
    fd = open_device(host, "nvme")
    for offset in (0x50, 0x70, 0xC0, 0x800, 0xFFC):
        assert config(host, fd, offset, 4) == real_config(host, "nvme", offset, 4)


# --- Shape of accesses ---


@case("access-may-have-any-length-and-place")
def lengths(host: Host) -> None:
    fd = open_device(host, "edu")
    whole = host.kernel.pread(fd, 256, CONFIG_REGION)
    assert len(whole) == 256
    for offset, length in ((1, 3), (2, 4), (3, 5), (0x3B, 9), (0, 64)):
        assert host.kernel.pread(fd, length, CONFIG_REGION + offset) == whole[offset:][:length]


@case("access-across-the-end-is-efault", error=errno.EFAULT)
def across_end(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EFAULT):
        host.kernel.pread(fd, 8, CONFIG_REGION + 252)


@case("access-beyond-the-end-is-efault", error=errno.EFAULT)
def beyond_end(host: Host) -> None:
    fd = open_device(host, "edu")
    for offset in (256, 4096):
        with host.refuses(errno.EFAULT):
            host.kernel.pread(fd, 4, CONFIG_REGION + offset)
        with host.refuses(errno.EFAULT):
            host.kernel.pwrite(fd, b"1234", CONFIG_REGION + offset)


@case("write-across-registers")
def write_across(host: Host) -> None:
    fd = open_device(host, "edu")
    assert host.kernel.pwrite(fd, b"\xff" * 8, CONFIG_REGION + BAR0) == 8
    assert config(host, fd, BAR0, 4) == 0xFFF00000
    assert config(host, fd, BAR0 + 4, 4) == 0


@case("bars-lost-to-a-reset-are-restored")
def recovery(host: Host) -> None:
    fd = open_device(host, "edu")
    # A reset behind vfio-pci's back: the bridge's, through sysfs, would restore them itself, so
    # the loss is made by writing the hardware.
    before = real_config(host, "edu", BAR0, 4)
    path = host.path("edu", "config")
    fd_config = host.own(host.kernel.open(path))
    host.kernel.pwrite(fd_config, bytes(4), BAR0)
    assert real_config(host, "edu", BAR0, 4) == 0
    command = config(host, fd, COMMAND, 2)
    set_config(host, fd, COMMAND, 2, command)
    assert real_config(host, "edu", BAR0, 4) == before
    assert host.kernel.pread(fd, 4, bar(0)) == b"\xed\0\0\x01"

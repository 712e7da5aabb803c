"""Interrupts of a device: every row of VFIO_DEVICE_SET_IRQS, and delivery to eventfds."""

from __future__ import annotations

import errno
import os

import pytest
from kernel_host import EDU, NIC, TABLE_OFFSET, VECTORS, KernelHost, fds, refuses

from vfiokit.abi import vfio as abi
from vfiokit.machine.device.edu import IRQ_ACKNOWLEDGE, IRQ_RAISE, EduFunction
from vfiokit.machine.kernel import SoftwareKernel
from vfiokit.pci.address import Bdf

NONE, BOOL, EVENTFD = 1, 2, 4
MASK, UNMASK, TRIGGER = 8, 0x10, 0x20
INTX, MSI, MSIX, ERR, REQ = range(5)


class Opened:
    """One open device."""

    def __init__(self, which: str = "nic") -> None:
        self.host = KernelHost()
        self.fd = self.host.open_device(NIC if which == "nic" else EDU)
        self.host.set_config(self.fd, 4, 2, 0x0006)

    def set(
        self, flags: int, index: int, start: int, count: int, data: bytes = b"", **more: int
    ) -> int:
        return self.host.set_irqs(self.fd, flags, index, start, count, data, **more)

    def info(self, index: int) -> abi.vfio_irq_info:
        buffer = abi.vfio_irq_info(argsz=16, index=index).pack()
        self.host.kernel.ioctl(self.fd, abi.VFIO_DEVICE_GET_IRQ_INFO, buffer)
        return abi.vfio_irq_info.unpack_from(buffer)


@pytest.fixture
def nic() -> Opened:
    return Opened()


@pytest.fixture
def edu() -> Opened:
    return Opened("edu")


# --- information ---


@pytest.mark.parametrize(
    ("index", "flags", "count"),
    [(INTX, 0x7, 1), (MSI, 0x9, 4), (MSIX, 0x1, VECTORS), (ERR, 0x9, 1), (REQ, 0x9, 1)],
)
def test_irq_info(nic: Opened, index: int, flags: int, count: int) -> None:
    info = nic.info(index)
    assert (info.flags, info.count) == (flags, count)


def test_irq_info_is_refused(nic: Opened, edu: Opened) -> None:
    with refuses(errno.EINVAL):
        nic.info(5)
    with refuses(errno.EINVAL):
        edu.info(ERR)  # not PCI Express
    with refuses(errno.EINVAL):
        nic.host.kernel.ioctl(
            nic.fd, abi.VFIO_DEVICE_GET_IRQ_INFO, abi.vfio_irq_info(argsz=15).pack()
        )
    assert edu.info(MSIX).count == 0


# --- generic checks ---


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((NONE | TRIGGER, MSIX, 0, 0, b"", 19), errno.EINVAL),  # argsz
        ((NONE | TRIGGER | 0x40, MSIX, 0, 0), errno.EINVAL),  # unknown flag
        ((NONE | TRIGGER, 5, 0, 0), errno.EINVAL),  # no such index
        ((EVENTFD | TRIGGER, MSIX, VECTORS, 0), errno.EINVAL),  # start beyond
        ((EVENTFD | TRIGGER, MSIX, 0, VECTORS + 1, fds(*[-1] * 9)), errno.EINVAL),
        ((EVENTFD | TRIGGER, MSIX, 2**32 - 1, 2, fds(-1, -1)), errno.EINVAL),  # wraps
        ((TRIGGER, MSIX, 0, 1), errno.EINVAL),  # no data type
        ((NONE | BOOL | TRIGGER, MSIX, 0, 1, b"\1"), errno.EINVAL),  # two data types
        ((EVENTFD | TRIGGER, MSIX, 0, 2, fds(-1)), errno.EINVAL),  # short of data
        ((BOOL | TRIGGER, MSIX, 0, 2, b"\1"), errno.EINVAL),
        ((NONE, MSIX, 0, 1), errno.ENOTTY),  # no action
        ((NONE | MASK | TRIGGER, MSIX, 0, 1), errno.ENOTTY),  # two actions
        ((NONE | MASK, MSI, 0, 1), errno.ENOTTY),
        ((NONE | UNMASK, MSI, 0, 1), errno.ENOTTY),
        ((NONE | MASK, MSIX, 0, 1), errno.ENOTTY),
        ((NONE | UNMASK, MSIX, 0, 1), errno.ENOTTY),
        ((NONE | MASK, ERR, 0, 1), errno.ENOTTY),
        ((NONE | UNMASK, REQ, 0, 1), errno.ENOTTY),
    ],
)
def test_set_irqs_is_refused(nic: Opened, arguments: tuple[object, ...], code: int) -> None:
    flags, index, start, count, *rest = arguments
    with refuses(code):
        nic.host.set_irqs(nic.fd, flags, index, start, count, *rest)  # type: ignore[arg-type]


def test_an_index_without_interrupts_cannot_even_be_disabled(edu: Opened) -> None:
    with refuses(errno.EINVAL):
        edu.set(NONE | TRIGGER, MSIX, 0, 0)


# --- MSI-X ---


def test_enabled_vectors_are_programmed_and_delivered(nic: Opened) -> None:
    events = nic.host.events(3)
    assert nic.set(EVENTFD | TRIGGER, MSIX, 0, 3, fds(*events)) == 0
    table = nic.host.nic.msix
    assert table is not None
    assert table.enabled
    assert not table.function_masked
    assert [table.masked(vector) for vector in range(4)] == [False, False, False, True]
    assert nic.host.taken(events[1]) == 0
    nic.host.nic.raise_msix(1)
    nic.host.nic.raise_msix(1)
    nic.host.nic.raise_msix(2)
    assert [nic.host.taken(event) for event in events] == [0, 2, 1]
    assert nic.host.nic.command & 0x0400  # INTx is off in hardware


def test_msix_is_not_delivered_without_bus_mastering(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(event))
    nic.host.set_config(nic.fd, 4, 2, 0x0002)
    nic.host.nic.raise_msix(0)
    assert nic.host.taken(event) == 0


def test_vectors_can_be_added_while_others_are_active(nic: Opened) -> None:
    events = nic.host.events(2)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(events[0]))
    nic.set(EVENTFD | TRIGGER, MSIX, 6, 1, fds(events[1]))
    nic.host.nic.raise_msix(6)
    nic.host.nic.raise_msix(0)
    assert [nic.host.taken(event) for event in events] == [1, 1]


def test_minus_one_removes_a_vector_and_masks_it(nic: Opened) -> None:
    events = nic.host.events(2)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 2, fds(*events))
    nic.set(EVENTFD | TRIGGER, MSIX, 1, 1, fds(-1))
    nic.host.nic.raise_msix(1)
    assert nic.host.taken(events[1]) == 0
    nic.set(EVENTFD | TRIGGER, MSIX, 1, 1, fds(events[1]))  # what was pending is sent now
    assert nic.host.taken(events[1]) == 1


def test_a_vector_enabled_without_eventfd_is_masked(nic: Opened) -> None:
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 2, fds(-1, -1))
    table = nic.host.nic.msix
    assert table is not None
    assert table.enabled
    assert table.masked(0)


def test_a_bad_descriptor_disables_what_the_call_enabled(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    with refuses(errno.EBADF):
        nic.set(EVENTFD | TRIGGER, MSIX, 0, 2, fds(event, 1 << 19))
    assert nic.host.nic.msix is not None
    assert not nic.host.nic.msix.enabled
    nic.set(EVENTFD | TRIGGER, MSI, 0, 1, fds(event))  # nothing was left active


def test_a_descriptor_that_is_no_eventfd_is_einval(nic: Opened) -> None:
    read, write = os.pipe()
    try:
        with refuses(errno.EINVAL):
            nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(read))
    finally:
        os.close(read)
        os.close(write)


def test_a_failing_block_keeps_vectors_outside_it(nic: Opened) -> None:
    events = nic.host.events(2)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(events[0]))
    with refuses(errno.EBADF):
        nic.set(EVENTFD | TRIGGER, MSIX, 1, 2, fds(events[1], 1 << 19))
    nic.host.nic.raise_msix(0)
    nic.host.nic.raise_msix(1)
    assert [nic.host.taken(event) for event in events] == [1, 0]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_loopback_fires_eventfds_of_set_vectors(nic: Opened, index: int) -> None:
    events = nic.host.events(2)
    nic.set(EVENTFD | TRIGGER, index, 0, 2, fds(*events))
    nic.set(NONE | TRIGGER, index, 0, 2)
    assert [nic.host.taken(event) for event in events] == [1, 1]
    nic.set(BOOL | TRIGGER, index, 0, 2, b"\0\1")
    assert [nic.host.taken(event) for event in events] == [0, 1]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_loopback_of_an_inactive_mode_is_einval(nic: Opened, index: int) -> None:
    with refuses(errno.EINVAL):
        nic.set(NONE | TRIGGER, index, 0, 1)
    with refuses(errno.EINVAL):
        nic.set(NONE | TRIGGER, index, 0, 0)


def test_count_zero_disables_the_whole_mode(nic: Opened) -> None:
    events = nic.host.events(2)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 2, fds(*events))
    nic.set(NONE | TRIGGER, MSIX, 0, 0)
    assert nic.host.nic.msix is not None
    assert not nic.host.nic.msix.enabled
    assert not nic.host.nic.command & 0x0400
    nic.host.nic.raise_msix(0)
    assert nic.host.taken(events[0]) == 0
    assert nic.set(EVENTFD | TRIGGER, MSIX, 0, VECTORS, fds(*[-1] * VECTORS)) == 0


def test_enabling_nothing_is_erange(nic: Opened) -> None:
    with refuses(errno.ERANGE):
        nic.set(EVENTFD | TRIGGER, MSIX, 0, 0)


def test_the_table_is_programmed_with_memory_decoding_off(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    nic.host.set_config(nic.fd, 4, 2, 0x0004)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(event))
    assert nic.host.config(nic.fd, 4, 2) & 2 == 0
    nic.host.nic.raise_msix(0)
    assert nic.host.taken(event) == 1


def test_vectors_survive_a_reset(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    nic.set(EVENTFD | TRIGGER, MSIX, 2, 1, fds(event))
    nic.host.kernel.ioctl(nic.fd, abi.VFIO_DEVICE_RESET)
    nic.host.nic.raise_msix(2)
    assert nic.host.taken(event) == 1


def test_the_kernel_keeps_the_event_when_the_descriptor_is_closed(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    kept = os.dup(event)
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(event))
    nic.host.kernel.close(event)
    nic.host.nic.raise_msix(0)
    assert nic.host.taken(kept) == 1
    os.close(kept)


def test_no_descriptor_leaks_when_a_device_closes() -> None:
    opened = Opened()
    events = opened.host.events(4)
    before = len(os.listdir("/proc/self/fd"))
    opened.set(EVENTFD | TRIGGER, MSIX, 0, 4, fds(*events))
    opened.set(EVENTFD | TRIGGER, ERR, 0, 1, fds(events[0]))
    opened.set(EVENTFD | TRIGGER, REQ, 0, 1, fds(events[1]))
    opened.host.kernel.close(opened.fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_msix_table_cannot_be_reached_by_read_or_write(nic: Opened) -> None:
    nic.set(EVENTFD | TRIGGER, MSIX, 0, 1, fds(*nic.host.events(1)))
    kernel = nic.host.kernel
    assert kernel.pread(nic.fd, 16 * VECTORS, TABLE_OFFSET) == b"\xff" * 16 * VECTORS
    table = nic.host.nic.msix
    assert table is not None
    before = bytes(table.table)
    assert kernel.pwrite(nic.fd, bytes(16), TABLE_OFFSET) == 16
    assert bytes(table.table) == before
    mapping = kernel.mmap(nic.fd, 0x10000, 0)
    assert mapping.read32(TABLE_OFFSET + 12) == 0  # a mapping shows the real table
    mapping.close()


# --- MSI ---


def test_msi_vectors_are_delivered_each_to_its_eventfd(nic: Opened) -> None:
    events = nic.host.events(4)
    assert nic.set(EVENTFD | TRIGGER, MSI, 0, 4, fds(*events)) == 0
    assert nic.host.nic.msi is not None
    assert nic.host.nic.msi.granted == 4
    for vector in (0, 3, 3):
        nic.host.nic.raise_msi(vector)
    assert [nic.host.taken(event) for event in events] == [1, 0, 0, 2]


def test_msi_cannot_grow(nic: Opened) -> None:
    nic.set(EVENTFD | TRIGGER, MSI, 0, 1, fds(*nic.host.events(1)))
    with refuses(errno.EINVAL):
        nic.set(EVENTFD | TRIGGER, MSI, 2, 1, fds(*nic.host.events(1)))


def test_msi_of_three_vectors_delivers_three(nic: Opened) -> None:
    events = nic.host.events(3)
    nic.set(EVENTFD | TRIGGER, MSI, 0, 3, fds(*events))
    nic.host.nic.raise_msi(2)
    assert [nic.host.taken(event) for event in events] == [0, 0, 1]
    nic.set(NONE | TRIGGER, MSI, 0, 0)
    assert not nic.host.machine.interrupts._allocations
    nic.set(EVENTFD | TRIGGER, MSI, 0, 4, fds(*nic.host.events(4)))


def test_without_interrupt_remapping_only_one_msi_vector_can_be_had() -> None:
    host = KernelHost(allow_unsafe_interrupts=True)
    host.machine.iommus[0].remapper.enabled = False
    fd = host.open_device(NIC)
    host.set_config(fd, 4, 2, 0x0006)
    events = host.events(4)
    assert host.set_irqs(fd, EVENTFD | TRIGGER, MSI, 0, 4, fds(*events)) == 1
    assert host.nic.msi is not None
    assert not host.nic.msi.enabled
    assert host.set_irqs(fd, EVENTFD | TRIGGER, MSI, 0, 1, fds(events[0])) == 0
    host.nic.raise_msi(0)
    assert host.taken(events[0]) == 1


@pytest.mark.parametrize(("first", "second"), [(MSI, MSIX), (MSIX, MSI), (INTX, MSI), (MSI, INTX)])
def test_only_one_kind_is_active(nic: Opened, first: int, second: int) -> None:
    events = nic.host.events(2)
    nic.set(EVENTFD | TRIGGER, first, 0, 1, fds(events[0]))
    with refuses(errno.EINVAL):
        nic.set(EVENTFD | TRIGGER, second, 0, 1, fds(events[1]))
    nic.set(NONE | TRIGGER, first, 0, 0)
    nic.set(EVENTFD | TRIGGER, second, 0, 1, fds(events[1]))


# --- INTx ---


def raise_edu(edu: Opened, bit: int = 1) -> None:
    edu.host.edu.bar_write(0, IRQ_RAISE, 4, bit)


def acknowledge_edu(edu: Opened, bit: int = 1) -> None:
    edu.host.edu.bar_write(0, IRQ_ACKNOWLEDGE, 4, bit)


def test_intx_masks_itself_until_unmasked(edu: Opened) -> None:
    (event,) = edu.host.events(1)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
    raise_edu(edu)
    assert edu.host.taken(event) == 1
    assert edu.host.edu.command & 0x0400
    raise_edu(edu, 2)
    assert edu.host.taken(event) == 0
    acknowledge_edu(edu, 3)
    edu.set(NONE | UNMASK, INTX, 0, 1)
    assert edu.host.taken(event) == 0
    raise_edu(edu)
    assert edu.host.taken(event) == 1


def test_unmasking_while_the_pin_is_asserted_interrupts_again(edu: Opened) -> None:
    (event,) = edu.host.events(1)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
    raise_edu(edu)
    assert edu.host.taken(event) == 1
    edu.set(BOOL | UNMASK, INTX, 0, 1, b"\1")
    assert edu.host.taken(event) == 1


def test_masked_intx_is_silent(edu: Opened) -> None:
    (event,) = edu.host.events(1)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
    edu.set(NONE | MASK, INTX, 0, 1)
    edu.set(BOOL | UNMASK, INTX, 0, 1, b"\0")
    raise_edu(edu)
    assert edu.host.taken(event) == 0
    edu.set(NONE | UNMASK, INTX, 0, 1)
    assert edu.host.taken(event) == 1


def test_the_virtual_disable_bit_masks_intx(edu: Opened) -> None:
    (event,) = edu.host.events(1)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
    edu.host.set_config(edu.fd, 4, 2, 0x0406)
    raise_edu(edu)
    edu.set(NONE | TRIGGER, INTX, 0, 1)  # loopback is silent too
    edu.set(NONE | UNMASK, INTX, 0, 1)
    assert edu.host.taken(event) == 0
    edu.host.set_config(edu.fd, 5, 1, 0x00)
    assert edu.host.taken(event) == 1


def test_a_resample_eventfd_unmasks(edu: Opened) -> None:
    event, resample = edu.host.events(2)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
    edu.set(EVENTFD | UNMASK, INTX, 0, 1, fds(resample))
    with refuses(errno.EBUSY):
        edu.set(EVENTFD | UNMASK, INTX, 0, 1, fds(resample))
    raise_edu(edu)
    assert edu.host.taken(event) == 1
    edu.host.kernel.eventfd_write(resample)
    assert edu.host.taken(event) == 1  # still asserted
    acknowledge_edu(edu)
    edu.host.kernel.eventfd_write(resample)
    assert edu.host.taken(event) == 0
    edu.set(EVENTFD | UNMASK, INTX, 0, 1, fds(-1))
    edu.set(EVENTFD | UNMASK, INTX, 0, 1, fds(resample))


def test_intx_without_trigger_is_enabled_and_can_be_retargeted(edu: Opened) -> None:
    first, second = edu.host.events(2)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(-1))
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(first))
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(second))
    edu.set(NONE | TRIGGER, INTX, 0, 1)
    assert (edu.host.taken(first), edu.host.taken(second)) == (0, 1)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(-1))
    edu.set(BOOL | TRIGGER, INTX, 0, 1, b"\1")
    assert edu.host.taken(second) == 0


@pytest.mark.parametrize(
    ("flags", "count", "data", "code"),
    [
        (NONE | MASK, 1, b"", errno.EINVAL),
        (NONE | UNMASK, 1, b"", errno.EINVAL),
        (NONE | TRIGGER, 1, b"", errno.EINVAL),
        (NONE | TRIGGER, 0, b"", errno.EINVAL),
        (BOOL | TRIGGER, 1, b"\1", errno.EINVAL),
        (EVENTFD | TRIGGER, 0, b"", errno.EINVAL),
        (EVENTFD | TRIGGER, 1, fds(1 << 19), errno.EBADF),
    ],
)
def test_refused_while_intx_is_off(
    edu: Opened, flags: int, count: int, data: bytes, code: int
) -> None:
    with refuses(code):
        edu.set(flags, INTX, 0, count, data)


def test_masking_by_eventfd_is_enotty(edu: Opened) -> None:
    (event,) = edu.host.events(1)
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
    with refuses(errno.ENOTTY):
        edu.set(EVENTFD | MASK, INTX, 0, 1, fds(event))
    with refuses(errno.EINVAL):
        edu.set(NONE | MASK, INTX, 0, 0)


def test_unmasking_does_not_undo_the_virtual_disable_bit(edu: Opened) -> None:
    edu.set(EVENTFD | TRIGGER, INTX, 0, 1, fds(*edu.host.events(1)))
    edu.host.set_config(edu.fd, 4, 2, 0x0406)
    edu.set(NONE | UNMASK, INTX, 0, 1)
    assert edu.host.edu.command & 0x0400
    edu.host.set_config(edu.fd, 4, 2, 0x0006)
    assert not edu.host.edu.command & 0x0400


def test_two_functions_on_one_wire_hear_only_themselves() -> None:
    host = KernelHost()
    other = Bdf.parse("0000:00:08.0")  # four slots on: the same wire
    host.machine.add(EduFunction(other)).config_write(0x10, 4, 0xE200_0000)
    host.kernel = SoftwareKernel(host.machine)
    opened = []
    for bdf in (EDU, other):
        fd = host.open_device(bdf)
        host.set_config(fd, 4, 2, 0x0006)
        (event,) = host.events(1)
        host.set_irqs(fd, EVENTFD | TRIGGER, INTX, 0, 1, fds(event))
        opened.append(event)
    lines = [host.machine.interrupts.line_of(host.machine.functions[b]) for b in (EDU, other)]
    assert lines[0] is lines[1]
    host.machine.functions[other].bar_write(0, IRQ_RAISE, 4, 1)
    assert [host.taken(event) for event in opened] == [0, 1]
    host.edu.bar_write(0, IRQ_RAISE, 4, 1)
    assert [host.taken(event) for event in opened] == [1, 0]


# --- ERR and REQ ---


@pytest.mark.parametrize("index", [ERR, REQ])
def test_single_eventfd_life(nic: Opened, index: int) -> None:
    first, second = nic.host.events(2)
    with refuses(errno.EINVAL):
        nic.set(NONE | TRIGGER, index, 0, 1)
    nic.set(BOOL | TRIGGER, index, 0, 1, b"\1")  # nothing set: silent
    nic.set(EVENTFD | TRIGGER, index, 0, 1, fds(first))
    nic.set(NONE | TRIGGER, index, 0, 1)
    nic.set(BOOL | TRIGGER, index, 0, 1, b"\0")
    nic.set(BOOL | TRIGGER, index, 0, 1, b"\1")
    assert nic.host.taken(first) == 2
    nic.set(EVENTFD | TRIGGER, index, 0, 1, fds(second))
    nic.set(NONE | TRIGGER, index, 0, 1)
    assert (nic.host.taken(first), nic.host.taken(second)) == (0, 1)
    nic.set(NONE | TRIGGER, index, 0, 0)
    with refuses(errno.EINVAL):
        nic.set(NONE | TRIGGER, index, 0, 1)
    nic.set(EVENTFD | TRIGGER, index, 0, 1, fds(first))
    nic.set(EVENTFD | TRIGGER, index, 0, 1, fds(-1))
    with refuses(errno.EINVAL):
        nic.set(NONE | TRIGGER, index, 0, 1)


@pytest.mark.parametrize(
    ("flags", "count", "data", "code"),
    [
        (EVENTFD | TRIGGER, 0, b"", errno.EINVAL),
        (BOOL | TRIGGER, 0, b"", errno.EINVAL),
        (EVENTFD | TRIGGER, 1, fds(-2), errno.EINVAL),
        (EVENTFD | TRIGGER, 1, fds(1 << 19), errno.EBADF),
    ],
)
def test_single_eventfd_is_refused(
    nic: Opened, flags: int, count: int, data: bytes, code: int
) -> None:
    with refuses(code):
        nic.set(flags, REQ, 0, count, data)


def test_error_interrupts_of_a_conventional_function_are_einval(edu: Opened) -> None:
    with refuses(errno.EINVAL):
        edu.set(EVENTFD | TRIGGER, ERR, 0, 1, fds(*edu.host.events(1)))


def test_an_error_signals_its_eventfd(nic: Opened) -> None:
    (event,) = nic.host.events(1)
    nic.set(EVENTFD | TRIGGER, ERR, 0, 1, fds(event))
    owner = nic.host.kernel.vfio_device(nic.host.kernel.device(NIC))
    assert owner is not None
    owner.report_error()
    assert nic.host.taken(event) == 1

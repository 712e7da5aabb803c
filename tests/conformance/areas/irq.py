"""Interrupts: information, INTx, MSI, MSI-X, error and request notification.

Facts: Linux ``drivers/vfio/pci/vfio_pci_intrs.c``, ``vfio_main.c``.
"""

from __future__ import annotations

import errno
import struct

from conformance.behaviour import CONTAINER, behaviour
from conformance.calls import (
    BOOL,
    EDU_ACKNOWLEDGE,
    EDU_IRQ_STATUS,
    EDU_RAISE,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    NONE,
    REQ,
    TRIGGER,
    UNMASK,
    capability,
    config,
    device_fd,
    disable,
    enable,
    irq_info,
    open_device,
    open_role,
    peek,
    poke,
    real_config,
    set_config,
    set_irqs,
)
from conformance.host import Host
from vfiokit.abi import vfio as abi

SOURCE = "drivers/vfio/pci/vfio_pci_intrs.c"
_EVENTFD, _MASKABLE, _AUTOMASKED, _NORESIZE = (
    abi.VFIO_IRQ_INFO_EVENTFD,
    abi.VFIO_IRQ_INFO_MASKABLE,
    abi.VFIO_IRQ_INFO_AUTOMASKED,
    abi.VFIO_IRQ_INFO_NORESIZE,
)
_INTX_DISABLE = 0x400


def case(name: str, *, error: int | tuple[int, ...] = (), binds: str | tuple[str, ...] = "edu"):
    """A behaviour of this area."""
    return behaviour(f"irq/{name}", SOURCE, binds=binds, error=error, needs=CONTAINER)


# --- Information ---


@case("counts-of-conventional-pci", error=errno.EINVAL)
def info_edu(host: Host) -> None:
    fd = open_device(host, "edu")
    assert [irq_info(host, fd, index).count for index in (INTX, MSI, MSIX, REQ)] == [1, 1, 0, 1]
    with host.refuses(errno.EINVAL):
        irq_info(host, fd, ERR)


@case("counts-of-pci-express", binds="nvme")
def info_nvme(host: Host) -> None:
    fd = open_device(host, "nvme")
    counts = [irq_info(host, fd, index).count for index in (INTX, MSI, MSIX, ERR, REQ)]
    assert counts == [1, 0, 65, 1, 1]


@case("counts-without-interrupts", binds="shm")
def info_shm(host: Host) -> None:
    fd = open_device(host, "shm")
    assert [irq_info(host, fd, index).count for index in (INTX, MSI, MSIX, REQ)] == [0, 0, 0, 1]


@case("flags-of-intx")
def flags_intx(host: Host) -> None:
    fd = open_device(host, "edu")
    assert irq_info(host, fd, INTX).flags == _EVENTFD | _MASKABLE | _AUTOMASKED


@case("flags-of-msi")
def flags_msi(host: Host) -> None:
    fd = open_device(host, "edu")
    assert irq_info(host, fd, MSI).flags == _EVENTFD | _NORESIZE


@case("flags-of-msix-with-vectors-to-add", binds="nvme")
def flags_msix(host: Host) -> None:
    fd = open_device(host, "nvme")
    assert irq_info(host, fd, MSIX).flags == _EVENTFD


@case("flags-of-error-and-request", binds="nvme")
def flags_others(host: Host) -> None:
    fd = open_device(host, "nvme")
    for index in (ERR, REQ):
        assert irq_info(host, fd, index).flags == _EVENTFD | _NORESIZE


@case("index-beyond-the-last-is-einval", error=errno.EINVAL)
def info_beyond(host: Host) -> None:
    fd = open_device(host, "edu")
    for index in (5, 0xFFFFFFFF):
        with host.refuses(errno.EINVAL):
            irq_info(host, fd, index)


@case("info-with-short-argsz-is-einval", error=errno.EINVAL)
def info_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        irq_info(host, fd, INTX, argsz=15)


# --- Checks of every request ---


def _refused(host: Host, code: int, rows: list[tuple[int, int, int, int, bytes]]) -> None:
    fd = open_device(host, "edu")
    for flags, index, start, count, data in rows:
        with host.refuses(code):
            set_irqs(host, fd, flags, index, start, count, data)


@case("set-with-short-argsz-is-einval", error=errno.EINVAL)
def set_argsz(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, INTX, 0, 0, argsz=19)
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, EVENTFD | TRIGGER, MSI, 0, 1, b"\xff" * 4, argsz=23)


@case("set-of-unknown-index-is-einval", error=errno.EINVAL)
def set_index(host: Host) -> None:
    _refused(host, errno.EINVAL, [(NONE | TRIGGER, 5, 0, 0, b"")])


@case("set-with-unknown-flag-is-einval", error=errno.EINVAL)
def set_flag(host: Host) -> None:
    _refused(host, errno.EINVAL, [(NONE | TRIGGER | 0x40, INTX, 0, 0, b"")])


@case("set-beyond-the-count-is-einval", error=errno.EINVAL)
def set_beyond(host: Host) -> None:
    event = b"\xff" * 4
    _refused(
        host,
        errno.EINVAL,
        [
            (EVENTFD | TRIGGER, MSI, 1, 1, event),
            (EVENTFD | TRIGGER, MSI, 0, 2, event * 2),
            (NONE | TRIGGER, MSI, 0xFFFFFFFF, 1, b""),
            (NONE | TRIGGER, MSI, 1, 0xFFFFFFFF, b""),
        ],
    )


@case("set-of-an-index-without-interrupts-is-einval", error=errno.EINVAL)
def set_absent(host: Host) -> None:
    _refused(host, errno.EINVAL, [(NONE | TRIGGER, MSIX, 0, 0, b"")])


@case("set-wants-exactly-one-kind-of-data", error=errno.EINVAL)
def set_data(host: Host) -> None:
    _refused(
        host,
        errno.EINVAL,
        [(TRIGGER, INTX, 0, 1, b""), (NONE | BOOL | TRIGGER, INTX, 0, 1, b"\1")],
    )


@case("set-without-action-is-enotty", error=errno.ENOTTY)
def set_action(host: Host) -> None:
    _refused(host, errno.ENOTTY, [(NONE, INTX, 0, 1, b""), (NONE, MSI, 0, 1, b"")])


@case("set-with-two-actions-is-enotty", error=errno.ENOTTY)
def set_actions(host: Host) -> None:
    _refused(host, errno.ENOTTY, [(NONE | MASK | UNMASK, INTX, 0, 1, b"")])


@case("mask-of-msi-is-enotty", error=errno.ENOTTY)
def mask_msi(host: Host) -> None:
    _refused(host, errno.ENOTTY, [(NONE | MASK, MSI, 0, 1, b""), (NONE | UNMASK, MSI, 0, 1, b"")])


@case("error-notification-of-conventional-pci", error=errno.EINVAL)
def set_err(host: Host) -> None:
    _refused(host, errno.EINVAL, [(EVENTFD | TRIGGER, ERR, 0, 2, b"\xff" * 8)])


# --- INTx ---


@case("intx-arrives")
def intx(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    assert host.quiet(event)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1
    assert peek(host, fd, 0, EDU_IRQ_STATUS) == 1


@case("intx-masks-itself-until-unmasked")
def intx_automask(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1
    poke(host, fd, 0, EDU_ACKNOWLEDGE, 1)
    poke(host, fd, 0, EDU_RAISE, 2)
    assert host.quiet(event)
    set_irqs(host, fd, NONE | UNMASK, INTX, 0, 1)
    assert host.fired(event) == 1


@case("intx-still-asserted-fires-again-when-unmasked")
def intx_level(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1
    set_irqs(host, fd, NONE | UNMASK, INTX, 0, 1)
    assert host.fired(event) == 1
    poke(host, fd, 0, EDU_ACKNOWLEDGE, 1)
    set_irqs(host, fd, NONE | UNMASK, INTX, 0, 1)
    assert host.quiet(event)


@case("intx-masked-by-request")
def intx_mask(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    set_irqs(host, fd, NONE | MASK, INTX, 0, 1)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.quiet(event)
    set_irqs(host, fd, BOOL | UNMASK, INTX, 0, 1, b"\1")
    assert host.fired(event) == 1


@case("intx-mask-by-bool-0-is-nothing")
def intx_mask_bool(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    set_irqs(host, fd, BOOL | MASK, INTX, 0, 1, b"\0")
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1


@case("intx-masked-by-the-command-register")
def intx_command(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    command = config(host, fd, 4, 2)
    set_config(host, fd, 4, 2, command | _INTX_DISABLE)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.quiet(event)
    set_config(host, fd, 4, 2, command & ~_INTX_DISABLE)
    assert host.fired(event) == 1


@case("intx-loops-back")
def intx_loopback(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    set_irqs(host, fd, NONE | TRIGGER, INTX, 0, 1)
    assert host.fired(event) == 1
    set_irqs(host, fd, BOOL | TRIGGER, INTX, 0, 1, b"\1")
    assert host.fired(event) == 1
    set_irqs(host, fd, BOOL | TRIGGER, INTX, 0, 1, b"\0")
    assert host.quiet(event)


@case("intx-unmasked-by-an-eventfd")
def intx_resample(host: Host) -> None:
    fd, event, unmask = open_device(host, "edu"), host.event(), host.event()
    enable(host, fd, INTX, [event])
    set_irqs(host, fd, EVENTFD | UNMASK, INTX, 0, 1, struct.pack("<i", unmask))
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1
    assert host.quiet(event)
    host.kernel.eventfd_write(unmask)
    assert host.fired(event) == 1


@case("second-unmasking-eventfd-is-ebusy", error=errno.EBUSY)
def intx_resample_twice(host: Host) -> None:
    fd = open_device(host, "edu")
    enable(host, fd, INTX, [host.event()])
    data = struct.pack("<i", host.event())
    set_irqs(host, fd, EVENTFD | UNMASK, INTX, 0, 1, data)
    with host.refuses(errno.EBUSY):
        set_irqs(host, fd, EVENTFD | UNMASK, INTX, 0, 1, data)
    set_irqs(host, fd, EVENTFD | UNMASK, INTX, 0, 1, b"\xff" * 4)

    # It goes away by a work item.
    def again() -> bool:
        try:
            set_irqs(host, fd, EVENTFD | UNMASK, INTX, 0, 1, data)
        except OSError:
            return False
        return True

    assert host.until(again)


@case("masking-eventfd-is-enotty", error=errno.ENOTTY)
def intx_mask_event(host: Host) -> None:
    fd = open_device(host, "edu")
    enable(host, fd, INTX, [host.event()])
    with host.refuses(errno.ENOTTY):
        set_irqs(host, fd, EVENTFD | MASK, INTX, 0, 1, struct.pack("<i", host.event()))


@case("intx-requests-without-intx-are-einval", error=errno.EINVAL)
def intx_inactive(host: Host) -> None:
    _refused(
        host,
        errno.EINVAL,
        [
            (NONE | MASK, INTX, 0, 1, b""),
            (NONE | UNMASK, INTX, 0, 1, b""),
            (NONE | TRIGGER, INTX, 0, 1, b""),
            (BOOL | TRIGGER, INTX, 0, 1, b"\1"),
        ],
    )


@case("intx-disabled-twice", error=errno.EINVAL)
def intx_disable_twice(host: Host) -> None:
    fd = open_device(host, "edu")
    enable(host, fd, INTX, [host.event()])
    disable(host, fd, INTX)
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, INTX, 0, 1)
    with host.refuses(errno.EINVAL):
        disable(host, fd, INTX)


@case("intx-disabled-does-not-arrive")
def intx_disable(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [event])
    disable(host, fd, INTX)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.quiet(event)
    poke(host, fd, 0, EDU_ACKNOWLEDGE, 1)


@case("intx-moves-to-another-eventfd")
def intx_retarget(host: Host) -> None:
    fd, first, second = open_device(host, "edu"), host.event(), host.event()
    enable(host, fd, INTX, [first])
    enable(host, fd, INTX, [second])
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(second) == 1
    assert host.quiet(first)


@case("intx-with-no-eventfd-is-enabled-all-the-same")
def intx_no_event(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, INTX, [-1])
    set_irqs(host, fd, NONE | MASK, INTX, 0, 1)
    enable(host, fd, INTX, [event])
    set_irqs(host, fd, NONE | UNMASK, INTX, 0, 1)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1


@case("intx-eventfd-that-is-none", error=(errno.EBADF, errno.EINVAL))
def intx_bad_event(host: Host) -> None:
    opened = open_role(host, "edu")
    with host.refuses(errno.EBADF):
        enable(host, opened.fd, INTX, [999])
    with host.refuses(errno.EINVAL):
        enable(host, opened.fd, INTX, [opened.group])


@case("msi-while-intx-is-active-is-einval", error=errno.EINVAL)
def intx_then_msi(host: Host) -> None:
    fd = open_device(host, "edu")
    enable(host, fd, INTX, [host.event()])
    with host.refuses(errno.EINVAL):
        enable(host, fd, MSI, [host.event()])
    disable(host, fd, INTX)
    enable(host, fd, MSI, [host.event()])


@case("intx-while-msi-is-active-is-einval", error=errno.EINVAL)
def msi_then_intx(host: Host) -> None:
    fd = open_device(host, "edu")
    enable(host, fd, MSI, [host.event()])
    with host.refuses(errno.EINVAL):
        enable(host, fd, INTX, [host.event()])


@case("intx-ends-with-the-last-close")
def intx_close(host: Host) -> None:
    opened, event = open_role(host, "edu"), host.event()
    enable(host, opened.fd, INTX, [event])
    host.close(opened.fd)
    fd = device_fd(host, opened.group, str(host.roles["edu"]))
    enable(host, fd, MSI, [event])


# --- MSI ---


@case("msi-arrives")
def msi(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    set_config(host, fd, 4, 2, config(host, fd, 4, 2) | 4)
    enable(host, fd, MSI, [event])
    assert host.quiet(event)
    poke(host, fd, 0, EDU_RAISE, 1)
    assert host.fired(event) == 1
    poke(host, fd, 0, EDU_ACKNOWLEDGE, 1)


@case("msi-enable-is-shown-once-it-is-written")
def msi_shown(host: Host) -> None:
    fd = open_device(host, "edu")
    at = capability(host, fd, 0x05) + 2
    enable(host, fd, MSI, [host.event()])
    assert not config(host, fd, at, 2) & 1
    assert real_config(host, "edu", at, 2) & 1
    set_config(host, fd, at, 2, config(host, fd, at, 2) | 1)
    assert config(host, fd, at, 2) & 1
    disable(host, fd, MSI)
    assert not real_config(host, "edu", at, 2) & 1


@case("msi-loops-back", error=errno.EINVAL)
def msi_loopback(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, MSI, 0, 1)
    enable(host, fd, MSI, [event])
    set_irqs(host, fd, NONE | TRIGGER, MSI, 0, 1)
    assert host.fired(event) == 1
    set_irqs(host, fd, BOOL | TRIGGER, MSI, 0, 1, b"\0")
    assert host.quiet(event)
    disable(host, fd, MSI)
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, MSI, 0, 1)


@case("msi-vector-without-eventfd-stays-silent")
def msi_silent(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, MSI, [event])
    enable(host, fd, MSI, [-1])
    set_irqs(host, fd, NONE | TRIGGER, MSI, 0, 1)
    assert host.quiet(event)


@case("msi-disabled-that-is-not-enabled-is-einval", error=errno.EINVAL)
def msi_disable(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        disable(host, fd, MSI)


@case("msi-eventfd-that-is-none-enables-nothing", error=(errno.EBADF, errno.EINVAL))
def msi_bad_event(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EBADF):
        enable(host, fd, MSI, [999])
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, MSI, 0, 1)


# --- MSI-X ---


@case("msix-vectors-loop-back-one-by-one", binds="nvme")
def msix(host: Host) -> None:
    fd = open_device(host, "nvme")
    events = [host.event() for _ in range(4)]
    enable(host, fd, MSIX, events)
    for number, event in enumerate(events):
        set_irqs(host, fd, NONE | TRIGGER, MSIX, number, 1)
        assert [host.fired(each, 0.02) for each in events if each is not event] == [0, 0, 0]
        assert host.fired(event) == 1


@case("msix-vectors-loop-back-by-bool", binds="nvme")
def msix_bool(host: Host) -> None:
    fd = open_device(host, "nvme")
    events = [host.event() for _ in range(4)]
    enable(host, fd, MSIX, events)
    set_irqs(host, fd, BOOL | TRIGGER, MSIX, 0, 4, b"\0\1\0\1")
    assert [host.fired(event, 0.05) for event in events] == [0, 1, 0, 1]


@case("all-msix-vectors", binds="nvme")
def msix_all(host: Host) -> None:
    fd = open_device(host, "nvme")
    events = [host.event() for _ in range(65)]
    assert enable(host, fd, MSIX, events) == 0
    set_irqs(host, fd, NONE | TRIGGER, MSIX, 0, 65)
    assert [host.fired(event, 0.5) for event in events] == [1] * 65


@case("more-msix-vectors-than-there-are-is-einval", binds="nvme", error=errno.EINVAL)
def msix_more(host: Host) -> None:
    fd = open_device(host, "nvme")
    with host.refuses(errno.EINVAL):
        enable(host, fd, MSIX, [-1] * 66)


@case("msix-vector-can-be-added-later", binds="nvme")
def msix_add(host: Host) -> None:
    fd, first, later = open_device(host, "nvme"), host.event(), host.event()
    enable(host, fd, MSIX, [first])
    enable(host, fd, MSIX, [later], start=10)
    set_irqs(host, fd, NONE | TRIGGER, MSIX, 10, 1)
    assert host.fired(later) == 1
    assert host.quiet(first)


@case("msix-vectors-from-the-middle", binds="nvme")
def msix_middle(host: Host) -> None:
    fd, event = open_device(host, "nvme"), host.event()
    enable(host, fd, MSIX, [event], start=5)
    set_irqs(host, fd, NONE | TRIGGER, MSIX, 5, 1)
    assert host.fired(event) == 1


@case("bad-msix-eventfd-undoes-the-others", binds="nvme", error=errno.EBADF)
def msix_bad(host: Host) -> None:
    fd, event = open_device(host, "nvme"), host.event()
    enable(host, fd, MSIX, [-1, -1, -1])
    with host.refuses(errno.EBADF):
        enable(host, fd, MSIX, [event, 999])
    set_irqs(host, fd, NONE | TRIGGER, MSIX, 0, 2)
    assert host.quiet(event)


@case("msix-enable-is-shown", binds="nvme")
def msix_shown(host: Host) -> None:
    fd = open_device(host, "nvme")
    at = capability(host, fd, 0x11) + 2
    enable(host, fd, MSIX, [host.event()])
    assert real_config(host, "nvme", at, 2) & 0x8000
    assert config(host, fd, at, 2) & 0x8000
    disable(host, fd, MSIX)
    assert not config(host, fd, at, 2) & 0x8000


# --- Errors and requests ---


@case("request-notification-loops-back", error=errno.EINVAL)
def request(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, REQ, 0, 1)
    enable(host, fd, REQ, [event])
    set_irqs(host, fd, NONE | TRIGGER, REQ, 0, 1)
    assert host.fired(event) == 1
    set_irqs(host, fd, BOOL | TRIGGER, REQ, 0, 1, b"\1")
    assert host.fired(event) == 1
    disable(host, fd, REQ)
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, REQ, 0, 1)


@case("request-by-bool-without-eventfd-is-nothing")
def request_silent(host: Host) -> None:
    fd = open_device(host, "edu")
    set_irqs(host, fd, BOOL | TRIGGER, REQ, 0, 1, b"\1")


@case("request-eventfd-can-be-taken-away", error=errno.EINVAL)
def request_remove(host: Host) -> None:
    fd, event = open_device(host, "edu"), host.event()
    enable(host, fd, REQ, [event])
    enable(host, fd, REQ, [-1])
    with host.refuses(errno.EINVAL):
        set_irqs(host, fd, NONE | TRIGGER, REQ, 0, 1)


@case("request-eventfd-below-minus-one-is-einval", error=errno.EINVAL)
def request_negative(host: Host) -> None:
    fd = open_device(host, "edu")
    with host.refuses(errno.EINVAL):
        enable(host, fd, REQ, [-2])


@case("mask-of-request-notification-is-enotty", error=errno.ENOTTY)
def request_mask(host: Host) -> None:
    _refused(host, errno.ENOTTY, [(NONE | MASK, REQ, 0, 1, b""), (NONE | UNMASK, REQ, 0, 1, b"")])


@case("error-notification-of-pci-express-loops-back", binds="nvme")
def error_notification(host: Host) -> None:
    fd, event = open_device(host, "nvme"), host.event()
    enable(host, fd, ERR, [event])
    set_irqs(host, fd, NONE | TRIGGER, ERR, 0, 1)
    assert host.fired(event) == 1


@case("notifications-go-along-with-any-interrupts", binds="nvme")
def notifications(host: Host) -> None:
    fd = open_device(host, "nvme")
    enable(host, fd, REQ, [host.event()])
    enable(host, fd, ERR, [host.event()])
    enable(host, fd, MSIX, [host.event()])

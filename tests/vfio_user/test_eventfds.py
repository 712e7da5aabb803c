"""Interrupts as clients set them: runs, triggers of every kind, and the pin's masks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from served import Plain, client

from vfiokit.errors import KernelError
from vfiokit.kernel import linux
from vfiokit.vfio_user.catalogue import edu, nvme
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.payload import SetIrqs
from vfiokit.vfio_user.server import Server

NONE, BOOL, EVENTFD = 1, 2, 4
MASK, UNMASK, TRIGGER = 8, 16, 32
INTX, MSI, MSIX, ERR, REQ = range(5)
RAISE, ACKNOWLEDGE = 0x60, 0x64


@pytest.fixture
def events() -> Iterator[list[int]]:
    fds = [linux.eventfd() for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def counts(fds: list[int]) -> list[int]:
    found = []
    for fd in fds:
        try:
            found.append(os.eventfd_read(fd))
        except BlockingIOError:
            found.append(0)
    return found


def set_irqs(peer: Client, flags: int, index: int, start: int, count: int, *rest: object) -> None:
    values = b"".join(each for each in rest if isinstance(each, bytes))
    fds = next((each for each in rest if isinstance(each, list)), [])
    peer.set_irqs(SetIrqs(flags, index, start, count, values), fds)


def test_each_index_says_what_it_can() -> None:
    with client(Server(nvme(size=1 << 20, vectors=5))) as peer:
        infos = [peer.irq_info(index) for index in range(5)]
    assert [info.count for info in infos] == [1, 1, 5, 1, 1]
    assert [info.flags for info in infos] == [1 | 2 | 4, 1 | 8, 1 | 8, 1, 1]


def test_vectors_given_in_runs_are_signalled_each_by_its_own(events: list[int]) -> None:
    device = Plain()
    with client(Server(device)) as peer:
        set_irqs(peer, EVENTFD | TRIGGER, MSIX, 0, 1)  # QEMU begins with an empty one
        set_irqs(peer, EVENTFD | TRIGGER, MSIX, 2, 2, events[2:])
        set_irqs(peer, EVENTFD | TRIGGER, MSIX, 0, 1, events[:1])
        set_irqs(peer, NONE | TRIGGER, MSIX, 0, 4)
        assert counts(events) == [1, 0, 1, 1]
        set_irqs(peer, BOOL | TRIGGER, MSIX, 1, 3, b"\1\0\1")
        assert counts(events) == [0, 0, 0, 1]
        set_irqs(peer, EVENTFD | TRIGGER, MSIX, 2, 1)
        set_irqs(peer, NONE | TRIGGER, MSIX, 0, 4)
        assert counts(events) == [1, 0, 0, 1]
    assert device.events[1:-1] == ["irqs 2 [2, 3]", "irqs 2 [0, 2, 3]", "irqs 2 [0, 3]"]


def test_an_eventfd_given_anew_replaces_the_old(events: list[int]) -> None:
    with client(Server(Plain())) as peer:
        for fd in events[:2]:
            set_irqs(peer, EVENTFD | TRIGGER, ERR, 0, 1, [fd])
        set_irqs(peer, NONE | TRIGGER, ERR, 0, 1)
        assert counts(events) == [0, 1, 0, 0]


@pytest.mark.parametrize("index", [ERR, REQ, MSI, MSIX])
@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_only_the_pin_is_masked_by_message(index: int, action: int) -> None:
    with client(Server(Plain())) as peer, pytest.raises(KernelError):
        set_irqs(peer, NONE | action, index, 0, 1)


def test_the_pin_rings_once_until_it_is_unmasked(events: list[int]) -> None:
    """VFIO's INTx: asserted, it masks itself; unmasked while still asserted, it rings again."""
    with client(Server(edu())) as peer:
        set_irqs(peer, EVENTFD | TRIGGER, INTX, 0, 1, events[:1])
        peer.region_write(0, RAISE, b"\1\0\0\0")
        peer.region_write(0, RAISE, b"\2\0\0\0")
        assert counts(events[:1]) == [1]
        set_irqs(peer, NONE | UNMASK, INTX, 0, 1)
        assert counts(events[:1]) == [1]
        peer.region_write(0, ACKNOWLEDGE, b"\3\0\0\0")
        set_irqs(peer, NONE | UNMASK, INTX, 0, 1)
        assert counts(events[:1]) == [0]
        peer.region_write(0, RAISE, b"\1\0\0\0")
        assert counts(events[:1]) == [1]


def test_a_masked_pin_is_silent_until_it_is_unmasked(events: list[int]) -> None:
    with client(Server(edu())) as peer:
        set_irqs(peer, EVENTFD | TRIGGER, INTX, 0, 1, events[:1])
        set_irqs(peer, BOOL | MASK, INTX, 0, 1, b"\0")  # no
        set_irqs(peer, BOOL | MASK, INTX, 0, 1, b"\1")
        peer.region_write(0, RAISE, b"\1\0\0\0")
        assert counts(events[:1]) == [0]
        set_irqs(peer, BOOL | UNMASK, INTX, 0, 1, b"\1")
        assert counts(events[:1]) == [1]


def test_a_mask_by_eventfd_silences_the_pin(events: list[int]) -> None:
    with client(Server(edu())) as peer:
        set_irqs(peer, EVENTFD | TRIGGER, INTX, 0, 1, events[:1])
        set_irqs(peer, EVENTFD | MASK, INTX, 0, 1, events[1:2])
        os.eventfd_write(events[1], 1)
        for _ in range(50):  # the eventfd and the message have no order between them
            peer.region_read(0, 0, 4)
        peer.region_write(0, RAISE, b"\1\0\0\0")
        assert counts(events[:1]) == [0]
        set_irqs(peer, NONE | UNMASK, INTX, 0, 1)
        assert counts(events[:1]) == [1]


def test_a_pin_that_was_high_before_rings_when_an_eventfd_comes(events: list[int]) -> None:
    server = Server(edu())
    with client(server) as peer:
        peer.region_write(0, RAISE, b"\1\0\0\0")
    with client(server) as peer:  # the device kept it, the client is another
        set_irqs(peer, EVENTFD | TRIGGER, INTX, 0, 1, events[:1])
        assert counts(events[:1]) == [1]
        peer.reset()
        set_irqs(peer, NONE | UNMASK, INTX, 0, 1)
        assert counts(events[:1]) == [0]


def test_a_reset_takes_no_eventfd_away(events: list[int]) -> None:
    with client(Server(edu())) as peer:
        set_irqs(peer, EVENTFD | TRIGGER, MSI, 0, 1, events[:1])
        peer.reset()
        peer.region_write(0, RAISE, b"\1\0\0\0")
        assert counts(events[:1]) == [1]
        set_irqs(peer, NONE | TRIGGER, MSI, 0, 0)
        peer.region_write(0, RAISE, b"\2\0\0\0")
        assert counts(events[:1]) == [0]

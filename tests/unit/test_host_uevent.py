"""Uevents: what the kernel's messages say, and the socket that takes them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import FormatError, SourceError
from vfiokit.host.tree import RecordedTree
from vfiokit.host.uevent import Uevent, build, parse
from vfiokit.host.uevent_socket import NoUevents, UeventSocket
from vfiokit.host.watch import why_silent
from vfiokit.pci.address import Bdf

# As the kernel of a running machine sent it.
RECORDED = (
    b"bind@/devices/pci0000:00/0000:00:1c.0/0000:01:00.0\0ACTION=bind\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:1c.0/0000:01:00.0\0SUBSYSTEM=pci\0DRIVER=vfio-pci\0"
    b"PCI_CLASS=10802\0PCI_ID=144D:A808\0PCI_SUBSYS_ID=144D:A801\0PCI_SLOT_NAME=0000:01:00.0\0"
    b"MODALIAS=pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02\0SEQNUM=4711\0"
)

words = st.text(st.characters(codec="ascii", exclude_characters="\0=@", categories=("L", "N")))
values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


def test_a_recorded_message_is_read() -> None:
    uevent = parse(RECORDED)
    assert (uevent.action, uevent.subsystem) == ("bind", "pci")
    assert uevent.function == Bdf.parse("0000:01:00.0")
    assert uevent.properties["DRIVER"] == "vfio-pci"
    assert uevent.properties["SEQNUM"] == "4711"


def test_a_device_node_is_named_as_it_is_opened() -> None:
    message = build("add", "/devices/virtual/vfio/37", SUBSYSTEM="vfio", DEVNAME="vfio/37")
    assert parse(message).node == "/dev/vfio/37"
    assert parse(message).function is None
    assert parse(build("add", "/devices/virtual/vfio")).node is None


def test_a_function_without_a_slot_name_is_named_by_its_path() -> None:
    path = "/devices/pci0000:00/0000:00:1c.0"
    assert parse(build("remove", path, SUBSYSTEM="pci")).function == Bdf.parse("0000:00:1c.0")
    assert parse(build("add", "/devices/pci0000:00", SUBSYSTEM="pci")).function is None


@given(words.filter(bool), st.dictionaries(words.filter(bool), values, max_size=8))
def test_what_was_built_is_read_back(action: str, properties: dict[str, str]) -> None:
    uevent = parse(build(action, "/devices/x", **properties))
    assert uevent == Uevent(
        action,
        "/devices/x",
        {"ACTION": action, "DEVPATH": "/devices/x", **properties},
    )


@pytest.mark.parametrize(
    "message",
    [b"", b"\0", b"add", b"@/devices", b"add@devices", b"libudev\0\xfe\xed\xca\xfe", b"a" * 70000],
)
def test_what_is_no_message_of_the_kernel_is_refused(message: bytes) -> None:
    with pytest.raises(FormatError):
        parse(message)


# --- the socket of this machine ---


def _writable() -> str:
    """A uevent file that may be written here; ``""`` without one."""
    folder = "/sys/bus/pci/devices"
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if os.access(f"{folder}/{name}/uevent", os.W_OK):
            return f"{folder}/{name}"
    return ""


@pytest.fixture
def uevents() -> Iterator[UeventSocket]:
    try:
        made = UeventSocket()
    except SourceError as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


@pytest.fixture
def trigger() -> Callable[[], Bdf]:
    """Makes the kernel send a ``change`` of a function; returns its address."""
    folder = _writable()
    if not folder:
        pytest.skip("no uevent file of a PCI function can be written here")

    def send() -> Bdf:
        with open(f"{folder}/uevent", "w", encoding="ascii") as file:
            file.write("change")
        return Bdf.parse(os.path.basename(folder))

    return send


def test_the_kernel_is_heard(uevents: UeventSocket, trigger: Callable[[], Bdf]) -> None:
    bdf = trigger()
    found: list[Uevent] = []
    deadline = time.monotonic() + 5
    while not found and time.monotonic() < deadline:
        found = [each for each in uevents.wait(1).uevents if each.function == bdf]
    assert found[0].action == "change"
    assert found[0].properties["SUBSYSTEM"] == "pci"


def test_what_a_program_multicasts_is_not_the_kernel_s_word(uevents: UeventSocket) -> None:
    forged = "/devices/forged"
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as sender:
        sender.bind((0, 0))
        try:
            sender.sendto(build("add", forged, SUBSYSTEM="pci"), (0, 1))
        except PermissionError:
            pytest.skip("multicasting uevents needs CAP_NET_ADMIN")
    begun = time.monotonic()
    received = uevents.wait(0.3)
    assert all(each.devpath != forged for each in received.uevents)
    # It did not cut the wait short either.
    assert received.uevents or time.monotonic() - begun >= 0.29


def test_an_overflow_is_reported_once_and_listening_goes_on(trigger: Callable[[], Bdf]) -> None:
    try:
        small = UeventSocket(buffer_size=4096)
    except SourceError as reason:
        pytest.skip(str(reason))
    for _ in range(200):
        trigger()
    first = small.wait(1)
    assert first.lost
    assert len(first.uevents) < 200
    trigger()
    second = small.wait(2)
    assert second.uevents
    assert not second.lost
    small.close()


def test_waiting_for_nothing_takes_its_time() -> None:
    begun = time.monotonic()
    assert NoUevents().wait(0.05) == ((), False)
    assert time.monotonic() - begun >= 0.05


def test_no_netlink_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(SourceError, match="no uevents: Address family"):
        UeventSocket()


@pytest.mark.parametrize(
    ("mapping", "silent"),
    [(b"         0          0 4294967295\n", False), (b"0 100000 65536\n", True), (None, False)],
)
def test_a_user_namespace_of_its_own_hears_nothing(mapping: bytes | None, silent: bool) -> None:
    files = {} if mapping is None else {"/proc/self/uid_map": mapping}
    assert bool(why_silent(RecordedTree(files, {}))) is silent

"""Messages in which the kernel tells of devices that come, go, and change: uevents.

Only bytes here: :mod:`vfiokit.host.uevent_socket` receives them. Source: Linux
``lib/kobject_uevent.c`` (``ACTION@DEVPATH``, then ``KEY=value``, each ended by a NUL) and
``drivers/pci/pci-driver.c`` (``pci_uevent``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from vfiokit.errors import AddressError, FormatError
from vfiokit.pci.address import Bdf

_MAX_BYTES = 1 << 16
"""The kernel's own limit is 2 KiB of properties and a path."""
_UDEV_MAGIC = b"libudev\0"


class Uevent(NamedTuple):
    """One message."""

    action: str
    """``add``, ``remove``, ``change``, ``move``, ``online``, ``offline``, ``bind``, ``unbind``."""
    devpath: str
    """Path below ``/sys``, with its leading slash."""
    properties: Mapping[str, str]

    @property
    def subsystem(self) -> str:
        """``pci``, ``vfio``, ``vfio-dev``, ``net``…; empty where the message names none."""
        return self.properties.get("SUBSYSTEM", "")

    @property
    def function(self) -> Bdf | None:
        """The PCI function it is about; ``None`` for anything else."""
        if self.subsystem != "pci":
            return None
        name = self.properties.get("PCI_SLOT_NAME") or self.devpath.rpartition("/")[2]
        try:
            return Bdf.parse(name)
        except AddressError:
            return None

    @property
    def node(self) -> str | None:
        """The device node it is about: ``/dev/vfio/37``."""
        name = self.properties.get("DEVNAME", "")
        return f"/dev/{name.removeprefix('/dev/')}" if name else None


class Received(NamedTuple):
    """What a source of uevents had to give."""

    uevents: tuple[Uevent, ...] = ()
    lost: bool = False
    """Whether the kernel threw messages away because nobody took them in time."""


class UeventSource(Protocol):
    """Where uevents come from."""

    def wait(self, timeout_s: float) -> Received:
        """Whatever came, after at most ``timeout_s`` seconds; returns early when something did."""
        ...

    def close(self) -> None:
        """Stop listening. Idempotent."""
        ...


def parse(message: bytes) -> Uevent:
    """Read one message of the kernel; :class:`FormatError` when it is none.

    Properties without ``=`` are left out, undecodable bytes replaced; ``ACTION`` and ``DEVPATH``
    among the properties do not override the first line, as in udev.
    """
    if len(message) > _MAX_BYTES:
        raise FormatError(f"a uevent of {len(message)} bytes")
    if message.startswith(_UDEV_MAGIC):
        raise FormatError("a message of udev, not of the kernel")
    head, *lines = message.decode("utf-8", "replace").split("\0")
    action, at, devpath = head.partition("@")
    if not at or not action or not devpath.startswith("/"):
        raise FormatError(f"a uevent starts with ACTION@/PATH, not with {head[:40]!r}")
    properties: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if equals and key:
            properties[key] = value
    return Uevent(action, devpath, properties)


def build(action: str, devpath: str, **properties: str) -> bytes:
    """The message that the kernel sends, for software machines and tests."""
    known = {"ACTION": action, "DEVPATH": devpath, **properties}
    lines = (f"{key}={value}" for key, value in known.items())
    return "\0".join((f"{action}@{devpath}", *lines, "")).encode()

"""Taking a function out of a running guest: with its consent, or without.

Below a port the guest is asked by the attention button of the slot, and consents by switching the
slot's power and its indicator off. On the root bus it is asked through the ports that QEMU gives to
ACPI, and consents by ejecting the slot. Source: PCI Express Base Specification 6.0 §6.7,
QEMU ``hw/pci/pcie.c`` (``pcie_cap_slot_write_config``), ``docs/specs/acpi_pci_hotplug.rst``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from vfiokit.vmm.guest_function import GuestFunction
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.root_port import RootPort, SlotEvent

HOTPLUG_PORT = 0xAE00
HOTPLUG_PORTS = 0x18
EVENT_PORT = 0x620
EVENT_PORTS = 4
SCI = 9
"""Input of the IOAPIC that ACPI's events go to."""
_PCI_EVENT = 1 << 1
_UP, _DOWN, _EJECT, _REMOVABLE, _BUS = 0x00, 0x04, 0x08, 0x0C, 0x10


class Kind(Enum):
    """What there is to tell about a device from outside the guest."""

    ERROR = "error"
    """The host saw an uncorrectable error of it."""
    REQUEST = "request"
    """The host wants it back."""
    ASKED = "asked"
    """The guest was asked to let it go."""
    EJECTED = "ejected"
    """The guest let it go."""
    TAKEN = "taken"
    """It was taken without being asked for."""


class Notice(NamedTuple):
    """Something that happened to a guest's device from outside."""

    kind: Kind
    function: str
    text: str = ""


class EventBlock:
    """ACPI's general-purpose event registers: status, and which of it interrupts."""

    def __init__(self, set_line: Callable[[bool], None]) -> None:
        self._registers = bytearray(EVENT_PORTS)
        self._set_line = set_line

    def raise_event(self) -> None:
        """Something happened on the PCI bus."""
        self._registers[0] |= _PCI_EVENT
        self._update()

    def read(self, offset: int, width: int) -> int:
        """Two bytes of status, two of enable bits."""
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Status bits are cleared by writing 1."""
        for index, byte in enumerate(value.to_bytes(width, "little"), offset):
            if index < 2:
                self._registers[index] &= ~byte & 0xFF
            elif index < EVENT_PORTS:
                self._registers[index] = byte
        self._update()

    def _update(self) -> None:
        self._set_line(bool(self.read(0, 2) & self.read(2, 2)))

    def state(self) -> dict[str, Any]:
        """The registers as plain data."""
        return {"registers": bytes(self._registers)}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self._registers[:] = state["registers"]
        self._update()


class SlotPorts:
    """The ports by which a guest learns which slots of the root bus changed, and ejects them."""

    def __init__(self, bus: PciBus, eject: Callable[[GuestFunction], None]) -> None:
        self._bus = bus
        self._eject = eject
        self.up = 0
        """Bit n: something came into slot n."""
        self.down = 0
        """Bit n: the guest shall let go of slot n."""

    def read(self, offset: int, width: int) -> int:
        """The bits that were asked for; those of what came are taken by reading."""
        if width != 4:
            return (1 << 8 * width) - 1
        if offset == _UP:
            value, self.up = self.up, 0
            return value
        values = {_DOWN: self.down, _REMOVABLE: self._removable(), _EJECT: 0, _BUS: 0}
        return values.get(offset, 0xFFFF_FFFF)

    def write(self, offset: int, width: int, value: int) -> None:
        """Eject every slot whose bit is set."""
        if offset != _EJECT or width != 4:
            return
        for function in tuple(self._bus.root.functions.values()):
            slot = 1 << function.bdf.device
            if value & slot & self._removable():
                self.down &= ~slot
                self._eject(function)

    def _removable(self) -> int:
        """Slots of the root bus with something that can be taken out."""
        return sum(
            1 << device
            for device in {f.bdf.device for f in self._bus.root.functions.values() if f.removable}
        )

    def state(self) -> dict[str, Any]:
        """The bits as plain data."""
        return {"up": self.up, "down": self.down}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.up, self.down = state["up"], state["down"]


class HotPlug:
    """How functions leave a guest. ``remove`` takes one out; ``notify`` is told what happens."""

    def __init__(
        self,
        bus: PciBus,
        set_sci: Callable[[bool], None],
        remove: Callable[[GuestFunction], None],
        notify: Callable[[Notice], None],
    ) -> None:
        self._bus = bus
        self._remove = remove
        self._notify = notify
        self.events = EventBlock(set_sci)
        self.slots = SlotPorts(bus, self.ejected)
        bus.on_eject = self.ejected

    def came(self, function: GuestFunction) -> None:
        """``function`` was plugged in: tell the guest."""
        port = self._bus.segment_of(function).bridge
        if isinstance(port, RootPort):
            port.set_present(True)
        else:
            self.slots.up |= 1 << function.bdf.device
            self.events.raise_event()

    def ask(self, function: GuestFunction) -> None:
        """Ask the guest to let go of ``function``. Asking again reminds it."""
        self._notify(Notice(Kind.ASKED, function.name))
        port = self._bus.segment_of(function).bridge
        if isinstance(port, RootPort):
            port.slot_event(SlotEvent.ATTENTION_BUTTON)
        else:
            self.slots.down |= 1 << function.bdf.device
            self.events.raise_event()

    def ejected(self, function: GuestFunction) -> None:
        """The guest let go."""
        self._out(function, Kind.EJECTED)

    def take(self, function: GuestFunction) -> None:
        """Take ``function`` out whatever the guest does with it; it is told afterwards."""
        self._out(function, Kind.TAKEN)

    def _out(self, function: GuestFunction, kind: Kind) -> None:
        segment = self._bus.segment_of(function)
        port = segment.bridge
        self._remove(function)
        if isinstance(port, RootPort):
            port.set_present(bool(segment.functions))
        elif kind is Kind.TAKEN:
            self.slots.down |= 1 << function.bdf.device
            self.events.raise_event()
        self._notify(Notice(kind, function.name))

"""Interrupts of the software machine: messages to processors, and the four INTx wires.

A message is a 4-byte write to ``0xFEExxxxx``; interrupt remapping, where a unit has it enabled,
decides what it becomes. INTx is a level on a wire that many functions may share.
Source: Intel VT-d Specification 4.1 §5.1, PCIe Base Specification 6.0 §2.2.8.1 (INTx mapping at
bridges), §6.1; Linux ``pci_swizzle_interrupt_pin``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from vfiokit.errors import MachineError
from vfiokit.machine.function import COMMAND_INTX_DISABLE, Function
from vfiokit.machine.iommu.fault import IommuFault
from vfiokit.machine.iommu.remap import (
    MSI_BASE,
    Interrupt,
    InterruptRemapper,
    decode_compatibility,
)
from vfiokit.machine.txn import Txn

Handler = Callable[[], None]
LevelHandler = Callable[[bool], None]

_FIRST_VECTOR: Final = 0x20
_LAST_VECTOR: Final = 0xFE
_DESTINATIONS: Final = 255
_STATUS_INTERRUPT: Final = 0x08


class MsiMessage(NamedTuple):
    """What software programs into an MSI capability or an MSI-X entry."""

    address: int
    data: int
    handle: int
    """Names the allocation for :meth:`InterruptSystem.free`."""


class Wiring(Protocol):
    """What interrupts need to know of the fabric."""

    def remapper_of(self, requester_id: int, domain: int) -> InterruptRemapper | None:
        """The interrupt remapping hardware that sees the messages of a requester."""
        ...

    def wire_id(self, requester_id: int, domain: int) -> int:
        """The requester ID that its requests carry when they reach the root complex."""
        ...

    def root_path(self, function: Function) -> tuple[Function, ...]:
        """Bridges above ``function``, nearest first."""
        ...


class _Allocation(NamedTuple):
    interrupt: Interrupt
    handler: Handler
    remapper: InterruptRemapper | None
    entry: int


class Pin:
    """The INTx output of one function."""

    def __init__(self, system: InterruptSystem, function: Function) -> None:
        self._system = system
        self.function = function
        self.asserted = False
        """What the device model wants."""
        self.driven = False
        """What the wire sees: asserted and not disabled by the command register."""

    def set(self, level: bool) -> None:
        """Assert or deassert; the Interrupt Status bit follows."""
        self.asserted = level
        status = self.function.config.data[0x06] & ~_STATUS_INTERRUPT
        self.function.config.data[0x06] = status | (_STATUS_INTERRUPT if level else 0)
        self.evaluate()

    def evaluate(self) -> None:
        """Drive the wire according to the pin and the Interrupt Disable bit."""
        if not self.function.config.data[0x3D]:
            return
        driven = self.asserted and not self.function.command & COMMAND_INTX_DISABLE
        if driven != self.driven:
            self.driven = driven
            self._system.line_of(self.function).drive(self, driven)


class Line:
    """One INTx wire at the root of the hierarchy; high while any pin drives it."""

    def __init__(self) -> None:
        self.pins: set[Pin] = set()
        self.handlers: list[LevelHandler] = []
        self.unhandled = 0
        """Assertions while nobody was connected."""

    @property
    def level(self) -> bool:
        """Whether any pin drives the wire."""
        return bool(self.pins)

    def drive(self, pin: Pin, level: bool) -> None:
        """A pin starts or stops driving.

        Handlers hear of every pin that starts, as a level interrupt is delivered again for as long
        as the wire is high, and of the end of the last.
        """
        if level:
            self.pins.add(pin)
        else:
            self.pins.discard(pin)
        if level and not self.handlers:
            self.unhandled += 1
        for handler in tuple(self.handlers):
            if self.level != level:
                return  # the wire is where others hold it, or a handler moved it and told the rest
            handler(level)


class IntxConnection:
    """A handler connected to an INTx wire; :meth:`close` ends it."""

    def __init__(self, line: Line, handler: LevelHandler) -> None:
        self.line = line
        self._handler = handler
        line.handlers.append(handler)
        if line.level:
            handler(True)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._handler in self.line.handlers:
            self.line.handlers.remove(self._handler)


class InterruptSystem:
    """Message interrupts by destination and vector, INTx wires by host bridge and root pin."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._allocations: dict[int, _Allocation] = {}
        self._by_interrupt: dict[tuple[int, int], int] = {}
        self._indices: dict[int, set[int]] = {}
        self._next_handle = 1
        self._next_vector = 0
        self._lines: dict[tuple[int, int, int], Line] = {}
        self.delivered = 0
        """Messages that reached a handler."""
        self.blocked = 0
        """Messages that interrupt remapping refused."""
        self.spurious = 0
        """Messages for a vector that nobody asked for."""
        self.malformed = 0
        """Writes to the interrupt range that are no 4-byte message."""

    # -- messages -----------------------------------------------------------------------------

    def allocate(self, requester_id: int, handler: Handler, *, domain: int = 0) -> MsiMessage:
        """A message that makes ``handler`` run when ``requester_id`` sends it.

        With interrupt remapping enabled it is in the remappable format and an entry for the
        requester (or the alias its requests carry) is written; otherwise it names the vector.
        """
        return self.allocate_block(requester_id, (handler,), domain=domain)[0]

    def allocate_block(
        self, requester_id: int, handlers: Sequence[Handler], *, domain: int = 0
    ) -> list[MsiMessage]:
        """Messages with one address and consecutive data, as multi-message MSI needs them.

        The number of handlers is a power of two, at most 32. Raises :class:`MachineError` when
        vectors or remapping entries run out.
        """
        count = len(handlers)
        if not 1 <= count <= 32 or count & (count - 1):
            raise MachineError(f"a block of {count} messages is impossible: 1, 2, 4, 8, 16 or 32")
        remapper = self._wiring.remapper_of(requester_id, domain)
        if remapper is not None and not remapper.enabled:
            remapper = None
        interrupts = self._take_vectors(count)
        first = self._take_entries(remapper, count) if remapper is not None else 0
        wire_id = self._wiring.wire_id(requester_id, domain)
        messages: list[MsiMessage] = []
        for offset, (interrupt, handler) in enumerate(zip(interrupts, handlers, strict=True)):
            handle = self._next_handle
            self._next_handle += 1
            self._allocations[handle] = _Allocation(interrupt, handler, remapper, first + offset)
            self._by_interrupt[interrupt.destination, interrupt.vector] = handle
            if remapper is None:
                address, data = MSI_BASE | interrupt.destination << 12, interrupt.vector
            else:
                remapper.set_entry(
                    first + offset, interrupt.vector, interrupt.destination, source_id=wire_id
                )
                remapper.invalidate(first + offset)
                address = MSI_BASE | (first & 0x7FFF) << 5 | 0x18 | first >> 13 & 4
                data = offset
            messages.append(MsiMessage(address, data, handle))
        return messages

    def free(self, handle: int) -> None:
        """Release a message; sending it afterwards is spurious, or faults when remapped."""
        allocation = self._allocations.pop(handle, None)
        if allocation is None:
            raise MachineError(f"interrupt {handle} is not allocated")
        del self._by_interrupt[allocation.interrupt.destination, allocation.interrupt.vector]
        if allocation.remapper is not None:
            allocation.remapper.clear_entry(allocation.entry)
            allocation.remapper.invalidate(allocation.entry)
            self._indices[id(allocation.remapper)].discard(allocation.entry)

    def deliver(self, txn: Txn) -> bool:
        """Take a write to the interrupt range; whether a handler ran. Hops are recorded."""
        if txn.length != 4 or txn.address & 3 or txn.data is None:
            self.malformed += 1
            txn.hop("interrupt", "block", f"{txn.length} bytes at {txn.address:#x} are no message")
            return False
        data = int.from_bytes(txn.data, "little")
        remapper = self._wiring.remapper_of(txn.requester_id, txn.domain)
        if remapper is not None and remapper.enabled:
            try:
                interrupt = remapper.remap(txn.requester_id, txn.address, data)
            except IommuFault as fault:
                self.blocked += 1
                txn.hop("interrupt", "fault", str(fault))
                return False
        else:
            interrupt = decode_compatibility(txn.address, data)
        handle = self._by_interrupt.get((interrupt.destination, interrupt.vector))
        detail = f"vector {interrupt.vector:#04x} of processor {interrupt.destination}"
        if handle is None:
            self.spurious += 1
            txn.hop("interrupt", "unclaimed", detail)
            return False
        self.delivered += 1
        txn.hop("interrupt", "interrupt", detail)
        self._allocations[handle].handler()
        return True

    # -- INTx ---------------------------------------------------------------------------------

    def connect_intx(self, function: Function, handler: LevelHandler) -> IntxConnection:
        """Call ``handler(level)`` when the wire of ``function`` rises or falls.

        The wire may be shared: the handler asks its device whether it was the one. It is called at
        once when the wire is high already. :class:`MachineError` without an interrupt pin.
        """
        if not function.config.data[0x3D]:
            raise MachineError(f"{function.bdf} has no INTx pin")
        return IntxConnection(self.line_of(function), handler)

    def root_pin(self, function: Function) -> int:
        """The wire 0 to 3 (INTA to INTD) of the host bridge that the pin ends up on.

        Each bridge turns the pins of what is below it by their device number.
        """
        pin = function.config.data[0x3D] - 1
        device = function.bdf.device
        for bridge in self._wiring.root_path(function):
            pin = (pin + device) % 4
            device = bridge.bdf.device
        return (pin + device) % 4

    def line_of(self, function: Function) -> Line:
        """The wire that the pin of ``function`` drives."""
        path = self._wiring.root_path(function)
        root = path[-1].bdf if path else function.bdf
        key = (root.domain, root.bus, self.root_pin(function))
        return self._lines.setdefault(key, Line())

    # -- allocation ---------------------------------------------------------------------------

    def _take_vectors(self, count: int) -> list[Interrupt]:
        """Free vectors, consecutive and aligned to their number, on one processor."""
        size = _LAST_VECTOR + 1 - _FIRST_VECTOR
        for attempt in range(_DESTINATIONS * size):
            at = (self._next_vector + attempt) % (_DESTINATIONS * size)
            destination, vector = at // size, _FIRST_VECTOR + at % size
            if vector % count or vector + count - 1 > _LAST_VECTOR:
                continue
            if all((destination, vector + i) not in self._by_interrupt for i in range(count)):
                self._next_vector = at + count
                return [Interrupt(destination, vector + i) for i in range(count)]
        raise MachineError("no interrupt vector is free")

    def _take_entries(self, remapper: InterruptRemapper, count: int) -> int:
        used = self._indices.setdefault(id(remapper), set())
        for first in range(0, remapper.count - count + 1, count):
            block = range(first, first + count)
            if used.isdisjoint(block):
                used.update(block)
                return first
        raise MachineError(f"all {remapper.count} interrupt remapping entries are in use")

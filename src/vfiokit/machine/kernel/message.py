"""MSI and MSI-X vectors of an opened function: hardware programming and their eventfds.

Source: Linux ``vfio_pci_intrs.c`` (``vfio_msi_enable``, ``vfio_msi_set_vector_signal``),
``drivers/pci/msi/msi.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.event import Event
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import PciDevice


class Message(NamedTuple):
    """What a function writes to raise an interrupt."""

    address: int
    data: int
    handle: object = None
    """The interrupt system's own; handed back to free it."""


class Interrupts(Protocol):
    """The interrupt side of the machine."""

    def allocate(self, device: PciDevice, handlers: Sequence[Callable[[], None]]) -> list[Message]:
        """A message for each handler; for several, consecutive data at one address (MSI)."""
        ...

    def free(self, messages: Sequence[Message]) -> None:
        """Undo :meth:`allocate`: the messages interrupt nobody any more."""
        ...

    def multiple_msi(self, device: PciDevice) -> bool:
        """Whether several MSI vectors can be had (with interrupt remapping only)."""
        ...

    def connect_intx(self, device: PciDevice, handler: Callable[[bool], None] | None) -> None:
        """Call ``handler`` with the level of the INTx pin when it changes; ``None`` ends that."""
        ...


class MessageVectors:
    """All MSI, or all MSI-X vectors of a function."""

    def __init__(self, device: PciDevice, interrupts: Interrupts, *, msix: bool) -> None:
        self._device = device
        self._interrupts = interrupts
        self._msix = msix
        self._at = device.find_capability(regs.PCI_CAP_ID_MSIX if msix else regs.PCI_CAP_ID_MSI)
        self._messages: dict[int, Message] = {}
        self._events: dict[int, Event] = {}

    @property
    def capacity(self) -> int:
        """Vectors the hardware has."""
        if not self._at:
            return 0
        flags = self._flags
        if self._msix:
            return (flags & regs.PCI_MSIX_FLAGS_QSIZE) + 1
        return 1 << ((flags & regs.PCI_MSI_FLAGS_QMASK) >> 1)

    @property
    def _flags(self) -> int:
        return self._device.read(self._at + regs.PCI_MSIX_FLAGS, 2)

    @_flags.setter
    def _flags(self, value: int) -> None:
        self._device.write(self._at + regs.PCI_MSIX_FLAGS, 2, value)

    # -- requests -----------------------------------------------------------------------------

    def enable(self, count: int) -> int:
        """Allocate vectors 0 to ``count`` - 1, all masked where the hardware can.

        Returns 0, or how many there are when ``count`` cannot be had; nothing is enabled then.
        ERANGE for none.
        """
        if not count:
            raise failure(errno.ERANGE, "no vector was asked for")
        if not self._msix and count > 1 and not self._interrupts.multiple_msi(self._device):
            return 1
        self._allocate(range(count))
        with self._memory_enabled():
            self._program()
        return 0

    def set_block(self, start: int, fds: Sequence[int]) -> None:
        """Connect vectors from ``start`` on to eventfds; -1 removes. All or nothing."""
        done: list[int] = []
        try:
            for vector, fd in enumerate(fds, start):
                done.append(vector)
                self._set_vector(vector, fd)
        except OSError:
            for vector in done:
                self._set_vector(vector, -1)
            raise

    def fire(self, vector: int) -> None:
        """Signal the vector's eventfd as if the device had raised it."""
        event = self._events.get(vector)
        if event is not None:
            event.signal()

    def disable(self) -> None:
        """Disconnect everything, and turn the capability off."""
        for vector in tuple(self._events):
            self._set_vector(vector, -1)
        enable = regs.PCI_MSIX_FLAGS_ENABLE if self._msix else regs.PCI_MSI_FLAGS_ENABLE
        self._flags &= ~enable
        self._device.update(regs.PCI_COMMAND, 2, clear=regs.PCI_COMMAND_INTX_DISABLE)
        self._interrupts.free(list(self._messages.values()))
        self._messages.clear()

    def restore(self) -> None:
        """Program the hardware again, as it was."""
        with self._memory_enabled():
            self._program()

    # -- hardware -----------------------------------------------------------------------------

    def _allocate(self, vectors: Sequence[int]) -> None:
        handlers = [self._handler(vector) for vector in vectors]
        if self._msix:
            made = [self._interrupts.allocate(self._device, [handler])[0] for handler in handlers]
        else:
            made = self._interrupts.allocate(self._device, handlers)
        self._messages.update(zip(vectors, made, strict=True))

    def _handler(self, vector: int) -> Callable[[], None]:
        return lambda: self.fire(vector)

    def _set_vector(self, vector: int, fd: int) -> None:
        known = self._events.pop(vector, None)
        if known is not None:
            known.close()
            self._write_entry(vector, masked=True)
        if fd < 0:
            return
        if vector not in self._messages:
            if not self._msix:
                raise failure(errno.EINVAL, f"MSI vector {vector} was not enabled at first")
            self._allocate([vector])
        self._events[vector] = Event(fd)
        self._write_entry(vector, masked=False)

    def _program(self) -> None:
        """Turn the capability on with every message in place; INTx goes off."""
        self._device.update(regs.PCI_COMMAND, 2, set_bits=regs.PCI_COMMAND_INTX_DISABLE)
        if self._msix:
            mask = regs.PCI_MSIX_FLAGS_MASKALL
            self._flags = self._flags | regs.PCI_MSIX_FLAGS_ENABLE | mask
            for vector in self._messages:
                self._write_entry(vector, masked=vector not in self._events)
            self._flags &= ~mask
            return
        first = self._messages[0]
        flags = self._flags & ~(regs.PCI_MSI_FLAGS_QSIZE | regs.PCI_MSI_FLAGS_ENABLE)
        self._device.write(self._at + regs.PCI_MSI_ADDRESS_LO, 4, first.address & 0xFFFF_FFFF)
        data = regs.PCI_MSI_DATA_32
        if flags & regs.PCI_MSI_FLAGS_64BIT:
            self._device.write(self._at + regs.PCI_MSI_ADDRESS_HI, 4, first.address >> 32)
            data = regs.PCI_MSI_DATA_64
        self._device.write(self._at + data, 2, first.data & 0xFFFF)
        exponent = (len(self._messages) - 1).bit_length()
        self._flags = flags | exponent << 4 | regs.PCI_MSI_FLAGS_ENABLE
        for vector in self._messages:
            self._write_entry(vector, masked=vector not in self._events)

    def _write_entry(self, vector: int, *, masked: bool) -> None:
        """Message and mask bit of one MSI-X entry, or the mask bit of one MSI vector."""
        if not self._msix:
            self._mask_msi(vector, masked=masked)
            return
        table = self._device.read(self._at + regs.PCI_MSIX_TABLE, 4)
        bar, offset = table & 7, (table & ~7) + vector * regs.PCI_MSIX_ENTRY_SIZE
        message = self._messages[vector]
        with self._memory_enabled():
            for place, value in (
                (regs.PCI_MSIX_ENTRY_LOWER_ADDR, message.address & 0xFFFF_FFFF),
                (regs.PCI_MSIX_ENTRY_UPPER_ADDR, message.address >> 32),
                (regs.PCI_MSIX_ENTRY_DATA, message.data),
                (regs.PCI_MSIX_ENTRY_VECTOR_CTRL, int(masked)),
            ):
                self._device.store(bar, offset + place, 4, value)

    def _mask_msi(self, vector: int, *, masked: bool) -> None:
        flags = self._flags
        if not flags & regs.PCI_MSI_FLAGS_MASKBIT:
            return
        at = self._at + (
            regs.PCI_MSI_MASK_64 if flags & regs.PCI_MSI_FLAGS_64BIT else regs.PCI_MSI_MASK_32
        )
        bit = 1 << vector
        self._device.update(at, 4, clear=bit, set_bits=bit if masked else 0)

    @contextmanager
    def _memory_enabled(self) -> Iterator[None]:
        """The table is reachable even while the user turned memory decoding off."""
        before = self._device.read(regs.PCI_COMMAND, 2)
        off = not before & regs.PCI_COMMAND_MEMORY
        if off:
            self._device.update(regs.PCI_COMMAND, 2, set_bits=regs.PCI_COMMAND_MEMORY)
        try:
            yield
        finally:
            if off:
                self._device.update(regs.PCI_COMMAND, 2, clear=regs.PCI_COMMAND_MEMORY)

"""Interrupts that pass the virtual machine by: a device's eventfd raises the guest's vector itself.

KVM calls such an eventfd an irqfd. It needs KVM's own interrupt controllers, so that local APICs
and IOAPIC of :mod:`vfiokit.vmm.irqchip` stay unused then, and pins are not served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vfiokit.vmm.io_apic import INPUTS

if TYPE_CHECKING:
    from vfiokit.vmm.kvm import KvmMachine


class Bypass(Protocol):
    """What can let eventfds interrupt a guest by themselves."""

    def attach(self, eventfd: int, address: int, data: int) -> int:
        """From now on ``eventfd`` sends this message; a handle for :meth:`detach`."""
        ...

    def detach(self, eventfd: int, handle: int) -> None:
        """Stop that; what ``eventfd`` counts is to be read again."""
        ...

    def message(self, address: int, data: int) -> bool:
        """Send one message now; whether a processor took it."""
        ...


class KvmBypass:
    """The irqfds of a KVM machine that has its interrupt controllers in the kernel."""

    def __init__(self, machine: KvmMachine) -> None:
        self._machine = machine
        self._free: list[int] = []
        self._next = INPUTS
        """GSIs below are the IOAPIC's inputs."""

    def attach(self, eventfd: int, address: int, data: int) -> int:
        """Route a free GSI to the message, and let ``eventfd`` raise it."""
        if self._free:
            gsi = self._free.pop()
        else:
            gsi, self._next = self._next, self._next + 1
        self._machine.route_msi(gsi, address, data)
        self._machine.irqfd(eventfd, gsi)
        return gsi

    def detach(self, eventfd: int, handle: int) -> None:
        """Take the irqfd away; its GSI is free for another."""
        self._machine.irqfd(eventfd, handle, remove=True)
        self._free.append(handle)

    def message(self, address: int, data: int) -> bool:
        """``KVM_SIGNAL_MSI``."""
        return self._machine.signal_msi(address, data)

"""Interrupts of an assigned function: the device's eventfds on one side, the guest's on the other.

The guest chooses among INTx, MSI and MSI-X by its capabilities, which are emulated; the device is
switched to match through VFIO. Source: QEMU ``hw/vfio/pci.c`` (``vfio_msix_vector_do_use``,
``vfio_intx_enable``), Linux ``vfio_pci_intrs.c``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from vfiokit.abi import pci_regs as regs
from vfiokit.errors import KernelError
from vfiokit.pci.capability import capabilities
from vfiokit.pci.config import ConfigSpace
from vfiokit.vfio import Device, Vector
from vfiokit.vmm.guest_function import COMMAND_INTX_DISABLE, COMMAND_MEMORY
from vfiokit.vmm.msi import MsiVectors
from vfiokit.vmm.msix import Message, MsixVectors
from vfiokit.vmm.policy import Delivery

if TYPE_CHECKING:
    from vfiokit.vmm.assigned import AssignedFunction
    from vfiokit.vmm.pci_bus import InterruptHost

_MOST_FAILURES = 64


class Mode(Enum):
    """Which interrupts of the device are on."""

    NONE = "none"
    INTX = "intx"
    MSI = "msi"
    MSIX = "msix"


class AssignedInterrupts:
    """All interrupts of one assigned function."""

    def __init__(
        self,
        function: AssignedFunction,
        device: Device,
        snapshot: ConfigSpace,
        delivery: Delivery,
    ) -> None:
        self._function = function
        self._device = device
        self._config = function.config
        self._untouched = delivery is Delivery.UNTOUCHED
        self.mode = Mode.NONE
        self.asserted = False
        """Whether the pin is high for the guest: the device's is masked until its end."""
        self.failures: deque[str] = deque(maxlen=_MOST_FAILURES)
        """What the host refused lately, in words: vectors that it could not give."""
        self.msix: MsixVectors | None = None
        self.msi: MsiVectors | None = None
        self._msix_at = 0
        listed = capabilities(snapshot)
        msix, msi = listed.find(regs.PCI_CAP_ID_MSIX), listed.find(regs.PCI_CAP_ID_MSI)
        if msix is not None:
            self._msix_at = msix.offset
            count = (snapshot.u16(msix.offset + 2) & regs.PCI_MSIX_FLAGS_QSIZE) + 1
            self.msix = MsixVectors(count, self._send, self._use)
            self.msix.on_change = self._route
            self._config.watch(msix.offset + 2, 2, self._msix_written)
        if msi is not None:
            self.msi = MsiVectors(self._config, msi, self._send, self._msi_changed)
        self._watched: dict[int, Vector] = {}
        self._routed: dict[int, tuple[int, int, Message]] = {}
        """Vectors that pass the machine by: eventfd, handle, message."""

    @property
    def _host(self) -> InterruptHost | None:
        bus = self._function.bus
        return None if bus is None else bus.host

    # -- modes --------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the pin's interrupts, as long as the guest asked for no messages."""
        if self.mode is not Mode.NONE or not self._device.intx.count or self._host is None:
            return
        with self._noting():
            (vector,) = self._device.intx.enable()
            self.mode = Mode.INTX
            self._watch(vector, self._pin_raised)

    def stop(self) -> None:
        """Take no interrupts at all."""
        self._lower()
        self._forget_watches()
        mode, self.mode = self.mode, Mode.NONE
        if self._device.closed:
            return
        with self._noting():
            if mode is Mode.INTX:
                self._device.intx.disable()
            elif mode is Mode.MSI:
                self._device.msi.disable()
            elif mode is Mode.MSIX:
                self._device.msix.disable()

    def reset(self) -> None:
        """As after power-on: no messages."""
        self.stop()
        if self.msix is not None:
            self.msix.reset()
            control = self._config.get(self._msix_at + 2, 2)
            self._config.set(self._msix_at + 2, 2, control & regs.PCI_MSIX_FLAGS_QSIZE)
        if self.msi is not None:
            self.msi.reset()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """What the guest does must not end the machine: a refusal of the host is noted."""
        try:
            yield
        except KernelError as error:
            self.failures.append(str(error))

    def _watch(self, vector: Vector, action: Callable[[], None]) -> None:
        fd = vector.fileno()
        self._watched[fd] = vector

        def signalled() -> None:
            if vector.poll():
                action()

        if self._host is not None:
            self._host.watch(fd, signalled)

    def _send(self, vector: int, message: Message) -> None:
        del vector
        if self._host is not None:
            self._host.message(self._function, message.address, message.data)

    # -- MSI-X --------------------------------------------------------------------------------

    def _msix_written(self, offset: int, width: int) -> None:
        del offset, width
        control = self._config.get(self._msix_at + 2, 2)
        self._set_msix(
            enabled=bool(control & regs.PCI_MSIX_FLAGS_ENABLE),
            function_masked=bool(control & regs.PCI_MSIX_FLAGS_MASKALL),
        )

    def _set_msix(self, *, enabled: bool, function_masked: bool) -> None:
        assert self.msix is not None
        if enabled and self.mode is not Mode.MSIX:
            self.stop()
            self.mode = Mode.MSIX
            if self._untouched:
                self._hand_over()
        pending = self.msix.pending
        self.msix.set_control(enabled=enabled, function_masked=function_masked)
        if enabled and not self._device.msix.vectors:
            # The device must be in its MSI-X mode even while the guest masks everything.
            self._enable_vectors(0, 1)
        if not enabled and self.mode is Mode.MSIX:
            self.stop()
            self.start()
        if pending != self.msix.pending:
            self._function.update_decoding()

    def _hand_over(self) -> None:
        """Switch MSI-X on, and leave in the table what the guest wrote there before.

        The kernel writes messages of its own when it enables vectors.
        """
        place = self._function.msix_place
        assert place is not None
        if not self._function.command & COMMAND_MEMORY:
            self._enable_vectors(0, self._device.msix.count)
            return
        window = self._device.region(place.table.bar).map()
        offsets = range(place.table.offset, place.table.offset + place.table.length, 4)
        before = [window.read32(offset) for offset in offsets]
        self._enable_vectors(0, self._device.msix.count)
        for offset, value in zip(offsets, before, strict=True):
            window.write32(offset, value)
        window.close()

    def _use(self, vector: int) -> None:
        """The guest unmasked ``vector``: let the device have it."""
        if self.mode is not Mode.MSIX or vector in self._device.msix.vectors:
            return
        msix = self._device.msix
        if msix.resizable or not msix.vectors:
            self._enable_vectors(vector, 1)
            return
        # Vectors cannot be added one by one: take what came, then enable more of them.
        highest = max(vector, *msix.vectors)
        for number, active in msix.vectors.items():
            if active.poll() and self.msix is not None:
                self.msix.fire(number)
        self._forget_watches()
        with self._noting():
            msix.disable()
        self._enable_vectors(0, highest + 1)

    def _enable_vectors(self, start: int, count: int) -> None:
        with self._noting():
            made = self._device.msix.enable(count, start=start)
            for number, vector in enumerate(made, start):
                self._watch(vector, partial(self._msix_raised, number))

    def _route(self, number: int) -> None:
        """Let the eventfd of an unmasked vector pass the machine by, where something can."""
        assert self.msix is not None
        host = self._host
        if host is None or host.bypass is None:
            return
        vector = self._device.msix.vectors.get(number) if self.mode is Mode.MSIX else None
        wanted = None if vector is None or self.msix.masked(number) else self.msix.message(number)
        routed = self._routed.get(number)
        if routed is not None and routed[2] != wanted:
            self._unroute(number)
            if vector is not None:
                self._watch(vector, partial(self._msix_raised, number))
        if vector is not None and wanted is not None and number not in self._routed:
            fd = vector.fileno()
            host.unwatch(fd)
            self._watched.pop(fd, None)
            self._routed[number] = (fd, host.bypass.attach(fd, *wanted), wanted)

    def _unroute(self, number: int) -> None:
        fd, handle, _message = self._routed.pop(number)
        if self._host is not None and self._host.bypass is not None:
            self._host.bypass.detach(fd, handle)

    def _forget_watches(self) -> None:
        for number in tuple(self._routed):
            self._unroute(number)
        for fd in self._watched:
            if self._host is not None:
                self._host.unwatch(fd)
        self._watched.clear()

    def _msix_raised(self, vector: int) -> None:
        assert self.msix is not None
        pending = self.msix.pending
        self.msix.fire(vector)
        if bool(pending) != bool(self.msix.pending):
            self._function.update_decoding()

    # -- MSI ----------------------------------------------------------------------------------

    def _msi_changed(self) -> None:
        assert self.msi is not None
        if not self.msi.enabled:
            if self.mode is Mode.MSI:
                self.stop()
                self.start()
            return
        if self.mode is Mode.MSIX:
            return  # a function that enables both is in error; MSI-X stays
        self.stop()
        self.mode = Mode.MSI
        with self._noting():
            made = self._device.msi.enable(min(self.msi.count, self._device.msi.count))
            for number, vector in enumerate(made):
                self._watch(vector, partial(self.msi.fire, number))

    # -- the pin ------------------------------------------------------------------------------

    def _pin_raised(self) -> None:
        """The kernel masked the pin and signalled it."""
        self.asserted = True
        if self._host is not None:
            self._host.line(self._function, True)

    def end_of_interrupt(self) -> None:
        """The guest finished with the interrupt that the pin went to: unmask the device's.

        If the device still asserts it, the kernel signals at once again.
        """
        if not self.asserted:
            return
        self._lower()
        if not self._device.closed:
            with self._noting():
                self._device.intx.unmask()

    def _lower(self) -> None:
        if self.asserted:
            self.asserted = False
            if self._host is not None:
                self._host.line(self._function, False)

    def command_written(self, offset: int, width: int) -> None:
        """The guest may have disabled the pin; the kernel masks and unmasks it by itself."""
        del offset, width
        if self._function.command & COMMAND_INTX_DISABLE:
            self._lower()

    def take_raised(self) -> tuple[Mode, list[int]]:
        """Vectors that signalled and were not looked at yet."""
        active = {
            Mode.MSIX: self._device.msix.vectors,
            Mode.MSI: self._device.msi.vectors,
        }.get(self.mode, {})
        return self.mode, [number for number, vector in active.items() if vector.poll()]

    def raise_again(self, raised: tuple[Mode, list[int]]) -> None:
        """Deliver what :meth:`take_raised` found. The pin needs none: it is a level."""
        mode, vectors = raised
        if mode is not self.mode:
            return
        for vector in vectors:
            if mode is Mode.MSIX:
                self._msix_raised(vector)
            elif self.msi is not None:
                self.msi.fire(vector)

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it as plain data; what the eventfds hold must have been taken before."""
        return {
            "mode": self.mode.value,
            "asserted": self.asserted,
            "msix": None if self.msix is None else self.msix.state(),
            "msi": None if self.msi is None else self.msi.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; configuration space was loaded before.

        Nothing of the device may be on (:meth:`stop`).
        """
        if self.msix is not None and state["msix"] is not None:
            if state["msix"]["enabled"]:
                self.mode = Mode.MSIX
            self.msix.load(state["msix"])
            if self.mode is Mode.MSIX and not self._device.msix.vectors:
                self._enable_vectors(0, 1)
        if self.msi is not None and state["msi"] is not None:
            self.msi.load(state["msi"])
        self.start()
        if state["asserted"] and self.mode is Mode.INTX:
            # The end of that interrupt will unmask the pin, and it is raised anew if need be.
            self._device.intx.mask()
            self._pin_raised()

    def adopt(self, state: dict[str, Any]) -> None:
        """As :meth:`load`, with the device's interrupts left on as they are where that fits."""
        active = len(self._device.msi.vectors)
        fits = self.msi is None or active in (0, min(self.msi.count, self._device.msi.count))
        if self.mode.value != state["mode"] or not fits:
            self.stop()
            self.load(state)
            return
        if self.msix is not None and state["msix"] is not None:
            self.msix.load(state["msix"])
        if self.mode is not Mode.INTX:
            return
        if state["asserted"] and not self.asserted:
            self._device.intx.mask()
            self._pin_raised()
        elif self.asserted and not state["asserted"]:
            self.end_of_interrupt()  # if the pin is still high, the kernel signals it anew

"""A virtio device on a guest's PCI bus: the modern transport, without anything of the legacy one.

Source: Virtual I/O Device (VIRTIO) Version 1.2 §2.1 (status), §2.2 (features), §4.1 (PCI).
A driver that breaks a rule of the queues sees Device Needs Reset in the status, and the device does
nothing more until it is reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import IntFlag
from typing import Any, Protocol

from vfiokit.pci.address import Bdf
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.guest_function import (
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    GuestBar,
    GuestFunction,
    Placed,
)
from vfiokit.vmm.msix import Message, MsixVectors, PendingBits
from vfiokit.vmm.trap_map import Wish
from vfiokit.vmm.virtio_config import (
    COMMON_SIZE,
    MSIX_BAR,
    MSIX_CONTROL,
    PENDING_AT,
    REGISTER_BAR,
    REGISTER_SIZE,
    ConfigWindow,
    Part,
    build_config,
)
from vfiokit.vmm.virtio_queue import Chain, Dma, QueueError, SplitQueue

NO_VECTOR = 0xFFFF
VERSION_1 = 1 << 32
INDIRECT_DESCRIPTORS = 1 << 28
_NOTIFY_STEP = 4


class Status(IntFlag):
    """Bits of the device status."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class InterruptReason(IntFlag):
    """Bits of the ISR status; reading clears them."""

    QUEUE = 1
    CONFIGURATION = 2


class VirtioDevice(Protocol):
    """What a kind of device adds to the transport."""

    @property
    def device_type(self) -> int:
        """The virtio device type."""
        ...

    @property
    def features(self) -> int:
        """Feature bits of its own."""
        ...

    @property
    def queue_sizes(self) -> Sequence[int]:
        """Entries of each queue, at most."""
        ...

    def configuration(self) -> bytes:
        """Its configuration registers, read-only, of constant length."""
        ...

    def serve(self, index: int, queue: SplitQueue, chain: Chain) -> int:
        """Carry out one request of queue ``index``; bytes written. May raise
        :class:`QueueError`.
        """
        ...

    def reset(self) -> None:
        """The driver reset the device."""
        ...


class VirtioFunction(GuestFunction):
    """A function on the guest's bus that ``device`` is behind."""

    def __init__(self, bdf: Bdf, memory: Dma, device: VirtioDevice, *, name: str = "") -> None:
        self._memory = memory
        self.device = device
        window = ConfigWindow(lambda: self)
        size = len(device.configuration())
        count = 1 + len(device.queue_sizes)
        config = GuestConfig(build_config(device.device_type, count, size), window)
        super().__init__(
            bdf,
            config,
            (
                GuestBar(REGISTER_BAR, REGISTER_SIZE, handler=_Registers(self)),
                GuestBar(MSIX_BAR, 0x1000, handler=_MsixBar(self)),
            ),
        )
        self.name = name or f"virtio {bdf}"
        config.allow(0x04, 2, 0x0406 | 0x0040)
        config.allow(0x3C, 1, 0xFF)
        config.allow(MSIX_CONTROL, 2, 0xC000)
        config.watch(MSIX_CONTROL, 2, self._msix_control_written)
        window.declare(config)
        self.msix = MsixVectors(count, self._send, lambda _vector: None)
        self.queues = tuple(SplitQueue(memory, each) for each in device.queue_sizes)
        self.failure = ""
        """Why the device needs a reset, in words; for who runs the machine, not for the guest."""
        self.generation = 0
        """Grows when the configuration registers changed."""
        self._clear()

    def _clear(self) -> None:
        self.status = Status(0)
        self.driver_features = 0
        self._device_select = self._driver_select = self._queue_select = 0
        self._config_vector = NO_VECTOR
        self._reasons = InterruptReason(0)

    @property
    def offered(self) -> int:
        """Feature bits that the driver may choose from."""
        return VERSION_1 | INDIRECT_DESCRIPTORS | self.device.features

    def wishes(self, placed: Placed) -> Iterator[Wish]:
        """Its registers trap, and count apart from those of assigned functions."""
        for wish in super().wishes(placed):
            yield replace(wish, counter="virtio")

    # -- status -------------------------------------------------------------------------------

    def reset_device(self) -> None:
        """The driver wrote 0 to the status."""
        for queue in self.queues:
            queue.reset()
        self._clear()
        self.failure = ""
        self.device.reset()
        self._update_line()

    def reset(self) -> None:
        """A reset of the function: registers, BARs, vectors."""
        self.reset_device()
        self.msix.reset()
        self.config.set(MSIX_CONTROL, 2, self.config.get(MSIX_CONTROL, 2) & 0x7FF)
        super().reset()

    def _set_status(self, value: int) -> None:
        if not value:
            self.reset_device()
            return
        wanted = Status(value & 0x8F) | self.status
        if wanted & Status.FEATURES_OK and not self.status & Status.FEATURES_OK:
            known = not self.driver_features & ~self.offered
            if not known or not self.driver_features & VERSION_1:
                wanted &= ~Status.FEATURES_OK
            else:
                for queue in self.queues:
                    queue.indirect = bool(self.driver_features & INDIRECT_DESCRIPTORS)
        if not wanted & Status.FEATURES_OK:
            wanted &= ~Status.DRIVER_OK
        self.status = wanted

    def break_down(self, why: str) -> None:
        """The driver broke a rule: nothing more until it resets the device."""
        self.failure = why
        started = self.status & Status.DRIVER_OK
        self.status |= Status.NEEDS_RESET
        if started:
            self._interrupt(InterruptReason.CONFIGURATION, self._config_vector)

    def configuration_changed(self) -> None:
        """The device's configuration registers read otherwise from now on."""
        self.generation = self.generation + 1 & 0xFF
        if self.status & Status.DRIVER_OK:
            self._interrupt(InterruptReason.CONFIGURATION, self._config_vector)

    # -- queues -------------------------------------------------------------------------------

    def notify(self, index: int) -> None:
        """The driver says that queue ``index`` has something; lost while that cannot be."""
        if index >= len(self.queues) or not self.queues[index].setup.enabled:
            return
        running = self.status & Status.DRIVER_OK and not self.status & Status.NEEDS_RESET
        if not running or not self.command & COMMAND_MASTER:
            return
        queue, used = self.queues[index], False
        try:
            for chain in queue.pending():
                queue.use(chain, self.device.serve(index, queue, chain))
                used = True
        except QueueError as error:
            self.break_down(str(error))
        if used and queue.wants_interrupt:
            self._interrupt(InterruptReason.QUEUE, queue.setup.vector)

    def _enable_queue(self, queue: SplitQueue) -> None:
        if queue.setup.enabled or not self.status & Status.FEATURES_OK:
            return
        try:
            queue.check()
        except QueueError as error:
            self.break_down(str(error))
            return
        queue.setup.enabled = True

    # -- interrupts ---------------------------------------------------------------------------

    def _interrupt(self, reason: InterruptReason, vector: int) -> None:
        if self.msix.enabled:
            if vector < self.msix.count:
                self.msix.fire(vector)
            return
        self._reasons |= reason
        self._update_line()

    def _send(self, vector: int, message: Message) -> None:
        del vector
        if self.bus is not None and self.bus.host is not None and self.command & COMMAND_MASTER:
            self.bus.host.message(self, message.address, message.data)

    def _update_line(self) -> None:
        if self.bus is not None and self.bus.host is not None:
            quiet = self.msix.enabled or self.command & COMMAND_INTX_DISABLE
            self.bus.host.line(self, bool(self._reasons) and not quiet)

    def _msix_control_written(self, offset: int, width: int) -> None:
        del offset, width
        control = self.config.get(MSIX_CONTROL, 2)
        self.msix.set_control(
            enabled=bool(control & 0x8000), function_masked=bool(control & 0x4000)
        )
        self._update_line()

    def take_reasons(self) -> int:
        """The ISR status, which the read clears."""
        reasons, self._reasons = self._reasons, InterruptReason(0)
        self._update_line()
        return int(reasons)

    # -- common configuration -----------------------------------------------------------------

    def common(self) -> bytes:
        """The common configuration structure as it reads now."""
        queue = self._queue
        setup = None if queue is None else queue.setup
        features = self.offered >> 32 * self._device_select if self._device_select < 2 else 0
        chosen = self.driver_features >> 32 * self._driver_select if self._driver_select < 2 else 0
        fields = (
            (4, self._device_select),
            (4, features & 0xFFFF_FFFF),
            (4, self._driver_select),
            (4, chosen & 0xFFFF_FFFF),
            (2, self._config_vector),
            (2, len(self.queues)),
            (1, int(self.status)),
            (1, self.generation),
            (2, self._queue_select),
            (2, 0 if setup is None else setup.size),
            (2, NO_VECTOR if setup is None else setup.vector),
            (2, 0 if setup is None else int(setup.enabled)),
            (2, self._queue_select if setup is not None else 0),
            (8, 0 if setup is None else setup.descriptors),
            (8, 0 if setup is None else setup.driver),
            (8, 0 if setup is None else setup.device),
        )
        return b"".join(value.to_bytes(width, "little") for width, value in fields)

    @property
    def _queue(self) -> SplitQueue | None:
        return self.queues[self._queue_select] if self._queue_select < len(self.queues) else None

    def write_common(self, offset: int, width: int, value: int) -> None:
        """A store to the common configuration structure; lost unless it is one whole field."""
        match offset, width:
            case 0, 4:
                self._device_select = value
            case 8, 4:
                self._driver_select = value
            case 12, 4:
                self._choose_features(value)
            case 16, 2:
                self._config_vector = self._vector(value)
            case 20, 1:
                self._set_status(value)
            case 22, 2:
                self._queue_select = value
            case _:
                self._write_queue(offset, width, value)

    def _choose_features(self, value: int) -> None:
        if self._driver_select < 2 and not self.status & Status.FEATURES_OK:
            shift = 32 * self._driver_select
            self.driver_features &= ~(0xFFFF_FFFF << shift)
            self.driver_features |= value << shift

    def _vector(self, value: int) -> int:
        return value if value < self.msix.count else NO_VECTOR

    def _write_queue(self, offset: int, width: int, value: int) -> None:
        queue = self._queue
        if queue is None:
            return
        setup = queue.setup
        if (offset, width) == (26, 2):
            setup.vector = self._vector(value)
        elif (offset, width) == (28, 2) and value == 1:
            self._enable_queue(queue)
        elif setup.enabled:
            return
        elif (offset, width) == (24, 2):
            setup.size = value
        elif 32 <= offset < 56 and width in (4, 8) and not offset % width:
            name = ("descriptors", "driver", "device")[(offset - 32) // 8]
            shift = offset % 8 * 8
            kept = getattr(setup, name) & ~((1 << 8 * width) - 1 << shift)
            setattr(setup, name, kept | value << shift)

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that :meth:`load` needs, as plain data."""
        return {
            **super().state(),
            "status": int(self.status),
            "driver_features": self.driver_features,
            "selects": [self._device_select, self._driver_select, self._queue_select],
            "config_vector": self._config_vector,
            "reasons": int(self._reasons),
            "generation": self.generation,
            "failure": self.failure,
            "queues": [queue.state() for queue in self.queues],
            "msix": self.msix.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described."""
        self.status = Status(state["status"])
        self.driver_features = state["driver_features"]
        self._device_select, self._driver_select, self._queue_select = state["selects"]
        self._config_vector = state["config_vector"]
        self._reasons = InterruptReason(state["reasons"])
        self.generation, self.failure = state["generation"], state["failure"]
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.load(saved)
        super().load(state)
        self.msix.load(state["msix"])
        self._update_line()


class _Registers:
    """Handler of the BAR with the structures of the transport."""

    def __init__(self, function: VirtioFunction) -> None:
        self._function = function

    def read(self, offset: int, width: int) -> int:
        """A load."""
        function = self._function
        if offset < Part.ISR:
            data = function.common()
        elif offset < Part.DEVICE:
            return function.take_reasons() if offset == Part.ISR else 0
        elif offset < Part.NOTIFY:
            offset, data = offset - Part.DEVICE, function.device.configuration()
        else:
            data = b""
        return int.from_bytes(data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A store."""
        if offset < COMMON_SIZE:
            self._function.write_common(offset, width, value)
        elif offset >= Part.NOTIFY and width >= 2 and not offset % _NOTIFY_STEP:
            self._function.notify((offset - Part.NOTIFY) // _NOTIFY_STEP)


class _MsixBar:
    """Handler of the BAR with the MSI-X table and the pending bits."""

    def __init__(self, function: VirtioFunction) -> None:
        self._function = function

    def read(self, offset: int, width: int) -> int:
        """A load."""
        vectors = self._function.msix
        if offset < PENDING_AT:
            return vectors.read(offset, width)
        return PendingBits(vectors).read(offset - PENDING_AT, width) & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """A store; beyond the table it is lost."""
        vectors = self._function.msix
        if offset + width <= 16 * vectors.count:
            vectors.write(offset, width, value)

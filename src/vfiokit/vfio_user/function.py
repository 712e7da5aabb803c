"""The software machine's device models, served: what stands between a model and its client.

A model's DMA goes to the client's memory, its MSI and MSI-X vectors to the client's eventfds. The
MSI-X table stays with the client, which never writes it over the socket; giving eventfds is what
enables MSI or MSI-X in configuration space, as the kernel does it for a real device.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.errors import VfiokitError
from vfiokit.kernel import linux
from vfiokit.machine.function import COMMAND, COMMAND_INTX_DISABLE, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.machine.txn import Completion, DmaError, Kind, Txn
from vfiokit.vfio_user.connection import close_all
from vfiokit.vfio_user.device import NUM_IRQS, Doorbell, Host, ServedRegion
from vfiokit.vfio_user.dma import DmaFault
from vfiokit.vfio_user.payload import IoFd, SparseArea

_CONFIG = abi.VFIO_PCI_CONFIG_REGION_INDEX
_INTX, _MSI, _MSIX = 0, 1, 2
_MSIX_ENABLE = 0x8000
_MSI_ENABLE = 0x0001
_STATUS = 0x06
_STATUS_INTERRUPT = 0x08
_STATUS_BYTES = (0x06, 0x07)
_DATAMATCH = 1
"""``KVM_IOEVENTFD_FLAG_DATAMATCH`` of Linux ``include/uapi/linux/kvm.h``."""


class _HostDma:
    """The model's way to its client's memory; it obeys the bus master bit as a bus does."""

    def __init__(self, function: Function, host: Host) -> None:
        self._function = function
        self._host = host

    def read(self, iova: int, length: int) -> bytes:
        """Read, or :class:`DmaError`."""
        try:
            if self._function.bus_master:
                return self._host.dma_read(iova, length)
        except DmaFault:
            pass
        txn = Txn(Kind.READ, iova, length, self._function.requester_id)
        raise DmaError(txn, Completion.UNSUPPORTED_REQUEST)

    def read_into(self, iova: int, buffer: memoryview) -> None:
        """Read into a buffer, or :class:`DmaError`."""
        buffer[:] = self.read(iova, len(buffer))

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """A posted write: nothing tells the model how it ended."""
        if not self._function.bus_master:
            return
        try:
            self._host.dma_write(iova, data)
        except DmaFault:
            return


class _Gone:
    """The host of a model whose client is not there."""

    def dma_read(self, iova: int, length: int) -> bytes:
        """Nothing is mapped."""
        raise DmaFault("read", iova, length, "there is no client")

    def dma_write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Nothing is mapped."""
        raise DmaFault("write", iova, len(data), "there is no client")

    def signal(self, index: int, vector: int) -> bool:
        """Nobody listens."""
        del index, vector
        return False

    def set_intx(self, level: bool) -> None:
        """Nobody listens."""


class _HostPin:
    """The model's interrupt pin; asserted or not, it outlives its clients."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._asserted = False
        self.host: Host | None = None
        function.config.watch(COMMAND, 2, lambda _offset, _width: self.drive(), hardware=True)

    def set(self, level: bool) -> None:
        """Assert or deassert; the Interrupt Status bit follows, by which a guest knows its own."""
        self._asserted = level
        status = self._function.config.data[_STATUS] & ~_STATUS_INTERRUPT
        self._function.config.data[_STATUS] = status | (_STATUS_INTERRUPT if level else 0)
        self.drive()

    def drive(self) -> None:
        """Tell the client, according to the pin and the Interrupt Disable bit."""
        if self.host is not None:
            disabled = self._function.command & COMMAND_INTX_DISABLE
            self.host.set_intx(self._asserted and not disabled)


class SharedBytes(NamedTuple):
    """The first ``length`` bytes of a BAR, in a file."""

    fd: int
    length: int


class FunctionDevice:
    """A :class:`~vfiokit.machine.function.Function` as a server serves it.

    ``shared`` are the BARs whose bytes, or part of them, are in files that a client may map; each
    access that comes as a message is still a call of the model. ``doorbells`` are registers that a
    client's kernel may write by eventfd.
    """

    def __init__(
        self,
        function: Function,
        *,
        shared: Mapping[int, SharedBytes] | None = None,
        doorbells: Sequence[Doorbell] = (),
    ) -> None:
        self.function = function
        self._doorbells = tuple(doorbells)
        self.held = contextlib.ExitStack()
        """Files that are the device's, for :meth:`close`."""
        self.movable = hasattr(function, "state") and hasattr(function, "load")
        """Whether the model can be moved to another server."""
        self._eventfds: dict[int, list[int]] = {}
        self._pin = function.intx = _HostPin(function)
        self.name = type(function).__name__.removesuffix("Function").lower()
        msix = function.msix
        self._plain = [1 << 64] * abi.VFIO_PCI_NUM_REGIONS
        """Below which offset of a region there is no MSI-X table: the model's own registers."""
        if msix is not None:
            for index, start in (
                (msix.table_bar, msix.table_offset),
                (msix.pending_bar, msix.pending_offset),
            ):
                self._plain[index] = min(self._plain[index], start)
        regions = [ServedRegion() for _ in range(abi.VFIO_PCI_NUM_REGIONS)]
        for bar in function.bars.values():
            regions[bar.index] = _served(bar.size, (shared or {}).get(bar.index))
        regions[_CONFIG] = ServedRegion(len(function.config))
        self.regions = tuple(regions)
        counts = [0] * NUM_IRQS
        counts[_INTX] = int(bool(function.config.read(0x3D, 1)))
        counts[_MSI] = function.msi.count if function.msi is not None else 0
        counts[_MSIX] = function.msix.count if function.msix is not None else 0
        counts[abi.VFIO_PCI_ERR_IRQ_INDEX] = counts[abi.VFIO_PCI_REQ_IRQ_INDEX] = 1
        self.irq_counts = tuple(counts)

    # -- client -------------------------------------------------------------------------------

    def connect(self, host: Host) -> None:
        """Send DMA and interrupts to ``host``."""
        function = self.function
        function.dma = _HostDma(function, host)
        self._pin.host = host
        self._pin.drive()
        if function.msi is not None:
            function.msi.sink = lambda vector: _drop(host.signal(_MSI, vector))
        if function.msix is not None:
            function.msix.sink = lambda vector: _drop(host.signal(_MSIX, vector))

    def disconnect(self) -> None:
        """DMA and interrupts lead nowhere; what the model is doing comes to nothing."""
        function = self.function
        function.dma, self._pin.host = _HostDma(function, _Gone()), None
        for index in (_MSI, _MSIX):
            self.irqs_changed(index, frozenset())
        for table in (function.msi, function.msix):
            if table is not None:
                table.sink = None
        while self._eventfds:
            close_all(self._eventfds.popitem()[1])

    def irqs_changed(self, index: int, vectors: frozenset[int]) -> None:
        """Enable MSI or MSI-X with the first eventfd, disable it with the last."""
        function = self.function
        table = {_MSI: function.msi, _MSIX: function.msix}.get(index)
        if table is None:
            return
        bit = _MSI_ENABLE if index == _MSI else _MSIX_ENABLE
        control = function.config.read(table.offset + 2, 2)
        wanted = control | bit if vectors else control & ~bit
        if index == _MSI and vectors:
            granted = (max(vectors) + 1 - 1).bit_length()
            wanted = wanted & ~0x70 | granted << 4
        if wanted != control:
            function.config_write(table.offset + 2, 2, wanted)
            self._settle()

    def close(self) -> None:
        """Close the files behind the device. Idempotent."""
        self.held.close()

    # -- accesses -----------------------------------------------------------------------------

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        """One access of the model for each naturally aligned piece of up to 8 bytes."""
        function = self.function
        if region == _CONFIG:
            return bytes(function.config.data[offset : offset + length])
        if length in (4, 8) and not offset % length:
            load = function.mmio_read if offset < self._plain[region] else self._load
            data = load(region, offset, length).to_bytes(length, "little")
        else:
            data = b"".join(
                self._load(region, at, width).to_bytes(width, "little")
                for at, width in _pieces(offset, length)
            )
        if function.clock.pending:
            function.clock.settle()
        return data

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """One access of the model for each naturally aligned piece."""
        length = len(data)
        if length == 4 and not offset % 4 and region != _CONFIG:
            store = self.function.mmio_write if offset < self._plain[region] else self._store
            store(region, offset, 4, int.from_bytes(data, "little"))
            if self.function.clock.pending:
                self.function.clock.settle()
            return
        most = 4 if region == _CONFIG else 8
        for at, width in _pieces(offset, length, most):
            value = int.from_bytes(data[at - offset : at - offset + width], "little")
            if region == _CONFIG:
                self.function.config_write(at, width, value)
            else:
                self._store(region, at, width, value)
        self._settle()

    # A region answers whatever the memory enable bit says: decoding is the client's to emulate.

    def _load(self, bar: int, offset: int, width: int) -> int:
        table = self.function.msix
        if table is not None and table.covers(bar, offset):
            return table.read(bar, offset, width)
        return self.function.mmio_read(bar, offset, width)

    def _store(self, bar: int, offset: int, width: int, value: int) -> None:
        table = self.function.msix
        if table is not None and table.covers(bar, offset):
            table.write(bar, offset, width, value)
        else:
            self.function.mmio_write(bar, offset, width, value)

    def reset(self) -> None:
        """A function-level reset; configuration space is then restored, as the kernel does it.

        Source: Linux ``pci_try_reset_function`` (save, reset, restore).
        """
        config = self.function.config
        saved = bytes(config.data)
        self.function.reset(ResetKind.FUNCTION_LEVEL)
        for at in (*range(0x10, 0x28, 4), 0x04, *self._message_controls()):
            config.write(at, 2 if at not in range(0x10, 0x28) else 4, _word(saved, at))
        self._settle()

    def _message_controls(self) -> tuple[int, ...]:
        """Where the message control registers of MSI and MSI-X are."""
        tables = (self.function.msi, self.function.msix)
        return tuple(table.offset + 2 for table in tables if table is not None)

    def _settle(self) -> None:
        self.function.clock.settle()

    # -- doorbells ----------------------------------------------------------------------------

    def io_fds(self, region: int) -> list[IoFd]:
        """An entry for each doorbell of ``region``."""
        found = [doorbell for doorbell in self._doorbells if doorbell.region == region]
        return [
            IoFd(
                doorbell.offset,
                doorbell.width,
                number,
                flags=0 if doorbell.value is None else _DATAMATCH,
                datamatch=doorbell.value or 0,
            )
            for number, doorbell in enumerate(found)
        ]

    def doorbell_fds(self, region: int) -> list[int]:
        """Their eventfds, made for this client."""
        fds = self._eventfds.setdefault(region, [])
        while len(fds) < len(self.io_fds(region)):
            fds.append(linux.eventfd())
        return fds

    def rung(self, region: int, number: int) -> None:
        """The register was written; several writes at once count as one."""
        doorbell = [each for each in self._doorbells if each.region == region][number]
        self._store(region, doorbell.offset, doorbell.width, doorbell.value or 0)
        self._settle()

    # -- state --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Finish what is under way, then put off whatever the model would do by itself."""
        self._settle()
        self.function.clock.auto = False

    def resume(self) -> None:
        """Go on, with what was put off first."""
        self.function.clock.auto = True
        self._settle()

    def state(self) -> dict[str, Any]:
        """Configuration space, MSI-X table, and what the model has of its own."""
        table = self.function.msix
        return {
            "config": bytes(self.function.config.data),
            "msix": b"" if table is None else bytes(table.table),
            "model": self.function.state(),  # type: ignore[attr-defined]
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; ``OSError`` EINVAL for another device's state."""
        config, table = self.function.config, self.function.msix
        data, entries = state["config"], state["msix"]
        size = 0 if table is None else table.table_size
        if not isinstance(data, bytes) or len(data) != len(config):
            raise OSError(errno.EINVAL, "a state with another configuration space")
        if not isinstance(entries, bytes) or len(entries) != size:
            raise OSError(errno.EINVAL, "a state with another MSI-X table")
        for at, (old, new) in enumerate(zip(config.data, data, strict=True)):
            fixed = 0 if at in _STATUS_BYTES else ~(config.write_mask[at] | config.clear_mask[at])
            if (old ^ new) & fixed & 0xFF:
                raise OSError(errno.EINVAL, f"a state whose configuration space differs at {at:#x}")
        config.data[:] = data
        if table is not None:
            table.table[:] = entries
        try:
            self.function.load(state["model"])  # type: ignore[attr-defined]
        except VfiokitError as error:
            raise OSError(errno.EINVAL, str(error)) from None


def _served(size: int, shared: SharedBytes | None) -> ServedRegion:
    if shared is None:
        return ServedRegion(size)
    return ServedRegion(size, areas=(SparseArea(0, shared.length),), fd=shared.fd)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + (4 if 0x10 <= at < 0x28 else 2)], "little")


def _drop(_done: bool) -> None:
    """A vector without an eventfd goes nowhere."""


def _pieces(offset: int, length: int, most: int = 8) -> list[tuple[int, int]]:
    """Naturally aligned pieces of 1, 2, 4 or 8 bytes that make up the range."""
    found = []
    at, end = offset, offset + length
    while at < end:
        width = most
        while at % width or at + width > end:
            width >>= 1
        found.append((at, width))
        at += width
    return found

"""The NVMe controller as a PCI function: BARs, configuration space, reset."""

from __future__ import annotations

import hashlib
from typing import Any

from vfiokit.errors import MachineError
from vfiokit.machine.build import MsixLayout, endpoint_config
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.device.nvme import snapshot
from vfiokit.machine.device.nvme.backing import BlockStore, MemoryStore
from vfiokit.machine.device.nvme.controller import Controller, Limits
from vfiokit.machine.device.nvme.identify import Identity
from vfiokit.machine.device.nvme.membuffer import MemoryBuffer
from vfiokit.machine.device.nvme.namespace import Namespace
from vfiokit.machine.device.nvme.registers import DOORBELLS
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

NVME_CLASS = 0x010802
VERSION_1_4 = 0x00010400
_REGISTER_BAR = 0
_BUFFER_BAR = 2
_DEFAULT_CAPACITY = 1 << 30
_PAGE = 4096


class NvmeFunction(Function):
    """An NVMe controller with namespace 1.

    ``config`` and ``bars`` may come from a captured device: where its MSI-X table and pending bits
    are is read from its capability. :meth:`synthetic` makes both from scratch.

    ``backing`` holds the blocks; by default sparse memory of ``capacity`` bytes, which costs
    nothing until it is written. ``block_size`` is 512 to 65536, ``mdts`` the largest transfer as
    ``2 ** mdts`` pages of 4 KiB. Without ``limits`` there is one I/O queue pair per interrupt
    vector beyond the first, and at least one. ``cmb_size`` bytes at the start of BAR ``cmb_bar``
    are a Controller Memory Buffer, in ``cmb_memory`` where that is given.

    Raises :class:`MachineError` if BAR 0 cannot hold the registers, and
    :class:`~vfiokit.errors.UsageError` for texts and sizes that Identify cannot express.
    """

    def __init__(
        self,
        bdf: Bdf,
        config: ConfigModel,
        bars: tuple[BarModel, ...],
        *,
        backing: BlockStore | None = None,
        capacity: int = _DEFAULT_CAPACITY,
        block_size: int = 512,
        model: str = "vfiokit NVMe",
        serial: str | None = None,
        firmware: str = "1.0",
        mdts: int = 7,
        limits: Limits | None = None,
        cmb_size: int = 0,
        cmb_bar: int = 2,
        cmb_memory: memoryview | None = None,
    ) -> None:
        super().__init__(bdf, config, bars)
        if block_size & block_size - 1:
            raise MachineError(f"a logical block of {block_size} bytes is not a power of two")
        vectors = self.msix.count if self.msix is not None else 1
        self.limits = limits or Limits(queue_pairs=min(max(vectors - 1, 1), 128))
        self._buffer = MemoryBuffer(cmb_size, cmb_bar, cmb_memory) if cmb_size else None
        self._check_bars()
        self.block_shift = block_size.bit_length() - 1
        identity = Identity(
            vendor_id=config.read(0x00, 2),
            subsystem_vendor_id=config.read(0x2C, 2),
            model=model,
            serial=_serial_of(bdf) if serial is None else serial,
            firmware=firmware,
            version=VERSION_1_4,
            mdts=mdts,
            block_shift=self.block_shift,
        )
        store = MemoryStore(capacity) if backing is None else backing
        self.controller = Controller(
            self, identity, Namespace(store, self.block_shift), self.limits, self._buffer
        )
        for capability in (self.msi, self.msix):
            if capability is not None:
                config.watch(capability.offset + 2, 2, self._interrupt_mode_changed)

    @classmethod
    def synthetic(
        cls,
        bdf: Bdf,
        *,
        vendor_id: int = 0x1B36,
        device_id: int = 0x0010,
        vectors: int | None = 17,
        msi: int | None = 1,
        backing: BlockStore | None = None,
        capacity: int = _DEFAULT_CAPACITY,
        block_size: int = 512,
        model: str = "vfiokit NVMe",
        serial: str | None = None,
        firmware: str = "1.0",
        mdts: int = 7,
        limits: Limits | None = None,
        cmb_size: int = 0,
        cmb_memory: memoryview | None = None,
    ) -> NvmeFunction:
        """A controller with a configuration space of its own: PCIe endpoint with FLR.

        ``vectors`` are MSI-X vectors and ``msi`` MSI vectors; ``None`` leaves the capability out.
        Other arguments as for the class.
        """
        limits = limits or Limits(queue_pairs=min(max((vectors or 2) - 1, 1), 128))
        table = _round_up(DOORBELLS + limits.doorbell_size, _PAGE)
        pending = _round_up(table + 16 * (vectors or 0), _PAGE)
        size = 1 << (pending + (_PAGE if vectors else 0) - 1).bit_length()
        config = endpoint_config(
            vendor_id,
            device_id,
            NVME_CLASS,
            subsystem_vendor_id=vendor_id,
            subsystem_id=device_id,
            interrupt_pin=1,
            msi=msi,
            msix=None if vectors is None else MsixLayout(vectors, 0, table, pending),
            aer=True,
        )
        bars = [BarModel(_REGISTER_BAR, size, wide=True)]
        if cmb_size:
            window = max(1 << (cmb_size - 1).bit_length(), _PAGE)
            bars.append(BarModel(_BUFFER_BAR, window, wide=True, prefetchable=True))
        return cls(
            bdf,
            config,
            tuple(bars),
            backing=backing,
            capacity=capacity,
            block_size=block_size,
            model=model,
            serial=serial,
            firmware=firmware,
            mdts=mdts,
            limits=limits,
            cmb_size=cmb_size,
            cmb_bar=_BUFFER_BAR,
            cmb_memory=cmb_memory,
        )

    # -- the bus side -------------------------------------------------------------------------

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        """A load from the registers or the memory buffer; elsewhere nothing is, and reads zero."""
        if bar == _REGISTER_BAR:
            return self.controller.mmio_read(offset, width)
        view = self.bar_view(bar, offset, width)
        return 0 if view is None else int.from_bytes(view, "little")

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store to a register, a doorbell or the memory buffer."""
        if bar == _REGISTER_BAR:
            self.controller.mmio_write(offset, width, value)
            return
        view = self.bar_view(bar, offset, width)
        if view is not None:
            view[:] = value.to_bytes(width, "little")

    def bar_view(self, bar: int, offset: int, length: int) -> memoryview | None:
        """The bytes of the Controller Memory Buffer; ``None`` outside it."""
        buffer = self._buffer
        if buffer is None or bar != buffer.bar or offset + length > buffer.size:
            return None
        return buffer.view[offset : offset + length]

    def reset(self, kind: ResetKind) -> None:
        """Every kind returns the controller to its power-on state; the medium keeps its data."""
        super().reset(kind)
        self.controller.power_on()

    # -- what happens around the device -------------------------------------------------------

    def replace_medium(self, backing: BlockStore) -> None:
        """Exchange the blocks under the controller, as enlarging a namespace would; the host is
        told by an event.
        """
        self.controller.replace_namespace(Namespace(backing, self.block_shift))

    def state(self) -> dict[str, Any]:
        """The controller as plain data; without the medium and the configuration space."""
        return snapshot.save(self.controller)

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; the function must be built alike."""
        snapshot.load(self.controller, state)

    def _interrupt_mode_changed(self, offset: int, width: int) -> None:
        del offset, width
        self.controller.interrupts.refresh()

    def _check_bars(self) -> None:
        bar = self.bars.get(_REGISTER_BAR)
        needed = DOORBELLS + self.limits.doorbell_size
        if bar is None or not bar.memory or bar.size < needed:
            raise MachineError(
                f"{self.bdf}: an NVMe controller with {self.limits.queue_pairs} I/O queue pairs "
                f"needs a memory BAR 0 of at least {needed:#x} bytes"
            )
        if self._buffer is not None:
            window = self.bars.get(self._buffer.bar)
            if window is None or not window.memory or window.size < self._buffer.size:
                raise MachineError(
                    f"{self.bdf}: BAR {self._buffer.bar} cannot hold a controller memory buffer "
                    f"of {self._buffer.size:#x} bytes"
                )
        if self.msix is None:
            return
        for name, index, offset in (
            ("table", self.msix.table_bar, self.msix.table_offset),
            ("pending bits", self.msix.pending_bar, self.msix.pending_offset),
        ):
            if index == _REGISTER_BAR and offset < needed:
                raise MachineError(
                    f"{self.bdf}: the MSI-X {name} at {offset:#x} of BAR 0 leave no room for the "
                    f"doorbells of {self.limits.queue_pairs} I/O queue pairs",
                    hint="pass limits with fewer queue pairs or a smaller doorbell stride",
                )


def _serial_of(bdf: Bdf) -> str:
    """A serial number that is the same in every run and differs between functions."""
    return "VK" + hashlib.sha256(str(bdf).encode()).hexdigest()[:12].upper()


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step

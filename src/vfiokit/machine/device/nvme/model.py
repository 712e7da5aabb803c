"""The NVMe controller as a PCI function: BARs, configuration space, reset."""

from __future__ import annotations

import hashlib

from vfiokit.errors import MachineError
from vfiokit.machine.build import MsixLayout, endpoint_config
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.device.nvme.backing import BlockStore, MemoryStore
from vfiokit.machine.device.nvme.controller import Controller, Limits
from vfiokit.machine.device.nvme.identify import Identity
from vfiokit.machine.device.nvme.namespace import Namespace
from vfiokit.machine.device.nvme.registers import DOORBELLS
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

NVME_CLASS = 0x010802
VERSION_1_4 = 0x00010400
_REGISTER_BAR = 0
_DEFAULT_CAPACITY = 1 << 30
_PAGE = 4096


class NvmeFunction(Function):
    """An NVMe controller with namespace 1.

    ``config`` and ``bars`` may come from a captured device: where its MSI-X table and pending bits
    are is read from its capability. :meth:`synthetic` makes both from scratch.

    ``backing`` holds the blocks; by default sparse memory of ``capacity`` bytes, which costs
    nothing until it is written. ``block_size`` is 512 to 65536, ``mdts`` the largest transfer as
    ``2 ** mdts`` pages of 4 KiB. Without ``limits`` there is one I/O queue pair per interrupt
    vector beyond the first, and at least one.

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
    ) -> None:
        super().__init__(bdf, config, bars)
        if block_size & block_size - 1:
            raise MachineError(f"a logical block of {block_size} bytes is not a power of two")
        vectors = self.msix.count if self.msix is not None else 1
        self.limits = limits or Limits(queue_pairs=min(max(vectors - 1, 1), 128))
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
            self, identity, Namespace(store, self.block_shift), self.limits
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
        return cls(
            bdf,
            config,
            (BarModel(_REGISTER_BAR, size, wide=True),),
            backing=backing,
            capacity=capacity,
            block_size=block_size,
            model=model,
            serial=serial,
            firmware=firmware,
            mdts=mdts,
            limits=limits,
        )

    # -- the bus side -------------------------------------------------------------------------

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        """A load from the registers; other BARs have nothing behind them and read zero."""
        return self.controller.mmio_read(offset, width) if bar == _REGISTER_BAR else 0

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store to a register or doorbell."""
        if bar == _REGISTER_BAR:
            self.controller.mmio_write(offset, width, value)

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

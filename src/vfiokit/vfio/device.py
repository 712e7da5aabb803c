"""An open VFIO device: info, regions, interrupts, reset.

Source: Linux ``drivers/vfio/pci/vfio_pci_core.c``.
"""

from __future__ import annotations

import contextlib

from vfiokit.abi import vfio as abi
from vfiokit.errors import UsageError
from vfiokit.kernel.port import Mapping
from vfiokit.vfio.address_space import AddressSpace
from vfiokit.vfio.backend import Backend
from vfiokit.vfio.dma_log import DmaLog
from vfiokit.vfio.export import RegionExport, export_region
from vfiokit.vfio.failure import request
from vfiokit.vfio.feature import Features
from vfiokit.vfio.hot_reset import AffectedFunction, affected_functions, hot_reset
from vfiokit.vfio.info import query
from vfiokit.vfio.irq import IrqIndex
from vfiokit.vfio.low_power import LowPower
from vfiokit.vfio.migration import Migration
from vfiokit.vfio.owner import Owner
from vfiokit.vfio.region import ConfigRegion, Region, SparseArea

_COMMAND = 0x04
_COMMAND_MEMORY = 0x0002
_COMMAND_MASTER = 0x0004


class Device(Owner):
    """A device that this process owns.

    Closing it disables its interrupts, closes its mappings, then whatever ``backend`` opened.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._kernel = backend.kernel
        self.name = name
        self._closed = False
        self._regions: dict[int, Region] = {}
        self._irqs: dict[int, IrqIndex] = {}
        self._mappings: list[Mapping] = []
        self._config: ConfigRegion | None = None
        blank = abi.vfio_device_info()
        self.info, _buffer = query(self._kernel, backend.fd, "VFIO_DEVICE_GET_INFO", blank, name)
        """The kernel's ``vfio_device_info``."""
        self.features = Features(self._kernel, backend.fd, name)
        """What the device may have beyond regions and interrupts, by number."""
        self.migration = Migration(self.features)
        """Its state for another host to take over; most devices have none."""
        self.low_power = LowPower(self.features)
        """Its sleep."""
        self.dma_log = DmaLog(self.features)
        """Its own notes on the memory it writes; few devices have them."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Device {self.name}{' closed' if self._closed else ''}>"

    @property
    def _holds(self) -> bool:
        return not self._closed and hasattr(self, "info")

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` ran."""
        return self._closed

    @property
    def backend(self) -> Backend:
        """The kernel interface it was opened by, for what only that one can do."""
        return self._backend

    @property
    def address_space(self) -> AddressSpace:
        """Where DMA memory for this device is made."""
        return self._backend.address_space

    def fileno(self) -> int:
        """The device's descriptor; raises :class:`UsageError` once closed."""
        if self._closed:
            raise UsageError(f"{self.name} is closed")
        return self._backend.fd

    # -- regions ------------------------------------------------------------------------------

    def region(self, index: int) -> Region:
        """Region ``index``: 0 to 5 BARs, 6 ROM, 7 config, 8 VGA, then device-specific ones.

        Raises :class:`UsageError` beyond the last. A region that the device lacks has size 0.
        """
        fd = self.fileno()
        if not 0 <= index < self.info.num_regions:
            raise UsageError(f"{self.name} has regions 0 to {self.info.num_regions - 1}")
        if index not in self._regions:
            self._regions[index] = Region.open(self._kernel, fd, index, self._mappings.append)
        return self._regions[index]

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions that have a size."""
        every = (self.region(index) for index in range(self.info.num_regions))
        return tuple(region for region in every if region.size)

    @property
    def config(self) -> ConfigRegion:
        """Configuration space."""
        if self._config is None:
            self._config = ConfigRegion(self.region(abi.VFIO_PCI_CONFIG_REGION_INDEX))
        return self._config

    def export(self, region_index: int, offset: int = 0, length: int | None = None) -> RegionExport:
        """``length`` bytes of a BAR as a dma-buf that other devices reach it by; all by default.

        See :meth:`Ioas.map_file`, and :func:`export_region` for what it raises and for several
        parts in one.
        """
        size = self.region(region_index).size - offset if length is None else length
        return export_region(self.features, region_index, [SparseArea(offset, size)])

    def set_bus_master(self, enabled: bool) -> None:
        """Allow or forbid DMA and MSI: bit 2 of the command register."""
        self._set_command(_COMMAND_MASTER, enabled)

    def set_memory_enabled(self, enabled: bool) -> None:
        """Let memory BARs decode or not: bit 1 of the command register."""
        self._set_command(_COMMAND_MEMORY, enabled)

    def _set_command(self, bit: int, enabled: bool) -> None:
        value = self.config.u16(_COMMAND)
        wanted = value | bit if enabled else value & ~bit
        if wanted != value:
            self.config.set_u16(_COMMAND, wanted)

    # -- interrupts ---------------------------------------------------------------------------

    def irq(self, index: int) -> IrqIndex:
        """Interrupt index ``VFIO_PCI_*_IRQ_INDEX``; :class:`UsageError` beyond the last."""
        fd = self.fileno()
        if not 0 <= index < self.info.num_irqs:
            raise UsageError(f"{self.name} has interrupt indices 0 to {self.info.num_irqs - 1}")
        if index not in self._irqs:
            self._irqs[index] = IrqIndex(self._kernel, fd, index, self.name)
        return self._irqs[index]

    @property
    def intx(self) -> IrqIndex:
        """The interrupt pin."""
        return self.irq(abi.VFIO_PCI_INTX_IRQ_INDEX)

    @property
    def msi(self) -> IrqIndex:
        """Message signalled interrupts."""
        return self.irq(abi.VFIO_PCI_MSI_IRQ_INDEX)

    @property
    def msix(self) -> IrqIndex:
        """MSI-X."""
        return self.irq(abi.VFIO_PCI_MSIX_IRQ_INDEX)

    @property
    def error_irq(self) -> IrqIndex:
        """Signalled when the kernel's error recovery sees an uncorrectable error."""
        return self.irq(abi.VFIO_PCI_ERR_IRQ_INDEX)

    @property
    def request_irq(self) -> IrqIndex:
        """Signalled when the host wants the device back."""
        return self.irq(abi.VFIO_PCI_REQ_IRQ_INDEX)

    def best_irq(self) -> IrqIndex | None:
        """MSI-X, else MSI, else INTx, whichever the device has first; ``None`` without any."""
        for irq in (self.msix, self.msi, self.intx):
            if irq.count:
                return irq
        return None

    # -- reset --------------------------------------------------------------------------------

    @property
    def can_reset(self) -> bool:
        """Whether :meth:`reset` works: the function has a reset of its own."""
        return bool(self.info.flags & abi.VFIO_DEVICE_FLAGS_RESET)

    def reset(self) -> None:
        """Function-level reset; raises :class:`KernelError` (EINVAL without, EAGAIN if busy)."""
        request(self._kernel, self.fileno(), "VFIO_DEVICE_RESET", 0, self.name)

    def hot_reset_affects(self) -> tuple[AffectedFunction, ...]:
        """The functions that :meth:`hot_reset` would reset, this one included."""
        return affected_functions(self._kernel, self.fileno(), self.name)

    def hot_reset(self) -> None:
        """Reset the bus or slot this function is on, with everything there.

        Raises :class:`KernelError`: ENODEV when neither can be reset, EINVAL unless every
        affected function is bound to vfio-pci and its group is in this device's container.
        """
        hot_reset(self._kernel, self.fileno(), self._backend.group_fds, self.name)

    # -- end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Disable interrupts, close mappings, close device, group and container. Idempotent.

        Bus mastering is cleared first, so that the device is silent before its memory goes.
        """
        if self._closed:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._backend.close)
            stack.callback(setattr, self, "_closed", True)
            for mapping in self._mappings:
                stack.callback(mapping.close)
            for irq in self._irqs.values():
                stack.callback(irq.disable)
            stack.callback(self._silence)

    def _silence(self) -> None:
        # A device that vanished from the bus cannot be written to, and need not be.
        with contextlib.suppress(OSError):
            self.set_bus_master(False)

"""A function of the host, given to a guest: its BARs mapped or trapped, its registers shared.

It needs nothing but an open :class:`~vfiokit.vfio.Device`, wherever that lives. The listing of its
ranges uses QEMU's names (``hw/vfio``), so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vfiokit.abi import pci_regs as regs
from vfiokit.errors import UsageError
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import capabilities
from vfiokit.vfio import Device, Region
from vfiokit.vfio.region import SparseArea
from vfiokit.vmm.assigned_config import assigned_config
from vfiokit.vmm.assigned_irq import AssignedInterrupts
from vfiokit.vmm.bar_layout import (
    BarShape,
    MsixPlace,
    grown_length,
    mappable_areas,
    msix_place,
    relocate_msix,
)
from vfiokit.vmm.bus import Window, aligned_pieces
from vfiokit.vmm.guest_config import GuestConfig
from vfiokit.vmm.guest_function import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MEMORY,
    GuestBar,
    GuestFunction,
    Placed,
)
from vfiokit.vmm.msix import PendingBits
from vfiokit.vmm.policy import Delivery, PlacedBar
from vfiokit.vmm.trap_map import Access, Strength, Wish

_BARS = 6
_ROM = 6
_D3HOT = 3
_BELOW_GROWN = Strength.GROWN - 10


class RegionAccess:
    """Handler of a region by system calls: what an access that trapped becomes.

    Where the kernel refuses, because decoding is off or the device is gone, loads read all ones
    and stores are lost.
    """

    def __init__(self, region: Region) -> None:
        self._region = region

    def read(self, offset: int, width: int) -> int:
        """One read, or several of what is misaligned."""
        value = 0
        for at, piece in aligned_pieces(offset, width):
            try:
                part = self._region.read(offset + at, piece)
            except (OSError, IndexError):
                part = (1 << 8 * piece) - 1
            value |= part << 8 * at
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """One write, or several of what is misaligned."""
        for at, piece in aligned_pieces(offset, width):
            try:
                self._region.write(offset + at, piece, value >> 8 * at & (1 << 8 * piece) - 1)
            except (OSError, IndexError):
                continue


class AssignedFunction(GuestFunction):
    """``device`` at ``bdf`` of a guest.

    ``on_root_bus`` says that no port is above. ``no_map`` are BARs to trap although they could be
    mapped (``x-no-mmap``), ``msix_relocation`` is QEMU's ``x-msix-relocation``;
    ``msix_mappable`` false keeps the MSI-X table's pages out of every map even where the kernel
    would let them in. ``page_size`` is the host's. The device is closed when the function is
    taken out. Raises :class:`UsageError`.
    """

    removable = True

    def __init__(
        self,
        device: Device,
        bdf: Bdf,
        *,
        on_root_bus: bool = True,
        multifunction: bool = False,
        delivery: Delivery = Delivery.POSTED,
        no_map: frozenset[int] = frozenset(),
        msix_relocation: str = "off",
        msix_mappable: bool = True,
        page_size: int = 4096,
    ) -> None:
        self.device = device
        self._msix_mappable = msix_mappable
        self.page_size = page_size
        snapshot = device.config.snapshot()
        config = assigned_config(
            snapshot, device.config, on_root_bus=on_root_bus, multifunction=multifunction
        )
        power = capabilities(snapshot).find(regs.PCI_CAP_ID_PM)
        self._power_at = 0 if power is None else power.offset + regs.PCI_PM_CTRL
        shapes = bar_shapes(device)
        self.msix_place = _find_msix(config)
        own_place = self.msix_place
        if self.msix_place is not None:
            shapes, self.msix_place = relocate_msix(
                shapes, self.msix_place, msix_relocation, page_size
            )
            _emulate_msix(config, self.msix_place)
        bars = [
            GuestBar(index, shape.size, shape.memory, shape.wide, shape.prefetchable)
            for index, shape in enumerate(shapes)
            if shape.size
        ]
        if device.region(_ROM).size:
            bars.append(GuestBar(_ROM, device.region(_ROM).size))
        super().__init__(bdf, config, bars)
        self.name = device.name
        self.areas: dict[int, tuple[SparseArea, ...]] = {}
        """What of each BAR is mapped, in bytes from its start."""
        self._registers = {bar.index: RegionAccess(device.region(bar.index)) for bar in bars}
        self._windows: dict[int, tuple[Window, ...]] = {}
        for bar in bars:
            relocated = own_place is not self.msix_place
            table = own_place.table if own_place is not None and not relocated else None
            held = table if table is not None and table.bar == bar.index else None
            self._map(bar, held, allowed=bar.index not in no_map)
        self.interrupts = AssignedInterrupts(self, device, snapshot, delivery)
        """MSI-X, MSI and INTx."""
        self._pending_bits = (
            PendingBits(self.interrupts.msix) if self.interrupts.msix is not None else None
        )
        config.watch(COMMAND, 2, self.interrupts.command_written)
        if self._power_at:
            config.watch(self._power_at, 2, self._decoding_changed)

    def _map(self, bar: GuestBar, table: Any, *, allowed: bool) -> None:  # noqa: ANN401
        region = self.device.region(bar.index)
        areas: tuple[SparseArea, ...] = ()
        if allowed and bar.memory and region.mappable:
            areas = mappable_areas(
                region.size,
                region.sparse_areas,
                table,
                msix_mappable=region.msix_mappable and self._msix_mappable,
                page_size=self.page_size,
            )
        self.areas[bar.index] = areas
        self._windows[bar.index] = tuple(
            Window(region.map(area.offset, area.length)) for area in areas
        )

    # -- decoding -----------------------------------------------------------------------------

    @property
    def command(self) -> int:
        """The command register as VFIO shows it; 0 once the device is gone.

        In D3hot nothing decodes, and on a real host an access of a map would be a SIGBUS.
        """
        value = self.config.read(COMMAND, 2)
        if value == 0xFFFF:
            return 0
        asleep = self._power_at and self.config.read(self._power_at, 2) & 3 == _D3HOT
        return value & ~(COMMAND_MEMORY | COMMAND_IO) if asleep else value

    def wishes(self, placed: Placed) -> Iterator[Wish]:
        """A trap for the whole BAR, maps over it, and over those what is emulated."""
        bar, address = placed
        name = f"{self.name} BAR {bar.index}"
        handler = self._registers[bar.index]
        if bar.index == _ROM:
            name = f"vfio[{self.name}].rom"
        size = min(bar.size, self.device.region(bar.index).size)
        areas, windows = self.areas[bar.index], self._windows[bar.index]
        grown = grown_length(size, areas, address, self.page_size)
        trap = Access.TRAP
        counter = "rom" if bar.index == _ROM else "bar"
        if size:
            strength = _BELOW_GROWN if grown else Strength.REGION
            yield Wish(address, size, trap, strength, name, handler, counter=counter)
        for number, (area, window) in enumerate(zip(areas, windows, strict=True)):
            yield Wish(
                address + area.offset,
                grown or area.length,
                Access.DIRECT,
                Strength.GROWN if grown else Strength.MAPPED,
                f"{name} mmaps[{number}]",
                window,
            )
        yield from self._overlays(bar, address)

    def _overlays(self, bar: GuestBar, address: int) -> Iterator[Wish]:
        place, vectors = self.msix_place, self.interrupts.msix
        if place is None or vectors is None:
            return
        trap, overlay = Access.TRAP, Strength.OVERLAY
        if place.table.bar == bar.index and place.table.offset < bar.size:
            start = address + place.table.offset
            length = min(place.table.length, bar.size - place.table.offset)
            yield Wish(start, length, trap, overlay, "msix-table", vectors, counter="msix")
        # The device's own pending bits are right until a vector fires that only the guest masked.
        shown = place.relocated or vectors.pending
        if shown and place.pending.bar == bar.index and place.pending.offset < bar.size:
            start = address + place.pending.offset
            length = min(place.pending.length, bar.size - place.pending.offset)
            bits = self._pending_bits
            yield Wish(start, length, trap, overlay, "msix-pba", bits, counter="msix")

    def as_policy_sees(self, placed: Placed) -> PlacedBar:
        """A placed memory BAR, for :meth:`Policy.wishes`."""
        index = placed.bar.index
        windows = tuple(
            (area.offset, area.length, window)
            for area, window in zip(self.areas[index], self._windows[index], strict=True)
        )
        return PlacedBar(
            self.name, index, placed.address, placed.bar.size, self._registers[index], windows
        )

    # -- life ---------------------------------------------------------------------------------

    def end_of_interrupt(self) -> None:
        """The guest finished an interrupt of the pin."""
        self.interrupts.end_of_interrupt()

    def added(self) -> None:
        """Begin to take the device's interrupts."""
        self.interrupts.start()

    def removed(self) -> None:
        """The device is silent and given back."""
        self.interrupts.stop()
        self.device.close()

    def reset(self) -> None:
        """Reset the device, if it can, and forget what the guest had set up."""
        self.interrupts.reset()
        if self.device.can_reset:
            self.device.reset()
        for bar in self.bars.values():
            width = 8 if bar.wide else 4
            flags = self.config.get(bar.register, 4) & (0xF if bar.memory else 3)
            self.config.set(bar.register, width, flags if bar.index != _ROM else 0)
        self.config.write(COMMAND, 2, 0)
        self.interrupts.start()

    def state(self) -> dict[str, Any]:
        """What the machine keeps of the function; the device's own state is not in it."""
        return {
            **super().state(),
            "command": self.config.read(COMMAND, 2),
            "interrupts": self.interrupts.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described, and program the device to match."""
        self.interrupts.stop()
        self._load_config(state)
        self.interrupts.load(state["interrupts"])

    def load_in_place(self, state: dict[str, Any]) -> None:
        """As :meth:`load`, for the device that goes on meanwhile: no interrupt of it is lost."""
        self._load_config(state)
        self.interrupts.adopt(state["interrupts"])

    def _load_config(self, state: dict[str, Any]) -> None:
        self.config.load(state["config"])
        if self.config.device is not None:
            self.config.device.write(COMMAND, 2, state["command"])
        self.update_decoding()


def bar_shapes(device: Device) -> tuple[BarShape, ...]:
    """The six BARs of an open device: sizes from its regions, kinds from its registers."""
    shapes: list[BarShape] = []
    upper = False
    for index in range(_BARS):
        size, value = device.region(index).size, device.config.u32(0x10 + 4 * index)
        if upper or not size:
            upper = False
            shapes.append(BarShape(0))
            continue
        if size & size - 1:
            raise UsageError(f"{device} BAR {index} has {size:#x} bytes, which is no power of two")
        if value & 1:
            shapes.append(BarShape(size, memory=False))
            continue
        upper = bool(value & 4) and index < _BARS - 1
        shapes.append(BarShape(size, wide=upper, prefetchable=bool(value & 8)))
    return tuple(shapes)


def _find_msix(config: GuestConfig) -> MsixPlace | None:
    """Where the device has its table; the capability is read through the guest's list."""
    pointer = config.get(0x34, 1)
    for _ in range(48):
        if not pointer:
            return None
        if config.get(pointer, 1) == regs.PCI_CAP_ID_MSIX:
            count = (config.get(pointer + 2, 2) & regs.PCI_MSIX_FLAGS_QSIZE) + 1
            return msix_place(config.get(pointer + 4, 4), config.get(pointer + 8, 4), count)
        pointer = config.get(pointer + 1, 1)
    return None


def _emulate_msix(config: GuestConfig, place: MsixPlace) -> None:
    pointer = config.get(0x34, 1)
    while config.get(pointer, 1) != regs.PCI_CAP_ID_MSIX:
        pointer = config.get(pointer + 1, 1)
    control = config.get(pointer + 2, 2)
    config.emulate(pointer, 12)
    config.set(pointer + 2, 2, control & regs.PCI_MSIX_FLAGS_QSIZE)
    config.allow(pointer + 2, 2, regs.PCI_MSIX_FLAGS_ENABLE | regs.PCI_MSIX_FLAGS_MASKALL)
    config.set(pointer + 4, 4, place.table.offset | place.table.bar)
    config.set(pointer + 8, 4, place.pending.offset | place.pending.bar)

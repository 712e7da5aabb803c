"""What a guest would trap of a function: listed as QEMU does, and held to a real QEMU's listing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.errors import UsageError
from vfiokit.host.tree import Tree
from vfiokit.machine.twin import Twin, build_twin
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device
from vfiokit.vmm import mtree
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.guest_function import COMMAND
from vfiokit.vmm.mtree import Difference, Line
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.trap_map import FlatRange, TrapMap

_SPELLINGS = (("mmmaps[", "mmaps["),)
"""Names as they have been seen, and as QEMU writes them; the first is from a slide."""
_OVERLAYS = ("msix-table", "msix-pba", "VFIO MSIX PBA")
"""Ranges that QEMU names without their device."""


class Comparison(NamedTuple):
    """A function's ranges beside those that QEMU listed for it."""

    ours: tuple[Line, ...]
    theirs: tuple[Line, ...]
    differences: tuple[Difference, ...]


class FunctionMap:
    """The trap map of one open device alone, as a guest on ``page_size`` pages has it.

    The device is closed with it. ``msix_mappable`` false takes it for one whose kernel does not let
    the MSI-X table be mapped along (before Linux 4.16); see :class:`AssignedFunction` for the
    others.
    """

    def __init__(
        self,
        device: Device,
        *,
        page_size: int = 4096,
        msix_relocation: str = "off",
        no_map: frozenset[int] = frozenset(),
        msix_mappable: bool = True,
    ) -> None:
        self._traps = TrapMap(page_size)
        self._bus = PciBus(self._traps, TrapMap(1))
        self._bus.place_ecam(None)
        self.function = AssignedFunction(
            device,
            Bdf(0, 0, 4, 0),
            page_size=page_size,
            msix_relocation=msix_relocation,
            no_map=no_map,
            msix_mappable=msix_mappable,
        )
        self._bus.add(self.function)

    @property
    def flat(self) -> tuple[FlatRange, ...]:
        """The ranges where the BARs are now."""
        return self._traps.flat

    def place(self, addresses: Mapping[int, int] | None = None) -> None:
        """Put BARs at ``addresses`` by their index, all others where firmware would.

        Raises :class:`UsageError` for a BAR that there is not, or an address that is no multiple
        of its size.
        """
        place_everything(self._bus)
        for index, address in (addresses or {}).items():
            bar = self.function.bars.get(index)
            if bar is None or not bar.memory or index > 5:
                raise UsageError(f"{self.function.name} has no memory BAR {index}")
            if address % bar.size or address >> (64 if bar.wide else 32):
                raise UsageError(
                    f"BAR {index} cannot be at {address:#x}: it has {bar.size:#x} bytes"
                )
            self.function.config.write(bar.register, 4, address & 0xFFFF_FFFF)
            if bar.wide:
                self.function.config.write(bar.register + 4, 4, address >> 32)
        self.function.config.write(COMMAND, 2, 0x0002)

    def compare(self, listed: Iterable[Line]) -> Comparison:
        """Put the BARs where ``listed`` has them, and say where the two differ.

        Of ``listed`` the lines that name this function count, and those of MSI-X within its BARs.
        Raises :class:`UsageError` when it is not listed.
        """
        lines = [_respelt(line) for line in listed]
        name = self._name_in(lines)
        own = [line for line in lines if line.name.startswith(f"{name} BAR ")]
        addresses = {
            index: address for index in self.function.bars if (address := self._base(own, index))
        }
        self.place(addresses)
        spans = [
            (placed.address, placed.address + placed.bar.size)
            for placed in self.function.placed()
            if placed.bar.index in addresses
        ]
        overlays = [
            line
            for line in lines
            if line.name in _OVERLAYS and any(a <= line.start < b for a, b in spans)
        ]
        theirs = [
            line._replace(name=line.name.replace(name, self.function.name, 1), mapped=False)
            for line in sorted(own + overlays)
        ]
        ours = [
            line._replace(mapped=False)
            for line in mtree.lines(self.flat)
            if any(a <= line.start < b for a, b in spans)
        ]
        return Comparison(tuple(ours), tuple(theirs), tuple(mtree.differences(ours, theirs)))

    def _name_in(self, lines: list[Line]) -> str:
        names = dict.fromkeys(
            line.name.partition(" BAR ")[0] for line in lines if " BAR " in line.name
        )
        if self.function.name in names:
            return self.function.name
        if len(names) == 1:
            return next(iter(names))
        listed = ", ".join(names) or "none"
        raise UsageError(
            f"{self.function.name} is not in that listing",
            hint=f"assigned devices there: {listed}",
        )

    def _base(self, own: list[Line], index: int) -> int | None:
        """Where the listing has BAR ``index``."""
        for line in own:
            rest = line.name.partition(f" BAR {index}")[2]
            if line.name.endswith(f" BAR {index}"):
                return line.start - line.offset
            number = rest[len(" mmaps[") : -1] if rest.startswith(" mmaps[") else ""
            areas = self.function.areas.get(index, ())
            if number.isdecimal() and int(number) < len(areas):
                return line.start - line.offset - areas[int(number)].offset
        return None

    def close(self) -> None:
        """Close the device. Idempotent."""
        if self.function.bus is not None:
            self._bus.remove(self.function)


def bind_on_twin(tree: Tree, bdf: Bdf) -> Twin:
    """A fresh twin of the host whose files are ``tree``, with ``bdf`` bound to vfio-pci.

    Whatever its use on the host forbids does not matter on a twin. Raises :class:`AssignError`.
    """
    twin = build_twin(tree)
    made = plan(twin.kernel.tree, [bdf], include_group=True)
    blockers = [each.id for each in made.open_blockers()]
    made = plan(twin.kernel.tree, [bdf], include_group=True, force=blockers)
    with tempfile.TemporaryDirectory() as folder:
        apply(twin.kernel, made, Path(folder))
    return twin


def _respelt(line: Line) -> Line:
    name = line.name
    for seen, meant in _SPELLINGS:
        name = name.replace(seen, meant)
    return line._replace(name=name)


def explain(flat: Iterable[FlatRange]) -> Iterator[str]:
    """Why each range that traps, or is mapped less than it looks, does so."""
    for each in flat:
        where = f"{each.start:#x}-{each.end - 1:#x}"
        if each.name == "msix-table":
            yield f"{where} traps: entries of the MSI-X table name interrupts of the host"
        elif each.name == "msix-pba":
            yield f"{where} traps: pending bits of vectors that only the guest masked"
        elif each.access.value == "ramd" and not each.whole:
            first, last = each.slot
            cut = f"only {first:#x}-{last - 1:#x}" if last > first else "nothing"
            yield f"{where}: {cut} of it is whole pages, which alone can be mapped"
        elif each.access.value == "i/o":
            yield f"{where} traps: shares a page with the MSI-X table, or cannot be mapped"

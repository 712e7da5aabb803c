"""What a guest's driver did to its devices: mapped, trapped or dropped, by the registers' names.

A :class:`Tracer` listens to the buses of a virtual machine. For a write that has no effect it says
why, as far as that can be told from what the guest did before; of NVMe controllers it knows the
queues (:mod:`.trace_nvme`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from vfiokit.pci.address import Bdf
from vfiokit.vmm.bus import Seen
from vfiokit.vmm.guest_function import COMMAND_MASTER, COMMAND_MEMORY, GuestBar
from vfiokit.vmm.trace_nvme import NvmeWatcher
from vfiokit.vmm.trace_register import (
    ConfigNames,
    apic_name,
    msix_entry_name,
    plausible_entry,
    value_text,
)

if TYPE_CHECKING:
    from vfiokit.vmm.bar_layout import MsixPlace
    from vfiokit.vmm.guest_function import GuestFunction
    from vfiokit.vmm.machine import VirtualMachine

_NVME_CLASS: Final = 0x010802
_CONFIG_PORTS: Final = range(0xCF8, 0xD00)


class Kind(Enum):
    """What became of an access."""

    MAPPED = "mapped"
    """It reached the device without an exit."""
    TRAPPED = "trapped"
    """The hypervisor did it for the guest."""
    DROPPED = "dropped"
    """Nobody answered."""


class Access(NamedTuple):
    """One load or store of the guest."""

    number: int
    kind: Kind
    place: str
    """Such as ``0000:05:00.0 BAR 0 + 0x1008``."""
    name: str
    """The register, such as ``SQ1 tail doorbell``."""
    write: bool
    width: int
    """Bytes."""
    value: int
    reason: str
    """Why a write has no effect; empty where it has one, or where that cannot be told."""

    @property
    def meaning(self) -> str:
        """The value's fields, for registers that have some."""
        return value_text(self.name, self.value)

    def __str__(self) -> str:
        verb, sign = ("write", "=") if self.write else ("read", "is")
        meaning = f"  ({self.meaning})" if self.meaning else ""
        return (
            f"{self.number:5} {self.kind.value:7} {verb:5} {self.width}  {self.place:32} "
            f"{self.name} {sign} {self.value:#x}{meaning}"
        )


class _Target(NamedTuple):
    """A BAR that an address lies in."""

    function: GuestFunction
    bar: GuestBar
    offset: int


def _msix_part(target: _Target) -> tuple[int, bool] | None:
    """Offset in the MSI-X table (true) or the pending bits (false) that an address lies in."""
    place: MsixPlace | None = getattr(target.function, "msix_place", None)
    if place is None:
        return None
    for structure, is_table in ((place.table, True), (place.pending, False)):
        at = target.offset - structure.offset
        if structure.bar == target.bar.index and 0 <= at < structure.length:
            return at, is_table
    return None


class Tracer:
    """Notes the accesses of ``machine`` from now on, until :meth:`stop`.

    At most ``limit`` of them are kept; counts and the writes without effect are complete.
    """

    def __init__(self, machine: VirtualMachine, *, limit: int = 100_000) -> None:
        self._machine = machine
        self._limit = limit
        self.accesses: list[Access] = []
        """The first of them, in order."""
        self.findings: list[Access] = []
        """Writes that have no effect."""
        self.counts: Counter[tuple[Kind, str, bool]] = Counter()
        """By kind, name, and whether it is a write."""
        self.total = 0
        self._watchers: dict[GuestFunction, NvmeWatcher] = {}
        self._spaces: dict[GuestFunction, tuple[ConfigNames, bytearray]] = {}
        """Configuration space by function: names, and the bytes as they were."""
        machine.bus.observers.append(self._memory)
        machine.port_bus.observers.append(self._port)
        machine.pci.observers.append(self._config)

    def stop(self) -> None:
        """Listen no longer. Idempotent."""
        for observers, mine in (
            (self._machine.bus.observers, self._memory),
            (self._machine.port_bus.observers, self._port),
            (self._machine.pci.observers, self._config),
        ):
            if mine in observers:
                observers.remove(mine)  # type: ignore[arg-type]

    def watcher(self, function: GuestFunction) -> NvmeWatcher | None:
        """What is known of an NVMe controller; ``None`` for other functions."""
        if function.config.get(0x08, 4) >> 8 != _NVME_CLASS:
            return None
        if function not in self._watchers:
            self._watchers[function] = NvmeWatcher(
                self._machine.memory, lambda: bool(function.command & COMMAND_MASTER)
            )
        return self._watchers[function]

    def _note(
        self, kind: Kind, place: str, name: str, seen: tuple[bool, int, int], reason: str = ""
    ) -> None:
        self.total += 1
        access = Access(self.total, kind, place, name, *seen, reason)
        self.counts[kind, name, access.write] += 1
        if len(self.accesses) < self._limit:
            self.accesses.append(access)
        if reason:
            self.findings.append(access)

    # -- memory -------------------------------------------------------------------------------

    def _memory(self, seen: Seen) -> None:
        facts = (seen.write, seen.width, seen.value)
        if seen.range is None:
            place, reason = self._nobody(seen.gpa)
            self._note(Kind.DROPPED, place, "nothing", facts, reason if seen.write else "")
            return
        kind = Kind.MAPPED if seen.mapped else Kind.TRAPPED
        target = self._find(seen.gpa)
        if target is not None:
            self._bar(kind, seen, target)
        elif seen.range.name == "apic-msi":
            self._note(kind, f"{seen.gpa:#x}", apic_name(seen.gpa & 0xFFF), facts)
        elif seen.range.name != "pcie-mmcfg-mmio":  # the observer of configuration space has it
            self._note(kind, f"{seen.gpa:#x}", seen.range.name, facts)

    def _find(self, gpa: int) -> _Target | None:
        """The BAR that decodes ``gpa``."""
        for function in self._machine.pci.functions():
            for bar, address in function.placed():
                if bar.memory and address <= gpa < address + bar.size:
                    return _Target(function, bar, gpa - address)
        return None

    def _bar(self, kind: Kind, seen: Seen, target: _Target) -> None:
        function, bar, offset = target
        place = f"{function.name} BAR {bar.index} + {offset:#x}"
        facts = (seen.write, seen.width, seen.value)
        part = _msix_part(target)
        if part is not None:
            name, reason = self._msix(target, seen, *part)
            self._note(kind, place, name, facts, reason)
            return
        watcher = self.watcher(function) if bar.index == 0 else None
        if watcher is None:
            self._note(kind, place, f"offset {offset:#x}", facts)
            return
        watcher.msix = self._msix_enabled(function)
        name = watcher.name(offset, seen.width)
        reason = ""
        if seen.write:
            reason = watcher.saw_write(offset, seen.width, seen.value)
        else:
            watcher.saw_read(offset, seen.width, seen.value)
        self._note(kind, place, name, facts, reason)

    def _msix(self, target: _Target, seen: Seen, at: int, table: bool) -> tuple[str, str]:
        """Name and reason of an access to the MSI-X table or the pending bits, at byte ``at``."""
        if not table:
            return "MSI-X pending bits", "the pending bits are read-only" if seen.write else ""
        name = msix_entry_name(at)
        if not seen.write:
            return name, ""
        if seen.width not in (4, 8) or target.offset % seen.width:
            return name, "the MSI-X table takes aligned accesses of 4 or 8 bytes"
        watcher = self.watcher(target.function) if target.bar.index == 0 else None
        if watcher is None or not watcher.enabled or plausible_entry(at, seen.value):
            return name, ""
        return name, (
            f"{target.offset:#x} is no doorbell but lies in the MSI-X table"
            + ("" if seen.mapped else ", which the hypervisor keeps")
            + ": no queue hears of it"
        )

    @staticmethod
    def _msix_enabled(function: GuestFunction) -> bool:
        interrupts = getattr(function, "interrupts", None)
        msix = getattr(interrupts, "msix", None)
        return bool(getattr(msix, "enabled", False))

    def _nobody(self, gpa: int) -> tuple[str, str]:
        """Where ``gpa`` would have gone, and why it did not."""
        nearest: tuple[int, str] | None = None
        for function, bar, address in self._all_bars():
            name = f"{function.name} BAR {bar.index}"
            end = address + bar.size
            if address <= gpa < end:
                place = f"{name} + {gpa - address:#x}"
                if not function.command & COMMAND_MEMORY:
                    return place, (
                        f"memory decoding of {function.name} is off (bit 1 of its command "
                        f"register), so {name} at {address:#x} does not answer"
                    )
                return place, f"no window of the port above {function.name} lets {gpa:#x} through"
            distance = address - gpa if gpa < address else gpa - end + 1
            if nearest is None or distance < nearest[0]:
                side = "up" if gpa < address else "down"
                nearest = distance, f"{name} is at {address:#x}-{end - 1:#x}, further {side}"
        closest = f"; {nearest[1]}" if nearest else ""
        return f"{gpa:#x}", f"nothing is mapped at {gpa:#x}{closest}"

    def _all_bars(self) -> Iterator[tuple[GuestFunction, GuestBar, int]]:
        """Every memory BAR with the address in its register, whether it decodes or not."""
        for function in self._machine.pci.functions():
            for bar in function.bars.values():
                value = function.config.get(bar.register, 8 if bar.wide else 4)
                address = value & ~0xF & ~(bar.size - 1)
                if bar.memory and bar.index < 6 and address:
                    yield function, bar, address

    # -- ports and configuration space --------------------------------------------------------

    def _port(self, seen: Seen) -> None:
        if seen.gpa in _CONFIG_PORTS:
            return  # the observer of configuration space has it
        kind = Kind.DROPPED if seen.range is None else Kind.TRAPPED
        name = "nothing" if seen.range is None else seen.range.name
        self._note(kind, f"port {seen.gpa:#x}", name, (seen.write, seen.width, seen.value))

    def _config(self, bdf: Bdf, offset: int, width: int, write: bool, value: int) -> None:
        function = self._machine.pci.find(bdf.bus, bdf.devfn)
        place = f"config {str(bdf)[5:]} + {offset:#x}"
        facts = (write, width, value)
        if function is None:
            reason = f"there is no function at {str(bdf)[5:]}" if write else ""
            self._note(Kind.DROPPED, place, f"offset {offset:#x}", facts, reason)
            return
        known = self._spaces.get(function)
        if known is None:
            data = bytes(function.config.read(at, 1) for at in range(len(function.config)))
            known = self._spaces[function] = ConfigNames(data), bytearray(data)
            reason = ""
        else:
            reason = _config_reason(function, known[1], offset, width, value) if write else ""
        self._note(Kind.TRAPPED, place, known[0].name(offset, width), facts, reason)


def _config_reason(
    function: GuestFunction, shadow: bytearray, offset: int, width: int, value: int
) -> str:
    """Whether a write changed nothing though it was to set bits; ``shadow`` is kept up."""
    before = int.from_bytes(shadow[offset : offset + width], "little")
    now = function.config.read(offset, width)
    shadow[offset : offset + width] = now.to_bytes(width, "little")[: len(shadow) - offset]
    if now != before or not value & ~now:
        return ""
    return f"the guest cannot set these bits: it reads {now:#x} as before"

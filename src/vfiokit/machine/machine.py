"""The software machine: memory, clock, IOMMUs, fabric and functions, switched on together."""

from __future__ import annotations

from vfiokit.errors import MachineError
from vfiokit.machine.clock import Clock
from vfiokit.machine.fabric import Fabric, HostBridge, P2pPolicy
from vfiokit.machine.function import Function
from vfiokit.machine.iommu.core import Iommu
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.memory import PhysicalMemory
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

_UNIT_SPACING = 0x1000
_FIRST_UNIT = 0xFED9_0000


class Machine:
    """Hardware without an operating system: nothing is enabled, nothing is attached.

    ``ram`` bytes of sparse memory start at ``ram_base``; the 4 GiB below are for devices.
    """

    def __init__(
        self,
        *,
        ram: int = 64 << 30,
        ram_base: int = 1 << 32,
        backing: memoryview | None = None,
    ) -> None:
        self.memory = PhysicalMemory(ram, ram_base, backing=backing)
        self.clock = Clock()
        self.fabric = Fabric(self.memory, self.clock)
        self.interrupts = self.fabric.interrupts
        self.iommus: list[VtdUnit] = []

    @property
    def functions(self) -> dict[Bdf, Function]:
        """Every function by address."""
        return self.fabric.functions

    def add_iommu(self, *, iotlb_capacity: int = 65536, fault_capacity: int = 256) -> VtdUnit:
        """A VT-d unit, disabled; give it to :meth:`add_host_bridge`."""
        number = len(self.iommus)
        unit = VtdUnit(
            self.memory,
            f"dmar{number}",
            address=_FIRST_UNIT + number * _UNIT_SPACING,
            iotlb_capacity=iotlb_capacity,
            fault_capacity=fault_capacity,
        )
        self.iommus.append(unit)
        return unit

    def add_host_bridge(
        self,
        domain: int = 0,
        bus: int = 0,
        *,
        iommu: Iommu | None = None,
        p2p: P2pPolicy = P2pPolicy.ALLOWED,
    ) -> HostBridge:
        """A host bridge with root bus ``bus``; requests below it pass ``iommu``, if any."""
        return self.fabric.add_host_bridge(domain, bus, iommu=iommu, p2p=p2p)

    def add(self, function: Function, bus: int | None = None) -> Function:
        """Plug a function in; see :meth:`Fabric.plug`."""
        return self.fabric.plug(function, bus)

    def remove(self, bdf: Bdf) -> Function:
        """Take a function out, with everything below it."""
        return self.fabric.unplug(bdf)

    def iommu_of(self, bdf: Bdf) -> Iommu | None:
        """The IOMMU that sees the requests of a function; ``None`` where there is none."""
        return self.fabric.host_bridge_of(self._known(bdf)).iommu

    def reset_function(self, bdf: Bdf, kind: ResetKind = ResetKind.FUNCTION_LEVEL) -> None:
        """Reset one function, as if its own reset bit had been set.

        ``BUS`` resets the secondary bus of the bridge above, and with it everything there.
        """
        function = self._known(bdf)
        if kind is not ResetKind.BUS:
            function.reset(kind)
            return
        bridge = self.fabric.parent(function)
        if bridge is None:
            raise MachineError(f"{bdf} sits on a root bus, which cannot be reset")
        bridge.secondary_bus_reset()

    def hardware_reset(self) -> None:
        """Reset the whole machine: every function and IOMMU to power-on, RAM keeps its content.

        Bridges forget their bus numbers and windows, as firmware finds them.
        """
        for unit in self.iommus:
            unit.reset()
        for function in tuple(self.functions.values()):
            function.reset(ResetKind.BUS)

    def counters(self) -> dict[str, int]:
        """What happened since power-on: fabric, interrupts and every IOMMU, by name."""
        counted = self.fabric.counters.as_dict()
        counted |= {
            "interrupts_delivered": self.interrupts.delivered,
            "interrupts_blocked": self.interrupts.blocked,
            "interrupts_spurious": self.interrupts.spurious,
            "interrupts_malformed": self.interrupts.malformed,
        }
        for unit in self.iommus:
            counted |= {
                f"{unit.name}_iotlb_hits": unit.iotlb.hits,
                f"{unit.name}_iotlb_misses": unit.iotlb.misses,
                f"{unit.name}_iotlb_evictions": unit.iotlb.evictions,
                f"{unit.name}_walks": unit.walks,
                f"{unit.name}_faults": unit.faults.total,
            }
        return counted

    def report(self) -> str:
        """The machine in text: hierarchy, windows, BARs, and every counter that is not zero."""
        lines = [
            f"RAM {self.memory.base:#x}-{self.memory.end - 1:#x}, "
            f"{self.memory.allocated:#x} bytes allocated"
        ]
        for bridge in self.fabric.host_bridges.values():
            unit = bridge.iommu
            state = "no IOMMU"
            if unit is not None:
                state = f"{unit.name} {'enabled' if unit.enabled else 'disabled'}"
            lines.append(f"{bridge}: {state}, peer-to-peer {bridge.p2p.value}")
            for top in self.fabric.root_functions(bridge):
                lines.append(self._line(top))
                lines += [self._line(function) for function in self.fabric.below(top)]
        lines += [f"{name}: {value}" for name, value in self.counters().items() if value]
        return "\n".join(lines)

    def _line(self, function: Function) -> str:
        depth = len(self.fabric.root_path(function)) + 1
        kind = function.port_type.name.lower() if function.port_type is not None else "conventional"
        bars = ", ".join(
            f"BAR{claim.bar} {claim.start:#x}-{claim.end - 1:#x}"
            for claim in self.fabric.bar_claims(function)
        )
        return f"{'  ' * depth}{function.bdf} {kind}" + (f": {bars}" if bars else "")

    def _known(self, bdf: Bdf) -> Function:
        function = self.functions.get(bdf)
        if function is None:
            raise MachineError(f"there is no function {bdf} in this machine")
        return function

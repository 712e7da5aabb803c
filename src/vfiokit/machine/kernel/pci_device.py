"""What the kernel's PCI core knows of a function: ids, resources, power, saved state, resets.

Source: Linux ``drivers/pci/{pci,probe,setup-res}.c``, ``include/linux/ioport.h``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.function import Function, ResetKind
from vfiokit.machine.kernel.failure import failure
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import capabilities
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Identity, Resource

IORESOURCE_IO = 0x0000_0100
IORESOURCE_MEM = 0x0000_0200
IORESOURCE_PREFETCH = 0x0000_2000
IORESOURCE_SIZEALIGN = 0x0004_0000
IORESOURCE_MEM_64 = 0x0010_0000

D0, D3HOT = 0, 3

# Control registers that pci_save_state keeps, by capability: (relative offset, width).
_SAVED_STANDARD = {
    regs.PCI_CAP_ID_EXP: ((regs.PCI_EXP_DEVCTL, 2), (regs.PCI_EXP_LNKCTL, 2), (0x28, 2), (0x30, 2)),
    regs.PCI_CAP_ID_PCIX: ((2, 2),),
    regs.PCI_CAP_ID_MSIX: ((regs.PCI_MSIX_FLAGS, 2),),
}
_SAVED_EXTENDED = {
    0x01: ((0x08, 4), (0x0C, 4), (0x14, 4), (0x18, 4)),  # AER masks, severity, control
    0x0D: ((6, 2),),  # ACS control
    0x0F: ((6, 2),),  # ATS control
    0x15: ((8, 4),),  # resizable BAR control
    0x18: ((4, 4),),  # LTR
}


class Neighbours(Protocol):
    """The part of the PCI core that one function needs of the others."""

    def on_bus(self, device: PciDevice) -> list[PciDevice]:
        """Every function on the bus of ``device``, itself included."""
        ...

    def bus_reset(self, device: PciDevice) -> None:
        """Pulse the secondary bus reset of the bridge above ``device``."""
        ...

    def bridge_above(self, device: PciDevice) -> PciDevice | None:
        """The bridge that owns the bus of ``device``."""
        ...


class PciDevice:
    """One function as the kernel sees it.

    ``resources`` are the ranges the kernel assigned, by index (0-5 BARs, 6 ROM); by default they
    follow from the function's BARs.
    """

    def __init__(
        self,
        function: Function,
        *,
        identity: Identity | None = None,
        resources: tuple[Resource, ...] | None = None,
        reset_methods: tuple[str, ...] | None = None,
        neighbours: Neighbours | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.function = function
        self.bdf: Bdf = function.bdf
        config = function.config
        self.vendor_id = identity.vendor_id if identity else config.read(0, 2)
        self.device_id = identity.device_id if identity else config.read(2, 2)
        self.class_code = identity.class_code if identity else config.read(8, 4) >> 8
        endpoint = not config.read(regs.PCI_HEADER_TYPE, 1) & 0x7F  # bridges have a window there
        self.subsystem_vendor_id = config.read(0x2C, 2) if endpoint else 0
        self.subsystem_device_id = config.read(0x2E, 2) if endpoint else 0
        if identity is not None:
            self.subsystem_vendor_id = identity.subsystem_vendor_id
            self.subsystem_device_id = identity.subsystem_device_id
        found = resources if resources is not None else bar_resources(function)
        self._resources = {resource.index: resource for resource in found}
        self.settle = settle
        self.neighbours = neighbours
        self.power_state = function.power_state
        self.enable_count = 0
        self.group: int | None = None
        """Number of its IOMMU group."""
        self.driver: str | None = None
        self.driver_override: str | None = None
        self.resetting = False
        self.restore_msi: Callable[[], None] | None = None
        """Writes the messages of active MSI or MSI-X vectors back after a reset."""
        self.restore_virtual: Callable[[], None] | None = None
        """Enables the VFs of a PF again after a reset."""
        self.may_probe: Callable[[], bool] = lambda: True
        """Whether drivers may have a VF that no ``driver_override`` gives to one."""
        self._reset_methods = reset_methods
        self._recorded_methods = reset_methods
        self._offsets: dict[tuple[int, bool], int] | None = None

    def __repr__(self) -> str:
        return f"<PciDevice {self.bdf} driver={self.driver}>"

    # -- identity -----------------------------------------------------------------------------

    @property
    def is_virtual(self) -> bool:
        """Whether it is an SR-IOV virtual function."""
        return self.function.physfn is not None

    @property
    def no_command_memory(self) -> bool:
        """A VF has no memory enable bit of its own: its PF's SR-IOV capability has."""
        return self.is_virtual

    @property
    def config_size(self) -> int:
        """Bytes of configuration space: 256 or 4096."""
        size = len(self.function.config)
        return size if size in (regs.PCI_CFG_SPACE_SIZE, regs.PCI_CFG_SPACE_EXP_SIZE) else 256

    @property
    def header_type(self) -> int:
        """0 normal, 1 bridge, 2 CardBus; a VF is normal."""
        return 0 if self.is_virtual else self.read(regs.PCI_HEADER_TYPE, 1) & 0x7F

    def resource(self, index: int) -> Resource:
        """The assigned range at ``index``; an empty one when there is none."""
        return self._resources.get(index, Resource(index, 0, 0, 0))

    def find_capability(self, cap_id: int) -> int:
        """Where the standard capability ``cap_id`` starts; 0 when it is missing."""
        return self._find(cap_id, extended=False)

    def find_extended(self, cap_id: int) -> int:
        """Where the extended capability ``cap_id`` starts; 0 when it is missing."""
        return self._find(cap_id, extended=True)

    def _find(self, cap_id: int, *, extended: bool) -> int:
        if self._offsets is None:  # capabilities do not move
            self._offsets = {}
            for found in capabilities(ConfigSpace(bytes(self.function.config.data))):
                self._offsets.setdefault((found.id, found.extended), found.offset)
        return self._offsets.get((cap_id, extended), 0)

    @property
    def is_express(self) -> bool:
        """Whether it has a PCI Express capability."""
        return bool(self.find_capability(regs.PCI_CAP_ID_EXP))

    # -- configuration accesses ---------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A configuration read of the hardware."""
        return self.function.config_read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """A configuration write to the hardware."""
        self.function.config_write(offset, width, value)
        self.settle()

    def update(self, offset: int, width: int, *, clear: int = 0, set_bits: int = 0) -> None:
        """Read, change bits, write."""
        self.write(offset, width, self.read(offset, width) & ~clear | set_bits)

    def load(self, bar: int, offset: int, width: int) -> int:
        """A load from a BAR. Decoding of a VF's BARs is its PF's business, and always on."""
        function = self.function
        if not self.is_virtual:
            return function.bar_read(bar, offset, width)
        if function.msix is not None and function.msix.covers(bar, offset):
            return function.msix.read(bar, offset, width)
        return function.mmio_read(bar, offset, width)

    def store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store to a BAR."""
        function = self.function
        if not self.is_virtual:
            function.bar_write(bar, offset, width, value)
        elif function.msix is not None and function.msix.covers(bar, offset):
            function.msix.write(bar, offset, width, value)
        else:
            function.mmio_write(bar, offset, width, value)

    # -- enable, power ------------------------------------------------------------------------

    def enable(self) -> None:
        """``pci_enable_device``: decode what the function has resources for."""
        self.enable_count += 1
        self.set_power(D0)
        if self.enable_count == 1 and not self.is_virtual:
            bits = 0
            for index in range(7):
                flags = self.resource(index).flags if self.resource(index).start else 0
                bits |= regs.PCI_COMMAND_MEMORY if flags & IORESOURCE_MEM and index < 6 else 0
                bits |= regs.PCI_COMMAND_IO if flags & IORESOURCE_IO else 0
            self.update(regs.PCI_COMMAND, 2, set_bits=bits)

    def disable(self) -> None:
        """``pci_disable_device``: the last user's call clears bus mastering."""
        self.enable_count = max(self.enable_count - 1, 0)
        if not self.enable_count:
            self.set_master(False)

    def set_master(self, on: bool) -> None:
        """Bus Master Enable."""
        bit = regs.PCI_COMMAND_MASTER
        present = self.read(regs.PCI_COMMAND, 2)
        if bool(present & bit) is not on:
            self.write(regs.PCI_COMMAND, 2, present | bit if on else present & ~bit)

    def set_power(self, state: int) -> None:
        """Enter D0 to D3hot; nothing happens without a power management capability."""
        at = self.find_capability(regs.PCI_CAP_ID_PM)
        if not at or state == self.power_state:
            return
        self.update(at + regs.PCI_PM_CTRL, 2, clear=regs.PCI_PM_CTRL_STATE_MASK, set_bits=state)
        self.power_state = state

    @property
    def loses_state_in_d3(self) -> bool:
        """Whether a return from D3hot resets it (No_Soft_Reset clear)."""
        at = self.find_capability(regs.PCI_CAP_ID_PM)
        return bool(at) and not (
            self.read(at + regs.PCI_PM_CTRL, 2) & regs.PCI_PM_CTRL_NO_SOFT_RESET
        )

    # -- saved state --------------------------------------------------------------------------

    def save(self) -> dict[tuple[int, int], int]:
        """``pci_save_state``: registers by ``(offset, width)``."""
        kept = [(offset, 4) for offset in range(0x3C, 0x0C, -4)]
        kept += [(0x0C, 4), (regs.PCI_COMMAND, 2)]
        for capability in capabilities(ConfigSpace(bytes(self.function.config.data))):
            table = _SAVED_EXTENDED if capability.extended else _SAVED_STANDARD
            for relative, width in table.get(capability.id, ()):
                kept.append((capability.offset + relative, width))
            if capability.id == regs.PCI_CAP_ID_MSI and not capability.extended:
                kept += _msi_registers(self, capability.offset)
        return {place: self.read(*place) for place in kept}

    def restore(self, saved: dict[tuple[int, int], int]) -> None:
        """``pci_restore_state``: write back what differs, header first, command last in it."""
        for (offset, width), value in saved.items():
            if self.function.config_read(offset, width) != value:
                self.function.config_write(offset, width, value)
        if self.restore_msi is not None:
            self.restore_msi()
        if self.restore_virtual is not None:
            self.restore_virtual()
        self.settle()

    # -- reset --------------------------------------------------------------------------------

    def find_reset_methods(self) -> None:
        """``pci_init_reset_methods``, unless they were recorded."""
        if self._reset_methods is None:
            self._reset_methods = self._probe_methods()

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """Methods that would be tried, in order; found at enumeration or set by the user."""
        self.find_reset_methods()
        return self._reset_methods or ()

    def choose_reset_methods(self, text: str) -> None:
        """``reset_method`` written by the user: EINVAL for a method that it has not now."""
        available = self._recorded_methods or self._probe_methods()
        text = text.strip()
        if not text:
            self._reset_methods = ()
        elif text == "default":
            self._reset_methods = available
        else:
            wanted = text.split()
            unknown = [name for name in wanted if name not in available]
            if unknown:
                raise failure(errno.EINVAL, f"no reset method {unknown[0]!r}")
            self._reset_methods = tuple(wanted)

    def reset(self) -> None:
        """``pci_try_reset_function``: save, reset by the first method that can, restore.

        ENOTTY without a method that can; EAGAIN while another reset of the function runs.
        """
        if not self.reset_methods:
            raise failure(errno.ENOTTY, f"{self.bdf} has no reset method")
        with self.locked():
            self.set_power(D0)
            saved = self.save()
            self.set_master(False)
            try:
                self._reset_by_any()
            finally:
                self.restore(saved)

    def _reset_by_any(self) -> None:
        """``__pci_reset_function_locked``: a method that is ENOTTY leaves it to the next."""
        for method in self.reset_methods:
            if method == "bus" and not self._alone_on_bus():
                continue
            self._reset_by(method)
            return
        raise failure(errno.ENOTTY, f"no reset method of {self.bdf} works now")

    def _alone_on_bus(self) -> bool:
        """Whether a reset of the bus reaches no other function."""
        return (
            self.neighbours is not None
            and self.header_type == regs.PCI_HEADER_TYPE_NORMAL
            and self.neighbours.bridge_above(self) is not None
            and len(self.neighbours.on_bus(self)) == 1
        )

    def _reset_by(self, method: str) -> None:
        """What the hardware sees of a reset."""
        if method == "flr":
            control = self.find_capability(regs.PCI_CAP_ID_EXP) + regs.PCI_EXP_DEVCTL
            self.update(control, 2, set_bits=regs.PCI_EXP_DEVCTL_BCR_FLR)
        elif method == "af_flr":
            at = self.find_capability(regs.PCI_CAP_ID_AF)
            self.write(at + regs.PCI_AF_CTRL, 1, regs.PCI_AF_CTRL_FLR)
        elif method == "pm":
            self.set_power(D3HOT)
            self.set_power(D0)
        elif method in ("bus", "cxl_bus"):
            if self.neighbours is None:
                raise failure(errno.ENOTTY, "no bus to reset")
            self.neighbours.bus_reset(self)
        else:  # firmware and device quirks are not modelled: they end in the same state
            self.function.reset(ResetKind.FUNCTION_LEVEL)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The device lock, as far as resets compete for it (EAGAIN)."""
        if self.resetting:
            raise failure(errno.EAGAIN, f"{self.bdf} is being reset")
        self.resetting = True
        try:
            yield
        finally:
            self.resetting = False

    def _probe_methods(self) -> tuple[str, ...]:
        found: list[str] = []
        express = self.find_capability(regs.PCI_CAP_ID_EXP)
        if express and self.read(express + regs.PCI_EXP_DEVCAP, 4) & regs.PCI_EXP_DEVCAP_FLR:
            found.append("flr")
        features = self.find_capability(regs.PCI_CAP_ID_AF)
        needed = regs.PCI_AF_CAP_TP | regs.PCI_AF_CAP_FLR
        if features and self.read(features + regs.PCI_AF_CAP, 1) & needed == needed:
            found.append("af_flr")
        if self.is_virtual:
            return tuple(found)
        if self.find_capability(regs.PCI_CAP_ID_PM) and self.loses_state_in_d3:
            found.append("pm")
        if self._alone_on_bus():
            found.append("bus")
        return tuple(found)


def _msi_registers(device: PciDevice, at: int) -> list[tuple[int, int]]:
    flags = device.read(at + regs.PCI_MSI_FLAGS, 2)
    data = regs.PCI_MSI_DATA_64 if flags & regs.PCI_MSI_FLAGS_64BIT else regs.PCI_MSI_DATA_32
    kept = [(at + offset, 4) for offset in range(regs.PCI_MSI_ADDRESS_LO, data, 4)]
    kept.append((at + data, 2))
    if flags & regs.PCI_MSI_FLAGS_MASKBIT:
        kept.append((at + data + 4, 4))
    return [*kept, (at + regs.PCI_MSI_FLAGS, 2)]


def bar_resources(function: Function) -> tuple[Resource, ...]:
    """The ranges that the BARs of a modelled function decode, as the kernel would assign them."""
    found: list[Resource] = []
    for bar in function.bars.values():
        start = function.bar_address(bar.index)
        flags = IORESOURCE_SIZEALIGN
        if bar.memory:
            flags |= IORESOURCE_MEM | (IORESOURCE_PREFETCH if bar.prefetchable else 0)
            flags |= IORESOURCE_MEM_64 if bar.wide else 0
        else:
            flags |= IORESOURCE_IO
        # The low bits repeat the BAR's own: sysfs shows 0x140204 for a 64-bit memory BAR.
        flags |= function.config.read(0x10 + 4 * bar.index, 1) & (0xE if bar.memory else 1)
        found.append(Resource(bar.index, start, start + bar.size - 1, flags))
    return tuple(found)

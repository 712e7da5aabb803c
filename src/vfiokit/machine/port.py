"""Bridges of a modelled machine: root ports, switch ports, PCIe-to-PCI and conventional bridges.

A bridge routes by the bus numbers and windows in its configuration bytes, read live, so what
software writes there is what the fabric does.
Source: PCI-to-PCI Bridge Architecture Specification 1.2 §3.2, PCIe Base Specification 6.0 §7.5.1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from vfiokit.errors import MachineError
from vfiokit.machine.build import (
    DEFAULT_LINK,
    Link,
    MsiLayout,
    MsixLayout,
    bridge_config,
    endpoint_config,
)
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType

__all__ = [
    "Bridge",
    "Link",
    "MsiLayout",
    "MsixLayout",
    "Window",
    "endpoint_config",
    "pci_bridge",
    "root_port",
    "switch_downstream",
    "switch_upstream",
]

Window = tuple[int, int]
"""Host physical addresses ``[start, end)``."""

_BUS_NUMBERS: Final = 0x18
_MEMORY_WINDOW: Final = 0x20
_PREFETCH_WINDOW: Final = 0x24
_BRIDGE_CONTROL: Final = 0x3E
_SECONDARY_RESET: Final = 0x0040
_VENDOR: Final = 0x1B36  # Red Hat: the ids QEMU's generic ports use
_CONVENTIONAL: Final = frozenset({None, PortType.PCIE_TO_PCI_BRIDGE})


class Bridge(Function):
    """A function with a bus below it (header type 1)."""

    def __init__(self, bdf: Bdf, config: ConfigModel, bars: tuple[BarModel, ...] = ()) -> None:
        self.below: Callable[[], Iterable[Function]] = tuple
        """Every function below, nearest first; set by the fabric."""
        super().__init__(bdf, config, bars)
        self._held = False
        config.allow(_BUS_NUMBERS, 4, 0xFFFFFFFF)
        config.allow(0x1C, 2, 0xF0F0)
        config.clear_on_one(0x1E, 2, 0xF900)
        config.allow(_MEMORY_WINDOW, 4, 0xFFF0FFF0)
        config.allow(_PREFETCH_WINDOW, 4, 0xFFF0FFF0)
        config.allow(0x28, 8, 0xFFFFFFFF_FFFFFFFF)
        config.allow(0x30, 4, 0xFFFFFFFF)
        config.allow(_BRIDGE_CONTROL, 2, 0x007F)
        config.watch(_BRIDGE_CONTROL, 2, self._control_written)

    @property
    def secondary(self) -> int:
        """Bus number directly below; 0 while not configured."""
        return self.config.data[0x19]

    @property
    def subordinate(self) -> int:
        """Highest bus number below."""
        return self.config.data[0x1A]

    @property
    def conventional(self) -> bool:
        """Whether the bus below is conventional PCI, where all functions hear each other."""
        return self.port_type in _CONVENTIONAL

    @property
    def memory_window(self) -> Window | None:
        """The 32-bit memory window; ``None`` when closed."""
        base = (self.config.read(_MEMORY_WINDOW, 2) & 0xFFF0) << 16
        limit = (self.config.read(_MEMORY_WINDOW + 2, 2) & 0xFFF0) << 16 | 0xFFFFF
        return (base, limit + 1) if base <= limit else None

    @property
    def prefetch_window(self) -> Window | None:
        """The prefetchable window, up to 64 bits; ``None`` when closed."""
        base, limit = self.config.read(_PREFETCH_WINDOW, 2), self.config.read(0x26, 2)
        start = (base & 0xFFF0) << 16
        last = (limit & 0xFFF0) << 16 | 0xFFFFF
        if base & 0xF == 1:
            start |= self.config.read(0x28, 4) << 32
            last |= self.config.read(0x2C, 4) << 32
        return (start, last + 1) if start <= last else None

    def windows(self) -> tuple[Window, ...]:
        """The open windows; none while memory decoding is off."""
        if not self.memory_enabled:
            return ()
        return tuple(
            window for window in (self.memory_window, self.prefetch_window) if window is not None
        )

    def claims(self, hpa: int) -> bool:
        """Whether a window forwards ``hpa`` downstream."""
        return any(start <= hpa < end for start, end in self.windows())

    def set_window(self, start: int, end: int, *, prefetchable: bool = False) -> None:
        """Program a window to ``[start, end)``, as firmware does; ``start >= end`` closes it.

        Bounds are multiples of 1 MiB. Raises :class:`MachineError` otherwise, and for a
        non-prefetchable window above 4 GiB.
        """
        if start >= end:
            start, end = 0xFFF00000, 0x00100000
        if start & 0xFFFFF or end & 0xFFFFF or (not prefetchable and end > 1 << 32):
            raise MachineError(f"bridge {self.bdf} cannot have a window {start:#x}-{end:#x}")
        last = end - 1
        at = _PREFETCH_WINDOW if prefetchable else _MEMORY_WINDOW
        kind = 1 if prefetchable else 0
        self.config.set(at, 2, start >> 16 & 0xFFF0 | kind)
        self.config.set(at + 2, 2, last >> 16 & 0xFFF0 | kind)
        if prefetchable:
            self.config.set(0x28, 4, start >> 32)
            self.config.set(0x2C, 4, last >> 32)
        self.config.remember()

    def secondary_bus_reset(self) -> None:
        """Reset every function below, bridges included."""
        for function in tuple(self.below()):
            function.reset(ResetKind.BUS)

    def reset(self, kind: ResetKind) -> None:
        """Bus numbers clear and windows close, so nothing below can be reached until software
        programs them again; a bus reset reaches everything below as well.
        """
        super().reset(kind)
        self.config.set(_BUS_NUMBERS, 4, 0)
        self.config.set(_MEMORY_WINDOW, 4, 0)
        prefetch = self.config.read(_PREFETCH_WINDOW, 4) & 0x000F000F
        self.config.set(_PREFETCH_WINDOW, 4, prefetch)
        self.config.set(0x28, 8, 0)
        self.config.set(_BRIDGE_CONTROL, 2, 0)
        self._held = False
        if kind is not ResetKind.BUS:  # a bus reset from above visits them anyway
            self.secondary_bus_reset()

    def _control_written(self, offset: int, width: int) -> None:
        del offset, width
        asserted = bool(self.config.read(_BRIDGE_CONTROL, 2) & _SECONDARY_RESET)
        if asserted and not self._held:
            self.secondary_bus_reset()
        self._held = asserted


def root_port(
    bdf: Bdf,
    secondary: int,
    subordinate: int | None = None,
    *,
    acs_capability: int | None = 0x1F,
    acs_control: int = 0,
    window: Window | None = None,
    prefetch: Window | None = None,
    port_number: int = 0,
    multifunction: bool = False,
    vendor_id: int = _VENDOR,
    device_id: int = 0x000C,
    link: Link = DEFAULT_LINK,
) -> Bridge:
    """A root port. ``subordinate`` defaults to ``secondary``, windows to closed."""
    return _bridge(
        PortType.ROOT_PORT,
        bdf,
        secondary,
        subordinate,
        window,
        prefetch,
        acs_capability=acs_capability,
        acs_control=acs_control,
        port_number=port_number,
        multifunction=multifunction,
        vendor_id=vendor_id,
        device_id=device_id,
        link=link,
    )


def switch_upstream(
    bdf: Bdf,
    secondary: int,
    subordinate: int | None = None,
    *,
    acs_capability: int | None = None,
    acs_control: int = 0,
    window: Window | None = None,
    prefetch: Window | None = None,
    multifunction: bool = False,
    vendor_id: int = 0x104C,
    device_id: int = 0x8232,
    link: Link = DEFAULT_LINK,
) -> Bridge:
    """The upstream port of a switch."""
    return _bridge(
        PortType.UPSTREAM,
        bdf,
        secondary,
        subordinate,
        window,
        prefetch,
        acs_capability=acs_capability,
        acs_control=acs_control,
        multifunction=multifunction,
        vendor_id=vendor_id,
        device_id=device_id,
        link=link,
    )


def switch_downstream(
    bdf: Bdf,
    secondary: int,
    subordinate: int | None = None,
    *,
    acs_capability: int | None = 0x7F,
    acs_control: int = 0,
    window: Window | None = None,
    prefetch: Window | None = None,
    port_number: int | None = None,
    multifunction: bool = False,
    vendor_id: int = 0x104C,
    device_id: int = 0x8233,
    link: Link = DEFAULT_LINK,
) -> Bridge:
    """A downstream port of a switch; its port number defaults to its device number."""
    return _bridge(
        PortType.DOWNSTREAM,
        bdf,
        secondary,
        subordinate,
        window,
        prefetch,
        acs_capability=acs_capability,
        acs_control=acs_control,
        port_number=bdf.device if port_number is None else port_number,
        multifunction=multifunction,
        vendor_id=vendor_id,
        device_id=device_id,
        link=link,
    )


def pci_bridge(
    bdf: Bdf,
    secondary: int,
    subordinate: int | None = None,
    *,
    express: bool = True,
    window: Window | None = None,
    prefetch: Window | None = None,
    vendor_id: int = _VENDOR,
    device_id: int = 0x000E,
) -> Bridge:
    """A PCIe-to-PCI bridge, or with ``express=False`` a conventional PCI-to-PCI bridge."""
    return _bridge(
        PortType.PCIE_TO_PCI_BRIDGE if express else None,
        bdf,
        secondary,
        subordinate,
        window,
        prefetch,
        vendor_id=vendor_id,
        device_id=device_id,
    )


def _bridge(
    port_type: PortType | None,
    bdf: Bdf,
    secondary: int,
    subordinate: int | None,
    window: Window | None,
    prefetch: Window | None,
    *,
    vendor_id: int,
    device_id: int,
    acs_capability: int | None = None,
    acs_control: int = 0,
    port_number: int = 0,
    multifunction: bool = False,
    link: Link = DEFAULT_LINK,
) -> Bridge:
    last = secondary if subordinate is None else subordinate
    if not bdf.bus < secondary <= last <= 0xFF:
        raise MachineError(f"bridge {bdf} cannot have buses {secondary:02x}-{last:02x} below it")
    config = bridge_config(
        port_type,
        vendor_id=vendor_id,
        device_id=device_id,
        primary=bdf.bus,
        secondary=secondary,
        subordinate=last,
        acs_capability=acs_capability,
        acs_control=acs_control,
        port_number=port_number,
        multifunction=multifunction,
        link=link,
    )
    bridge = Bridge(bdf, config)
    bridge.set_window(*(window or (1, 0)))
    bridge.set_window(*(prefetch or (1, 0)), prefetchable=True)
    return bridge

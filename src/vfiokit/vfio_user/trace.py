"""What a client does to a served device, in the names of its registers.

Names come from the descriptions that the rest of the package uses: configuration space and its
capabilities, the registers and doorbells of an NVMe controller, those of the edu device, and what
a device of one's own declares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from vfiokit.abi import vfio as abi
from vfiokit.machine.device import edu
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.device.nvme.registers import DOORBELLS, REGISTERS
from vfiokit.machine.function import Function
from vfiokit.pci.capability import capabilities
from vfiokit.pci.capability.register import Register
from vfiokit.pci.capability.text import field_text
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.header import COMMON, TYPE0
from vfiokit.vfio_user.device import Device
from vfiokit.vfio_user.function import FunctionDevice

_CONFIG: Final = abi.VFIO_PCI_CONFIG_REGION_INDEX
_REGIONS: Final = (*(f"BAR {bar}" for bar in range(6)), "ROM", "config", "VGA")
_IRQS: Final = ("INTx", "MSI", "MSI-X", "ERR", "REQ")
_ENTRY: Final = ("address", "upper address", "data", "control")
_ENTRY_SIZE: Final = 16
_LONG: Final = 8
"""Bytes of an access whose value is one number."""
_EDU: Final = {
    getattr(edu, name): name.lower()
    for name in (
        *("IDENTIFICATION", "LIVENESS", "FACTORIAL", "STATUS", "IRQ_STATUS", "IRQ_RAISE"),
        *("IRQ_ACKNOWLEDGE", "DMA_SOURCE", "DMA_DESTINATION", "DMA_COUNT", "DMA_COMMAND"),
    )
}


class Event(NamedTuple):
    """Something that happened between a client and a device."""

    kind: str
    """``read`` and ``write`` of a region, ``dma read`` and ``dma write`` of the client's memory,
    ``signal`` of an interrupt, ``reset``."""
    where: str
    """``BAR 0``, ``config``, ``MSI-X``, ``memory``; empty for a reset."""
    offset: int
    """In the region; the IOVA of memory; the vector of an interrupt."""
    length: int
    """Bytes."""
    name: str
    """The register; empty where none is known."""
    value: int | None
    """Of accesses of up to 8 bytes."""
    text: str
    """What the value says: flags that are set, and other fields; empty where nothing is known."""

    def __str__(self) -> str:
        if self.kind == "reset":
            return "reset"
        if self.kind == "signal":
            return f"signal    {self.where} vector {self.offset}"
        line = f"{self.kind:<9} {self.where} {self.offset:#06x}"
        line += f" {self.name}" if self.name else ""
        if self.value is None:
            return f"{line}: {self.length} bytes"
        line += f" = {self.value:#0{2 + 2 * self.length}x}"
        return f"{line}: {self.text}" if self.text else line

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return self._asdict()


class Names:
    """The register names of one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._function = device.function if isinstance(device, FunctionDevice) else None
        data = b"" if self._function is None else bytes(self._function.config.data)
        self._config = _config_places(data) if data else {}
        if isinstance(self._function, NvmeFunction):
            self._stride = 4 << self._function.limits.doorbell_stride
            self._doorbells_end = DOORBELLS + self._function.limits.doorbell_size

    def find(self, region: int, offset: int) -> tuple[str, int, Register | None]:
        """Name, start and description of what is at ``offset``; an empty name for the unknown."""
        function = self._function
        if function is None:
            named = getattr(self._device, "register_name", None)
            name = named(region, offset) if named is not None else None
            return (name or "", offset, None)
        if region == _CONFIG:
            return self._config.get(offset, ("", offset, None))
        table = function.msix
        if table is not None and table.covers(region, offset):
            return self._msix(function, region, offset)
        if isinstance(function, NvmeFunction) and region == 0:
            return self._nvme(offset)
        if isinstance(function, edu.EduFunction) and region == 0:
            start = offset & ~7 if offset >= edu.DMA_SOURCE else offset & ~3
            return (_EDU.get(start, ""), start, None)
        named = getattr(function, "register_at", None)
        own = named(region, offset) if named is not None else None
        return ("", offset, None) if own is None else (own.name, own.offset, None)

    @staticmethod
    def _msix(function: Function, region: int, offset: int) -> tuple[str, int, None]:
        table = function.msix
        assert table is not None
        at = offset - table.table_offset
        if region != table.table_bar or not 0 <= at < table.table_size:
            return ("MSI-X pending bits", offset & ~7, None)
        vector, inside = divmod(at, _ENTRY_SIZE)
        return (f"MSI-X entry {vector} {_ENTRY[inside // 4]}", offset & ~3, None)

    def _nvme(self, offset: int) -> tuple[str, int, Register | None]:
        if DOORBELLS <= offset < self._doorbells_end:
            index = (offset - DOORBELLS) // self._stride
            start = DOORBELLS + index * self._stride
            kind = "CQ{} head" if index & 1 else "SQ{} tail"
            return (kind.format(index >> 1) + " doorbell", start, None)
        for register in REGISTERS:
            if register.offset <= offset < register.offset + register.width:
                return (register.name.upper(), register.offset, register)
        return ("", offset, None)


def _config_places(data: bytes) -> dict[int, tuple[str, int, Register | None]]:
    """What each byte of configuration space belongs to. Values move, registers do not."""
    found = [("", register.offset, register) for register in (*COMMON, *TYPE0)]
    for capability in capabilities(ConfigSpace(data)):
        found += [
            (f"{capability.name}.", capability.offset + register.offset, register)
            for register in capability.registers()
        ]
    return {
        at: (prefix + register.name, start, register)
        for prefix, start, register in found
        for at in range(start, start + register.width)
    }


class Trace:
    """Turns what a server's observer is told into events, and hands them to ``sink``."""

    def __init__(self, device: Device, sink: Callable[[Event], None]) -> None:
        self._names = Names(device)
        self._sink = sink

    def __call__(self, kind: str, index: int, offset: int, data: bytes) -> None:
        """Called by the server; see :data:`vfiokit.vfio_user.server.Observer`."""
        self._sink(self.event(kind, index, offset, data))

    def event(self, kind: str, index: int, offset: int, data: bytes) -> Event:
        """One event, decoded."""
        length = len(data)
        value = int.from_bytes(data, "little") if 0 < length <= _LONG else None
        if kind == "reset":
            return Event(kind, "", 0, 0, "", None, "")
        if kind == "signal":
            where = _IRQS[index] if index < len(_IRQS) else f"index {index}"
            return Event(kind, where, offset, 0, "", None, "")
        if kind.startswith("dma"):
            return Event(kind, "memory", offset, length, "", None, "")
        where = _REGIONS[index] if index < len(_REGIONS) else f"region {index}"
        if value is None:
            return Event(kind, where, offset, length, "", None, "")
        name, start, register = self._names.find(index, offset)
        text = ""
        if start != offset:
            name += f" +{offset - start}" if name else ""
        elif register is not None and length == register.width:
            # Flags that are clear are left out: a line is read while others pass by.
            words = [
                field_text(field, field.extract(value))
                for field in register.fields
                if field.high > field.low or field.extract(value)
            ]
            text = " ".join(words).rstrip(",")
        return Event(kind, where, offset, length, name, value, text)

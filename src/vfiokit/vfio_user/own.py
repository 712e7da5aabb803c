"""A device of one's own: registers declared once, with what happens when they are used.

::

    class Doubler(OwnDevice, vendor_id=0x1234, device_id=0xD0B1, class_code=0x120000, vectors=1):
        number = Register(0x00)
        double = Register(0x04, access="ro")

        @number.on_write
        def work(self, value: int) -> None:
            self.double = 2 * value
            self.raise_msix(0)

Inside the device a register is a number: read it, or set it as hardware does, whatever its access
for software. ``self.dma`` reads and writes the client's memory, ``self.raise_msix`` interrupts.

The device is a :class:`~vfiokit.machine.function.Function`: a server serves it, and a software
machine can be built with it, so that its driver can be tested without a socket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, Self, TypeVar, overload

from vfiokit.errors import UsageError
from vfiokit.machine.build import MsixLayout, endpoint_config
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.reset import ResetKind
from vfiokit.machine.txn import DmaError
from vfiokit.pci.address import Bdf
from vfiokit.vfio_user.device import Doorbell

Access = Literal["rw", "ro", "wo", "w1c"]
"""What software may do: read and write, read, write, or read and clear bits by writing ones."""
PLACE: Final = Bdf.parse("0000:00:00.0")
"""Where a served device believes to be; its client decides where it is."""
REGISTER_BAR: Final = 0
MSIX_BAR: Final = 2
_PAGE: Final = 4096
_LARGEST_BAR: Final = 1 << 30
_WIDTHS: Final = (1, 2, 4, 8)
_Hook = TypeVar("_Hook", bound=Callable[..., Any])
_log = logging.getLogger(__name__)


class Register:
    """One register of BAR 0: ``width`` bytes at ``offset``, aligned to its width.

    ``reset`` is the value at power-on and after every reset; ``mask`` are the bits that software
    can change. With ``eventfd`` a client may write it by an eventfd instead of a message, if it is
    one that can: a doorbell whose value does not matter. ``doc`` is for people.

    Software that reads less than the register gets that part; a wider access reaches every register
    that it covers, in order of their offsets. A write that covers a part of a register keeps the
    rest, and calls the hook with the whole value. Where no register is, zeros are read.
    """

    def __init__(
        self,
        offset: int,
        width: int = 4,
        access: Access = "rw",
        reset: int = 0,
        *,
        mask: int | None = None,
        eventfd: bool = False,
        doc: str = "",
    ) -> None:
        ones = (1 << 8 * width) - 1
        if width not in _WIDTHS or offset < 0 or offset % width:
            raise UsageError(f"no register has {width} bytes at {offset:#x}")
        if access not in ("rw", "ro", "wo", "w1c"):
            raise UsageError(f"a register with access {access!r}", hint="rw, ro, wo or w1c")
        if not 0 <= reset <= ones or not 0 <= (mask or 0) <= ones:
            raise UsageError(f"a register of {width} bytes with reset {reset:#x}, mask {mask!r}")
        self.offset = offset
        self.width = width
        self.access = access
        self.reset = reset
        self.mask = ones if mask is None else mask
        self.eventfd = eventfd
        self.doc = doc
        self.name = ""
        self._ones = ones
        self._write_hook = ""
        self._read_hook = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: OwnDevice, owner: type) -> int: ...
    def __get__(self, instance: OwnDevice | None, owner: type) -> Self | int:
        if instance is None:
            return self
        return instance.values[self.name]

    def __set__(self, instance: OwnDevice, value: int) -> None:
        instance.values[self.name] = value & self._ones

    def on_write(self, hook: _Hook) -> _Hook:
        """Decorator: call this method with the new value after software has written."""
        self._write_hook = hook.__name__
        return hook

    def on_read(self, hook: _Hook) -> _Hook:
        """Decorator: what this method returns is what software reads."""
        self._read_hook = hook.__name__
        return hook

    def load(self, device: OwnDevice) -> int:
        """What software reads."""
        if self.access == "wo":
            return 0
        if self._read_hook:
            return int(getattr(device, self._read_hook)()) & self._ones
        return device.values[self.name]

    def store(self, device: OwnDevice, value: int, written: int) -> None:
        """Software writes ``value``, of which the bits ``written`` are its own."""
        before = device.values[self.name]
        if self.access == "ro":
            return
        if self.access == "w1c":
            after = before & ~(value & written & self.mask)
        else:
            changed = written & self.mask
            after = before & ~changed | value & changed
        device.values[self.name] = after
        if self._write_hook:
            getattr(device, self._write_hook)(value & written if self.access == "w1c" else after)


class OwnDevice(Function):
    """Base of devices that are declared by their registers.

    A subclass says what it is in its class line: ``vendor_id``, ``device_id``, ``class_code`` (24
    bits, ``0x120000`` for an accelerator), ``revision``, ``vectors`` of MSI-X (0 for none, up to
    2048), ``bar_size`` where BAR 0 shall be larger than its registers need. Its constructor may
    take arguments of its own, before it calls this one's.
    """

    registers: ClassVar[tuple[Register, ...]] = ()
    """In order of their offsets."""
    _identity: ClassVar[dict[str, int]] = {}
    _bytes: ClassVar[dict[int, Register]] = {}
    _bar_size: ClassVar[int] = _PAGE

    def __init_subclass__(
        cls,
        *,
        vendor_id: int | None = None,
        device_id: int | None = None,
        class_code: int | None = None,
        revision: int | None = None,
        vectors: int | None = None,
        bar_size: int | None = None,
    ) -> None:
        super().__init_subclass__()
        given = {
            "vendor_id": (vendor_id, 0xFFFF),
            "device_id": (device_id, 0xFFFF),
            "class_code": (class_code, 0xFFFFFF),
            "revision": (revision, 0xFF),
            "vectors": (vectors, 2048),
        }
        for name, (value, most) in given.items():
            if value is not None and not 0 <= value <= most:
                raise UsageError(f"{cls.__name__}: {name} {value:#x} is beyond {most:#x}")
        own = {name: value for name, (value, _most) in given.items() if value is not None}
        cls._identity = {**cls._identity, **own}
        found = {
            name: register
            for base in reversed(cls.__mro__)
            for name, register in vars(base).items()
            if isinstance(register, Register)
        }
        cls.registers = tuple(sorted(found.values(), key=lambda register: register.offset))
        cls._bytes = _places(cls.__name__, cls.registers)
        needed = max(cls._bytes, default=0) + 1
        cls._bar_size = max(1 << (needed - 1).bit_length(), _PAGE)
        if bar_size is not None:
            if bar_size & bar_size - 1 or not cls._bar_size <= bar_size <= _LARGEST_BAR:
                raise UsageError(
                    f"{cls.__name__}: a BAR of {bar_size:#x} bytes",
                    hint=f"a power of two from {cls._bar_size:#x} to {_LARGEST_BAR:#x}",
                )
            cls._bar_size = bar_size

    def __init__(self, bdf: Bdf = PLACE) -> None:
        identity = {"vectors": 0, "revision": 0, **self._identity}
        missing = {"vendor_id", "device_id", "class_code"} - identity.keys()
        if missing:
            raise UsageError(
                f"{type(self).__name__} has no {', '.join(sorted(missing))}",
                hint="class Mine(OwnDevice, vendor_id=0x1234, device_id=1, class_code=0x120000)",
            )
        vectors = identity["vectors"]
        bars = [BarModel(REGISTER_BAR, self._bar_size)]
        if vectors:
            size = vectors * 16 + -(-vectors // 64) * 8
            bars.append(BarModel(MSIX_BAR, max(1 << (size - 1).bit_length(), _PAGE)))
        config = endpoint_config(
            identity["vendor_id"],
            identity["device_id"],
            identity["class_code"],
            revision=identity["revision"],
            msix=MsixLayout(vectors, MSIX_BAR) if vectors else None,
        )
        self.values = {register.name: register.reset for register in self.registers}
        """Of all registers, by name."""
        super().__init__(bdf, config, tuple(bars))

    @property
    def doorbells(self) -> tuple[Doorbell, ...]:
        """Registers that a client may write by eventfd."""
        return tuple(
            Doorbell(REGISTER_BAR, register.offset, register.width)
            for register in self.registers
            if register.eventfd
        )

    def register_at(self, bar: int, offset: int) -> Register | None:
        """The register at ``offset``, for traces."""
        return self._bytes.get(offset) if bar == REGISTER_BAR else None

    # -- software -----------------------------------------------------------------------------

    def mmio_read(self, bar: int, offset: int, width: int) -> int:
        """A load: of a register, part of one, or several."""
        value, at = 0, offset
        while at < offset + width:
            register = self._bytes.get(at) if bar == REGISTER_BAR else None
            if register is None:
                at += 1
                continue
            value |= register.load(self) >> 8 * (at - register.offset) << 8 * (at - offset)
            at = register.offset + register.width
        return value & (1 << 8 * width) - 1

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store: to a register, part of one, or several. A hook ends where its DMA fails."""
        at = offset
        while at < offset + width:
            register = self._bytes.get(at) if bar == REGISTER_BAR else None
            if register is None:
                at += 1
                continue
            end = min(register.offset + register.width, offset + width)
            shift = 8 * (at - register.offset)
            written = (1 << 8 * (end - at)) - 1
            part = value >> 8 * (at - offset) & written
            try:
                register.store(self, part << shift, written << shift)
            except DmaError as error:
                self.dma_failed(error)
            at = end

    # -- what a subclass may replace ----------------------------------------------------------

    def dma_failed(self, error: DmaError) -> None:
        """A hook reached for memory that is not there, and did not catch it: say so and go on."""
        _log.warning("%s: %s", type(self).__name__, error)

    def on_reset(self) -> None:
        """After a reset, when the registers have their reset values."""

    def reset(self, kind: ResetKind) -> None:
        """Every kind returns the registers to their reset values."""
        super().reset(kind)
        self.values.update((register.name, register.reset) for register in self.registers)
        self.on_reset()

    def state(self) -> dict[str, Any]:
        """The registers; a subclass with more adds it: plain numbers, texts, bytes and lists."""
        return {"registers": dict(self.values)}

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; :class:`UsageError` for another device's state."""
        values = state["registers"]
        if values.keys() != self.values.keys() or any(
            type(value) is not int or value < 0 for value in values.values()
        ):
            raise UsageError(f"registers of another device than {type(self).__name__}")
        for register in self.registers:
            register.__set__(self, values[register.name])


def _places(name: str, registers: tuple[Register, ...]) -> dict[int, Register]:
    """Each byte's register; :class:`UsageError` where two overlap, or one lies too far out."""
    found: dict[int, Register] = {}
    for register in registers:
        if register.offset + register.width > _LARGEST_BAR:
            raise UsageError(f"{name}.{register.name} at {register.offset:#x}: a BAR has 1 GiB")
        for at in range(register.offset, register.offset + register.width):
            if at in found:
                raise UsageError(f"{name}: {register.name} and {found[at].name} overlap")
            found[at] = register
    return found

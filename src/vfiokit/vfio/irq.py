"""Interrupt indices of a device: INTx, MSI, MSI-X, error, request.

Source: Linux ``drivers/vfio/pci/vfio_pci_intrs.c``, ``vfio_set_irqs_validate_and_prepare``.
"""

from __future__ import annotations

import errno
import struct
from types import TracebackType

from vfiokit.abi import vfio as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio.failure import request
from vfiokit.vfio.vector import Vector

NAMES = {
    abi.VFIO_PCI_INTX_IRQ_INDEX: "INTx",
    abi.VFIO_PCI_MSI_IRQ_INDEX: "MSI",
    abi.VFIO_PCI_MSIX_IRQ_INDEX: "MSI-X",
    abi.VFIO_PCI_ERR_IRQ_INDEX: "ERR",
    abi.VFIO_PCI_REQ_IRQ_INDEX: "REQ",
}
_MASK = abi.VFIO_IRQ_SET_ACTION_MASK
_UNMASK = abi.VFIO_IRQ_SET_ACTION_UNMASK
_TRIGGER = abi.VFIO_IRQ_SET_ACTION_TRIGGER


def pack_irq_set(
    index: int, action: int, start: int, count: int, eventfds: list[int] | None = None
) -> bytearray:
    """The buffer of ``VFIO_DEVICE_SET_IRQS``: DATA_NONE, or DATA_EVENTFD with ``eventfds``."""
    data = b"" if eventfds is None else struct.pack(f"<{len(eventfds)}i", *eventfds)
    kind = abi.VFIO_IRQ_SET_DATA_NONE if eventfds is None else abi.VFIO_IRQ_SET_DATA_EVENTFD
    head = abi.vfio_irq_set(
        argsz=abi.vfio_irq_set.SIZE + len(data),
        flags=kind | action,
        index=index,
        start=start,
        count=count,
    )
    return head.pack() + data


class Vectors(tuple[Vector, ...]):
    """What :meth:`IrqIndex.enable` made; leaving the ``with`` block disables the whole index."""

    irq: IrqIndex

    @classmethod
    def of(cls, irq: IrqIndex, vectors: list[Vector]) -> Vectors:
        """The ``vectors`` of ``irq``."""
        made = cls(vectors)
        made.irq = irq
        return made

    def __enter__(self) -> Vectors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.irq.disable()


class IrqIndex:
    """One kind of interrupt of an open device. INTx, MSI and MSI-X exclude each other."""

    def __init__(self, kernel: Kernel, fd: int, index: int, device: str) -> None:
        self._kernel = kernel
        self._fd = fd
        self._device = device
        self.index = index
        """``VFIO_PCI_*_IRQ_INDEX``."""
        self._info: abi.vfio_irq_info | None = None
        self._vectors: dict[int, Vector] = {}
        self._resample = -1

    def __str__(self) -> str:
        return f"{NAMES.get(self.index, f'interrupt index {self.index}')} of {self._device}"

    def __repr__(self) -> str:
        return f"<IrqIndex {self} enabled={sorted(self._vectors)}>"

    @property
    def info(self) -> abi.vfio_irq_info:
        """Flags and count; an index that the device does not have counts 0."""
        if self._info is None:
            answer = abi.vfio_irq_info(argsz=abi.vfio_irq_info.SIZE, index=self.index)
            buffer = answer.pack()
            try:
                request(self._kernel, self._fd, "VFIO_DEVICE_GET_IRQ_INFO", buffer, self)
                answer = abi.vfio_irq_info.unpack_from(buffer)
            except KernelError as error:
                # The kernel answers so for ERR of a function without PCI Express.
                if error.errno != errno.EINVAL:
                    raise
            self._info = answer
        return self._info

    @property
    def count(self) -> int:
        """How many vectors the device has at this index."""
        return self.info.count

    @property
    def resizable(self) -> bool:
        """Whether vectors can be added while others are active."""
        return not self.info.flags & abi.VFIO_IRQ_INFO_NORESIZE

    @property
    def vectors(self) -> dict[int, Vector]:
        """The active vectors by number, a copy."""
        return dict(self._vectors)

    def enable(self, count: int | None = None, *, start: int = 0) -> Vectors:
        """Activate vectors ``start`` … ``start + count - 1``, each with an eventfd of its own.

        ``count`` defaults to all from ``start`` on. Raises :class:`UsageError` for vectors that
        the device does not have or that are active, :class:`KernelError` when the kernel
        refuses: EINVAL while another kind of interrupt is active, ENOSPC when the host has fewer
        vectors to give.
        """
        if count is None:
            count = self.count - start
        if start < 0 or count < 1 or start + count > self.count:
            raise UsageError(
                f"{self} has {self.count} vectors; {count} from {start} on cannot be enabled"
            )
        if self._vectors and not self.resizable:
            raise UsageError(
                f"{self} is active, and vectors cannot be added",
                hint="disable it, then enable all vectors at once",
            )
        numbers = range(start, start + count)
        taken = [number for number in numbers if number in self._vectors]
        if taken:
            raise UsageError(f"{self}: vector {taken[0]} is active already")
        made = [Vector(self._kernel, f"{self}, vector {number}") for number in numbers]
        try:
            self._set(_TRIGGER, start, count, [vector.fileno() for vector in made])
        except BaseException:
            for vector in made:
                vector.close()
            raise
        self._vectors.update(zip(numbers, made, strict=True))
        return Vectors.of(self, made)

    def mask(self) -> None:
        """Mask INTx: no interrupt is delivered until :meth:`unmask`."""
        self._set(_MASK, 0, 1)

    def unmask(self) -> None:
        """Unmask INTx; the kernel masked it when it delivered the last interrupt.

        Acknowledge at the device first, or the level that is still high interrupts again.
        """
        self._set(_UNMASK, 0, 1)

    def resample_fd(self) -> int:
        """An eventfd that unmasks INTx each time it is written, for an interrupt controller.

        The same one on every call while INTx is active; closed by :meth:`disable`.
        """
        if self._resample < 0:
            fd = self._kernel.eventfd()
            try:
                self._set(_UNMASK, 0, 1, [fd])
            except BaseException:
                self._kernel.close(fd)
                raise
            self._resample = fd
        return self._resample

    def trigger(self, vector: int = 0) -> None:
        """Let the kernel signal ``vector`` as if the device had: a loopback test of the path."""
        self._set(_TRIGGER, vector, 1)

    def disable(self) -> None:
        """Deactivate every vector of this index and close their eventfds. Idempotent."""
        if not self._vectors:
            return
        vectors, self._vectors = self._vectors, {}
        try:
            if self._resample >= 0:
                self._set(_UNMASK, 0, 1, [-1])
            self._set(_TRIGGER, 0, 0)
        finally:
            for vector in vectors.values():
                vector.close()
            if self._resample >= 0:
                fd, self._resample = self._resample, -1
                self._kernel.close(fd)

    def _set(self, action: int, start: int, count: int, eventfds: list[int] | None = None) -> None:
        buffer = pack_irq_set(self.index, action, start, count, eventfds)
        verb = {_MASK: "mask", _UNMASK: "unmask", _TRIGGER: "trigger"}[action]
        what = f"{verb} {count} from {start}"
        available = request(self._kernel, self._fd, "VFIO_DEVICE_SET_IRQS", buffer, self, what)
        if available:
            raise KernelError(
                "VFIO_DEVICE_SET_IRQS",
                str(self),
                errno.ENOSPC,
                detail=f"{what}: the host can give {available} vectors now",
                hint=f"enable at most {available}",
            )

"""What a server serves: the device protocol, small enough for a device of one's own.

A device shows regions and interrupts by VFIO's numbers for PCI (BARs 0 to 5, ROM 6, configuration
space 7; INTx 0, MSI 1, MSI-X 2, error 3, request 4), and reaches its client through the
:class:`Host` it is connected to. ``machine.device`` models are adapted by
:class:`vfiokit.vfio_user.function.FunctionDevice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vfiokit.abi import vfio as abi
from vfiokit.vfio_user.payload import IoFd, SparseArea

NUM_REGIONS = abi.VFIO_PCI_NUM_REGIONS
NUM_IRQS = abi.VFIO_PCI_NUM_IRQS


@dataclass(frozen=True, slots=True)
class ServedRegion:
    """One region as the client may use it."""

    size: int = 0
    """Bytes; 0 where the device has no such region."""
    readable: bool = True
    writable: bool = True
    areas: tuple[SparseArea, ...] | None = None
    """Parts that the client may map from ``fd``; ``None`` with a descriptor means all of it."""
    fd: int = -1
    """A file that holds the region's bytes, to be mapped; -1 for registers."""
    fd_offset: int = 0
    """Where the region begins in that file."""


class Doorbell(NamedTuple):
    """A register that a client's kernel may write by an eventfd, with no message."""

    region: int
    offset: int
    width: int
    value: int | None = None
    """The only value that the eventfd stands for; ``None``: any, as it does not matter."""


class Host(Protocol):
    """What a device may ask of its client, through the server."""

    def dma_read(self, iova: int, length: int) -> bytes:
        """Read the client's memory. :class:`~vfiokit.vfio_user.dma.DmaFault` where it is not
        mapped, not readable, or the client is gone.
        """
        ...

    def dma_write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """Write the client's memory; :class:`~vfiokit.vfio_user.dma.DmaFault` as for reads."""
        ...

    def signal(self, index: int, vector: int) -> bool:
        """Signal an interrupt; false where the client has no eventfd for it."""
        ...

    def set_intx(self, level: bool) -> None:
        """Assert or deassert the interrupt pin."""
        ...


class Device(Protocol):
    """A device that a server can serve.

    Methods that a client's request leads to may raise ``OSError``: its errno is the reply.
    """

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def regions(self) -> Sequence[ServedRegion]:
        """By VFIO's region index; PCI devices have nine."""
        ...

    @property
    def irq_counts(self) -> Sequence[int]:
        """Vectors of each VFIO interrupt index; PCI devices have five."""
        ...

    def connect(self, host: Host) -> None:
        """A client is there, reached through ``host``."""
        ...

    def disconnect(self) -> None:
        """The client is gone, with its memory and eventfds. The device keeps its state."""
        ...

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        """Read registers; the server has checked that the range is inside a readable region."""
        ...

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write registers; the server has checked that the range is inside a writable region."""
        ...

    def irqs_changed(self, index: int, vectors: frozenset[int]) -> None:
        """The client has eventfds for these vectors of ``index`` now."""
        ...

    def reset(self) -> None:
        """A function-level reset."""
        ...


@runtime_checkable
class Doorbells(Protocol):
    """A device some of whose registers may be written by an eventfd instead of a message."""

    def io_fds(self, region: int) -> Sequence[IoFd]:
        """The parts of ``region`` that may; ``fd_index`` counts :meth:`doorbell_fds`."""
        ...

    def doorbell_fds(self, region: int) -> Sequence[int]:
        """Their eventfds, the device's own; the server listens to them."""
        ...

    def rung(self, region: int, number: int) -> None:
        """Eventfd ``number`` of ``region`` was written, once or several times."""
        ...


@runtime_checkable
class Migratable(Protocol):
    """A device whose state can move to another server."""

    @property
    def movable(self) -> bool:
        """Whether this one can indeed."""
        ...

    def pause(self) -> None:
        """Leave memory and interrupts alone from now on; registers are still answered."""
        ...

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        ...

    def state(self) -> dict[str, Any]:
        """All of it, as plain data: numbers, texts, bytes, lists, dictionaries keyed by texts."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state` described; ``OSError`` EINVAL for what it is not."""
        ...

"""The devices that ``vfiokit serve`` knows by name, and devices out of a user's own file."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from vfiokit.errors import MachineError, UsageError
from vfiokit.kernel import linux
from vfiokit.machine.device.edu import (
    COMMAND_IRQ,
    COMMAND_RUN,
    COMMAND_TO_RAM,
    DMA_COMMAND,
    EduFunction,
)
from vfiokit.machine.device.nvme import FileStore, Limits, MemoryStore, NvmeFunction
from vfiokit.machine.device.nvme.backing import BlockStore
from vfiokit.machine.function import Function
from vfiokit.vfio_user.device import Device, Doorbell
from vfiokit.vfio_user.function import FunctionDevice, SharedBytes
from vfiokit.vfio_user.own import PLACE

DEFAULT_SIZE = 1 << 30
_EDU_DOORBELLS = tuple(
    Doorbell(0, DMA_COMMAND, 4, COMMAND_RUN | direction | interrupt)
    for direction in (0, COMMAND_TO_RAM)
    for interrupt in (0, COMMAND_IRQ)
)
"""The four values that start a DMA."""
_BUFFER_BAR = 2
_PAGE = 4096
_LARGEST_BUFFER = 1 << 30
_MEMBERS = (
    *("name", "regions", "irq_counts", "connect", "disconnect"),
    *("region_read", "region_write", "irqs_changed", "reset"),
)


def nvme(
    *,
    backing: str | Path | None = None,
    size: int | None = None,
    read_only: bool = False,
    vectors: int = 17,
    cmb_size: int = 0,
    serial: str | None = None,
) -> FunctionDevice:
    """An NVMe controller whose blocks are the file ``backing``, else memory.

    A file that is missing is made with ``size`` bytes, all hole. ``vectors`` are MSI-X vectors: one
    for the admin queue and one for each pair of I/O queues. Raises :class:`UsageError` for sizes
    that make no sense or do not fit the file, ``OSError`` for files that cannot be used. Close the
    device when it is served no longer.
    """
    if not 2 <= vectors <= 2048:
        raise UsageError(f"{vectors} MSI-X vectors", hint="an NVMe controller has 2 to 2048")
    # A queue pair needs a vector; 128 pairs are more than any guest has CPUs here.
    limits = Limits(queue_pairs=min(vectors - 1, 128))
    with contextlib.ExitStack() as held:
        store = _store(backing, size, read_only=read_only)
        if isinstance(store, FileStore):
            held.callback(store.close)
        buffer = _Buffer(cmb_size) if cmb_size else None
        if buffer is not None:
            held.callback(buffer.close)
        try:
            function = NvmeFunction.synthetic(
                PLACE,
                vectors=vectors,
                backing=store,
                limits=limits,
                cmb_size=cmb_size,
                cmb_memory=buffer.view if buffer else None,
                serial=serial,
            )
        except MachineError as error:
            raise UsageError(str(error), hint=error.hint) from error
        shared = {_BUFFER_BAR: buffer.shared} if buffer else None
        device = FunctionDevice(function, shared=shared)
        device.held.push(held.pop_all())
    return device


class _Buffer:
    """Memory in a file that clients map."""

    def __init__(self, size: int) -> None:
        if size % _PAGE or size > _LARGEST_BUFFER:
            raise UsageError(
                f"a controller memory buffer of {size:#x} bytes",
                hint="use a multiple of 4 KiB, up to 1 GiB",
            )
        fd = linux.memory_file("vfiokit-cmb", size)
        self._pages = linux.LinuxKernel().mmap(fd, size, 0)
        view = self._pages.view
        assert view is not None
        self.view = view
        self.shared = SharedBytes(fd, size)

    def close(self) -> None:
        """Unmap and close the file; nobody may use the device any more."""
        linux.close(self.shared.fd)
        with contextlib.suppress(BufferError):  # a piece is in use: then it ends with the process
            self._pages.close()


def _store(backing: str | Path | None, size: int | None, *, read_only: bool) -> BlockStore:
    if size is not None and (size < 512 or size % 512):
        raise UsageError(f"a disk of {size} bytes", hint="a size is a multiple of 512")
    if backing is None:
        return MemoryStore(size or DEFAULT_SIZE, read_only=read_only)
    path = Path(backing)
    if not path.exists():
        if read_only:
            raise UsageError(f"{path} does not exist", hint="a disk to read must be there")
        return FileStore.create(path, size or DEFAULT_SIZE)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="--backing names a file or a block device")
    store = FileStore.open(path, read_only=read_only)
    if size is not None and size != store.size:
        held = store.size
        store.close()
        raise UsageError(
            f"{path} has {held} bytes, not {size}", hint="leave --size out for a file that exists"
        )
    return store


def edu(*, dma_bits: int = 28) -> FunctionDevice:
    """QEMU's educational device, with so many address bits for DMA: 28 on QEMU."""
    if not 12 <= dma_bits <= 64:
        raise UsageError(f"{dma_bits} address bits", hint="between 12 and 64")
    function = EduFunction(PLACE, dma_mask=(1 << dma_bits) - 1)
    return FunctionDevice(function, doorbells=_EDU_DOORBELLS)


def from_file(text: str, values: Mapping[str, str] | None = None) -> Device:
    """The device of ``FILE.py:NAME``: a class or function of a user's own, called with ``values``.

    What it returns is a :class:`~vfiokit.vfio_user.device.Device`, or a
    :class:`~vfiokit.machine.function.Function`, which is adapted. Raises :class:`UsageError` for a
    file that cannot be loaded, a name that is not in it, and for what is no device.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UsageError(
            f"{text!r} is no device",
            hint="write nvme, edu, or FILE.py:NAME for a class in a file of your own",
        )
    maker = getattr(_module(Path(file)), name, None)
    if not callable(maker):
        what = "has no" if maker is None else "has something else than a class or function as"
        raise UsageError(f"{file} {what} {name}")
    try:
        made = maker(**(values or {}))
    except Exception as error:  # whatever a user's own code does
        raise UsageError(f"{text} cannot be made: {_said(error)}") from error
    return adapt(made, text)


def adapt(made: object, text: str) -> Device:
    """``made`` as a server serves it; :class:`UsageError` names what it lacks."""
    if isinstance(made, Function):
        return FunctionDevice(made, doorbells=getattr(made, "doorbells", ()))
    missing = [member for member in _MEMBERS if not hasattr(made, member)]
    if missing:
        raise UsageError(
            f"{text} makes a {type(made).__name__}, which is no device: "
            f"it lacks {', '.join(missing)}",
            hint="see vfiokit.vfio_user.device.Device, and docs/own-device.md",
        )
    device: Any = made
    found: Device = device
    return found


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{path} is no file")
    name = f"vfiokit_device_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's own code does
        del sys.modules[name]
        raise UsageError(f"{path} cannot be loaded: {_said(error)}") from error
    return module


def _said(error: Exception) -> str:
    """An error of a user's own code: its kind, what it says, and the line that it comes from."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        line = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{line}"

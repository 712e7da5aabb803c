"""What a behaviour talks to: the seam, the roles, and short ways to say common things.

Nothing here knows which kernel is behind the seam, except the subclasses at the end of
:mod:`conformance.backend`.
"""

from __future__ import annotations

import contextlib
import errno
import select
import time
from collections.abc import Callable, Iterator, Mapping

from conformance.topology import NATIVE
from vfiokit.abi import vfio as abi
from vfiokit.kernel.port import Kernel, Memory
from vfiokit.kernel.port import Mapping as DeviceMapping
from vfiokit.pci.address import Bdf

BUS = "/sys/bus/pci"
DEVICES = f"{BUS}/devices"
PAGE = 4096
CONFIG_REGION = abi.VFIO_PCI_CONFIG_REGION_INDEX << abi.VFIO_PCI_OFFSET_SHIFT


class MissingError(Exception):
    """The backend has not what a behaviour needs."""


class Host:
    """A kernel, the functions to use, and what was opened on the way."""

    def __init__(self, kernel: Kernel, roles: Mapping[str, Bdf], features: frozenset[str]) -> None:
        self.kernel = kernel
        self.roles = roles
        self.features = features
        self.refused: set[int] = set()
        """Errnos that :meth:`refuses` met."""
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.close()

    # -- errors -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def refuses(self, code: int) -> Iterator[None]:
        """The block raises ``OSError`` with exactly this errno."""
        name = errno.errorcode[code]
        try:
            yield
        except OSError as failure:
            if failure.errno != code:
                met = errno.errorcode.get(failure.errno or 0, str(failure.errno))
                raise AssertionError(f"{met} instead of {name}") from failure
            self.refused.add(code)
        else:
            raise AssertionError(f"it succeeds instead of {name}")

    # -- files --------------------------------------------------------------------------------

    def path(self, role: str, attribute: str = "") -> str:
        """A file of a function in sysfs."""
        return f"{DEVICES}/{self.roles[role]}" + (f"/{attribute}" if attribute else "")

    def read(self, path: str) -> str:
        """A text file without its last line feed."""
        return self.kernel.tree.read(path).decode().removesuffix("\n")

    def write(self, path: str, text: str) -> None:
        """One write."""
        self.kernel.tree.write(path, text.encode())

    def change(self, path: str, text: str) -> None:
        """Write an attribute, and what it was when the behaviour ends."""
        before = self.read(path)
        self._opened.callback(self._write_quietly, path, before)
        self.write(path, text)

    def finally_write(self, path: str, text: str) -> None:
        """Write when the behaviour ends."""
        self._opened.callback(self._write_quietly, path, text)

    def _write_quietly(self, path: str, text: str) -> None:
        with contextlib.suppress(OSError):
            self.write(path, text)

    def link(self, path: str) -> str:
        """Last word of what a link says; empty when there is no link."""
        try:
            return self.kernel.tree.readlink(path).rpartition("/")[2]
        except FileNotFoundError:
            return ""

    def driver(self, role: str) -> str:
        """Name of the driver of a function; empty when there is none."""
        return self.link(self.path(role, "driver"))

    def group(self, role: str) -> int:
        """Number of the IOMMU group."""
        return int(self.link(self.path(role, "iommu_group")))

    def unbind(self, role: str) -> None:
        """Take the driver away, if there is one."""
        if self.driver(role):
            self.write(self.path(role, "driver/unbind"), str(self.roles[role]))

    def bind(self, role: str, driver: str = "vfio-pci") -> None:
        """Unbind, then bind to ``driver`` by ``driver_override``."""
        if self.driver(role) == driver:
            return
        self.unbind(role)
        self.write(self.path(role, "driver_override"), driver)
        self.write(f"{BUS}/drivers_probe", str(self.roles[role]))
        assert self.driver(role) == driver, f"{role} is not bound to {driver}"

    def restore(self, role: str) -> None:
        """Give a function back to the driver that Linux has for it."""
        wanted = NATIVE.get(role, "")
        if self.driver(role) != wanted:
            self.unbind(role)
        if self.read(self.path(role, "driver_override")) != "(null)":
            self.write(self.path(role, "driver_override"), "\n")
        if wanted and not self.driver(role):
            self.write(f"{BUS}/drivers_probe", str(self.roles[role]))

    # -- descriptors --------------------------------------------------------------------------

    def open(self, path: str) -> int:
        """Open a node until the behaviour ends or :meth:`close` comes first."""
        return self.own(self.kernel.open(path))

    def own(self, fd: int) -> int:
        """Close ``fd`` when the behaviour ends."""
        self._opened.callback(self._close_quietly, fd)
        return fd

    def close(self, fd: int) -> None:
        """Close now."""
        self.kernel.close(fd)

    def _close_quietly(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self.kernel.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """The seam's."""
        return self.kernel.ioctl(fd, request, argument)

    def memory(self, length: int = PAGE) -> Memory:
        """Memory until the behaviour ends."""
        memory = self.kernel.allocate(length)
        self._opened.callback(memory.close)
        return memory

    def event(self) -> int:
        """An eventfd until the behaviour ends."""
        return self.own(self.kernel.eventfd())

    def fired(self, event: int, within: float = 5.0) -> int:
        """Counter of an eventfd, waiting for it at most ``within`` seconds; 0 when it stays."""
        self.poke()
        ready, _, _ = select.select([event], [], [], within)
        return self.kernel.eventfd_read(event) if ready else 0

    def quiet(self, event: int) -> bool:
        """Whether an eventfd does not fire for a while."""
        return not self.fired(event, 0.05)

    def until(self, condition: Callable[[], object], within: float = 10.0) -> bool:
        """Wait for something that the kernel does on its own."""
        deadline = time.monotonic() + within
        while not condition():
            self.poke()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def poke(self) -> None:
        """Give a backend whose clock stands still between calls a call."""

    # -- what backends do differently -----------------------------------------------------------

    def limit_locked_memory(self, limit: int) -> None:
        """RLIMIT_MEMLOCK in bytes, and no privilege to exceed it; before anything is mapped."""
        raise NotImplementedError

    def memfd(self, length: int) -> int:
        """A file of memory."""
        raise NotImplementedError

    def bus_error(self, access: Callable[[], object]) -> bool:
        """Whether an access to a mapping is a SIGBUS."""
        raise NotImplementedError

    def map(self, fd: int, length: int, offset: int) -> DeviceMapping:
        """A mapping until the behaviour ends."""
        mapping = self.kernel.mmap(fd, length, offset)
        self._opened.callback(mapping.close)
        return mapping

    def vaddr(self, mapping: DeviceMapping) -> int:
        """Process virtual address of a mapping."""
        raise NotImplementedError

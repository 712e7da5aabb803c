"""The kernels that the behaviours run on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
from collections.abc import Callable, Mapping
from typing import Any

from conformance.behaviour import (
    CDEV,
    COMPAT_NODE,
    CONTAINER,
    IOMMUFD,
    NO_IOMMU,
    SRIOV,
    UNSAFE_INTERRUPTS,
)
from conformance.host import Host, MissingError
from conformance.topology import ROLES, TOPOLOGY
from vfiokit.abi import vfio as abi
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.kernel.port import Kernel
from vfiokit.kernel.port import Mapping as DeviceMapping
from vfiokit.pci.address import Bdf

DEVICES_VARIABLE = "VFIOKIT_LAB_DEVICES"
"""Where the lab says which function is where: ``name=address`` words."""
_CAP_IPC_LOCK = 14
_CAPABILITY_VERSION_3 = 0x2008_0522
_SYS_CAPGET, _SYS_CAPSET = 125, 126  # x86-64


def features(kernel: Kernel, roles: Mapping[str, Bdf]) -> frozenset[str]:
    """What the kernel offers, found by looking."""
    found = set()
    tree = kernel.tree
    edu = f"/sys/bus/pci/devices/{roles['edu']}"
    if not tree.exists(f"{edu}/iommu"):
        found.add(NO_IOMMU)
    elif not tree.readlink(f"{edu}/iommu").rpartition("/")[2].startswith(("dmar", "ivhd")):
        found.add(UNSAFE_INTERRUPTS)  # virtio's, which has no interrupt remapping
    if tree.exists("/dev/vfio/vfio"):
        fd = kernel.open("/dev/vfio/vfio")
        try:
            kernel.ioctl(fd, abi.VFIO_CHECK_EXTENSION, abi.VFIO_DMA_CC_IOMMU)
            found.add(CONTAINER)
        except OSError as refusal:
            if refusal.errno != errno.ENODEV:
                raise
            found.add(COMPAT_NODE)  # iommufd cannot tell before it has an address space
        finally:
            kernel.close(fd)
    if tree.exists("/dev/iommu"):
        found.add(IOMMUFD)
    if tree.exists("/sys/class/vfio-dev"):
        found.add(CDEV)
    if tree.exists(f"/sys/bus/pci/devices/{roles['pf']}/sriov_totalvfs"):
        found.add(SRIOV)
    return frozenset(found)


class LinuxHost(Host):
    """The kernel of this computer; a process of its own for each behaviour, as root."""

    def limit_locked_memory(self, limit: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        data = (ctypes.c_uint32 * 6)()
        for call in (_SYS_CAPGET, _SYS_CAPSET):
            if libc.syscall(call, head, data):
                raise OSError(ctypes.get_errno(), "capabilities")
            data[0] &= ~(1 << _CAP_IPC_LOCK)  # effective
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))

    def memfd(self, length: int) -> int:
        fd = self.own(os.memfd_create("conformance"))
        os.ftruncate(fd, length)
        return fd

    def bus_error(self, access: Callable[[], object]) -> bool:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            with contextlib.suppress(BaseException):
                access()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS

    def vaddr(self, mapping: DeviceMapping) -> int:
        pages: Any = mapping._u8  # type: ignore[attr-defined]
        holder = ctypes.c_char.from_buffer(pages)
        return ctypes.addressof(holder)


def linux_host() -> LinuxHost:
    """The host this process runs on; the lab says where the roles are."""
    words = os.environ[DEVICES_VARIABLE].split()
    places = dict(word.split("=") for word in words)
    roles = {role: Bdf.parse(places[role]) for role in ROLES}
    kernel = LinuxKernel()
    return LinuxHost(kernel, roles, features(kernel, roles))


class MachineHost(Host):
    """A software machine of the same topology."""

    def limit_locked_memory(self, limit: int) -> None:
        bound = [role for role in self.roles if self.driver(role) == "vfio-pci"]
        compat = COMPAT_NODE in self.features
        self.kernel = machine_host(locked_limit=limit, compat=compat).kernel
        for role in bound:
            self.bind(role)

    def memfd(self, length: int) -> int:
        create = getattr(self.kernel, "memfd", None)
        if create is None:
            raise MissingError("the software machine has no files of memory")
        return self.own(create(length))

    def bus_error(self, access: Callable[[], object]) -> bool:
        try:
            access()
        except OSError as failure:
            return failure.errno == errno.EFAULT
        return False

    def vaddr(self, mapping: DeviceMapping) -> int:
        return mapping.vaddr  # type: ignore[attr-defined,no-any-return]

    def poke(self) -> None:
        self.kernel.eventfd_write(self.event())


def machine_host(
    *,
    locked_limit: int | None = None,
    compat: bool = False,
    iommu: bool = True,
    remapping: bool = True,
) -> MachineHost:
    """A fresh software machine; ``compat``: with iommufd in the place of the container."""
    from vfiokit.machine.assembly import assemble

    built = assemble(
        TOPOLOGY, ram=1 << 30, locked_limit=locked_limit, compat_container=compat, iommu=iommu
    )
    roles = {role: built[role] for role in ROLES}
    found = features(built.kernel, roles)
    if not remapping:
        built.machine.iommus[0].remapper.enabled = False
        found |= {UNSAFE_INTERRUPTS}
    return MachineHost(built.kernel, roles, found)


def socket_host() -> Host:
    """The functions of a software machine, served over sockets."""
    from conformance.socket_kernel import ServedKernel
    from vfiokit.machine.assembly import assemble

    built = assemble(TOPOLOGY, ram=1 << 30, native_drivers=False)
    roles = {role: built[role] for role in ROLES}
    return Host(ServedKernel(built.kernel, built.machine.fabric), roles, frozenset({CONTAINER}))


HOSTS: dict[str, Callable[[], Host]] = {
    "linux": linux_host,
    "machine": machine_host,
    "machine-compat": lambda: machine_host(compat=True),
    "machine-none": lambda: machine_host(iommu=False),
    "machine-unsafe": lambda: machine_host(remapping=False),
    "vfio-user": socket_host,
}
"""How to reach each kernel, by the name that the runner takes."""

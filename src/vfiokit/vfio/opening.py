"""From an address to an open device: which interface of the kernel to take.

A kernel may offer a device through its group and a container, through its own node and an
iommufd, or both. Drivers see no difference; ``backend`` says which to take: ``"cdev"``,
``"group"``, or ``"auto"`` for the former where this kernel and user can open both of its nodes.
The environment variable :data:`BACKEND_VARIABLE` says what ``"auto"`` means.
"""

from __future__ import annotations

import errno
import os
from uuid import UUID

from vfiokit.errors import KernelError, UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.pci.address import Bdf
from vfiokit.vfio.backend import Backend, CdevBackend, GroupBackend
from vfiokit.vfio.cdev import cdev_node
from vfiokit.vfio.container import Container, IommuType
from vfiokit.vfio.device import Device
from vfiokit.vfio.ioas import Ioas
from vfiokit.vfio.iommufd import NODE

BACKEND_VARIABLE = "VFIOKIT_VFIO_BACKEND"
BACKENDS = ("auto", "cdev", "group")


def open_device(
    kernel: Kernel,
    bdf: Bdf | str,
    *,
    backend: str = "auto",
    address_space: Container | Ioas | None = None,
    iommu_type: IommuType | int | None = None,
    vf_token: UUID | str | None = None,
) -> Device:
    """Open the function at ``bdf``; use the result in a ``with`` block.

    ``address_space`` shares one with other devices, needed for a second device of the same
    group, and decides the backend by its kind; without it the device gets one of its own.
    ``iommu_type`` is that of a container, and so takes the group. ``vf_token`` is the secret
    that the owner of a physical function on vfio-pci shares with openers of its virtual
    functions. Raises :class:`DeviceNotFoundError`, :class:`GroupNotViableError`,
    :class:`DeviceBusyError`, :class:`KernelError`, :class:`UsageError`; nothing stays open then.
    """
    address = Bdf.parse(bdf) if isinstance(bdf, str) else bdf
    token = _parse_token(vf_token)
    if address_space is not None and iommu_type is not None:
        raise UsageError("the address space given has its type already; leave iommu_type out")
    wanted = _choose(backend, address_space, iommu_type)
    opened = _open(kernel, address, wanted, address_space, iommu_type, token)
    try:
        return Device(opened, str(address))
    except BaseException:
        opened.close()
        raise


def open_address_space(kernel: Kernel, *bdfs: Bdf | str, backend: str = "auto") -> Container | Ioas:
    """An address space for several devices: for ``open_device(…, address_space=…)``.

    ``"auto"`` takes an :class:`Ioas` where every function of ``bdfs`` has a node of its own.
    A :class:`Container` can be mapped into once its first device is open. Raises
    :class:`KernelError`, :class:`UsageError`.
    """
    wanted = _choose(backend, None, None)
    if wanted == "auto":
        addresses = [Bdf.parse(bdf) if isinstance(bdf, str) else bdf for bdf in bdfs]
        paths = [cdev_node(kernel.tree, address) for address in addresses]
        wanted = "cdev" if _can_open(kernel, NODE, *paths) else "group"
    return Ioas.open(kernel) if wanted == "cdev" else Container.open(kernel)


def _choose(
    backend: str,
    address_space: Container | Ioas | None,
    iommu_type: IommuType | int | None,
) -> str:
    """``backend`` as the other arguments and the environment leave it."""
    wanted, origin = backend, "backend"
    if address_space is not None or iommu_type is not None:
        implied = "cdev" if isinstance(address_space, Ioas) else "group"
        if backend not in ("auto", implied):
            raise UsageError(f"backend={backend!r} contradicts what else is asked for: {implied}")
        return implied
    if wanted == "auto":
        wanted, origin = os.environ.get(BACKEND_VARIABLE) or "auto", BACKEND_VARIABLE
    if wanted not in BACKENDS:
        raise UsageError(f"{origin} {wanted!r} is none of {', '.join(BACKENDS)}")
    return wanted


def _open(
    kernel: Kernel,
    bdf: Bdf,
    wanted: str,
    address_space: Container | Ioas | None,
    iommu_type: IommuType | int | None,
    vf_token: UUID | None,
) -> Backend:
    if wanted == "auto":
        return _open_any(kernel, bdf, vf_token)
    if wanted == "cdev":
        ioas = address_space if isinstance(address_space, Ioas) else None
        return CdevBackend.open(kernel, bdf, ioas=ioas, vf_token=vf_token)
    container = address_space if isinstance(address_space, Container) else None
    return GroupBackend.open(
        kernel, bdf, iommu_type=iommu_type, container=container, vf_token=vf_token
    )


def _open_any(kernel: Kernel, bdf: Bdf, vf_token: UUID | None) -> Backend:
    path = cdev_node(kernel.tree, bdf)
    if _can_open(kernel, NODE, path):
        return CdevBackend.open(kernel, bdf, vf_token=vf_token)
    try:
        return GroupBackend.open(kernel, bdf, vf_token=vf_token)
    except KernelError as error:
        if path is None or error.errno != errno.ENOENT:
            raise
    # No groups in this kernel: what keeps the other way shut is the error to show.
    return CdevBackend.open(kernel, bdf, vf_token=vf_token)


def _can_open(kernel: Kernel, *paths: str | None) -> bool:
    for path in paths:
        if path is None:
            return False
        try:
            fd = kernel.open(path)
        except OSError:
            return False
        kernel.close(fd)
    return True


def _parse_token(token: UUID | str | None) -> UUID | None:
    if not isinstance(token, str):
        return token
    try:
        return UUID(token)
    except ValueError:
        raise UsageError(
            f"VF token {token!r} is no UUID", hint="such as 2ab74924-c335-45f4-9b16-8569e5b08258"
        ) from None

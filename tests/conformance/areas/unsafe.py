"""An IOMMU that does not remap interrupts: refused, unless its user accepts forged ones.

Facts: Linux ``drivers/vfio/vfio_iommu_type1.c``, ``drivers/iommu/iommufd/device.c``.
"""

from __future__ import annotations

import errno

from conformance.behaviour import UNSAFE_INTERRUPTS, behaviour
from conformance.calls import (
    container,
    join,
    open_group,
    set_container,
    set_iommu,
)
from conformance.host import Host
from conformance.iommufd_calls import bind, iommufd, open_cdev

TYPE1 = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
IOMMUFD = "/sys/module/iommufd/parameters/allow_unsafe_interrupts"


def case(name: str, source: str, *, error: int | tuple[int, ...] = ()):
    """A behaviour of a machine without interrupt remapping."""
    return behaviour(f"unsafe/{name}", source, binds="edu", error=error, needs=UNSAFE_INTERRUPTS)


@case("container-is-eperm", "drivers/vfio/vfio_iommu_type1.c", error=errno.EPERM)
def refused(host: Host) -> None:
    host.change(TYPE1, "N")
    group, fd = open_group(host, "edu"), container(host)
    set_container(host, group, fd)
    with host.refuses(errno.EPERM):
        set_iommu(host, fd)
    host.write(TYPE1, "Y")
    set_iommu(host, fd)


@case("second-group-is-eperm", "drivers/vfio/vfio_iommu_type1.c", error=errno.EPERM)
def second(host: Host) -> None:
    host.change(TYPE1, "Y")
    host.bind("below")
    fd, _group = join(host, "edu")
    host.write(TYPE1, "N")
    other = open_group(host, "below")
    with host.refuses(errno.EPERM):
        set_container(host, other, fd)


@case("device-node-is-eperm", "drivers/iommu/iommufd/device.c", error=errno.EPERM)
def node(host: Host) -> None:
    host.change(IOMMUFD, "N")
    fd, context = open_cdev(host, "edu"), iommufd(host)
    with host.refuses(errno.EPERM):
        bind(host, fd, context)
    host.write(IOMMUFD, "Y")
    bind(host, fd, context)

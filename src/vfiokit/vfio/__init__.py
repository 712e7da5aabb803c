"""Devices through VFIO: address spaces, DMA memory, regions, interrupts, reset.

::

    with open_device(kernel, Bdf.parse("0000:00:04.0")) as device:
        registers = device.region(0).map()
        with device.address_space.allocate(4096) as buffer, device.msix.enable(1) as (vector,):
            device.set_bus_master(True)
            ...
            vector.wait(timeout_s=5)

Every object that owns something of the kernel is a context manager with an idempotent
``close()``. Drivers use :class:`AddressSpace` and :class:`Device` and never learn which kernel
interface stands behind them: the device's own node with an :class:`Ioas` of ``/dev/iommu``, or its
:class:`Group` with a :class:`Container`.
"""

from __future__ import annotations

from vfiokit.vfio.address_space import AddressSpace, IovaRange
from vfiokit.vfio.backend import CdevBackend, GroupBackend
from vfiokit.vfio.cdev import Cdev
from vfiokit.vfio.container import Container, IommuType
from vfiokit.vfio.device import Device
from vfiokit.vfio.dirty import DirtyBitmap
from vfiokit.vfio.fault import FaultQueue
from vfiokit.vfio.group import Group
from vfiokit.vfio.hwpt import HardwareInfo, Hwpt, hardware_info
from vfiokit.vfio.ioas import Ioas
from vfiokit.vfio.iommufd import Iommufd
from vfiokit.vfio.irq import IrqIndex, Vectors
from vfiokit.vfio.memory import DmaBuffer
from vfiokit.vfio.opening import open_address_space, open_device
from vfiokit.vfio.region import ConfigRegion, Region
from vfiokit.vfio.register import R32, R64, RW32, RW64, W32, W64, RegisterMap
from vfiokit.vfio.vector import Vector

__all__ = [
    "R32",
    "R64",
    "RW32",
    "RW64",
    "W32",
    "W64",
    "AddressSpace",
    "Cdev",
    "CdevBackend",
    "ConfigRegion",
    "Container",
    "Device",
    "DirtyBitmap",
    "DmaBuffer",
    "FaultQueue",
    "Group",
    "GroupBackend",
    "HardwareInfo",
    "Hwpt",
    "Ioas",
    "IommuType",
    "Iommufd",
    "IovaRange",
    "IrqIndex",
    "Region",
    "RegisterMap",
    "Vector",
    "Vectors",
    "hardware_info",
    "open_address_space",
    "open_device",
]

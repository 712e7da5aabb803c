"""Map types as numbers, the same in the kernel's requests, the hypercall and the virtio device.

They are not those of Linux's enum, which changed between releases.
"""

from __future__ import annotations

from vfiokit.abi import vfio_p2p as abi
from vfiokit.p2p.answer import MapType

MAP_TYPES = {
    MapType.UNKNOWN: abi.VFIO_P2P_UNKNOWN,
    MapType.NOT_SUPPORTED: abi.VFIO_P2P_NOT_SUPPORTED,
    MapType.BUS_ADDR: abi.VFIO_P2P_BUS_ADDR,
    MapType.THRU_HOST_BRIDGE: abi.VFIO_P2P_THRU_HOST_BRIDGE,
}
"""Number of each map type."""

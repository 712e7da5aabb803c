"""Requests by which a kernel answers for the peers of a guest: not part of Linux.

They are the two changes to the kernel that "PCI P2P inside VM" (Linux Plumbers Conference 2022)
asks for: VFIO learns the guest's address of a device, so that a hypercall can name it, and a
hypervisor may ask the kernel's ``calc_map_type_and_dist()`` itself. Requests are ``_IO(';', n)``
with numbers that Linux gives to nobody; ``docs/virtio-p2p.md`` has the contract.
"""

from __future__ import annotations

from vfiokit.abi._layout import CStruct, s32, u32

VFIO_P2P_NODE = "/dev/vfio-p2p"
"""Each open file of it stands for one virtual machine."""

VFIO_DEVICE_GUEST_ADDRESS = 0x3BE0
"""On a device: the function of a virtual machine that it is."""
VFIO_DEVICE_P2P_DISTANCE = 0x3BE1
"""On a device, the provider: map type and distance of a client, another device."""
VFIO_P2P_GUEST_DISTANCE = 0x3BE2
"""On a virtual machine: map type and distance of two of its functions, by guest address."""

VFIO_GUEST_ADDRESS_SET = 0x1
VFIO_GUEST_ADDRESS_CLEAR = 0x2

VFIO_P2P_UNKNOWN = 0
"""What decides cannot be told."""
VFIO_P2P_NOT_SUPPORTED = 1
VFIO_P2P_BUS_ADDR = 2
VFIO_P2P_THRU_HOST_BRIDGE = 3


class vfio_device_guest_address(CStruct):
    """Buffer of ``VFIO_DEVICE_GUEST_ADDRESS``."""

    argsz: u32 = 0
    flags: u32 = 0
    vm_fd: s32 = 0
    guest_address: u32 = 0
    """Domain ``[31:16]``, bus ``[15:8]``, device ``[7:3]``, function ``[2:0]``."""


class vfio_device_p2p_distance(CStruct):
    """Buffer of ``VFIO_DEVICE_P2P_DISTANCE``."""

    argsz: u32 = 0
    flags: u32 = 0
    client_fd: s32 = 0
    map_type: u32 = 0
    """Out."""
    distance: u32 = 0
    """Out."""


class vfio_p2p_guest_distance(CStruct):
    """Buffer of ``VFIO_P2P_GUEST_DISTANCE``."""

    argsz: u32 = 0
    flags: u32 = 0
    provider: u32 = 0
    client: u32 = 0
    map_type: u32 = 0
    """Out."""
    distance: u32 = 0
    """Out."""

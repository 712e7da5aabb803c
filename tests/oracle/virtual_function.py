"""Runs in a guest: NVMe virtual functions that work.

A secondary controller has no queues until its primary gives it some and sets it online (NVMe Base
Specification 2.0 §8.26, command Virtualization Management).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
PATIENCE_S = 30.0

NVME_IOCTL_ADMIN_CMD = 0xC0484E41
_IDENTIFY = 0x06
_SECONDARY_CONTROLLER_LIST = 0x15
_VIRTUALIZATION_MANAGEMENT = 0x1C
_OFFLINE, _ASSIGN, _ONLINE = 7, 8, 9
_QUEUES, _INTERRUPTS = 0, 1


def enable(bdf: str, count: int) -> list[str]:
    """Turn on ``count`` virtual functions of the drive at ``bdf``; their addresses."""
    folder = DEVICES / bdf
    node = _controller_node(folder)
    (folder / "sriov_drivers_autoprobe").write_text("0")
    (folder / "sriov_numvfs").write_text(str(count))
    found = []
    for number, controller in enumerate(_secondary_controllers(node)[:count]):
        _manage(node, controller, _OFFLINE)
        _manage(node, controller, _ASSIGN, _QUEUES, 2)
        _manage(node, controller, _ASSIGN, _INTERRUPTS, 1)
        _manage(node, controller, _ONLINE)
        virtual = (folder / f"virtfn{number}").resolve().name
        # Without autoprobe the kernel binds a virtual function only where it is overridden.
        (DEVICES / virtual / "driver_override").write_text("nvme")
        Path("/sys/bus/pci/drivers/nvme/bind").write_text(virtual)
        found.append(virtual)
    return found


def _controller_node(folder: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not (names := list(folder.glob("nvme/nvme*"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return f"/dev/{names[0].name}"


def _secondary_controllers(node: str) -> list[int]:
    data = ctypes.create_string_buffer(4096)
    _admin(node, _IDENTIFY, data, cdw10=_SECONDARY_CONTROLLER_LIST)
    return [struct.unpack_from("<H", data, 32 * (1 + number))[0] for number in range(data.raw[0])]


def _manage(node: str, controller: int, action: int, resource: int = 0, count: int = 0) -> None:
    cdw10 = controller << 16 | resource << 8 | action
    _admin(node, _VIRTUALIZATION_MANAGEMENT, None, cdw10=cdw10, cdw11=count)


def _admin(
    node: str, opcode: int, data: ctypes.Array[ctypes.c_char] | None, *, cdw10: int, cdw11: int = 0
) -> None:
    """``struct nvme_passthru_cmd`` of include/uapi/linux/nvme_ioctl.h."""
    command = bytearray(72)
    command[0] = opcode
    if data is not None:
        struct.pack_into("<Q", command, 24, ctypes.addressof(data))
        struct.pack_into("<I", command, 36, len(data))
    struct.pack_into("<II", command, 40, cdw10, cdw11)
    fd = os.open(node, os.O_RDWR)
    try:
        status = fcntl.ioctl(fd, NVME_IOCTL_ADMIN_CMD, command)
    finally:
        os.close(fd)
    assert status == 0, f"admin command {opcode:#x}: status {status:#x}"

"""A complete small NVMe driver.

::

    with open_device(kernel, "0000:01:00.0") as device, NvmeController(device) as controller:
        namespace = controller.namespace(1)
        with device.address_space.allocate(4096) as buffer:
            namespace.read(0, 4096 // namespace.block_size, buffer)

Source: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0.
"""

from __future__ import annotations

from vfiokit.driver.nvme.controller import NvmeController
from vfiokit.driver.nvme.namespace import Namespace
from vfiokit.driver.nvme.queue import Command, Completion, QueuePair
from vfiokit.driver.nvme.spec import (
    AsyncEvent,
    ControllerIdentity,
    ErrorLogEntry,
    NamespaceIdentity,
    SmartLog,
)

__all__ = [
    "AsyncEvent",
    "Command",
    "Completion",
    "ControllerIdentity",
    "ErrorLogEntry",
    "Namespace",
    "NamespaceIdentity",
    "NvmeController",
    "QueuePair",
    "SmartLog",
]

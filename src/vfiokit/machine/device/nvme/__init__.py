"""An NVMe controller with one namespace.

Behaviour follows the NVM Express Base Specification 2.0 and the NVM Command Set Specification 1.0
as far as a driver can see; the controller reports version 1.4 and the features of that version.

One module per subject: ``registers`` (BAR 0 as data), ``controller`` (life cycle), ``arbiter``
(doorbells to completions), ``queue``, ``prp``, ``admin``, ``io``, ``feature``, ``event``, ``log``,
``identify``, ``interrupt``, ``shadow``, ``namespace``, ``backing``; ``model`` puts them on the bus.
"""

from __future__ import annotations

from vfiokit.machine.device.nvme.backing import BlockStore, FileStore, MemoryStore
from vfiokit.machine.device.nvme.controller import Controller, Limits
from vfiokit.machine.device.nvme.model import NvmeFunction

__all__ = ["BlockStore", "Controller", "FileStore", "Limits", "MemoryStore", "NvmeFunction"]

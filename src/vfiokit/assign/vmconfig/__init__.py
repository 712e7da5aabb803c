"""A guest plan written down for a hypervisor: one renderer a file.

Each takes a :class:`~vfiokit.p2p.guest.GuestPlan` and
:class:`~vfiokit.assign.vmconfig.settings.Settings`, and returns text.
"""

from __future__ import annotations

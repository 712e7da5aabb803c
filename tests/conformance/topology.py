"""The machine that the behaviours meet on every backend."""

from __future__ import annotations

# Links of at most 5 GT/s: above that Linux waits for a link status that QEMU does not show.
TOPOLOGY = """
rp:rp-edu speed=5(edu:edu),
rp:rp-nvme speed=5(nvme:nvme cmb=1M),
rp:rp-pair speed=5(slot:pair(nvme:first, nvme:second)),
rp:rp-pf speed=5(nvme:pf vfs=2),
rp:rp-shm(ivshmem:shm),
rp:rp-testdev(pci-testdev:testdev membar=1M),
rp:rp-nic(e1000e:nic),
rp:rp-switch(sw:switch(port:below-port(edu:below))),
edu:rooted
"""

NATIVE = {"nvme": "nvme", "first": "nvme", "second": "nvme", "pf": "nvme", "nic": "e1000e"}
"""Driver that Linux binds to a role; the others stay without one."""

ROLES = ("edu", "nvme", "first", "second", "pf", "shm", "testdev", "nic", "below", "rooted")
"""Functions that behaviours may use:

``edu``      QEMU's educational device, conventional PCI, alone in its group
``nvme``     PCI Express with FLR and MSI-X, alone in its group
``first``, ``second``  two NVMe functions of one device, and so of one group
``pf``       an NVMe controller with two virtual functions to enable
``shm``      ivshmem: a BAR smaller than a page, a BAR of plain memory, no interrupts
``testdev``  a BAR of I/O ports
``nic``      e1000e: MSI and MSI-X, AER, no FLR
``below``    an edu below a switch port without ACS: its group has a bridge in it
``rooted``   an edu on the root bus: nothing can reset it
"""

"""The kernel of a software machine: sysfs, driver binding, VFIO, on modelled hardware.

:class:`SoftwareKernel` implements :class:`vfiokit.kernel.port.Kernel`. Every refusal is an
``OSError`` with the errno that Linux 7.2 gives.
"""

from __future__ import annotations

from vfiokit.machine.kernel.surface import SoftwareKernel

__all__ = ["SoftwareKernel"]

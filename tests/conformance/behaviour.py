"""What a behaviour is, and the list of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.host import Host

Check = Callable[["Host"], None]

CONTAINER = "container"
"""The native VFIO container with the type1 IOMMU."""
IOMMUFD = "iommufd"
"""``/dev/iommu``."""
CDEV = "cdev"
"""``/dev/vfio/devices/vfioN``."""
COMPAT_NODE = "compat node"
"""``/dev/vfio/vfio`` is a face of iommufd."""
SRIOV = "sriov"
"""``sriov_numvfs``."""
NO_IOMMU = "no IOMMU"
UNSAFE_INTERRUPTS = "no interrupt remapping"
SPECIAL = frozenset({NO_IOMMU, UNSAFE_INTERRUPTS})
"""Machines that only behaviours made for them run on."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One fact about the kernel's interface, as a function that asserts it."""

    id: str
    """``area/what-is-so``, stable."""
    source: str
    """Where the fact is written down."""
    check: Check
    binds: tuple[str, ...] = ()
    """Roles that are bound to vfio-pci before."""
    native: tuple[str, ...] = ()
    """Roles that are with the driver Linux gives them, or without one."""
    errors: tuple[int, ...] = ()
    """Errnos that the check meets; empty when nothing is refused."""
    needs: tuple[str, ...] = ()
    """Features of the kernel."""

    @property
    def area(self) -> str:
        """The first part of the id."""
        return self.id.partition("/")[0]


BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(
    name: str,
    source: str,
    *,
    binds: Iterable[str] | str = (),
    native: Iterable[str] | str = (),
    error: int | Iterable[int] = (),
    needs: Iterable[str] | str = (),
) -> Callable[[Check], Check]:
    """Register the decorated function under the id ``name``."""
    assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name), name
    assert name not in BEHAVIOURS, f"two behaviours are called {name}"

    def register(check: Check) -> Check:
        BEHAVIOURS[name] = Behaviour(
            name,
            source,
            check,
            _tuple(binds),
            _tuple(native),
            (error,) if isinstance(error, int) else tuple(error),
            _tuple(needs),
        )
        return check

    return register


def _tuple(words: Iterable[str] | str) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


@dataclass(frozen=True, slots=True)
class Untested:
    """A behaviour that the devices of the lab cannot show."""

    what: str
    reason: str


UNTESTED = (
    Untested("SPAPR TCE containers, EEH", "POWER only; the lab's machines are x86"),
    Untested("runtime power management, low power", "the lab's kernels have no CONFIG_PM"),
    Untested("resets that fail, time out or visibly clear registers", "QEMU's devices keep theirs"),
    Untested("errors signalled by AER", "QEMU injects errors by its monitor only"),
    Untested("migration states, dirty logging of devices", "no migration driver in the guest"),
    Untested("vendor regions, VGA, expansion ROMs", "no function of the topology has them"),
    Untested("PASIDs and nested page tables", "QEMU 7.2's VT-d has no scalable mode for them"),
    Untested("several MSI vectors", "QEMU's functions offer one each"),
    Untested("bus-addressed peer-to-peer DMA", "QEMU's switches do not route between ports"),
    Untested("closing a PF that has VFs", "QEMU's nvme forgets its VFs when the PF is reset"),
)
"""What this suite leaves out, and why the lab cannot show it."""

"""A real Linux kernel in QEMU, for programs that use VFIO and have no hardware to run on.

::

    lab = Lab(topology="rp0(edu:dev)", iommu="intel")
    result = lab.run(["./my-vfio-test"])
    assert result.status == 0, result.console
    assert lab.run_python("my_tests:reads_the_identification") == 0xED

Nothing needs privilege, KVM or an image: the guest sees the host's files, writes into memory, and
is gone when its command ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfiokit.lab.batch import Outcome, Scenario
    from vfiokit.lab.failure import (
        GuestFailedError,
        GuestTimeoutError,
        KernelLacksError,
        KernelMissingError,
        LabError,
        QemuMissingError,
        ScenarioError,
        UnsupportedError,
    )
    from vfiokit.lab.guest_device import guest_devices
    from vfiokit.lab.guest_run import Result
    from vfiokit.lab.laboratory import Lab
    from vfiokit.lab.preset import CPUS, Iommu

__all__ = [
    "CPUS",
    "GuestFailedError",
    "GuestTimeoutError",
    "Iommu",
    "KernelLacksError",
    "KernelMissingError",
    "Lab",
    "LabError",
    "Outcome",
    "QemuMissingError",
    "Result",
    "Scenario",
    "ScenarioError",
    "UnsupportedError",
    "guest_devices",
]

_HOMES = {
    "CPUS": "preset",
    "Iommu": "preset",
    "Lab": "laboratory",
    "Outcome": "batch",
    "Result": "guest_run",
    "Scenario": "batch",
    "guest_devices": "guest_device",
}


def __getattr__(name: str) -> object:
    # Imports are slow in an emulated guest, where only guest_devices is needed.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'failure')}")
    return getattr(home, name)

"""What tests on a real kernel need of the machine, and where it is.

Kernels: the folder that ``VFIOKIT_LAB_KERNELS`` names (``bzImage-iommufd`` and others). QEMU: the
one that vfiokit's lab would take. A newer QEMU, for AMD-Vi, VT-d's first stage, igb and
vfio-user-pci: :func:`newer_qemu`, a folder made by ``tools/qemu_root.sh``.

What is missing is a :class:`MissingError` with the reason: a test is skipped for it, and fails in
CI; see :func:`skip_or_fail`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from vfiokit.lab import QemuMissingError
from vfiokit.lab.qemu import Qemu

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VFIOKIT_SHARED") or ROOT / "../shared")
KERNELS = Path(os.environ.get("VFIOKIT_LAB_KERNELS") or SHARED / "kernels")
QEMU_ROOT_VARIABLE = "VFIOKIT_QEMU_ROOT"
NEWER = {
    "amd-iommu": "dma-remap",
    "intel-iommu": "fsts",
    "igb": "romfile",
    "vfio-user-pci": "socket",
}
"""Devices and their properties that a newer QEMU has: 11.1 has them all."""


class MissingError(Exception):
    """Something that a test needs is not on this machine; says what and how to get it."""


def skip_or_fail(reason: object) -> NoReturn:
    """Skip the test; in CI, where nobody reads reasons, fail it."""
    if os.environ.get("CI"):
        pytest.fail(str(reason))
    pytest.skip(str(reason))


def kernel(name: str = "bzImage-iommufd") -> Path:
    """A kernel image; raises :class:`MissingError`."""
    image = KERNELS / name
    if not image.exists():
        raise MissingError(f"no {image}; VFIOKIT_LAB_KERNELS names the folder of the lab's kernels")
    return image


def any_qemu() -> Qemu:
    """The QEMU that a lab takes by itself; raises :class:`MissingError`."""
    try:
        return Qemu.find()
    except QemuMissingError as error:
        raise MissingError(f"{error}; {error.hint}") from error


def newer_qemu() -> str:
    """A QEMU with all of :data:`NEWER`, as ``Lab(qemu=…)`` and ``VFIOKIT_LAB_QEMU`` take it.

    The one that a lab takes by itself if it has them, else the folder that
    ``tools/qemu_root.sh`` makes. Raises :class:`MissingError`.
    """
    for name in ("", str(qemu_root())):
        try:
            found = Qemu.find(name)
        except QemuMissingError:
            continue
        if all(found.has_property(device, wanted) for device, wanted in NEWER.items()):
            return name
    raise MissingError(
        f"no QEMU with {', '.join(NEWER)} as they are in 11.1, also not in {qemu_root()}; "
        "tools/qemu_root.sh puts one there"
    )


def qemu_root() -> Path:
    """Where ``tools/qemu_root.sh`` puts a newer QEMU, whether or not it has."""
    named = os.environ.get(QEMU_ROOT_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(cache) / "vfiokit/qemu-root"

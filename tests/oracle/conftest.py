"""A lab with the kernel that the oracles ask, or a reason why there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vfiokit.lab import Lab

SHARED = Path(os.environ.get("VFIOKIT_SHARED") or Path(__file__).resolve().parents[2] / "../shared")
KERNELS = Path(os.environ.get("VFIOKIT_LAB_KERNELS") or SHARED / "kernels")


def missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lab() -> Lab:
    """Linux 7.2 with P2PDMA, IOMMUFD and kprobe events, everything built in."""
    image = KERNELS / "bzImage-iommufd"
    if not image.exists():
        missing(f"no {image}; VFIOKIT_LAB_KERNELS names the folder of the lab's kernels")
    if not shutil.which("qemu-system-x86_64") and not os.environ.get("VFIOKIT_LAB_QEMU"):
        missing("no qemu-system-x86_64; apt install qemu-system-x86")
    return Lab(kernel=image, timeout_s=240)

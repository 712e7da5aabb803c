"""Kernels for the boot tests, where the machine has them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from lab_requirement import KERNELS, missing

from vfiokit.lab.laboratory import Lab


@pytest.fixture(scope="session")
def lab_kernel() -> Path:
    """A kernel with everything built in."""
    image = KERNELS / "bzImage-iommufd"
    if not image.exists():
        missing(f"no {image}; VFIOKIT_LAB_KERNELS names the folder of the lab's kernels")
    return image


@pytest.fixture(scope="session")
def lab(lab_kernel: Path) -> Lab:
    """A lab with that kernel and the default topology."""
    if not shutil.which("qemu-system-x86_64") and not os.environ.get("VFIOKIT_LAB_QEMU"):
        missing("no qemu-system-x86_64; apt install qemu-system-x86")
    return Lab(kernel=lab_kernel)

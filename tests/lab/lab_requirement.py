"""What boot tests need of the machine: skipped where it is missing, a failure in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("VFIOKIT_SHARED") or Path(__file__).resolve().parents[2] / "../shared")
KERNELS = Path(os.environ.get("VFIOKIT_LAB_KERNELS") or SHARED / "kernels")


def missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)

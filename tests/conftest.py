"""Labs for tests on a real kernel: skipped where the machine has none, failed in CI.

Hypothesis does not judge a test by how busy the machine is.
And the conformance table, here because pytest's workers alone read the files of folders below.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import lab_equipment
from vfiokit.lab import Lab

settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("busy")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table where behaviours were tested."""
    from conformance import table

    table.write(terminalreporter)


@pytest.fixture(scope="session")
def lab_kernel() -> Path:
    """Linux 7.2 with VFIO, IOMMUFD, P2PDMA and kprobe events, everything built in."""
    try:
        return lab_equipment.kernel()
    except lab_equipment.MissingError as reason:
        lab_equipment.skip_or_fail(reason)


@pytest.fixture(scope="session")
def lab(lab_kernel: Path) -> Lab:
    """A lab with that kernel, the default topology and the QEMU at hand."""
    try:
        lab_equipment.any_qemu()
    except lab_equipment.MissingError as reason:
        lab_equipment.skip_or_fail(reason)
    return Lab(kernel=lab_kernel)


@pytest.fixture(scope="session")
def newer_lab(lab_kernel: Path) -> Lab:
    """The same with a QEMU that has AMD-Vi, VT-d's first stage, igb and vfio-user-pci."""
    try:
        return Lab(kernel=lab_kernel, qemu=lab_equipment.newer_qemu())
    except lab_equipment.MissingError as reason:
        lab_equipment.skip_or_fail(reason)

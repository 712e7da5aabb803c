"""The pytest plugin: fixture ``lab_host``, marker ``lab``, options ``--lab-kernel`` and others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vfiokit.lab.laboratory import Lab

_OPTIONS = {
    "--lab-kernel": "kernel image for guests of lab_host (default: $VFIOKIT_LAB_KERNEL, /boot)",
    "--lab-modules": "folder with that kernel's modules",
    "--lab-qemu": "QEMU for lab_host (default: $VFIOKIT_LAB_QEMU, PATH)",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("vfiokit", "vfiokit: a real kernel in QEMU")
    for name, text in _OPTIONS.items():
        group.addoption(name, default="", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "lab(**fields): the guest of lab_host; fields of vfiokit.lab.Lab, such as topology, "
        "iommu, cpu, needs, timeout_s",
    )


@pytest.fixture
def lab_host(request: pytest.FixtureRequest) -> Lab:
    """A lab for this test, with the fields that its ``lab`` markers give.

    Markers of the test win over those of its class and module. The test is skipped where there
    is no QEMU or kernel for it; with the variable ``CI`` set it fails instead, because there the
    reason would go unread.
    """
    from vfiokit.lab.failure import LabError
    from vfiokit.lab.laboratory import Lab

    fields: dict[str, object] = {
        name: request.config.getoption(f"--lab-{name}") for name in ("kernel", "modules", "qemu")
    }
    # A guest with an image imports the functions of test modules, which import pytest.
    fields["include"] = ("pytest",)
    for marker in reversed(list(request.node.iter_markers("lab"))):
        if marker.args:
            pytest.fail("the marker lab takes named fields only, such as topology='rp(edu)'")
        fields.update(marker.kwargs)
    try:
        lab = Lab().with_changes(**fields)
        lab.check()
    except TypeError as error:
        pytest.fail(f"the marker lab: {error}")
    except LabError as error:
        reason = f"{error} ({error.hint})" if error.hint else str(error)
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return lab

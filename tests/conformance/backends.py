"""Where the outer test run lets the behaviours run, and how it gets their lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from conformance.behaviour import (
    CDEV,
    COMPAT_NODE,
    CONTAINER,
    IOMMUFD,
    NO_IOMMU,
    SPECIAL,
    SRIOV,
    UNSAFE_INTERRUPTS,
    Behaviour,
)
from conformance.topology import TOPOLOGY
from conformance.vfio_user_differs import VFIO_USER_AREAS, VFIO_USER_DIFFERS
from lab_equipment import ROOT, MissingError, any_qemu, kernel, newer_qemu

LAB_TIMEOUT_S = 600.0


class Backend(NamedTuple):
    """A kernel to run on."""

    name: str
    features: frozenset[str]
    """What it is known to have: a behaviour that needs more does not concern it."""
    image: str = ""
    """Kernel of the lab; empty: the software machine."""
    iommu: str = "intel"
    newer: bool = False
    """Wants a newer QEMU than the machine's own may be."""
    differs: Mapping[str, str] = {}
    """Behaviours that are not so with its IOMMU, or with a device on a socket, and what is."""
    areas: frozenset[str] = frozenset()
    """The only areas that it has; empty: all."""

    def concerns(self, behaviour: Behaviour) -> bool:
        """Whether the behaviour is one of this kernel's."""
        if behaviour.id in self.differs or (self.areas and behaviour.area not in self.areas):
            return False
        special = self.features & SPECIAL
        return self.features.issuperset(behaviour.needs) and special.issubset(behaviour.needs)


MACHINE = Backend("machine", frozenset({CONTAINER, IOMMUFD, CDEV, SRIOV}))
"""What the software machine stands for; what it lacks is reported as missing."""
MACHINE_COMPAT = Backend("machine-compat", frozenset({COMPAT_NODE, IOMMUFD, CDEV, SRIOV}))
LAB = Backend("linux", MACHINE.features, "bzImage-iommufd")
LAB_COMPAT = Backend("linux-compat", MACHINE_COMPAT.features, "bzImage-iommufd-compat")
MACHINE_NONE = Backend("machine-none", frozenset({NO_IOMMU}))
LAB_NONE = Backend("linux-none", MACHINE_NONE.features, "bzImage-iommufd", "none")
MACHINE_UNSAFE = Backend("machine-unsafe", frozenset({UNSAFE_INTERRUPTS}))
LAB_UNSAFE = Backend("linux-unsafe", MACHINE_UNSAFE.features, "bzImage-iommufd", "virtio")
_RANGES = "there is a hole for HyperTransport at fd00000000, and the end is that of 64 bits"
AMD_VI = {
    "attach/ranges-leave-out-the-interrupts": _RANGES,
    "compat/ranges-are-bounded-by-the-open-device": _RANGES,
    "type1/iova-ranges-leave-out-the-interrupts": _RANGES,
    "type1/iova-ranges-end-with-48-bits": _RANGES,
    "type1/map-beyond-the-aperture-is-einval": "nothing is beyond 64 bits",
    "type1/map-that-fails-half-way-leaves-nothing": "the mapping would cover the hole: EINVAL",
    "container/coherency-is-what-the-iommu-can-enforce": "it reads a register of VT-d",
    "hwinfo/tells-vt-d": "the type is AMD's",
    "hwinfo/without-buffer-tells-the-length": "the length is that of AMD's structure",
    "viommu/of-vt-d-is-eopnotsupp": "it has none of this type: EINVAL",
}
"""Where AMD-Vi differs from VT-d, which is what the software machine has."""
LAB_AMD = Backend(
    "linux-amd", MACHINE.features, "bzImage-iommufd", "amd", newer=True, differs=AMD_VI
)
VFIO_USER = Backend(
    "vfio-user", frozenset({CONTAINER}), differs=VFIO_USER_DIFFERS, areas=VFIO_USER_AREAS
)
"""Devices of the software machine, each behind a server's socket."""
BACKENDS = (
    *(MACHINE, LAB, LAB_AMD),
    *(MACHINE_COMPAT, LAB_COMPAT),
    *(MACHINE_NONE, LAB_NONE),
    *(MACHINE_UNSAFE, LAB_UNSAFE),
    VFIO_USER,
)
SOFTWARE = (MACHINE, MACHINE_COMPAT, MACHINE_NONE, MACHINE_UNSAFE)


class UnavailableError(Exception):
    """A backend cannot run here; says why."""


def run(backend: Backend, ids: Sequence[str]) -> dict[str, dict[str, object]]:
    """Lines by id. Raises :class:`UnavailableError`."""
    text = _in_the_lab(backend, ids) if backend.image else _here(backend, ids)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {str(line["id"]): line for line in lines if "id" in line}


def _command(ids: Sequence[str]) -> list[str]:
    # A whole backend needs no list, and a command line has an end.
    return [sys.executable, "-m", "conformance.run_here", *(ids if len(ids) < 50 else ())]


def _path() -> str:
    return os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))


def _here(backend: Backend, ids: Sequence[str]) -> str:
    areas = [f"{area}/*" for area in sorted(backend.areas)]
    command = _command(ids if len(ids) < 50 or not areas else areas)
    done = subprocess.run(
        [*command, "--backend", backend.name],
        env={**os.environ, "PYTHONPATH": _path()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode not in (0, 1):
        raise AssertionError(f"the runner failed: {done.stderr}")
    return done.stdout


def _in_the_lab(backend: Backend, ids: Sequence[str]) -> str:
    from vfiokit.lab import Lab

    try:
        image = kernel(backend.image)
        any_qemu()
        qemu = newer_qemu() if backend.newer else ""
    except MissingError as reason:
        raise UnavailableError(reason) from reason
    lab = Lab(
        topology=TOPOLOGY,
        kernel=image,
        qemu=qemu,
        iommu=backend.iommu,
        timeout_s=LAB_TIMEOUT_S,
        environment={"PYTHONPATH": _path()},
    )
    result = lab.run(_command(ids), folder=ROOT)
    if result.status not in (0, 1):
        raise AssertionError(f"the runner failed in the guest: {result.stderr.decode()}")
    return result.text

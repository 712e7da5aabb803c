"""iommufd, device nodes and device features on a real kernel."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from vfiokit.lab import Lab, Scenario

# The questions are those that the unit tests put to a fake.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

import iommufd_scenarios as scenarios
from iommufd_answers import ALONE, ATTACHED

pytestmark = pytest.mark.slow

PAGE = 4096


def test_answers_are_those_that_the_fake_gives(lab: Lab) -> None:
    # They come back as JSON: without tuples, and keys are texts.
    wanted = json.loads(json.dumps([ALONE, ATTACHED]))
    assert lab.run_python(scenarios.answers) == wanted


def test_one_guest_full_of_devices(lab: Lab) -> None:
    changed = lab.with_changes(topology="rp0(edu0), rp1(nvme0 cmb=16)")
    table, peer, dirty, features, migration = changed.run_batch(
        [
            scenarios.page_table_of_one_s_own,
            scenarios.peer_to_peer,
            scenarios.dirty_pages_of_a_container,
            scenarios.features_of_edu,
            scenarios.migration_of_a_sample_device,
        ]
    )
    assert table.require() == "hwpt"
    assert peer.require() == {
        "landed": "peertope",
        "map of no memory": "EINVAL",
        "map beyond": "EINVAL",
        "map revoked": "ENODEV",
        "map again": True,
        "unaligned": "EINVAL",
        "config space": "ENODEV",
    }
    assert dirty.require() == {
        "early": "EINVAL",
        "ranges": [[0x100000, 0x100000 + 70 * PAGE - 1]],
        "part": "EINVAL",
        "last": 70,
        "left": {},
        "version 1": "EACCES",
    }
    assert features.require() == {
        "get": [11],
        "set": [3, 4, 5],
        "abilities": 0,
        "log": "ENOTTY",
        "low power": True,
        "token": "ENOTTY",
    }
    assert migration.require() == {
        "abilities": 7,
        "state": 2,
        "size": 60,
        "info": [24, 0, False],
        "info too late": "EINVAL",
        "read": [60, 0],
        "no way": "EINVAL",
        "state after": 3,
        "written": 60,
        "running": None,
    }


def test_virtual_functions_open_with_their_token_by_either_way(lab: Lab) -> None:
    changed = lab.with_changes(topology="rp(nvme:drive vfs=3)", append=["vfio_pci.enable_sriov=1"])
    wanted = {"none": "EACCES", "wrong": "EACCES", "right": 0x1B36, "as text": 0x1B36}
    assert changed.run_python(scenarios.vf_tokens) == {"cdev": wanted, "group": wanted}


def test_functions_of_one_group_share_or_are_refused(lab: Lab) -> None:
    changed = lab.with_changes(topology="rp noacs(slot(edu:a, edu:b))")
    found = changed.run_python(scenarios.refusals)
    assert found.pop("shared") is True
    assert found.pop("affected") == [True, True]
    kinds = {name: (kind, number) for name, (kind, number, _) in found.items()}
    assert kinds == {
        "node while group is open": ("DeviceBusyError", errno.EBUSY),
        "group while node is open": ("DeviceBusyError", errno.EBUSY),
        "another iommufd": ("KernelError", errno.EPERM),
        "another ioas": ("KernelError", errno.EINVAL),
        "no driver": ("KernelError", errno.ENOENT),
    }
    assert all(hint for _, _, hint in found.values())


def test_host_driver_in_the_group_is_named_by_either_way(lab: Lab) -> None:
    changed = lab.with_changes(topology="rp noacs(slot(edu:a, nvme:n))")
    found = changed.run_python(scenarios.host_driver_in_the_group)
    assert found["cdev"] == found["group"]
    kind, blockers = found["cdev"]
    assert kind == "GroupNotViableError"
    assert list(blockers.values()) == ["nvme"]


def test_missing_msi_isolation_names_the_parameter_of_either_way(lab: Lab) -> None:
    found = lab.with_changes(iommu="virtio").run_python(scenarios.no_isolated_msi)
    for backend, parameter in (("cdev", "iommufd"), ("group", "vfio_iommu_type1")):
        _, number, hint = found[backend]
        assert number == errno.EPERM
        assert f"{parameter}.allow_unsafe_interrupts" in hint


def test_device_without_iommu_works_but_for_dma(lab: Lab) -> None:
    found = lab.with_changes(iommu="noiommu").run_python(scenarios.without_iommu)
    assert (found["factorial"], found["interrupt"]) == (120, 2)
    assert found["map"][1] == errno.ENOTTY
    assert found["node"][1] == errno.ENODEV


def test_container_that_iommufd_stands_in_for_learns_its_ranges(lab: Lab, lab_kernel: Path) -> None:
    image = lab_kernel.with_name("bzImage-iommufd-compat")
    if not image.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {image}")
        pytest.skip(f"no {image}")
    changed = lab.with_changes(kernel=image)
    (found,) = changed.run_batch([Scenario(scenarios.compatible_container)])
    answer = found.require()
    assert answer["dirty"] == "ENOTTY"
    assert answer["ranges"][0] == [0, 0xFEDFFFFF]
    assert answer["ranges"][1][0] == 0xFEF00000

"""Plans over a small host and over a captured server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from assign_host import (
    AUDIO,
    FUNCTIONS,
    GPU,
    NIC,
    NVME,
    PCI,
    PORT,
    add_disk,
    add_link,
    build,
    link,
    put,
    snapshot,
)

from vfiokit.assign.plan import Fate, Plan, plan
from vfiokit.errors import DeviceNotFoundError, FormatError, UsageError
from vfiokit.host.tree import FolderTree
from vfiokit.pci.address import Bdf

nvme, nic, gpu, audio, port = map(Bdf.parse, (NVME, NIC, GPU, AUDIO, PORT))


def ids(made: Plan) -> set[str]:
    return {blocker.id for blocker in made.blockers}


def writes(made: Plan) -> list[tuple[str, bytes]]:
    return [(step.do.path, step.do.data) for step in made.steps]


def test_override_is_set_before_the_driver_lets_go(tmp_path: Path) -> None:
    made = plan(build(tmp_path), [nvme])
    assert made.blockers == ()
    assert writes(made) == [
        (f"/sys/bus/pci/devices/{NVME}/driver_override", b"vfio-pci"),
        ("/sys/bus/pci/drivers/nvme/unbind", NVME.encode()),
        ("/sys/bus/pci/drivers/vfio-pci/bind", NVME.encode()),
    ]


def test_planning_writes_nothing(tmp_path: Path) -> None:
    tree = build(tmp_path)
    before = snapshot(tmp_path)
    plan(tree, [gpu], include_group=True)
    assert tree.writes == []
    assert snapshot(tmp_path) == before


def test_unbound_function_needs_no_unbinding(tmp_path: Path) -> None:
    made = plan(build(tmp_path, {NVME: (None, None)}), [nvme])
    assert [step.do.action.value for step in made.steps] == ["set-override", "bind"]


def test_function_on_the_driver_has_nothing_to_do(tmp_path: Path) -> None:
    made = plan(build(tmp_path, {NVME: ("vfio-pci", None)}), [nvme])
    assert made.changes_nothing
    assert made.blockers == ()
    assert any("nothing to do" in warning for warning in made.warnings)


def test_same_address_twice_is_planned_once(tmp_path: Path) -> None:
    assert len(plan(build(tmp_path), [nvme, nvme]).targets) == 1


def test_group_member_on_a_host_driver_blocks_and_bridge_does_not(tmp_path: Path) -> None:
    made = plan(build(tmp_path), [gpu])
    assert ids(made) == {f"group-member:{AUDIO}"}
    assert {member.bdf: member.fate for member in made.members} == {
        gpu: Fate.ASSIGNED,
        audio: Fate.BLOCKS,
        port: Fate.STAYS,
    }


def test_naming_the_whole_group_removes_the_obstacle(tmp_path: Path) -> None:
    made = plan(build(tmp_path), [gpu, audio])
    assert made.blockers == ()
    assert [target.bdf for target in made.targets] == [gpu, audio]


def test_include_group_releases_members_and_keeps_them_from_coming_back(tmp_path: Path) -> None:
    made = plan(build(tmp_path), [gpu], include_group=True)
    assert made.blockers == ()
    assert writes(made)[:2] == [
        (f"/sys/bus/pci/devices/{AUDIO}/driver_override", b"vfio-pci"),
        ("/sys/bus/pci/drivers/snd_hda_intel/unbind", AUDIO.encode()),
    ]
    assert all(AUDIO.encode() != data for path, data in writes(made) if path.endswith("/bind"))
    assert all(PORT not in path and data != PORT.encode() for path, data in writes(made))


def test_group_member_on_pci_stub_is_no_obstacle(tmp_path: Path) -> None:
    tree = build(tmp_path, {AUDIO: (None, None)})
    link(tmp_path, f"{PCI}/{AUDIO}/driver", "../../../bus/pci/drivers/pci-stub")
    assert plan(tree, [gpu]).blockers == ()


def test_driver_that_is_not_loaded_blocks_with_the_command_that_loads_it(tmp_path: Path) -> None:
    tree = build(tmp_path)
    Path(tmp_path, "sys/bus/pci/drivers/vfio-pci").rename(tmp_path / "elsewhere")
    (blocker,) = plan(tree, [nvme]).blockers
    assert (blocker.id, blocker.forcible) == ("no-vfio-driver", False)
    assert "modprobe vfio-pci" in blocker.hint


def test_function_without_group_blocks(tmp_path: Path) -> None:
    tree = build(tmp_path)
    Path(tmp_path, PCI, NVME, "iommu_group").unlink()
    made = plan(tree, [nvme])
    assert ids(made) == {f"no-iommu-group:{NVME}"}
    assert made.open_blockers([f"no-iommu-group:{NVME}"]) == made.blockers


def test_function_nobody_has_bound_yet_may_get_its_group_later(tmp_path: Path) -> None:
    """With a modular virtio-iommu, Linux 6.12 makes the group when a driver binds."""
    tree = build(tmp_path)
    folder = Path(tmp_path, PCI, NVME)
    (folder / "iommu_group").unlink()
    (folder / "driver").unlink()
    made = plan(tree, [nvme])
    assert made.blockers == ()
    assert any("no IOMMU group yet" in text for text in made.warnings)


def test_no_group_is_only_a_warning_in_unsafe_noiommu_mode(tmp_path: Path) -> None:
    tree = build(tmp_path)
    Path(tmp_path, PCI, NVME, "iommu_group").unlink()
    put(tmp_path, "sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    made = plan(tree, [nvme])
    assert made.blockers == ()
    assert any("no-IOMMU" in warning for warning in made.warnings)


def test_driver_that_does_not_use_vfio_needs_no_group(tmp_path: Path) -> None:
    tree = build(tmp_path)
    Path(tmp_path, PCI, NVME, "iommu_group").unlink()
    assert plan(tree, [nvme], driver="uio_pci_generic").blockers == ()


def test_driver_that_does_not_use_vfio_leaves_the_group_alone(tmp_path: Path) -> None:
    made = plan(build(tmp_path), [gpu], driver="uio_pci_generic", include_group=True)
    assert made.blockers == ()
    assert [target.bdf for target in made.targets] == [gpu]


def test_enabled_virtual_functions_block(tmp_path: Path) -> None:
    tree = build(tmp_path)
    put(tmp_path, f"{PCI}/{NIC}/sriov_numvfs", "4\n")
    made = plan(tree, [nic])
    assert ids(made) == {f"vfs-enabled:{NIC}"}
    assert not made.blockers[0].forcible
    assert any(loss.kind == "sriov" for loss in made.losses)


def test_bridge_as_target_blocks(tmp_path: Path) -> None:
    assert f"bridge:{PORT}" in ids(plan(build(tmp_path), [port]))


@pytest.mark.parametrize("content", ["\n", None])
def test_function_that_cannot_be_reset_must_be_forced(tmp_path: Path, content: str | None) -> None:
    tree = build(tmp_path)
    file = Path(tmp_path, PCI, NVME, "reset_method")
    file.unlink() if content is None else file.write_text(content)
    made = plan(tree, [nvme])
    assert ids(made) == {f"no-reset:{NVME}"}
    assert made.open_blockers([f"no-reset:{NVME}"]) == ()


def test_reset_file_alone_is_an_older_kernels_word_for_it(tmp_path: Path) -> None:
    tree = build(tmp_path)
    Path(tmp_path, PCI, NVME, "reset_method").rename(Path(tmp_path, PCI, NVME, "reset"))
    assert plan(tree, [nvme]).blockers == ()


@pytest.mark.parametrize("device_mapper", [False, True])
def test_boot_disk_is_refused_unless_forced_by_name(tmp_path: Path, device_mapper: bool) -> None:
    tree = build(tmp_path)
    add_disk(tmp_path, "/", device_mapper=device_mapper)
    made = plan(tree, [nvme])
    assert ids(made) == {"boot-disk:nvme0n1"}
    assert any("Samsung SSD 970 EVO Plus 2TB, 1.8 TiB" in loss.text for loss in made.losses)
    assert made.open_blockers(["boot-disk:sda"]) == made.blockers
    assert plan(tree, [nvme], force=["boot-disk:nvme0n1"]).open_blockers() == ()


def test_mounted_disk_is_refused_under_another_id(tmp_path: Path) -> None:
    tree = build(tmp_path)
    add_disk(tmp_path, "/srv")
    assert ids(plan(tree, [nvme])) == {"disk-in-use:nvme0n1"}


def test_idle_disk_is_lost_and_blocks_nothing(tmp_path: Path) -> None:
    tree = build(tmp_path)
    add_disk(tmp_path, "")
    made = plan(tree, [nvme])
    assert made.blockers == ()
    assert [(loss.name, loss.in_use) for loss in made.losses] == [("nvme0n1", False)]


def test_disk_is_a_warning_where_mounts_are_unknown(tmp_path: Path) -> None:
    tree = build(tmp_path)
    add_disk(tmp_path, "")
    Path(tmp_path, "proc/self/mountinfo").unlink()
    made = plan(tree, [nvme])
    assert made.blockers == ()
    assert any("cannot tell whether disk nvme0n1" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("default_route", "bond", "expected"),
    [
        (False, False, "link-in-use:eno1"),
        (False, True, "link-in-use:eno1"),
        (True, False, "default-route:eno1"),
        (True, True, "default-route:bond0"),
    ],
)
def test_link_in_use_is_refused(
    tmp_path: Path, default_route: bool, bond: bool, expected: str
) -> None:
    tree = build(tmp_path)
    add_link(tmp_path, default_route=default_route, bond=bond)
    assert ids(plan(tree, [nic])) == {expected}


def test_link_that_is_down_blocks_nothing(tmp_path: Path) -> None:
    tree = build(tmp_path)
    add_link(tmp_path)
    put(tmp_path, f"{PCI}/{NIC}/net/eno1/flags", "0x1002\n")
    put(tmp_path, f"{PCI}/{NIC}/net/eno1/operstate", "down\n")
    assert plan(tree, [nic]).blockers == ()


def test_only_console_is_refused_and_one_of_two_is_not(tmp_path: Path) -> None:
    tree = build(tmp_path)
    put(tmp_path, f"{PCI}/{GPU}/boot_vga", "1\n")
    assert ids(plan(tree, [gpu, audio])) == {f"console:{GPU}"}
    put(tmp_path, f"{PCI}/{NIC}/drm/card1/dev", "226:1\n")
    assert plan(tree, [gpu, audio]).blockers == ()


def test_losses_of_released_members_count(tmp_path: Path) -> None:
    tree = build(tmp_path)
    put(tmp_path, f"{PCI}/{AUDIO}/sound/card0/id", "HDMI\n")
    made = plan(tree, [gpu], include_group=True)
    assert [loss.text for loss in made.losses] == ["loses sound card card0 (HDMI)"]


def test_device_held_open_is_refused_with_the_processes(tmp_path: Path) -> None:
    tree = build(tmp_path)
    put(tmp_path, f"{PCI}/{GPU}/drm/card0/dev", "226:0\n")
    put(tmp_path, "proc/4711/comm", "Xorg\n")
    link(tmp_path, "proc/4711/fd/7", "/dev/dri/card0")
    made = plan(tree, [gpu, audio])
    assert ids(made) == {"held-open:/dev/dri/card0"}
    assert "Xorg (4711)" in made.blockers[0].text


def test_force_of_an_unknown_id_is_pointed_out(tmp_path: Path) -> None:
    made = plan(build(tmp_path), [nvme], force=["boot-disk:sdz"])
    assert any("boot-disk:sdz" in warning for warning in made.warnings)


def test_unknown_function_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError):
        plan(build(tmp_path), [Bdf.parse("0000:7f:00.0")])


@pytest.mark.parametrize("driver", ["", "../nvme", "a/b", "a b", "-x"])
def test_driver_that_is_no_name_is_a_usage_error(tmp_path: Path, driver: str) -> None:
    with pytest.raises(UsageError):
        plan(build(tmp_path), [nvme], driver=driver)


def test_no_function_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        plan(build(tmp_path), [])


def test_plan_survives_its_json(tmp_path: Path) -> None:
    tree = build(tmp_path, {NVME: ("nvme", "nvme")})
    add_disk(tmp_path, "/", device_mapper=True)
    made = plan(tree, [nvme, gpu], include_group=True, force=["boot-disk:nvme0n1"])
    document = json.loads(json.dumps(made.to_json()))
    assert Plan.from_json(document) == made


def test_changed_step_path_is_no_plan(tmp_path: Path) -> None:
    document = plan(build(tmp_path), [nvme]).to_json()
    document["steps"][0]["do"]["path"] = "/etc/passwd"
    with pytest.raises(FormatError, match=r"plan\.json.*/etc/passwd"):
        Plan.from_json(document, path="plan.json")


def test_every_missing_or_mistyped_member_is_a_format_error(tmp_path: Path) -> None:
    tree = build(tmp_path)
    add_disk(tmp_path)
    document = plan(tree, [nvme, gpu]).to_json()
    for wrong in (None, 7, "x", [3], {"a": 1}, True):
        for key in document:
            if document[key] != wrong and type(document[key]) is not type(wrong):
                with pytest.raises(FormatError):
                    Plan.from_json({**document, key: wrong})
    for key in document:
        with pytest.raises(FormatError):
            Plan.from_json({name: value for name, value in document.items() if name != key})
    for rows in ("targets", "members", "steps", "losses", "blockers"):
        for key in document[rows][0]:
            row = {name: value for name, value in document[rows][0].items() if name != key}
            with pytest.raises(FormatError):
                Plan.from_json({**document, rows: [row]})


@pytest.mark.parametrize("document", [None, [], "plan", 3, {"driver": "vfio-pci"}])
def test_other_documents_are_format_errors(document: object) -> None:
    with pytest.raises(FormatError):
        Plan.from_json(document)


def test_unpacked_capture_without_groups_predicts_and_says_so(tmp_path: Path) -> None:
    build(tmp_path)
    for bdf in FUNCTIONS:
        Path(tmp_path, PCI, bdf, "iommu_group").unlink()
    Path(tmp_path, "sys/kernel").rename(tmp_path / "elsewhere")
    made = plan(FolderTree(str(tmp_path)), [nvme])
    assert made.targets[0].group_predicted
    assert made.blockers == ()
    assert any("prediction" in warning for warning in made.warnings)

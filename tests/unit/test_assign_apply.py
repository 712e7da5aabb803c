"""Apply and undo against the kernel's binding rules: done, refused, failed, rolled back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from assign_host import (
    AUDIO,
    GPU,
    NIC,
    NVME,
    PCI,
    HostKernel,
    add_disk,
    build,
    link,
    put,
    snapshot,
)

from vfiokit.assign.apply import apply, check
from vfiokit.assign.plan import plan
from vfiokit.assign.progress import Progress
from vfiokit.assign.undo import pending, undo
from vfiokit.errors import (
    ApplyError,
    AssignError,
    DriftError,
    JournalError,
    PlanBlockedError,
    UsageError,
)
from vfiokit.host.tree import FolderTree
from vfiokit.kernel.recording import RecordingKernel
from vfiokit.pci.address import Bdf

nvme, nic, gpu, audio = map(Bdf.parse, (NVME, NIC, GPU, AUDIO))


class Host:
    """A host below a folder, its kernel, and its journals."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "host"
        self.journals = folder / "journals"
        build(self.root)
        self.kernel = HostKernel(self.root)
        self.tree = self.kernel.tree

    def fail(self, suffix: str, code: int, *, times: int = 10**9) -> None:
        """Let writes to paths that end so fail."""
        left = [times]

        def hook(path: str, data: bytes) -> None:
            if path.endswith(suffix) and left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code), path)

        self.tree.before_write = hook


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_applied_plan_binds_and_undo_restores_every_byte(host: Host) -> None:
    before = snapshot(host.root)
    made = plan(host.tree, [nvme, gpu], include_group=True)
    applied = apply(host.kernel, made, host.journals)
    assert host.tree.driver(NVME) == host.tree.driver(GPU) == "vfio-pci"
    assert (host.tree.driver(AUDIO), host.tree.override(AUDIO)) == (None, "vfio-pci")
    assert applied.steps == made.steps
    assert applied.journal is not None
    (record,) = pending(host.journals)
    assert record.path == applied.journal
    assert record.is_applied
    undone = undo(host.kernel, applied.journal)
    assert snapshot(host.root) == before
    assert not undone.already
    assert pending(host.journals) == ()


def test_second_undo_writes_nothing(host: Host) -> None:
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    undo(host.kernel, applied.journal)
    before, count = snapshot(host.root), len(host.tree.writes)
    assert undo(host.kernel, applied.journal).already
    assert len(host.tree.writes) == count
    assert snapshot(host.root) == before


def test_former_override_comes_back(host: Host) -> None:
    put(host.root, f"{PCI}/{NVME}/driver_override", "something-else\n")
    before = snapshot(host.root)
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    undo(host.kernel, applied.journal)
    assert snapshot(host.root) == before


def test_nothing_to_do_leaves_no_journal(host: Host) -> None:
    (host.root / PCI / NVME / "driver").unlink()
    link(host.root, f"{PCI}/{NVME}/driver", "../../../bus/pci/drivers/vfio-pci")
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is None
    assert host.tree.writes == []
    assert list(host.journals.iterdir()) == []


def test_blocked_plan_is_refused_and_force_names_the_blocker(host: Host) -> None:
    add_disk(host.root)
    made = plan(host.tree, [nvme])
    with pytest.raises(PlanBlockedError) as caught:
        apply(host.kernel, made, host.journals)
    assert caught.value.blockers == ("boot-disk:nvme0n1",)
    assert "--force=boot-disk:nvme0n1" in caught.value.hint
    assert host.tree.writes == []
    apply(host.kernel, made, host.journals, force=["boot-disk:nvme0n1"])
    assert host.tree.driver(NVME) == "vfio-pci"


def test_disk_mounted_since_the_plan_blocks(host: Host) -> None:
    add_disk(host.root, "")
    made = plan(host.tree, [nvme])
    put(host.root, "proc/self/mountinfo", "1 0 259:1 / /data rw - ext4 /dev/nvme0n1p1 rw\n")
    with pytest.raises(PlanBlockedError) as caught:
        apply(host.kernel, made, host.journals)
    assert caught.value.blockers == ("disk-in-use:nvme0n1",)
    assert host.tree.writes == []


@pytest.mark.parametrize(
    ("path", "target", "said"),
    [
        (f"{PCI}/{NVME}/driver", "../../../bus/pci/drivers/e1000e", "driver was nvme, is e1000e"),
        (f"{PCI}/{NVME}/iommu_group", "../../../kernel/iommu_groups/9", "group was 1, is 9"),
    ],
)
def test_changed_link_is_drift(host: Host, path: str, target: str, said: str) -> None:
    made = plan(host.tree, [nvme])
    (host.root / path).unlink()
    link(host.root, path, target)
    with pytest.raises(DriftError, match=said):
        apply(host.kernel, made, host.journals)
    assert host.tree.writes == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("driver_override", "vfio-pci\n", "driver_override was none, is vfio-pci"),
        ("device", "0x1234\n", "identity was"),
    ],
)
def test_changed_file_is_drift(host: Host, name: str, value: str, said: str) -> None:
    made = plan(host.tree, [nvme])
    put(host.root, f"{PCI}/{NVME}/{name}", value)
    with pytest.raises(DriftError, match=said):
        apply(host.kernel, made, host.journals)


def test_function_that_joined_the_group_is_drift(host: Host) -> None:
    made = plan(host.tree, [nvme])
    (host.root / PCI / NIC / "iommu_group").unlink()
    link(host.root, f"{PCI}/{NIC}/iommu_group", "../../../kernel/iommu_groups/1")
    with pytest.raises(DriftError, match="group members"):
        apply(host.kernel, made, host.journals)


def test_removed_function_is_drift(host: Host) -> None:
    made = plan(host.tree, [nvme])
    (host.root / "sys/bus/pci/devices" / NVME).unlink()
    with pytest.raises(DriftError, match="no PCI function"):
        apply(host.kernel, made, host.journals)


def test_plan_of_another_host_is_drift(host: Host) -> None:
    made = plan(host.tree, [nvme])
    put(host.root, "etc/machine-id", "other\n")
    with pytest.raises(DriftError, match="another host"):
        check(host.tree, made)


def test_applying_twice_is_drift(host: Host) -> None:
    made = plan(host.tree, [nvme])
    apply(host.kernel, made, host.journals)
    with pytest.raises(DriftError, match="driver was nvme, is vfio-pci"):
        apply(host.kernel, made, host.journals)


@pytest.mark.parametrize("suffix", ["/vfio-pci/bind", "/nvme/unbind", "/driver_override"])
def test_failed_step_is_rolled_back(host: Host, suffix: str) -> None:
    before = snapshot(host.root)
    host.fail(suffix, errno.EIO, times=1)
    with pytest.raises(ApplyError, match="rolled back") as caught:
        apply(host.kernel, plan(host.tree, [nic, nvme]), host.journals)
    assert caught.value.rolled_back
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO
    assert snapshot(host.root) == before
    assert pending(host.journals) == ()


def test_refused_probe_says_where_to_look(host: Host) -> None:
    host.fail("/vfio-pci/bind", errno.EINVAL)
    with pytest.raises(ApplyError) as caught:
        apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert "kernel log" in caught.value.hint


def test_write_that_changes_nothing_is_noticed_and_rolled_back(host: Host) -> None:
    before = snapshot(host.root)
    honest = host.tree._bind
    host.tree._bind = lambda driver, bdf: None if driver == "vfio-pci" else honest(driver, bdf)
    with pytest.raises(ApplyError, match="accepted") as caught:
        apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert caught.value.rolled_back
    assert snapshot(host.root) == before


def test_failed_rollback_is_told_and_undo_finishes_it(host: Host) -> None:
    before = snapshot(host.root)
    host.fail("/bind", errno.EIO)
    with pytest.raises(ApplyError, match="rollback") as caught:
        apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert not caught.value.rolled_back
    assert snapshot(host.root) != before
    (record,) = pending(host.journals)
    assert not record.is_applied
    with pytest.raises(ApplyError):
        undo(host.kernel, record.path)
    host.fail("/bind", errno.EIO, times=0)
    undo(host.kernel, record.path)
    assert snapshot(host.root) == before


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupt_rolls_back_and_goes_on_up(host: Host, interrupt: type[BaseException]) -> None:
    before = snapshot(host.root)

    def stop(path: str, data: bytes) -> None:
        if path.endswith("vfio-pci/bind"):
            raise interrupt

    host.tree.after_write = stop
    with pytest.raises(interrupt):
        apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert snapshot(host.root) == before
    assert pending(host.journals) == ()


def test_full_disk_rolls_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(host.root)
    made = plan(host.tree, [nvme])
    calls = [0]
    stored = os.fsync

    def full(fd: int) -> None:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stored(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ApplyError) as caught:
            apply(host.kernel, made, host.journals)
    assert caught.value.rolled_back
    assert snapshot(host.root) == before
    (record,) = pending(host.journals)
    undo(host.kernel, record.path)
    assert snapshot(host.root) == before


def test_intent_is_in_the_journal_before_the_write(host: Host) -> None:
    seen: list[tuple[str, str]] = []

    def look(path: str, data: bytes) -> None:
        (record,) = pending(host.journals)
        seen.append((record.entries[-1].kind, record.entries[-1].detail["path"]))

    host.tree.before_write = look
    apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert seen == [("intent", path) for path, _ in host.tree.writes]


def test_observer_sees_every_change_start_and_end(host: Host) -> None:
    seen: list[Progress] = []
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals, observer=seen.append)
    assert [each.state for each in seen] == ["started", "finished"] * 3
    assert all(each.elapsed_s >= 0 and not each.undoing for each in seen)
    seen.clear()
    assert applied.journal is not None
    undo(host.kernel, applied.journal, observer=seen.append)
    assert [each.change for each in seen[::2]] == [*undo_changes(applied.plan)]
    assert all(each.undoing for each in seen)


def undo_changes(made: object) -> list[object]:
    return [change for step in reversed(made.steps) for change in step.undo]  # type: ignore[attr-defined]


def test_observer_that_fails_does_not_leave_the_host_changed(host: Host) -> None:
    before = snapshot(host.root)

    def bad(progress: Progress) -> None:
        if progress.state == "finished":
            raise RuntimeError("display is gone")

    with pytest.raises(RuntimeError):
        apply(host.kernel, plan(host.tree, [nvme]), host.journals, observer=bad)
    assert snapshot(host.root) == before


def test_undo_of_something_changed_since_is_drift_until_forced(host: Host) -> None:
    before = snapshot(host.root)
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    (host.root / PCI / NVME / "driver").unlink()
    link(host.root, f"{PCI}/{NVME}/driver", "../../../bus/pci/drivers/uio_pci_generic")
    count = len(host.tree.writes)
    with pytest.raises(DriftError, match="uio_pci_generic") as caught:
        undo(host.kernel, applied.journal)
    assert len(host.tree.writes) == count
    assert f"--force=drift:{NVME}" in caught.value.hint
    undo(host.kernel, applied.journal, force=[f"drift:{NVME}"])
    assert snapshot(host.root) == before


def test_undo_waits_for_no_program_that_holds_the_device(host: Host) -> None:
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    put(host.root, "proc/99/comm", "qemu\n")
    link(host.root, "proc/99/fd/3", "/dev/vfio/1")
    with pytest.raises(PlanBlockedError, match="qemu") as caught:
        undo(host.kernel, applied.journal)
    assert caught.value.blockers == ("held-open:/dev/vfio/1",)
    undo(host.kernel, applied.journal, force=caught.value.blockers)
    assert host.tree.driver(NVME) == "nvme"


def test_undo_without_the_former_driver_says_how_to_load_it(host: Host) -> None:
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    (host.root / "sys/bus/pci/drivers/nvme").rename(host.root / "away")
    with pytest.raises(AssignError, match="no longer has") as caught:
        undo(host.kernel, applied.journal)
    assert "modprobe nvme" in caught.value.hint
    assert host.tree.driver(NVME) == "vfio-pci"


def test_removed_function_is_left_out_of_undo(host: Host) -> None:
    applied = apply(host.kernel, plan(host.tree, [nvme, nic]), host.journals)
    assert applied.journal is not None
    (host.root / "sys/bus/pci/devices" / NVME).unlink()
    undone = undo(host.kernel, applied.journal)
    assert undone.gone == (nvme,)
    assert host.tree.driver(NIC) == "e1000e"


def test_reboot_has_undone_the_plan(host: Host) -> None:
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    put(host.root, "proc/sys/kernel/random/boot_id", "another boot\n")
    with pytest.raises(JournalError, match="last reboot") as caught:
        undo(host.kernel, applied.journal)
    assert "--force=other-boot" in caught.value.hint
    (host.root / PCI / NVME / "driver").unlink()
    link(host.root, f"{PCI}/{NVME}/driver", "../../../bus/pci/drivers/nvme")
    put(host.root, f"{PCI}/{NVME}/driver_override", "(null)\n")
    count = len(host.tree.writes)
    assert undo(host.kernel, applied.journal).rebooted
    assert len(host.tree.writes) == count
    assert pending(host.journals) == ()


def test_journal_of_another_host_is_refused(host: Host) -> None:
    applied = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    assert applied.journal is not None
    put(host.root, "etc/machine-id", "other\n")
    with pytest.raises(JournalError, match="another host"):
        undo(host.kernel, applied.journal)


def test_recorded_host_is_not_changed(host: Host) -> None:
    kernel = RecordingKernel(FolderTree(str(host.root)))
    with pytest.raises(UsageError, match="recorded host"):
        apply(kernel, plan(kernel.tree, [nvme]), host.journals)
    assert not host.journals.exists()


def test_missing_journal_is_an_error(host: Host) -> None:
    with pytest.raises(JournalError, match="no journal"):
        undo(host.kernel, host.journals / "none.journal")


def test_two_plans_are_undone_newest_first(host: Host) -> None:
    before = snapshot(host.root)
    first = apply(host.kernel, plan(host.tree, [nvme]), host.journals)
    second = apply(host.kernel, plan(host.tree, [nvme], driver="uio_pci_generic"), host.journals)
    assert first.journal is not None
    assert second.journal is not None
    with pytest.raises(DriftError):
        undo(host.kernel, first.journal)
    undo(host.kernel, second.journal)
    assert host.tree.driver(NVME) == "vfio-pci"
    undo(host.kernel, first.journal)
    assert snapshot(host.root) == before

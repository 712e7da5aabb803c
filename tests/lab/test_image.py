"""A real kernel that sees no file of the host: image and serial port instead of 9p."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import vfio_scenarios as scenarios
from test_boot import answer, crash_the_kernel, die_by_signal, raise_value_error

from vfiokit.lab import GuestFailedError, GuestTimeoutError, KernelLacksError, Lab, Scenario

pytestmark = pytest.mark.slow

LARGEST = 160 << 20
"""Bytes: an image beyond this would take noticeably long to boot."""


@pytest.fixture
def image_lab(lab: Lab) -> Lab:
    return lab.with_changes(root="image", include=["pytest"])


def test_a_kernel_without_9p_gets_an_image_by_itself(
    lab: Lab, lab_kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "bzImage-iommufd").symlink_to(lab_kernel)
    config = lab_kernel.with_name("config-iommufd").read_text()
    (tmp_path / "config-iommufd").write_text(config.replace("CONFIG_9P_FS=y\n", ""))
    changed = lab.with_changes(kernel=tmp_path / "bzImage-iommufd")
    assert changed.check().root == (False, "the kernel lacks CONFIG_9P_FS")
    groups_and_mounts = (
        "import os; print(*os.listdir('/sys/kernel/iommu_groups')); "
        "print(open('/proc/mounts').read())"
    )
    result = changed.run([sys.executable, "-c", groups_and_mounts], folder=tmp_path)
    assert result.status == 0, result.stderr
    groups, mounts = result.text.split("\n", 1)
    assert len(groups.split()) >= 4
    assert "9p" not in mounts
    assert 0 < sum(result.image.values()) < LARGEST
    with pytest.raises(KernelLacksError, match="CONFIG_9P_FS"):
        changed.with_changes(root="host").check()


def test_streams_status_files_and_folder_come_back(image_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("of the host")
    (tmp_path / "script.sh").write_text(
        "#!/bin/sh\ncat here; cat; echo trouble >&2; mkdir -p sub; echo fetched > sub/a.txt\n"
        'head -c 300000 /dev/urandom > "$VFIOKIT_LAB_OUTPUT/left"\n'
        'sha256sum "$VFIOKIT_LAB_OUTPUT/left"; exit 7\n'
    )
    (tmp_path / "script.sh").chmod(0o755)
    seen: list[tuple[str, bytes]] = []
    result = image_lab.run(
        ["./script.sh"],
        folder=tmp_path,
        stdin=b" and stdin\n",
        fetch=["sub/*.txt", "none*"],
        on_output=lambda *pair: seen.append(pair),
    )
    assert (result.status, result.stderr) == (7, b"trouble\n")
    first, second = result.text.splitlines()
    assert first == "of the host and stdin"
    assert second.split()[0] == hashlib.sha256(result.files["left"]).hexdigest()
    assert result.files["sub/a.txt"] == b"fetched\n"
    assert not (tmp_path / "sub").exists()
    assert b"".join(data for name, data in seen if name == "stdout") == result.stdout
    assert set(result.phases) == {"prepare", "boot", "command", "exit"}


def test_a_signal_and_a_missing_program_are_told(image_lab: Lab, tmp_path: Path) -> None:
    assert image_lab.run(["sh", "-c", "kill -9 $$"], folder=tmp_path).status == 128 + 9
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    result = image_lab.run(["./script"], folder=tmp_path)
    assert (result.status, result.stderr) == (
        127,
        f"{tmp_path}/script: No such file or directory\n".encode(),
    )


def test_scenarios_and_drivers_run_from_an_image(image_lab: Lab) -> None:
    first, second, third, edu, nvme = image_lab.run_batch(
        [
            Scenario(answer, (1, "two"), {"three": [3]}),
            raise_value_error,
            die_by_signal,
            Scenario(scenarios.edu_dma_with_msi, ("cdev",)),
            Scenario(scenarios.nvme_write_and_read, ("group", "nvme0", 1 << 20)),
        ]
    )
    assert first.require() == {"words": [1, "two"], "named": {"three": [3]}}
    assert first.output == "said in the guest\n"
    assert second.error == "ValueError: as told"
    assert third.error == "killed by SIGSEGV"
    assert edu.require()["came_back"] == "through an IOMMU"
    assert nvme.require()["witnessed"] is True


def test_a_panic_is_blamed_on_the_scenario_at_work(image_lab: Lab) -> None:
    before, during, after = image_lab.run_batch([answer, crash_the_kernel, answer])
    assert before.ok
    assert "Kernel panic" in during.error
    assert "not run" in after.error


def test_a_guest_that_hangs_or_dies_gives_its_last_words(image_lab: Lab, tmp_path: Path) -> None:
    script = "echo said; echo '<1>last words' > /dev/kmsg; sleep 1000"
    with pytest.raises(GuestTimeoutError, match="last words"):
        image_lab.with_changes(timeout_s=10).run(["sh", "-c", script], folder=tmp_path)
    with pytest.raises(GuestFailedError, match="sysrq triggered crash"):
        image_lab.run(["sh", "-c", "echo c > /proc/sysrq-trigger"], folder=tmp_path)

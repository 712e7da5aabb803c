"""A guest's driver at work on a drive that is bound to vfio-pci, without a twin's help."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from device_rig import FIRST, Host
from nvme_rig import CONTENT, checksum, controller, expected

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.cli.session import Session
from vfiokit.errors import KernelError, UsageError, VfiokitError
from vfiokit.vmm.nvme_guest import PAGE, Stage
from vfiokit.vmm.nvme_run import build_job, run_guest
from vfiokit.vmm.plan import find_plans


def work(reads: int = 8, *, lba: int = 0, depth: int = 2):
    return build_job(reads, lba=lba, block_size=512, nsid=1, depth=depth)


@pytest.mark.parametrize("letter", ["A", "D", "D-injected"])
def test_a_guest_reads_from_any_kernels_drive(letter: str) -> None:
    host = Host(controller)
    job = work(lba=16)
    found = run_guest(find_plans([letter])[0], host.kernel, FIRST, job)
    assert found.done
    assert found.sha256 == hashlib.sha256(expected(job)).hexdigest()
    assert found.outcome.checksum == checksum(job)
    assert host.functions[0].controller.namespace.store.read(0, len(CONTENT)) == CONTENT


def test_the_drive_can_be_opened_again_afterwards() -> None:
    host = Host(controller)
    for _ in range(2):
        assert run_guest(find_plans(["D"])[0], host.kernel, FIRST, work()).done


@pytest.mark.parametrize("letter", ["B", "C"])
def test_plans_that_do_harm_are_refused_before_anything_is_opened(letter: str) -> None:
    host = Host(controller)
    with host.open(), pytest.raises(UsageError, match="plan"):
        run_guest(find_plans([letter])[0], host.kernel, FIRST, work())


def test_a_drive_that_somebody_has_is_an_error_and_nothing_stays_open() -> None:
    host = Host(controller)
    with host.open(), pytest.raises(VfiokitError):
        run_guest(find_plans(["D"])[0], host.kernel, FIRST, work())
    assert run_guest(find_plans(["D"])[0], host.kernel, FIRST, work()).done


def test_memory_that_cannot_be_mapped_is_an_error_and_nothing_stays_open() -> None:
    host = Host(controller, locked_limit=16 * PAGE)
    with pytest.raises(KernelError):
        run_guest(find_plans(["D"])[0], host.kernel, FIRST, work())
    host.open().close()


def test_a_drive_that_never_answers_is_given_up() -> None:
    host = Host(controller)
    host.functions[0].controller.arbiter._round = lambda epoch: None
    found = run_guest(find_plans(["D"])[0], host.kernel, FIRST, work(), timeout_s=0.1)
    assert not found.done
    assert found.outcome.stage is Stage.ENABLED
    assert 0.1 < found.seconds < 5


def test_the_command_runs_on_the_host_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(controller)
    words = ["vmm", "run", "--host", "live", "--device", str(FIRST), "--reads", "5", "--json"]
    assert main(words, Session("live", host.kernel, tmp_path)) == exit_code.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == str(FIRST)
    assert found["sha256"] == hashlib.sha256(CONTENT[: 5 * PAGE]).hexdigest()
    assert found["exits_total"] == 34


def test_the_command_says_what_did_not_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "run", "--reads", "2", "--lba", str(1 << 50)]) == exit_code.NO
    assert "2 with errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--reads", "0"],
        ["--lba", "-1"],
        ["--nsid", "0"],
        ["--plan", "C"],
        ["--depth", "64", "--reads", "100"],
        ["--device", "gpu"],
    ],
)
def test_what_cannot_be_run_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "run", *words]) == exit_code.USAGE
    assert "error" in capsys.readouterr().err

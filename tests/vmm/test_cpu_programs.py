"""Guest programs: their bytes are what the assembler makes; the demonstrations run."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from cpu_rig import ROOT, assembler

from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.vmm.demo import ANSWER, DEVICE, demo1, demo2
from vfiokit.vmm.kvm import probe

PROGRAMS = sorted((ROOT / "src" / "vfiokit" / "vmm" / "guest").glob("*.s"))
KERNEL = LinuxKernel()


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda each: each.stem)
def test_assembling_again_gives_the_same_bytes(source: Path) -> None:
    if not (shutil.which("as") and shutil.which("ld")):
        assert not os.environ.get("CI"), "CI has an assembler"
        pytest.skip("GNU as is not installed")
    made = assembler().assemble(source)
    assert made.image == source.with_suffix(".bin").read_bytes()


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda each: each.stem)
def test_every_program_ships_with_its_listing(source: Path) -> None:
    image = source.with_suffix(".bin").read_bytes()
    listing = source.with_suffix(".lst").read_text()
    assert image
    columns = [line.split()[1:3] for line in listing.splitlines() if len(line.split()) > 2]
    first = next(code for offset, code in columns if offset == "0000")
    assert image.startswith(bytes.fromhex(first))


def test_a_program_that_is_wrong_is_refused(tmp_path: Path) -> None:
    if not shutil.which("as"):
        pytest.skip("GNU as is not installed")
    source = tmp_path / "wrong.s"
    source.write_text("nonsense rax\n")
    with pytest.raises(assembler().AssembleError, match="no such instruction"):
        assembler().assemble(source)


def engines() -> list[str]:
    return ["interpreter", "kvm"] if probe(KERNEL).real_mode else ["interpreter"]


@pytest.mark.parametrize("engine", engines())
def test_demo1_leaves_seven_in_rax(engine: str) -> None:
    shown = demo1(engine, KERNEL)
    (step,) = shown.steps
    assert (step.before["rax"], step.after["rax"]) == (0, 7)
    assert step.leaving.reason.value == "hlt"
    assert shown.engine == engine
    assert any("mov" in line and ", 7" in line for line in shown.listing)


@pytest.mark.parametrize("engine", engines())
def test_demo2_leaves_only_for_what_must_trap(engine: str) -> None:
    shown = demo2(engine, KERNEL, 500)
    exits = Counter(step.leaving.reason.value for step in shown.steps)
    assert exits == {"io": 2, "mmio": 2, "hlt": 1}
    assert shown.steps[0].leaving.value == 7
    assert shown.steps[0].instructions == 1501
    assert shown.steps[2].leaving.value == ANSWER
    assert shown.steps[3].leaving.address == DEVICE
    assert shown.steps[-1].after["rax"] == ANSWER


def test_demo2_of_no_times_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="at least once"):
        demo2("interpreter", KERNEL, 0)
    assert main(["vmm", "demo2", "--times", "0"]) == 2
    assert "at least once" in capsys.readouterr().err


def test_the_commands_narrate_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "demo1"]) == 0
    out = capsys.readouterr().out
    assert "before      rax=0x0" in out
    assert "after       rax=0x7" in out
    assert main(["vmm", "demo2", "--times", "100"]) == 0
    out = capsys.readouterr().out
    assert "IO: 1 byte(s), writes 0x7 to port 0x10" in out
    assert "MMIO: 4 byte(s), reads gpa 0xf0000000" in out
    assert main(["vmm", "demo2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vfiokit/vmm-demo/v1"
    assert len(document["steps"]) == 5

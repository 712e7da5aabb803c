"""``vfiokit machine``: scripts and the prompt on a twin."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main

OVERRIDE = "/sys/bus/pci/devices/0000:05:00.0/driver_override"


def run(capsys: pytest.CaptureFixture[str], *lines: str) -> tuple[int, str, str]:
    words = [word for line in lines for word in ("-c", line)]
    code = main(["machine", "--host", "demo", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_rehearsal_from_plan_to_undo(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys,
        "plan nvme",
        "apply nvme --yes",
        "ls /dev/vfio",
        "identify nvme",
        "undo --list",
        "undo",
        f"cat {OVERRIDE}",
    )
    assert code == exit_code.DONE, err
    assert "Samsung SSD 970 EVO Plus 2TB" in out
    assert "37\n" in out
    assert out.rstrip().endswith("(null)")


def test_the_twin_s_files_take_writes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = run(capsys, f"echo vfio-pci > {OVERRIDE}", f"cat {OVERRIDE}")
    assert code == exit_code.DONE
    assert out.rstrip().endswith("vfio-pci")


def test_a_device_s_number_is_no_comment(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = run(capsys, "show 10de:25b6#3 --format '{address}'  # the third VF")
    assert code == exit_code.DONE
    assert out.splitlines() == ["0000:08:00.6"]


def test_predictions_and_reports_are_made_of_the_twin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, capture = tmp_path / "twin.html", tmp_path / "twin.tar.zst"
    code, out, err = run(
        capsys,
        "apply nvme --yes",
        "bandwidth 'nvme > memory'",
        "vm plan nvme",
        f"report {page}",
        f"capture {capture}",
    )
    assert code == exit_code.DONE, err
    assert "0000:05:00.0 > memory" in out
    assert "vfio-pci" in page.read_text()
    assert main(["show", "nvme", "--host", str(capture), "--format", "{driver}"]) == exit_code.DONE
    assert capsys.readouterr().out == "vfio-pci\n"


def test_binary_files_are_dumped(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = run(capsys, "cat /sys/bus/pci/devices/0000:05:00.0/config")
    assert code == exit_code.DONE
    assert out.startswith("0000  4d 14 08 a8")
    assert "more bytes" in out


def test_a_script_stops_at_the_first_failure_and_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "rehearsal.txt"
    script.write_text("# a comment\n\nls /sys/bus/pci\ncat /nonexistent\ncounters\n")
    code = main(["machine", "--host", "demo", str(script)])
    captured = capsys.readouterr()
    assert code != exit_code.DONE
    assert "line 4" in captured.err
    assert "interrupts" not in captured.out


@pytest.mark.parametrize(
    "line", ["frobnicate", "cat", "ls one two", "echo without a target", "cat 'unclosed"]
)
def test_a_line_that_makes_no_sense_is_a_usage_error(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _out, err = run(capsys, line)
    assert code == exit_code.USAGE
    assert "error" in err or "usage" in err


def test_commands_are_read_from_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("counters\nexit\nfrobnicate\n"))
    assert main(["machine", "--host", "demo"]) == exit_code.DONE
    assert "interrupts_delivered" in capsys.readouterr().out


def test_json_reaches_the_inner_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machine", "--host", "demo", "--json", "-c", "plan nvme"]) == exit_code.DONE
    assert json.loads(capsys.readouterr().out)["schema"] == "vfiokit/plan/v1"


def test_a_live_host_has_no_twin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machine", "--host", "live", "-c", "counters"]) == exit_code.USAGE
    assert "capture" in capsys.readouterr().err

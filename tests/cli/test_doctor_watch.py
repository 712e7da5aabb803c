"""``doctor`` and ``watch`` as a user runs them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.cli.schema_source import schema
from vfiokit.cli.session import Session
from vfiokit.host.source import open_tree
from vfiokit.machine.assembly import assemble
from vfiokit.machine.twin import build_twin

DEVICES = "/sys/bus/pci/devices"


def output(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def body(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code, out, _ = output(capsys, *words, "--json")
    return code, json.loads(out)


# --- doctor ---


def test_doctor_of_the_recorded_server_knows_what_it_cannot_know(capsys) -> None:
    code, document = body(capsys, "doctor", "nvme", "--host", "demo")
    assert code == exit_code.NO
    assert document["schema"] == "vfiokit/doctor/v1"
    assert document["verdict"] == "unknown"
    assert document["devices"] == ["0000:05:00.0"]
    counts = Counter(each["severity"] for each in document["findings"])
    assert counts["problem"] == 0
    assert counts["unknown"] >= 7
    for finding in document["findings"]:
        assert set(finding) == {"id", "severity", "device", "what", "evidence", "remedy"}
        if finding["severity"] == "unknown":
            assert finding["remedy"]
            assert all(each["source"] for each in finding["evidence"])


def test_doctor_shows_the_worst_first_and_what_is_in_order_on_request(capsys) -> None:
    _, short, _ = output(capsys, "doctor", "08:00.0", "--host", "demo")
    _, long, _ = output(capsys, "doctor", "08:00.0", "--host", "demo", "-v")
    heads = [line.split()[0] for line in short.splitlines() if line[0] != " "][:-2]
    order = ["problem", "warning", "unknown", "note"]
    assert heads == sorted(heads, key=order.index)
    assert "the IOMMU is on: 106 groups" in long
    assert "the IOMMU is on" not in short
    assert long.splitlines()[-1] == short.splitlines()[-1]
    assert long.splitlines()[-1].startswith("not ready to assign 0000:08:00.0")


def test_doctor_of_this_machine_runs(capsys) -> None:
    code, document = body(capsys, "doctor", "--memory", "1G")
    assert code == (exit_code.DONE if document["verdict"] == "ready" else exit_code.NO)
    assert document["devices"] == []
    found = {each["id"]: each for each in document["findings"]}
    # What every Linux shows to everybody.
    assert found["memory"]["severity"] != "unknown"
    assert found["memlock"]["severity"] != "unknown"
    assert found["kernel-options"]["severity"] != "unknown"
    assert found["iommu"]["severity"] in ("ok", "problem")


def test_doctor_on_a_twin_before_and_after_binding(capsys) -> None:
    twin = build_twin(open_tree("demo"))
    session = Session("demo", twin.kernel)

    def ids() -> dict[str, str]:
        main(["doctor", "nvme", "--json"], session)
        document = json.loads(capsys.readouterr().out)
        return {each["id"]: each["what"] for each in document["findings"]}

    assert ids()["driver"] == "nvme drives 0000:05:00.0 and can be unbound"
    bdf = "0000:05:00.0"
    twin.kernel.tree.write(f"{DEVICES}/{bdf}/driver/unbind", bdf.encode())
    twin.kernel.tree.write(f"{DEVICES}/{bdf}/driver_override", b"vfio-pci")
    twin.kernel.tree.write("/sys/bus/pci/drivers_probe", bdf.encode())
    after = ids()
    assert after["driver"] == "0000:05:00.0 is bound to vfio-pci"
    assert "/dev/vfio/37" in after["device-node"]
    assert "in-use" not in after


def test_doctor_is_there_at_the_prompt_of_a_machine(capsys) -> None:
    code, out, _ = output(capsys, "machine", "--host", "demo", "-c", "doctor nvme")
    assert code == exit_code.NO
    assert "cannot tell whether ready to assign 0000:05:00.0" in out


def test_doctor_of_a_description_without_files_judges_isolation(capsys, tmp_path: Path) -> None:
    dump = tmp_path / "dump.txt"
    rows = [bytes(16) for _ in range(16)]
    rows[0] = bytes.fromhex("4d1408a8 06001000 00020801 00000000")
    text = "".join(f"{at * 16:02x}: {row.hex(' ')}\n" for at, row in enumerate(rows))
    dump.write_text(f"01:00.0 Non-Volatile memory controller: x\n{text}")
    code, document = body(capsys, "doctor", "01:00.0", "--host", str(dump))
    assert code == exit_code.NO
    found = {each["id"]: each["severity"] for each in document["findings"]}
    assert found["iommu"] == "unknown"
    assert found["group"] == "ok"


@pytest.mark.parametrize(
    "words", [("--memory", "much"), ("--memory", "0"), ("--memory", "-1G"), ("--memory",)]
)
def test_bad_sizes_are_usage_errors(capsys, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--host", "demo", *words])
    assert stop.value.code == exit_code.USAGE


def test_a_device_that_is_not_there_is_a_usage_error(capsys) -> None:
    assert output(capsys, "doctor", "77:00.0", "--host", "demo")[0] == exit_code.USAGE
    assert output(capsys, "watch", "nonsense", "--host", "demo")[0] == exit_code.USAGE


# --- watch ---


def test_watch_of_a_capture_says_that_it_only_looks(capsys) -> None:
    code, out, err = output(capsys, "watch", "--host", "demo", "--for", "0.05")
    assert (code, out) == (exit_code.DONE, "")
    assert "watching 226 functions, only looking" in err
    assert "not the running host" in err


def folder_host(folder: Path) -> tuple[str, Path]:
    """A copy of a host that tests can change: a function's address and its folder."""
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    bdf = str(machine["drive"])
    for path, content in machine.kernel.snapshot().items():
        place = folder / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif not path.startswith("/dev/"):
            place.symlink_to(content)
    return bdf, (folder / DEVICES[1:] / bdf).resolve()


def test_watch_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    bdf, folder = folder_host(tmp_path)
    watch = start("--host", str(tmp_path), "--interval", "0.05", "--count", "3", "--json")
    (folder / "driver").unlink()
    (folder / "power_state").write_text("D3hot\n")
    (folder / "aer_dev_nonfatal").write_text("CmpltTO 2\nTOTAL_ERR_NONFATAL 2\n")
    out, _ = watch.communicate(timeout=30)
    events = [json.loads(line) for line in out.splitlines()]
    assert watch.returncode == exit_code.DONE
    for event in events:
        Draft202012Validator(schema("watch-event")).validate(event)
    # They may be seen in one look or in two.
    assert {each["kind"] for each in events} == {"unbound", "power", "aer"}
    assert {each["subject"] for each in events} == {bdf}


def start(*words: str) -> subprocess.Popen[str]:
    """A watch that has begun to watch."""
    watch = subprocess.Popen(
        [sys.executable, "-m", "vfiokit", "watch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stderr is not None
    assert watch.stderr.readline().startswith("watching ")
    return watch


def test_watch_ends_with_130_on_ctrl_c() -> None:
    watch = start("--host", "demo")
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=30)[0] == ""
    assert watch.returncode == exit_code.INTERRUPTED


def test_watch_hears_the_kernel_of_this_machine() -> None:
    folder = next(
        (f"{DEVICES}/{name}" for name in sorted(os.listdir(DEVICES))), ""
    ) if os.path.isdir(DEVICES) else ""  # fmt: skip
    if not folder or not os.access(f"{folder}/uevent", os.W_OK):
        pytest.skip("no uevent file of a PCI function can be written here")
    watch = start("--interval", "30", "--count", "1")
    Path(f"{folder}/uevent").write_text("change", encoding="ascii")
    begun = time.monotonic()
    out, _ = watch.communicate(timeout=30)
    assert time.monotonic() - begun < 15  # long before the next look
    assert out.split()[1:] == [os.path.basename(folder), "changed", "change"]


def test_watch_draws_a_table_on_a_terminal(tmp_path: Path) -> None:
    bdf, folder = folder_host(tmp_path)
    leader, follower = pty.openpty()
    words = ["--host", str(tmp_path), "--interval", "0.05", "--count", "2"]
    watch = subprocess.Popen(
        [sys.executable, "-m", "vfiokit", "watch", *words],
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"},
    )
    os.close(follower)
    assert watch.stderr is not None
    assert watch.stderr.readline().startswith(b"watching ")
    (folder / "driver").unlink()
    (folder / "aer_dev_correctable").write_text("BadTLP 41\n")
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(leader, 4096):
            seen += piece
    os.close(leader)
    watch.communicate(timeout=30)
    assert watch.returncode == exit_code.DONE
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "unbound from nvme" in text
    assert "correctable BadTLP +41 (41 in all)" in text
    # Below the events, who had how many, and its errors in all.
    rows = {line.strip() for line in text.splitlines() if line.rstrip().endswith(" 41")}
    (row,) = (each for each in rows if each.startswith(bdf))
    assert "aer 1" in row


@pytest.mark.parametrize(
    "words", [("--count", "0"), ("--interval", "0"), ("--for", "x"), ("--for", "inf")]
)
def test_bad_numbers_are_usage_errors(capsys, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["watch", "--host", "demo", *words])
    assert stop.value.code == exit_code.USAGE

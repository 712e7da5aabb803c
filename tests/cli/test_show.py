"""The four depths of ``show``, and that its deepest output describes the host."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.host.source import open_host
from vfiokit.isolation import compare, predict


def show(capsys: pytest.CaptureFixture[str], *words: str, host: str = "demo") -> str:
    assert main(["show", *words, "--host", host]) == exit_code.DONE
    return capsys.readouterr().out


def test_every_depth_says_more_than_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [show(capsys, "nvme", *depth) for depth in ([], ["-v"], ["-vv"], ["-vvv"])]
    lengths = [len(text) for text in shown]
    assert lengths == sorted(set(lengths))
    assert "bus_master+" not in shown[0]
    assert "bus_master+" in shown[1]
    assert "§7.5.3.8" not in shown[1]
    assert "§7.5.3.8" in shown[2]
    assert "reserved[" not in shown[1]
    assert "reserved[" in shown[2]
    assert "    raw 0b0: 11 00 81 80" in shown[2]
    assert "\n00: 4d 14 08 a8" not in shown[2]
    assert "\n00: 4d 14 08 a8" in shown[3]
    assert "\nff0: " in shown[3]


def test_the_deepest_adds_bytes_and_changes_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = re.compile(r"[0-9a-f]{2,3}: [0-9a-f ]{47}")
    deepest = show(capsys, "00:02.0", "nvme", "-vvv").splitlines()
    without = [line for line in deepest if not row.fullmatch(line)]
    assert without == show(capsys, "00:02.0", "nvme", "-vv").splitlines()


def test_no_line_is_longer_than_lspci_reads(written: Path) -> None:
    assert max(map(len, written.read_bytes().splitlines())) <= 253


def test_deeper_than_the_deepest_is_the_deepest(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, "nvme", "-vvvvv") == show(capsys, "nvme", "-vvv")


def test_without_a_device_every_function_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "-v")
    heads = [line for line in text.splitlines() if line.startswith("0000:")]
    assert len(heads) == 226
    assert text == show(capsys, "all", "-v")


def test_a_device_named_twice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(capsys, "nvme", "05:00.0") == show(capsys, "144d:a808")


def test_findings_of_the_contents_are_said_from_the_third_depth_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nvme,) = [f for f in open_host("demo").topology() if str(f.bdf) == "0000:05:00.0"]
    data = bytearray(nvme.config.data)
    sixteen = nvme.capabilities.find(0x11).offset
    data[0x51] = sixteen - 4  # the MSI capability now reaches into the next one
    data[sixteen - 4 : sixteen - 2] = bytes((0x11, sixteen))
    dump = tmp_path / "broken.txt"
    rows = "\n".join(f"{at:02x}: {data[at : at + 16].hex(' ')}" for at in range(0, 4096, 16))
    dump.write_text(f"05:00.0 0108: 144d:a808\n{rows}\n")
    assert "finding" not in show(capsys, "all", "-v", host=str(dump))
    assert "finding" in show(capsys, "all", "-vv", host=str(dump))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``show -vvv`` prints of the packaged server."""
    file = tmp_path_factory.mktemp("show") / "machine.txt"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["show", "-vvv", "--host", "demo"]) == exit_code.DONE
    file.write_text(out.getvalue(), encoding="utf-8")
    return file


def test_the_deepest_output_can_be_read_as_a_host_again(written: Path) -> None:
    before, after = open_host("demo").topology(), open_host(str(written)).topology()
    assert list(after.functions) == list(before.functions)
    for one, two in zip(before, after, strict=True):
        assert two.config.data == one.config.data
        assert two.physfn == one.physfn
        assert two.identity[:3] == one.identity[:3]
    comparison = compare(predict(after), before)
    assert (comparison.agree, comparison.total) == (106, 106)


def test_the_deepest_output_can_be_read_by_lspci(written: Path) -> None:
    lspci = shutil.which("lspci")
    if lspci is None:
        pytest.skip("lspci is not installed")
    listed = subprocess.run(
        [lspci, "-F", str(written), "-Dn"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    functions = list(open_host("demo").topology())
    assert [line.split()[0] for line in listed] == [str(function.bdf) for function in functions]
    bytes_again = subprocess.run(
        [lspci, "-F", str(written), "-xxxx", "-s", "05:00.0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert bytes_again.splitlines()[1:-1] == [
        line
        for line in show_block(written, "0000:05:00.0")
        if line[:2].isalnum() and ": " in line[:5] and len(line) >= 51
    ]


def show_block(file: Path, address: str) -> list[str]:
    text = file.read_text(encoding="utf-8")
    start = text.index(f"\n{address}  ") + 1
    return text[start : text.index("\n\n", start)].split("\n")[1:]


def test_registers_read_from_a_text_have_no_bytes_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "report.txt"
    text.write_text(
        "00:01.0 PCI bridge [0604]: Intel Corporation Device [8086:2f02] (prog-if 00)\n"
        "\tControl: I/O+ Mem+ BusMaster+\n"
        "\tBus: primary=00, secondary=03, subordinate=03, sec-latency=0\n"
        "\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00\n"
        "\tCapabilities: [110 v1] Access Control Services\n"
        "\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- "
        "DirectTrans-\n"
        "\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- "
        "DirectTrans-\n"
    )
    shown = show(capsys, "all", "-vvv", host=str(text))
    assert "request_redirect+" in shown
    assert "\n00: " not in shown
    assert " raw " not in shown
    assert "reserved[" not in shown


def on_a_terminal(*words: str, columns: int = 80) -> str:
    """What a command prints where a person watches."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "vfiokit", *words, "--host", "demo"]
    with subprocess.Popen(command, stdout=slave, env=environment):
        os.close(slave)
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
        os.close(master)
    return b"".join(chunks).decode()


def test_a_terminal_gets_marks_and_a_pipe_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = on_a_terminal("show", "nvme", "-v")
    assert "\x1b[1mMSI-X at 0xb0\x1b[0m" in drawn
    plain = show(capsys, "nvme", "-v")
    assert "\x1b" not in plain
    marks = re.compile(r"\x1b\[[0-9;]*m")
    assert marks.sub("", drawn).replace("\r\n", "\n") == plain


def test_the_tree_is_cut_to_the_terminal() -> None:
    lines = on_a_terminal("tree", columns=60).splitlines()
    assert len(lines) == 231
    assert max(map(len, lines)) == 60
    assert sum(line.endswith("…") for line in lines) > 200


def test_a_terminal_without_unicode_is_no_error() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vfiokit", "show", "nvme", "-vv", "--host", "demo"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"\\xa7" in result.stdout

"""Commands on descriptions without files: what they answer, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vfiokit.cli.main import main

TEXT = """\
00:1c.0 PCI bridge [0604]: Some Root Port [1234:8d10] (rev d5)
\tFlags: bus master, fast devsel, latency 0, IRQ 25, IOMMU group 7
\tBus: primary=00, secondary=01, subordinate=01, sec-latency=0
\tCapabilities: [40] Express Root Port (Slot+), MSI 00

01:00.0 Non-Volatile memory controller [0108]: Some Drive [144d:a808]
\tFlags: bus master, fast devsel, latency 0, IRQ 26, IOMMU group 8
\tCapabilities: [70] Express Endpoint, MSI 00
\tKernel driver in use: nvme
"""
DUMP = "".join(
    f"{address} {ids}\n"
    + "".join(f"{at:02x}: {data[at : at + 16].hex(' ')}\n" for at in range(0, 64, 16))
    + "\n"
    for address, ids, data in (
        ("00:00.0", "0600: 8086:2f00", bytes.fromhex("8680002f0000000000000006") + bytes(52)),
        ("00:02.0", "0108: 144d:a808", bytes.fromhex("4d1408a80000000000020801") + bytes(52)),
    )
)
XML = """\
<system version="1"><cpu numaid="0" arch="x86_64"><pci busid="ffff:ff:01.0" class="0x060400">
<pci busid="0001:00:00.0" class="0x030200" vendor="0x10de" device="0x2330"/></pci></cpu></system>
"""
SOURCES = {"text": TEXT, "dump": DUMP, "xml": XML}


@pytest.fixture(params=SOURCES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / request.param
    path.write_text(SOURCES[request.param])
    return str(path)


@pytest.mark.parametrize("command", ["show", "tree", "groups"])
def test_commands_that_look_answer_and_say_what_is_not_known(
    command: str, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--host", host]) in (0, 3)
    captured = capsys.readouterr()
    assert captured.out
    notes = captured.err.splitlines()
    assert notes
    assert all(note.startswith("note: ") for note in notes)
    assert len(notes) == len(set(notes))


def test_json_stays_one_document(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--json", "--host", host]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["devices"]) == 2


@pytest.mark.parametrize(
    "words", [["plan", "all"], ["machine", "-c", "tree"], ["capture", "never.tar.zst"]]
)
def test_commands_that_need_the_host_s_files_say_so(
    words: list[str],
    host: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--host", host]) == 1
    error = capsys.readouterr().err
    assert f"error: {host}: " in error
    assert "none of the host's files" in error
    assert "hint: 'vfiokit capture FILE'" in error
    assert not list(tmp_path.glob("never*"))


def test_the_tree_hangs_the_drive_below_its_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text(TEXT)
    assert main(["tree", "--host", str(tmp_path / "x")]) == 0
    _, root, port, drive = capsys.readouterr().out.splitlines()
    assert root == "pci0000:00"
    assert "00:1c.0" in port
    assert "01:00.0" in drive
    assert len(drive) - len(drive.lstrip(" │├└─|`-")) > len(port) - len(port.lstrip(" │├└─|`-"))
    assert " nvme " in drive


def test_a_plain_dump_loads_no_reader_of_text() -> None:
    code = (
        "import sys, io, vfiokit.host.lspci as l, vfiokit.host.lspci_listing as s\n"
        f"l.read(s.pieces(io.BytesIO({DUMP.encode()!r})))\n"
        "print('\\n'.join(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "vfiokit.host.lspci" in loaded
    heavy = {"vfiokit.host.lspci_text", "vfiokit.host.lspci_registers", "vfiokit.pci.ids"}
    assert not heavy & set(loaded)
    assert not {"json", "xml", "dataclasses", "pathlib", "zstandard"} & set(loaded)

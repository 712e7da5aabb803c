"""``--format`` and ``--columns``: every list, every column, every mistake."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.column import COLUMNS
from vfiokit.cli.describe import acs_text, speed_text
from vfiokit.cli.listing import template
from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.host.source import open_host

LISTS = (["show"], ["tree"], ["groups"])


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--host", "demo"]) == exit_code.DONE
    return capsys.readouterr().out


@pytest.mark.parametrize("command", LISTS)
def test_a_template_makes_one_line_for_each_function(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = output(capsys, *command, "--format", "{address} {driver:>10} {{{numa}}}").splitlines()
    assert len(lines) == 226
    assert "0000:05:00.0       nvme {0}" in lines


@pytest.mark.parametrize("command", LISTS)
def test_separated_values_are_read_back_by_a_csv_reader(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*command, "--columns", "address,name,driver,group")
    rows = list(csv.DictReader(io.StringIO(output(capsys, *words, "--format", "csv"))))
    tabs = list(csv.reader(io.StringIO(output(capsys, *words, "--format", "tsv")), "excel-tab"))
    lines = [json.loads(line) for line in output(capsys, *words, "--format", "jsonl").splitlines()]
    assert len(rows) == len(tabs) - 1 == len(lines) == 226
    for row, tab, line in zip(rows, tabs[1:], lines, strict=True):
        assert list(row.values()) == tab
        assert row == {name: "" if value is None else str(value) for name, value in line.items()}
    nvme = next(line for line in lines if line["address"] == "0000:05:00.0")
    assert nvme["driver"] == "nvme"
    assert nvme["group"] == 37
    assert nvme["name"].startswith("Samsung")


@pytest.mark.parametrize("command", LISTS)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{adress}", "no field 'adress'"),
        ("{address.real}", "names no field"),
        ("{address[0]}", "names no field"),
        ("{0}", "no field '0'"),
        ("{}", "names no field"),
        ("{address!r}", "more than a width"),
        ("{address:{driver}}", "more than a width"),
        ("{address:d}", "Unknown format code"),
        ("{address", "expected '}'"),
        ("address", "names no field"),
        ("json", "csv, tsv, jsonl"),
        ("", "names no field"),
    ],
)
def test_a_template_that_is_none_is_a_usage_error(
    command: list[str], text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--host", "demo", "--format", text]) == exit_code.USAGE
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_an_unknown_field_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "--host", "demo", "--format", "{nmae}"])
    err = capsys.readouterr().err
    assert all(name in err for name in COLUMNS)


@pytest.mark.parametrize("command", LISTS)
def test_an_unknown_column_lists_the_known_ones(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--host", "demo", "--columns", "address,nmae"]) == exit_code.USAGE
    err = capsys.readouterr().err
    assert "'nmae'" in err
    assert all(name in err for name in COLUMNS)


def test_a_template_cannot_reach_into_values() -> None:
    for text in ("{a.__class__}", "{a[0]}", "{a!s}", "{a:{b}}"):
        with pytest.raises(UsageError):
            template(text)({"a": "x", "b": "1"})


def test_every_column_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "show", "--columns", ",".join(COLUMNS), "--format", "jsonl")
    records = [json.loads(line) for line in text.splitlines()]
    assert all(list(record) == list(COLUMNS) for record in records)
    nvme = next(record for record in records if record["address"] == "0000:05:00.0")
    assert nvme == nvme | {
        "class": "010802", "id": "144d:a808", "driver": "nvme", "group": 37, "predicted": 37,
        "uncertain": False, "iommu": "dmar1", "numa": 0, "speed": "8 GT/s x4", "acs": "-",
        "acs_capability": None, "msi": 32, "msix": 130, "port": "endpoint",
        "parent": "0000:00:02.0", "path": "pci0000:00/02.0/00.0", "reset": "flr bus",
    }  # fmt: skip
    virtual = next(record for record in records if record["address"] == "0000:08:00.4")
    assert virtual["physical_function"] == "0000:08:00.0"


def test_groups_count_their_own_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("groups", "--host", "demo", "--no-quirks", "--format", "{predicted} {recorded}")
    assert main([*words]) == exit_code.NO
    pairs = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(predicted != recorded for predicted, recorded in pairs)


HEADER_ONLY = """\
00:00.0 Host bridge: Intel Corporation Device [8086:29c0]
00: 86 80 c0 29 06 00 90 20 00 00 00 06 00 00 00 00
10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
30: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00

00:1f.0 ISA bridge: Intel Corporation Device [8086:2918]
00: 86 80 18 29 07 00 10 02 00 00 01 06 00 00 80 00
10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
30: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
"""


def test_a_prediction_without_its_bytes_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "dump"
    dump.write_text(HEADER_ONLY)
    assert main(["groups", "--host", str(dump)]) == exit_code.DONE
    header, first, second, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "PREDICTED"
    assert (first.split()[0], second.split()[0]) == ("0", "1?")
    assert rest[0].startswith("? unknown whether 1 function shares a group")
    assert main(["tree", "--host", str(dump)]) == exit_code.DONE
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[2:]] == ["0", "1?"]
    words = ["groups", "--host", str(dump), "--columns", "address,predicted,uncertain"]
    assert main([*words, "--format", "csv"]) == exit_code.DONE
    assert capsys.readouterr().out.splitlines()[1:] == [
        "0000:00:00.0,0,False",
        "0000:00:1f.0,1,True",
    ]
    assert main(["groups", "--host", str(dump), "--why", "00:1f.0"]) == exit_code.DONE
    assert "unknown whether it shares its group" in capsys.readouterr().out
    assert main(["groups", "--host", str(dump), "--json"]) == exit_code.DONE
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [each["members"][0]["uncertain"] for each in groups] == [False, True]


STRAY = """\
03:00.0 Ethernet controller: Intel Corporation Device [8086:1521]
00: 86 80 21 15 06 04 10 00 01 00 00 02 10 00 80 00
10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
20: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
30: 00 00 00 00 40 00 00 00 00 00 00 00 00 00 00 00
40: 10 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00
50: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
""" + "".join(f"{offset:02x}: {' '.join(['00'] * 16)}\n" for offset in range(0x60, 0x1000, 16))


def test_below_a_bridge_that_is_not_described_nothing_is_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "dump"
    other = STRAY.replace("03:00.0", "03:00.1").replace("21 15", "22 15")
    dump.write_text(STRAY + "\n" + other)
    host = ["--host", str(dump)]
    assert main(["groups", *host]) == exit_code.DONE
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["0?", "1?"]
    assert main(["explain", "03:00.0", *host]) == exit_code.DONE
    explained = capsys.readouterr().out
    assert "unknown whether it shares its IOMMU group" in explained
    assert "bus 0000:03: the bridge that leads to it is not in this description" in explained
    assert "assign" not in explained
    for cpu in ("intel", "amd:0x19"):
        assert main(["p2p", "03:00.0", "03:00.1", "--cpu", cpu, *host]) == exit_code.NO
        told = capsys.readouterr().out
        assert told.startswith("provider 0000:03:00.0, client 0000:03:00.1: unknown")
        assert "which bridge leads to bus 0000:03 is not in this description" in told.lower()
        assert main(["p2p", "nic", "--from", "nic", *host]) == exit_code.USAGE
        capsys.readouterr()
        assert main(["p2p", "--from", "nic", "--to", "nic", "--types", "--cpu", cpu, *host]) == 0
        assert {
            cell for line in capsys.readouterr().out.splitlines()[1:3] for cell in line.split()[-2:]
        } <= {"?", "bus"}
    assert main(["show", "03:00.0", *host]) == exit_code.DONE
    assert "driver       not recorded" in capsys.readouterr().out


def test_chosen_columns_stand_in_the_order_asked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "tree", "--columns", "acs,driver").splitlines()
    assert lines[0].split() == ["ACS", "DRIVER"]
    (port,) = [line for line in lines if line.startswith("├─ 0000:00:02.0")]
    assert port.split()[-2:] == ["VbRCU..", "pcieport"]
    lines = output(capsys, "show", "nvme", "--columns", "numa,address").splitlines()
    assert [line.split() for line in lines] == [["NUMA", "ADDRESS"], ["0", "0000:05:00.0"]]


def test_columns_of_the_tree_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "tree").splitlines()
    column = lines[0].index("GROUP")
    for line in lines[1:]:
        if len(line) > column:
            assert line[column - 2 : column] == "  "
            assert line[column] != " "


def test_acs_letters_say_on_off_cannot_absent_and_unknown(tmp_path: Path) -> None:
    topology = open_host("demo").topology()
    shown = {acs_text(function) for function in topology}
    assert shown == {"VbRCU..", "-"}
    for function in topology:
        text = acs_text(function)
        if function.acs is not None:
            on = [letter.isupper() for letter in text]
            able = [letter != "." for letter in text]
            assert on == [bool(function.acs_control >> bit & 1) for bit in range(7)]
            assert able == [bool(function.acs_capability >> bit & 1) for bit in range(7)]
    brief = tmp_path / "brief.txt"
    brief.write_text(
        "00:02.0 0604: 8086:2f04\n00: 86 80 04 2f 47 05 10 00 02 00 04 06 10 00 81 00\n"
    )
    (cut,) = open_host(str(brief)).topology()
    assert acs_text(cut) == "?"


def test_the_speed_of_a_link_is_read_from_registers_where_nobody_recorded_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "machine.txt"
    dump.write_text(output(capsys, "show", "-vvv"), encoding="utf-8")
    recorded = {function.bdf: speed_text(function) for function in open_host("demo").topology()}
    compared = 0
    for function in open_host(str(dump)).topology():
        if recorded[function.bdf] is not None:
            assert speed_text(function) == recorded[function.bdf]
            compared += 1
    assert compared > 10


def test_a_dump_shows_predicted_groups_in_the_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "machine.txt"
    dump.write_text(output(capsys, "show", "-vvv"), encoding="utf-8")
    assert main(["tree", "--host", str(dump)]) == exit_code.DONE
    assert capsys.readouterr().out.split()[0] == "PREDICTED"

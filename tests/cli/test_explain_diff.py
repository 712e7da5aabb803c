"""``explain`` and ``diff`` as a user runs them, on the packaged server and on dumps of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))

from test_groups_from_text import hex_dump

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.cli.schema_source import schema
from vfiokit.host.source import open_host
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.edit import moved, with_acs_control, without
from vfiokit.pci.topology import Topology

SHARED = Path(os.environ.get("VFIOKIT_SHARED", Path(__file__).parents[2] / "../shared"))


@pytest.fixture(scope="module")
def demo() -> Topology:
    return open_host("demo").topology()


@pytest.fixture(scope="module")
def dump(demo: Topology, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dump") / "server.lspci"
    path.write_text(hex_dump(demo))
    return str(path)


@pytest.fixture(scope="module")
def reworked(demo: Topology, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A port of the network card gone, ACS off at the GPU's port, the drive in another slot."""
    after = without(demo, [Bdf.parse("04:00.1")])
    after = with_acs_control(after, {Bdf.parse("00:03.0"): Acs(0)})
    after = moved(after, Bdf.parse("05:00.0"), Bdf.parse("80:02.0")).topology
    path = tmp_path_factory.mktemp("dump") / "reworked.lspci"
    path.write_text(hex_dump(after))
    return str(path)


def asus() -> str:
    path = SHARED / "data" / "lspci" / "tree-asus-p6t6"
    if not path.is_file():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing")
        pytest.skip(f"{path} is not here")
    return str(path)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    code = main(list(words))
    return code, capsys.readouterr().out.splitlines()


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    kind = found["schema"].split("/")[1]
    assert not list(Draft202012Validator(schema(kind)).iter_errors(found))
    return found


# --- explain ------------------------------------------------------------------------------------


def test_a_shared_group_is_explained_down_to_the_registers(capsys) -> None:
    code, lines = printed(capsys, "explain", "01:00.1", "--host", "demo")
    assert code == exit_code.DONE
    assert lines[0] == "0000:01:00.1 shares IOMMU group 33 with 3 others"
    assert "  recorded  group 33 by this machine's kernel, the same members" in lines
    assert any("0x00e Header Type = 0x80: bit 7 is set" in line for line in lines)
    assert any(line.startswith("  for good  nothing separates it from ") for line in lines)
    assert not any(line.startswith("  remedy") for line in lines)
    assert lines[-3:] == [
        f"              0000:01:00.{number}  bound to {driver}: unbind it, or bind it to "
        "vfio-pci; the host loses it"
        for number, driver in ((0, "hpwdt"), (2, "hpilo"), (4, "uhci_hcd"))
    ]


def test_remedies_of_a_real_desktop_name_the_port_and_the_bits(capsys) -> None:
    _, lines = printed(capsys, "explain", "06:00.0", "--host", asus())
    assert "              pci=config_acs=xx11101@0000:00:07.0" in lines
    assert "              setpci -s 0000:00:07.0 ECAP_ACS+6.w=001d:001d" in lines
    assert any("0x156 ACS Control = 0x0000: lacks Source Validation" in line for line in lines)


def test_slots_of_a_real_desktop_are_named(capsys) -> None:
    found = document(capsys, "explain", "07:00.0", "--host", asus())["devices"][0]
    slot = next(each for each in found["remedies"] if each["kind"] == "slot")
    assert "below 0000:00:01.0 (x4 5 GT/s);" in slot["text"]
    assert len(slot["members"]) == 1


def test_a_list_of_devices_leaves_the_answer_unknown(capsys, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("00:1c.0 0604: 8086:8d10\n01:00.0 0200: 8086:1521\n")
    _, lines = printed(capsys, "explain", "01:00.0", "--host", str(path))
    assert lines[0] == "0000:01:00.0: unknown whether it shares its IOMMU group"
    assert not any("remedy" in line or "beware" in line for line in lines)
    found = document(capsys, "explain", "all", "--host", str(path))["devices"]
    assert [each["predicted"]["alone"] for each in found] == [None, None]


def test_every_device_of_the_server_is_explained_as_published(capsys) -> None:
    found = document(capsys, "explain", "all", "--host", "demo")["devices"]
    assert len(found) == 226
    assert all(each["recorded"]["members"] == each["predicted"]["members"] for each in found)


def test_a_device_that_is_not_there_is_an_error(capsys) -> None:
    assert main(["explain", "77:00.0", "--host", "demo"]) == exit_code.USAGE
    assert "77:00.0" in capsys.readouterr().err


# --- diff ---------------------------------------------------------------------------------------


def test_a_host_and_its_own_dump_do_not_differ(capsys, dump: str) -> None:
    code, lines = printed(capsys, "diff", "demo", dump)
    assert code == exit_code.DONE
    assert lines[0] == "nothing differs in 226 functions"
    assert lines[1].startswith("not comparable, only in demo: BAR sizes, NUMA nodes, drivers")
    assert len(lines) == 2
    code, lines = printed(capsys, "diff", dump, "demo")
    assert code == exit_code.DONE
    assert lines[1].startswith("not comparable, only in demo: ")


def test_what_was_done_to_a_server_is_told_by_importance(capsys, dump: str, reworked: str) -> None:
    code, lines = printed(capsys, "diff", dump, reworked)
    assert code == exit_code.NO
    assert lines[:5] == [
        "devices",
        "  0000:04:00.1  gone 8086:10fb class 020000",
        "  0000:05:00.0  moved to 0000:82:00.0",
        "groups as predicted",
        "  merged: 0000:00:03.0 | 0000:08:00.0 | 0000:08:00.4 | 0000:08:00.5 | 14 more groups → "
        "0000:00:03.0 0000:08:00.0 0000:08:00.4 0000:08:00.5 and 14 more",
    ]
    assert lines[5:7] == [
        "ACS",
        "  0000:00:03.0  ACS control 0x001d → 0x0000 (source validation off, request redirect off, "
        "completion redirect off, upstream forwarding off)",
    ]


def test_the_way_back_is_the_inverse(capsys, dump: str, reworked: str) -> None:
    there = document(capsys, "diff", dump, reworked)
    back = document(capsys, "diff", reworked, dump)
    assert there["functions"]["gone"] == back["functions"]["new"] == ["0000:04:00.1"]
    assert there["functions"]["moved"] == {"0000:05:00.0": "0000:82:00.0"}
    assert back["functions"]["moved"] == {"0000:82:00.0": "0000:05:00.0"}
    assert [each["kind"] for each in there["groups"]["predicted"]] == ["merged"]
    assert [each["kind"] for each in back["groups"]["predicted"]] == ["split"]
    assert {(each["what"], each["before"], each["after"]) for each in there["changes"]} == {
        (
            {"new": "gone", "gone": "new"}.get(each["what"], each["what"]),
            each["after"],
            each["before"],
        )
        for each in back["changes"]
    }


def test_other_registers_are_counted_and_listed_on_request(
    capsys, dump: str, demo, tmp_path
) -> None:
    from vfiokit.pci.edit import with_register

    after = tmp_path / "after.lspci"
    after.write_text(hex_dump(with_register(demo, Bdf.parse("05:00.0"), 0x04, 2, 0x0002)))
    _, lines = printed(capsys, "diff", dump, str(after))
    assert lines == ["other registers and facts: 1 at 1 functions; -v lists them"]
    _, lines = printed(capsys, "diff", dump, str(after), "-v")
    assert lines[0] == "other registers and facts"
    assert lines[1].startswith("  0000:05:00.0  command 0x")
    assert "bus master off" in lines[1]


def test_a_capture_that_is_not_there_is_an_error(capsys) -> None:
    assert main(["diff", "demo", "/nowhere/at.all"]) == exit_code.FAILED
    assert "/nowhere/at.all" in capsys.readouterr().err


def test_at_the_prompt_of_a_machine_the_machine_is_what_is_live(capsys) -> None:
    assert main(["machine", "-c", "diff demo live"]) == exit_code.DONE
    assert "nothing differs in 226 functions" in capsys.readouterr().out
    code, lines = printed(capsys, "machine", "-c", "apply nvme --yes", "-c", "diff demo live")
    assert code == exit_code.NO
    assert "  0000:05:00.0  driver nvme → vfio-pci" in lines


def test_a_capture_of_a_host_does_not_differ_from_it(capsys, tmp_path: Path) -> None:
    capture = str(tmp_path / "server.tar.zst")
    assert main(["capture", capture, "--host", "demo"]) == exit_code.DONE
    capsys.readouterr()
    code, lines = printed(capsys, "diff", "demo", capture)
    assert (code, lines[0]) == (exit_code.DONE, "nothing differs in 226 functions")
    assert not any("registers" in line or "drivers" in line for line in lines)

"""``vfiokit vmm mtree``: a function's ranges on a twin, held to listings of a real QEMU."""

from __future__ import annotations

import json

import pytest
from device_rig import Host
from test_mtree import DECK, QEMU, xl710

from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.pci.address import Bdf
from vfiokit.vmm import mtree
from vfiokit.vmm.listing import FunctionMap, explain

DRIVE = "0000:05:00.0"


@pytest.fixture
def deck_map():
    host = Host(xl710, at=(Bdf.parse("0000:03:00.3"),))
    made = FunctionMap(host.open(), msix_mappable=False)
    yield made
    made.close()
    made.close()


def test_decks_listing_is_found_equal_wherever_its_bars_are(deck_map) -> None:
    (view,) = mtree.parse(DECK.replace("mmaps", "mmmaps"))
    result = deck_map.compare(view.lines)
    assert result.differences == ()
    assert len(result.ours) == len(result.theirs) == 4
    moved = [
        line._replace(start=line.start - 0x1000_0000, last=line.last - 0x1000_0000)
        for line in view.lines
    ]
    assert deck_map.compare(moved).differences == ()


def test_differing_ranges_are_named(deck_map) -> None:
    (view,) = mtree.parse(DECK)
    wrong = [
        line._replace(kind="i/o") if line.name.endswith("BAR 0 mmaps[0]") else line
        for line in view.lines
    ]
    (found,) = deck_map.compare(wrong).differences
    assert (found.start, found.last) == (0xFE00_0000, 0xFE7F_FFFF)
    assert (found.one.kind, found.other.kind) == ("ramd", "i/o")


def test_listing_without_the_function_is_refused(deck_map) -> None:
    with pytest.raises(UsageError, match="not in that listing"):
        deck_map.compare([mtree.Line(0, 0xFFF, "ram", "pc.ram")])


def test_only_assigned_function_of_a_listing_is_taken_whatever_its_name(deck_map) -> None:
    result = deck_map.compare(mtree.parse(DECK.replace("0000:03:00.3", "0000:81:00.0"))[0].lines)
    assert result.differences == ()


@pytest.mark.parametrize(
    ("addresses", "message"),
    [({1: 0}, "no memory BAR 1"), ({0: 0x1000}, "cannot be"), ({0: 1 << 64}, "cannot be")],
)
def test_impossible_places_are_refused(deck_map, addresses, message) -> None:
    with pytest.raises(UsageError, match=message):
        deck_map.place(addresses)


def test_reasons_name_what_traps(deck_map) -> None:
    deck_map.place({0: 0xFE00_0000, 3: 0xFE80_0000})
    reasons = list(explain(deck_map.flat))
    assert len(reasons) == 2
    assert reasons[0].startswith("0xfe800000-0xfe80080f traps: entries of the MSI-X table")
    assert "shares a page" in reasons[1]


# --- the command ---


def test_command_lists_a_drive_of_the_captured_server(capsys) -> None:
    assert main(["vmm", "mtree", DRIVE, "--at", "0=0xfe000000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "  00000000fe000000-00000000fe002fff (prio 0, ramd): 0000:05:00.0 BAR 0 mmaps[0] KVM"
        in (lines)
    )
    view = mtree.memory_view(mtree.parse("\n".join(lines)))
    assert [line.kind for line in view.lines] == ["ramd", "i/o", "ramd"]


def test_command_with_large_pages_maps_nothing_of_the_drive(capsys) -> None:
    assert main(["vmm", "mtree", DRIVE, "--page-size", "65536", "--json", "--explain"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vfiokit/vmm-mtree/v1"
    assert not any(each["mapped"] for each in document["ranges"])
    assert any("whole pages" in each for each in document["reasons"])


def test_command_compares_with_a_file(tmp_path, capsys) -> None:
    assert main(["vmm", "mtree", DRIVE]) == 0
    path = tmp_path / "mtree.txt"
    path.write_text(capsys.readouterr().out)
    assert main(["vmm", "mtree", DRIVE, "--compare", str(path)]) == 0
    assert "the same" in capsys.readouterr().out
    assert main(["vmm", "mtree", DRIVE, "--compare", str(path), "--no-map", "0"]) == 3
    assert "differs at" in capsys.readouterr().out
    path.write_text(QEMU)
    assert main(["vmm", "mtree", DRIVE, "--compare", str(path), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["compared"]
    assert document["differences"][0]["theirs"]["kind"]


@pytest.mark.parametrize(
    "arguments",
    [
        [DRIVE, "--at", "nonsense"],
        [DRIVE, "--at", "4=0x1000"],
        [DRIVE, "--page-size", "1000"],
        ["0000:77:00.0"],
        [DRIVE, "--msix-relocation", "bar1"],
    ],
    ids=" ".join,
)
def test_command_says_what_is_wrong(arguments, capsys) -> None:
    assert main(["vmm", "mtree", *arguments]) == 2
    assert capsys.readouterr().err


def test_command_refuses_files_that_are_no_listing(tmp_path, capsys) -> None:
    assert main(["vmm", "mtree", DRIVE, "--compare", str(tmp_path / "absent")]) == 1
    (tmp_path / "empty").write_text("")
    assert main(["vmm", "mtree", DRIVE, "--compare", str(tmp_path / "empty")]) == 1
    assert "FlatView" in capsys.readouterr().err

"""Two-dimensional walks, counted."""

from __future__ import annotations

import json

import pytest

from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.vmm.walks import GUEST_FORMATS, HOST_LEVELS, large_pages, measure, table


@pytest.mark.parametrize("host", HOST_LEVELS)
@pytest.mark.parametrize("guest", GUEST_FORMATS)
def test_a_walk_reads_what_the_formula_says(guest: int, host: int) -> None:
    walk = measure(guest, host)
    assert walk.guest_references == guest
    assert walk.host_references == (guest + 1) * host
    assert walk.references == (guest + 1) * (host + 1) - 1


def test_four_by_four_is_24_and_five_by_five_35() -> None:
    assert measure(4, 4).references == 24
    assert measure(5, 5).references == 35
    assert len(table()) == len(GUEST_FORMATS) * len(HOST_LEVELS)


def test_larger_pages_save_levels_on_their_side() -> None:
    found = {(guest, host): each.references for guest, host, each in large_pages()}
    levels = {4096: 4, 1 << 21: 3, 1 << 30: 2}
    assert found == {
        (guest, host): (levels[guest] + 1) * (levels[host] + 1) - 1
        for guest in levels
        for host in levels
    }


@pytest.mark.parametrize(("guest", "host"), [(1, 4), (6, 4), (4, 6), (4, -1)])
def test_levels_that_there_are_not_are_refused(guest: int, host: int) -> None:
    with pytest.raises(UsageError, match="no walk"):
        measure(guest, host)


def test_the_command_prints_the_table_and_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "walks"]) == 0
    out = capsys.readouterr().out
    assert "guest 4   4        9       14      19      24      29" in out
    assert "(4+1)×(4+1) = 25" in out
    assert main(["vmm", "walks", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vfiokit/vmm-walks/v1"
    assert {"guest_levels": 4, "host_levels": 4, "guest_references": 4, "host_references": 20,
            "references": 24} in document["walks"]  # fmt: skip

"""Pages of real topology files: the drawing and the rule agree on how things hang together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfiokit.host.source import open_host
from vfiokit.p2p import Peers
from vfiokit.web.inventory import collect
from vfiokit.web.pairs import answer
from vfiokit.web.report import describe, render

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared"))
FILES = sorted((SHARED / "data" / "nccl").glob("*.xml"))


def test_topology_files_are_there() -> None:
    if not FILES:
        reason = f"no topology files below {SHARED}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_pair_of_a_topology_file_is_told_as_the_rule_tells_it(file: Path) -> None:
    host = open_host(str(file))
    topology = host.topology()
    inventory, peers = collect(topology), Peers(topology)
    pairs = answer(peers, inventory)

    def chain(number: int | None) -> list[int]:
        return [] if number is None else [number, *chain(inventory.items[number].parent)]

    for one in inventory.endpoints():
        # The way that the page walks is the one that the rule walks.
        bdfs = tuple(inventory.items[number].bdf for number in chain(one.number))
        assert bdfs == peers.chains.of(one.bdf).nodes
        for other in inventory.endpoints():
            asked = peers.map_type(one.bdf, other.bdf)
            story = pairs.story(one.number, other.number)
            assert (story.map_type, story.code) == (asked.map_type.value, asked.code)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_page_of_a_topology_file_says_what_the_file_cannot_tell(file: Path) -> None:
    host = open_host(str(file))
    page = render("html", describe(host.topology(), host=file.name, limits=host.limits))
    assert "There is no configuration space in it" in page
    assert "ACS ?" in page
    assert "Uncertain: configuration space" in page

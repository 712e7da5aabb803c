"""The page's compact answers are the answers of :class:`vfiokit.p2p.Peers`."""

from __future__ import annotations

import random

import pytest
from servers import ACS_ON, gpu_server, repeated

from vfiokit.p2p import Answer, Peers
from vfiokit.p2p.remedy import Way, advise, assignment_note
from vfiokit.pci.topology import Topology
from vfiokit.web.advice import MOST_PREDICTIONS, advice, key
from vfiokit.web.inventory import Inventory, collect
from vfiokit.web.pairs import Pairs, Story, answer, sibling_words


def _told(story: Story, asked: Answer) -> list[str]:
    """The story with the names put in, as the page does it."""
    names = {
        "provider": str(asked.provider),
        "client": str(asked.client),
        "common": str(asked.common),
        "distance": str(asked.distance),
    }
    return [line.format(**names) for line in story.text]


def _check(pairs: Pairs, inventory: Inventory, peers: Peers, one: int, other: int) -> None:
    asked = peers.map_type(inventory.items[one].bdf, inventory.items[other].bdf)
    story = pairs.story(one, other)
    assert story.map_type == asked.map_type.value
    assert story.code == asked.code
    bare = asked._replace(redirecting=(), unknown=()).text().split("\n")
    if one != other and asked.provider[:3] == asked.client[:3]:
        assert bare.pop(1) == sibling_words()
    assert _told(story, asked) == bare
    listed = ";".join(map(str, asked.redirecting))
    messages = [
        message.format(provider=asked.provider, client=asked.client, redirecting=listed)
        for message in story.messages
    ]
    assert messages == list(asked.messages)
    if one != other:
        note = story.assigned.format(client=asked.client)
        assert note == assignment_note(asked)
    if asked.common is None:
        assert story.hopeless == advise(peers, [asked[:2]]).hopeless[0][1]
    else:
        assert story.hopeless == ""
    for missing in story.unknown:
        assert missing in asked.unknown
    assert len(story.unknown) <= len(asked.unknown)


def _ask(topology: Topology) -> tuple[Inventory, Peers, Pairs]:
    inventory, peers = collect(topology), Peers(topology)
    return inventory, peers, answer(peers, inventory)


@pytest.mark.parametrize("acs", [(ACS_ON,) * 8, (0,) * 8, (ACS_ON, 0) * 4])
def test_every_pair_of_the_gpu_server_is_told_as_the_rule_tells_it(acs: tuple[int, ...]) -> None:
    inventory, peers, pairs = _ask(gpu_server(acs=acs))
    ends = [item.number for item in inventory.endpoints()]
    for one in ends:
        for other in ends:
            _check(pairs, inventory, peers, one, other)


def test_random_pairs_of_the_demo_host_are_told_as_the_rule_tells_them(demo: Topology) -> None:
    inventory, peers, pairs = _ask(demo)
    source = random.Random(5)
    ends = [item.number for item in inventory.endpoints()]
    for one in ends:
        for other in (one, *source.sample(ends, 12)):
            _check(pairs, inventory, peers, one, other)


def test_random_pairs_of_a_large_host_are_told_as_the_rule_tells_them(demo: Topology) -> None:
    inventory, peers, pairs = _ask(repeated(demo, 4))
    source = random.Random(6)
    ends = [item.number for item in inventory.endpoints()]
    for _ in range(1500):
        _check(pairs, inventory, peers, *source.choices(ends, k=2))


def test_answers_of_a_large_host_are_few(demo: Topology) -> None:
    inventory, _peers, pairs = _ask(repeated(demo, 9))
    assert len(inventory.items) > 2000
    assert len(pairs.stories) < 200
    assert sum(len(block) for block in pairs.blocks) + len(pairs.far) < 5000


def test_bridges_have_no_answers() -> None:
    inventory, _peers, pairs = _ask(gpu_server())
    for item in inventory.items:
        assert (pairs.class_of[item.number] < 0) == bool(item.port)


def test_nobody_to_ask_is_no_answer() -> None:
    inventory, peers, pairs = _ask(Topology([]))
    assert pairs.stories == ()
    assert advice(peers, inventory, pairs) == ({}, (), {})


def test_changes_of_a_pair_are_those_that_p2p_advises() -> None:
    inventory, peers, pairs = _ask(gpu_server())
    found = advice(peers, inventory, pairs)
    numbers = {str(item.bdf): item.number for item in inventory.items}
    provider, client = "0000:0b:00.0", "0000:0a:00.0"
    ends = (inventory.items[numbers[provider]].bdf, inventory.items[numbers[client]].bdf)
    clear, translated = advise(peers, [ends]).remedies
    assert (clear.way, translated.way) == (Way.CLEAR_REDIRECT, Way.TRANSLATED)
    ports = [numbers[str(change.function)] for change in clear.changes]
    assert [found.changes[port].clear for port in ports] == [
        change.parameter for change in clear.changes
    ]
    assert [found.changes[port].clear_now for port in ports] == list(clear.setpci)
    assert [found.changes[port].translated_now for port in ports] == list(translated.setpci)
    # What other switches let through is no news: only the numbers of groups shift.
    assert clear.price.leaks
    assert all("inside the switch 0000:08:00.0" in leak for leak in clear.price.leaks)
    between = {numbers[str(bdf)] for bdf in peers.map_type(*ends).path[1:-1]}
    outcome = found.outcomes[key(between, found.translating[numbers[client]])]
    price = [f"{change.text()}." for change in clear.price.regroupings]
    assert list(outcome.price) == price + list(clear.price.leaks)
    assert outcome.possible is translated.possible
    assert [text.format(client=client) for text in outcome.translated] == list(translated.obstacles)


def test_what_comes_of_a_remedy_is_there_for_every_pair_of_a_small_host() -> None:
    inventory, peers, pairs = _ask(gpu_server())
    found = advice(peers, inventory, pairs)
    numbers = {item.bdf: item.number for item in inventory.items}
    redirected = 0
    for one in inventory.endpoints():
        for other in inventory.endpoints():
            asked = peers.map_type(one.bdf, other.bdf)
            if not asked.redirecting or one is other:
                continue
            redirected += 1
            between = {numbers[bdf] for bdf in (*asked.path[1:-1], *asked.redirecting)}
            name = key(between, found.translating[other.number])
            expected = {remedy.way: remedy for remedy in advise(peers, [asked[:2]]).remedies}
            outcome = found.outcomes[name]
            obstacles = expected[Way.TRANSLATED].obstacles
            assert tuple(text.format(client=other.bdf) for text in outcome.translated) == obstacles
            leaks = expected[Way.CLEAR_REDIRECT].price.leaks
            assert outcome.price[len(outcome.price) - len(leaks) :] == leaks
    assert redirected == 4 * 3 * 2


def test_outcomes_are_left_out_where_they_would_take_long(demo: Topology) -> None:
    inventory, peers, pairs = _ask(repeated(demo, 9))
    found = advice(peers, inventory, pairs)
    assert len(found.outcomes) <= MOST_PREDICTIONS // len(inventory.items)
    assert len(found.changes) > len(found.outcomes)

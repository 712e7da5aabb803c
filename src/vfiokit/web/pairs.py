"""Every answer about peer-to-peer DMA, small enough for a page.

Functions on the same bus with the same ACS state, NUMA node and root bus are one class. Classes
below one port of a root bus have a table of answers; for two that have no bridge in common the
pair of host bridges and their NUMA nodes decide. An answer is a story: text with the names left
out, told with the names of a pair when somebody asks. Many pairs share one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

from vfiokit.p2p import Answer, MapType, Peers, Redirect, Rule
from vfiokit.p2p.code import numa_node
from vfiokit.p2p.remedy import advise, assignment_note
from vfiokit.pci.address import Bdf

if TYPE_CHECKING:
    from vfiokit.web.inventory import Inventory

_NAMES = ("provider", "client", "common", "distance")


class Story(NamedTuple):
    """The answer for many pairs.

    ``{provider}``, ``{client}``, ``{common}``, ``{distance}`` and ``{redirecting}`` stand in place
    of what differs.
    """

    map_type: str
    """The value of :class:`~vfiokit.p2p.MapType`."""
    code: str
    text: tuple[str, ...]
    """The verdict, then the rule that decided."""
    messages: tuple[str, ...]
    """What the kernel would log."""
    unknown: tuple[str, ...]
    """What is missing, apart from the ACS state of functions on the way."""
    hopeless: str
    """Why no ACS setting helps; empty where one may, or where none is needed."""
    assigned: str
    """What becomes of it when both are assigned to a guest; empty for a function with itself."""


class PeerClass(NamedTuple):
    """Functions that every third function sees alike."""

    block: int
    """Which table of :attr:`Pairs.blocks`."""
    place: int
    """Row and column in it."""
    far: int
    """Row and column of :attr:`Pairs.far`."""
    alone: int
    """The story of a function of this class with itself."""


class Pairs(NamedTuple):
    """Answers for all pairs of an inventory's functions that are no bridges."""

    redirects: tuple[int, ...]
    """:class:`~vfiokit.p2p.Redirect` of every function, by its number."""
    classes: tuple[PeerClass, ...]
    class_of: tuple[int, ...]
    """By the function's number; -1 for a bridge."""
    blocks: tuple[tuple[int, ...], ...]
    """Square tables of stories, row by row."""
    far: tuple[int, ...]
    """The square table for pairs without a common bridge; -1 where there is no such pair."""
    stories: tuple[Story, ...]

    def story(self, provider: int, client: int) -> Story:
        """The answer for two functions, by number; the page looks it up the same way."""
        one, other = (self.classes[self.class_of[number]] for number in (provider, client))
        if provider == client:
            return self.stories[one.alone]
        if one.block == other.block and one.block >= 0:
            table = self.blocks[one.block]
            side = _side(table)
            return self.stories[table[one.place * side + other.place]]
        return self.stories[self.far[one.far * _side(self.far) + other.far]]


def _side(table: tuple[int, ...]) -> int:
    return math.isqrt(len(table))


def answer(peers: Peers, inventory: Inventory) -> Pairs:
    """Ask about one pair of every two classes."""
    return _Questions(peers, inventory).ask()


class _Questions:
    def __init__(self, peers: Peers, inventory: Inventory) -> None:
        self.peers = peers
        self.items = inventory.items
        self.stories: dict[Story, int] = {}
        self.members: dict[object, list[int]] = {}
        self.tops: dict[object, Bdf | None] = {}
        self.fars: dict[object, list[object]] = {}
        for item in self.items:
            if not item.port:
                self._sort_in(item.number, item.bdf)

    def _sort_in(self, number: int, bdf: Bdf) -> None:
        chain = self.peers.chains.of(bdf)
        above = chain.nodes[1:2]
        node = numa_node(self.peers.topology, chain)
        key = (above or chain.root, self.peers.chains.redirect(bdf), node)
        if key not in self.members:
            self.tops[key] = chain.nodes[-1] if above else None
            self.fars.setdefault((chain.root, node), []).append(key)
        self.members.setdefault(key, []).append(number)

    def ask(self) -> Pairs:
        keys = list(self.members)
        blocks = self._blocks(keys)
        block_numbers: dict[Bdf | None, int] = {top: at for at, top in enumerate(blocks)}
        far_numbers = {far: number for number, far in enumerate(self.fars)}
        far_of = {key: far_numbers[far] for far, inside in self.fars.items() for key in inside}
        classes: list[PeerClass] = []
        class_of = [-1] * len(self.items)
        for index, key in enumerate(keys):
            top = self.tops[key]
            block = block_numbers.get(top, -1)
            place = 0 if top is None else blocks[top].index(key)
            first = self.items[self.members[key][0]].bdf
            alone = self._tell(self.peers.map_type(first, first))
            classes.append(PeerClass(block, place, far_of[key], alone))
            for number in self.members[key]:
                class_of[number] = index
        return Pairs(
            tuple(int(self.peers.chains.redirect(item.bdf)) for item in self.items),
            tuple(classes),
            tuple(class_of),
            tuple(self._table(inside) for inside in blocks.values()),
            self._far_table(),
            tuple(self.stories),
        )

    def _blocks(self, keys: list[object]) -> dict[Bdf, list[object]]:
        """Classes by the port of the root bus that they are below.

        Functions of a root bus meet nobody below the host bridge, and need no table.
        """
        blocks: dict[Bdf, list[object]] = {}
        for key in keys:
            top = self.tops[key]
            if top is not None:
                blocks.setdefault(top, []).append(key)
        return blocks

    def _table(self, keys: list[object]) -> tuple[int, ...]:
        return tuple(self._between(one, other) for one in keys for other in keys)

    def _far_table(self) -> tuple[int, ...]:
        return tuple(
            self._far(one, other) for one in self.fars.values() for other in self.fars.values()
        )

    def _far(self, one: list[object], other: list[object]) -> int:
        """The story of any pair of two places that has no bridge in common; -1 without one."""
        for key in one:
            for peer in other:
                if self.tops[key] is None or self.tops[key] != self.tops[peer]:
                    story = self._between(key, peer)
                    if story >= 0:
                        return story
        return -1

    def _between(self, one: object, other: object) -> int:
        """The story of a pair of two classes; -1 for a class of one with itself."""
        provider = self.members[one][0]
        client = next((number for number in self.members[other] if number != provider), None)
        if client is None:
            return -1
        return self._tell(self.peers.map_type(self.items[provider].bdf, self.items[client].bdf))

    def _tell(self, answer: Answer) -> int:
        story = _story(answer, self._unseen(answer), self._hopeless(answer))
        return self.stories.setdefault(story, len(self.stories))

    def _hopeless(self, answer: Answer) -> str:
        if answer.common is not None:
            return ""
        hopeless = advise(self.peers, [(answer.provider, answer.client)]).hopeless
        return hopeless[0][1] if hopeless else ""

    def _unseen(self, answer: Answer) -> int:
        """How many of ``answer.unknown`` are about functions on the way."""
        if answer.common is None:
            return 0
        redirect = self.peers.chains.redirect
        return sum(redirect(bdf) is Redirect.UNKNOWN for bdf in answer.path)


def _story(answer: Answer, unseen: int, hopeless: str) -> Story:
    names = {name: cast("Bdf", f"{{{name}}}") for name in _NAMES}
    common = None if answer.common is None else names["common"]
    same = answer.provider == answer.client
    bare = answer._replace(
        provider=names["provider"],
        client=names["provider"] if same else names["client"],
        common=common,
        distance=cast("int", names["distance"]),
        redirecting=(),
        reason=_without(answer.reason, answer.common, "common"),
        unknown=(),
    )
    listed = ";".join(map(str, answer.redirecting))
    messages: list[str] = []
    for message in answer.messages:
        words = message.replace(listed, "{redirecting}") if listed else message
        words = _without(words, answer.client, "client")
        messages.append(_without(words, answer.provider, "provider"))
    return Story(
        answer.map_type.value,
        answer.code,
        tuple(bare.text().split("\n")),
        tuple(messages),
        answer.unknown[unseen:],
        hopeless,
        "" if same else _without(assignment_note(answer), answer.client, "client"),
    )


def sibling_words() -> str:
    """What :class:`~vfiokit.p2p.Answer` adds for two functions of one device: no story has it."""
    one, other = Bdf(0, 0, 0, 0), Bdf(0, 0, 0, 1)
    sample = Answer(
        one, other, MapType.BUS_ADDR, 0, one, (), (), Rule.NO_REDIRECT, (), (), "", "reason"
    )
    return " ".join(sample.text().split("\n")[1:-1])


def _without(text: str, bdf: Bdf | None, name: str) -> str:
    return text if bdf is None else text.replace(str(bdf), f"{{{name}}}")

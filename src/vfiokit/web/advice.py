"""What would let functions reach each other below the host bridge, for every pair of a page.

A port is changed in the same way whichever pair asks, so the page holds a change for every port
and puts them together for the pair that somebody looks at. What a change does to the IOMMU groups
is predicted for every set of ports that some pair needs, as long as that is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.p2p.remedy import Way, advise
from vfiokit.pci.capability.ats import CONTROL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfiokit.p2p import Peers
    from vfiokit.p2p.remedy import Remedy
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.topology import Function
    from vfiokit.web.inventory import Inventory
    from vfiokit.web.pairs import Pairs

ATS = 0x0F
"""Extended capability id of Address Translation Services."""
MOST_PREDICTIONS = 8_000
"""Most functions times sets of ports for which groups are predicted: about a second."""


class PortChange(NamedTuple):
    """What to do to one port: without redirects, and with Direct Translated P2P."""

    clear: str
    """``FLAGS@address`` of ``config_acs=``; empty when the port does not redirect."""
    clear_now: str
    """The ``setpci`` command of it."""
    translated: str
    """The same for the second way; empty when the port is that way already."""
    translated_now: str


class Outcome(NamedTuple):
    """What comes of the changes for some pairs; ``{client}`` stands for the client."""

    price: tuple[str, ...]
    """What becomes of IOMMU groups without the redirects, a sentence each."""
    clear: tuple[str, ...]
    """What is in the way of that."""
    possible: bool
    """Whether ports and client offer what Direct Translated P2P takes."""
    translated: tuple[str, ...]
    """What is in the way of it."""


class Advice(NamedTuple):
    """For all pairs."""

    changes: dict[int, PortChange]
    """By number of the port."""
    translating: tuple[int, ...]
    """The state of ATS of every function, by its number: only equality means something."""
    outcomes: dict[str, Outcome]
    """By :func:`key`; those that took too long to predict are not there."""


def key(between: set[int], translating: int) -> str:
    """What pairs have in common of which the same is true.

    ``between`` are the numbers of the bridges of their way, and of an end that redirects;
    ``translating`` is the client's state of ATS. The page makes the same text.
    """
    return f"{','.join(map(str, sorted(between)))}|{translating}"


def advice(peers: Peers, inventory: Inventory, pairs: Pairs) -> Advice:
    """Ask about every two classes, and about every client once."""
    return _Asking(peers, inventory, pairs).ask()


class _Asking:
    def __init__(self, peers: Peers, inventory: Inventory, pairs: Pairs) -> None:
        self.peers = peers
        self.items = inventory.items
        self.pairs = pairs
        self.numbers = {item.bdf: item.number for item in inventory.items}
        states: dict[int | None, int] = {}
        self.translating = tuple(
            states.setdefault(_ats_control(peers.topology[item.bdf]), len(states))
            for item in inventory.items
        )

    def ask(self) -> Advice:
        """One question for all changes, and one for what comes of each."""
        asked = list(self._redirected())
        if not asked:
            return Advice({}, self.translating, {})
        keys: dict[str, tuple[Bdf, Bdf]] = {}
        for provider, client in asked:
            answer = self.peers.map_type(provider, client)
            between = {self.numbers[bdf] for bdf in (*answer.path[1:-1], *answer.redirecting)}
            state = self.translating[self.numbers[client]]
            keys.setdefault(key(between, state), (provider, client))
        affordable = list(keys.items())[: MOST_PREDICTIONS // len(self.items)]
        changes = self._changes(advise(self.peers, asked).remedies)
        outcomes = {name: self._outcome(*pair) for name, pair in affordable}
        return Advice(changes, self.translating, outcomes)

    def _redirected(self) -> Iterator[tuple[Bdf, Bdf]]:
        """Pairs, provider first, that some port keeps from each other.

        Every two classes below one port of a root bus, with every function of a class that differs
        in its state of ATS as the client once.
        """
        blocks: dict[int, dict[int, list[int]]] = {}
        for number, index in enumerate(self.pairs.class_of):
            if index >= 0 and self.pairs.classes[index].block >= 0:
                block = blocks.setdefault(self.pairs.classes[index].block, {})
                block.setdefault(index, []).append(number)
        for classes in blocks.values():
            for providers in classes.values():
                for clients in classes.values():
                    unlike = {self.translating[number]: number for number in clients}
                    for client in unlike.values():
                        yield from self._between(providers, client)

    def _between(self, providers: list[int], client: int) -> Iterator[tuple[Bdf, Bdf]]:
        provider = next((number for number in providers if number != client), None)
        if provider is not None:
            story = self.pairs.story(provider, client)
            if any("{redirecting}" in message for message in story.messages):
                yield self.items[provider].bdf, self.items[client].bdf

    def _outcome(self, provider: Bdf, client: Bdf) -> Outcome:
        remedies = advise(self.peers, [(provider, client)]).remedies
        clear, translated = (_of(remedies, way) for way in (Way.CLEAR_REDIRECT, Way.TRANSLATED))
        return Outcome(
            (*(f"{change.text()}." for change in clear.price.regroupings), *clear.price.leaks),
            tuple(text.replace(str(client), "{client}") for text in clear.obstacles),
            translated.possible,
            tuple(text.replace(str(client), "{client}") for text in translated.obstacles),
        )

    def _changes(self, remedies: tuple[Remedy, ...]) -> dict[int, PortChange]:
        found: dict[int, PortChange] = {}
        for change in _of(remedies, Way.CLEAR_REDIRECT).changes:
            number = self.numbers[change.function]
            found[number] = PortChange(change.parameter, change.setpci, "", "")
        for change in _of(remedies, Way.TRANSLATED).changes:
            number = self.numbers[change.function]
            known = found.get(number, PortChange("", "", "", ""))
            found[number] = known._replace(
                translated=change.parameter, translated_now=change.setpci
            )
        return found


def _of(remedies: tuple[Remedy, ...], way: Way) -> Remedy:
    return next(remedy for remedy in remedies if remedy.way is way)


def _ats_control(function: Function) -> int | None:
    """The ATS Control register; ``None`` without, -1 where it cannot be read."""
    ats = function.capabilities.find_extended(ATS)
    if ats is None:
        return None
    try:
        return ats.raw(CONTROL.offset, CONTROL.width)
    except ConfigRangeError:
        return -1

"""What would let functions reach each other below the host bridge, for every pair of a page.

A port is changed in the same way whichever pair asks, so the page holds a change for every port
and puts them together for the pair that somebody looks at. What a change does to the IOMMU groups
is predicted for every set of ports that some pair needs, as long as that is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vfiokit.p2p.remedy import Way, advise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfiokit.p2p import Peers
    from vfiokit.p2p.remedy import Remedy
    from vfiokit.web.inventory import Inventory
    from vfiokit.web.pairs import Pairs

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


class Advice(NamedTuple):
    """For all pairs."""

    changes: dict[int, PortChange]
    """By number of the port."""
    obstacles: dict[int, tuple[str, ...]]
    """By number of the function, why translated requests do not pass it, or it sends none."""
    prices: dict[str, tuple[str, ...]]
    """By numbers of the ports without redirects, in order and with commas: what groups become.

    Sets that took too long to predict are not there.
    """


def advice(peers: Peers, inventory: Inventory, pairs: Pairs) -> Advice:
    """Ask about every client once, and about every set of redirecting ports once."""
    return _Asking(peers, inventory, pairs).ask()


class _Asking:
    def __init__(self, peers: Peers, inventory: Inventory, pairs: Pairs) -> None:
        self.peers = peers
        self.items = inventory.items
        self.pairs = pairs
        self.numbers = {item.bdf: item.number for item in inventory.items}
        self.texts = {str(item.bdf): item.number for item in inventory.items}

    def ask(self) -> Advice:
        """One question for all changes, and one for the price of each set of ports."""
        asked: list[tuple[int, int]] = []
        sets: dict[str, tuple[int, int]] = {}
        for provider, client in self._redirected():
            asked.append((provider, client))
            answer = self.peers.map_type(self.items[provider].bdf, self.items[client].bdf)
            ports = sorted(self.numbers[bdf] for bdf in answer.redirecting)
            sets.setdefault(",".join(map(str, ports)), (provider, client))
        if not asked:
            return Advice({}, {}, {})
        remedies = {remedy.way: remedy for remedy in self._remedies(asked)}
        affordable = MOST_PREDICTIONS // len(self.items)
        prices = {key: self._price(pair) for key, pair in list(sets.items())[:affordable]}
        return Advice(self._changes(remedies), self._obstacles(remedies[Way.TRANSLATED]), prices)

    def _redirected(self) -> Iterator[tuple[int, int]]:
        """Pairs of functions that some port keeps from each other.

        Every pair of two classes once, and of each class's functions every one as a client once.
        """
        blocks: dict[int, list[list[int]]] = {}
        members: dict[int, list[int]] = {}
        for number, index in enumerate(self.pairs.class_of):
            if index >= 0:
                members.setdefault(index, []).append(number)
        for index, numbers in members.items():
            blocks.setdefault(self.pairs.classes[index].block, []).append(numbers)
        for block, classes in blocks.items():
            if block < 0:
                continue
            for providers in classes:
                for clients in classes:
                    seen = providers is not classes[0]
                    yield from self._between(providers, clients[:1] if seen else clients)

    def _between(self, providers: list[int], clients: list[int]) -> Iterator[tuple[int, int]]:
        for client in clients:
            provider = next((number for number in providers if number != client), None)
            if provider is None:
                continue
            story = self.pairs.story(provider, client)
            if any("{redirecting}" in message for message in story.messages):
                yield provider, client

    def _remedies(self, pairs: list[tuple[int, int]]) -> tuple[Remedy, ...]:
        return advise(
            self.peers, [(self.items[one].bdf, self.items[other].bdf) for one, other in pairs]
        ).remedies

    def _price(self, pair: tuple[int, int]) -> tuple[str, ...]:
        found = next(each for each in self._remedies([pair]) if each.way is Way.CLEAR_REDIRECT)
        return (*(f"{change.text()}." for change in found.price.regroupings), *found.price.leaks)

    def _changes(self, remedies: dict[Way, Remedy]) -> dict[int, PortChange]:
        found: dict[int, PortChange] = {}
        for change in remedies[Way.CLEAR_REDIRECT].changes:
            number = self.numbers[change.function]
            found[number] = PortChange(change.parameter, change.setpci, "", "")
        for change in remedies[Way.TRANSLATED].changes:
            number = self.numbers[change.function]
            known = found.get(number, PortChange("", "", "", ""))
            found[number] = known._replace(
                translated=change.parameter, translated_now=change.setpci
            )
        return found

    def _obstacles(self, remedy: Remedy) -> dict[int, tuple[str, ...]]:
        """Each obstacle is about the one function that it names."""
        found: dict[int, tuple[str, ...]] = {}
        for obstacle in remedy.obstacles:
            named = (self.texts[word] for word in obstacle.split() if word in self.texts)
            for number in named:
                found[number] = (*found.get(number, ()), obstacle)
        return found

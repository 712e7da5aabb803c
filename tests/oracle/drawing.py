"""Random topologies that QEMU can build, many small trees in one machine.

A tree is one item of a root bus, as blueprint text: what it means for groups does not depend on
its neighbours, so one boot answers for many. Hypothesis draws the trees; everything comes from a
seed and is the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from vfiokit.pci.blueprint import Blueprint, Node, children

CONVENTIONAL = ("edu", "ivshmem")
"""No pci-testdev: it has I/O ports, and the bridges above it would need a window each."""
EXPRESS = ("edu", "ivshmem", "virtio-blk", "edu", "ivshmem", "virtio-blk", "nvme")
"""Those with a driver to start come less often: a guest is slow."""
SECOND_BUS = 0x60
THIRD_BUS = 0xB0
MOST_BUSES = 22
"""Buses that the trees of one host bridge may take."""
MOST_IO_WINDOWS = 6
"""Firmware gives 4 KiB of I/O ports to each conventional bridge and stops when 64 KiB are gone."""
MOST_DEVICES = 20
"""Items of one root bus, with device numbers left for the lab's own."""


class Drawn(NamedTuple):
    """A machine of many trees."""

    text: str
    trees: tuple[str, ...]
    """As drawn, in the order in which their items stand on their buses."""
    blueprint: Blueprint

    def names(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each tree with the names of its functions."""
        places = self.blueprint.places()
        items = [item for bridge in self.blueprint.host_bridges for item in bridge.items]
        for text, item in zip(self.trees, items, strict=True):
            yield text, tuple(name for name in _names(item) if name in places)

    def ports(self) -> tuple[str, ...]:
        """Names of the ports that QEMU builds with ACS."""
        return tuple(node.name for node in self.blueprint.walk() if getattr(node, "acs", False))


def _names(node: Node) -> Iterator[str]:
    yield node.name
    for child in children(node):
        yield from _names(child)


def trees(number: int, draw: Callable[[Random], str], count: int) -> Iterator[str]:
    """What ``draw`` makes of the choices that Hypothesis takes: the different ones of ``count``.

    Shuffled, because it begins with the simplest.
    """
    found: list[str] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(st.randoms(use_true_random=False))
    def example(random: Random) -> None:
        found.append(draw(random))

    example()
    different = sorted(set(found))
    Random(number).shuffle(different)
    return iter(different)


class Artist:
    """Draws; without ``bridges``, nothing with a conventional bus behind a bridge."""

    def __init__(self, random: Random, *, bridges: bool = True) -> None:
        self._random = random
        self._bridges = bridges

    def machine(self, number: int) -> Drawn:
        """Machine ``number``: three host bridges, the first with every kind of tree."""
        items = trees(number, lambda random: Artist(random, bridges=self._bridges)._item(), 300)
        ports = trees(number, lambda random: Artist(random, bridges=self._bridges)._ports(), 300)
        first = self._bus(items, MOST_IO_WINDOWS)
        second, third = (self._bus(ports, 2) for _ in range(2))
        text = (
            f"{', '.join(first)}, hb bus={SECOND_BUS:x}({', '.join(second)}), "
            f"hb bus={THIRD_BUS:x}({', '.join(third)})"
        )
        return Drawn(text, (*first, *second, *third), Blueprint.parse(text))

    def _bus(self, drawn: Iterator[str], io_windows: int) -> list[str]:
        """As many different trees as one host bridge has room for."""
        taken: list[str] = []
        for tree in drawn:
            wanted = [*taken, tree]
            if sum(text.count("pci-bridge") for text in wanted) > io_windows:
                continue
            if _buses(wanted) > MOST_BUSES:
                break
            taken = wanted
            if len(taken) == MOST_DEVICES:
                break
        return taken

    def _pick(self, kinds: list[str], weights: list[float]) -> str:
        """One of ``kinds``; Hypothesis's ``Random`` does not look at weights by itself."""
        at = self._random.random() * sum(weights)
        possible = [(kind, weight) for kind, weight in zip(kinds, weights, strict=True) if weight]
        for kind, weight in possible:
            if at < weight:
                return kind
            at -= weight
        return possible[-1][0]

    def _item(self) -> str:
        """Something on the first root bus."""
        kinds = ["ports", "function", "slot", "pci-bridge", "pcie-pci-bridge"]
        weights = [12, 2, 3, 1, 1] if self._bridges else [12, 2, 3, 0, 0]
        match self._pick(kinds, weights):
            case "ports":
                return self._ports()
            case "function":
                return self._random.choice((*CONVENTIONAL, "virtio-blk"))
            case "slot":
                return self._slot(CONVENTIONAL)
            case kind:
                return f"{kind}({self._conventional_items(1)})"

    def _ports(self) -> str:
        """Root ports: one, or several functions of a device."""
        if self._random.random() < 0.7:
            return self._root_port(0)
        ports = [self._root_port(1) for _ in range(self._random.randint(2, 3))]
        return f"slot({', '.join(ports)})"

    def _root_port(self, depth: int) -> str:
        child = self._child(depth)
        acs = self._random.choice(("", "", " noacs"))
        return f"rp{acs}" + (f"({child})" if child else "")

    def _child(self, depth: int) -> str:
        """What is below a port; may be nothing."""
        kinds = ["function", "slot", "sw", "pcie-pci-bridge", "vfs", "nothing"]
        weights = [4, 3, 4 if depth < 3 else 0, 1.5 if self._bridges else 0, 1, 0.5]
        match self._pick(kinds, weights):
            case "function":
                return self._random.choice(EXPRESS)
            case "slot":
                return self._slot(EXPRESS)
            case "sw":
                return self._switch(depth + 1)
            case "pcie-pci-bridge":
                return f"pcie-pci-bridge({self._conventional_items(1)})"
            case "vfs":
                return f"nvme vfs={self._random.randint(1, 3)}"
            case _:
                return ""

    def _switch(self, depth: int) -> str:
        ports = []
        for _ in range(self._random.randint(1, 3)):
            child = self._child(depth)
            acs = self._random.choice((" acs", ""))
            ports.append(f"port{acs}" + (f"({child})" if child else ""))
        return f"sw({', '.join(ports)})"

    def _slot(self, models: tuple[str, ...]) -> str:
        functions = [self._random.choice(models) for _ in range(self._random.randint(2, 3))]
        return f"slot({', '.join(functions)})"

    def _conventional_items(self, depth: int) -> str:
        items = []
        for _ in range(self._random.randint(1, 3)):
            kinds, weights = ["function", "slot", "pci-bridge"], [4, 2, 2 if depth < 3 else 0]
            match self._pick(kinds, weights):
                case "function":
                    items.append(self._random.choice(CONVENTIONAL))
                case "slot":
                    items.append(self._slot(CONVENTIONAL))
                case kind:
                    items.append(f"{kind}({self._conventional_items(depth + 1)})")
        return ", ".join(items)

    def acs_parameter(self, drawn: Drawn) -> str:
        """``pci=config_acs=…`` that sets or clears some ACS bits of most of the ports.

        A character of ``0``, ``1`` or ``x`` for each bit; Direct Translated P2P (bit 6) comes
        first.
        """
        places = drawn.blueprint.places()
        entries = []
        for name in drawn.ports():
            if self._random.random() < 0.7:
                flags = self._random.choices("01x", [1, 2, 4], k=7)
                entries.append(f"{''.join(flags)}@{places[name].bdf}")
        return "pci=config_acs=" + ";".join(entries)


def _buses(trees: list[str]) -> int:
    """A bound on the buses that trees take."""
    return sum(
        text.count("rp")
        + 2 * text.count("sw")
        + text.count("port")
        + text.count("pci-bridge")
        + 4 * text.count("vfs")
        for text in trees
    )

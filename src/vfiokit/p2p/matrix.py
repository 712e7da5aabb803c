"""Every pair of many functions at once: the algorithm of :mod:`vfiokit.p2p.peers` on arrays.

Functions are numbered in depth-first order, so that everything below a bridge is one range of rows
and one of columns. The matrix starts as what the host bridges say of each other; then each bridge
overwrites the square of what is below it, outermost first. What remains in a cell is the answer of
the deepest bridge above both: where the two chains meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vfiokit.p2p import code
from vfiokit.p2p.answer import MapType, Verdict
from vfiokit.p2p.chain import Redirect
from vfiokit.p2p.host_bridge import standing
from vfiokit.pci.address import Bdf

if TYPE_CHECKING:
    from vfiokit.p2p.peers import Peers
    from vfiokit.pci.topology import HostBridge

KINDS = (
    MapType.BUS_ADDR,
    MapType.UNKNOWN,
    MapType.THRU_HOST_BRIDGE,
    MapType.NOT_SUPPORTED,
)
"""What the numbers of :attr:`Matrix.map_types` mean. Of two ends of a way the greater decides."""

CODES = (code.SELF, code.PIX, code.PXB, code.PHB, code.NODE, code.SYS)
"""What the numbers of :attr:`Matrix.codes` mean."""

_BUS_ADDR, _UNKNOWN = 0, 1
_Bytes = NDArray[np.uint8]
_Numbers = NDArray[np.uint16]
_Array = NDArray[Any]


class Matrix:
    """Map types and distances of every pair of ``providers`` (rows) and ``clients`` (columns)."""

    map_types: _Bytes
    """Shape ``(providers, clients)``: index into :data:`KINDS`."""
    distances: _Numbers
    """Shape ``(providers, clients)``."""

    def __init__(self, peers: Peers, providers: Sequence[Bdf], clients: Sequence[Bdf]) -> None:
        """Compute all; :class:`~vfiokit.errors.DeviceNotFoundError` for an unknown function."""
        self.providers = tuple(providers)
        self.clients = tuple(clients)
        self._forest = _Forest(peers, (*self.providers, *self.clients))
        self._rows = _Selection(self._forest, self.providers)
        self._columns = _Selection(self._forest, self.clients)
        self._squares = tuple(self._find_squares())
        self.map_types = self._repeated(self._fill_types())
        self.distances = self._repeated(self._fill_distances())

    def verdict(self, provider: Bdf, client: Bdf) -> Verdict:
        """One cell; ``ValueError`` for a function that is not among those asked for."""
        row, column = self.providers.index(provider), self.clients.index(client)
        return Verdict(KINDS[self.map_types[row, column]], int(self.distances[row, column]))

    def counts(self) -> dict[MapType, int]:
        """How many pairs have each map type."""
        found = np.bincount(self.map_types.ravel(), minlength=len(KINDS))
        return {kind: int(count) for kind, count in zip(KINDS, found, strict=True)}

    @cached_property
    def codes(self) -> _Bytes:
        """NVIDIA's words, shape ``(providers, clients)``: index into :data:`CODES`."""
        return self._repeated(self._fill_codes())

    def _repeated(self, filled: _Array) -> _Array:
        """With the rows and columns of functions that were asked for more than once."""
        return self._columns.repeat(self._rows.repeat(filled, 0), 1)

    def _alike(self, table: _Bytes, kinds: _Array) -> _Bytes:
        """A whole matrix from a table of kinds of node: most rows are copies of another."""
        filled: _Bytes = table.take(self._columns.asked(kinds), 1).take(self._rows.asked(kinds), 0)
        return filled

    def _cells(self, rows: slice, columns: slice) -> tuple[_Array, ...]:
        """Where a square lies in the order that was asked for."""
        return np.ix_(self._rows.positions[rows], self._columns.positions[columns])

    def _find_squares(self) -> Iterable[tuple[int, slice, slice]]:
        """Bridges where chains of the selection meet, outermost first, and what is below them.

        A bridge with one child is no meeting point, unless it is itself asked about.
        """
        forest = self._forest
        asked = {*self._rows.places.tolist(), *self._columns.places.tolist()}
        for node in range(len(forest.nodes)):
            if forest.children[node] > 1 or (forest.children[node] and node in asked):
                end = forest.ends[node]
                rows, columns = self._rows.within(node, end), self._columns.within(node, end)
                if rows.start < rows.stop and columns.start < columns.stop:
                    yield node, rows, columns

    def _same(self) -> tuple[_Array, _Array, _Array]:
        """Cells of a function with itself: node, row, column."""
        nodes, rows, columns = np.intersect1d(
            self._rows.places, self._columns.places, assume_unique=True, return_indices=True
        )
        return nodes, self._rows.positions[rows], self._columns.positions[columns]

    def _fill_types(self) -> _Bytes:
        forest, rows, columns = self._forest, self._rows, self._columns
        table = forest.approvals
        filled = self._alike(table, forest.roots)
        yes, unseen = forest.redirecting, forest.unseen

        def level(places: _Array, node: int, through: np.uint8) -> _Bytes:
            found = np.where(unseen[places] > unseen[node], _UNKNOWN, _BUS_ADDR)
            return np.where(yes[places] > yes[node], through, found).astype(np.uint8)

        def own(node: int, through: np.uint8) -> int:
            state = forest.states[node]
            return int(through) if state is Redirect.YES else int(state)

        for node, below, across in self._squares:
            through = table[forest.roots[node], forest.roots[node]]
            left = np.maximum(
                level(rows.places[below], node, through), np.uint8(own(node, through))
            )
            right = level(columns.places[across], node, through)
            filled[self._cells(below, across)] = np.maximum.outer(left, right)
        nodes, at_row, at_column = self._same()
        filled[at_row, at_column] = [
            own(node, table[forest.roots[node], forest.roots[node]]) for node in nodes.tolist()
        ]
        return filled

    def _fill_distances(self) -> _Numbers:
        depths = self._forest.depths
        up, down = self._rows.of(depths), self._columns.of(depths)
        filled: _Numbers = np.add.outer(self._rows.asked(depths), self._columns.asked(depths))
        for node, below, across in self._squares:
            own = depths[node]
            filled[self._cells(below, across)] = np.add.outer(up[below] - own, down[across] - own)
        _, at_row, at_column = self._same()
        filled[at_row, at_column] = 0
        return filled

    def _fill_codes(self) -> _Bytes:
        forest = self._forest
        places, table = forest.places_of_codes
        filled = self._alike(table, places)
        above, counted = forest.bridges_above, forest.counted
        pix, pxb = np.uint8(CODES.index(code.PIX)), np.uint8(CODES.index(code.PXB))
        for node, below, across in self._squares:
            sides = []
            for ends in (self._rows.places[below], self._columns.places[across]):
                passed = above[ends] - above[node] - counted[node]
                # The bridge itself as an end is not passed.
                sides.append(np.where(ends == node, -counted[node], passed))
            bridges = np.add.outer(*sides) + counted[node]
            filled[self._cells(below, across)] = np.where(bridges <= 1, pix, pxb)
        _, at_row, at_column = self._same()
        filled[at_row, at_column] = CODES.index(code.SELF)
        return filled


class _Selection:
    """Functions asked about: each once, by their depth-first numbers and by their turn."""

    def __init__(self, forest: _Forest, bdfs: Sequence[Bdf]) -> None:
        once = list(dict.fromkeys(bdfs))
        self._turns = np.array([forest.index[bdf] for bdf in once], dtype=np.int64)
        self.positions = np.argsort(self._turns)
        """The turn of each, in depth-first order."""
        self.places = self._turns[self.positions]
        """The number of each, in depth-first order."""
        self._repeats: _Array | None = None
        if len(once) != len(bdfs):
            turn = {bdf: number for number, bdf in enumerate(once)}
            self._repeats = np.array([turn[bdf] for bdf in bdfs], dtype=np.int64)

    def of(self, values: _Array) -> _Array:
        """The nodes' ``values``, in depth-first order."""
        return values[self.places]

    def asked(self, values: _Array) -> _Array:
        """The nodes' ``values``, by their turns."""
        return values[self._turns]

    def within(self, start: int, end: int) -> slice:
        """Which of them, in depth-first order, are in the range of nodes ``[start, end)``."""
        low, high = np.searchsorted(self.places, (start, end))
        return slice(int(low), int(high))

    def repeat(self, filled: _Array, axis: int) -> _Array:
        """``filled`` with repetitions as they were asked for."""
        return filled if self._repeats is None else filled.take(self._repeats, axis)


class _Forest:
    """The asked functions and every bridge above them, numbered depth first."""

    def __init__(self, peers: Peers, bdfs: Iterable[Bdf]) -> None:
        self._peers = peers
        self.nodes: list[Bdf] = []
        self.index: dict[Bdf, int] = {}
        self._bridges: list[HostBridge] = []
        below, tops = self._trees(bdfs)
        count = len(below)
        self.ends = [0] * count
        self.children = [0] * count
        self.states: list[Redirect] = []
        self.roots = np.zeros(count, dtype=np.int64)
        self.depths = np.zeros(count, dtype=np.uint16)
        self.redirecting = np.zeros(count, dtype=np.uint16)
        self.unseen = np.zeros(count, dtype=np.uint16)
        self.counted = np.zeros(count, dtype=np.int16)
        self.bridges_above = np.zeros(count, dtype=np.int16)
        for root, bridge in enumerate(tops):
            self._bridges.append(bridge)
            for top in tops[bridge]:
                self._number(below, top, root)

    def _trees(
        self, bdfs: Iterable[Bdf]
    ) -> tuple[dict[Bdf, list[Bdf]], dict[HostBridge, list[Bdf]]]:
        below: dict[Bdf, list[Bdf]] = {}
        tops: dict[HostBridge, list[Bdf]] = {}
        for bdf in bdfs:
            chain = self._peers.chains.of(bdf)
            child: Bdf | None = None
            for node in chain.nodes:
                met = node in below
                children = below.setdefault(node, [])
                if child is not None:
                    children.append(child)
                child = node
                if met:
                    break
            else:
                tops.setdefault(chain.root, []).append(chain.nodes[-1])
        return below, tops

    def _number(self, below: dict[Bdf, list[Bdf]], top: Bdf, root: int) -> None:
        """Depth first; a node that is met again has everything below it numbered."""
        waiting: list[tuple[Bdf, int]] = [(top, -1)]
        while waiting:
            bdf, parent = waiting.pop()
            node = self.index.get(bdf)
            if node is not None:
                self.ends[node] = len(self.nodes)
                continue
            node = self._add(bdf, parent, root)
            self.children[node] = len(below[bdf])
            waiting.append((bdf, parent))
            waiting += [(child, node) for child in reversed(below[bdf])]

    def _add(self, bdf: Bdf, parent: int, root: int) -> int:
        node = self.index[bdf] = len(self.nodes)
        self.nodes.append(bdf)
        state = self._peers.chains.redirect(bdf)
        self.states.append(state)
        self.roots[node] = root
        topped = parent < 0
        self.depths[node] = 1 + (0 if topped else self.depths[parent])
        for counts, kind in ((self.redirecting, Redirect.YES), (self.unseen, Redirect.UNKNOWN)):
            counts[node] = (0 if topped else counts[parent]) + (state is kind)
        self.counted[node] = code.counts_as_bridge(self._peers.topology, bdf)
        if not topped:
            self.bridges_above[node] = self.bridges_above[parent] + self.counted[parent]
        return node

    @cached_property
    def approvals(self) -> _Bytes:
        """What the host-bridge test says of each two root buses: index into :data:`KINDS`."""
        standings = [standing(self._peers.topology, bridge) for bridge in self._bridges]
        kinds = list(dict.fromkeys(standings))
        between = np.zeros((len(kinds), len(kinds)), dtype=np.uint8)
        members = [
            [bridge for bridge, its in zip(self._bridges, standings, strict=True) if its is kind]
            for kind in kinds
        ]
        for one, ours in enumerate(members):
            for other, theirs in enumerate(members):
                # Root buses of one standing are alike; of two different ones if there are two.
                between[one, other] = self._approval(ours[0], theirs[-1])
        which = np.array([kinds.index(each) for each in standings], dtype=np.int64)
        table: _Bytes = between[np.ix_(which, which)]
        for root, bridge in enumerate(self._bridges):
            table[root, root] = self._approval(bridge, bridge)
        return table

    def _approval(self, one: HostBridge, other: HostBridge) -> int:
        return KINDS.index(self._peers.approval(one, other).map_type)

    @cached_property
    def places_of_codes(self) -> tuple[_Array, _Bytes]:
        """For each node where it is, and the code of each two such places without a bridge."""
        peers = self._peers
        places = [
            (int(root), code.numa_node(peers.topology, peers.chains.of(bdf)))
            for bdf, root in zip(self.nodes, self.roots, strict=True)
        ]
        kinds = list(dict.fromkeys(places))
        table = np.zeros((len(kinds), len(kinds)), dtype=np.uint8)
        for one, (ours, node) in enumerate(kinds):
            for other, (theirs, far) in enumerate(kinds):
                word = code.PHB if ours == theirs else code.across(node, far, peers.single_node)
                table[one, other] = CODES.index(word)
        where = {kind: number for number, kind in enumerate(kinds)}
        return np.array([where[place] for place in places], dtype=np.int64), table

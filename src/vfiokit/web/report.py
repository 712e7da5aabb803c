"""A host in one of three formats, from what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from vfiokit.web.inventory import PEER_KINDS, collect
from vfiokit.web.pairs import answer

if TYPE_CHECKING:
    from vfiokit.assign.doctor import Finding
    from vfiokit.host.tree import Tree
    from vfiokit.pci.topology import Topology
    from vfiokit.web.inventory import Inventory
    from vfiokit.web.page import Content

FORMATS = ("html", "svg", "dot")
MOST_EXAMINED = 64
"""Most devices whose findings are in a page."""


def describe(
    topology: Topology,
    *,
    host: str,
    limits: Sequence[str] = (),
    tree: Tree | None = None,
) -> Content:
    """Everything that a report says of ``topology``; ``host`` is what it is called.

    ``tree`` are the host's files, where there are any: they tell the processor, which the
    peer-to-peer rules ask for, and what :mod:`vfiokit.assign.doctor` finds. Never raises for odd
    bytes.
    """
    from vfiokit.host.processor import read_cpu
    from vfiokit.p2p import Peers
    from vfiokit.web.advice import advice
    from vfiokit.web.page import Content

    inventory = collect(topology)
    cpu = None if tree is None else read_cpu(tree)
    peers = Peers(topology, cpu=cpu)
    pairs = answer(peers, inventory)
    remedies = advice(peers, inventory, pairs)
    return Content(
        host, inventory, pairs, remedies, _findings(tree, topology, inventory), tuple(limits)
    )


def _findings(tree: Tree | None, topology: Topology, inventory: Inventory) -> tuple[Finding, ...]:
    """What doctor says of the host and of the devices that people assign."""
    if tree is None:
        return ()
    from vfiokit.assign.doctor import examine

    devices = [
        topology[item.bdf]
        for item in inventory.items
        if item.kind in PEER_KINDS and item.physfn is None
    ]
    return examine(tree, topology, devices[:MOST_EXAMINED])


def format_of(path: str) -> str:
    """The format that the ending of a file name asks for; ``html`` where it asks for none."""
    ending = PurePath(path).suffix.lower().lstrip(".")
    return {"gv": "dot"}.get(ending, ending if ending in FORMATS else "html")


def render(kind: str, content: Content) -> str:
    """The report in one of :data:`FORMATS`."""
    if kind == "svg":
        from vfiokit.web import svg

        return svg.document(content.inventory, content.host)
    if kind == "dot":
        from vfiokit.web import dot

        return dot.document(content.inventory, content.host)
    from vfiokit.web.page import page

    return page(content)

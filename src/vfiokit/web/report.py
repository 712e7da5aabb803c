"""A host in one of three formats, from what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from vfiokit.web.inventory import collect
from vfiokit.web.pairs import answer

if TYPE_CHECKING:
    from vfiokit.host.processor import Cpu
    from vfiokit.pci.topology import Topology
    from vfiokit.web.page import Content, Remark

FORMATS = ("html", "svg", "dot")


def describe(
    topology: Topology,
    *,
    host: str,
    cpu: Cpu | None = None,
    limits: Sequence[str] = (),
    remarks: Sequence[Remark] = (),
) -> Content:
    """Everything that a report says of ``topology``; ``host`` is what it is called.

    ``cpu`` is the host's processor, for the peer-to-peer rules; without it the host's functions
    are asked. Never raises for odd bytes.
    """
    from vfiokit.p2p import Peers
    from vfiokit.web.page import Content

    inventory = collect(topology)
    pairs = answer(Peers(topology, cpu=cpu), inventory)
    return Content(host, inventory, pairs, tuple(remarks), tuple(limits))


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

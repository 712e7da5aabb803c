"""Who can do DMA to whom, at what price: Linux's reasoning about peer-to-peer DMA.

:class:`Peers` answers for one topology. No I/O; numpy is imported only for
:meth:`Peers.matrix`.
"""

from __future__ import annotations

from vfiokit.host.processor import Cpu
from vfiokit.p2p.answer import Answer, Distances, MapType, Rule, Verdict
from vfiokit.p2p.chain import Redirect, redirect
from vfiokit.p2p.peers import Peers, map_type

__all__ = [
    "Answer",
    "Cpu",
    "Distances",
    "MapType",
    "Peers",
    "Redirect",
    "Rule",
    "Verdict",
    "map_type",
    "redirect",
]

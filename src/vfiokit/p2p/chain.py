"""From a function up to its root bus, and which functions on the way redirect.

Source: Linux ``pci_upstream_bridge``, ``pci_bridge_has_acs_redir`` (drivers/pci/p2pdma.c): Request
Redirect, Completion Redirect and Egress Control count, on any kind of function, as its ACS Control
register reads; device quirks do not.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.topology import Function, HostBridge, Topology

REDIRECTING = Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.EGRESS_CONTROL
"""The bits of which one is enough."""

_ACS_CONTROL = 0x06
_EXTENDED = 0x100


class Redirect(IntEnum):
    """Whether a function has an ACS redirect set; the greatest on a way decides."""

    NO = 0
    UNKNOWN = 1
    """The bytes at hand stop before the register could be seen."""
    YES = 2


class Chain(NamedTuple):
    """A function, the bridges above it, and the root bus they end on."""

    nodes: tuple[Bdf, ...]
    """The function first; a VF is followed by its PF's bridge."""
    root: HostBridge


class Chains:
    """Chains and redirects of one topology, each looked up once."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._chains: dict[Bdf, Chain] = {}
        self._redirects: dict[Bdf, Redirect] = {}

    def of(self, bdf: Bdf) -> Chain:
        """The chain of ``bdf``; :class:`~vfiokit.errors.DeviceNotFoundError` if it is not there."""
        known = self._chains.get(bdf)
        if known is None:
            function = self.topology[bdf]
            # A bridge's own bus comes before the one below it, so this ends.
            bridge = self.topology.upstream_bridge(function)
            if bridge is None:
                known = Chain((bdf,), self.topology.host_bridge_of(function))
            else:
                above = self.of(bridge.bdf)
                known = Chain((bdf, *above.nodes), above.root)
            self._chains[bdf] = known
        return known

    def redirect(self, bdf: Bdf) -> Redirect:
        """Whether ``bdf`` has an ACS redirect set."""
        known = self._redirects.get(bdf)
        if known is None:
            known = self._redirects[bdf] = redirect(self.topology[bdf])
        return known


def redirect(function: Function) -> Redirect:
    """Whether ``function`` has an ACS redirect set, as far as its bytes tell."""
    acs = function.acs
    if acs is not None:
        if not function.config.has(acs.offset + _ACS_CONTROL, 2):
            return Redirect.UNKNOWN
        return Redirect.YES if function.acs_control & REDIRECTING else Redirect.NO
    config = function.config
    if config.has(_EXTENDED, 4):
        return Redirect.NO
    # Conventional PCI has 256 bytes and no extended capabilities.
    conventional = len(config) >= _EXTENDED and function.express is None
    return Redirect.NO if conventional else Redirect.UNKNOWN

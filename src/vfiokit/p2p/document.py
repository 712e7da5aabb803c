"""Answers about peer-to-peer DMA as JSON-ready values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from vfiokit.p2p.answer import Answer, Verdict
from vfiokit.p2p.peers import Peers
from vfiokit.p2p.price import Price
from vfiokit.p2p.remedy import Advice, Remedy
from vfiokit.p2p.selection import kind_of
from vfiokit.p2p.what_if import Consequences
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function

Json: TypeAlias = dict[str, Any]


def processor(peers: Peers) -> Json | None:
    """What the answers take the processor for; ``None`` when nothing tells."""
    if peers.cpu is None:
        return None
    by = peers.cpu_deduced_from
    return {
        "vendor": peers.cpu.vendor,
        "family": peers.cpu.family,
        "deduced_from": None if by is None else str(by),
    }


def function(peers: Peers, bdf: Bdf) -> Json:
    """Who a row or column is."""
    one = peers.topology[bdf]
    return {
        "address": str(bdf),
        "kind": kind_of(one),
        "vendor": f"{one.identity.vendor_id:04x}",
        "device": f"{one.identity.device_id:04x}",
        "numa_node": one.recorded.numa_node,
        "physical_function": None if one.physfn is None else str(one.physfn),
    }


def matrix(peers: Peers, providers: Sequence[Bdf], clients: Sequence[Bdf]) -> Json:
    """Every pair, provider by provider."""
    chosen = sorted({*providers, *clients})
    return {
        "cpu": processor(peers),
        "functions": [function(peers, bdf) for bdf in chosen],
        "pairs": [
            {
                "provider": str(provider),
                "client": str(client),
                **_verdict(peers.verdict(provider, client)),
                "code": peers.code(provider, client),
            }
            for provider in providers
            for client in clients
        ],
    }


def _verdict(found: Verdict) -> Json:
    return {"map_type": found.map_type.value, "distance": found.distance}


def answer(peers: Peers, found: Answer) -> Json:
    """One direction of one pair."""
    return {
        "provider": str(found.provider),
        "client": str(found.client),
        "map_type": found.map_type.value,
        "distance": found.distance,
        "code": found.code,
        "rule": found.rule.value,
        "reason": found.reason,
        "common": None if found.common is None else str(found.common),
        "path": [_step(peers.topology[bdf], bdf in found.redirecting) for bdf in found.path],
        "redirecting": [str(bdf) for bdf in found.redirecting],
        "messages": list(found.messages),
        "unknown": list(found.unknown),
    }


def _step(one: Function, redirecting: bool) -> Json:
    has = one.acs is not None
    return {
        "address": str(one.bdf),
        "port_type": None if one.port_type is None else one.port_type.name.lower(),
        "acs_capability": int(one.acs_capability) if has else None,
        "acs_control": int(one.acs_control) if has else None,
        "redirecting": redirecting,
    }


def advice(found: Advice) -> Json:
    """Remedies, and the pairs that need or have none."""
    return {
        "remedies": [_remedy(each) for each in found.remedies],
        "direct": [_pair(*pair) for pair in found.direct],
        "hopeless": [{**_pair(*pair), "reason": reason} for pair, reason in found.hopeless],
    }


def _pair(provider: Bdf, client: Bdf) -> Json:
    return {"provider": str(provider), "client": str(client)}


def _remedy(found: Remedy) -> Json:
    return {
        "way": found.way.value,
        "pairs": [_pair(*pair) for pair in found.pairs],
        "changes": [
            {
                "address": str(change.function),
                "offset": change.offset,
                "before": int(change.before),
                "after": int(change.after),
            }
            for change in found.changes
        ],
        "config_acs": found.config_acs,
        "disable_acs_redir": found.disable_acs_redir,
        "setpci": list(found.setpci),
        "possible": found.possible,
        "obstacles": list(found.obstacles),
        "price": price(found.price),
    }


def price(found: Price) -> Json:
    """Groups that differ."""
    return {
        "groups": [
            {
                "before": [[str(bdf) for bdf in group] for group in each.before],
                "after": [[str(bdf) for bdf in group] for group in each.after],
            }
            for each in found.regroupings
        ],
        "leaks": list(found.leaks),
    }


def what_if(found: Consequences) -> Json:
    """Only what differs."""
    return {
        "changes": list(found.machine.changes),
        "addresses": {str(old): str(new) for old, new in found.machine.addresses.items()},
        **price(found.price),
        "pairs": [
            {
                **_pair(each.provider, each.client),
                "before": {**_verdict(each.before), "code": each.codes[0]},
                "after": {**_verdict(each.after), "code": each.codes[1]},
            }
            for each in found.differences
        ],
    }

"""What Linux believes of a pair, against what the fabric of a random machine does.

Linux looks at every function on the way; a switch looks at one port: the one where the request
would turn. Where the two differ, this says exactly how.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_routing import CR, EC, RR, UF, Builder, Node, chain, machines, outcome, view_of

from vfiokit.machine.txn import AddressType, Kind
from vfiokit.p2p import Answer, Cpu, MapType, Peers

THOROUGH = bool(os.environ.get("VFIOKIT_THOROUGH"))
RELAXED = settings(
    max_examples=1_000 if THOROUGH else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
MANY = settings(RELAXED, max_examples=10_000 if THOROUGH else 150)
ZEN = Cpu("AuthenticAMD", 0x19, 0)
"""Every host bridge forwards here, as it does for this processor in Linux."""


def everything_on(drawn, control=lambda node: node.control & ~EC) -> Builder:
    """The machine with every port forwarding, bus mastering and decoding."""
    waiting = [node for host in drawn for node in host.children]
    for host in drawn:
        host.refuses = False
    for node in waiting:
        waiting += node.children
        node.master = node.memory = True
        node.control = control(node)
    return Builder(drawn)


def turn(client: Node, provider: Node) -> tuple[Node, Node | None]:
    """The node where the request would turn, and the bridge above it that both share."""
    up, down = [client, *chain(client)], [provider, *chain(provider)]
    common = next((node for node in up if node in down), None)
    return up[up.index(common) - 1 if common else -1], common


def same_device(client: Node, provider: Node) -> bool:
    one, other = turn(client, provider)[0], turn(provider, client)[0]
    return one.host is other.host and one.device == other.device and one.multi and not one.link


def by_hardware(client: Node, provider: Node) -> str:
    """``direct``, ``host`` or ``refused``: PCIe 6.0 §6.12.3 with Egress Control off."""
    one, common = turn(client, provider)
    if common is not None and common.shared:
        return "direct"  # a conventional bus has no ACS
    if common is None and not same_device(client, provider):
        return "host"
    offers = one.capability is None or one.capability & RR
    if offers and not one.acs & RR:
        return "direct"
    above = [] if common is None else [common, *chain(common)]
    blocked = any(port.kind == "down" and not port.acs & UF for port in above)
    return "refused" if blocked else "host"


def went(built: Builder, client: Node, provider: Node) -> str:
    return outcome(built.machine, client, provider, AddressType.UNTRANSLATED, Kind.WRITE)


def asked(built: Builder):
    """Every pair of endpoints with Linux's answer."""
    peers = Peers(view_of(built.machine), cpu=ZEN)
    for client in built.leaves:
        for provider in built.leaves:
            if provider is not client:
                yield client, provider, peers.map_type(provider.bdf, client.bdf)


def offers_no_redirect(node: Node) -> bool:
    """ACS without Request Redirect: a port that cannot forward to its peers at all."""
    return node.capability is not None and not node.capability & RR


@pytest.mark.timeout(3600)
@MANY
@given(machines)
def test_bus_addresses_never_touch_a_host_bridge_and_the_others_do(drawn):
    """With the three exceptions that the hardware makes, each exactly where it belongs."""
    built = everything_on(drawn)
    for client, provider, answer in asked(built):
        route = went(built, client, provider)
        one, common = turn(client, provider)
        assert route == by_hardware(client, provider), f"{client.bdf} -> {provider.bdf}"
        if answer.map_type is MapType.BUS_ADDR:
            # Linux takes bits that a port does not offer for satisfied, or for absent.
            assert route == "direct" or offers_no_redirect(one)
            continue
        assert answer.map_type is MapType.THRU_HOST_BRIDGE
        if route == "direct":
            assert exception(client, provider, answer)
        else:
            assert not (one.capability is None and common is not None)


def exception(client: Node, provider: Node, answer: Answer) -> str:
    """Why a request turns below the host bridge although Linux sees a redirect or no bridge."""
    one, common = turn(client, provider)
    if common is None:
        return "inside a device of the root complex" if same_device(client, provider) else ""
    assert answer.redirecting
    if common.shared or one.acs & RR:
        return ""  # nothing on a conventional bus has ACS, so Linux sees none there either
    if one.acs & CR:
        return "only completions are redirected here"
    return "redirected on the other side, at the common port, or at an end: not where it turns"


@pytest.mark.timeout(3600)
@RELAXED
@given(machines, st.booleans())
def test_with_acs_as_linux_sets_it_both_agree_but_inside_a_device(drawn, on):
    """Every function has all of ACS, or none has any: then Linux's belief is the hardware's."""

    def uniform(node: Node) -> int:
        node.capability = 0x7F if on and node.capability is not None else None
        if on and node.link:
            node.capability = 0x7F
        return 0x1D

    built = everything_on(drawn, uniform)
    for client, provider, answer in asked(built):
        route = went(built, client, provider)
        _, common = turn(client, provider)
        if (common is not None and common.shared) or same_device(client, provider):
            continue  # no port sees it
        expected = "direct" if answer.map_type is MapType.BUS_ADDR else "host"
        assert route == expected, f"{client.bdf} -> {provider.bdf}: {answer.text()}"


@pytest.mark.timeout(3600)
@RELAXED
@given(machines)
def test_egress_control_never_makes_a_bus_address_wrong(drawn):
    """Linux takes Egress Control for a redirect; a port may block or forward by its vector."""
    built = everything_on(drawn, control=lambda node: node.control)
    for client, provider, answer in asked(built):
        route = went(built, client, provider)
        one, common = turn(client, provider)
        if answer.map_type is MapType.BUS_ADDR:
            assert route == "direct" or offers_no_redirect(one)
        elif common is not None and one.acs & EC and not one.acs & RR:
            assert route in ("direct", "refused") or offers_no_redirect(one)


def test_random_machines_hold_every_case():
    """The properties above are about something: every outcome and exception comes up."""
    seen: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(machines)
    def look(drawn):
        built = everything_on(drawn)
        for client, provider, answer in asked(built):
            route = by_hardware(client, provider)
            seen[f"{answer.map_type.name} {route}"] += 1
            if route == "direct" and answer.map_type is not MapType.BUS_ADDR:
                seen[exception(client, provider, answer)] += 1

    look()
    wanted = {
        "BUS_ADDR direct",
        "BUS_ADDR host",
        "THRU_HOST_BRIDGE host",
        "THRU_HOST_BRIDGE direct",
        "inside a device of the root complex",
        "only completions are redirected here",
        "redirected on the other side, at the common port, or at an end: not where it turns",
    }
    assert wanted <= set(seen), seen

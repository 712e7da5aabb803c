"""Network interfaces of a device: link state, what is stacked on them, and the default route.

Sources: Linux ``net/core/net-sysfs.c`` (``operstate``, ``flags``), ``net/core/dev.c``
(``upper_NAME`` and ``master`` links), ``net/ipv4/fib_trie.c`` (``/proc/net/route``),
``net/ipv6/route.c`` (``/proc/net/ipv6_route``).
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from vfiokit.host.block import names, optional_text
from vfiokit.host.tree import Tree, resolve

IFF_UP = 1
"""``include/uapi/linux/if.h``: the interface is administratively up."""


class Interface(NamedTuple):
    """One network interface of a device."""

    name: str
    state: str
    """``operstate`` (RFC 2863), ``""`` where not recorded."""
    up: bool | None
    """Administratively up; ``None`` where not recorded."""
    uppers: tuple[str, ...]
    """Interfaces stacked on it (bond, bridge, VLAN, …), nearest first."""
    default_route: str | None
    """The interface that carries the default route and depends on this one; ``""`` for none,
    ``None`` where the tree cannot tell."""
    address: str
    """Hardware address."""


def default_route_interfaces(tree: Tree) -> frozenset[str] | None:
    """Interfaces that carry an IPv4 or IPv6 default route; ``None`` when neither is readable."""
    ipv4 = optional_text(tree, "/proc/net/route")
    ipv6 = optional_text(tree, "/proc/net/ipv6_route")
    if ipv4 is None and ipv6 is None:
        return None
    found = set()
    for line in (ipv4 or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000":
            found.add(fields[0])
    for line in (ipv6 or "").splitlines():
        fields = line.split()
        if len(fields) >= 10 and fields[0] == "0" * 32 and fields[1] == "00":
            found.add(fields[9])
    # The kernel's own "unreachable" default of IPv6 sits on lo.
    return frozenset(found - {"lo"})


def read_interface(tree: Tree, path: str, routes: frozenset[str] | None) -> Interface:
    """Read the interface whose folder is ``path``."""
    name = posixpath.basename(path)
    uppers = _uppers(tree, path)
    flags = optional_text(tree, f"{path}/flags")
    carrying = None
    if routes is not None:
        carrying = next((each for each in (name, *uppers) if each in routes), "")
    return Interface(
        name,
        optional_text(tree, f"{path}/operstate") or "",
        bool(int(flags, 16) & IFF_UP) if flags else None,
        uppers,
        carrying,
        optional_text(tree, f"{path}/address") or "",
    )


def _uppers(tree: Tree, path: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    queue = [path]
    while queue:
        base = queue.pop(0)
        for entry in names(tree, base):
            if not (entry.startswith("upper_") or entry == "master"):
                continue
            target = resolve(tree, f"{base}/{entry}")
            upper = posixpath.basename(target)
            if upper not in found and target != f"{base}/{entry}":
                found[upper] = None
                queue.append(target)
    return tuple(found)

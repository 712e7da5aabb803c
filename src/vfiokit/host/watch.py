"""Following a host: uevents where its kernel sends them, and a look at sysfs for all the rest.

Bandwidth changes, error counters, power states and ``sriov_numvfs`` have no uevent. The two must
not report one thing twice: a uevent changes the remembered state, and a look reports only what
differs from it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from vfiokit.host.observation import (
    Event,
    HostState,
    appeared,
    differences,
    driver_changes,
    observe,
    observe_function,
)
from vfiokit.host.tree import Tree, read_text
from vfiokit.host.uevent import Received, Uevent, UeventSource
from vfiokit.pci.address import Bdf

_TRIES = 3
_WHOLE_SYSTEM = ["0", "0", "4294967295"]
"""``/proc/self/uid_map`` (user_namespaces(7)) of the first user namespace."""
_NODE_SUBSYSTEMS = frozenset({"vfio", "vfio-dev"})
_RECOVERY = {
    "BEGIN_RECOVERY": "an error is being recovered from",
    "SUCCESSFUL_RECOVERY": "recovered from an error",
    "FAILED_RECOVERY": "could not be recovered from an error",
}


def why_silent(tree: Tree) -> str:
    """Why no uevent reaches this process although the socket opens; empty when they do.

    The kernel sends those of devices only to network namespaces of the first user namespace.
    """
    try:
        mapped = read_text(tree, "/proc/self/uid_map").split()
    except OSError:
        return ""
    return "" if mapped == _WHOLE_SYSTEM else "no uevents reach this user namespace"


class Watcher:
    """A host as it was last seen, and what happened since.

    ``chosen`` are the functions to follow, ``None`` for all; they may come and go.
    """

    def __init__(
        self, tree: Tree, source: UeventSource, chosen: Collection[Bdf] | None = None
    ) -> None:
        self._tree = tree
        self._source = source
        self._chosen = None if chosen is None else frozenset(chosen)
        self.state: HostState = observe(tree, self._chosen)
        """What is known now."""

    def wait(self, timeout_s: float) -> list[Event]:
        """Events that the kernel tells of within ``timeout_s`` seconds; returns at the first."""
        return self._take(self._source.wait(timeout_s))

    def look(self) -> list[Event]:
        """Look at the host again, and report what no uevent told."""
        events: list[Event] = []
        after = observe(self._tree, self._chosen)
        for _ in range(_TRIES):
            # What was told meanwhile is in the look already, and would come twice.
            told = self._source.wait(0)
            if not told.uevents and not told.lost:
                break
            events += self._events(told)
            after = observe(self._tree, self._chosen)
        events += differences(self.state, after)
        self.state = after
        return events

    def follow(self, interval_s: float, deadline: float | None = None) -> Iterator[list[Event]]:
        """Wait and look, for ever or until ``deadline`` (``time.monotonic``); may yield ``[]``."""
        look_at = time.monotonic() + interval_s
        while True:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                yield self.look()
                return
            until = look_at if deadline is None else min(look_at, deadline)
            yield self.wait(max(until - now, 0.0))
            if time.monotonic() >= look_at:
                yield self.look()
                look_at = time.monotonic() + interval_s

    def _take(self, received: Received) -> list[Event]:
        events = self._events(received)
        return events + self.look() if received.lost else events

    def _events(self, received: Received) -> list[Event]:
        events = [event for uevent in received.uevents for event in self._told(uevent)]
        if received.lost:
            text = "more uevents came than could be taken; looking at everything again"
            events.append(Event("lost", "host", text, source="uevent"))
        return events

    def _told(self, uevent: Uevent) -> Iterator[Event]:
        """What a uevent says that is not known yet."""
        bdf = uevent.function
        if bdf is not None and (self._chosen is None or bdf in self._chosen):
            yield from self._told_of_function(uevent, bdf)
        elif uevent.subsystem in _NODE_SUBSYSTEMS and uevent.node is not None:
            yield from self._told_of_node(uevent, uevent.node)

    def _told_of_function(self, uevent: Uevent, bdf: Bdf) -> Iterator[Event]:
        functions = self.state.functions
        known = functions.get(bdf)
        if uevent.action == "remove":
            if functions.pop(bdf, None) is not None:
                yield Event("removed", str(bdf), "is gone", source="uevent")
        elif known is None:
            found = observe_function(self._tree, bdf)
            if found is None:
                return  # gone again: nothing to tell
            # Its driver, if it has one by now, is told of by the next message.
            driver = uevent.properties.get("DRIVER") if uevent.action == "bind" else None
            functions[bdf] = found._replace(driver=driver)
            yield appeared(bdf, functions[bdf], "uevent")
        elif uevent.action in ("bind", "unbind"):
            driver = uevent.properties.get("DRIVER") if uevent.action == "bind" else None
            if driver != known.driver:
                functions[bdf] = known._replace(driver=driver)
                yield from driver_changes(str(bdf), known.driver, driver, "uevent")
        elif "ERROR_EVENT" in uevent.properties:
            what = uevent.properties["ERROR_EVENT"]
            yield Event("recovery", str(bdf), _RECOVERY.get(what, what), now=what, source="uevent")
        elif uevent.action != "add":
            yield Event("changed", str(bdf), uevent.action, source="uevent")

    def _told_of_node(self, uevent: Uevent, node: str) -> Iterator[Event]:
        if self._chosen is not None and not self._concerns(uevent, node):
            return
        nodes = self.state.nodes
        if uevent.action == "add" and node not in nodes:
            self.state = self.state._replace(nodes=nodes | {node})
            yield Event("node-added", node, "can be opened", source="uevent")
        elif uevent.action == "remove" and node in nodes:
            self.state = self.state._replace(nodes=nodes - {node})
            yield Event("node-removed", node, "is gone", source="uevent")

    def _concerns(self, uevent: Uevent, node: str) -> bool:
        """Whether a node is one of the chosen functions', or was a moment ago."""
        groups = {state.group for state in self.state.functions.values()}
        above = uevent.devpath.split("/")
        return (
            node in self.state.nodes
            or node.rpartition("/")[2].removeprefix("noiommu-") in groups
            or any(str(bdf) in above for bdf in self._chosen or ())
        )

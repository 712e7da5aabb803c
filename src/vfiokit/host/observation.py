"""What of a host changes while one watches: one look at it, and what is different from the last.

Sources: Linux ``Documentation/ABI/testing/sysfs-bus-pci`` and ``…-devices-aer_stats``. Nothing
that is read here wakes a device: link registers of a function without power are not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from vfiokit.errors import AddressError
from vfiokit.host.sysfs import DEVICES
from vfiokit.host.tree import Tree, read_text
from vfiokit.pci.address import Bdf

_NODES = "/dev/vfio"
_ASLEEP = frozenset({"D3cold"})
_ERRORS = {
    "aer_dev_correctable": "correctable",
    "aer_dev_nonfatal": "nonfatal",
    "aer_dev_fatal": "fatal",
}
_ROOT_ERRORS = {
    "aer_rootport_total_err_cor": "root port correctable",
    "aer_rootport_total_err_nonfatal": "root port nonfatal",
    "aer_rootport_total_err_fatal": "root port fatal",
}
_SPEED = re.compile(r"[\d.]+")


class Event(NamedTuple):
    """One thing that happened."""

    kind: str
    """``appeared``, ``removed``, ``bound``, ``unbound``, ``group``, ``link``, ``aer``,
    ``recovery``, ``sriov``, ``power``, ``node-added``, ``node-removed``, ``changed``, or, of the
    watch itself, ``lost``."""
    subject: str
    """An address, a device node, or ``host``."""
    text: str
    """In words, without the subject."""
    was: str = ""
    now: str = ""
    source: str = "sysfs"
    """``uevent``: the kernel said so; ``sysfs``: found by looking again."""


class FunctionState(NamedTuple):
    """The facts of one function that change; ``None`` where there is no such file."""

    driver: str | None = None
    group: str | None = None
    power_state: str | None = None
    link: str | None = None
    """``8.0 GT/s PCIe x4``."""
    virtual_functions: int | None = None
    errors: Mapping[str, int] = {}
    """AER counters that are not 0, by ``severity name``."""


class HostState(NamedTuple):
    """One look at a host."""

    functions: dict[Bdf, FunctionState]
    nodes: frozenset[str]
    """VFIO device nodes."""


def observe(tree: Tree, chosen: Collection[Bdf] | None = None) -> HostState:
    """Look at the host, or at ``chosen`` functions of it. What vanishes meanwhile is left out."""
    functions: dict[Bdf, FunctionState] = {}
    for name in _names(tree, DEVICES):
        try:
            bdf = Bdf.parse(name)
        except AddressError:
            continue
        if chosen is not None and bdf not in chosen:
            continue
        state = observe_function(tree, bdf)
        if state is not None:
            functions[bdf] = state
    return HostState(functions, frozenset(_nodes(tree, functions, chosen is not None)))


def observe_function(tree: Tree, bdf: Bdf) -> FunctionState | None:
    """The facts of one function; ``None`` when it is gone."""
    folder = f"{DEVICES}/{bdf}"
    # Most functions have few of the files; asking what there is costs less than asking for each.
    there = frozenset(_names(tree, folder))
    power = _text(tree, f"{folder}/power_state") if "power_state" in there else None
    asleep = power in _ASLEEP or "current_link_speed" not in there
    state = FunctionState(
        _target(tree, f"{folder}/driver") if "driver" in there else None,
        _target(tree, f"{folder}/iommu_group") if "iommu_group" in there else None,
        power,
        None if asleep else _link(tree, folder),
        _number(tree, f"{folder}/sriov_numvfs") if "sriov_numvfs" in there else None,
        dict(_error_counters(tree, folder, there)),
    )
    # A function that went away between two reads would look as if it lost its driver.
    return state if tree.exists(folder) else None


def _nodes(tree: Tree, functions: Mapping[Bdf, FunctionState], only_theirs: bool) -> Iterator[str]:
    groups = {state.group for state in functions.values()}
    for name in _names(tree, _NODES):
        if name != "devices" and (not only_theirs or name.removeprefix("noiommu-") in groups):
            yield f"{_NODES}/{name}"
    theirs = {name for bdf in functions for name in _names(tree, f"{DEVICES}/{bdf}/vfio-dev")}
    for name in _names(tree, f"{_NODES}/devices"):
        if not only_theirs or name in theirs:
            yield f"{_NODES}/devices/{name}"


def _link(tree: Tree, folder: str) -> str | None:
    speed = _text(tree, f"{folder}/current_link_speed")
    width = _text(tree, f"{folder}/current_link_width")
    if not speed or speed.startswith("Unknown") or width in (None, "0", "255"):
        return None
    return f"{speed} x{width}"


def _error_counters(tree: Tree, folder: str, there: frozenset[str]) -> Iterator[tuple[str, int]]:
    for file, severity in _ERRORS.items():
        if file not in there:
            continue
        for line in (_text(tree, f"{folder}/{file}") or "").splitlines():
            name, _, count = line.strip().rpartition(" ")
            if count.isdecimal() and int(count) and name and not name.startswith("TOTAL_"):
                yield f"{severity} {name}", int(count)
    for file, severity in _ROOT_ERRORS.items():
        total = _number(tree, f"{folder}/{file}") if file in there else None
        if total:
            yield severity, total


def differences(before: HostState, after: HostState) -> Iterator[Event]:
    """What changed between two looks, functions in address order, then device nodes."""
    for bdf in sorted(before.functions.keys() | after.functions.keys()):
        was, now = before.functions.get(bdf), after.functions.get(bdf)
        if now is None:
            yield Event("removed", str(bdf), "is gone")
        elif was is None:
            yield appeared(bdf, now)
        elif was != now:
            yield from _changes(str(bdf), was, now)
    for node in sorted(after.nodes - before.nodes):
        yield Event("node-added", node, "can be opened")
    for node in sorted(before.nodes - after.nodes):
        yield Event("node-removed", node, "is gone")


def appeared(bdf: Bdf, now: FunctionState, source: str = "sysfs") -> Event:
    """The event of a function that is new."""
    facts = [
        f"driver {now.driver}" if now.driver else "no driver",
        f"IOMMU group {now.group}" if now.group else "no IOMMU group",
        *([now.link] if now.link else []),
    ]
    return Event("appeared", str(bdf), f"is there ({', '.join(facts)})", source=source)


def _changes(subject: str, was: FunctionState, now: FunctionState) -> Iterator[Event]:
    if was.driver != now.driver:
        yield from driver_changes(subject, was.driver, now.driver)
    if was.group != now.group:
        yield Event(
            "group",
            subject,
            f"IOMMU group {was.group or 'none'} → {now.group or 'none'}",
            was.group or "",
            now.group or "",
        )
    if was.power_state != now.power_state:
        yield Event(
            "power",
            subject,
            f"power {was.power_state or 'unknown'} → {now.power_state or 'unknown'}",
            was.power_state or "",
            now.power_state or "",
        )
    # A function that is asleep has no link to speak of; that it woke up is told by its power.
    if was.link != now.link and not {was.power_state, now.power_state} & _ASLEEP:
        yield _link_change(subject, was.link, now.link)
    if was.virtual_functions != now.virtual_functions:
        yield Event(
            "sriov",
            subject,
            f"virtual functions {was.virtual_functions or 0} → {now.virtual_functions or 0}",
            str(was.virtual_functions or 0),
            str(now.virtual_functions or 0),
        )
    yield from _error_changes(subject, was.errors, now.errors)


def driver_changes(
    subject: str, was: str | None, now: str | None, source: str = "sysfs"
) -> Iterator[Event]:
    """Unbound from one driver, bound to another, or both."""
    if was is not None:
        yield Event("unbound", subject, f"unbound from {was}", was, now or "", source)
    if now is not None:
        yield Event("bound", subject, f"bound to {now}", was or "", now, source)


def _link_change(subject: str, was: str | None, now: str | None) -> Event:
    if was is None or now is None:
        text = f"link {'up: ' + now if now else 'down'}"
    else:
        slower = _bandwidth(now) < _bandwidth(was)
        text = f"link {was} → {now}{' (slower)' if slower else ''}"
    return Event("link", subject, text, was or "", now or "")


def _bandwidth(link: str) -> float:
    """GT/s over all lanes."""
    speed, _, width = link.rpartition(" x")
    match = _SPEED.match(speed)
    return float(match[0]) * int(width) if match and width.isdecimal() else 0.0


def _error_changes(subject: str, was: Mapping[str, int], now: Mapping[str, int]) -> Iterator[Event]:
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name, 0), now.get(name, 0)
        if after > before:
            text = f"{name} +{after - before} ({after} in all)"
        elif after < before:
            text = f"{name} starts again: {before} → {after}"
        else:
            continue
        yield Event("aer", subject, text, str(before), str(after))


def _text(tree: Tree, path: str) -> str | None:
    try:
        return read_text(tree, path).strip()
    except OSError:
        return None


def _number(tree: Tree, path: str) -> int | None:
    text = _text(tree, path)
    return int(text) if text and text.isdecimal() else None


def _target(tree: Tree, path: str) -> str | None:
    try:
        return tree.readlink(path).rpartition("/")[2] or None
    except OSError:
        return None


def _names(tree: Tree, path: str) -> list[str]:
    try:
        return tree.list(path)
    except OSError:
        return []

"""What differs between two hosts, or between one host then and now.

Pure values: two topologies and a few facts about each go in, changes come out. What one description
cannot know is not a change; it is listed as not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.host.match import UNKNOWN_ID, Matching, match, serial_of
from vfiokit.host.register_change import EXTENDED, HEADER, RegisterChange, register_changes
from vfiokit.pci.address import Bdf
from vfiokit.pci.bar import Bar, bars
from vfiokit.pci.capability import sriov
from vfiokit.pci.capability.express import LINK_STATUS, SPEEDS
from vfiokit.pci.topology import Function, Recorded, Topology

_ACS, _AER, _SRIOV, _SERIAL, _EXPRESS = 0x0D, 0x01, 0x10, 0x03, 0x10
_AER_SETTINGS = frozenset(
    {"uncorrectable_mask", "uncorrectable_severity", "correctable_mask", "root_error_command"}
)


_INVERSE = {"gone": "new", "new": "gone"}


class Area(IntEnum):
    """What a change is about, most important first."""

    DEVICES = 0
    ACS = 1
    LINKS = 2
    DRIVERS = 3
    SRIOV = 4
    RESET = 5
    BARS = 6
    NUMA = 7
    AER = 8
    HOST = 9
    OTHER = 10


class Change(NamedTuple):
    """One thing that differs."""

    area: Area
    address: Bdf | None
    """In the first host; ``None`` for what is only in the second, or about the host."""
    new_address: Bdf | None
    """In the second."""
    what: str
    before: str | None
    after: str | None
    lost: tuple[str, ...] = ()
    """Names of flags that are off now."""
    gained: tuple[str, ...] = ()
    """Names of flags that are on now."""

    def swapped(self) -> Change:
        """The same change the other way round."""
        return Change(
            self.area,
            self.new_address,
            self.address,
            _INVERSE.get(self.what, self.what),
            self.after,
            self.before,
            self.gained,
            self.lost,
        )

    def text(self) -> str:
        """``driver nvme → vfio-pci``, without the address."""
        if self.area is Area.DEVICES and None in (self.before, self.after):
            return self.before or self.after or ""
        if self.area is Area.DEVICES and self.what == "moved":
            return f"moved to {self.after}"
        words = f"{self.what} {self.before or 'none'} → {self.after or 'none'}"
        flags = [f"{name} off" for name in self.lost] + [f"{name} on" for name in self.gained]
        return f"{words} ({', '.join(flags)})" if flags else words


class Missing(NamedTuple):
    """A kind of fact that only one of the two has."""

    what: str
    in_before: bool


class HostDifference(NamedTuple):
    """Everything that differs, and what could not be compared."""

    matching: Matching
    changes: tuple[Change, ...]
    """By area, then by address."""
    missing: tuple[Missing, ...]


def difference(
    before: Topology,
    after: Topology,
    facts_before: Mapping[str, str] | None = None,
    facts_after: Mapping[str, str] | None = None,
) -> HostDifference:
    """Compare two hosts; never raises for odd bytes.

    The facts are words about the host as a whole by what they are (``kernel``); a key that
    only one side has is not comparable.
    """
    matching = match(before, after)
    changes = list(_device_changes(before, after, matching))
    missing: set[Missing] = set()
    recorded = _Recorded(before, after)
    missing.update(recorded.missing)
    for one, other in matching.pairs:
        changes += recorded.changes(one, other)
        changes += _bar_changes(one, other, missing)
        changes += _vf_changes(before, after, one, other)
        changes += _register_changes(one, other, missing)
    facts_before, facts_after = facts_before or {}, facts_after or {}
    for name in facts_before.keys() | facts_after.keys():
        mine, theirs = facts_before.get(name), facts_after.get(name)
        if mine is None or theirs is None:
            missing.add(Missing(name, theirs is None))
        elif mine != theirs:
            changes.append(_fact_change(name, mine, theirs))
    return HostDifference(matching, tuple(sorted(changes, key=_order)), tuple(sorted(missing)))


def _order(change: Change) -> tuple[object, ...]:
    place = change.address or change.new_address or Bdf(0, 0, 0, 0)
    return (change.area, place, change.what, change.before or "", change.after or "")


def _fact_change(name: str, before: str, after: str) -> Change:
    mine, theirs = before.split(), after.split()
    lost = tuple(word for word in mine if word not in theirs)
    gained = tuple(word for word in theirs if word not in mine)
    return Change(Area.HOST, None, None, name, before, after, lost, gained)


def _device_changes(before: Topology, after: Topology, found: Matching) -> Iterator[Change]:
    for function in found.gone:
        if not _goes_with_its_pf(before, function):
            yield Change(
                Area.DEVICES, function.bdf, None, "gone", _described(before, function), None
            )
    for function in found.new:
        if not _goes_with_its_pf(after, function):
            yield Change(Area.DEVICES, None, function.bdf, "new", None, _described(after, function))
    for one, other in found.pairs:
        if one.bdf != other.bdf:
            yield Change(Area.DEVICES, one.bdf, other.bdf, "moved", str(one.bdf), str(other.bdf))
        serials = serial_of(one), serial_of(other)
        if None not in serials and serials[0] != serials[1]:
            yield Change(Area.DEVICES, one.bdf, other.bdf, "serial number", *serials)


def _goes_with_its_pf(topology: Topology, function: Function) -> bool:
    return function.physfn is not None and function.physfn in topology


def _described(topology: Topology, function: Function) -> str:
    identity = function.identity
    ids = f"{identity.vendor_id:04x}:{identity.device_id:04x}"
    if identity.vendor_id == UNKNOWN_ID:
        ids = "ids unknown,"
    text = f"{ids} class {identity.class_code:06x}"
    count = len(topology.virtual_functions(function))
    return f"{text} with {count} virtual functions" if count else text


_RECORDED: tuple[tuple[Area, str, Callable[[Recorded], object]], ...] = (
    (Area.DRIVERS, "driver", lambda recorded: recorded.driver),
    (Area.RESET, "reset methods", lambda recorded: _words(recorded.reset_methods)),
    (Area.NUMA, "NUMA node", lambda recorded: recorded.numa_node),
    (Area.OTHER, "power state", lambda recorded: recorded.power_state),
)


_OVERRIDE = (Area.DRIVERS, "driver override", lambda recorded: recorded.driver_override)


def _plural(name: str) -> str:
    return name if name.endswith("s") else f"{name}s"


def _words(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else " ".join(names)


class _Recorded:
    """Facts that the hosts' own kernels recorded; a kind that one side lacks is left out."""

    def __init__(self, before: Topology, after: Topology) -> None:
        self._kinds: list[tuple[Area, str, Callable[[Recorded], object]]] = []
        self.missing: list[Missing] = []
        for kind in _RECORDED:
            sides = [
                any(kind[2](function.recorded) is not None for function in topology)
                for topology in (before, after)
            ]
            if all(sides):
                self._kinds.append(kind)
            elif any(sides):
                self.missing.append(Missing(_plural(kind[1]), sides[0]))
        # No function need have an override; a source that tells drivers tells those as well.
        if any(kind[1] == "driver" for kind in self._kinds):
            self._kinds.append(_OVERRIDE)

    def changes(self, one: Function, other: Function) -> Iterator[Change]:
        """What the two kernels say differently about one function."""
        for area, what, read in self._kinds:
            mine, theirs = read(one.recorded), read(other.recorded)
            if mine != theirs:
                yield Change(area, one.bdf, other.bdf, what, _text(mine), _text(theirs))
        if _link(one) is None or _link(other) is None:
            yield from _recorded_link(one, other)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _recorded_link(one: Function, other: Function) -> Iterator[Change]:
    """Where registers do not tell the link on both sides."""
    mine, theirs = (
        f"{each.recorded.current_link_speed} x{each.recorded.current_link_width}"
        if each.recorded.current_link_speed and each.recorded.current_link_width
        else None
        for each in (one, other)
    )
    if mine is not None and theirs is not None and mine != theirs:
        yield Change(Area.LINKS, one.bdf, other.bdf, "link", mine, theirs)


def _link(function: Function) -> str | None:
    """``8 GT/s x4`` from Link Status; ``None`` without that register."""
    express = function.express
    if express is None or LINK_STATUS not in express.registers():
        return None
    try:
        speed = express.field(LINK_STATUS, "speed")
        width = express.field(LINK_STATUS, "width")
    except ConfigRangeError:
        return None
    return f"{SPEEDS.get(speed, '?')} x{width}" if width else "down"


def _bar_changes(one: Function, other: Function, missing: set[Missing]) -> Iterator[Change]:
    sized = bool(one.resources), bool(other.resources)
    if all(sized):
        mine, theirs = bars(one), bars(other)
    else:
        if any(sized):
            missing.add(Missing("BAR sizes", sized[0]))
        if one.is_virtual or other.is_virtual or not (_has_bars(one) and _has_bars(other)):
            return
        mine, theirs = bars(_bare(one)), bars(_bare(other))
    before = {bar.index: bar for bar in mine}
    after = {bar.index: bar for bar in theirs}
    for index in sorted(before.keys() | after.keys()):
        texts = _bar_text(before.get(index)), _bar_text(after.get(index))
        if texts[0] != texts[1]:
            yield Change(Area.BARS, one.bdf, other.bdf, f"BAR {index}", *texts)


def _has_bars(function: Function) -> bool:
    return function.config.has(0x10, 0x18 if function.header_type == 0 else 8)


def _bare(function: Function) -> Function:
    return Function(function.bdf, function.config, function.identity)


def _bar_text(bar: Bar | None) -> str | None:
    if bar is None:
        return None
    size = "" if bar.size is None else f" size {bar.size:#x}"
    return f"{bar.kind} at {bar.address:#x}{size}"


def _vf_changes(
    before: Topology, after: Topology, one: Function, other: Function
) -> Iterator[Change]:
    counts = _vf_count(before, one), _vf_count(after, other)
    if None not in counts and counts[0] != counts[1]:
        texts = _text(counts[0]), _text(counts[1])
        yield Change(Area.SRIOV, one.bdf, other.bdf, "virtual functions", *texts)


def _vf_count(topology: Topology, function: Function) -> int | None:
    capability = function.capabilities.find_extended(_SRIOV)
    if capability is None or function.is_virtual:
        return None
    try:
        enabled = capability.field(sriov.CONTROL, "vf_enable")
        return capability.value(sriov.NUM_VFS) if enabled else 0
    except ConfigRangeError:
        return len(topology.virtual_functions(function))


def _register_changes(one: Function, other: Function, missing: set[Missing]) -> Iterator[Change]:
    lengths = len(one.config), len(other.config)
    for start, what in ((0x40, "registers from 0x40"), (0x100, "registers from 0x100")):
        # 256 bytes are all that conventional PCI has.
        express = one.express is not None or other.express is not None
        if (lengths[0] <= start) != (lengths[1] <= start) and express:
            missing.add(Missing(what, lengths[0] > start))
    changed, lists = register_changes(one, other)
    for change in changed:
        found = _of_register(one, other, change)
        if found is not None:
            yield found
    for each in lists:
        sides = ("present", None) if each.in_before else (None, "present")
        yield Change(Area.OTHER, one.bdf, other.bdf, each.capability, *sides)


def _of_register(one: Function, other: Function, change: RegisterChange) -> Change | None:
    number = change.capability_id
    area, what = Area.OTHER, f"{change.capability} {change.register.replace('_', ' ')}"
    if number is None and change.register.startswith("bar") and change.register[3:].isdigit():
        return None  # told with the BARs
    if number == EXTENDED | _SERIAL:
        return None  # told with the devices
    if number == _EXPRESS and change.register == LINK_STATUS.name:
        links = _link(one), _link(other)
        if links[0] != links[1]:
            return Change(Area.LINKS, one.bdf, other.bdf, "link", *links)
    if number == EXTENDED | _ACS:
        area, what = Area.ACS, f"ACS {change.register.replace('_', ' ')}"
    elif number == EXTENDED | _AER and change.register in _AER_SETTINGS:
        area = Area.AER
    digits = 2 + 2 * change.width
    flags = [field for field in change.fields if field.is_flag]
    return Change(
        area,
        one.bdf,
        other.bdf,
        what if change.capability != HEADER else change.register.replace("_", " "),
        f"{change.before:#0{digits}x}",
        f"{change.after:#0{digits}x}",
        tuple(field.name.replace("_", " ") for field in flags if field.before),
        tuple(field.name.replace("_", " ") for field in flags if field.after),
    )

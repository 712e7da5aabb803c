"""What can be said of a function in one cell: the columns of lists, by name.

The same names are the keys of ``tree --json``, what ``--columns`` takes, and what ``--format``
replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.cli.describe import acs_text, class_text, device_text, link, name_text, speed_text
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.cli.view import View
    from vfiokit.pci.topology import Function

Value = str | int | bool | None
"""What a cell holds; ``None`` where it is not known or there is none."""


class Column(NamedTuple):
    """One fact about a function."""

    doc: str
    value: Callable[[View, Function], Value]


def _vectors(_view: View, function: Function, cap_id: int) -> int | None:
    capability = function.capabilities.find(cap_id)
    vectors = capability.decode().get("vectors") if capability is not None else None
    return vectors if isinstance(vectors, int) else None


def _id(vendor_id: int, device_id: int) -> str:
    return f"{vendor_id:04x}:{device_id:04x}"


def _subsystem(_view: View, function: Function) -> str | None:
    identity = function.identity
    if not identity.subsystem_vendor_id:
        return None
    return _id(identity.subsystem_vendor_id, identity.subsystem_device_id)


def _path(view: View, function: Function) -> str:
    from vfiokit.pci.selector import slot_path

    return slot_path(view.topology, function)


def _parent(view: View, function: Function) -> str | None:
    bridge = view.topology.upstream_bridge(function)
    return str(bridge.bdf) if bridge is not None else None


def _port(_view: View, function: Function) -> str | None:
    return function.port_type.name.lower() if function.port_type is not None else None


def _resets(_view: View, function: Function) -> str | None:
    methods = function.recorded.reset_methods
    return " ".join(methods) if methods is not None else None


COLUMNS: Mapping[str, Column] = {
    "address": Column("domain:bus:device.function", lambda _, f: str(f.bdf)),
    "kind": Column("what it is, by the name of its class", lambda _, f: class_text(f)),
    "class": Column("class code, six hex digits", lambda _, f: f"{f.identity.class_code:06x}"),
    "device": Column("names and ids", lambda v, f: device_text(v.topology, f)),
    "name": Column("vendor and device names", lambda v, f: name_text(v.topology, f) or None),
    "id": Column("vendor:device", lambda _, f: _id(f.identity.vendor_id, f.identity.device_id)),
    "subsystem": Column("subsystem vendor:device", _subsystem),
    "revision": Column("two hex digits", lambda _, f: f"{f.identity.revision:02x}"),
    "driver": Column("driver bound, as recorded", lambda _, f: f.recorded.driver),
    "group": Column("IOMMU group, as recorded", lambda _, f: f.recorded.iommu_group),
    "predicted": Column("IOMMU group, as predicted", lambda v, f: v.grouping.of(f.bdf).id),
    "uncertain": Column(
        "whether bytes that decide the group are missing", lambda v, f: v.is_uncertain(f)
    ),
    "iommu": Column("the IOMMU in front of it, as recorded", lambda v, f: v.iommu(f)),
    "numa": Column("NUMA node, as recorded", lambda _, f: f.recorded.numa_node),
    "speed": Column("link as it runs, and as it could", lambda _, f: speed_text(f)),
    "link_speed": Column("speed of the link now", lambda _, f: link(f).speed),
    "link_width": Column("lanes of the link now", lambda _, f: link(f).width),
    "max_link_speed": Column("speed that it can do", lambda _, f: link(f).max_speed),
    "max_link_width": Column("lanes that it has", lambda _, f: link(f).max_width),
    "acs": Column("ACS: VBRCUED, capital on, small off, . cannot", lambda _, f: acs_text(f)),
    "acs_capability": Column(
        "ACS bits it has", lambda _, f: int(f.acs_capability) if f.acs else None
    ),
    "acs_control": Column(
        "ACS bits that are on", lambda _, f: int(f.acs_control) if f.acs else None
    ),
    "msi": Column("MSI vectors it can use", lambda v, f: _vectors(v, f, 0x05)),
    "msix": Column("MSI-X vectors it has", lambda v, f: _vectors(v, f, 0x11)),
    "port": Column("PCI Express device or port type", _port),
    "parent": Column("the bridge above", _parent),
    "path": Column("slot path from the host bridge", _path),
    "physical_function": Column(
        "the PF of a virtual function", lambda _, f: str(f.physfn) if f.physfn else None
    ),
    "reset": Column("ways to reset it, as recorded", _resets),
    "power_state": Column("power state, as recorded", lambda _, f: f.recorded.power_state),
    "irq": Column("legacy interrupt, as recorded", lambda _, f: f.recorded.irq),
}
"""Every column, in the order in which help and errors list them."""


def chosen(text: str, known: Iterable[str] = COLUMNS) -> tuple[str, ...]:
    """The columns named in ``text``, separated by commas; :class:`UsageError` for others."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    listed = list(known)
    if not names:
        raise UsageError("no column is named", hint=f"columns: {', '.join(listed)}")
    for name in names:
        if name not in listed:
            raise UsageError(f"there is no column {name!r}", hint=f"columns: {', '.join(listed)}")
    return names


def shown(value: Value) -> str:
    """A cell's value as text: ``-`` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def row(view: View, function: Function, names: Sequence[str]) -> tuple[str, ...]:
    """The cells of one function for people: a predicted group that is not certain has a mark."""
    facts = Record(view, function)
    return tuple(cell(facts, name) for name in names)


def predicted_text(group: Value, *, uncertain: object) -> str:
    """A predicted group for people: ``7``, or ``7?`` where bytes that decide are missing."""
    return f"{group}?" if uncertain else str(group)


def cell(record: Mapping[str, Value], name: str) -> str:
    """One fact of ``record`` for people."""
    if name == "predicted":
        return predicted_text(record[name], uncertain=record["uncertain"])
    return shown(record[name])


def record(view: View, function: Function) -> dict[str, Value]:
    """Every column of one function, for JSON."""
    return {name: column.value(view, function) for name, column in COLUMNS.items()}


class Record(Mapping[str, Value]):
    """The columns of one function by name, each found when it is asked for."""

    def __init__(
        self, view: View, function: Function, more: Mapping[str, Value] | None = None
    ) -> None:
        self._view = view
        self._function = function
        self._more = more or {}
        """What a command knows besides; it goes before the columns."""

    def __getitem__(self, name: str) -> Value:
        if name in self._more:
            return self._more[name]
        return COLUMNS[name].value(self._view, self._function)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._more, **COLUMNS})

    def __len__(self) -> int:
        return len({**self._more, **COLUMNS})

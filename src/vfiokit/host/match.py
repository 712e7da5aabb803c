"""Which function of one host is which of another, or of the same host at another time.

A serial number identifies a card wherever it is (PCI Express Base Specification 6.0 §7.9.3).
Without one, the same ids at the same address are the same function, then the same ids at the same
place in the tree, then the only function with those ids on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.identity import serial_number
from vfiokit.pci.selector import slot_path
from vfiokit.pci.topology import Function, Topology

_SERIAL_NUMBER = 0x03
UNKNOWN_ID = 0xFFFF
"""Vendor or device id where a source has none."""
_NO_SERIALS = frozenset({"00-00-00-00-00-00-00-00", "ff-ff-ff-ff-ff-ff-ff-ff"})


class Matching(NamedTuple):
    """Functions of two hosts side by side."""

    pairs: tuple[tuple[Function, Function], ...]
    """In the first host's address order."""
    gone: tuple[Function, ...]
    """Only in the first."""
    new: tuple[Function, ...]
    """Only in the second."""


def match(before: Topology, after: Topology) -> Matching:
    """Pair what is the same; symmetric in its arguments."""
    left, right = dict(before.functions), dict(after.functions)
    found: list[tuple[Function, Function]] = []

    def pair(
        one: Callable[[Function], Hashable | None], other: Callable[[Function], Hashable | None]
    ) -> None:
        mine, theirs = _unique(left.values(), one), _unique(right.values(), other)
        for key in mine.keys() & theirs.keys():
            found.append((mine[key], theirs[key]))
            del left[mine[key].bdf], right[theirs[key].bdf]

    pair(_by_serial, _by_serial)
    pair(_by_address, _by_address)
    _pair_nameless(left, right, found)
    if left and right:
        pair(lambda each: _by_place(before, each), lambda each: _by_place(after, each))
        pair(_by_ids, _by_ids)
    return Matching(
        tuple(sorted(found, key=lambda each: each[0].bdf)),
        tuple(left.values()),
        tuple(right.values()),
    )


def serial_of(function: Function) -> str | None:
    """The device serial number; ``None`` where there is none or it is not known."""
    capability = function.capabilities.find_extended(_SERIAL_NUMBER)
    if capability is None:
        return None
    try:
        serial = serial_number(capability)
    except ConfigRangeError:
        return None
    return None if serial in _NO_SERIALS else serial


def _unique(
    functions: Iterable[Function], key: Callable[[Function], Hashable | None]
) -> dict[Hashable, Function]:
    """Functions by their key, those without one and those that share one left out."""
    found: dict[Hashable, Function | None] = {}
    for function in functions:
        value = key(function)
        if value is not None:
            found[value] = None if value in found else function
    return {value: function for value, function in found.items() if function is not None}


def _ids(function: Function) -> tuple[int, int] | None:
    vendor_id, device_id = function.identity[:2]
    return None if UNKNOWN_ID in (vendor_id, device_id) else (vendor_id, device_id)


def _by_serial(function: Function) -> Hashable | None:
    serial = serial_of(function)
    ids = _ids(function)
    # All functions of a card carry its serial number; their ids may be the same.
    return None if serial is None or ids is None else (serial, ids, function.bdf.devfn)


def _by_address(function: Function) -> Hashable | None:
    ids = _ids(function)
    return None if ids is None else (function.bdf, ids)


def _by_place(topology: Topology, function: Function) -> Hashable | None:
    ids = _ids(function)
    return None if ids is None else (slot_path(topology, function), ids)


def _by_ids(function: Function) -> Hashable | None:
    ids = _ids(function)
    return None if ids is None else (ids, function.bdf.function, function.is_virtual)


def _pair_nameless(
    left: dict[Bdf, Function],
    right: dict[Bdf, Function],
    found: list[tuple[Function, Function]],
) -> None:
    """What has no ids on one side is the function at the same address."""
    both = [bdf for bdf in left if bdf in right]
    nameless = [bdf for bdf in both if None in (_ids(left[bdf]), _ids(right[bdf]))]
    found.extend((left.pop(bdf), right.pop(bdf)) for bdf in nameless)

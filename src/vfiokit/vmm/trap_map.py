"""The trap map: for every guest-physical address, mapped to a device or trapped, and to whom.

Whoever owns something at an address states a :class:`Wish` for the range. Where wishes overlap the
strongest wins; among equals one that traps wins over one that maps, since a trap that is not needed
costs time and a map that is not wanted costs isolation. What remains is a list of ranges that cover
every address at most once, recomputed from the wishes alone whenever they change, so that it never
depends on the way it came about.

A processor maps whole pages: of a range that is mapped, the pages that something else shares trap
as well (:attr:`FlatRange.slot`). That is how KVM cuts its memory slots inwards
(Linux ``virt/kvm``, QEMU ``accel/kvm/kvm-all.c`` ``kvm_align_section``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from itertools import pairwise
from typing import NamedTuple, Protocol

from vfiokit.errors import UsageError

ADDRESS_BITS = 64


class Access(Enum):
    """What an access of the guest does; values are the kinds of ``info mtree -f``."""

    RAM = "ram"
    """Reaches the guest's own memory."""
    DIRECT = "ramd"
    """Reaches the device without leaving the guest."""
    TRAP = "i/o"
    """Leaves the guest, and a handler decides."""


class Strength(IntEnum):
    """How strong the usual wishes are; any other number will do between them."""

    GROWN = 0
    """The rest of a page that a small BAR was grown to."""
    REGION = 10
    """A BAR as a whole: trapped, unless somebody knows better."""
    MAPPED = 20
    """What of a BAR can be mapped."""
    DEMAND = 30
    """A policy that gives up maps, but not the registers that are emulated."""
    OVERLAY = 40
    """Registers that are emulated: MSI-X table, pending bits."""
    INSIST = 50
    """A policy that overrides even those."""
    PLATFORM = 90
    """Interrupt controllers, configuration space."""
    RAM = 100


class Handler(Protocol):
    """Who answers at a range. Offsets are bytes from where the handler begins."""

    def read(self, offset: int, width: int) -> int:
        """A load of ``width`` bytes (1, 2, 4, 8)."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """A store of ``width`` bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What one asker wants of ``[gpa, gpa + length)``."""

    gpa: int
    length: int
    """Bytes."""
    access: Access
    strength: int
    name: str
    """What the listing calls it."""
    handler: Handler | None = field(default=None, compare=False, repr=False)
    offset: int = 0
    """Where in the handler, and in what ``name`` names, the range begins."""
    counter: str = "bar"
    """What an access that traps counts as."""

    def __post_init__(self) -> None:
        if self.length <= 0 or self.gpa < 0 or self.gpa + self.length > 1 << ADDRESS_BITS:
            raise UsageError(f"{self.name}: no range of {self.length:#x} bytes at {self.gpa:#x}")

    @property
    def end(self) -> int:
        """One past the last address."""
        return self.gpa + self.length

    @property
    def rank(self) -> tuple[int, bool, int, str, int, int]:
        """Sorts wishes from weak to strong, by what they say alone."""
        return (
            self.strength,
            self.access is Access.TRAP,
            -self.gpa,
            self.name,
            self.offset,
            self.length,
        )


class FlatRange(NamedTuple):
    """Addresses that one wish won."""

    start: int
    end: int
    """One past the last address."""
    wish: Wish
    slot: tuple[int, int]
    """The whole pages of the range, ``(start, end)``; empty where ``end`` is not larger."""

    @property
    def access(self) -> Access:
        """What the wish wants; see :attr:`slot` for what of it a processor can map."""
        return self.wish.access

    @property
    def name(self) -> str:
        """What the listing calls it."""
        return self.wish.name

    @property
    def offset(self) -> int:
        """Where in the handler the range begins."""
        return self.wish.offset + self.start - self.wish.gpa

    @property
    def whole(self) -> bool:
        """Whether all of the range can be mapped: it is made of whole pages."""
        return self.slot == (self.start, self.end)


class TrapMap:
    """Who answers at which address; ``page_size`` is the granularity of maps in bytes."""

    def __init__(self, page_size: int = 4096) -> None:
        if page_size <= 0 or page_size & page_size - 1:
            raise UsageError(f"{page_size} bytes is no page size: it must be a power of two")
        self.page_size = page_size
        self.generation = 0
        """Grows with every change of the wishes."""
        self._wishes: dict[Hashable, tuple[Wish, ...]] = {}
        self._flat: tuple[FlatRange, ...] | None = None
        self._starts: list[int] = []

    # -- wishes -------------------------------------------------------------------------------

    def ask(self, asker: Hashable, wishes: Iterable[Wish]) -> None:
        """Replace all that ``asker`` wanted before by ``wishes``; none at all forgets it."""
        wanted = tuple(wishes)
        if wanted == self._wishes.get(asker, ()) and not _handlers_differ(
            wanted, self._wishes.get(asker, ())
        ):
            return
        self._wishes.pop(asker, None)
        if wanted:
            self._wishes[asker] = wanted
        self._flat = None
        self.generation += 1

    @property
    def wishes(self) -> dict[Hashable, tuple[Wish, ...]]:
        """Every wish by asker; a copy."""
        return dict(self._wishes)

    # -- the map ------------------------------------------------------------------------------

    @property
    def flat(self) -> tuple[FlatRange, ...]:
        """The ranges, ascending and disjoint; addresses in none of them belong to nobody."""
        if self._flat is None:
            every = [wish for wishes in self._wishes.values() for wish in wishes]
            self._flat = tuple(flatten(every, self.page_size))
            self._starts = [each.start for each in self._flat]
        return self._flat

    def find(self, gpa: int) -> FlatRange | None:
        """The range that ``gpa`` lies in."""
        flat = self.flat
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        found = flat[index]
        return found if gpa < found.end else None

    def maps(self, gpa: int, width: int = 1) -> bool:
        """Whether an access of ``width`` bytes reaches a device without leaving the guest."""
        found = self.find(gpa)
        return (
            found is not None
            and found.access is Access.DIRECT
            and found.slot[0] <= gpa
            and gpa + width <= found.slot[1]
        )


def flatten(wishes: Iterable[Wish], page_size: int = 4096) -> list[FlatRange]:
    """The ranges that ``wishes`` leave, strongest first, ascending by address."""
    ranked = sorted(wishes, key=lambda wish: wish.rank)
    edges = sorted({edge for wish in ranked for edge in (wish.gpa, wish.end)})
    found: list[FlatRange] = []
    for start, end in pairwise(edges):
        # The last of the ranking that covers the piece; wishes never begin inside a piece.
        best = next((w for w in reversed(ranked) if w.gpa <= start and end <= w.end), None)
        if best is None:
            continue
        if found and found[-1].end == start and found[-1].wish is best:
            start = found.pop().start
        found.append(FlatRange(start, end, best, (start, end)))
    return [each._replace(slot=_whole_pages(each.start, each.end, page_size)) for each in found]


def _whole_pages(start: int, end: int, page_size: int) -> tuple[int, int]:
    first = -(-start // page_size) * page_size
    return first, max(first, end // page_size * page_size)


def _handlers_differ(one: tuple[Wish, ...], other: tuple[Wish, ...]) -> bool:
    return any(a.handler is not b.handler for a, b in zip(one, other, strict=True))

"""What the host and the machine must offer before a planned guest runs.

Sources: Linux ``Documentation/driver-api/vfio.rst`` (groups, locked memory), QEMU
``hw/i386/pc_q35.c`` (memory below 4 GiB), ``hw/pci-host/q35.c`` (64-bit window).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vfiokit.assign.survey import GroupMap
from vfiokit.assign.vmconfig.settings import GIB, MIB, Settings, size_text
from vfiokit.p2p.guest import GuestPlan, Variant
from vfiokit.p2p.guest_verdict import Pair, Route
from vfiokit.pci.address import Bdf
from vfiokit.pci.bar import Bar, bars
from vfiokit.pci.topology import Function, Topology

DEFAULT_HOLE64 = 32 * GIB
"""``pci-hole64-size`` of q35 where nothing else is said."""
_HOLE32 = 512 * MIB
"""Of the window below 4 GiB, what is safely left for 32-bit BARs."""
_LOW_LIMIT, _LOW_MEMORY = 0xB000_0000, 0x8000_0000
_VGA = 0x030000


class Together(NamedTuple):
    """Functions that cannot be assigned without one another."""

    group: int
    assigned: tuple[Bdf, ...]
    others: tuple[Bdf, ...]
    """Members that the plan does not assign."""

    def text(self) -> str:
        """A sentence without its full stop."""
        listed = ", ".join(map(str, self.others))
        return (
            f"IOMMU group {self.group} of {', '.join(map(str, self.assigned))} also holds "
            f"{listed}: assign them too, or leave them without a driver of the host"
        )


class Overlap(NamedTuple):
    """A window of the host at an address that is memory in the guest."""

    port: Bdf
    """Below it requests are not redirected."""
    function: Bdf
    bar: int
    start: int
    """Guest-physical and host bus address, in bytes."""
    size: int
    """Bytes of the overlap."""

    def text(self) -> str:
        """A sentence without its full stop."""
        return (
            f"guest memory at {self.start:#x} ({size_text(self.size)}) has the address of BAR "
            f"{self.bar} of {self.function} on the host: below {self.port} DMA to that memory "
            "lands in the BAR (data corruption)"
        )


def travel_together(host: Topology, plan: GuestPlan) -> tuple[Together, ...]:
    """Groups that the plan assigns in part; bridges of a group stay with the host."""
    groups = GroupMap(host)
    wanted = list(plan.functions.values())
    found: dict[int, Together] = {}
    for bdf in wanted:
        group = groups.of(host[bdf])
        if group is None or group.id in found:
            continue
        others = tuple(
            member
            for member in group.members
            if member not in wanted and not host[member].is_bridge
        )
        if others:
            assigned = tuple(member for member in group.members if member in wanted)
            found[group.id] = Together(group.id, assigned, others)
    return tuple(found.values())


def hole64(functions: Sequence[Function]) -> int:
    """Bytes of the 64-bit window that the BARs need; 0 when QEMU's own size is enough.

    Each function is taken to be below a port of its own, whose window is aligned to its largest
    BAR; a quarter is added for gaps, and the result is a power of two.
    """
    needed = 0
    for function in functions:
        sizes = [bar.size for bar in bars(function) if _is_wide(bar) and bar.size]
        largest = max(sizes, default=0)
        needed += -(-sum(sizes) // largest) * largest if largest else 0
    needed += needed // 4
    return 0 if needed <= DEFAULT_HOLE64 else 1 << (needed - 1).bit_length()


def _is_wide(bar: Bar) -> bool:
    return bar.kind == "memory64"


def memory_ranges(memory: int) -> tuple[tuple[int, int], ...]:
    """Guest-physical ranges of ``memory`` bytes in QEMU's q35: start and end, exclusive."""
    low = _LOW_MEMORY if memory >= _LOW_LIMIT else memory
    above = memory - low
    return ((0, low), (4 * GIB, 4 * GIB + above)) if above else ((0, low),)


def overlaps(host: Topology, pairs: Sequence[Pair], memory: int) -> tuple[Overlap, ...]:
    """Where DMA to the guest's memory would go to a BAR of the host instead.

    Looks below bridges that look at addresses before the IOMMU does (:attr:`Route.UNTRANSLATED`).
    """
    found: dict[tuple[Bdf, Bdf, int], Overlap] = {}
    ports = {
        pair.host.common
        for pair in pairs
        if pair.route is Route.UNTRANSLATED and pair.host.common is not None
    }
    for port in sorted(ports):
        for function in host:
            if function.is_bridge or host[port] not in host.path_to_root(function):
                continue
            for bar in bars(function):
                for start, end in memory_ranges(memory):
                    first = max(bar.address, start)
                    size = min(bar.address + (bar.size or 0), end) - first
                    if bar.kind != "io" and bar.address and size > 0:
                        overlap = Overlap(port, function.bdf, bar.index, first, size)
                        found.setdefault((port, function.bdf, bar.index), overlap)
    return tuple(found.values())


def prerequisites(host: Topology, plan: GuestPlan, settings: Settings) -> tuple[str, ...]:
    """What has to be so before the guest starts, a sentence each without its full stop."""
    return tuple(_prerequisites(host, plan, settings))


def _prerequisites(host: Topology, plan: GuestPlan, settings: Settings) -> Iterator[str]:
    functions = [host[bdf] for bdf in plan.functions.values()]
    yield (
        "every function, and what else has a driver in its IOMMU group, is on vfio-pci: "
        f"vfiokit plan {' '.join(str(each.bdf) for each in functions)}"
    )
    locked = settings.memory
    if plan.viommu.translates and not settings.iommufd:
        locked *= len(functions)
    yield (f"the hypervisor may lock {size_text(locked)} of memory and some more (RLIMIT_MEMLOCK)")
    if settings.hugepages:
        count = settings.memory // settings.hugepages
        yield f"{count} huge pages of {size_text(settings.hugepages)} are free on the host"
    yield from _windows(functions, settings)
    for function in functions:
        if function.identity.class_code == _VGA:
            yield (
                f"{function.bdf} is a display: if the host booted on it, its ROM is shadowed, and "
                "romfile= must name a copy"
            )
    for function in functions:
        siblings = [
            other.bdf
            for other in host.slot(function)
            if other.bdf not in plan.functions.values() and not other.is_virtual
        ]
        if siblings and not function.is_virtual:
            listed = ", ".join(map(str, siblings))
            yield f"a reset of the whole device of {function.bdf} takes {listed} with it"
        virtual = [each.bdf for each in functions if each.physfn == function.bdf]
        if virtual:
            more = f" and {len(virtual) - 1} more" if len(virtual) > 1 else ""
            yield (
                f"{function.bdf} is the physical function of {virtual[0]}{more}: the guest decides "
                "whether there are virtual functions at all; assign the one or the others"
            )
    if settings.iommufd:
        yield (
            "iommufd maps a peer's BAR from kernel 6.19 on, by dma-buf; before, P2P is silently "
            "off: QEMU says 'Bad address'"
        )
    if plan.variant is Variant.SEED:
        yield "the QEMU carries the ports of the seed, and the guest's kernel knows their ids"


def _windows(functions: Sequence[Function], settings: Settings) -> Iterator[str]:
    known = [bar for function in functions for bar in bars(function)]
    if any(bar.size is None for bar in known) or not known:
        yield "sizes of BARs are not in this description: see to a 64-bit window large enough"
        return
    narrow = sum(bar.size or 0 for bar in known if bar.kind == "memory32")
    wide = sum(bar.size or 0 for bar in known if bar.kind == "memory64")
    window = settings.hole64 or DEFAULT_HOLE64
    yield (
        f"BARs take {_rounded(wide)} of the 64-bit window ({size_text(window)}) and "
        f"{_rounded(narrow)} below 4 GiB"
    )
    if settings.hole64:
        megabytes = settings.hole64 // MIB
        yield (
            "firmware uses the larger 64-bit window: for OVMF "
            f"-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={megabytes}"
        )
    if narrow > _HOLE32:
        yield f"32-bit BARs of {_rounded(narrow)} may not fit below 4 GiB"


def _rounded(size: int) -> str:
    """Up to whole MiB or, from 1 GiB on, with one digit of GiB."""
    if size >= GIB:
        return f"{size / GIB:.1f} GiB".replace(".0 ", " ")
    return f"{-(-size // MIB)} MiB"

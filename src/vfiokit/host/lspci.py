"""The topology of a machine from what ``lspci`` printed of it, as bytes or as decoded text.

One file may hold both, as ``lspci -nnvvvxxxx`` prints: bytes then come from the dump, and what the
kernel said from the text. Sources: pciutils ``lspci.c``; for virtual functions Linux
``drivers/pci/iov.c`` (``pci_iov_virtfn_bus``, ``pci_iov_virtfn_devfn``, ``pci_iov_add_virtfn``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.errors import ConfigRangeError, FormatError
from vfiokit.host.lspci_listing import Listing, listings
from vfiokit.host.partial import PartialTopology
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import sriov
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.quantity import counted
from vfiokit.pci.topology import Function, Recorded, Topology

if TYPE_CHECKING:
    from vfiokit.host.lspci_text import Facts

_NOTHING_RECORDED = Recorded()
_HEADER = 0x40
_ABSENT = b"\xff" * 8
_NO_IDS = b"\xff" * 4
_BELOW_A_PORT = frozenset(
    {
        PortType.ENDPOINT,
        PortType.LEGACY_ENDPOINT,
        PortType.UPSTREAM,
        PortType.DOWNSTREAM,
        PortType.PCIE_TO_PCI_BRIDGE,
    }
)
_USES = "what the host uses its devices for is not in what lspci prints"


class LspciHost(NamedTuple):
    """A machine as ``lspci`` shows it."""

    topology: Topology
    limits: tuple[str, ...]
    """What the text cannot tell, a sentence each."""


def read(pieces: Iterable[bytes], path: str = "") -> LspciHost:
    """The machine that the text describes; ``pieces`` end between functions, ``path`` names it.

    :class:`FormatError` when there is no function in the text, or two different ones at one
    address.
    """
    found = _merged(listings(pieces), path)
    if not found:
        raise FormatError(
            "no PCI function in this text",
            path=path,
            hint="'lspci -nnvvvxxxx' as root, or parts of its output, is what can be read",
        )
    functions: dict[Bdf, Function] = {}
    facts: dict[Bdf, Facts] = {}
    for bdf, listing in found.items():
        if listing.lines or not listing.data:
            facts[bdf] = _facts(listing)
            functions[bdf] = _described(listing, facts[bdf])
        else:
            functions[bdf] = Function(bdf, ConfigSpace(listing.data), recorded=_NOTHING_RECORDED)
    orphans = _adopt(functions, found)
    if facts:
        _consider_neighbours(functions, found, facts)
    topology = (PartialTopology if facts else Topology)(functions.values())
    topology.stray = _stray(topology)
    limits = (*_limits(found, facts, orphans), *_place_limits(topology), _USES)
    return LspciHost(topology, limits)


def _merged(found: Iterable[Listing], path: str) -> dict[Bdf, Listing]:
    """One listing for each function: reports often show a machine several times."""
    merged: dict[Bdf, Listing] = {}
    for listing in found:
        known = merged.setdefault(listing.bdf, listing)
        if known is listing:
            continue
        if min(len(known.data), len(listing.data)) >= 4 and known.data[:4] != listing.data[:4]:
            raise FormatError(
                f"there are two different functions {listing.bdf} in this text",
                path=path,
                hint="keep one machine to a file",
            )
        if len(listing.data) > len(known.data):
            known.data = listing.data
        if len(listing.lines) > len(known.lines):
            known.lines = listing.lines
        if b"[" in listing.head and b"[" not in known.head:
            known.head = listing.head
        known.broken = known.broken and listing.broken
    return merged


def _facts(listing: Listing, *, beside: bool = False, doubtful: bool = False) -> Facts:
    """What the text says; ``beside``: there are further functions of the same device."""
    from vfiokit.host.lspci_text import read_facts

    return read_facts(
        listing.head.decode("utf-8", "replace"),
        [line.decode("utf-8", "replace") for line in listing.lines],
        multifunction=beside if beside or listing.bdf.function else None,
        doubtful=doubtful,
    )


def _consider_neighbours(
    functions: dict[Bdf, Function], found: Mapping[Bdf, Listing], facts: dict[Bdf, Facts]
) -> None:
    """Read again what the functions around it put in another light.

    Linux looks for functions above 0 only where function 0 says that there may be some
    (``pci_scan_slot``). And behind a PF that does not say where its VFs are, anything may be one.
    """
    shared: dict[tuple[int, int, int], int] = {}
    hiding: dict[tuple[int, int], int] = {}
    for bdf, function in functions.items():
        if not function.is_virtual:
            shared[bdf[:3]] = shared.get(bdf[:3], 0) + 1
        if bdf in facts and facts[bdf].hides_virtual_functions and not found[bdf].data:
            hiding[bdf[:2]] = min(bdf.devfn, hiding.get(bdf[:2], bdf.devfn))
    for bdf, function in functions.items():
        if function.is_virtual or found[bdf].data:
            continue
        beside = bdf.function == 0 and shared[bdf[:3]] > 1
        doubtful = bdf.devfn >= hiding.get(bdf[:2], 0x100)
        if beside or doubtful:
            facts[bdf] = _facts(found[bdf], beside=beside, doubtful=doubtful)
            functions[bdf] = _described(found[bdf], facts[bdf])


def _described(listing: Listing, facts: Facts) -> Function:
    """A function of which lspci printed words; its bytes win where they are there too."""
    if len(listing.data) < _HEADER:
        return Function(
            listing.bdf,
            facts.config,
            facts.identity,
            resources=facts.resources,
            recorded=facts.recorded,
        )
    return Function(
        listing.bdf,
        ConfigSpace(listing.data),
        resources=facts.resources,
        recorded=facts.recorded,
    )


def _adopt(functions: dict[Bdf, Function], found: dict[Bdf, Listing]) -> list[Bdf]:
    """Give virtual functions their PF and their ids; returns those that have none.

    The ids of a VF read all ones. Who it is, its PF says: same vendor, and the VF Device ID of
    the SR-IOV capability.
    """
    orphans = {bdf for bdf, function in functions.items() if _is_nameless(function)}
    wanted = orphans | {bdf for bdf, listing in found.items() if not listing.data}
    domains = {bdf.domain for bdf in wanted}
    for physical in list(functions.values()):
        if physical.bdf.domain not in domains:
            continue
        for bdf, device_id in _virtual_functions(physical):
            if bdf in wanted and functions[bdf] is not physical:
                functions[bdf] = _virtual(functions[bdf], physical, device_id)
                orphans.discard(bdf)
    for bdf in orphans:
        _name(functions[bdf], found[bdf].head)
    return sorted(orphans)


def _is_nameless(function: Function) -> bool:
    """Whether the ids read all ones although something is there."""
    data = function.config.data
    return data[:4] == _NO_IDS and data[:8] != _ABSENT


def _virtual_functions(physical: Function) -> list[tuple[Bdf, int]]:
    """Address and device id of each enabled VF of ``physical``."""
    if not physical.config.has(0x100, 4) or physical.header_type != 0:
        return []
    capability = physical.capabilities.find_extended(0x10)
    if capability is None:
        return []
    try:
        if not capability.field(sriov.CONTROL, "vf_enable"):
            return []
        device_id = capability.value(sriov.VF_DEVICE_ID)
        return [
            (sriov.vf_address(capability, physical.bdf, index), device_id)
            for index in range(capability.value(sriov.NUM_VFS))
        ]
    except ConfigRangeError:
        return []


def _virtual(function: Function, physical: Function, device_id: int) -> Function:
    identity = function.identity
    if identity.vendor_id == 0xFFFF:
        identity = identity._replace(vendor_id=physical.identity.vendor_id, device_id=device_id)
    return Function(
        function.bdf,
        function.config,
        identity,
        resources=function.resources,
        physfn=physical.bdf,
        recorded=function.recorded,
    )


def _name(function: Function, head: bytes) -> None:
    """The ids that lspci printed: on the machine itself it asks the kernel."""
    from vfiokit.host.lspci_text import read_head

    ids = read_head(head.decode("utf-8", "replace")).ids
    if ids is not None:
        function.identity = function.identity._replace(vendor_id=ids[0], device_id=ids[1])


def _limits(
    found: Mapping[Bdf, Listing], facts: Mapping[Bdf, Facts], orphans: Sequence[Bdf]
) -> Iterator[str]:
    """What nobody can tell from this text, most general first."""
    if any(listing.data for listing in found.values()):
        yield from _dump_limits(found, orphans)
    text = [fact for bdf, fact in facts.items() if len(found[bdf].data) < _HEADER]
    if not facts:
        yield "a dump has no IOMMU groups, drivers, NUMA nodes or BAR sizes of the host's kernel"
    if text:
        yield from _text_limits(text)


def _stray(topology: Topology) -> frozenset[tuple[int, int]]:
    """Buses that look like root buses and cannot be: the bridge to them is not in the text."""
    return frozenset(
        (bus.domain, bus.number)
        for bus in topology.buses.values()
        if bus.is_root and bus.functions and bus.functions[0].port_type in _BELOW_A_PORT
    )


def _place_limits(topology: Topology) -> Iterator[str]:
    stray = [f"{domain:04x}:{number:02x}" for domain, number in sorted(topology.stray)]
    if stray:
        yield (
            f"no bridge in the text leads to bus {_listed(stray)}: "
            "what is above is unknown, and so are the groups there"
        )


def _dump_limits(found: Mapping[Bdf, Listing], orphans: Sequence[Bdf]) -> Iterator[str]:
    short = sum(1 for listing in found.values() if 0 < len(listing.data) < 0x100)
    if short:
        yield (
            f"{counted(short, 'function')} cut before the capabilities: "
            "what keeps devices apart is unknown ('lspci -xxxx' as root shows it)"
        )
    conventional = sum(1 for listing in found.values() if 0x100 <= len(listing.data) < 0x1000)
    if conventional:
        yield (
            f"{counted(conventional, 'function')} without extended configuration space: "
            "of those on PCI Express, ACS and SR-IOV are unknown"
        )
    broken = [str(bdf) for bdf, listing in found.items() if listing.broken]
    if broken:
        yield f"{_listed(broken)}: rows are missing, and bytes after them were left out"
    if orphans:
        yield (
            f"{_listed([str(bdf) for bdf in orphans])}: a virtual function whose physical function "
            "is not in the text, or without its SR-IOV capability"
        )


def _text_limits(facts: Sequence[Facts]) -> Iterator[str]:
    from vfiokit.host.lspci_text import Detail

    listed = sum(1 for fact in facts if fact.detail is Detail.LIST)
    if listed:
        yield (
            f"{counted(listed, 'function')} listed without details: which bridge a bus hangs "
            "from, and so every group, is unknown ('lspci -nnvvv' as root shows it)"
        )
    brief = sum(1 for fact in facts if fact.detail is Detail.FLAGS)
    if brief:
        yield (
            f"{counted(brief, 'function')} shown by 'lspci -v', which leaves out registers: "
            "where there is ACS, its settings are unknown ('lspci -vv' shows them)"
        )
    denied = sum(1 for fact in facts if fact.denied)
    if denied:
        yield f"capabilities of {counted(denied, 'function')} were not readable: lspci needs root"
    named = sum(1 for fact in facts if fact.named_only)
    if named:
        yield (
            f"{counted(named, 'function')} shown without ids: the kernel's tables of known devices "
            "cannot be applied ('lspci -nn' shows ids)"
        )
    if listed + denied < len(facts):
        yield "registers that lspci does not decode are unknown"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more

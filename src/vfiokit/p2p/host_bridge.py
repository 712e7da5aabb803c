"""Which host bridges, and which processors, Linux trusts to forward between peers.

Source: Linux 7.2 ``drivers/pci/p2pdma.c`` (``cpu_supports_p2pdma``,
``pci_host_bridge_dev``, ``pci_p2pdma_whitelist``).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vfiokit.host.processor import Cpu
from vfiokit.p2p.answer import MapType, Rule
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, HostBridge, Topology

INTEL, AMD, HYGON, GOOGLE = 0x8086, 0x1022, 0x1D94, 0x1AE0
_EMULATED = frozenset({(INTEL, 0x1237), (INTEL, 0x29C0)})
"""440FX and Q35: what QEMU shows whatever the processor is."""

SAME_HOST_BRIDGE_ONLY = frozenset((INTEL, device) for device in (0x3C00, 0x3C01, 0x2F00, 0x2F01))
"""Xeon E5 and Core i7 (Sandy Bridge-E), Xeon E5/E7 v3 (Haswell-E): ``REQ_SAME_HOST_BRIDGE``."""

ANYWHERE = frozenset(
    (INTEL, device)
    for device in (
        *(0x2030, 0x2031, 0x2032, 0x2033, 0x2020),  # Skylake-E root ports and DMI
        0x09A2,  # Ice Lake and later: VT-d and memory map at 00.0
        *(0x0B25, 0x0CFE, 0x11FB, 0x1212, 0x1216),  # DSA and IAX/IAA on root buses of their own
        *(0x4940, 0x4942, 0x4944, 0x4946, 0x4948),  # QAT
    )
)
"""Trusted also between host bridges."""

ANY_DEVICE = frozenset({GOOGLE})
"""Vendors whose host bridges are all trusted."""

_NO_ID = 0xFFFF
_HEADER = 0x40
"""Bytes that everyone may read; capabilities lie behind them."""

_ZEN_ROOTS = frozenset(
    {0x1450, 0x15D0, 0x1480, 0x1630, 0x14A4, 0x14B5, 0x14D8, 0x14E8, 0x153A, 0x1507, 0x1122}
)
"""Root complex functions of AMD family 0x17 and above (``arch/x86`` root ids)."""


class Standing(Enum):
    """What the list says of one host bridge."""

    ABSENT = "absent"
    """There is no function to look up."""
    UNSEEN = "unseen"
    """The function is not in the description, or its bytes do not tell what it is."""
    UNLISTED = "unlisted"
    SAME_ONLY = "same-only"
    LISTED = "listed"


class Approval(NamedTuple):
    """What the host-bridge test says of a pair that leaves the common hierarchy."""

    map_type: MapType
    rule: Rule
    reason: str
    warning: str = ""
    """The kernel's message about a host bridge that is not listed."""
    unknown: tuple[str, ...] = ()


class Deduced(NamedTuple):
    """A processor that the host's functions give away."""

    cpu: Cpu | None
    by: Bdf | None
    """The function that gives it away; ``None`` when nothing does."""


def deduce_cpu(topology: Topology) -> Deduced:
    """The kind of processor, from the host bridges that are part of it.

    Intel and Hygon host bridges exclude the AMD rule; AMD's root complex of a Zen fulfils it.
    Family and model are the least that is sure. QEMU's host bridges carry Intel's ids whatever
    the processor is, so they give away nothing.
    """
    for bridge in topology.host_bridges:
        function = host_bridge_function(topology, bridge)
        if function is None:
            continue
        identity = function.identity
        if (identity.vendor_id, identity.device_id) in _EMULATED:
            continue
        if identity.vendor_id == INTEL:
            return Deduced(Cpu("GenuineIntel", 6, 0), function.bdf)
        if identity.vendor_id == HYGON:
            return Deduced(Cpu("HygonGenuine", 0x18, 0), function.bdf)
        if identity.vendor_id == AMD and identity.device_id in _ZEN_ROOTS:
            return Deduced(Cpu("AuthenticAMD", 0x17, 0), function.bdf)
    return Deduced(None, None)


def host_bridge_function(topology: Topology, bridge: HostBridge) -> Function | None:
    """``pci_host_bridge_dev``: the first function of the root bus, if it is 00.0 or a root port.

    The kernel takes the first of its list, which is the lowest address unless functions were
    removed and found again.
    """
    first = first_function(topology, bridge)
    if first is None:
        return None
    return first if first.bdf.devfn == 0 or first.port_type is PortType.ROOT_PORT else None


def first_function(topology: Topology, bridge: HostBridge) -> Function | None:
    """The first of the kernel's list of a root bus; ``None`` on an empty one."""
    bus = topology.buses.get((bridge.domain, bridge.bus))
    functions = bus.functions if bus is not None else ()
    # Virtual functions come to the kernel's list last.
    return next((each for each in functions if not each.is_virtual), None)


def standing(topology: Topology, bridge: HostBridge) -> Standing:
    """What the kernel's list says of a host bridge."""
    first = first_function(topology, bridge)
    if first is None or not first.config.has(0x00, 4) or first.identity.vendor_id == _NO_ID:
        return Standing.UNSEEN
    function = host_bridge_function(topology, bridge)
    if function is None:
        cut = first.express is None and not first.config.has(_HEADER, 4)
        return Standing.UNSEEN if cut else Standing.ABSENT
    ids = (function.identity.vendor_id, function.identity.device_id)
    if ids in SAME_HOST_BRIDGE_ONLY:
        return Standing.SAME_ONLY
    listed = ids in ANYWHERE or ids[0] in ANY_DEVICE
    return Standing.LISTED if listed else Standing.UNLISTED


def approve(
    topology: Topology, provider: HostBridge, client: HostBridge, cpu: Cpu | None
) -> Approval:
    """Whether DMA from below ``client`` may go through to below ``provider``.

    ``cpu`` is ``None`` when the processor is not known: a pair that the list does not approve is
    then unknown.
    """
    stray = [each for each in (provider, client) if (each.domain, each.bus) in topology.stray]
    if stray:
        bus = f"{stray[0].domain:04x}:{stray[0].bus:02x}"
        return Approval(
            MapType.UNKNOWN,
            Rule.UNKNOWN,
            f"which bridge leads to bus {bus} is not in this description",
            unknown=(f"what is above bus {bus}",),
        )
    if cpu is not None and cpu.is_zen:
        return Approval(
            MapType.THRU_HOST_BRIDGE,
            Rule.CPU,
            f"the processor is AMD Zen ({cpu.vendor}, family {cpu.family:#x}), where the kernel "
            "trusts every host bridge",
        )
    listed = _listed(topology, provider, client)
    if cpu is None and listed.map_type is not MapType.THRU_HOST_BRIDGE:
        return Approval(
            MapType.UNKNOWN,
            Rule.UNKNOWN,
            f"{listed.reason}; on AMD Zen the kernel would trust it all the same",
            unknown=("the processor (no /proc/cpuinfo)", *listed.unknown),
        )
    return listed


def _listed(topology: Topology, provider: HostBridge, client: HostBridge) -> Approval:
    """``host_bridge_whitelist``."""
    same = provider == client
    reasons: list[str] = []
    unseen: list[HostBridge] = []
    for bridge in (provider,) if same else (provider, client):
        held = standing(topology, bridge)
        if held is Standing.LISTED:
            reasons.append(_name(topology, bridge))
        elif held is Standing.SAME_ONLY and same:
            reasons.append(f"{_name(topology, bridge)}, for peers below the same host bridge")
        elif held is Standing.UNSEEN:
            unseen.append(bridge)
        else:
            return _refused(topology, bridge, held)
    if unseen:
        names = " and ".join(map(str, unseen))
        return Approval(
            MapType.UNKNOWN,
            Rule.UNKNOWN,
            f"what the host bridge of {names} is, is not in this description",
            unknown=tuple(f"the host bridge of {bridge}" for bridge in unseen),
        )
    return Approval(
        MapType.THRU_HOST_BRIDGE,
        Rule.WHITELIST,
        f"on the kernel's list of host bridges: {' and '.join(reasons)}",
    )


def _refused(topology: Topology, bridge: HostBridge, held: Standing) -> Approval:
    function = host_bridge_function(topology, bridge)
    if function is None:
        return Approval(
            MapType.NOT_SUPPORTED,
            Rule.NO_HOST_BRIDGE,
            f"the first function of root bus {bridge} is neither 00.0 nor a root port, so "
            "the kernel finds no host bridge to look up in its list",
        )
    name = _name(topology, bridge)
    if held is Standing.SAME_ONLY:
        return Approval(
            MapType.NOT_SUPPORTED,
            Rule.SAME_BRIDGE_ONLY,
            f"the host bridge {name} is on the kernel's list only for peers below the same host "
            "bridge",
        )
    return Approval(
        MapType.NOT_SUPPORTED,
        Rule.NOT_LISTED,
        f"the host bridge {name} is not on the kernel's list, and the processor is not AMD Zen",
        f"{function.bdf}: Host bridge not in P2PDMA whitelist: {_ids(function)}",
    )


def _name(topology: Topology, bridge: HostBridge) -> str:
    function = host_bridge_function(topology, bridge)
    assert function is not None
    return f"{function.bdf} [{_ids(function)}] of {bridge}"


def _ids(function: Function) -> str:
    return f"{function.identity.vendor_id:04x}:{function.identity.device_id:04x}"

"""An NCCL topology file for a guest: the host's tree above each GPU and NIC, with guest addresses.

NCCL in a guest sees emulated ports, whose links are slow and whose order is not the host's. The
file says what is true below: which functions share a switch, which links they have, which NUMA
node they are on. Switches get addresses that no guest has (``ffff:ff:NN.0``), so that NCCL takes
nothing about them from the guest's sysfs. Source: NCCL ``src/graph/xml.cc``, ``topo.cc``: a
switch is its upstream port, root ports and downstream ports are not listed, ``arch`` of a ``cpu``
must be there, the rest of what is missing is taken from the guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vfiokit.assign.vmconfig.settings import Settings
from vfiokit.errors import UsageError
from vfiokit.host.nccl import NcclSystem, write
from vfiokit.host.nccl import Node as XmlNode
from vfiokit.host.processor import Cpu
from vfiokit.p2p.code import counts_as_bridge
from vfiokit.p2p.guest import GuestPlan, host_nodes
from vfiokit.pci.address import Bdf
from vfiokit.pci.selector import is_class
from vfiokit.pci.topology import Function, Topology

GPU_KINDS = ("gpu", "accelerator")
_KINDS = (*GPU_KINDS, "nic")
_INVENTED_DOMAIN, _INVENTED_BUS = 0xFFFF, 0xFF
_UNKNOWN_CPU = Cpu("GenuineIntel", 6, 0)
_CPU_SET_BITS = 32


class _Switch:
    """A switch of the host, and what NCCL needs to know below it."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.items: dict[Bdf, _Switch | Function] = {}


def render(plan: GuestPlan, settings: Settings, host: Topology, cpu: Cpu | None) -> str:
    """The text of the file; see :func:`system`."""
    return write(system(plan, settings, host, cpu))


def system(plan: GuestPlan, settings: Settings, host: Topology, cpu: Cpu | None) -> NcclSystem:
    """The guest's topology as NCCL shall see it.

    ``host`` is the topology that the plan was made for, ``cpu`` the processor that the guest sees
    (``None``: an Intel one of no particular model). Raises
    :class:`~vfiokit.errors.UsageError` when the plan has neither GPU nor network card.
    """
    functions = [host[bdf] for bdf in plan.functions.values()]
    wanted = [each for each in functions if any(is_class(each, kind) for kind in _KINDS)]
    if not wanted:
        raise UsageError("no GPU and no network card is assigned: NCCL has nothing to order")
    return NcclSystem(XmlNode("system", {"version": "1"}, tuple(_cpus(plan, settings, host, cpu))))


def _cpus(
    plan: GuestPlan, settings: Settings, host: Topology, cpu: Cpu | None
) -> Iterator[XmlNode]:
    seen = cpu if cpu is not None else _UNKNOWN_CPU
    writer = _Writer(plan)
    for node in settings.nodes(plan):
        members = [
            host[bdf]
            for name, bdf in plan.functions.items()
            if any(is_class(host[bdf], kind) for kind in _KINDS)
            and plan.numa.get(plan.host_bridge(name).name, 0) == node.number
        ]
        attributes = {
            "numaid": str(node.number),
            "affinity": affinity(node.first_cpu, node.cpus, settings.cpus),
            "arch": "x86_64",
            "vendor": seen.vendor,
            "familyid": str(seen.family),
            "modelid": str(seen.model),
        }
        yield XmlNode("cpu", attributes, tuple(writer.below(host, members)))


def affinity(first: int, count: int, total: int) -> str:
    """A mask of processors as sysfs prints it: words of 32 bits, the highest first."""
    mask = ((1 << count) - 1) << first
    words = -(-total // _CPU_SET_BITS)
    return ",".join(
        f"{mask >> word * _CPU_SET_BITS & 0xFFFFFFFF:08x}" for word in reversed(range(words))
    )


class _Writer:
    """Counts the switches that get an invented address."""

    def __init__(self, plan: GuestPlan) -> None:
        self._plan = plan
        self._invented = 0

    def below(self, host: Topology, members: list[Function]) -> Iterator[XmlNode]:
        """The elements below one ``cpu``."""
        top: dict[Bdf, _Switch | Function] = {}
        for function in members:
            items = top
            above = [
                bridge
                for bridge in reversed(host.path_to_root(function))
                if counts_as_bridge(host, bridge.bdf)
            ]
            for bridge in above:
                switch = items.setdefault(bridge.bdf, _Switch(bridge))
                assert isinstance(switch, _Switch)
                items = switch.items
            items[function.bdf] = function
        for item in top.values():
            yield self._element(item)

    def _element(self, item: _Switch | Function) -> XmlNode:
        if isinstance(item, Function):
            return XmlNode("pci", self._attributes(item))
        self._invented += 1
        number = self._invented
        if number > 0xFF:
            raise UsageError("more than 255 switches: no address is left to invent")
        bdf = Bdf(_INVENTED_DOMAIN, _INVENTED_BUS, number & 0x1F, number >> 5)
        children = tuple(self._element(each) for each in item.items.values())
        attributes = {
            "busid": str(bdf),
            "class": "0x060400",
            "vendor": "0x0000",
            "device": "0x0000",
            "subsystem_vendor": "0x0000",
            "subsystem_device": "0x0000",
            **_link(item.function, [child.attributes for child in children]),
        }
        return XmlNode("pci", attributes, children)

    def _attributes(self, function: Function) -> dict[str, str]:
        identity = function.identity
        ids = {
            "vendor": identity.vendor_id,
            "device": identity.device_id,
            "subsystem_vendor": identity.subsystem_vendor_id,
            "subsystem_device": identity.subsystem_device_id,
        }
        # What the host's description does not tell, NCCL takes from the guest's sysfs.
        known = identity.vendor_id not in (0, 0xFFFF)
        return {
            "busid": str(self._plan.address(function.bdf)),
            "class": f"0x{identity.class_code:06x}",
            **({name: f"0x{value:04x}" for name, value in ids.items()} if known else {}),
            **_link(function),
        }


def _link(function: Function, below: list[Mapping[str, str]] | None = None) -> dict[str, str]:
    """Speed and width as sysfs prints the most that the link can do.

    A switch has none in the guest that NCCL could read: where the host does not tell, the best of
    what is below it.
    """
    speed, width = function.recorded.max_link_speed, function.recorded.max_link_width
    speeds = [each["link_speed"] for each in below or () if "link_speed" in each]
    widths = [int(each["link_width"]) for each in below or () if "link_width" in each]
    if speed is None and below is not None:
        speed = max(speeds, key=lambda text: float(text.split()[0]), default="16.0 GT/s PCIe")
    if not width and below is not None:
        width = max(widths, default=16)
    found: dict[str, str] = {}
    if speed is not None and "GT/s" in speed:
        found["link_speed"] = speed
    if width:
        found["link_width"] = str(width)
    return found


def numa_is_lost(plan: GuestPlan, host: Topology) -> bool:
    """Whether functions of several host nodes come under one ``cpu``, the guest having one node."""
    functions = [host[bdf] for bdf in plan.functions.values()]
    return not plan.numa and len(host_nodes(host, functions)) > 1

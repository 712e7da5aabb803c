"""The same questions on a machine that is a little different.

A change is text: ``acs=0x1d@0000:01:00.0`` (ACS Control of a function), ``cpu=amd:0x19`` or
``cpu=intel`` (the processor), ``bridge=8086:09a2@pci0000:00`` (what the host bridge of a root bus
is), ``move=0000:03:00.0@0000:00:02.0`` (a card, put below an empty port).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vfiokit.errors import UsageError
from vfiokit.host.processor import Cpu
from vfiokit.p2p.answer import Verdict
from vfiokit.p2p.host_bridge import first_function
from vfiokit.p2p.peers import Peers
from vfiokit.p2p.price import Price, price
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.edit import moved, with_acs_control, with_register
from vfiokit.pci.selector import select_one
from vfiokit.pci.topology import Function, HostBridge, Topology

_HINT = (
    "write acs=VALUE@DEVICE, cpu=amd|intel[:FAMILY], bridge=VENDOR:DEVICE@BUS "
    "or move=DEVICE@PORT, such as acs=0x1d@0000:01:00.0"
)
_VENDORS = {
    "amd": Cpu("AuthenticAMD", 0x19, 0),
    "intel": Cpu("GenuineIntel", 6, 0),
    "hygon": Cpu("HygonGenuine", 0x18, 0),
    "other": Cpu("other", 0, 0),
}


class Machine(NamedTuple):
    """A machine in the conditional."""

    topology: Topology
    cpu: Cpu | None
    addresses: dict[Bdf, Bdf]
    """Old to new address of every function that has another one."""
    changes: tuple[str, ...]
    """What was done, a phrase each."""


class Difference(NamedTuple):
    """A pair whose answer is another."""

    provider: Bdf
    """By its old address."""
    client: Bdf
    before: Verdict
    after: Verdict
    codes: tuple[str, str]
    """NVIDIA's word before and after."""


class Consequences(NamedTuple):
    """Everything that differs, and nothing else."""

    machine: Machine
    price: Price
    differences: tuple[Difference, ...]


def parse_cpu(text: str) -> Cpu:
    """``amd``, ``amd:0x17``, ``intel``, ``hygon``: a processor by vendor and family.

    :class:`~vfiokit.errors.UsageError` for anything else. Without a family it is a recent one.
    """
    vendor, _, family = text.partition(":")
    if vendor not in _VENDORS:
        raise UsageError(
            f"{vendor!r} is no vendor of processors here",
            hint=f"one of {', '.join(_VENDORS)}, with a family behind it: amd:0x17",
        )
    cpu = _VENDORS[vendor]
    return cpu._replace(family=_number(family, 0xFFF)) if family else cpu


def change(topology: Topology, cpu: Cpu | None, texts: Sequence[str]) -> Machine:
    """Apply changes in order; addresses in them are those of the machine as it is.

    :class:`~vfiokit.errors.UsageError` for a text that is no change, a device that is not there,
    and what cannot be done to this machine.
    """
    machine = Machine(topology, cpu, {}, ())
    for text in texts:
        kind, equals, rest = text.partition("=")
        if not equals or kind not in _KINDS:
            raise UsageError(f"{text!r} is no change of a machine", hint=_HINT)
        machine = _KINDS[kind](machine, rest)
    return machine


def consequences(
    before: Peers, machine: Machine, providers: Sequence[Bdf], clients: Sequence[Bdf]
) -> Consequences:
    """Recompute groups and pairs; ``providers`` and ``clients`` by their old addresses."""
    after = Peers(machine.topology, cpu=machine.cpu)
    now = {bdf: machine.addresses.get(bdf, bdf) for bdf in (*providers, *clients)}
    differences: list[Difference] = []
    for provider in providers:
        for client in clients:
            one = before.verdict(provider, client)
            other = after.verdict(now[provider], now[client])
            codes = (before.code(provider, client), after.code(now[provider], now[client]))
            if one != other or codes[0] != codes[1]:
                differences.append(Difference(provider, client, one, other, codes))
    cost = price(before.topology, machine.topology, machine.addresses)
    return Consequences(machine, cost, tuple(differences))


def _device(machine: Machine, text: str) -> Bdf:
    """A device by what it is called before the change."""
    if text.count(":") in (1, 2) and "." in text and "/" not in text:
        old = Bdf.parse(text)
        return machine.topology[machine.addresses.get(old, old)].bdf
    return select_one(machine.topology, text).bdf


def _done(machine: Machine, topology: Topology, words: str) -> Machine:
    return machine._replace(topology=topology, changes=(*machine.changes, words))


def _set_acs(machine: Machine, rest: str) -> Machine:
    value, _, device = rest.partition("@")
    bdf = _device(machine, device)
    wanted = Acs(_number(value, 0x7F))
    topology = with_acs_control(machine.topology, {bdf: wanted})
    before, after = machine.topology[bdf].acs_control, topology[bdf].acs_control
    words = f"ACS Control of {bdf} {before:#04x} → {after:#04x}"
    if after != wanted:
        words += f" (the function has no more than {topology[bdf].acs_capability:#04x})"
    return _done(machine, topology, words)


def _set_cpu(machine: Machine, rest: str) -> Machine:
    cpu = parse_cpu(rest)
    words = f"processor {cpu.vendor}, family {cpu.family:#x}"
    return machine._replace(cpu=cpu, changes=(*machine.changes, words))


def _set_bridge(machine: Machine, rest: str) -> Machine:
    ids, _, name = rest.partition("@")
    vendor, _, device = ids.partition(":")
    numbers = (_id(vendor), _id(device))
    bridge = _host_bridge(machine.topology, name)
    function = first_function(machine.topology, bridge)
    if function is None:
        raise UsageError(f"nothing on root bus {bridge} can be its host bridge")
    topology = machine.topology
    if function.config.has(0, 4):
        topology = with_register(topology, function.bdf, 0, 4, numbers[1] << 16 | numbers[0])
    replaced = _identified(topology[function.bdf], *numbers)
    functions = (replaced if each.bdf == function.bdf else each for each in topology)
    known = function.identity
    words = (
        f"host bridge of {bridge} {known.vendor_id:04x}:{known.device_id:04x} → "
        f"{numbers[0]:04x}:{numbers[1]:04x}"
    )
    return _done(machine, topology.with_functions(functions), words)


def _move(machine: Machine, rest: str) -> Machine:
    device, _, port = rest.partition("@")
    bdf, to = _device(machine, device), _device(machine, port)
    result = moved(machine.topology, bdf, to)
    addresses = _chained(machine.addresses, result.addresses)
    new = result.addresses.get(bdf, bdf)
    words = f"{bdf} moved below {result.addresses.get(to, to)}, where it is {new}"
    return _done(machine, result.topology, words)._replace(addresses=addresses)


_KINDS = {"acs": _set_acs, "cpu": _set_cpu, "bridge": _set_bridge, "move": _move}


def _chained(first: Mapping[Bdf, Bdf], second: Mapping[Bdf, Bdf]) -> dict[Bdf, Bdf]:
    """Two renamings, one after the other."""
    chained = {old: second.get(new, new) for old, new in first.items()}
    passed = set(first.values())
    chained |= {old: new for old, new in second.items() if old not in passed and old not in first}
    return {old: new for old, new in chained.items() if old != new}


def _identified(function: Function, vendor_id: int, device_id: int) -> Function:
    identity = function.identity._replace(vendor_id=vendor_id, device_id=device_id)
    return Function(
        function.bdf,
        function.config,
        identity,
        resources=function.resources,
        physfn=function.physfn,
        recorded=function.recorded,
    )


def _host_bridge(topology: Topology, name: str) -> HostBridge:
    """``pci0000:00``, ``0000:00`` or ``00``."""
    domain, _, bus = name.removeprefix("pci").rpartition(":")
    wanted = HostBridge(_hex(domain or "0"), _hex(bus))
    if wanted not in topology.host_bridges:
        there = ", ".join(map(str, topology.host_bridges))
        raise UsageError(f"there is no root bus {wanted} on this host", hint=f"there are {there}")
    return wanted


def _id(text: str) -> int:
    value = _hex(text)
    if not 0 <= value <= 0xFFFF:
        raise UsageError(f"{text} is no 16-bit number", hint=_HINT)
    return value


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise UsageError(f"{text!r} is no hexadecimal number", hint=_HINT) from None


def _number(text: str, limit: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is no number", hint=_HINT) from None
    if not 0 <= value <= limit:
        raise UsageError(f"{text} is not between 0 and {limit:#x}", hint=_HINT)
    return value

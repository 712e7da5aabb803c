"""IOMMU groups, predicted from configuration bytes by the kernel's own reasoning.

Source: Linux 7.2 ``drivers/iommu/iommu.c`` (``pci_device_group`` and what it calls), used by
Intel VT-d, AMD-Vi, Arm SMMU, virtio-iommu and RISC-V. powerpc groups by partitionable endpoint and
s390 by function: they are not what this predicts.

Functions are taken in the order in which the kernel lists its PCI bus: by domain, bus and devfn,
then virtual functions, which appear when their driver starts. Group ids are handed out in that
order, lowest free number first.
"""

from __future__ import annotations

from functools import cached_property
from itertools import takewhile
from typing import NamedTuple

from vfiokit.errors import DeviceNotFoundError
from vfiokit.isolation.acs import AcsVerdict, AcsWhy, enabled
from vfiokit.isolation.alias import (
    Alias,
    AliasSource,
    alias_devfns,
    bridge_aliases,
    buses_above,
    vmd_devices,
)
from vfiokit.isolation.leak import Leak, find_leaks
from vfiokit.isolation.platform import CAPTURED, Platform
from vfiokit.isolation.quirk import VMD_FIRST_DOMAIN, alias_quirk
from vfiokit.isolation.reason import Rule, Step, Why, acs_step
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology


class Group(NamedTuple):
    """One IOMMU group: the smallest set of functions that can be assigned apart from others."""

    id: int
    members: tuple[Bdf, ...]
    """In address order, bridges included."""


class Grouping:
    """The predicted groups of one machine, and the reason for each membership."""

    def __init__(self, prober: _Prober) -> None:
        members: dict[int, list[Bdf]] = {}
        for bdf, why in prober.whys.items():
            members.setdefault(why.group, []).append(bdf)
        self.groups = tuple(Group(number, tuple(sorted(members[number]))) for number in members)
        """In id order."""
        self._prober = prober

    def of(self, bdf: Bdf) -> Group:
        """The group of ``bdf``; :class:`DeviceNotFoundError` if there is no such function."""
        return self.groups[self._joined(bdf).group]

    def why(self, bdf: Bdf) -> Why:
        """The rule that put ``bdf`` where it is (:class:`DeviceNotFoundError`)."""
        why = self._joined(bdf)
        if why.rule is not Rule.OWN:
            return why
        return why._replace(others=tuple(other for other in self.of(bdf).members if other != bdf))

    def steps(self, bdf: Bdf) -> tuple[Step, ...]:
        """Everything that was looked at to place ``bdf``, in order, whichever way it went."""
        self._joined(bdf)
        return self._prober.replay(bdf)

    def leaks(self, topology: Topology | None = None) -> tuple[Leak, ...]:
        """Groups that the kernel calls apart and a switch does not keep apart.

        ``topology`` defaults to the one the groups were predicted from.
        """
        prober = self._prober
        return find_leaks(
            topology if topology is not None else prober.topology,
            self,
            platform=prober.platform,
            quirks=prober.quirks,
        )

    @cached_property
    def undecided(self) -> tuple[Bdf, ...]:
        """Functions of which the source does not tell whether they are isolated.

        Those on a bus to which it shows no bridge (:attr:`Topology.stray`); bridges and
        multifunction devices cut before their capabilities (64 bytes), and those asked for ACS
        that end before extended configuration space (256 bytes). The latter count as not
        isolating, so with them groups can only come out too large.
        """
        return self._prober.undecided()

    @cached_property
    def uncertain(self) -> tuple[Bdf, ...]:
        """Functions whose group may be wrong, in address order.

        Those that share a group with one of :attr:`undecided`, or sit below such a bridge.
        """
        undecided = set(self.undecided)
        if not undecided:
            return ()
        unsure = {bdf for member in undecided for bdf in self.of(member).members}
        topology = self._prober.topology
        return tuple(
            function.bdf
            for function in topology
            if function.bdf in unsure
            or any(bridge.bdf in undecided for bridge in topology.path_to_root(function))
        )

    def _joined(self, bdf: Bdf) -> Why:
        try:
            return self._prober.whys[bdf]
        except KeyError:
            raise DeviceNotFoundError(f"there is no PCI function {bdf} on this host") from None


def predict(topology: Topology, *, platform: Platform = CAPTURED, quirks: bool = True) -> Grouping:
    """Compute every IOMMU group of ``topology``; never raises for odd bytes.

    Groups that the machine's own kernel recorded are not looked at: see
    :func:`vfiokit.isolation.compare`. ``quirks=False`` asks the registers alone.
    """
    prober = _Prober(topology, platform.resolve(topology), quirks)
    prober.run()
    return Grouping(prober)


def probe_order(topology: Topology) -> tuple[Function, ...]:
    """The order in which the kernel groups functions: physical ones by address, then VFs."""
    return (
        *(function for function in topology if not function.is_virtual),
        *(function for function in topology if function.is_virtual),
    )


class _Found(NamedTuple):
    """A group to join, and why."""

    rule: Rule
    other: Bdf
    acs: tuple[AcsWhy, ...] = ()
    alias: Alias | None = None


def _alone(function: Function) -> str:
    if function.is_virtual:
        return "is a virtual function, never taken for a part of a multifunction device"
    return "is single-function"


def _dma_text(function: Function, alias: Alias) -> str:
    return f"the DMA of {function.bdf} reaches the IOMMU as {alias.text()}"


class _Prober:
    """One run of the algorithm; every ACS question is answered once."""

    def __init__(self, topology: Topology, platform: Platform, quirks: bool) -> None:
        self.topology = topology
        self.platform = platform
        self.quirks = quirks
        self.whys: dict[Bdf, Why] = {}
        self.verdicts: dict[Bdf, AcsVerdict] = {}
        self._path_failures: dict[Bdf, tuple[AcsWhy, ...]] = {}
        self._bus_aliases: dict[tuple[int, int], tuple[Alias, ...]] = {}
        self._vmd = vmd_devices(topology)
        self._slots: dict[tuple[int, int, int], list[Function]] = {}
        self._masks: dict[Bdf, frozenset[int]] = {}
        for function in topology:
            self._slots.setdefault(function.bdf[:3], []).append(function)
            mask = alias_devfns(function, quirks=quirks)
            if mask:
                self._masks[function.bdf] = mask
        self._aliased_buses = {(bdf.domain, bdf.bus) for bdf in self._masks}
        self.steps: list[Step] | None = None

    def run(self) -> None:
        groups = 0
        for function in probe_order(self.topology):
            why = self._place(function, groups)
            self.whys[function.bdf] = why
            groups = max(groups, why.group + 1)

    def replay(self, bdf: Bdf) -> tuple[Step, ...]:
        """The steps that placed ``bdf``, seeing only functions that were placed before it."""
        again = _Prober(self.topology, self.platform, self.quirks)
        again.whys = dict(takewhile(lambda placed: placed[0] != bdf, self.whys.items()))
        again.steps = []
        again._place(self.topology[bdf], self.whys[bdf].group)
        return tuple(again.steps)

    def undecided(self) -> tuple[Bdf, ...]:
        unsure: list[Bdf] = []
        for function in self.topology:
            verdict = self.verdicts.get(function.bdf)
            if function.is_virtual:
                continue
            if (
                (verdict is not None and verdict.why.truncated)
                or (
                    len(function.config) < 0x100
                    and (function.is_bridge or self.topology.is_multifunction(function))
                )
                or (function.bdf.domain, function.bdf.bus) in self.topology.stray
            ):
                unsure.append(function.bdf)
        return tuple(unsure)

    def verdict(self, function: Function) -> AcsVerdict:
        known = self.verdicts.get(function.bdf)
        if known is None:
            known = enabled(self.topology, function, platform=self.platform, quirks=self.quirks)
            self.verdicts[function.bdf] = known
        return known

    def _place(self, function: Function, free: int) -> Why:
        device, found = self._follow_aliases(function)
        if found is None:
            device, found = self._follow_path(device)
        if found is None:
            visited = {device.bdf.devfn}
            found = self._search_aliases(device, visited)
            if found is None:
                found = self._search_functions(device, visited)
        if found is None:
            self._note(Rule.OWN, function.bdf, True, f"{function.bdf} opens group {free}")
            return Why(Rule.OWN, function.bdf, free)
        group = self.whys[found.other].group
        self._note(
            found.rule, function.bdf, False, f"{function.bdf} joins group {group} of {found.other}"
        )
        return Why(found.rule, function.bdf, group, (found.other,), found.acs, found.alias)

    def _follow_aliases(self, function: Function) -> tuple[Function, _Found | None]:
        """The topmost function under whose requester ID the DMA arrives, or a group on the way."""
        device = function
        if function.bdf.domain >= VMD_FIRST_DOMAIN:
            device = self._vmd.get(function.bdf.domain, function)
        if device is not function:
            alias = Alias(device.bdf.requester_id, AliasSource.VMD, device.bdf)
            self._note(Rule.DMA_ALIAS, function.bdf, False, _dma_text(function, alias))
            if device.bdf in self.whys:
                return device, _Found(Rule.DMA_ALIAS, device.bdf, alias=alias)
        own = device
        for alias in self._aliases_above(own):
            self._note(Rule.DMA_ALIAS, own.bdf, False, _dma_text(own, alias))
            device = self.topology[alias.device]
            if alias.device in self.whys:
                return device, _Found(Rule.DMA_ALIAS, alias.device, alias=alias)
        if device is function:
            self._note(
                Rule.DMA_ALIAS,
                function.bdf,
                True,
                f"no bridge above replaces the requester ID of {function.bdf}",
            )
        return device, None

    def _aliases_above(self, function: Function) -> tuple[Alias, ...]:
        key = (function.bdf.domain, function.bdf.bus)
        known = self._bus_aliases.get(key)
        if known is None:
            known = tuple(bridge_aliases(self.topology, function, quirks=self.quirks))
            self._bus_aliases[key] = known
        return known

    def _follow_path(self, device: Function) -> tuple[Function, _Found | None]:
        """The topmost function below which peers are not kept apart, or a group on the way."""
        for _bus, bridge in buses_above(self.topology, device):
            failures = self._failures_above(bridge)
            if self.steps is not None:
                self._note_path(bridge)
            if not failures:
                break
            device = bridge
            if bridge.bdf in self.whys:
                return device, _Found(Rule.PATH_NOT_ISOLATED, bridge.bdf, failures)
        return device, None

    def _failures_above(self, bridge: Function) -> tuple[AcsWhy, ...]:
        """Those of ``bridge`` and the bridges above it that do not enforce ACS, nearest first."""
        known = self._path_failures.get(bridge.bdf)
        if known is None:
            verdict = self.verdict(bridge)
            above = self.topology.upstream_bridge(bridge)
            known = self._failures_above(above) if above is not None else ()
            if not verdict:
                known = (verdict.why, *known)
            self._path_failures[bridge.bdf] = known
        return known

    def _search_aliases(self, function: Function, visited: set[int]) -> _Found | None:
        """A group among the functions of the bus that share a requester ID by quirk."""
        bdf = function.bdf
        if (bdf.domain, bdf.bus) not in self._aliased_buses:
            return None
        mine = self._masks.get(bdf, frozenset())
        for other in self.topology.bus_of(function).functions:
            uses_other = other.bdf.devfn in mine
            if other is function or not (
                uses_other or bdf.devfn in self._masks.get(other.bdf, frozenset())
            ):
                continue
            user, owner = (function, other) if uses_other else (other, function)
            alias = Alias(owner.bdf.requester_id, AliasSource.QUIRK, user.bdf, alias_quirk(user))
            self._note(Rule.ALIAS_SIBLING, user.bdf, False, f"{user.bdf} also uses {alias.text()}")
            joined = self._group_of_alias(other, visited)
            if joined is None:
                found = self._search_functions(other, visited)
                joined = found.other if found is not None else None
            if joined is not None:
                return _Found(Rule.ALIAS_SIBLING, joined, alias=alias)
        return None

    def _group_of_alias(self, function: Function, visited: set[int]) -> Bdf | None:
        """``function`` if it has a group, else one that it shares a requester ID with."""
        if function.bdf.devfn in visited:
            return None
        visited.add(function.bdf.devfn)
        if function.bdf in self.whys:
            return function.bdf
        found = self._search_aliases(function, visited)
        return found.other if found is not None else None

    def _search_functions(self, function: Function, visited: set[int]) -> _Found | None:
        """A group among the other functions of the device, when neither enforces ACS."""
        if not self.topology.is_multifunction(function):
            self._note(
                Rule.MULTIFUNCTION,
                function.bdf,
                True,
                f"{function.bdf} {_alone(function)}: isolated at its own level",
            )
            return None
        verdict = self.verdict(function)
        self._note_acs(Rule.MULTIFUNCTION, verdict.why)
        if verdict:
            return None
        for other in self._slots[function.bdf[:3]]:
            if other is function or self.verdict(other):
                continue
            joined = self._group_of_alias(other, visited)
            if joined is not None:
                whys = (verdict.why, self.verdict(other).why)
                return _Found(Rule.MULTIFUNCTION, joined, whys)
        return None

    def _note(self, rule: Rule, subject: Bdf, passed: bool, sentence: str) -> None:
        if self.steps is not None:
            self.steps.append(Step(rule, subject, passed, sentence))

    def _note_acs(self, rule: Rule, why: AcsWhy) -> None:
        if self.steps is not None:
            self.steps.append(acs_step(rule, why))

    def _note_path(self, bridge: Function) -> None:
        for each in (bridge, *self.topology.path_to_root(bridge)):
            self._note_acs(Rule.PATH_NOT_ISOLATED, self.verdict(each).why)

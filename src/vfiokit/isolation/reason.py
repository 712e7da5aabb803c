"""Why a function is in its IOMMU group: values that print as sentences."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vfiokit.isolation.acs import AcsWhy
from vfiokit.isolation.alias import Alias
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs


class Rule(Enum):
    """The step of ``pci_device_group`` that decided."""

    OWN = "own"
    """No earlier group had to be joined: a group was opened."""
    DMA_ALIAS = "dma-alias"
    """A bridge above replaces the requester ID, so the IOMMU cannot tell the function apart."""
    PATH_NOT_ISOLATED = "path-not-isolated"
    """A bridge above does not enforce the ACS bits that keep peers apart."""
    ALIAS_SIBLING = "alias-sibling"
    """By a kernel quirk, one function of the bus uses the requester ID of another."""
    MULTIFUNCTION = "multifunction"
    """Functions of one device, neither of which enforces ACS."""


class Why(NamedTuple):
    """The decision about one function.

    ``print(why.text())`` is the sentence for people; the fields are for programs.
    """

    rule: Rule
    subject: Bdf
    group: int
    others: tuple[Bdf, ...] = ()
    """The function whose group was joined; for :attr:`Rule.OWN`, those who joined later."""
    acs: tuple[AcsWhy, ...] = ()
    """The functions that do not enforce ACS, and so caused it."""
    alias: Alias | None = None
    """The requester ID that is not the subject's own."""

    @property
    def missing(self) -> Acs:
        """Every ACS bit whose absence mattered."""
        bits = Acs(0)
        for why in self.acs:
            bits |= why.missing
        return bits

    @property
    def quirk(self) -> str | None:
        """Name of the kernel quirk that decided, if one did."""
        if self.alias is not None and self.alias.quirk is not None:
            return self.alias.quirk.name
        for why in self.acs:
            if why.quirk is not None:
                return why.quirk.name
        return None

    def text(self) -> str:
        """One sentence with a full stop."""
        if self.rule is Rule.OWN:
            return self._own_text()
        head = f"{self.subject} shares group {self.group} with {self.others[0]} because"
        if self.rule is Rule.DMA_ALIAS:
            assert self.alias is not None
            return (
                f"{head} its requests reach the IOMMU as {self.alias.text()}: "
                "the IOMMU cannot tell them apart."
            )
        if self.rule is Rule.ALIAS_SIBLING:
            assert self.alias is not None
            return f"{head} {self.alias.device} also uses {self.alias.text()}."
        causes = _causes(self.acs)
        if self.rule is Rule.PATH_NOT_ISOLATED:
            return f"{head} {causes}, so its peers could reach it without passing the IOMMU."
        return f"{head} {causes}, so these functions of one device could reach each other."

    def _own_text(self) -> str:
        if not self.others:
            return (
                f"{self.subject} is alone in group {self.group}: no bridge above it and no "
                "function beside it breaks its isolation."
            )
        listed = ", ".join(str(bdf) for bdf in self.others[:4])
        if len(self.others) > 4:
            listed += f" and {len(self.others) - 4} more"
        return f"{self.subject} opens group {self.group}, which {listed} must share with it."


def _causes(whys: tuple[AcsWhy, ...]) -> str:
    """The verdicts joined; functions of which the same is true are told in one breath."""
    told: dict[str, list[AcsWhy]] = {}
    for why in whys:
        told.setdefault(why.predicate(), []).append(why)
    parts: list[str] = []
    for first, *same in told.values():
        like = f", like {' and '.join(str(why.subject) for why in same)}" if same else ""
        parts.append(first.text() + like)
    return " and ".join(parts)


class Step(NamedTuple):
    """One thing the kernel looked at on the way, in its order."""

    rule: Rule
    """The part of the algorithm it belongs to."""
    subject: Bdf
    passed: bool
    """Whether it spoke for isolation."""
    sentence: str

    def text(self) -> str:
        """The sentence."""
        return self.sentence


def acs_step(rule: Rule, why: AcsWhy) -> Step:
    """A step made of an ACS verdict."""
    return Step(rule, why.subject, why.isolated, why.text())

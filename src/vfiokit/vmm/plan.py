"""Plans A to D: four ways to give a guest a device, each a policy over the same trap map.

They are those of the talk "To Trap or Not To Trap: The PCI Passthrough" (Dongli Zhang, 2021), and
D in two forms, since remapping DMA and delivering interrupts without an exit are two things.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from vfiokit.vmm.policy import Delivery, PlacedBar, Policy
from vfiokit.vmm.trap_map import Access, Strength, Wish


class Bars(Enum):
    """What of a memory BAR reaches the device without an exit."""

    NONE = "nothing"
    ALL = "all, the MSI-X table too"
    DATA = "all but the MSI-X table"


@dataclass(frozen=True)
class PlanPolicy(Policy):
    """The usual policy, with BARs that are mapped less, or more."""

    bars: Bars = Bars.DATA

    def wishes(self, bar: PlacedBar) -> Iterator[Wish]:
        """Trap everything, or map everything, over what the function wants by itself."""
        name = f"{bar.device} BAR {bar.index}"
        if self.bars is Bars.NONE:
            yield Wish(bar.gpa, bar.size, Access.TRAP, Strength.DEMAND, name, bar.registers)
        elif self.bars is Bars.ALL:
            for offset, length, handler in bar.windows:
                yield Wish(
                    bar.gpa + offset, length, Access.DIRECT, Strength.INSIST, f"{name} all", handler
                )


class Plan(NamedTuple):
    """One of the plans."""

    letter: str
    """What it is called: ``A`` to ``D``, ``D-injected``."""
    title: str
    policy: PlanPolicy

    @property
    def works(self) -> bool:
        """Whether the guest's driver can get its data with it."""
        return self.policy.translate and self.policy.delivery is not Delivery.UNTOUCHED


PLANS = (
    Plan(
        "A",
        "trap everything",
        PlanPolicy("plan A", translate=True, delivery=Delivery.INJECTED, bars=Bars.NONE),
    ),
    Plan(
        "B",
        "map all BARs, the MSI-X table too",
        PlanPolicy("plan B", translate=False, delivery=Delivery.UNTOUCHED, bars=Bars.ALL),
    ),
    Plan(
        "C",
        "trap configuration space and the MSI-X table, redirect interrupts",
        PlanPolicy("plan C", translate=False, delivery=Delivery.INJECTED, bars=Bars.DATA),
    ),
    Plan(
        "D-injected",
        "C, and the IOMMU translates DMA; interrupts still injected by software",
        PlanPolicy("plan D, injected", translate=True, delivery=Delivery.INJECTED, bars=Bars.DATA),
    ),
    Plan(
        "D",
        "C, and the IOMMU translates DMA and posts interrupts",
        PlanPolicy("plan D", translate=True, delivery=Delivery.POSTED, bars=Bars.DATA),
    ),
)


def find_plans(letters: Iterable[str]) -> tuple[Plan, ...]:
    """The plans of these names, in any case; ``KeyError`` for one that there is not."""
    known = {plan.letter.lower(): plan for plan in PLANS}
    return tuple(known[letter.lower()] for letter in letters)

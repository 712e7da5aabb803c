"""NVIDIA's GPUDirect cliques: which GPUs of a guest may reach each other.

The driver in a guest does not trust the emulated tree. QEMU and Cloud Hypervisor can give an
assigned GPU a vendor capability with a clique number of 4 bits; GPUs of one number do P2P with one
another, so a clique must be one: every GPU in it reaches every other. Source: NVIDIA "GPUDirect
P2P in virtualization" capability as QEMU ``hw/vfio/pci-quirks.c`` has it, which takes NVIDIA
display devices only: network cards have no clique.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from vfiokit.p2p.guest_verdict import Pair
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function

NVIDIA = 0x10DE
MAX_CLIQUES = 16
"""Numbers 0 to 15."""
_DISPLAY = 0x03


class Cliques(NamedTuple):
    """Clique numbers, and who got none."""

    numbers: Mapping[Bdf, int]
    """By host address; a GPU that reaches no other has none."""
    left_out: tuple[str, ...] = ()
    """Why a GPU has no number although it reaches another, a sentence each."""


def takes_clique(function: Function) -> bool:
    """Whether QEMU accepts ``x-nv-gpudirect-clique`` for it: an NVIDIA display device."""
    identity = function.identity
    return identity.vendor_id == NVIDIA and identity.class_code >> 16 == _DISPLAY


def cliques(functions: Iterable[Function], pairs: Iterable[Pair]) -> Cliques:
    """Number the cliques among the GPUs of ``functions``, the largest first.

    ``pairs`` are of :func:`vfiokit.p2p.guest_verdict.compare`; only those known to work count.
    """
    gpus = [function.bdf for function in functions if takes_clique(function)]
    works = {frozenset((pair.one, pair.other)) for pair in pairs if pair.works}

    def reaches(one: Bdf, other: Bdf) -> bool:
        return frozenset((one, other)) in works

    numbers: dict[Bdf, int] = {}
    left_out: list[str] = []
    parts = partition(gpus, reaches)
    for number, part in enumerate(parts):
        if number >= MAX_CLIQUES:
            listed = ", ".join(map(str, part))
            left_out.append(f"{listed}: there are only {MAX_CLIQUES} clique numbers")
        else:
            numbers.update(dict.fromkeys(part, number))
    for gpu in gpus:
        torn = [other for other in gpus if other != gpu and reaches(gpu, other)]
        if gpu not in numbers and torn and not any(str(gpu) in text for text in left_out):
            left_out.append(f"{gpu} reaches {torn[0]}, whose clique it cannot join as a whole")
    return Cliques(numbers, tuple(left_out))


def partition(members: Sequence[Bdf], reaches: Callable[[Bdf, Bdf], bool]) -> list[tuple[Bdf, ...]]:
    """Disjoint cliques of two or more, the largest first; members in their order.

    Takes the largest clique again and again. Reachability below switches is an equivalence, so
    that usually there is nothing to choose.
    """
    rest = list(members)
    found: list[tuple[Bdf, ...]] = []
    while rest:
        best = _largest(rest, reaches)
        if len(best) < 2:
            break
        found.append(tuple(best))
        rest = [member for member in rest if member not in best]
    return found


def _largest(members: Sequence[Bdf], reaches: Callable[[Bdf, Bdf], bool]) -> list[Bdf]:
    """The largest clique, the first of equals (branch and bound)."""
    best: list[Bdf] = []
    pending: list[tuple[list[Bdf], list[Bdf]]] = [([], list(members))]
    while pending:
        chosen, candidates = pending.pop()
        if len(chosen) > len(best):
            best = chosen
        if len(chosen) + len(candidates) <= len(best):
            continue
        first, *others = candidates
        pending.append((chosen, others))
        pending.append(([*chosen, first], [each for each in others if reaches(first, each)]))
    return best

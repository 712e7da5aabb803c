"""Three ways for a guest to learn who reaches whom, run and compared.

The same devices go to one guest after another; in each, machine code asks about every pair. What
it is told is held against what the host's kernel says of the same pair, exits and time are counted,
and what a way costs beyond them is written down: how far the virtual machine differs from the usual
one, and which facts about the host the guest gets to know.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from vfiokit.errors import UsageError
from vfiokit.host.processor import Cpu
from vfiokit.kernel.port import Kernel
from vfiokit.p2p.chain import redirect
from vfiokit.p2p.guest import GuestPlan, Variant, flat
from vfiokit.p2p.guest_tree import replicated
from vfiokit.p2p.number import MAP_TYPES
from vfiokit.p2p.peers import Peers
from vfiokit.pci.address import Bdf
from vfiokit.pci.blueprint import RootPort, Slot, Switch, children
from vfiokit.pci.topology import Function, Topology
from vfiokit.vfio import Device, open_address_space, open_device
from vfiokit.vmm import p2p_tree
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.p2p import HYPERCALL, DevicePeers, Outcome, RegisteredPeers, Reply
from vfiokit.vmm.p2p import hypercall as answer_hypercall
from vfiokit.vmm.p2p_guest import MOST_PAIRS, RAM_SIZE, Program, run
from vfiokit.vmm.virtio_p2p import plug

Pair = tuple[Bdf, Bdf]

_WORDS = {number: kind.value for kind, number in MAP_TYPES.items()}
_REPEATS = 3
"""Runs of which the fastest is taken."""
MOST_FUNCTIONS = 16
"""Functions whose ordered pairs a guest program takes at a time."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way for the guest to learn the truth."""

    name: str
    proposal: int
    """Of "PCI P2P inside VM" (LPC 2022); 0 for a guest that is left alone."""
    title: str
    variant: Variant
    program: Program


WAYS = (
    Way("alone", 0, "the usual tree, nobody to ask", Variant.FLAT, Program.TOPOLOGY),
    Way("replicated", 1, "the host's tree of emulated ports", Variant.REPLICATED, Program.TOPOLOGY),
    Way("seed", 1, "the host's tree, ports that show its ACS", Variant.SEED, Program.TOPOLOGY),
    Way("hypercall", 2, "a hypercall, answered by the host's kernel", Variant.FLAT,
        Program.HYPERCALL),
    Way("virtio", 3, "a virtio device, answered by the hypervisor", Variant.FLAT, Program.VIRTIO),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """What the guest was told of one pair."""

    provider: Bdf
    """On the host."""
    client: Bdf
    reply: Reply
    truth: Reply
    """What the host's kernel says."""

    @property
    def same_type(self) -> bool:
        """Whether the map type is the host's."""
        return self.reply[:2] == self.truth[:2]

    @property
    def same(self) -> bool:
        """Whether the distance is, too."""
        return self.reply == self.truth

    def text(self) -> str:
        """What it was told, in words."""
        return reply_text(self.reply)


def reply_text(reply: Reply) -> str:
    """Map type and distance, or the refusal, in words."""
    if reply.outcome is not Outcome.OK:
        return reply.outcome.name.lower().replace("_", " ")
    return f"{_WORDS[reply.map_type]} {reply.distance}"


@dataclass(frozen=True, slots=True)
class Result:
    """One way, run."""

    way: Way
    told: tuple[Told, ...]
    questions: int
    """How often it asked: every pair several times, the same number each."""
    exits_before: Mapping[str, int]
    """Exits before the first question, by what they were for."""
    exits: Mapping[str, int]
    """Exits of all questions together."""
    seconds_before: float
    seconds_each: float
    """Of a question, on the clock of the wall."""
    changed: tuple[str, ...]
    """What differs from the usual virtual machine."""
    exposed: tuple[str, ...]
    """What the guest gets to know of the host."""

    @property
    def correct(self) -> int:
        """Pairs with the host's map type and distance."""
        return sum(each.same for each in self.told)

    @property
    def correct_types(self) -> int:
        """Pairs with the host's map type."""
        return sum(each.same_type for each in self.told)

    @property
    def exits_each(self) -> float:
        """Exits for one question."""
        return sum(self.exits.values()) / self.questions

    def document(self) -> dict[str, Any]:
        """The result as one JSON object."""
        return {
            "name": self.way.name,
            "proposal": self.way.proposal,
            "title": self.way.title,
            "questions": self.questions,
            "correct": self.correct,
            "correct_types": self.correct_types,
            "exits_before": dict(self.exits_before),
            "exits": dict(self.exits),
            "seconds_before": round(self.seconds_before, 6),
            "exits_each": round(self.exits_each, 3),
            "seconds_each": round(self.seconds_each, 9),
            "changed": list(self.changed),
            "exposed": list(self.exposed),
            "answers": [
                {
                    "provider": str(each.provider),
                    "client": str(each.client),
                    "outcome": each.reply.outcome.name.lower(),
                    "map_type": _map_type(each.reply),
                    "distance": each.reply.distance,
                    "host_map_type": _map_type(each.truth),
                    "host_distance": each.truth.distance,
                }
                for each in self.told
            ],
        }


def _map_type(reply: Reply) -> str | None:
    return _WORDS[reply.map_type] if reply.outcome is Outcome.OK else None


class Comparison:
    """The same functions of one host given to a guest in every way.

    They are bound to vfio-pci already. ``cpu`` is the host's processor where it is known. Raises
    :class:`UsageError` for fewer than two functions or more than :data:`MOST_FUNCTIONS`.
    """

    def __init__(
        self,
        kernel: Kernel,
        topology: Topology,
        functions: Sequence[Function],
        *,
        cpu: Cpu | None = None,
    ) -> None:
        if not 2 <= len(functions) <= MOST_FUNCTIONS:
            raise UsageError(
                f"{len(functions)} functions make no table of pairs",
                hint=f"name 2 to {MOST_FUNCTIONS} of them",
            )
        assert MOST_FUNCTIONS * (MOST_FUNCTIONS - 1) <= MOST_PAIRS
        self._kernel = kernel
        self._host = topology
        self._functions = tuple(functions)
        self._peers = Peers(topology, cpu=cpu)
        self.pairs: tuple[Pair, ...] = tuple(
            permutations((function.bdf for function in functions), 2)
        )
        """Provider and client, on the host."""

    @property
    def functions(self) -> tuple[Bdf, ...]:
        """The functions, on the host."""
        return tuple(function.bdf for function in self._functions)

    def run(self, way: Way) -> Result:
        """Build the guest, let it ask, close it."""
        plan = self._plan(way.variant)
        with self._devices() as devices, self._machine() as vm:
            made = p2p_tree.build(vm, plan, self._host, devices)
            if way.program is Program.HYPERCALL:
                peers = RegisteredPeers(self._kernel, vm.pci)
                vm.hypercalls[HYPERCALL] = answer_hypercall(peers)
                for bdf, function in made.items():
                    peers.assign(function, devices[bdf])
            elif way.program is Program.VIRTIO:
                source = DevicePeers(self._kernel, vm.pci)
                for bdf, function in made.items():
                    source.assign(function, devices[bdf])
                plug(vm, source)
                place_everything(vm.pci)
            before, spent_before, _ = self._ask(vm, plan, way.program, ())
            # With one question the program's code is translated, which is the interpreter's price.
            spent_once = min(
                self._ask(vm, plan, way.program, self.pairs[:1])[1] for _ in range(_REPEATS)
            )
            asked = self.pairs * (MOST_PAIRS // len(self.pairs))
            runs = [self._ask(vm, plan, way.program, asked) for _ in range(_REPEATS)]
            total, _, replies = runs[0]
            spent = min(seconds for _, seconds, _ in runs)
            if way.program is Program.HYPERCALL:
                peers.close()
        total.subtract(before)
        return Result(
            way,
            tuple(
                Told(provider, client, reply, self._truth(provider, client))
                for (provider, client), reply in zip(self.pairs, replies, strict=False)
            ),
            len(asked),
            dict(before),
            dict(+total),
            spent_before,
            max(spent - spent_once, 0.0) / (len(asked) - 1),
            tuple(self._changes(way, plan)),
            tuple(self._exposed(way, plan)),
        )

    def _plan(self, variant: Variant) -> GuestPlan:
        if variant is Variant.FLAT:
            return flat(self._functions)
        return replicated(self._host, self._functions, seed=variant is Variant.SEED)

    def _machine(self) -> VirtualMachine:
        return VirtualMachine(self._kernel, GuestMemory.of_size(self._kernel, RAM_SIZE))

    @contextmanager
    def _devices(self) -> Iterator[dict[Bdf, Device]]:
        bdfs = [function.bdf for function in self._functions]
        with ExitStack() as stack:
            space = open_address_space(self._kernel, *bdfs)
            stack.callback(space.close)
            found = {}
            for bdf in bdfs:
                device = open_device(self._kernel, bdf, address_space=space)
                found[bdf] = stack.enter_context(device)
            yield found

    def _ask(
        self, vm: VirtualMachine, plan: GuestPlan, program: Program, pairs: Sequence[Pair]
    ) -> tuple[Counter[str], float, tuple[Reply, ...]]:
        """Exits and seconds that a run of the program took, and its replies."""
        addresses = [(plan.address(one), plan.address(other)) for one, other in pairs]
        roots = [bridge.bus for bridge in plan.blueprint.host_bridges]
        cpu = self._peers.cpu
        vm.exits.clear()
        begun = time.perf_counter()
        zen = cpu is not None and cpu.is_zen
        replies = run(vm, program, addresses, root_buses=roots, zen=zen)
        return Counter(vm.exits), time.perf_counter() - begun, replies

    def _truth(self, provider: Bdf, client: Bdf) -> Reply:
        verdict = self._peers.verdict(provider, client)
        return Reply(Outcome.OK, MAP_TYPES[verdict.map_type], verdict.distance)

    # -- the price ----------------------------------------------------------------------------

    def _changes(self, way: Way, plan: GuestPlan) -> Iterator[str]:
        usual = self._plan(Variant.FLAT)
        if way.program is Program.VIRTIO:
            yield "one more device: virtio-p2p"
        if way.variant is Variant.FLAT:
            return
        before, after = _parts(usual), _parts(plan)
        for kind in sorted(before.keys() | after.keys()):
            if before[kind] != after[kind]:
                yield f"{after[kind]} instead of {before[kind]} of {kind}"
        bdfs = plan.functions.values()
        moved = sum(plan.address(bdf) != usual.address(bdf) for bdf in bdfs)
        if moved:
            yield f"{moved} of {len(plan.functions)} functions at other addresses"
        if way.variant is Variant.SEED:
            yield "ports that no released QEMU has, and a kernel that trusts them"

    def _exposed(self, way: Way, plan: GuestPlan) -> Iterator[str]:
        if way.variant is Variant.FLAT:
            yield "what it asks for" if way.proposal else "nothing"
            return
        bridges = len(plan.blueprint.host_bridges) - 1
        yield f"how the functions hang on {bridges} host bridge{'s' * (bridges != 1)}"
        if plan.mirrors:
            yield f"where {len(plan.mirrors)} ports and switches are"
        if plan.nodes:
            yield f"{len(plan.nodes)} NUMA node{'s' * (len(plan.nodes) != 1)}"
        if way.variant is Variant.SEED:
            shown = [bdf for bdf in plan.mirrors.values() if self._host[bdf].acs is not None]
            set_ = sum(bool(redirect(self._host[bdf])) for bdf in shown)
            yield f"ACS registers of {len(shown)} ports, {set_} of them redirecting"
            yield "ids of the host bridges"


def _parts(plan: GuestPlan) -> Counter[str]:
    """What a virtual machine's tree is made of, by kind."""
    found: Counter[str] = Counter()
    for bridge in plan.blueprint.host_bridges:
        found["expander bridges"] += bridge.bus != 0
        pending: list[Any] = list(bridge.items)
        while pending:
            node = pending.pop()
            if isinstance(node, Slot):
                pending += node.functions
                continue
            found["root ports"] += isinstance(node, RootPort)
            found["switches"] += isinstance(node, Switch)
            pending += children(node)
    return found

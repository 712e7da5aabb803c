"""Guests that ask, in machine code: held against the kernel's rule on the same tree."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from p2p_rig import bind, build, opened

from vfiokit.abi import vfio_p2p as abi
from vfiokit.errors import KernelError, UsageError
from vfiokit.host.processor import Cpu
from vfiokit.machine.assembly import assemble
from vfiokit.machine.kernel import guest_peers
from vfiokit.p2p import Peers, guest_topology
from vfiokit.p2p.guest import flat
from vfiokit.p2p.guest_islands import islands
from vfiokit.p2p.guest_tree import replicated
from vfiokit.p2p.guest_verdict import compare
from vfiokit.p2p.number import MAP_TYPES
from vfiokit.pci.address import Bdf
from vfiokit.vmm import p2p_tree
from vfiokit.vmm.exit import Exit, ExitReason
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.p2p import (
    HYPERCALL,
    DevicePeers,
    Outcome,
    RegisteredPeers,
    Reply,
    guest_address,
    hypercall,
)
from vfiokit.vmm.p2p_guest import (
    MOST_PAIRS,
    RAM_SIZE,
    GuestProgramError,
    Program,
    functions_found,
    run,
    write_parameters,
)
from vfiokit.vmm.virtio_p2p import plug

INTEL = Cpu("GenuineIntel", 6, 0x55)
ZEN = Cpu("AuthenticAMD", 0x19, 1)


@contextmanager
def guest_of(assembly, plan, devices):
    """A machine with the tree of ``plan``, and its assigned functions by host address."""
    kernel = assembly.kernel
    with VirtualMachine(kernel, GuestMemory.of_size(kernel, RAM_SIZE)) as vm:
        yield vm, p2p_tree.build(vm, plan, assembly.topology(), devices)


def pairs_of(plan):
    bdfs = [plan.address(bdf) for bdf in plan.functions.values()]
    return [(one, other) for one in bdfs for other in bdfs]


def check_topology(assembly, names, make, cpu=INTEL, devices=None) -> None:
    topology = assembly.topology()
    plan = make(topology, [topology[assembly[name]] for name in names])
    with opened(assembly, *names) as found:
        devices = {assembly[name]: device for name, device in found.items()}
        with guest_of(assembly, plan, devices) as (vm, _made):
            pairs = pairs_of(plan)
            roots = [bridge.bus for bridge in plan.blueprint.host_bridges]
            replies = run(vm, Program.TOPOLOGY, pairs, root_buses=roots, zen=cpu.is_zen)
            expected = guest_topology.topology(plan, topology)
            assert functions_found(vm.memory) == len(expected)
            assert set(vm.exits) == {"config"}
    peers = Peers(expected, cpu=cpu)
    for pair, reply in zip(pairs, replies, strict=True):
        verdict = peers.verdict(*pair)
        assert reply == Reply(Outcome.OK, MAP_TYPES[verdict.map_type], verdict.distance), pair


def believed(topology, functions):
    plan = flat(functions)
    guest = Peers(guest_topology.topology(plan, topology), cpu=INTEL)
    return compare(Peers(topology, cpu=INTEL), plan, guest)


VARIANTS = {
    "flat": lambda _topology, functions: flat(functions),
    "replicated": replicated,
    "seed": lambda topology, functions: replicated(topology, functions, seed=True),
    "islands": lambda topology, functions: islands(
        topology, functions, believed(topology, functions)
    ),
}


@pytest.mark.parametrize(
    ("variant", "cpu"), [*((name, INTEL) for name in VARIANTS), ("flat", ZEN), ("seed", ZEN)]
)
def test_guest_concludes_from_its_tree_what_linux_would(variant, cpu):
    check_topology(build(), "abcdef", VARIANTS[variant], cpu)


loads = st.recursive(
    st.just("nvme"),
    lambda inner: st.tuples(
        st.sampled_from(["", " acs"]), st.lists(inner, min_size=1, max_size=3)
    ).map(lambda pair: f"sw{pair[0]}({', '.join(pair[1])})"),
    max_leaves=4,
)
ports = st.tuples(st.sampled_from(["rp", "rp noacs"]), loads).map(lambda x: f"{x[0]}({x[1]})")
texts = st.tuples(
    st.lists(ports, min_size=1, max_size=2),
    st.sampled_from(["8086:2020", "8086:2f00", "1ae0:0001", "1234:5678"]),
    st.lists(ports, min_size=1, max_size=2),
).map(lambda x: f"{', '.join(x[0])}, hb bus=0x40 ids={x[1]} ({', '.join(x[2])})")


@settings(max_examples=8, deadline=None)
@given(texts, st.sampled_from(["replicated", "seed"]), st.sampled_from([INTEL, ZEN]))
def test_every_mirrored_tree_is_judged_as_linux_would(text, variant, cpu):
    assembly = assemble(text, ram=1 << 30)
    names = [name for name, place in assembly.places.items() if name.startswith("nvme")]
    check_topology(assembly, names, VARIANTS[variant], cpu)


def test_guest_that_asks_for_what_is_not_there_is_told_so():
    assembly = build("rp0(nvme:a)")
    with VirtualMachine(assembly.kernel, GuestMemory.of_size(assembly.kernel, RAM_SIZE)) as vm:
        here, nowhere = Bdf(0, 0, 0x1F, 0), Bdf(0, 7, 0, 0)
        replies = run(vm, Program.TOPOLOGY, [(here, nowhere), (nowhere, here), (here, here)])
        assert [reply.outcome for reply in replies] == [
            Outcome.NO_FUNCTION, Outcome.NO_FUNCTION, Outcome.OK,
        ]  # fmt: skip
        with pytest.raises(GuestProgramError, match="no virtio P2P device"):
            run(vm, Program.VIRTIO, [])
        # No hypercall of this number: ENOSYS is negative, too.
        (reply,) = run(vm, Program.HYPERCALL, [(here, here)])
        assert reply.outcome is Outcome.NO_FUNCTION
        with pytest.raises(UsageError):
            write_parameters(vm.memory, [(here, here)] * (MOST_PAIRS + 1))


# -- hypercall and device


@pytest.fixture
def flat_guest():
    """Two drives below one switch, a third elsewhere, each below a port of the guest's."""
    assembly = build()
    guest_peers.load(assembly.kernel)
    topology = assembly.topology()
    plan = flat([topology[assembly[name]] for name in "abe"])
    with opened(assembly, "a", "b", "e") as found:
        devices = {assembly[name]: device for name, device in found.items()}
        with guest_of(assembly, plan, devices) as (vm, made):
            places = {name: plan.address(assembly[name]) for name in "abe"}
            functions = {name: made[assembly[name]] for name in "abe"}
            yield assembly, vm, places, functions, {name: found[name] for name in "abe"}


def attach(vm, kernel, functions, devices, names="abe") -> RegisteredPeers:
    peers = RegisteredPeers(kernel, vm.pci)
    for name in names:
        peers.assign(functions[name], devices[name])
    vm.hypercalls[HYPERCALL] = hypercall(peers)
    return peers


def test_hypercall_answers_for_assigned_functions_with_one_exit_each(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices)
    pairs = [(places["a"], places["b"]), (places["b"], places["e"])]
    assert run(vm, Program.HYPERCALL, pairs) == (
        Reply(Outcome.OK, abi.VFIO_P2P_BUS_ADDR, 4),
        Reply(Outcome.OK, abi.VFIO_P2P_THRU_HOST_BRIDGE, 6),
    )
    assert vm.exits == {"hypercall": 2}
    peers.close()


def test_hypercall_refuses_what_is_not_assigned(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices, "ab")
    emulated, nowhere = Bdf(0, 0, 0x1F, 0), Bdf(0, 0x70, 0, 0)
    pairs = [(places["a"], each) for each in (places["e"], emulated, nowhere)]
    assert {reply.outcome for reply in run(vm, Program.HYPERCALL, pairs)} == {Outcome.NO_FUNCTION}
    peers.enabled = False
    (reply,) = run(vm, Program.HYPERCALL, [(places["a"], places["b"])])
    assert reply.outcome is Outcome.DENIED
    peers.close()


def test_hypercall_checks_its_arguments(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices)
    answer = vm.hypercalls[HYPERCALL]
    a, b = guest_address(places["a"]), guest_address(places["b"])
    assert answer(vm, None, (a, b, 0, 0)) == 4 << 8 | 2
    assert answer(vm, None, (a, b, 1, 0)) == -22
    assert answer(vm, None, (1 << 32 | a, b, 0, 0)) == -22
    assert answer(vm, None, (a, 1 << 63, 0, 0)) == -22
    assert answer(vm, None, ()) == -22  # nothing is assigned at 00:00.0
    peers.close()
    assert answer(vm, None, (a, b, 0, 0)) == -1000


def test_function_of_another_guest_is_nobodys(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices, "a")
    other = RegisteredPeers(assembly.kernel, vm.pci)
    other.assign(functions["b"], devices["b"])
    pairs = [(places["a"], places["b"]), (places["a"], places["a"])]
    assert [each.outcome for each in run(vm, Program.HYPERCALL, pairs)] == [
        Outcome.NO_FUNCTION,
        Outcome.OK,
    ]
    with pytest.raises(KernelError) as caught:
        peers.assign(functions["b"], devices["b"])
    assert "EBUSY" in str(caught.value) or caught.value.errno == 16
    other.close()
    peers.close()


@pytest.mark.parametrize("kind", ["hypercall", "device"])
def test_guest_that_renumbers_buses_asks_by_the_new_numbers(flat_guest, kind):
    assembly, vm, places, functions, devices = flat_guest
    if kind == "hypercall":
        peers = attach(vm, assembly.kernel, functions, devices)
    else:
        peers = DevicePeers(assembly.kernel, vm.pci)
        for name in "abe":
            peers.assign(functions[name], devices[name])
    a, b = guest_address(places["a"]), guest_address(places["b"])
    good = Reply(Outcome.OK, abi.VFIO_P2P_BUS_ADDR, 4)
    assert peers.ask(a, b) == good
    bridge = vm.pci.segment_of(functions["a"]).bridge
    assert bridge is not None
    vm.pci.config_write(0, bridge.bdf.devfn, 0x18, 4, 0x0070_7000)
    assert peers.ask(a, b).outcome is Outcome.NO_FUNCTION
    assert peers.ask(0x7000, b) == good
    # The numbers of two swapped: neither keeps the other's place.
    other = vm.pci.segment_of(functions["b"]).bridge
    vm.pci.config_write(0, bridge.bdf.devfn, 0x19, 2, places["b"].bus * 0x101)
    vm.pci.config_write(0, other.bdf.devfn, 0x19, 2, places["a"].bus * 0x101)
    assert peers.ask(b, a) == good
    # Behind a bus that has no number a function cannot be named.
    vm.pci.config_write(0, bridge.bdf.devfn, 0x18, 4, 0)
    assert peers.ask(b, a).outcome is Outcome.NO_FUNCTION
    peers.remove(functions["b"])
    assert peers.ask(a, a).outcome is Outcome.NO_FUNCTION


def test_device_that_the_kernel_refuses_does_not_stop_the_guest(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices, "a")
    other = RegisteredPeers(assembly.kernel, vm.pci)
    with pytest.raises(KernelError):
        other.assign(functions["a"], devices["a"])
    b = guest_address(places["b"])
    with pytest.raises(KernelError):
        other.assign(functions["b"], devices["b"])  # still told of the first
    assert other.ask(b, b).outcome is Outcome.OK
    bridge = vm.pci.segment_of(functions["a"]).bridge
    vm.pci.config_write(0, bridge.bdf.devfn, 0x18, 4, 0x0070_7000)
    assert peers.ask(0x7000, 0x7000).outcome is Outcome.OK
    assert other.ask(0x7000, 0x7000).outcome is Outcome.NO_FUNCTION
    other.close()
    peers.close()


def test_function_that_left_is_no_longer_answered_for(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices)
    device = DevicePeers(assembly.kernel, vm.pci)
    for name in "abe":
        device.assign(functions[name], devices[name])
    a, b = guest_address(places["a"]), guest_address(places["b"])
    vm.remove(functions["a"])
    for each in (peers, device):
        assert each.ask(a, b).outcome is Outcome.NO_FUNCTION
        assert each.ask(b, b).outcome is Outcome.OK
    peers.remove(functions["a"])
    assert peers.ask(b, b).outcome is Outcome.OK


def test_virtio_driver_in_the_guest_gets_its_answers(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    source = DevicePeers(assembly.kernel, vm.pci)
    for name in "abe":
        source.assign(functions[name], devices[name])
    made = plug(vm, source, 0x10)
    made.config.write(0x10, 4, 0xF000_0000)
    made.config.write(0x14, 4, 0xF001_0000)
    # More questions than the queue has entries.
    pairs = [(places["a"], places["b"]), (places["e"], places["a"])] * 10
    pairs.append((places["a"], Bdf(0, 0x70, 0, 0)))
    replies = run(vm, Program.VIRTIO, pairs)
    assert replies[:2] == (Reply(Outcome.OK, 2, 4), Reply(Outcome.OK, 3, 6))
    assert replies[-1].outcome is Outcome.NO_FUNCTION
    assert replies[:20] == replies[:2] * 10
    assert source.asks_kernel
    assert not made.failure
    vm.exits.clear()
    run(vm, Program.VIRTIO, [])
    before = vm.exits["virtio"]
    vm.exits.clear()
    run(vm, Program.VIRTIO, pairs)
    assert vm.exits["virtio"] == before + len(pairs)
    source.enabled = False
    (reply,) = run(vm, Program.VIRTIO, pairs[:1])
    assert reply.outcome is Outcome.DENIED


def test_guest_hears_that_answers_may_have_changed(flat_guest):
    assembly, vm, _places, functions, devices = flat_guest
    source = DevicePeers(assembly.kernel, vm.pci)
    made = plug(vm, source)
    assert vm.pci.find(0, made.bdf.devfn) is made
    generations = [made.generation]
    source.assign(functions["a"], devices["a"])
    generations.append(made.generation)
    source.enabled = False
    assert made.device.configuration()[6:8] == b"\0\0"
    generations.append(made.generation)
    source.enabled = True
    source.remove(functions["a"])
    generations.append(made.generation)
    assert generations == [0, 1, 2, 4]
    assert made.device.configuration()[6:12] == b"\1\0\4\0\0\0"
    with pytest.raises(UsageError):
        plug(vm, source, 0)


# -- a kernel without answers


class Unreadable:
    """A kernel that answers requests, and shows no files."""

    def __init__(self, kernel) -> None:
        self.ioctl = kernel.ioctl

    @property
    def tree(self) -> object:
        raise PermissionError(13, "no sysfs here")


def test_plain_kernel_has_no_hypercall_but_the_device_computes(flat_guest):
    assembly = build()
    topology = assembly.topology()
    plan = flat([topology[assembly[name]] for name in "ab"])
    with opened(assembly, "a", "b") as found:
        devices = {assembly[name]: device for name, device in found.items()}
        with guest_of(assembly, plan, devices) as (vm, made):
            with pytest.raises(KernelError):
                RegisteredPeers(assembly.kernel, vm.pci)
            source = DevicePeers(assembly.kernel, vm.pci)
            for bdf, function in made.items():
                source.assign(function, devices[bdf])
            a, b = (guest_address(plan.address(assembly[name])) for name in "ab")
            assert source.ask(a, b) == Reply(Outcome.OK, abi.VFIO_P2P_BUS_ADDR, 4)
            assert not source.asks_kernel
            assert source.ask(b, a) == Reply(Outcome.OK, abi.VFIO_P2P_BUS_ADDR, 4)
            # What cannot be read is no crash of the guest.
            other = DevicePeers(Unreadable(assembly.kernel), vm.pci)
            for bdf, function in made.items():
                other.assign(function, devices[bdf])
            assert other.ask(a, b) == Reply(Outcome.FAILED)


def test_missing_device_is_said_before_anything_is_built():
    assembly = build("rp0(nvme:a), rp1(nvme:b)")
    bind(assembly, assembly["a"])
    topology = assembly.topology()
    plan = flat([topology[assembly[name]] for name in "ab"])
    with VirtualMachine(assembly.kernel, GuestMemory.of_size(assembly.kernel, RAM_SIZE)) as vm:
        before = len(list(vm.pci.functions()))
        with pytest.raises(UsageError, match="not open"):
            p2p_tree.build(vm, plan, topology, {})
        assert len(list(vm.pci.functions())) == before


def test_exit_of_a_hypercall_carries_both_addresses(flat_guest):
    assembly, vm, places, functions, devices = flat_guest
    peers = attach(vm, assembly.kernel, functions, devices)
    seen = []

    class Recorder:
        def complete(self, *values: int) -> None:
            seen.append(values)

    a, b = guest_address(places["a"]), guest_address(places["b"])
    vm.handle(Recorder(), Exit(ExitReason.HYPERCALL, HYPERCALL, arguments=(a, b, 0, 0)))
    vm.handle(Recorder(), Exit(ExitReason.HYPERCALL, HYPERCALL, arguments=(a, 0x7000, 0, 0)))
    assert seen == [(4 << 8 | 2,), ((1 << 64) - 22,)]
    peers.close()

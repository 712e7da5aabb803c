"""Whatever a guest puts into registers and bus numbers, only its own functions are answered for.

Run with ``python tests/fuzz/fuzz_hypercall.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace

from fuzzing import fuzz

STEP = 18
"""Bytes of an action: what to do, and 17 bytes to do it with."""
NAMES = "abc"


@cache
def machine() -> SimpleNamespace:
    """Three drives of one host: two of this guest, one of another."""
    from vfiokit.machine.assembly import assemble
    from vfiokit.machine.kernel import guest_peers
    from vfiokit.p2p.guest import flat
    from vfiokit.vfio import open_device
    from vfiokit.vmm import p2p_tree
    from vfiokit.vmm.machine import VirtualMachine
    from vfiokit.vmm.memory import GuestMemory
    from vfiokit.vmm.p2p import RegisteredPeers, hypercall

    assembly = assemble("rp0(sw(nvme:a, nvme:b)), rp1(nvme:c)", native_drivers=False)
    kernel, topology = assembly.kernel, assembly.topology()
    guest_peers.load(kernel)
    for name in NAMES:
        place = f"/sys/bus/pci/devices/{assembly[name]}"
        kernel.tree.write(f"{place}/driver_override", b"vfio-pci")
        kernel.tree.write("/sys/bus/pci/drivers_probe", str(assembly[name]).encode())
    stack = ExitStack()
    memory = GuestMemory.of_size(kernel, 1 << 20)
    vm = stack.enter_context(VirtualMachine(kernel, memory))
    plan = flat([topology[assembly[name]] for name in NAMES])
    devices = {assembly[name]: open_device(kernel, assembly[name]) for name in NAMES}
    made = p2p_tree.build(vm, plan, topology, devices)
    peers, other = RegisteredPeers(kernel, vm.pci), RegisteredPeers(kernel, vm.pci)
    for name in NAMES:
        bdf = assembly[name]
        (other if name == "c" else peers).assign(made[bdf], devices[bdf])
    ports = [plan.places[name].bdf for name in ("rp0", "rp1", "rp2")]
    return SimpleNamespace(
        vm=vm, ports=ports, answer=hypercall(peers), stack=stack, peers=peers, other=other,
        functions=[made[assembly[name]] for name in NAMES],
    )  # fmt: skip


def addresses(vm: object, functions: list[object]) -> set[int]:
    """Where the guest finds ``functions`` now."""
    from vfiokit.vmm.p2p import guest_address

    found = set()
    for function in functions:
        bdf = vm.pci.guest_address(function)
        if vm.pci.find(bdf.bus, bdf.devfn) is function:
            found.add(guest_address(bdf))
    return found


def one_input(data: bytes) -> None:
    """Renumber buses and ask, in the order of the input."""
    host = machine()
    bus = host.vm.pci
    for number, port in enumerate(host.ports, 1):
        bus.config_write(0, port.devfn, 0x18, 4, number << 16 | number << 8)
    for start in range(0, min(len(data), 32 * STEP), STEP):
        step = data[start : start + STEP].ljust(STEP, b"\0")
        one, two, flags = step[0], struct.unpack_from("<QQ", step, 1), step[17]
        if one & 1:
            port = host.ports[one >> 1 & 1]
            width = (4, 1, 2, 1)[one >> 2 & 3]
            value = two[0] & (1 << 8 * width) - 1
            bus.config_write(0, port.devfn, 0x18 + (width == 1), width, value)
            continue
        # Small numbers often name a function.
        ends = tuple(value & 0xFFFF if one & 2 else value for value in two)
        result = host.answer(host.vm, None, (*ends, flags if one & 4 else 0, 0))
        own = addresses(host.vm, host.functions[:2])
        if not (one & 4 and flags) and set(ends) <= own:
            assert result & 0xFF in (2, 3)
            assert result >> 8 in (0, 4)
        else:
            assert result == -22


if __name__ == "__main__":
    fuzz(one_input)

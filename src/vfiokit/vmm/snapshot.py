"""The state of a whole virtual machine as plain data, and a machine made to match it.

Two kinds. A *whole* state holds memory and what the devices say of themselves, and can be loaded
anywhere that has the same devices; every assigned device must be able to migrate. A state *in
place* holds what the machine keeps, while memory and devices stay as they are: for another engine,
or another process around the same descriptors. In neither is a command lost: devices stand still
while a whole state is taken, and what they signalled before is taken in first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vfiokit.errors import UsageError
from vfiokit.vfio import Device
from vfiokit.vfio.migration import MigrationAbility, MigrationState, MigrationStream
from vfiokit.vfio_user.kernel import SocketKernel
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.guest_function import GuestFunction

if TYPE_CHECKING:
    from vfiokit.vmm.machine import VirtualMachine

VERSION = 1
_PIECE = 1 << 16


def save(machine: VirtualMachine, *, in_place: bool = False) -> dict[str, Any]:
    """All of ``machine``, which must not be running.

    Raises :class:`UsageError` for a whole state with a device that cannot migrate, and
    :class:`KernelError`; the machine goes on as it was in any case.
    """
    devices = [] if in_place else assigned(machine)
    for function in devices:
        if not function.device.migration.abilities & MigrationAbility.STOP_COPY:
            raise UsageError(
                f"{function.name} cannot tell its state, so the machine has no whole one",
                hint="take it in place, and keep device and memory",
            )
    stopped: list[Device] = []
    try:
        for function in devices:
            function.device.migration.set_state(MigrationState.STOP)
            stopped.append(function.device)
        machine.poll_interrupts()
        state = _machine_state(machine)
        state["in_place"] = in_place
        if not in_place:
            state["memory"] = machine.memory.state()
            state["devices"] = {place(machine, each): _read(each.device) for each in devices}
    finally:
        for device in stopped:
            device.migration.set_state(MigrationState.RUNNING)
    return state


def load(machine: VirtualMachine, state: dict[str, Any]) -> None:
    """Make ``machine`` what :func:`save` described.

    It has as many processors, and the same functions at the same places; for a state in place, the
    same memory and devices too. Raises :class:`UsageError` where it has not, before anything is
    changed, and :class:`KernelError`.
    """
    _check(machine, state)
    devices = assigned(machine)
    raised = {}
    if state["in_place"]:
        raised = {each: each.interrupts.take_raised() for each in devices}
    else:
        for each in devices:
            each.interrupts.stop()
            _write(each.device, state["devices"][place(machine, each)])
        machine.memory.load(state["memory"])
    machine.pci.config_address = state["config_address"]
    # Bridges come first: what is below decodes as they let it.
    for function in tuple(machine.pci.functions()):
        saved = state["functions"][place(machine, function)]
        if isinstance(function, AssignedFunction) and state["in_place"]:
            function.load_in_place(saved)
        else:
            function.load(saved)
    machine.msrs = {int(number): value for number, value in state["msrs"].items()}
    machine.hotplug.slots.load(state["slots"])
    machine.hotplug.events.load(state["events"])
    # The controllers come last: all that functions did to them while loading is undone.
    machine.irqchip.load(state["irqchip"])
    for vcpu, saved in zip(machine.vcpus, state["vcpus"], strict=True):
        vcpu.load(saved)
    machine.set_halted(state["halted"])
    for device, signals in raised.items():
        device.interrupts.raise_again(signals)
    if not state["in_place"]:
        for each in devices:
            each.device.migration.set_state(MigrationState.RUNNING)


def place(machine: VirtualMachine, function: GuestFunction) -> str:
    """Where ``function`` is, independent of the bus numbers that the guest gave out."""
    bridge = machine.pci.segment_of(function).bridge
    above = "" if bridge is None else f"{place(machine, bridge)}/"
    return f"{above}{function.bdf.device:02x}.{function.bdf.function}"


def assigned(machine: VirtualMachine) -> list[AssignedFunction]:
    """The functions that are real devices."""
    return [each for each in machine.pci.functions() if isinstance(each, AssignedFunction)]


def _machine_state(machine: VirtualMachine) -> dict[str, Any]:
    return {
        "version": VERSION,
        "vcpus": [vcpu.state() for vcpu in machine.vcpus],
        "halted": machine.halted,
        "msrs": dict(machine.msrs),
        "config_address": machine.pci.config_address,
        "functions": {place(machine, each): each.state() for each in machine.pci.functions()},
        "slots": machine.hotplug.slots.state(),
        "events": machine.hotplug.events.state(),
        "irqchip": machine.irqchip.state(),
    }


def _check(machine: VirtualMachine, state: dict[str, Any]) -> None:
    if state.get("version") != VERSION:
        raise UsageError(f"a state of version {state.get('version')}; this is {VERSION}")
    if len(state["vcpus"]) != len(machine.vcpus):
        raise UsageError(
            f"the saved machine had {len(state['vcpus'])} processors, this one has "
            f"{len(machine.vcpus)}"
        )
    here = {place(machine, each) for each in machine.pci.functions()}
    if here != set(state["functions"]):
        odd = ", ".join(sorted(here ^ set(state["functions"])))
        raise UsageError(f"saved and present machine differ in functions at {odd}")


# -- devices ----------------------------------------------------------------------------------


def _read(device: Device) -> bytes:
    """What a stopped device says of itself; it is stopped afterwards."""
    stream = device.migration.set_state(MigrationState.STOP_COPY)
    found = bytearray()
    while piece := _read_piece(device, stream):
        found += piece
    if stream is not None:
        stream.close()
    device.migration.set_state(MigrationState.STOP)
    return bytes(found)


def _write(device: Device, state: bytes) -> None:
    """Give a device the state of another; it is stopped afterwards."""
    device.migration.set_state(MigrationState.STOP)
    stream = device.migration.set_state(MigrationState.RESUMING)
    kernel = device.backend.kernel
    if stream is not None:
        rest = memoryview(state)
        while rest:
            rest = rest[os.write(stream.fileno(), rest) :]
        stream.close()
    elif isinstance(kernel, SocketKernel):
        kernel.client.migration_write(state)
    device.migration.set_state(MigrationState.STOP)


def _read_piece(device: Device, stream: MigrationStream | None) -> bytes:
    kernel = device.backend.kernel
    if stream is not None:
        return os.read(stream.fileno(), _PIECE)
    # A vfio-user server has no descriptor to give, and is asked by messages.
    return kernel.client.migration_read(_PIECE) if isinstance(kernel, SocketKernel) else b""

"""The guest programs that ask about peers: loading them, their parameters, and what they found.

``guest/p2p_topology.s`` reads configuration space and decides by itself, ``guest/p2p_hypercall.s``
asks by hypercall, ``guest/p2p_virtio.s`` drives the virtio device. The addresses are those of the
assembly sources.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum
from importlib.resources import files
from typing import Final

from vfiokit.errors import UsageError, VfiokitError
from vfiokit.pci.address import Bdf
from vfiokit.vmm.boot import enter_long_mode
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.machine import Stop, VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.p2p import Outcome, Reply, guest_address
from vfiokit.vmm.pci_bus import ECAM_BASE

RAM_SIZE: Final = 2 << 20
"""Bytes of RAM that the programs and their page tables need."""
MOST_PAIRS: Final = 240
MOST_ROOT_BUSES: Final = 32
_ENTRY, _PARAMETERS, _PAIRS, _STACK, _TABLES = 0x8000, 0x7000, 0x7100, 0xF000, 0x100000
_BUDGET = 50_000_000
_ERRORS: Final = {
    1: "found no virtio P2P device on bus 0",
    2: "was not offered VIRTIO_F_VERSION_1",
    3: "had its features refused",
    4: "does not know the device's version",
    5: "broke a rule of the queue: the device needs a reset",
}


class Program(Enum):
    """A guest program, by the name of its file."""

    TOPOLOGY = "p2p_topology"
    HYPERCALL = "p2p_hypercall"
    VIRTIO = "p2p_virtio"


class GuestProgramError(VfiokitError):
    """The guest did not come to an end, or says that it could not do its work."""


def image(program: Program) -> bytes:
    """The machine code."""
    return files("vfiokit.vmm").joinpath("guest", f"{program.value}.bin").read_bytes()


def write_parameters(
    memory: GuestMemory,
    pairs: Sequence[tuple[Bdf, Bdf]],
    *,
    root_buses: Sequence[int] = (0,),
    zen: bool = False,
) -> None:
    """Tell a program what to ask, and what firmware and processor tell every guest.

    ``pairs`` are provider and client at guest addresses. Raises :class:`UsageError` for more than
    :data:`MOST_PAIRS` pairs or :data:`MOST_ROOT_BUSES` buses.
    """
    if len(pairs) > MOST_PAIRS or len(root_buses) > MOST_ROOT_BUSES:
        raise UsageError(f"at most {MOST_PAIRS} pairs and {MOST_ROOT_BUSES} root buses at a time")
    head = struct.pack("<IIQIII", len(pairs), int(zen), ECAM_BASE, len(root_buses), 0, 0)
    memory.write(_PARAMETERS, head.ljust(0x20, b"\0") + bytes(root_buses).ljust(0x20, b"\0"))
    table = b"".join(
        struct.pack("<IIq", guest_address(provider), guest_address(client), -1)
        for provider, client in pairs
    )
    memory.write(_PAIRS, table)


def start(
    vm: VirtualMachine,
    program: Program,
    pairs: Sequence[tuple[Bdf, Bdf]],
    *,
    root_buses: Sequence[int] = (0,),
    zen: bool = False,
) -> None:
    """Load ``program`` and let a new processor of the machine begin with it.

    The processors of earlier programs stay halted. Raises what :func:`write_parameters` does.
    """
    memory = vm.memory
    write_parameters(memory, pairs, root_buses=root_buses, zen=zen)
    memory.write(_ENTRY, image(program))
    ram = memory.slice(0, RAM_SIZE)
    enter_long_mode(vm.add_vcpu(Interpreter), ram, _ENTRY, tables=_TABLES, stack=_STACK)


def finish(vm: VirtualMachine, program: Program, count: int) -> tuple[Reply, ...]:
    """Run to the end of ``program``; the replies to its ``count`` pairs.

    Raises :class:`GuestProgramError`.
    """
    memory = vm.memory
    stop = vm.run(_BUDGET)
    if stop is not Stop.IDLE:
        why = vm.failure or f"stopped by {stop.value}"
        raise GuestProgramError(f"the guest program {program.value} did not finish: {why}")
    error = memory.read_number(_PARAMETERS + 0x18, 4)
    if error:
        raise GuestProgramError(f"the guest program {_ERRORS.get(error, f'failed ({error})')}")
    results = [memory.read_number(_PAIRS + 16 * index + 8, 8) for index in range(count)]
    decode = _decode_virtio if program is Program.VIRTIO else _decode_hypercall
    return tuple(decode(result) for result in results)


def run(
    vm: VirtualMachine,
    program: Program,
    pairs: Sequence[tuple[Bdf, Bdf]],
    *,
    root_buses: Sequence[int] = (0,),
    zen: bool = False,
) -> tuple[Reply, ...]:
    """:func:`start` and :func:`finish`; the replies, in the order of ``pairs``."""
    start(vm, program, pairs, root_buses=root_buses, zen=zen)
    return finish(vm, program, len(pairs))


def functions_found(memory: GuestMemory) -> int:
    """How many functions ``p2p_topology`` found in its last run."""
    return memory.read_number(_PARAMETERS + 0x14, 4)


def _decode_hypercall(result: int) -> Reply:
    if result >> 63:
        # A program without an answer and a host without one look alike to who asked.
        denied = result == (1 << 64) - 1
        return Reply(Outcome.DENIED if denied else Outcome.NO_FUNCTION)
    return Reply(Outcome.OK, result & 0xFF, result >> 8 & 0xFFFF_FFFF)


def _decode_virtio(result: int) -> Reply:
    outcome = Outcome(result >> 56)
    if outcome is not Outcome.OK:
        return Reply(outcome)
    return Reply(outcome, result & 0xFF, result >> 8 & 0xFFFF_FFFF)

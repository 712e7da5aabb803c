"""Whatever a guest does to ports, memory and configuration space, the machine goes on.

Run with ``python tests/fuzz/fuzz_guest.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import struct
import sys
from itertools import pairwise
from pathlib import Path

from fuzzing import fuzz

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vmm"))

STEP = struct.Struct("<BBHQ")
"""What, width and whether it writes, where, value."""
PLACES = (0xCF8, 0xCFC, 0xAE00, 0x620, 0xE9)
BASES = (0xE000_8000, 0xE010_0000, 0xFEC0_0000, 0xFEE0_0000, 0xF000_0000, 0xF000_2000, 0xE00F_8000)


def one_input(data: bytes) -> None:
    """Perform up to 200 accesses near to what is there, and look whether all still fits."""
    from device_rig import Host, Registers
    from guest_rig import ScriptedVcpu

    from vfiokit.machine.build import MsiLayout, MsixLayout
    from vfiokit.pci.address import Bdf
    from vfiokit.vmm.firmware import place_everything
    from vfiokit.vmm.machine import VirtualMachine
    from vfiokit.vmm.memory import GuestMemory
    from vfiokit.vmm.root_port import RootPort

    host = Host(
        lambda bdf: Registers(
            bdf, msix=MsixLayout(4, 0, 0x2000), msi=MsiLayout(4, maskable=True), aer=True
        )
    )
    with VirtualMachine(host.kernel, GuestMemory.of_size(host.kernel, 1 << 16)) as vm:
        vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        port = RootPort(1)
        vm.pci.add(port)
        vm.assign(host.open(), Bdf(0, 0, 0, 0), below=port)
        place_everything(vm.pci)
        model = host.functions[0]
        for kind, how, where, value in STEP.iter_unpack(data[: len(data) // STEP.size * STEP.size][
            : 200 * STEP.size
        ]):  # fmt: skip
            width = (1, 2, 4, 8)[how & 3]
            value &= (1 << 8 * width) - 1
            if kind % 8 == 0:
                bus, gpa, width = (
                    vm.port_bus,
                    PLACES[kind // 8 % len(PLACES)] + where % 32,
                    min(width, 4),
                )
                value &= (1 << 8 * width) - 1
            elif kind % 8 == 7:
                model.raise_msix(where % 4)
                model.raise_msi(where % 4)
                model.intx.set(bool(where & 4))
                vm.poll_interrupts()
                continue
            else:
                bus, gpa = vm.bus, BASES[kind // 8 % len(BASES)] + where % 0x4000
            if how & 4:
                if not bus.write(gpa, width, value):
                    bus.trapped_write(gpa, width, value)
            elif bus.read(gpa, width) is None:
                found, _counter = bus.trapped_read(gpa, width)
                assert 0 <= found < 1 << 8 * width
        vm.run(100)
        assert all(one.end <= two.start for one, two in pairwise(vm.traps.flat))
        vm.load(vm.state(in_place=True))


if __name__ == "__main__":
    fuzz(one_input)

"""Two guests on one machine, one of them hostile: nothing of it arrives at the other."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from device_rig import Host, Registers
from guest_rig import ScriptedVcpu

from vfiokit.machine.build import MsiLayout, MsixLayout
from vfiokit.machine.txn import DmaError
from vfiokit.pci.address import Bdf
from vfiokit.vmm.firmware import place_everything
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.memory import GuestMemory
from vfiokit.vmm.root_port import RootPort

RAM = 1 << 20
ACTIONS = 2_500
DMA_ADDRESS, DMA_COMMAND, FIRE = 0x100, 0x108, 0x110
_WRITE, _READ = 1, 2


class Agent(Registers):
    """A device that does whatever DMA its registers ask for, and raises any vector."""

    def __init__(self, bdf: Bdf) -> None:
        super().__init__(
            bdf, msix=MsixLayout(16, 0, 0x2000, 0x3000), msi=MsiLayout(8, maskable=True), aer=True
        )
        self.reached = 0
        self.refused = 0
        self.stolen: set[bytes] = set()

    def mmio_write(self, bar: int, offset: int, width: int, value: int) -> None:
        super().mmio_write(bar, offset, width, value)
        if offset == DMA_COMMAND:
            iova = self.mmio_read(0, DMA_ADDRESS, 8)
            if value & 3 == _WRITE:
                self.dma.write(iova, b"\xbadbad!!"[: 4 if value & 4 else 8])
            elif value & 3 == _READ:
                try:
                    self.stolen.add(self.dma.read(iova, 8))
                    self.reached += 1
                except DmaError:
                    self.refused += 1
        elif offset == FIRE:
            if self.msix is not None:
                self.msix.raise_vector(value % self.msix.count)
            if self.msi is not None:
                self.msi.raise_vector(value % self.msi.count)
            self.intx.set(bool(value & 0x100))


class Party:
    """One guest with its device."""

    def __init__(self, host: Host, number: int, marker: bytes) -> None:
        self.host = host
        self.number = number
        self.marker = marker
        self.agent: Agent = host.functions[number]
        self.memory = GuestMemory.of_size(host.kernel, RAM)
        for gpa in range(0, RAM, 4096):
            self.memory.write(gpa, marker * (4096 // len(marker)))
        self.vm = VirtualMachine(host.kernel, self.memory)
        for _ in range(2):
            self.vm.add_vcpu(lambda _memory, _bus: ScriptedVcpu())
        self.port = RootPort(2)
        self.vm.pci.add(self.port)
        self.function = self.vm.assign(host.open(number), Bdf(0, 0, 0, 0), below=self.port)
        self.host_address = self._host_address()
        self.settle()

    def settle(self) -> None:
        """Everything placed, MSI-X on, all vectors unmasked: fit for an attack."""
        power = self._capability(0x01)
        self.function.config.write(power + 4, 2, 0)
        place_everything(self.vm.pci, command=0x0006)
        self.bar = next(each.address for each in self.function.placed() if each.bar.index == 0)
        for vector in range(16):
            at = self.bar + 0x2000 + 16 * vector
            for field, value in ((0, 0xFEE0_0000), (4, 0), (8, 0x40 + vector), (12, 0)):
                self.vm.bus.trapped_write(at + field, 4, value)
        self.function.config.write(self._capability(0x05) + 2, 2, 0)
        self.function.config.write(self._capability(0x11) + 2, 2, 0x8000)

    def _capability(self, cap_id: int) -> int:
        at = self.function.config.get(0x34, 1)
        while self.function.config.get(at, 1) != cap_id:
            at = self.function.config.get(at + 1, 1)
        return at

    def _host_address(self) -> int:
        _region, extent = self.host.kernel.process.resolve(self.memory.ranges[0].vaddr, RAM)
        return extent.hpa

    def seen(self) -> dict[str, Any]:
        """All by which something could arrive."""
        self.vm.poll_interrupts()
        return {
            "memory": hashlib.sha256(self.memory.ranges[0].view).hexdigest(),
            "delivered": dict(self.vm.irqchip.delivered),
            "lost": dict(self.vm.irqchip.lost),
            "waiting": [apic.irr for apic in self.vm.irqchip.apics],
            "counters": (dict(self.vm.exits), dict(self.vm.events)),
            "notices": len(self.vm.notices),
            "registers": dict(self.agent.stored),
            "config": bytes(self.agent.config.data),
            "map": [(each.start, each.end, each.name) for each in self.vm.traps.flat],
        }


class Attack:
    """Random actions of one party, aimed at where they might hurt."""

    def __init__(self, attacker: Party, victim: Party, dice: random.Random) -> None:
        self.attacker = attacker
        self.victim = victim
        self.dice = dice
        self.forged = 0

    def step(self) -> None:
        actions = (
            *[self.dma] * 4,
            *[self.fire] * 2,
            *[self.table] * 2,
            self.move_bar,
            self.config,
            self.stray,
            self.register,
        )
        self.dice.choice(actions)()
        if self.dice.random() < 0.15:
            self.attacker.settle()

    def target(self) -> int:
        dice, victim = self.dice, self.victim
        victim_bar = 0xC000_0000 + 64 * RAM * (victim.number + 1)
        chosen = dice.choice(
            (
                victim.host_address + dice.randrange(RAM),
                self.attacker.host_address + dice.randrange(RAM),
                dice.randrange(RAM),
                victim_bar + dice.randrange(0x10000),
                victim.bar + dice.randrange(0x10000),
                0xFEE0_0000 | dice.randrange(1 << 20),
                dice.getrandbits(64),
                victim.host_address - 4,
            )
        )
        return chosen & ~7 & (1 << 64) - 1

    def store(self, offset: int, value: int, width: int = 4) -> None:
        bus, gpa = self.attacker.vm.bus, self.attacker.bar + offset
        if not bus.write(gpa, width, value):
            bus.trapped_write(gpa, width, value)

    def dma(self) -> None:
        target = self.target()
        self.forged += target >> 20 == 0xFEE
        self.store(DMA_ADDRESS, target, 8)
        self.store(DMA_COMMAND, self.dice.choice((_WRITE, _WRITE | 4, _READ)))

    def fire(self) -> None:
        self.store(FIRE, self.dice.getrandbits(9))

    def table(self) -> None:
        # To any vector, any processor, any address: also past the table, and 8 bytes at once.
        width = self.dice.choice((4, 4, 8))
        offset = 0x2000 + self.dice.randrange(0x120) * 4
        message = 0xFEE0_0000 | self.dice.getrandbits(20)
        value = self.dice.choice((message, self.dice.getrandbits(32)))
        self.store(offset, value, width)

    def move_bar(self) -> None:
        value = self.dice.choice((self.victim.bar, self.dice.getrandbits(32), 0xFFFF_FFFF))
        self.attacker.function.config.write(self.dice.choice((0x10, 0x14, 0x04, 0x20)), 4, value)
        self.attacker.port.config.write(0x18 + 4 * self.dice.randrange(8), 4, value)

    def config(self) -> None:
        dice, pci = self.dice, self.attacker.vm.pci
        place = pci.guest_address(self.attacker.function)
        bus, devfn = dice.choice(
            ((place.bus, place.devfn), (0, 2 << 3), (dice.getrandbits(8), dice.getrandbits(8)))
        )
        width = dice.choice((1, 2, 4))
        offset = dice.choice((dice.randrange(256), dice.randrange(4096))) & ~(width - 1)
        pci.config_write(bus, devfn, offset, width, dice.getrandbits(8 * width))

    def stray(self) -> None:
        bus, gpa = self.attacker.vm.bus, self.target()
        if not self.attacker.memory.contains(gpa, 8) and gpa < 1 << 63:
            bus.trapped_write(gpa, 8, self.dice.getrandbits(64))
            bus.trapped_read(gpa, 8)

    def register(self) -> None:
        self.store(self.dice.randrange(0x40) * 4, self.dice.getrandbits(32))


@pytest.mark.parametrize("seed", range(4))
def test_hostile_guest_reaches_nothing_of_its_neighbour(seed) -> None:
    dice = random.Random(seed)
    host = Host(Agent, Agent)
    bystander = host.kernel.allocate(RAM)
    bystander.view[:] = b"\x5a" * RAM
    parties = [Party(host, 0, b"first---"), Party(host, 1, b"second--")]
    attacker, victim = parties if seed % 2 else reversed(parties)
    attack = Attack(attacker, victim, dice)
    blocked = host.machine.counters()["interrupts_blocked"]
    before = victim.seen()
    try:
        for number in range(ACTIONS):
            attack.step()
            if number % 100 == 0:
                attacker.vm.poll_interrupts()
            if number % 250 == 0:
                assert victim.seen() == before, f"after {number} actions"
        assert victim.seen() == before
        assert bytes(bystander.view) == b"\x5a" * RAM
        assert victim.marker not in attacker.agent.stolen
        assert b"\x5a" * 8 not in attacker.agent.stolen
        # The attack was one: DMA reached its own memory, was refused elsewhere, and interrupts
        # both arrived at home and were forged in vain.
        counters = host.machine.counters()
        found = {
            "reached": attacker.agent.reached,
            "refused": attacker.agent.refused,
            "delivered": sum(attacker.vm.irqchip.delivered.values()),
            "forged": attack.forged,
            "blocked": counters["interrupts_blocked"] - blocked,
            "faults": host.machine.iommus[0].faults.total,
        }
        assert all(count > 10 for count in found.values()), found
    finally:
        for party in parties:
            party.vm.close()
        bystander.close()
    assert host.machine.memory.allocated > 0

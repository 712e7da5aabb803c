"""The host that the plans run on: a twin of a captured server, one drive of it to be given away.

What could come to harm is put there on purpose: pages of another process at the very addresses that
the guest uses for its own, and drivers that own the interrupt vectors that the guest chose. Nothing
leaves the software machine.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

from vfiokit.abi.pci_regs import PCI_CAP_ID_MSIX
from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.errors import UsageError
from vfiokit.host.source import open_tree
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.iommu.remap import decode_compatibility
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.twin import Twin, build_twin
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.msix import Structure, table
from vfiokit.pci.selector import select
from vfiokit.pci.topology import Topology

PAGE = 4096
_TRIES = 512


class DamagedPage(NamedTuple):
    """A page of the host that somebody changed who should not have."""

    hpa: int
    sha256_before: str
    sha256_after: str
    first: int
    """Offset of the first byte that differs."""
    changed: int
    """Bytes that differ."""
    now: bytes
    """The first 16 bytes from there on."""


class HostVector:
    """An interrupt vector of the host, and the driver that it belongs to."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.fired = 0
        """Interrupts that the driver got and did not ask for."""

    def fire(self) -> None:
        """The vector was raised."""
        self.fired += 1


class PlanHost:
    """A fresh twin of ``source`` with ``device`` bound to vfio-pci and ``pages`` pages written.

    ``device`` is a selector; the first NVMe controller of the selection is taken. Raises
    :class:`UsageError` where there is none.
    """

    def __init__(self, source: str = "demo", device: str = "nvme", *, pages: int) -> None:
        self.twin: Twin = build_twin(open_tree(source))
        topology = self.twin.topology()
        self.function = self._find(topology, device)
        self.bdf: Bdf = self.function.bdf
        self._bind()
        self.block_size = 1 << self.function.controller.namespace.block_shift
        self.content = random.Random(pages).randbytes(pages * PAGE)
        """What the drive holds from block 0 on."""
        self._write(self.content)
        self.vectors: dict[int, HostVector] = {}
        """Vectors of processor 0 that drivers of the host have, once the IOMMU is off."""
        self._drivers = [
            function
            for function in topology
            if function.recorded.driver and not function.is_bridge and function.bdf != self.bdf
        ]
        self._neighbours: tuple[int, bytes] = (0, b"")

    def _find(self, topology: Topology, device: str) -> NvmeFunction:
        for found in select(topology, device):
            model = self.twin.machine.functions.get(found.bdf)
            if isinstance(model, NvmeFunction):
                return model
        raise UsageError(
            f"{device!r} names no NVMe controller that the twin can run",
            hint="the plans are shown with the guest's NVMe driver",
        )

    def _bind(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = plan(self.twin.kernel.tree, [self.bdf])
            apply(self.twin.kernel, made, Path(folder))

    def _write(self, content: bytes) -> None:
        store = self.function.controller.namespace.store
        if store.size < len(content):
            raise UsageError(f"the drive is too small for {len(content)} bytes")
        store.write(0, content)

    def expected(self, reads: int, pages: int) -> bytes:
        """What ``reads`` pages leave in ``pages`` pages that are used in turn."""
        found = bytearray(pages * PAGE)
        for index in range(max(0, reads - pages), reads):
            at = index % pages * PAGE
            found[at : at + PAGE] = self.content[index * PAGE : (index + 1) * PAGE]
        return bytes(found)

    # -- what can be harmed ---------------------------------------------------------------------

    def neighbours(self, pages: int) -> int:
        """Let another process have ``pages`` pages; the host-physical address of the first."""
        memory = self.twin.machine.memory
        hpa = memory.allocate(pages * PAGE, PAGE)
        text = b"".join(
            f"page {index} of another process on the host. ".encode().ljust(64, b".") * 64
            for index in range(pages)
        )
        memory.write(hpa, text)
        self._neighbours = hpa, text
        return hpa

    def damage(self) -> tuple[DamagedPage, ...]:
        """The pages of that process that are not as it left them."""
        hpa, text = self._neighbours
        now = self.twin.machine.memory.slice(hpa, len(text))
        return tuple(
            _compare(hpa + at, text[at : at + PAGE], bytes(now[at : at + PAGE]))
            for at in range(0, len(text), PAGE)
            if now[at : at + PAGE] != text[at : at + PAGE]
        )

    @property
    def msix_table(self) -> Structure:
        """Where the drive has its MSI-X table; :class:`UsageError` where it has none."""
        found = self.twin.topology()[self.bdf].capabilities.find(PCI_CAP_ID_MSIX)
        if found is None:
            raise UsageError(f"{self.bdf} has no MSI-X")
        return table(found)

    @property
    def bar_size(self) -> int:
        """Bytes of the drive's BAR 0."""
        return self.function.bars[0].size

    # -- the IOMMU ------------------------------------------------------------------------------

    @property
    def iommu(self) -> VtdUnit:
        """The unit in front of the drive."""
        unit = self.twin.machine.iommu_of(self.bdf)
        assert isinstance(unit, VtdUnit)
        return unit

    def switch_iommu_off(self) -> None:
        """Let requests and messages of devices pass untranslated, as on a host without IOMMU."""
        for unit in self.twin.machine.iommus:
            unit.disable_translation()
            unit.remapper.enabled = False
        self._take_vectors()

    def _take_vectors(self) -> None:
        """Let drivers of the host have the vectors 0x20 to 0x5f of processor 0, in turn."""
        wanted = set(range(0x20, 0x60))
        interrupts = self.twin.machine.interrupts
        for number in range(_TRIES):
            if not wanted or not self._drivers:
                return
            function = self._drivers[number % len(self._drivers)]
            vector = HostVector(f"{function.recorded.driver} of {function.bdf}")
            bdf = function.bdf
            message = interrupts.allocate(bdf.requester_id, vector.fire, domain=bdf.domain)
            where = decode_compatibility(message.address, message.data)
            if where.destination == 0:
                self.vectors[where.vector] = vector
                wanted.discard(where.vector)


def _compare(hpa: int, before: bytes, after: bytes) -> DamagedPage:
    different = [index for index in range(PAGE) if before[index] != after[index]]
    first = different[0]
    return DamagedPage(
        hpa,
        hashlib.sha256(before).hexdigest(),
        hashlib.sha256(after).hexdigest(),
        first,
        len(different),
        after[first : first + 16],
    )

"""Chapters five and six: the drive at work through VFIO, and what isolation does to it."""

from __future__ import annotations

import hashlib
import random
import time
from typing import TYPE_CHECKING, Any

from vfiokit.demo.chapter import Chapter, Progress
from vfiokit.driver.nvme import NvmeController
from vfiokit.driver.nvme.admin import check_status
from vfiokit.driver.nvme.spec import IoOpcode
from vfiokit.errors import MachineError, NvmeCommandError
from vfiokit.vfio import open_device

if TYPE_CHECKING:
    from vfiokit.driver.nvme import Completion, Namespace
    from vfiokit.machine.iommu.fault import FaultLog
    from vfiokit.machine.twin import Twin
    from vfiokit.pci.address import Bdf
    from vfiokit.vfio import DmaBuffer

MIB = 1 << 20


def drive(twin: Twin, bdf: Bdf, mebibytes: int, progress: Progress) -> tuple[None, Chapter]:
    """Open the device through its group, start the controller, move data both ways."""
    before = twin.machine.counters()
    with open_device(twin.kernel, bdf) as device, NvmeController(device) as controller:
        identity = controller.identity
        namespace = controller.namespace(1)
        length = mebibytes * MIB
        with device.address_space.allocate(length, alignment=2 * MIB) as buffer:
            wrote, write_seconds = _write(namespace, buffer, mebibytes, progress)
            buffer.view[:] = bytes(length)
            read, read_seconds = _read(namespace, buffer, mebibytes, progress)
    after = twin.machine.counters()
    spent = {name: after[name] - before.get(name, 0) for name in after}
    facts: dict[str, Any] = {
        "model": identity.model,
        "serial": identity.serial_number,
        "bytes": length,
        "sha256_written": wrote,
        "sha256_read": read,
        "write_mib_s": mebibytes / write_seconds,
        "read_mib_s": mebibytes / read_seconds,
        "interrupts": spent["interrupts_delivered"],
        "translations": _sum(spent, "_iotlb_hits", "_iotlb_misses"),
        "walks": _sum(spent, "_walks"),
        "faults": _sum(spent, "_faults"),
        "counters": spent,
    }
    lines = (
        f"group and container opened, type1v2, MSI-X vectors as eventfds; "
        f"controller {identity.model} serial {identity.serial_number}",
        f"wrote {mebibytes} MiB at {mebibytes / write_seconds:.0f} MiB/s, "
        f"read it back at {mebibytes / read_seconds:.0f} MiB/s",
        f"sha256 written {wrote[:16]}…, read {read[:16]}…: "
        + ("equal" if wrote == read else "DIFFERENT"),
        f"{facts['interrupts']} interrupts; {facts['translations']} translations by the "
        f"IOMMU ({facts['walks']} page-table walks), {facts['faults']} faults",
    )
    ok = wrote == read and not facts["faults"] and bool(facts["interrupts"])
    return None, Chapter(5, "Drive it", facts, lines, 0.0, ok)


def _sum(counters: dict[str, int], *endings: str) -> int:
    """Counters of all IOMMUs together."""
    return sum(count for name, count in counters.items() if name.endswith(endings))


def _write(
    namespace: Namespace, buffer: DmaBuffer, mebibytes: int, progress: Progress
) -> tuple[str, float]:
    noise = random.Random(mebibytes)
    digest = hashlib.sha256()
    blocks = MIB // namespace.block_size
    seconds = 0.0
    for index in range(mebibytes):
        part = buffer.view[index * MIB : (index + 1) * MIB]
        part[:] = noise.randbytes(MIB)
        digest.update(part)
        begun = time.perf_counter()
        namespace.write(index * blocks, blocks, buffer, offset=index * MIB)
        seconds += time.perf_counter() - begun
        progress("writing", index + 1, mebibytes)
    return digest.hexdigest(), seconds


def _read(
    namespace: Namespace, buffer: DmaBuffer, mebibytes: int, progress: Progress
) -> tuple[str, float]:
    digest = hashlib.sha256()
    blocks = MIB // namespace.block_size
    seconds = 0.0
    for index in range(mebibytes):
        begun = time.perf_counter()
        namespace.read(index * blocks, blocks, buffer, offset=index * MIB)
        seconds += time.perf_counter() - begun
        digest.update(buffer.view[index * MIB : (index + 1) * MIB])
        progress("reading", index + 1, mebibytes)
    return digest.hexdigest(), seconds


def prove_isolation(twin: Twin, bdf: Bdf) -> tuple[None, Chapter]:
    """Name an address that is not mapped: the IOMMU faults it, the drive says so, nothing else."""
    with open_device(twin.kernel, bdf) as device, NvmeController(device) as controller:
        namespace = controller.namespace(1)
        with device.address_space.allocate(MIB) as buffer:
            buffer.view[:] = b"\x5a" * MIB
            namespace.write(0, 8, buffer)
            stored = namespace.read_bytes(0, 8)
            unmapped = buffer.iova + 512 * MIB
            faults = _faults(twin, bdf)
            faults.drain()
            # A write makes the drive read host memory, which it can see fail.
            queue = controller.io_queues[0]
            completion = queue.execute(
                controller.timeout_s, IoOpcode.WRITE, namespace.nsid, unmapped, 0, 0, 0, 7
            )
            answer = _answer(completion)
            records = faults.drain()
            untouched = namespace.read_bytes(0, 8) == stored and bytes(buffer.view) == (
                b"\x5a" * MIB
            )
    facts = {
        "iova": unmapped,
        "faults": [
            {
                "requester_id": record.requester_id,
                "bdf": record.bdf,
                "iova": record.iova,
                "reason": int(record.reason),
                "text": str(record),
            }
            for record in records
        ],
        "answer": answer,
        "untouched": untouched,
    }
    lines = (
        f"one write command naming IOVA {unmapped:#x}, which is not mapped",
        *(str(record) for record in records),
        f"the drive: {answer or 'reported success'}",
        "the drive's data and the other memory are untouched"
        if untouched
        else "OTHER DATA CHANGED",
    )
    ok = bool(records) and bool(answer) and untouched
    return None, Chapter(6, "Prove isolation", facts, lines, 0.0, ok)


def _faults(twin: Twin, bdf: Bdf) -> FaultLog:
    """The fault recording registers of the IOMMU in front of ``bdf``."""
    iommu = twin.machine.iommu_of(bdf)
    if iommu is None:
        raise MachineError(f"no IOMMU translates for {bdf}")
    return iommu.faults


def _answer(completion: Completion) -> str:
    """What the drive said of a command; empty for success."""
    try:
        check_status("write", IoOpcode.WRITE, completion)
    except NvmeCommandError as error:
        return str(error)
    return ""

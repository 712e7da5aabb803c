"""Commands of the I/O queues.

Source: NVM Command Set Specification 1.0 §3.2. Force Unit Access, limited retry and the dataset
hints change nothing that a host can see here.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import iter_unpack
from typing import TYPE_CHECKING

from vfiokit.machine.device.nvme.command import (
    BROADCAST_NSID,
    CDW12_LOCATION,
    NSID_LOCATION,
    Command,
    check_flags,
    unknown_opcode,
)
from vfiokit.machine.device.nvme.identify import NSID
from vfiokit.machine.device.nvme.status import CommandFailedError, Status

if TYPE_CHECKING:
    from vfiokit.machine.device.nvme.controller import Controller

FLUSH = 0x00
WRITE = 0x01
READ = 0x02
COMPARE = 0x05
WRITE_ZEROES = 0x08
DATASET_MANAGEMENT = 0x09
VERIFY = 0x0C

WRITING = frozenset({WRITE, WRITE_ZEROES, DATASET_MANAGEMENT})
"""Opcodes that change logical blocks."""

_DEALLOCATE = 1 << 2
_CHUNK_BLOCKS = 256


def execute(controller: Controller, command: Command) -> int:
    """Run one I/O command: dwords 0 and 1 of its completion.

    Raises :class:`CommandFailedError`, or the DMA error of the data phase.
    """
    handler = _HANDLERS.get(command.opcode)
    if handler is None:
        raise unknown_opcode()
    if command.flags:
        check_flags(command)
    if command.nsid != NSID and not (command.opcode == FLUSH and command.nsid == BROADCAST_NSID):
        raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
    handler(controller, command)
    return 0


def _flush(controller: Controller, command: Command) -> None:
    del command
    controller.namespace.flush()


def _read(controller: Controller, command: Command) -> None:
    namespace = controller.namespace
    slba, count = command.slba, command.block_count
    length = _transfer_length(controller, count)
    namespace.check(slba, count)
    data = namespace.read(slba, count)
    controller.send(command, data)
    controller.health.read_commands += 1
    controller.health.bytes_read += length


def _write(controller: Controller, command: Command) -> None:
    namespace = controller.namespace
    slba, count = command.slba, command.block_count
    length = _transfer_length(controller, count)
    namespace.check(slba, count)
    namespace.check_writable()
    namespace.write(slba, controller.receive(command, length))
    controller.health.write_commands += 1
    controller.health.bytes_written += length


def _compare(controller: Controller, command: Command) -> None:
    namespace = controller.namespace
    slba, count = command.slba, command.block_count
    length = _transfer_length(controller, count)
    namespace.check(slba, count)
    expected = controller.receive(command, length)
    controller.health.read_commands += 1
    controller.health.bytes_read += length
    if expected != namespace.read(slba, count):
        raise CommandFailedError(Status.COMPARE_FAILURE, lba=slba)


def _write_zeroes(controller: Controller, command: Command) -> None:
    namespace = controller.namespace
    namespace.check(command.slba, command.block_count)
    namespace.check_writable()
    namespace.zero(command.slba, command.block_count)
    controller.health.write_commands += 1


def _dataset_management(controller: Controller, command: Command) -> None:
    count = (command.cdw10 & 0xFF) + 1
    namespace = controller.namespace
    ranges = [
        (slba, blocks)
        for _attributes, blocks, slba in iter_unpack(
            "<IIQ", controller.receive(command, 16 * count)
        )
    ]
    for slba, blocks in ranges:
        namespace.check(slba, blocks)
    if command.cdw11 & _DEALLOCATE:
        namespace.check_writable()
        for slba, blocks in ranges:
            namespace.zero(slba, blocks)


def _verify(controller: Controller, command: Command) -> None:
    namespace = controller.namespace
    slba, count = command.slba, command.block_count
    namespace.check(slba, count)
    for start in range(slba, slba + count, _CHUNK_BLOCKS):
        namespace.read(start, min(_CHUNK_BLOCKS, slba + count - start))


def _transfer_length(controller: Controller, count: int) -> int:
    """Bytes of a data transfer, refused above MDTS."""
    length = count << controller.namespace.block_shift
    if length > controller.transfer_limit:
        raise CommandFailedError(Status.INVALID_FIELD, location=CDW12_LOCATION)
    return length


_HANDLERS: dict[int, Callable[[Controller, Command], None]] = {
    FLUSH: _flush,
    WRITE: _write,
    READ: _read,
    COMPARE: _compare,
    WRITE_ZEROES: _write_zeroes,
    DATASET_MANAGEMENT: _dataset_management,
    VERIFY: _verify,
}

SUPPORTED = frozenset(_HANDLERS)
"""I/O opcodes the model executes."""

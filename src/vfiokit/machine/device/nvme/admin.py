"""Commands of the admin queue.

Source: NVM Express Base Specification 2.0 §5. Each handler returns dwords 0 and 1 of the
completion, or ``None`` for an Asynchronous Event Request, which completes later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfiokit.machine.device.nvme import feature, identify, io, log
from vfiokit.machine.device.nvme.command import (
    BROADCAST_NSID,
    CDW10_LOCATION,
    CDW11_LOCATION,
    CDW12_LOCATION,
    NSID_LOCATION,
    Command,
    check_flags,
    unknown_opcode,
)
from vfiokit.machine.device.nvme.prp import PRP1_LOCATION, PRP2_LOCATION
from vfiokit.machine.device.nvme.queue import CompletionQueue, SubmissionQueue
from vfiokit.machine.device.nvme.status import CommandFailedError, Status

if TYPE_CHECKING:
    from vfiokit.machine.device.nvme.controller import Controller

DELETE_SUBMISSION_QUEUE = 0x00
CREATE_SUBMISSION_QUEUE = 0x01
GET_LOG_PAGE = 0x02
DELETE_COMPLETION_QUEUE = 0x04
CREATE_COMPLETION_QUEUE = 0x05
IDENTIFY = 0x06
ABORT = 0x08
SET_FEATURES = 0x09
GET_FEATURES = 0x0A
ASYNCHRONOUS_EVENT_REQUEST = 0x0C
DOORBELL_BUFFER_CONFIG = 0x7C

_CONTIGUOUS = 1
_INTERRUPTS_ENABLED = 1 << 1
_RETAIN_EVENT = 1 << 15
_NOT_ABORTED = 1


def execute(controller: Controller, command: Command) -> int | None:
    """Run one admin command; raises :class:`CommandFailedError` or a DMA error."""
    handler = _HANDLERS.get(command.opcode)
    if handler is None or (
        command.opcode == DOORBELL_BUFFER_CONFIG and not controller.shadow_offered
    ):
        raise unknown_opcode()
    check_flags(command)
    return handler(controller, command)


# -- queues -----------------------------------------------------------------------------------


def _create_completion_queue(controller: Controller, command: Command) -> int:
    queue_id, size = _queue_to_create(
        controller, command, controller.completion, controller.features.completion_queues
    )
    controller.check_entry_size("iocqes", 4)
    enabled = bool(command.cdw11 & _INTERRUPTS_ENABLED)
    vector = command.cdw11 >> 16
    if enabled and vector >= controller.interrupts.vector_count:
        raise CommandFailedError(Status.INVALID_INTERRUPT_VECTOR, location=CDW11_LOCATION + 2)
    controller.completion[queue_id] = CompletionQueue(
        queue_id, command.prp1, size, vector=vector, interrupt_enabled=enabled
    )
    return 0


def _create_submission_queue(controller: Controller, command: Command) -> int:
    queue_id, size = _queue_to_create(
        controller, command, controller.submission, controller.features.submission_queues
    )
    controller.check_entry_size("iosqes", 6)
    cq_id = command.cdw11 >> 16
    if not cq_id or cq_id > controller.features.completion_queues:
        raise CommandFailedError(Status.INVALID_QUEUE_ID, location=CDW11_LOCATION + 2)
    completions = controller.completion.get(cq_id)
    if completions is None:
        raise CommandFailedError(Status.INVALID_COMPLETION_QUEUE, location=CDW11_LOCATION + 2)
    completions.submitters.add(queue_id)
    controller.submission[queue_id] = SubmissionQueue(queue_id, command.prp1, size, completions)
    return 0


def _queue_to_create(
    controller: Controller,
    command: Command,
    existing: dict[int, CompletionQueue] | dict[int, SubmissionQueue],
    granted: int,
) -> tuple[int, int]:
    """Queue id and entry count of a create command, checked."""
    queue_id = command.cdw10 & 0xFFFF
    size = (command.cdw10 >> 16) + 1
    if not 0 < queue_id <= granted or queue_id in existing:
        raise CommandFailedError(Status.INVALID_QUEUE_ID, location=CDW10_LOCATION)
    if not 2 <= size <= controller.max_queue_entries:
        raise CommandFailedError(Status.INVALID_QUEUE_SIZE, location=CDW10_LOCATION + 2)
    if not command.cdw11 & _CONTIGUOUS:
        raise CommandFailedError(Status.INVALID_FIELD, location=CDW11_LOCATION)
    if command.prp1 & controller.page_size - 1:
        raise CommandFailedError(Status.INVALID_PRP_OFFSET, location=PRP1_LOCATION)
    return queue_id, size


def _delete_submission_queue(controller: Controller, command: Command) -> int:
    queue_id = command.cdw10 & 0xFFFF
    if not queue_id or queue_id not in controller.submission:
        raise CommandFailedError(Status.INVALID_QUEUE_ID, location=CDW10_LOCATION)
    queue = controller.submission.pop(queue_id)
    queue.completions.submitters.discard(queue_id)
    return 0


def _delete_completion_queue(controller: Controller, command: Command) -> int:
    queue_id = command.cdw10 & 0xFFFF
    if not queue_id or queue_id not in controller.completion:
        raise CommandFailedError(Status.INVALID_QUEUE_ID, location=CDW10_LOCATION)
    if controller.completion[queue_id].submitters:
        raise CommandFailedError(Status.INVALID_QUEUE_DELETION, location=CDW10_LOCATION)
    del controller.completion[queue_id]
    controller.interrupts.refresh()
    return 0


# -- identify and log pages -------------------------------------------------------------------


def _identify(controller: Controller, command: Command) -> int:
    cns = command.cdw10 & 0xFF
    builder = _IDENTIFY.get(cns)
    if builder is None:
        raise CommandFailedError(Status.INVALID_FIELD, location=CDW10_LOCATION)
    controller.send(command, builder(controller, command.nsid))
    return 0


def _identify_namespace(controller: Controller, nsid: int) -> bytearray:
    _check_nsid(nsid)
    namespace = controller.namespace
    return identify.namespace(
        controller.identity,
        block_count=namespace.block_count,
        used_blocks=namespace.used_blocks(),
        read_only=namespace.store.read_only,
    )


def _identify_controller(controller: Controller, nsid: int) -> bytearray:
    del nsid
    return identify.controller(
        controller.identity,
        capacity=controller.namespace.store.size,
        shadow_doorbells=controller.shadow_offered,
    )


def _identify_active(controller: Controller, nsid: int) -> bytearray:
    del controller
    if nsid >= BROADCAST_NSID - 1:
        raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
    return identify.active_namespaces(nsid)


def _identify_descriptors(controller: Controller, nsid: int) -> bytearray:
    _check_nsid(nsid)
    return identify.namespace_descriptors(controller.identity)


def _check_nsid(nsid: int) -> None:
    if nsid != identify.NSID:
        raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)


def _get_log_page(controller: Controller, command: Command) -> int:
    length = ((command.cdw11 & 0xFFFF) << 16 | command.cdw10 >> 16) + 1 << 2
    offset = command.cdw13 << 32 | command.cdw12
    page = _log_page(controller, command)
    if length > controller.transfer_limit or offset & 3 or offset > len(page):
        raise CommandFailedError(Status.INVALID_FIELD, location=CDW12_LOCATION)
    # Beyond the page's end the specification promises nothing; zeros are the kindest nothing.
    controller.send(command, page[offset : offset + length].ljust(length, b"\0"))
    if not command.cdw10 & _RETAIN_EVENT:
        log_page = command.cdw10 & 0xFF
        controller.events.acknowledge(log_page)
        if log_page == log.CHANGED_NAMESPACES:
            controller.namespace_changed = False
    return 0


def _log_page(controller: Controller, command: Command) -> bytes:
    page = command.cdw10 & 0xFF
    if page == log.HEALTH:
        if command.nsid not in (0, identify.NSID, BROADCAST_NSID):
            raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
        return log.health_information(controller.health, controller.critical_warning())
    if page == log.ERROR_INFORMATION:
        return log.error_information(controller.health)
    if page == log.FIRMWARE_SLOT:
        return log.firmware_slots(controller.identity)
    if page == log.CHANGED_NAMESPACES:
        return log.changed_namespaces(controller.namespace_changed)
    if page == log.COMMANDS_SUPPORTED:
        admin = frozenset(_HANDLERS)
        if not controller.shadow_offered:
            admin -= {DOORBELL_BUFFER_CONFIG}
        return log.commands_supported(admin, io.SUPPORTED, io.WRITING)
    raise CommandFailedError(Status.INVALID_LOG_PAGE, location=CDW10_LOCATION)


# -- features, events, abort ------------------------------------------------------------------


def _get_features(controller: Controller, command: Command) -> int:
    return controller.features.get(command)


def _set_features(controller: Controller, command: Command) -> int:
    queues_exist = len(controller.completion) > 1 or len(controller.submission) > 1
    result = controller.features.set(command, queues_exist=queues_exist)
    if command.cdw10 & 0xFF in (feature.TEMPERATURE_THRESHOLD, feature.EVENT_CONFIGURATION):
        controller.report_temperature()
    return result


def _asynchronous_event_request(controller: Controller, command: Command) -> None:
    events = controller.events
    if len(events.requests) >= events.limit:
        raise CommandFailedError(Status.EVENT_REQUEST_LIMIT)
    events.requests.append(command.cid)


def _abort(controller: Controller, command: Command) -> int:
    """Only event requests stay outstanding long enough to be aborted."""
    sq_id, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
    if sq_id == 0 and cid in controller.events.requests:
        controller.events.requests.remove(cid)
        controller.owe(cid, Status.ABORT_REQUESTED)
        return 0
    return _NOT_ABORTED


def _doorbell_buffer_config(controller: Controller, command: Command) -> int:
    for prp, location in ((command.prp1, PRP1_LOCATION), (command.prp2, PRP2_LOCATION)):
        if prp & controller.page_size - 1:
            raise CommandFailedError(Status.INVALID_PRP_OFFSET, location=location)
    controller.set_shadow_doorbells(command.prp1, command.prp2)
    return 0


_IDENTIFY: dict[int, Callable[[Controller, int], bytearray]] = {
    0x00: _identify_namespace,
    0x01: _identify_controller,
    0x02: _identify_active,
    0x03: _identify_descriptors,
}

_HANDLERS: dict[int, Callable[[Controller, Command], int | None]] = {
    DELETE_SUBMISSION_QUEUE: _delete_submission_queue,
    CREATE_SUBMISSION_QUEUE: _create_submission_queue,
    GET_LOG_PAGE: _get_log_page,
    DELETE_COMPLETION_QUEUE: _delete_completion_queue,
    CREATE_COMPLETION_QUEUE: _create_completion_queue,
    IDENTIFY: _identify,
    ABORT: _abort,
    SET_FEATURES: _set_features,
    GET_FEATURES: _get_features,
    ASYNCHRONOUS_EVENT_REQUEST: _asynchronous_event_request,
    DOORBELL_BUFFER_CONFIG: _doorbell_buffer_config,
}

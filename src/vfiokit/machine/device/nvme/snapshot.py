"""The state of a controller as plain numbers, texts, bytes, lists and dictionaries.

It leaves out what belongs to others: the medium, and the function's configuration space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfiokit.machine.device.nvme.event import Event
from vfiokit.machine.device.nvme.queue import CompletionQueue, SubmissionQueue

if TYPE_CHECKING:
    from vfiokit.machine.device.nvme.controller import Controller

_HEALTH = (
    "temperature",
    "bytes_read",
    "bytes_written",
    "read_commands",
    "write_commands",
    "power_cycles",
    "unsafe_shutdowns",
    "media_errors",
    "error_count",
)


def save(controller: Controller) -> dict[str, Any]:
    """Everything :func:`load` needs; taking it changes nothing."""
    shadow = controller.arbiter.shadow
    events = controller.events
    return {
        "registers": controller.registers.dump(),
        "page_size": controller.page_size,
        "completion": [
            [q.queue_id, q.iova, q.size, q.head, q.tail, q.phase, q.vector, q.interrupt_enabled]
            for q in controller.completion.values()
        ],
        "submission": [
            [q.queue_id, q.iova, q.size, q.head, q.tail, q.completions.queue_id]
            for q in controller.submission.values()
        ],
        "features": controller.features.save(),
        "requests": list(events.requests),
        "waiting": [list(event) for event in events.waiting],
        "masked": sorted(events.masked),
        "owed": controller.arbiter.owed_completions(),
        "interrupt_mask": controller.interrupts.mask,
        "health": {name: getattr(controller.health, name) for name in _HEALTH},
        "errors": list(controller.health.errors),
        "namespace_changed": controller.namespace_changed,
        "fatal_reason": controller.fatal_reason,
        "shadow": [shadow.shadow_iova, shadow.event_iova] if shadow else None,
        "buffer": bytes(controller.buffer.data) if controller.buffer else b"",
    }


def load(controller: Controller, state: dict[str, Any]) -> None:
    """Make ``controller`` what the saved one was; its limits and medium must be the same.

    Work that was under way continues on the clock of this controller's machine.
    """
    controller.power_on()
    controller.registers.restore(state["registers"])
    controller.page_size = state["page_size"]
    for queue_id, iova, size, head, tail, phase, vector, enabled in state["completion"]:
        completions = CompletionQueue(
            queue_id, iova, size, vector=vector, interrupt_enabled=enabled
        )
        completions.head, completions.tail, completions.phase = head, tail, phase
        controller.completion[queue_id] = completions
    for queue_id, iova, size, head, tail, cq_id in state["submission"]:
        submissions = SubmissionQueue(queue_id, iova, size, controller.completion[cq_id])
        submissions.head, submissions.tail = head, tail
        submissions.completions.submitters.add(queue_id)
        controller.submission[queue_id] = submissions
    controller.features.load(state["features"])
    controller.events.requests.extend(state["requests"])
    controller.events.waiting.extend(Event(*event) for event in state["waiting"])
    controller.events.masked.update(state["masked"])
    controller.interrupts.mask = state["interrupt_mask"]
    for name, value in state["health"].items():
        setattr(controller.health, name, value)
    controller.health.errors.clear()
    controller.health.errors.extend(state["errors"])
    controller.namespace_changed = state["namespace_changed"]
    controller.fatal_reason = state["fatal_reason"]
    if state["shadow"]:
        controller.set_shadow_doorbells(*state["shadow"])
    if controller.buffer:
        controller.buffer.data[:] = state["buffer"]
        controller.buffer.configure(controller.registers)
    controller.arbiter.resume(state["owed"])
    controller.resume()

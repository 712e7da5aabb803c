"""The state of a controller as plain numbers, texts, bytes, lists and dictionaries.

It leaves out what belongs to others: the medium, and the function's configuration space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme.event import Event
from vfiokit.machine.device.nvme.queue import CompletionQueue, SubmissionQueue
from vfiokit.machine.device.nvme.registers import DOORBELLS

if TYPE_CHECKING:
    from vfiokit.machine.device.nvme.controller import Controller, Limits

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
        "buffer": bytes(controller.buffer.view) if controller.buffer else b"",
    }


def load(controller: Controller, state: dict[str, Any]) -> None:
    """Make ``controller`` what the saved one was; its limits and medium must be the same.

    Work that was under way continues on the clock of this controller's machine. Raises
    :class:`UsageError`, with the controller unchanged, for what no such controller can be.
    """
    try:
        _check(controller, state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"no state of an NVMe controller: {error!r}") from None
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
        controller.buffer.view[:] = state["buffer"]
        controller.buffer.configure(controller.registers)
    controller.arbiter.resume(state["owed"])
    controller.resume()


def _check(controller: Controller, state: dict[str, Any]) -> None:
    """Whether ``state`` can be this controller's; :class:`UsageError`, or an error of Python's."""
    limits = controller.limits
    buffer = controller.buffer.size if controller.buffer else 0
    _require(_is_bytes(state["registers"], DOORBELLS), "registers")
    _require(_is_bytes(state["buffer"], buffer), "controller memory buffer")
    sizes = [4096 << exponent for exponent in range(limits.page_size_max + 1)]
    _require(state["page_size"] in sizes, "page size")
    queues = set()
    for queue_id, iova, size, head, tail, phase, vector, enabled in state["completion"]:
        _check_ring(limits, queue_id, iova, size, head, tail)
        _require(_below(phase, 2) and _below(vector, 65536) and type(enabled) is bool, "queue")
        queues.add(queue_id)
    for queue_id, iova, size, head, tail, cq_id in state["submission"]:
        _check_ring(limits, queue_id, iova, size, head, tail)
        _require(cq_id in queues, "submission queue without its completion queue")
    admin = {queue[0] for queue in state["submission"]} & queues
    _require(0 in admin or not queues, "I/O queues without admin queues")
    features = state["features"]
    values = {fid: value for fid, value in features["values"]}  # noqa: C416
    _require(values.keys() == controller.features.values.keys(), "features")
    numbers = [*values.values(), features["temperature_under"]]
    numbers += [features["submission_queues"], features["completion_queues"]]
    numbers += [*features["coalescing_disabled"], *state["requests"], *state["masked"]]
    numbers += [number for event in state["waiting"] for number in event]
    numbers += [number for owed in state["owed"] for number in owed]
    numbers += [state["interrupt_mask"], *state["shadow"]] if state["shadow"] else []
    _require(all(_below(number, 1 << 64) for number in numbers), "numbers")
    _require(len(state["requests"]) <= controller.events.limit, "outstanding event requests")
    _require(all(len(owed) == 3 for owed in state["owed"]), "owed completions")
    _require(all(len(event) == 3 for event in state["waiting"]), "events")
    _require(len(state["owed"]) <= 65536 and len(state["waiting"]) <= 256, "owed completions")
    _require(state["health"].keys() == set(_HEALTH), "health")
    _require(all(_below(each, 1 << 128) for each in state["health"].values()), "health")
    _require(all(isinstance(entry, bytes) for entry in state["errors"]), "error log")
    _require(type(state["namespace_changed"]) is bool, "namespace")
    _require(isinstance(state["fatal_reason"], str), "fatal reason")


def _check_ring(
    limits: Limits, queue_id: object, iova: object, size: int, head: object, tail: object
) -> None:
    most = limits.queue_entries if queue_id else 4096
    _require(_below(queue_id, limits.queue_pairs + 1) and _below(iova, 1 << 64), "queue")
    _require(_below(size, most + 1) and size >= 2, "queue size")
    _require(_below(head, size) and _below(tail, size), "queue pointers")


def _below(value: object, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _is_bytes(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length


def _require(right: bool, what: str) -> None:
    if not right:
        raise UsageError(f"no state of this NVMe controller: its {what} cannot be")

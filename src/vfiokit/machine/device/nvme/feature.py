"""Features: what Set Features stores and Get Features answers.

Source: NVM Express Base Specification 2.0 §5.27.1 and §5.15. Nothing is saveable, so the saved
value of a feature is its default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vfiokit.machine.device.nvme.command import (
    BROADCAST_NSID,
    CDW10_LOCATION,
    CDW11_LOCATION,
    NSID_LOCATION,
    Command,
)
from vfiokit.machine.device.nvme.identify import NSID, WARNING_TEMPERATURE
from vfiokit.machine.device.nvme.status import CommandFailedError, Status

ARBITRATION = 0x01
POWER_MANAGEMENT = 0x02
TEMPERATURE_THRESHOLD = 0x04
ERROR_RECOVERY = 0x05
WRITE_CACHE = 0x06
QUEUE_COUNT = 0x07
INTERRUPT_COALESCING = 0x08
VECTOR_CONFIGURATION = 0x09
WRITE_ATOMICITY = 0x0A
EVENT_CONFIGURATION = 0x0B

_SELECT_CAPABILITIES = 3
_SAVE = 1 << 31
_CHANGEABLE = 1 << 2
_NAMESPACE_SPECIFIC = 1 << 1

_THRESHOLD_UNDER = 1 << 20
_ALL_SENSORS = 0xF


class _Feature(NamedTuple):
    default: int
    mask: int
    """Bits of dword 11 that are stored."""
    namespace_specific: bool = False


_FEATURES = {
    ARBITRATION: _Feature(0x03, 0xFFFFFF07),
    POWER_MANAGEMENT: _Feature(0, 0xFF),
    TEMPERATURE_THRESHOLD: _Feature(WARNING_TEMPERATURE, 0xFFFF),
    ERROR_RECOVERY: _Feature(0, 0x0001FFFF, namespace_specific=True),
    WRITE_CACHE: _Feature(1, 1),
    QUEUE_COUNT: _Feature(0, 0),
    INTERRUPT_COALESCING: _Feature(0, 0xFFFF),
    VECTOR_CONFIGURATION: _Feature(0, 0x10000),
    WRITE_ATOMICITY: _Feature(0, 1),
    EVENT_CONFIGURATION: _Feature(0, 0x01FF),
}


class Features:
    """The feature values of one controller.

    ``max_queue_pairs`` are the I/O queue pairs it can grant; ``vectors`` tells how many
    interrupt vectors there are at the moment.
    """

    def __init__(self, max_queue_pairs: int, vectors: Callable[[], int]) -> None:
        self._max_queue_pairs = max_queue_pairs
        self._vectors = vectors
        self.values: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Everything to its default."""
        self.values = {fid: feature.default for fid, feature in _FEATURES.items()}
        self.temperature_under = 0
        self.submission_queues = self._max_queue_pairs
        self.completion_queues = self._max_queue_pairs
        self._coalescing_disabled: set[int] = set()

    def save(self) -> dict[str, Any]:
        """The values as plain data."""
        return {
            "values": [[fid, value] for fid, value in self.values.items()],
            "temperature_under": self.temperature_under,
            "submission_queues": self.submission_queues,
            "completion_queues": self.completion_queues,
            "coalescing_disabled": sorted(self._coalescing_disabled),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`save` gave."""
        self.values = {fid: value for fid, value in state["values"]}  # noqa: C416  # lists, too
        self.temperature_under = state["temperature_under"]
        self.submission_queues = state["submission_queues"]
        self.completion_queues = state["completion_queues"]
        self._coalescing_disabled = set(state["coalescing_disabled"])

    @property
    def burst(self) -> int:
        """Commands fetched per turn of a submission queue (Arbitration Burst)."""
        exponent = self.values[ARBITRATION] & 7
        return 64 if exponent == 7 else 1 << exponent

    @property
    def temperature_over(self) -> int:
        """Over-temperature threshold, kelvin."""
        return self.values[TEMPERATURE_THRESHOLD]

    def event_enabled(self, bit: int) -> bool:
        """Whether the Asynchronous Event Configuration lets this event through."""
        return bool(self.values[EVENT_CONFIGURATION] >> bit & 1)

    # -- commands -----------------------------------------------------------------------------

    def get(self, command: Command) -> int:
        """Get Features: dword 0 of the completion."""
        fid, feature = self._lookup(command)
        select = command.cdw10 >> 8 & 7
        if select > _SELECT_CAPABILITIES:
            raise CommandFailedError(Status.INVALID_FIELD, location=CDW10_LOCATION + 1)
        if feature.namespace_specific and command.nsid not in (NSID, BROADCAST_NSID):
            raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
        if select == _SELECT_CAPABILITIES:
            return _CHANGEABLE | (_NAMESPACE_SPECIFIC if feature.namespace_specific else 0)
        return self._value(fid, command.cdw11, current=select == 0)

    def set(self, command: Command, *, queues_exist: bool) -> int:
        """Set Features: dword 0 of the completion."""
        fid, feature = self._lookup(command)
        if command.cdw10 & _SAVE:
            raise CommandFailedError(Status.FEATURE_NOT_SAVEABLE, location=CDW10_LOCATION + 3)
        self._check_namespace(command, feature)
        value = command.cdw11
        if fid == QUEUE_COUNT:
            return self._set_queue_count(value, queues_exist)
        if fid == TEMPERATURE_THRESHOLD:
            self._set_threshold(value)
        elif fid == VECTOR_CONFIGURATION:
            self._set_vector(value)
        else:
            if fid == POWER_MANAGEMENT and value & 0x1F:
                raise CommandFailedError(Status.INVALID_FIELD, location=CDW11_LOCATION)
            self.values[fid] = value & feature.mask
        return 0

    # -- details ------------------------------------------------------------------------------

    def _lookup(self, command: Command) -> tuple[int, _Feature]:
        fid = command.cdw10 & 0xFF
        feature = _FEATURES.get(fid)
        if feature is None:
            raise CommandFailedError(Status.INVALID_FIELD, location=CDW10_LOCATION)
        return fid, feature

    def _check_namespace(self, command: Command, feature: _Feature) -> None:
        if feature.namespace_specific:
            if command.nsid not in (NSID, BROADCAST_NSID):
                raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)
        elif command.nsid == NSID:
            raise CommandFailedError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, location=NSID_LOCATION)
        elif command.nsid not in (0, BROADCAST_NSID):
            raise CommandFailedError(Status.INVALID_NAMESPACE, location=NSID_LOCATION)

    def _value(self, fid: int, cdw11: int, *, current: bool) -> int:
        if fid == QUEUE_COUNT:
            if current:
                return self._granted()
            return (self._max_queue_pairs - 1) * 0x10001
        if fid == TEMPERATURE_THRESHOLD:
            under = self._threshold_selected(cdw11)
            if current:
                return self.temperature_under if under else self.temperature_over
            return 0 if under else WARNING_TEMPERATURE
        if fid == VECTOR_CONFIGURATION:
            vector = self._vector(cdw11)
            return vector | (1 << 16 if current and vector in self._coalescing_disabled else 0)
        return self.values[fid] if current else _FEATURES[fid].default

    def _granted(self) -> int:
        return (self.completion_queues - 1) << 16 | self.submission_queues - 1

    def _set_queue_count(self, value: int, queues_exist: bool) -> int:
        if queues_exist:
            raise CommandFailedError(Status.COMMAND_SEQUENCE_ERROR)
        submission, completion = value & 0xFFFF, value >> 16
        if 0xFFFF in (submission, completion):
            raise CommandFailedError(Status.INVALID_FIELD, location=CDW11_LOCATION)
        self.submission_queues = min(submission + 1, self._max_queue_pairs)
        self.completion_queues = min(completion + 1, self._max_queue_pairs)
        return self._granted()

    def _set_threshold(self, value: int) -> None:
        if self._threshold_selected(value):
            self.temperature_under = value & 0xFFFF
        else:
            self.values[TEMPERATURE_THRESHOLD] = value & 0xFFFF

    @staticmethod
    def _threshold_selected(cdw11: int) -> bool:
        """Whether the under-temperature threshold is meant; there is only the composite sensor."""
        sensor = cdw11 >> 16 & 0xF
        kind = cdw11 >> 20 & 3
        if sensor not in (0, _ALL_SENSORS) or kind > 1:
            raise CommandFailedError(Status.INVALID_FIELD, location=CDW11_LOCATION + 2)
        return bool(cdw11 & _THRESHOLD_UNDER)

    def _vector(self, cdw11: int) -> int:
        vector = cdw11 & 0xFFFF
        if vector >= self._vectors():
            raise CommandFailedError(Status.INVALID_FIELD, location=CDW11_LOCATION)
        return vector

    def _set_vector(self, value: int) -> None:
        vector = self._vector(value)
        if value >> 16 & 1:
            self._coalescing_disabled.add(vector)
        else:
            self._coalescing_disabled.discard(vector)

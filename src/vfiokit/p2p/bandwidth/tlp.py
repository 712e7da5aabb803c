"""Bytes on the wire for one byte of data.

A write is packets of at most Max_Payload_Size, each with a header and framing. A read is requests
of at most Max_Read_Request_Size one way and completions the other way. What travels in one
direction also causes acknowledgements and credits in the other.
Source: PCI Express Base Specification 6.0 §2.2 (headers), §3.6 (framing); Neugebauer et al.,
Understanding PCIe performance for end host networking, SIGCOMM 2018.
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.errors import ConfigRangeError
from vfiokit.p2p.bandwidth.parameter import Parameters
from vfiokit.pci.capability.express import (
    DEVICE_CAPABILITIES,
    DEVICE_CONTROL,
    DEVICE_CONTROL_2,
)
from vfiokit.pci.capability.register import Register
from vfiokit.pci.topology import Function

FLIT_SPEED = 64.0
"""GT/s from which packets travel in flits, without framing of their own."""
_TAGS, _EXTENDED_TAGS, _TEN_BIT_TAGS = 32, 256, 768


class Limits(NamedTuple):
    """What the Device Control registers of a function allow it to send."""

    mps: int
    """Bytes of payload in a packet."""
    mrrs: int
    """Bytes asked for by a read request."""
    tags: int
    """Read requests in flight."""
    assumed: bool
    """Whether the registers were not captured."""


def limits(function: Function | None, parameters: Parameters) -> Limits:
    """Of a function, or of a root complex (``None``), which sends what the path allows."""
    captured = None if function is None else _captured(function)
    mps, mrrs, tags = captured or (0, 0, 0)

    def chosen(name: str, value: int) -> int:
        return value if value and name not in parameters.given else int(parameters[name])

    return Limits(chosen("mps", mps), chosen("mrrs", mrrs), chosen("tags", tags), captured is None)


def _captured(function: Function) -> tuple[int, int, int] | None:
    mps = _field(function, DEVICE_CONTROL, "max_payload_size")
    mrrs = _field(function, DEVICE_CONTROL, "max_read_request_size")
    extended = _field(function, DEVICE_CONTROL, "extended_tag")
    if function.is_virtual or mps is None or mrrs is None or extended is None:
        return None
    ten_bit = _field(function, DEVICE_CONTROL_2, "tag_10bit_requester")
    tags = _TEN_BIT_TAGS if ten_bit else _EXTENDED_TAGS if extended else _TAGS
    return 128 << min(mps, 5), 128 << min(mrrs, 5), tags


def payload_capability(function: Function) -> int | None:
    """The greatest Max_Payload_Size that ``function`` can, bytes; ``None`` when not captured."""
    code = _field(function, DEVICE_CAPABILITIES, "max_payload_size")
    return None if code is None else 128 << min(code, 5)


def _field(function: Function, register: Register, name: str) -> int | None:
    if function.express is None:
        return None
    try:
        return function.express.field(register, name)
    except ConfigRangeError:
        return None


class Packet(NamedTuple):
    """One kind of packet, repeated."""

    payload: int
    """Bytes of data that one packet moves, or asks for."""
    carried: int
    """Bytes of data inside it: ``payload``, or 0 for a read request."""
    header: int
    """Bytes of header and ECRC."""
    framing: int

    def cost(self, speed: float) -> float:
        """Bytes on a link of ``speed`` GT/s for one byte of data."""
        framing = 0 if speed >= FLIT_SPEED else self.framing
        return (self.carried + self.header + framing) / self.payload


def write(sender: Limits, parameters: Parameters) -> Packet:
    """Memory writes."""
    header = int(parameters["request_header"] + parameters["ecrc"])
    return Packet(sender.mps, sender.mps, header, int(parameters["framing"]))


def read_request(requester: Limits, parameters: Parameters) -> Packet:
    """Memory read requests."""
    header = int(parameters["request_header"] + parameters["ecrc"])
    return Packet(requester.mrrs, 0, header, int(parameters["framing"]))


def completion(requester: Limits, completer: Limits, parameters: Parameters) -> Packet:
    """Read completions with data: as large as the completer may, never more than was asked for."""
    payload = min(completer.mps, requester.mrrs)
    if parameters["completion_payload"]:
        payload = min(payload, int(parameters["completion_payload"]))
    header = int(parameters["completion_header"] + parameters["ecrc"])
    return Packet(payload, payload, header, int(parameters["framing"]))

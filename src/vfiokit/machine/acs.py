"""Access Control Services as the hardware applies them.

:func:`decide` is the one function that says where a port sends a request that could go to a peer.
Source: PCI Express Base Specification 6.0 §6.12.1 (services) and §6.12.3 (how Request Redirect and
Egress Control combine), §7.7.11 (registers).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from vfiokit.machine.config import ConfigModel
from vfiokit.machine.txn import AddressType
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType

if TYPE_CHECKING:
    from vfiokit.machine.function import Function
    from vfiokit.machine.txn import Txn

# IntFlag arithmetic is slow, and decide() runs for every hop: plain integers here.
_SOURCE_VALIDATION: Final = int(Acs.SOURCE_VALIDATION)
_TRANSLATION_BLOCKING: Final = int(Acs.TRANSLATION_BLOCKING)
_REQUEST_REDIRECT: Final = int(Acs.REQUEST_REDIRECT)
_COMPLETION_REDIRECT: Final = int(Acs.COMPLETION_REDIRECT)
_UPSTREAM_FORWARDING: Final = int(Acs.UPSTREAM_FORWARDING)
_EGRESS_CONTROL: Final = int(Acs.EGRESS_CONTROL)
_DIRECT_TRANSLATED: Final = int(Acs.DIRECT_TRANSLATED)

_PORTS: Final = frozenset({PortType.ROOT_PORT, PortType.DOWNSTREAM})


class Decision(Enum):
    """What a port does with a request."""

    DIRECT = "direct"
    """Route by address: to the peer, or upstream where no peer claims it."""
    REDIRECT = "redirect"
    """Send it upstream although a peer claims the address."""
    BLOCK = "block"
    """Refuse it: an ACS violation, or an Unsupported Request."""


class Verdict(NamedTuple):
    """A decision and why it was taken."""

    decision: Decision
    reason: str
    violation: bool = False
    """Whether the port logs an ACS violation (AER); a block without one is an Unsupported
    Request."""


class AcsRegisters:
    """The ACS capability of a function, read live from its configuration bytes."""

    __slots__ = ("config", "offset")

    def __init__(self, config: ConfigModel, offset: int) -> None:
        self.config = config
        self.offset = offset

    @property
    def capability(self) -> int:
        """The ACS Capability register: supported services [6:0], vector size [15:8]."""
        return self.config.read(self.offset + 4, 2)

    @property
    def control(self) -> int:
        """The ACS Control register."""
        return self.config.read(self.offset + 6, 2)

    @control.setter
    def control(self, value: int) -> None:
        self.config.set(self.offset + 6, 2, value)

    @property
    def enabled(self) -> int:
        """Services that are both supported and enabled."""
        data = self.config.data
        return data[self.offset + 4] & data[self.offset + 6] & 0x7F

    @property
    def vector_bits(self) -> int:
        """Bits of the Egress Control Vector; 0 without Egress Control."""
        capability = self.capability
        if not capability & _EGRESS_CONTROL:
            return 0
        return capability >> 8 or 256

    def egress_bit(self, index: int) -> bool:
        """Bit ``index`` of the Egress Control Vector; clear beyond its end."""
        if index >= self.vector_bits:
            return False
        return bool(self.config.data[self.offset + 8 + index // 8] >> index % 8 & 1)

    def set_egress_bit(self, index: int, value: bool) -> None:
        """Change one bit of the Egress Control Vector, as software would."""
        at = self.offset + 8 + index // 8
        kept = self.config.data[at] & ~(1 << index % 8)
        self.config.set(at, 1, kept | value << index % 8)


def decide(port: Function, txn: Txn, target: Function | None) -> Decision:
    """Where ``port`` sends ``txn``; see :func:`judge` for the reason as well."""
    return judge(port, txn, target).decision


def judge(port: Function, txn: Txn, target: Function | None) -> Verdict:
    """Decide about a request at the point where it enters a component.

    ``port`` is the root port or switch downstream port that received ``txn`` from below, or the
    function of a multi-function device that sends it. ``target`` is the peer whose window or BAR
    claims the address: another downstream port, another function of the device, or ``port``
    itself when the address lies behind the port it came from. ``None`` means no peer claims it.
    """
    registers = port.acs
    enabled = registers.enabled if registers is not None else 0
    receives = port.port_type in _PORTS
    if receives:
        refused = _ingress(port, txn, enabled)
        if refused is not None:
            return refused
    if target is None:
        return Verdict(Decision.DIRECT, "no peer claims the address")
    if target is port:
        return _own_window(port, enabled)
    if registers is not None and not registers.capability & _REQUEST_REDIRECT:
        # The service is mandatory for whatever routes to peers: this component does not.
        return Verdict(Decision.REDIRECT, "no peer-to-peer inside the component")
    if txn.at is AddressType.TRANSLATED and enabled & _DIRECT_TRANSLATED:
        return Verdict(Decision.DIRECT, "direct translated")
    redirect = bool(enabled & _REQUEST_REDIRECT)
    if enabled & _EGRESS_CONTROL:
        assert registers is not None
        if not registers.egress_bit(egress_index(port, target)):
            return Verdict(Decision.DIRECT, "egress control allows it")
        if redirect:
            return Verdict(Decision.REDIRECT, "egress control and request redirect")
        return Verdict(Decision.BLOCK, "egress control", violation=True)
    if redirect:
        return Verdict(Decision.REDIRECT, "request redirect")
    return Verdict(Decision.DIRECT, "")


def decide_completion(port: Function, *, relaxed_ordering: bool = False) -> Decision:
    """Where the port of a completer sends a read completion that a peer waits for.

    Completion Redirect spares completions with the Relaxed Ordering attribute.
    """
    registers = port.acs
    if registers is None or relaxed_ordering or not registers.enabled & _COMPLETION_REDIRECT:
        return Decision.DIRECT
    return Decision.REDIRECT


def egress_index(port: Function, target: Function) -> int:
    """The bit of the Egress Control Vector of ``port`` that stands for ``target``.

    Ports are indexed by their port number, functions of a device by function number.
    """
    if port.port_type in _PORTS:
        return target.port_number
    return target.bdf.function


def _ingress(port: Function, txn: Txn, enabled: int) -> Verdict | None:
    if enabled & _SOURCE_VALIDATION:
        data = port.config.data
        bus = txn.requester_id >> 8
        if not data[0x19] <= bus <= data[0x1A]:
            return Verdict(
                Decision.BLOCK,
                f"source validation: bus {bus:02x} is not below the port",
                violation=True,
            )
    if enabled & _TRANSLATION_BLOCKING and txn.at is not AddressType.UNTRANSLATED:
        return Verdict(Decision.BLOCK, "translation blocking", violation=True)
    return None


def _own_window(port: Function, enabled: int) -> Verdict:
    if enabled & _UPSTREAM_FORWARDING:
        return Verdict(Decision.REDIRECT, "upstream forwarding")
    if port.port_type is PortType.ROOT_PORT:
        # A root complex compares addresses with its windows after translation, not before.
        return Verdict(Decision.DIRECT, "root port")
    return Verdict(Decision.BLOCK, "the address lies behind the port it came from")

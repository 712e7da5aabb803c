"""What doctor says: findings, and what they rest on."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from vfiokit.host.usage import Use
from vfiokit.pci.address import Bdf


class Severity(StrEnum):
    """How much a finding matters."""

    PROBLEM = "problem"
    """Assignment fails, or would harm the host."""
    WARNING = "warning"
    """Assignment works and is weaker, slower or more fragile than it seems."""
    UNKNOWN = "unknown"
    """The host's description does not tell."""
    NOTE = "note"
    """Worth knowing; nothing to repair."""
    OK = "ok"
    """Checked and in order."""

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


class Evidence(NamedTuple):
    """One thing that was read, and what it said."""

    source: str
    """A path, or a register of a function."""
    content: str

    def text(self) -> str:
        """``path: content``."""
        return f"{self.source}: {self.content}"


class Finding(NamedTuple):
    """The answer to one question about a host, or about one function of it."""

    id: str
    """Which question; stable, for scripts: ``interrupt-remapping``, ``reset``."""
    severity: Severity
    what: str
    """The answer, a sentence without its full stop."""
    evidence: tuple[Evidence, ...] = ()
    remedy: str = ""
    """What to type or to set, or how to learn the answer; empty where there is nothing to do."""
    device: Bdf | None = None
    """The function it is about; ``None``: the host."""

    @property
    def subject(self) -> str:
        """``host``, or the address of the function."""
        return "host" if self.device is None else str(self.device)


class Verdict(StrEnum):
    """The answer to "is this machine ready"."""

    READY = "ready"
    NOT_READY = "not ready"
    UNKNOWN = "unknown"
    """Nothing speaks against it, but what decides could not be read."""


DECIDING = frozenset({"iommu", "interrupt-remapping"})
"""Questions without whose answer nobody can call a machine ready."""


def verdict(findings: tuple[Finding, ...]) -> Verdict:
    """What all findings together say."""
    if any(finding.severity is Severity.PROBLEM for finding in findings):
        return Verdict.NOT_READY
    if any(finding.severity is Severity.UNKNOWN and finding.id in DECIDING for finding in findings):
        return Verdict.UNKNOWN
    return Verdict.READY


def loss(use: Use) -> str:
    """What giving away a function does to ``use``, a sentence that stands for itself."""
    return f"the host {use.loss}" if use.loss.startswith("loses ") else use.loss

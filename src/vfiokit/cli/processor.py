"""The processor that P2P rules ask about: as the command line or the host says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfiokit.errors import SourceError

if TYPE_CHECKING:
    from vfiokit.cli.session import Session
    from vfiokit.p2p import Cpu


def chosen(text: str | None, session: Session) -> Cpu | None:
    """What ``--cpu`` names, else the host's own; ``None`` where its description tells nothing."""
    from vfiokit.host.processor import read_cpu
    from vfiokit.p2p.what_if import parse_cpu

    if text is not None:
        return parse_cpu(text)
    try:
        return read_cpu(session.tree)
    except SourceError:
        return None  # a description without files

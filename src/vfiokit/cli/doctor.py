"""``vfiokit doctor``: is this machine ready to assign a device?"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session
from vfiokit.pci.quantity import counted

if TYPE_CHECKING:
    from vfiokit.assign.doctor import Finding, Verdict
    from vfiokit.host.tree import Tree
    from vfiokit.pci.topology import Function, Topology

DESCRIPTION = """\
Say whether a host is ready to assign a device to a virtual machine or a program: IOMMU,
interrupt remapping, ACS, VFIO, memory, resets, power, BARs, and options that weaken
isolation. Each finding names what was read and what to type. Nothing is changed. What a
capture does not hold is 'unknown', never guessed.
"""
EPILOG = """\
examples:
  sudo vfiokit doctor
  sudo vfiokit doctor 05:00.0 --memory 64G
  vfiokit doctor nvme --host demo
  vfiokit doctor gpu --host capture.tar.zst -v

exit codes: 0 ready, 3 not ready, or what decides is unknown
"""

_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="what shall be assigned")
    parser.add_argument(
        "--memory", type=parse_size, metavar="SIZE", help="memory of the guest, such as 64G"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show what is in order, and all evidence"
    )


def parse_size(text: str) -> int:
    """Bytes of ``64G``, ``512MiB``, ``4096``; units are powers of 1024.

    ``argparse.ArgumentTypeError`` for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 64G, 512M or bytes")
    return int(match[1]) << _UNITS[match[2].upper()]


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Examine and print."""
    from vfiokit.assign.doctor import Verdict, examine, verdict

    topology = session.topology()
    devices = _devices(arguments.devices, topology)
    findings = examine(_files(session), topology, devices, memory_size=arguments.memory)
    answer = verdict(findings)
    output = Output(json=arguments.json)
    if output.json:
        output.document("doctor", session.host, _document(findings, devices, answer))
    else:
        _print(output, findings, devices, answer, verbose=arguments.verbose)
    return exit_code.DONE if answer is Verdict.READY else exit_code.NO


def _files(session: Session) -> Tree:
    """The host's files; none where a description such as lspci's output has none."""
    from vfiokit.errors import SourceError
    from vfiokit.host.tree import RecordedTree

    try:
        return session.tree
    except SourceError:
        return RecordedTree({}, {})


def _devices(texts: list[str], topology: Topology) -> tuple[Function, ...]:
    """The functions that the selectors name, each once."""
    from vfiokit.pci.selector import select

    found = {function.bdf: function for text in texts for function in select(topology, text)}
    return tuple(found.values())


def _print(
    output: Output,
    findings: tuple[Finding, ...],
    devices: tuple[Function, ...],
    answer: Verdict,
    *,
    verbose: bool,
) -> None:
    from vfiokit.assign.doctor import Severity

    hidden = 0
    for finding in findings:
        if finding.severity is Severity.OK and not verbose:
            hidden += 1
            continue
        output.line(f"{finding.severity:<8} {finding.id}: {finding.what}")
        for evidence in finding.evidence if verbose else finding.evidence[:2]:
            output.line(f"         {evidence.text()}")
        if finding.remedy:
            output.line(f"         → {finding.remedy}")
    if hidden:
        output.line(f"{'ok':<8} {counted(hidden, 'check')} in order (-v shows them)")
    output.line(_summary(findings, devices, answer))


def _summary(findings: tuple[Finding, ...], devices: tuple[Function, ...], answer: Verdict) -> str:
    from vfiokit.assign.doctor import Severity

    counts = [
        f"{count} {severity}{'s' if count > 1 and severity is not Severity.UNKNOWN else ''}"
        for severity in Severity
        if severity is not Severity.OK
        and (count := sum(finding.severity is severity for finding in findings))
    ]
    listed = ", ".join(str(function.bdf) for function in devices[:4])
    more = f" and {len(devices) - 4} more" if len(devices) > 4 else ""
    what = f" to assign {listed}{more}" if devices else " to assign devices"
    head = f"{answer}{what}" if answer.value != "unknown" else f"cannot tell whether ready{what}"
    return f"{head}: {', '.join(counts) or 'everything is in order'}"


def _document(
    findings: tuple[Finding, ...], devices: tuple[Function, ...], answer: Verdict
) -> dict[str, object]:
    return {
        "verdict": answer.value,
        "devices": [str(function.bdf) for function in devices],
        "findings": [
            {
                "id": finding.id,
                "severity": finding.severity.value,
                "device": None if finding.device is None else str(finding.device),
                "what": finding.what,
                "evidence": [evidence._asdict() for evidence in finding.evidence],
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }

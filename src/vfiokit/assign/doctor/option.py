"""Options of the kernel and of its modules that turn protection off, or only seem to help.

Sources: Linux ``Documentation/admin-guide/kernel-parameters.txt`` and ``drivers/pci/pci.c``
(``pci=``); ``pcie_acs_override`` is a patch that distributions carry, and ``pci=noacs`` none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.assign.doctor.facts import Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity


class _Rule(NamedTuple):
    """A word of the command line, and what it does."""

    option: str
    value: str
    """One of the comma-separated parts of the value, or its start when it ends with ``=``;
    empty: any value."""
    severity: Severity
    effect: str


_RULES = (
    _Rule("intel_iommu", "off", Severity.PROBLEM, "turns Intel's IOMMU off"),
    _Rule("amd_iommu", "off", Severity.PROBLEM, "turns AMD's IOMMU off"),
    _Rule("iommu", "off", Severity.PROBLEM, "turns the IOMMU off"),
    _Rule("iommu", "soft", Severity.PROBLEM, "uses bounce buffers in the place of the IOMMU"),
    _Rule("intremap", "off", Severity.PROBLEM, "turns interrupt remapping off"),
    _Rule(
        "intremap",
        "nosid",
        Severity.WARNING,
        "does not check who sends an interrupt: an assigned device can pretend to be another",
    ),
    _Rule(
        "pcie_acs_override",
        "",
        Severity.WARNING,
        "makes Linux believe in isolation that the "
        "hardware does not have: devices of separate groups may still reach each other",
    ),
    _Rule(
        "pci",
        "config_acs=",
        Severity.WARNING,
        "sets ACS by hand, over what Linux would set: groups follow from it",
    ),
    _Rule(
        "pci",
        "disable_acs_redir=",
        Severity.WARNING,
        "takes ACS redirection from some ports: what is below them shares a group",
    ),
    _Rule("pci", "nomsi", Severity.WARNING, "leaves INTx only: slow, and often not shareable"),
    _Rule(
        "pci",
        "noats",
        Severity.NOTE,
        "turns ATS off, and ACS Translation Blocking on: no "
        "peer-to-peer DMA of translated requests",
    ),
    _Rule("pci", "noaer", Severity.NOTE, "turns error reporting off: no counters to watch"),
    _Rule("pci", "noacs", Severity.NOTE, "is unknown to Linux and does nothing"),
    _Rule(
        "amd_iommu",
        "on",
        Severity.NOTE,
        "is unknown to Linux and does nothing: AMD-Vi is on where the firmware offers it",
    ),
    _Rule(
        "intel_iommu",
        "igfx_off",
        Severity.NOTE,
        "leaves integrated graphics without IOMMU: it cannot be assigned",
    ),
    _Rule(
        "vfio_iommu_type1.allow_unsafe_interrupts",
        "",
        Severity.WARNING,
        "lets VFIO work without interrupt remapping",
    ),
    _Rule(
        "iommufd.allow_unsafe_interrupts",
        "",
        Severity.WARNING,
        "lets iommufd work without interrupt remapping",
    ),
    _Rule(
        "vfio.enable_unsafe_noiommu_mode",
        "",
        Severity.WARNING,
        "lets programs drive devices that reach all of memory",
    ),
    _Rule("nomodule", "", Severity.NOTE, "loads no module by itself or with modprobe"),
)

_OFF = ("0", "n", "N")


def check(facts: Facts) -> Iterator[Finding]:
    """The command line, module parameters, and the kernel's lockdown."""
    line = facts.command_line
    if line.text is None:
        yield Finding(
            "kernel-options",
            Severity.UNKNOWN,
            "the kernel command line is not recorded",
            (line.evidence,),
            "cat /proc/cmdline",
        )
    else:
        found = [finding for rule in _RULES for finding in _apply(facts, rule)]
        yield from found or (
            Finding(
                "kernel-options",
                Severity.OK,
                "no option on the kernel command line weakens isolation",
                (line.evidence,),
            ),
        )
    yield from _no_iommu_mode(facts)
    yield from _lockdown(facts)


def _apply(facts: Facts, rule: _Rule) -> Iterator[Finding]:
    for name, value in facts.options(rule.option):
        # The device lists of pci= are separated by semicolons.
        parts = value.split(",")
        if rule.value.endswith("="):
            hits = [part for part in parts if part.startswith(rule.value)]
        elif rule.value:
            hits = [part for part in parts if part == rule.value]
        else:
            hits = [value] if value not in _OFF else []
        for hit in hits:
            word = f"{name}={hit}" if hit else name
            yield Finding(
                "kernel-options",
                rule.severity,
                f"{word} {rule.effect}",
                (Evidence("/proc/cmdline", word),),
                f"take {word} out of the kernel command line and reboot",
            )


def _no_iommu_mode(facts: Facts) -> Iterator[Finding]:
    switch = facts.parameter("vfio", "enable_unsafe_noiommu_mode")
    if switch.text in ("Y", "1"):
        yield Finding(
            "noiommu-mode",
            Severity.WARNING,
            "vfio's no-IOMMU mode is on: functions without a group can be driven from user space, "
            "and reach all of memory",
            (switch.evidence,),
            f"echo 0 > {switch.path}",
        )


def _lockdown(facts: Facts) -> Iterator[Finding]:
    reading = facts.read("/sys/kernel/security/lockdown")
    text = reading.text or ""
    mode = text.partition("[")[2].partition("]")[0]
    if mode and mode != "none":
        yield Finding(
            "lockdown",
            Severity.NOTE,
            f"the kernel is locked down ({mode}, as with Secure Boot): VFIO works; writing "
            "configuration space with setpci, MSRs, and modules that are not signed do not",
            (reading.evidence,),
        )

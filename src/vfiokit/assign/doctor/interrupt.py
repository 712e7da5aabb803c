"""Are interrupts of a device kept where they belong?

Sources: Linux ``drivers/iommu/irq_remapping.c``, ``arch/x86/kernel/apic`` and
``drivers/iommu/{intel,amd}`` (remapped interrupt chips are named ``IR-…``),
``drivers/vfio/vfio_iommu_type1.c`` and ``drivers/iommu/iommufd/device.c`` (EPERM without isolated
MSIs); Intel VT-d specification 4.1 §8.1 (flags of the DMAR table).
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Iterator

from vfiokit.assign.doctor.facts import Facts, Reading
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity
from vfiokit.assign.doctor.unit import units

_CHIPS = "/sys/kernel/irq"
_DMAR = "/sys/firmware/acpi/tables/DMAR"
_DMAR_FLAGS = 37
_PLACE = re.compile(r"-[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
"""What chips of single functions end with."""
_INTR_REMAP, _X2APIC_OPT_OUT = 0x01, 0x02


def check(facts: Facts) -> Iterator[Finding]:
    """Interrupt remapping, and the switches that do without."""
    unsafe = [reading for reading in _switches(facts) if reading.text == "Y"]
    remapping = _remapping(facts)
    if remapping.severity is Severity.PROBLEM and unsafe:
        remapping = remapping._replace(
            severity=Severity.WARNING,
            what=f"{remapping.what}; allow_unsafe_interrupts lets VFIO do without",
        )
    yield remapping
    for reading in unsafe:
        yield Finding(
            "unsafe-interrupts",
            Severity.WARNING,
            "allow_unsafe_interrupts is on: where interrupts are not remapped, a guest can raise "
            "any interrupt of the host by a DMA write",
            (reading.evidence,),
            f"echo N > {reading.path}, and take it out of /etc/modprobe.d and the command line",
        )


def _switches(facts: Facts) -> tuple[Reading, ...]:
    return tuple(
        facts.parameter(module, "allow_unsafe_interrupts")
        for module in ("vfio_iommu_type1", "iommufd")
    )


def _remapping(facts: Facts) -> Finding:
    chips = Counter(
        _PLACE.sub("", text)
        for number in facts.names(_CHIPS) or ()
        if (text := facts.read(f"{_CHIPS}/{number}/chip_name").text)
    )
    message = {chip: count for chip, count in chips.items() if "MSI" in chip and "DMAR" not in chip}
    isolated = {chip for chip in chips if chip.startswith("IR-") or "ITS" in chip}
    listed = ", ".join(f"{chip} ×{count}" for chip, count in (Counter(message) or chips).items())
    evidence = (Evidence(f"{_CHIPS}/*/chip_name", listed),) if chips else ()
    if isolated:
        return Finding(
            "interrupt-remapping",
            Severity.OK,
            "interrupts are remapped: the kernel's interrupt "
            f"chips say so ({', '.join(sorted(isolated)[:3])})",
            evidence,
        )
    if message:
        return _off(facts, evidence)
    return _from_firmware(facts)


def _off(facts: Facts, evidence: tuple[Evidence, ...]) -> Finding:
    able = [unit for unit in units(facts) if unit.interrupt_remapping]
    flags, where = _dmar_flags(facts)
    remedy = "turn on interrupt remapping (with VT-d or AMD-Vi) in the firmware setup"
    if any(value == "off" for _, value in facts.options("intremap")):
        remedy = "take intremap=off out of the kernel command line and reboot"
        evidence += (facts.command_line.evidence,)
    elif flags is not None and not flags & _INTR_REMAP:
        evidence += (where,)
    elif flags is not None and flags & _X2APIC_OPT_OUT:
        remedy = "boot with intremap=no_x2apic_optout: the firmware asks the kernel to do without"
        evidence += (where,)
    elif able:
        evidence += able[0].evidence[1:]
        remedy = f"{able[0].name} can do it: dmesg | grep -i remap says why the kernel does not"
    return Finding(
        "interrupt-remapping",
        Severity.PROBLEM,
        "interrupts are not remapped: VFIO refuses to attach a device to an address space (EPERM)",
        evidence,
        remedy,
    )


def _from_firmware(facts: Facts) -> Finding:
    """Without the chips: what units and firmware could do, which does not say that they do."""
    found = [unit for unit in units(facts) if unit.interrupt_remapping is not None]
    unable = [unit for unit in found if not unit.interrupt_remapping]
    evidence = tuple(unit.evidence[-1] for unit in found if unit.evidence)
    if unable:
        return Finding(
            "interrupt-remapping",
            Severity.PROBLEM,
            f"{', '.join(unit.name for unit in unable)} cannot remap interrupts: VFIO refuses to "
            "attach a device behind it (EPERM)",
            evidence,
            "nothing short of other hardware keeps interrupts apart; allow_unsafe_interrupts of "
            "vfio_iommu_type1 and iommufd gives up on it",
        )
    if any(value == "off" for _, value in facts.options("intremap")):
        return _off(facts, evidence)
    able = f"{', '.join(unit.name for unit in found)} can remap interrupts; " if found else ""
    return Finding(
        "interrupt-remapping",
        Severity.UNKNOWN,
        f"{able}whether the kernel does is not recorded",
        (*evidence, Evidence(f"{_CHIPS}/*/chip_name", "(not in this description of the host)")),
        "grep -h . /sys/kernel/irq/*/chip_name | sort | uniq -c: names begin with IR- when it does",
    )


def _dmar_flags(facts: Facts) -> tuple[int | None, Evidence]:
    """The flags byte of the DMAR table, which only root can read."""
    try:
        table = facts.tree.read(_DMAR)
    except OSError as failure:
        return None, Evidence(_DMAR, f"({failure.strerror or errno.errorcode[errno.EIO]})")
    if len(table) <= _DMAR_FLAGS or table[:4] != b"DMAR":
        return None, Evidence(_DMAR, "(not a DMAR table)")
    return table[_DMAR_FLAGS], Evidence(_DMAR, f"flags {table[_DMAR_FLAGS]:#04x}")

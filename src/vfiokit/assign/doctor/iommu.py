"""Is the IOMMU on, in which mode, and what can it translate?

Sources: Linux ``drivers/iommu/iommu.c`` (group types), ``drivers/iommu/intel/dmar.c``,
``drivers/vfio/group.c`` (no-IOMMU groups are named ``vfio-noiommu``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vfiokit.assign.doctor.facts import GROUPS, Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity
from vfiokit.assign.doctor.kernel import configured
from vfiokit.assign.doctor.unit import Unit, units
from vfiokit.pci.quantity import counted
from vfiokit.pci.topology import Function

_TABLES = "/sys/firmware/acpi/tables"
_FIRMWARE = {
    "DMAR": ("Intel VT-d", "intel_iommu=on"),
    "IVRS": ("AMD-Vi", "amd_iommu=force_enable"),
    "IORT": ("an Arm SMMU", "iommu.passthrough=0"),
    "VIOT": ("a virtual IOMMU", "iommu.passthrough=0"),
}
_BUILT = {
    "intel_iommu=on": "CONFIG_INTEL_IOMMU",
    "amd_iommu=force_enable": "CONFIG_AMD_IOMMU",
}
_SETUP = {
    "intel": "turn on 'Intel VT-d' in the firmware setup, then boot with intel_iommu=on",
    "amd": "turn on 'IOMMU' (AMD-Vi) in the firmware setup; Linux uses it by itself",
}


def check(facts: Facts) -> Iterator[Finding]:
    """IOMMU, its default mode, coherency, and address width."""
    found = units(facts)
    yield _present(facts, found)
    if not _groups(facts):
        return
    yield from _unserved(facts)
    for function in facts.devices:
        yield from _firmware_mappings(facts, function)
    yield _mode(facts)
    yield from _abilities(found)


def _groups(facts: Facts) -> list[str]:
    """Numbers of the groups behind an IOMMU."""
    recorded = {each.recorded.iommu_group for each in facts.topology}
    # Mediated devices have groups of their own, with no IOMMU behind them.
    numbers = [str(number) for number in sorted(n for n in recorded if n is not None)]
    numbers = numbers or facts.names(GROUPS) or []
    return [n for n in numbers if facts.read(f"{GROUPS}/{n}/name").text != "vfio-noiommu"]


def _present(facts: Facts, found: tuple[Unit, ...]) -> Finding:
    groups = _groups(facts)
    if groups:
        named = ", ".join(unit.name for unit in found)
        return Finding(
            "iommu",
            Severity.OK,
            f"the IOMMU is on: {counted(len(groups), 'group')}"
            + (f", {counted(len(found), 'unit')} ({named})" if found else ""),
            (
                Evidence(GROUPS, counted(len(groups), "group")),
                *((Evidence("/sys/class/iommu", named),) if found else ()),
            ),
        )
    if facts.names(GROUPS) is None and not found:
        return Finding(
            "iommu",
            Severity.UNKNOWN,
            "no IOMMU group is recorded, and it cannot be told whether the host had any",
            (Evidence(GROUPS, "(not in this description of the host)"),),
            "ls /sys/kernel/iommu_groups",
        )
    return _absent(facts, found)


def _absent(facts: Facts, found: tuple[Unit, ...]) -> Finding:
    """No group: say whether firmware, command line or kernel is to blame."""
    evidence = [Evidence(GROUPS, "empty")]
    tables = facts.names(_TABLES)
    offered = [name for name in _FIRMWARE if name in (tables or ())]
    if tables is not None:
        evidence.append(Evidence(_TABLES, ", ".join(offered) or "no DMAR, IVRS, IORT or VIOT"))
    if offered or found:
        kind, option = _FIRMWARE[offered[0]] if offered else ("it", _FIRMWARE["DMAR"][1])
        evidence.append(facts.command_line.evidence)
        built, source = configured(facts, _BUILT.get(option, "CONFIG_IOMMU_SUPPORT"))
        remedy = f"add to the kernel command line and reboot: {option}"
        off = [
            f"{name}={value}"
            for name, value in facts.options("iommu", "intel_iommu", "amd_iommu")
            if {"off", "soft"} & set(value.split(","))
        ]
        if off:
            remedy = f"take {' and '.join(off)} out of the kernel command line and reboot"
        elif built is False:
            evidence.append(source)
            remedy = f"install a kernel that is built with {source.content.split()[0]}"
        return Finding(
            "iommu",
            Severity.PROBLEM,
            f"the IOMMU is off: the firmware offers {kind}, and the kernel does not use it",
            tuple(evidence),
            remedy,
        )
    return Finding(
        "iommu",
        Severity.PROBLEM,
        "the IOMMU is off"
        + (
            ": the firmware describes none"
            if tables is not None
            else "; whether there is one cannot be told"
        ),
        tuple(evidence),
        _SETUP.get(facts.vendor or "", "turn on the IOMMU in the firmware setup")
        + "; in a virtual machine, give it a virtual IOMMU (qemu -device intel-iommu,intremap=on)",
    )


def _unserved(facts: Facts) -> Iterator[Finding]:
    """Chosen functions that no IOMMU serves, while it serves others."""
    for function in facts.devices:
        number = function.recorded.iommu_group
        path = f"/sys/bus/pci/devices/{function.bdf}/iommu_group"
        name = facts.read(f"{GROUPS}/{number}/name")
        if number is None:
            yield Finding(
                "iommu-group",
                Severity.PROBLEM,
                f"{function.bdf} has no IOMMU group",
                (Evidence(path, "no such link"),),
                "dmesg | grep -e DMAR -e AMD-Vi: is its unit or host bridge left out?",
                function.bdf,
            )
        elif name.text == "vfio-noiommu":
            yield Finding(
                "iommu-group",
                Severity.PROBLEM,
                f"the group of {function.bdf} is a no-IOMMU group: the device reaches all memory",
                (name.evidence,),
                "echo 0 > /sys/module/vfio/parameters/"
                "enable_unsafe_noiommu_mode, then bind it again",
                function.bdf,
            )


def _firmware_mappings(facts: Facts, function: Function) -> Iterator[Finding]:
    """Memory that the firmware wants mapped for a device at all times (RMRR, IVMD)."""
    number, bdf = function.recorded.iommu_group, function.bdf
    if number is None:
        return
    reading = facts.read(f"{GROUPS}/{number}/reserved_regions")
    if reading.text is None:
        yield Finding(
            "firmware-mapping",
            Severity.UNKNOWN,
            f"whether the firmware reserves memory for {bdf} (RMRR) is not recorded",
            (reading.evidence,),
            f"grep direct {reading.path}",
            bdf,
        )
        return
    regions = [line.split() for line in reading.text.splitlines()]
    fixed = [line for line in regions if len(line) == 3 and line[2] == "direct"]
    if fixed:
        first = f"{fixed[0][0]} to {fixed[0][1]}"
        yield Finding(
            "firmware-mapping",
            Severity.PROBLEM,
            f"the firmware demands that {bdf} reaches host memory at {first} at all times (RMRR): "
            "Linux refuses to give it away",
            (Evidence(reading.path, " ".join(fixed[0])),),
            "use another slot, or turn the reservation off in the firmware (HPE ProLiant: conrep, "
            "section RMRDS_SlotN: Endpoints_Excluded)",
            bdf,
        )


def _mode(facts: Facts) -> Finding:
    """The default domain of the groups: what host drivers get."""
    chosen = {each.recorded.iommu_group for each in facts.devices}
    numbers = [n for n in _groups(facts) if not chosen or int(n) in chosen]
    readings = [facts.read(f"{GROUPS}/{number}/type") for number in numbers]
    kinds = Counter(reading.text for reading in readings if reading.text)
    if not kinds:
        return Finding(
            "iommu-mode",
            Severity.UNKNOWN,
            "the mode in which host drivers use the IOMMU is not recorded",
            tuple(reading.evidence for reading in readings[:1])
            or (Evidence(f"{GROUPS}/*/type", "the chosen functions have no group"),),
            f"cat {GROUPS}/*/type",
        )
    listed = ", ".join(f"{kind} ({counted(count, 'group')})" for kind, count in kinds.most_common())
    evidence = (Evidence(f"{GROUPS}/*/type", listed), facts.command_line.evidence)
    if kinds.get("identity"):
        return Finding(
            "iommu-mode",
            Severity.NOTE,
            "host drivers bypass the IOMMU (identity): faster, and the host is not protected "
            "from its own devices; assigned devices are translated all the same",
            evidence,
            "to protect the host too, boot with iommu.passthrough=0",
        )
    if kinds.get("DMA-FQ"):
        return Finding(
            "iommu-mode",
            Severity.NOTE,
            "host drivers are translated with lazy invalidation (DMA-FQ): for a few milliseconds "
            "a device still reaches memory that was unmapped; assigned devices are not concerned",
            evidence,
            "for strict invalidation boot with iommu.strict=1",
        )
    return Finding("iommu-mode", Severity.OK, f"host drivers are translated: {listed}", evidence)


def _abilities(found: tuple[Unit, ...]) -> Iterator[Finding]:
    for unit in found:
        if unit.kind == "other":
            continue
        if unit.snoop_control is None and unit.address_bits is None:
            yield Finding(
                "iommu-unit",
                Severity.UNKNOWN,
                f"the registers of {unit.name} are not recorded",
                unit.evidence,
                f"cat /sys/class/iommu/{unit.name}/*-iommu/*",
            )
            continue
        width = f"{unit.address_bits}-bit IOVAs, " if unit.address_bits else ""
        yield Finding(
            "iommu-unit", Severity.OK, f"{unit.name} has {width}{unit.abilities}", unit.evidence
        )
        if unit.snoop_control is False:
            yield Finding(
                "iommu-coherency",
                Severity.NOTE,
                f"{unit.name} cannot force DMA to be coherent (no snoop control): KVM then honours "
                "a guest's cache settings and flushes, which costs time",
                unit.evidence,
            )
        if unit.caching_mode:
            yield Finding(
                "iommu-emulated",
                Severity.NOTE,
                f"{unit.name} is emulated (caching mode): this host is a virtual machine, and "
                "every mapping costs an exit to its hypervisor",
                unit.evidence,
            )

"""Who has the device now, what the host loses with it, and whether binding finds the right one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vfiokit.assign.doctor.facts import DEVICES, Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity, loss
from vfiokit.assign.survey import uses_vfio
from vfiokit.host.usage import uses
from vfiokit.pci.topology import Function

_CLINGING = frozenset({"amdgpu", "i915", "nouveau", "nvidia", "radeon", "xe"})
"""Graphics drivers whose unbinding hangs or crashes while anything uses the card."""
_FRAMEBUFFER = re.compile(r"(?:efi|vesa|simple|platform)-framebuffer\.\d+")
_IDS = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})", re.IGNORECASE)


def check(facts: Facts) -> Iterator[Finding]:
    """Binding by id on the whole host, then each chosen function."""
    yield from _by_id(facts)
    for function in facts.devices:
        if not function.is_bridge:
            yield from _driver(function)
            yield from _losses(facts, function)
            yield from _boot_framebuffer(facts, function)
            yield from _twins(facts, function)


def _driver(function: Function) -> Iterator[Finding]:
    bdf, driver = function.bdf, function.recorded.driver
    evidence = (Evidence(f"{DEVICES}/{bdf}/driver", driver or "none"),)
    if driver in _CLINGING and not function.is_virtual:
        yield Finding(
            "driver",
            Severity.WARNING,
            f"{driver} drives {bdf}: taking a graphics card from its "
            "driver while the host runs often hangs",
            evidence,
            f"let vfio-pci be first: 'softdep {driver} pre: vfio-pci' in /etc/modprobe.d/vfio.conf,"
            f" and driver_override=vfio-pci for {bdf} at boot",
            bdf,
        )
    elif driver is None:
        yield Finding("driver", Severity.OK, f"{bdf} has no driver", evidence, device=bdf)
    elif uses_vfio(driver):
        yield Finding("driver", Severity.OK, f"{bdf} is bound to {driver}", evidence, device=bdf)
    else:
        yield Finding(
            "driver",
            Severity.OK,
            f"{driver} drives {bdf} and can be unbound",
            evidence,
            f"vfiokit plan {bdf} shows what that changes",
            bdf,
        )


def _losses(facts: Facts, function: Function) -> Iterator[Finding]:
    """What the host loses: uses that stop it, uses that are active, uses nobody can judge."""
    bdf = function.bdf
    for use in uses(facts.tree, function):
        evidence = (Evidence(f"{use.kind} {use.name}", use.detail or "there"),)
        if use.kind == "sriov":
            continue  # a question of its own
        if use.critical and use.in_use:
            severity, remedy = Severity.PROBLEM, "give the host another one first"
        elif use.in_use and use.kind in ("disk", "mount", "swap", "mdev"):
            severity, remedy = Severity.PROBLEM, f"stop using {use.name}"
        elif use.in_use:
            severity, remedy = Severity.WARNING, f"stop using {use.name}"
        elif use.in_use is None and use.kind in ("disk", "network"):
            severity = Severity.UNKNOWN
            remedy = "lsblk; cat /proc/mounts" if use.kind == "disk" else "ip link; ip route"
            yield Finding(
                "in-use",
                severity,
                f"whether {use.kind} {use.name} is in use cannot be told; {loss(use)}",
                evidence,
                remedy,
                bdf,
            )
            continue
        else:
            severity, remedy = Severity.NOTE, ""
        yield Finding("in-use", severity, loss(use), evidence, remedy, bdf)


def _boot_framebuffer(facts: Facts, function: Function) -> Iterator[Finding]:
    """The firmware's framebuffer holds the BAR of the boot display: mapping it fails."""
    boot = facts.attribute(function, "boot_vga")
    if boot.text != "1" or function.recorded.driver in _CLINGING:
        return
    held = [
        name for name in facts.names("/sys/devices/platform") or () if _FRAMEBUFFER.fullmatch(name)
    ]
    if held:
        yield Finding(
            "boot-display",
            Severity.WARNING,
            f"{function.bdf} is the boot display, and the firmware's framebuffer ({held[0]}) may "
            "hold its BAR: mapping it then fails (EBUSY)",
            (boot.evidence, Evidence(f"/sys/devices/platform/{held[0]}", "there")),
            f"make another card the boot display, or: echo {held[0]} > "
            f"/sys/bus/platform/drivers/{held[0].partition('.')[0]}/unbind",
            function.bdf,
        )


def _twins(facts: Facts, function: Function) -> Iterator[Finding]:
    twins = [
        each.bdf
        for each in facts.topology
        if each.bdf != function.bdf
        and not each.is_virtual
        and not function.is_virtual
        and each.identity[:2] == function.identity[:2]
        and each.identity.vendor_id != 0xFFFF
    ]
    if twins:
        name = f"{function.identity.vendor_id:04x}:{function.identity.device_id:04x}"
        yield Finding(
            "identical",
            Severity.NOTE,
            f"{len(twins)} more of {name} in this host: binding by id takes them all",
            (Evidence(f"functions {name}", ", ".join(map(str, twins[:6]))),),
            f"bind by address: vfiokit plan {function.bdf}",
            function.bdf,
        )


def _by_id(facts: Facts) -> Iterator[Finding]:
    """``vfio-pci.ids=`` takes every function of an id, those that the host needs too."""
    loaded = facts.parameter("vfio_pci", "ids")
    listed = [
        (value, Evidence("/proc/cmdline", f"vfio-pci.ids={value}"))
        for _, value in facts.options("vfio_pci.ids")
    ]
    if loaded.text and loaded.text not in {value for value, _ in listed}:
        listed.append((loaded.text, loaded.evidence))
    seen: set[tuple[int, int]] = set()
    for value, evidence in listed:
        for vendor, device in _IDS.findall(value):
            ids = int(vendor, 16), int(device, 16)
            found = [each for each in facts.topology if each.identity[:2] == ids]
            if len(found) < 2 or ids in seen:
                continue
            seen.add(ids)
            kept = [each for each in found if not uses_vfio(each.recorded.driver or "")]
            also = f", {kept[0].bdf} among them, which {kept[0].recorded.driver or 'nothing'} "
            yield Finding(
                "bind-by-id",
                Severity.WARNING,
                f"vfio-pci.ids={vendor}:{device} takes "
                f"{len(found)} functions at boot" + (f"{also}drives now" if kept else ""),
                (evidence,),
                "take the id out, and set driver_override of the one function instead",
            )

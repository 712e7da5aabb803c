"""Can a device be reset, alone or only together with others, and does it come back from sleep?

Sources: Linux ``drivers/pci/pci.c`` (``pci_reset_fn_methods``: the method ``bus`` is there only for
a function that is alone on its bus), ``drivers/vfio/pci/vfio_pci_core.c`` (hot reset concerns every
function below the bridge, and all of them must belong to the caller; ``disable_idle_d3``).
"""

from __future__ import annotations

from collections.abc import Iterator

from vfiokit.assign.doctor.facts import DEVICES, Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity
from vfiokit.pci.quantity import counted
from vfiokit.pci.topology import Bus, Function

_COMPLETE = frozenset({"flr", "af_flr", "bus", "slot", "cxl_bus", "device_specific"})
"""Methods that leave nothing behind; ``pm`` and ``acpi`` promise less."""
_DISPLAY = 0x03


def check(facts: Facts) -> Iterator[Finding]:
    """Per chosen function: methods, what a hot reset takes along, power."""
    for function in facts.devices:
        if function.is_bridge:
            continue
        yield _methods(facts, function)
        yield from _hot_reset(facts, function)
        yield from _power(facts, function)


def _methods(facts: Facts, function: Function) -> Finding:
    bdf = function.bdf
    reading = facts.attribute(function, "reset_method")
    methods = (reading.text or "").split()
    evidence = (reading.evidence,)
    if not methods and facts.tree.exists(f"{DEVICES}/{bdf}/reset"):
        return Finding(
            "reset",
            Severity.OK,
            f"the kernel can reset {bdf}",
            (Evidence(f"{DEVICES}/{bdf}/reset", "there"),),
            device=bdf,
        )
    if not methods:
        if reading.text is None and not reading.absent and not _others_tell(facts):
            return Finding(
                "reset",
                Severity.UNKNOWN,
                f"how {bdf} can be reset is not recorded",
                evidence,
                f"cat {reading.path}",
                bdf,
            )
        return Finding(
            "reset",
            Severity.PROBLEM,
            f"the kernel has no way to reset {bdf} alone: what one guest left in it, the next one "
            "finds, and a guest that restarts may not get it to work",
            evidence,
            "assign everything below its bridge together (hot reset), or power-cycle the machine "
            "between guests",
            bdf,
        )
    if not _COMPLETE & set(methods):
        return Finding(
            "reset",
            Severity.WARNING,
            f"{bdf} is reset by {' '.join(methods)} only: a change of power state clears less than "
            "a function level reset",
            evidence,
            "test it: start the guest twice without rebooting the host",
            bdf,
        )
    return Finding(
        "reset", Severity.OK, f"{bdf} can be reset by {', '.join(methods)}", evidence, device=bdf
    )


def _others_tell(facts: Facts) -> bool:
    """Whether this description holds reset methods at all: then none is an answer."""
    return any(facts.tree.exists(f"{DEVICES}/{each.bdf}/reset_method") for each in facts.topology)


def _hot_reset(facts: Facts, function: Function) -> Iterator[Finding]:
    """What a reset of the bus takes along, where that is more than the group."""
    bus = facts.topology.bus_of(function)
    if bus.bridge is None or function.is_virtual:
        return
    concerned = [each for each in _below(facts, bus) if each.bdf != function.bdf]
    if not concerned:
        return
    group = facts.group_map.of(function)
    chosen = {each.bdf for each in facts.devices}
    members = set(group.members if group is not None else ()) | chosen
    many = counted(len(concerned), "function")
    outside = [each for each in concerned if each.bdf not in members]
    listed = ", ".join(f"{each.bdf} ({each.recorded.driver or 'no driver'})" for each in concerned)
    evidence = (Evidence(f"functions below {bus.bridge.bdf}", listed[:300]),)
    if outside:
        yield Finding(
            "hot-reset",
            Severity.NOTE,
            f"a bus reset of {function.bdf} takes along {many} below "
            f"{bus.bridge.bdf}, {len(outside)} of them outside its group: VFIO allows it only to "
            "one who holds them all",
            evidence,
            "assign them to the same guest, or rely on the function's own reset",
            function.bdf,
        )
    else:
        yield Finding(
            "hot-reset",
            Severity.OK,
            f"a bus reset of {function.bdf} takes along {many}, part of what is assigned",
            evidence,
            device=function.bdf,
        )


def _below(facts: Facts, bus: Bus) -> Iterator[Function]:
    """Every function on ``bus`` and below, virtual ones included: they go with their PF."""
    for function in bus.functions:
        if function.is_virtual:
            continue
        yield function
        secondary = facts.topology.secondary(function)
        if secondary is not None:
            yield from _below(facts, secondary)


def _power(facts: Facts, function: Function) -> Iterator[Finding]:
    bdf = function.bdf
    if len(function.config) >= 8 and function.config.data[:8] == b"\xff" * 8:
        yield Finding(
            "answering",
            Severity.PROBLEM,
            f"{bdf} does not answer: it is asleep, hung, or gone",
            (Evidence(f"{bdf} configuration space", "reads all ones"),),
            f"echo on > {DEVICES}/{bdf}/power/control; else power-cycle the machine",
            bdf,
        )
    state = function.recorded.power_state
    if state == "D3cold":
        yield Finding(
            "power",
            Severity.WARNING,
            f"{bdf} is in D3cold, without power: some devices do not "
            "come back from there in a guest",
            (Evidence(f"{DEVICES}/{bdf}/power_state", state),),
            f"echo 0 > {DEVICES}/{bdf}/d3cold_allowed",
            bdf,
        )
        return
    allowed = facts.attribute(function, "d3cold_allowed")
    idle = facts.parameter("vfio_pci", "disable_idle_d3")
    if function.identity.class_code >> 16 != _DISPLAY or idle.text == "Y" or allowed.text != "1":
        return
    yield Finding(
        "power",
        Severity.NOTE,
        f"while nobody has {bdf} open, vfio-pci lets it sleep (D3), and "
        "its bridge may cut its power (D3cold): some graphics cards do not wake up again",
        (allowed.evidence, idle.evidence),
        f"if it hangs at the guest's second start: echo 0 > {DEVICES}/{bdf}/d3cold_allowed, or "
        "options vfio-pci disable_idle_d3=1",
        bdf,
    )

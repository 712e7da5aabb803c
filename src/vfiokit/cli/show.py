"""``vfiokit show``: list functions, or everything about some of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vfiokit.cli import exit as exit_code
from vfiokit.cli.describe import class_text, device_text, link_text, size_text
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session

if TYPE_CHECKING:
    from vfiokit.isolation.group import Grouping
    from vfiokit.pci.topology import Function, Topology

DESCRIPTION = "List PCI functions, or show everything about the ones named."
EPILOG = """\
devices are named by address (05:00.0), ids (144d:a808, 10de:2330#1), path
(pci0000:00/02.0/00.0) or kind (nvme, gpu, nic, bridge, usb, sata, audio, all)

examples:
  vfiokit show                       one line for every function
  vfiokit show nvme --host demo      BARs, what a VMM may map, interrupts, ports above
  vfiokit show 05:00.0 -v            with every register of every capability
"""

UNCERTAIN = "uncertain: configuration space that decides is not in this description"
"""Said of a prediction that rests on bytes nobody captured."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.add_argument("device", nargs="*", help="which functions; all in one line each if none")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="every register of every capability"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """List or show."""
    from vfiokit.isolation.group import predict
    from vfiokit.pci.selector import select

    topology = session.topology()
    output = Output(json=arguments.json)
    if not arguments.device and not output.json:
        output.table(
            ("ADDRESS", "KIND", "DEVICE", "DRIVER", "GROUP", "NUMA"),
            (_row(topology, function) for function in topology),
        )
        return exit_code.DONE
    grouping = predict(topology)
    chosen = dict.fromkeys(
        function for text in arguments.device or ["all"] for function in select(topology, text)
    )
    if output.json:
        documents = [document(topology, grouping, function) for function in chosen]
        body = {"limits": list(session.limits), "devices": documents}
        output.document("show", session.host, body)
        return exit_code.DONE
    for function in chosen:
        for line in lines(topology, grouping, function):
            output.line(line)
        if arguments.verbose:
            _print_capabilities(output, function)
        output.line()
    return exit_code.DONE


def _row(topology: Topology, function: Function) -> tuple[str, ...]:
    recorded = function.recorded
    return (
        str(function.bdf),
        class_text(function),
        device_text(topology, function),
        recorded.driver or "-",
        "-" if recorded.iommu_group is None else str(recorded.iommu_group),
        "-" if recorded.numa_node is None else str(recorded.numa_node),
    )


def lines(topology: Topology, grouping: Grouping, function: Function) -> list[str]:
    """Everything about one function, as text."""
    recorded = function.recorded
    found = [f"{function.bdf}  {class_text(function)}: {device_text(topology, function)}"]
    found += _place_lines(topology, function)
    found.append(f"  driver       {recorded.driver or 'none'}")
    link = link_text(function)
    if link:
        found.append(f"  link         {link}")
    if recorded.reset_methods is not None:
        found.append(f"  reset by     {' '.join(recorded.reset_methods) or 'nothing'}")
    found += _group_lines(grouping, function)
    found += _bar_lines(function)
    found += _interrupt_lines(function)
    found += _capability_lines(function)
    return found


def _place_lines(topology: Topology, function: Function) -> list[str]:
    from vfiokit.pci.selector import slot_path

    found = [f"  place        {slot_path(topology, function)}"]
    found += [
        f"               below {port.bdf} {_port_text(port)}"
        for port in topology.path_to_root(function)
    ]
    if function.recorded.numa_node is not None:
        found.append(f"  NUMA node    {function.recorded.numa_node}")
    return found


def _port_text(port: Function) -> str:
    kind = port.port_type.name.lower().replace("_", " ") if port.port_type is not None else "bridge"
    if port.acs is None:
        return f"({kind}, no ACS)"
    return f"({kind}, ACS can {port.acs_capability:#04x} does {port.acs_control:#04x})"


def _group_lines(grouping: Grouping, function: Function) -> list[str]:
    group = grouping.of(function.bdf)
    recorded = function.recorded.iommu_group
    others = [str(bdf) for bdf in group.members if bdf != function.bdf]
    by_kernel = "none recorded" if recorded is None else f"{recorded} recorded"
    shared = f"shared with {', '.join(others)}" if others else "alone in it"
    found = [
        f"  IOMMU group  {by_kernel}, {group.id} predicted, {shared}",
        f"               {grouping.why(function.bdf).text()}",
    ]
    if function.bdf in grouping.uncertain:
        found.append(f"               {UNCERTAIN}")
    return found


def _bar_lines(function: Function) -> list[str]:
    from vfiokit.pci.bar import bars, windows

    found: list[str] = []
    for bar in bars(function):
        kind = bar.kind + (", prefetchable" if bar.prefetchable else "")
        found.append(f"  BAR {bar.index}        {bar.address:#x} {size_text(bar.size)} {kind}")
        for window in windows(function, bar):
            end = window.offset + window.length - 1
            verdict = "trap" if window.trapped else "map "
            reason = f"  {window.reason}" if window.reason else ""
            found.append(f"               {verdict} {window.offset:#08x}-{end:#08x}{reason}")
    return found


def _interrupt_lines(function: Function) -> list[str]:
    found: list[str] = []
    for capability in function.capabilities:
        if capability.name not in ("msi", "msix"):
            continue
        facts = capability.decode()
        words = f"{facts.get('vectors', '?')} vectors"
        for key in ("vector_table", "pending_bits"):
            place = facts.get(key)
            if isinstance(place, dict):
                words += f", {key.replace('_', ' ')} at BAR {place['bar']} + {place['offset']:#x}"
        found.append(f"  {capability.title:<12} {words}")
    return found


def _capability_lines(function: Function) -> list[str]:
    listed = [
        f"{capability.title} [{capability.offset:#x}]" for capability in function.capabilities
    ]
    found = [f"  capabilities {', '.join(listed)}"] if listed else []
    found += [f"  finding      {finding.text}" for finding in function.capabilities.findings]
    return found


def _print_capabilities(output: Output, function: Function) -> None:
    for capability in function.capabilities:
        output.line(f"  {capability.title} at {capability.offset:#x}")
        for register in capability.registers():
            raw = capability.value(register)
            output.line(f"    {register.name} {raw:#0{2 + 2 * register.width}x}")
            for field in register.fields:
                value = field.extract(raw)
                meaning = field.meaning.get(value, "")
                words = " ".join(word for word in (str(value), field.unit, meaning) if word)
                output.line(f"      {field.name:<34} {words}")


def document(topology: Topology, grouping: Grouping, function: Function) -> dict[str, object]:
    """Everything about one function, as data; recorded and computed facts apart."""
    from vfiokit.pci.bar import bars, windows
    from vfiokit.pci.selector import slot_path

    identity, recorded = function.identity, function.recorded
    group = grouping.of(function.bdf)
    return {
        "address": str(function.bdf),
        "path": slot_path(topology, function),
        "class": f"{identity.class_code:06x}",
        "vendor": f"{identity.vendor_id:04x}",
        "device": f"{identity.device_id:04x}",
        "revision": f"{identity.revision:02x}",
        "subsystem": f"{identity.subsystem_vendor_id:04x}:{identity.subsystem_device_id:04x}",
        "text": device_text(topology, function),
        "physical_function": str(function.physfn) if function.physfn else None,
        "ports_above": [
            {
                "address": str(port.bdf),
                "type": port.port_type.name.lower() if port.port_type is not None else None,
                "acs_capability": int(port.acs_capability) if port.acs else None,
                "acs_control": int(port.acs_control) if port.acs else None,
            }
            for port in topology.path_to_root(function)
        ],
        "recorded": {
            "driver": recorded.driver,
            "iommu_group": recorded.iommu_group,
            "numa_node": recorded.numa_node,
            "irq": recorded.irq,
            "reset_methods": recorded.reset_methods,
            "link_speed": recorded.current_link_speed,
            "link_width": recorded.current_link_width,
            "max_link_speed": recorded.max_link_speed,
            "max_link_width": recorded.max_link_width,
        },
        "predicted": {
            "iommu_group": group.id,
            "members": [str(bdf) for bdf in group.members],
            "why": grouping.why(function.bdf).text(),
            "uncertain": function.bdf in grouping.uncertain,
        },
        "bars": [
            {
                "index": bar.index,
                "kind": bar.kind,
                "prefetchable": bar.prefetchable,
                "address": bar.address,
                "size": bar.size,
                "windows": [window._asdict() for window in windows(function, bar)],
            }
            for bar in bars(function)
        ],
        "capabilities": [capability.decode() for capability in function.capabilities],
        "findings": [finding._asdict() for finding in function.capabilities.findings],
    }

"""One function in full: as text at three depths, and as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfiokit.cli.describe import class_text, device_text, link_text
from vfiokit.pci.quantity import size_text

if TYPE_CHECKING:
    from vfiokit.cli.view import View
    from vfiokit.pci.capability.text import Style
    from vfiokit.pci.topology import Function

UNCERTAIN = "uncertain: what decides is not in this description"
"""Said of a prediction that rests on bytes nobody captured."""

CARD, REGISTERS, EVERYTHING, BYTES = range(4)
"""Depths: facts; every register; with raw bytes, findings, sections; with the whole space."""

_LSPCI_READS = 200
"""Characters of a line; 253 bytes are its limit, and names may take more than a byte each."""


def lines(view: View, function: Function, depth: int, style: Style) -> list[str]:
    """Everything about one function, as text, as deep as asked."""
    recorded = function.recorded
    before, after = style.strong
    title = f"{class_text(function)}: {device_text(view.topology, function)}"
    found = [f"{before}{function.bdf}{after}  {title}"]
    found += _place_lines(view, function)
    none = "none" if view.has_recorded_drivers else "not recorded"
    found.append(f"  driver       {recorded.driver or none}")
    link = link_text(function)
    if link:
        found.append(f"  link         {link}")
    if recorded.reset_methods is not None:
        found.append(f"  reset by     {' '.join(recorded.reset_methods) or 'nothing'}")
    found += _group_lines(view, function)
    found += _bar_lines(function)
    if depth == CARD:
        found += _interrupt_lines(function)
        found += _capability_lines(function)
    found += _finding_lines(function, depth)
    if depth > CARD:
        found += _register_lines(function, style)
    if depth >= EVERYTHING:
        found += _vpd_lines(view, function)
    if depth >= BYTES:
        found = [part for line in found for part in _folded(line)]
        found += _dump_lines(function)
    return found


def _folded(line: str) -> list[str]:
    """``line``, in pieces where it is longer than what lspci reads (``lib/dump.c``)."""
    if len(line) <= _LSPCI_READS or "\n" in line:  # registers are broken into lines already
        return [line]
    from textwrap import wrap

    return wrap(line, _LSPCI_READS, subsequent_indent=" " * 15, break_on_hyphens=False)


def _place_lines(view: View, function: Function) -> list[str]:
    from vfiokit.pci.selector import slot_path

    found = [f"  place        {slot_path(view.topology, function)}"]
    found += [
        f"               below {port.bdf} {_port_text(port)}"
        for port in view.topology.path_to_root(function)
    ]
    if function.recorded.numa_node is not None:
        found.append(f"  NUMA node    {function.recorded.numa_node}")
    return found


def _port_text(port: Function) -> str:
    kind = port.port_type.name.lower().replace("_", " ") if port.port_type is not None else "bridge"
    if port.acs is None:
        return f"({kind}, no ACS)"
    return f"({kind}, ACS can {port.acs_capability:#04x} does {port.acs_control:#04x})"


def _group_lines(view: View, function: Function) -> list[str]:
    group = view.grouping.of(function.bdf)
    recorded = function.recorded.iommu_group
    others = [str(bdf) for bdf in group.members if bdf != function.bdf]
    by_kernel = "none recorded" if recorded is None else f"{recorded} recorded"
    shared = f"shared with {', '.join(others)}" if others else "alone in it"
    found = [
        f"  IOMMU group  {by_kernel}, {group.id} predicted, {shared}",
        f"               {view.grouping.why(function.bdf).text()}",
    ]
    if view.is_uncertain(function):
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
    return [f"  capabilities {', '.join(listed)}"] if listed else []


def _finding_lines(function: Function, depth: int) -> list[str]:
    found = function.capabilities
    findings = found.examine() if depth >= EVERYTHING else found.findings
    return [f"  finding      {finding.text}" for finding in findings]


def _register_lines(function: Function, style: Style) -> Iterator[str]:
    from vfiokit.pci.capability.text import capability_lines, header_lines

    if _is_from_text(function):
        style = style._replace(full=False)
    yield from header_lines(function.config, style)
    for capability in function.capabilities:
        yield from capability_lines(capability, style)


def _vpd_lines(view: View, function: Function) -> Iterator[str]:
    data = view.vital_product_data(function)
    if not data:
        return
    from vfiokit.pci.vpd import parse

    vpd = parse(data)
    yield "  Vital product data"
    for item in vpd.items:
        yield f"    {item.keyword}: {item.text}"
    for finding in vpd.findings:
        yield f"    finding: {finding.text}"


def _dump_lines(function: Function) -> list[str]:
    from vfiokit.pci.hex_dump import rows

    return [] if _is_from_text(function) else rows(function.config.data)


def _is_from_text(function: Function) -> bool:
    """Whether registers were read out of words: their bytes and reserved bits were never there."""
    from vfiokit.host.partial import PartialConfig

    return isinstance(function.config, PartialConfig)


def document(view: View, function: Function) -> dict[str, object]:
    """Everything about one function, as data; recorded and computed facts apart."""
    from vfiokit.pci.selector import slot_path

    identity = function.identity
    return {
        "address": str(function.bdf),
        "path": slot_path(view.topology, function),
        "class": f"{identity.class_code:06x}",
        "vendor": f"{identity.vendor_id:04x}",
        "device": f"{identity.device_id:04x}",
        "revision": f"{identity.revision:02x}",
        "subsystem": f"{identity.subsystem_vendor_id:04x}:{identity.subsystem_device_id:04x}",
        "text": device_text(view.topology, function),
        "physical_function": str(function.physfn) if function.physfn else None,
        "ports_above": [
            {
                "address": str(port.bdf),
                "type": port.port_type.name.lower() if port.port_type is not None else None,
                "acs_capability": int(port.acs_capability) if port.acs else None,
                "acs_control": int(port.acs_control) if port.acs else None,
            }
            for port in view.topology.path_to_root(function)
        ],
        "recorded": _recorded_document(function),
        "predicted": _predicted_document(view, function),
        "bars": _bar_documents(function),
        "capabilities": [capability.decode() for capability in function.capabilities],
        "findings": [finding._asdict() for finding in function.capabilities.examine()],
    }


def _recorded_document(function: Function) -> dict[str, object]:
    recorded = function.recorded
    return {
        "driver": recorded.driver,
        "iommu_group": recorded.iommu_group,
        "numa_node": recorded.numa_node,
        "irq": recorded.irq,
        "reset_methods": recorded.reset_methods,
        "link_speed": recorded.current_link_speed,
        "link_width": recorded.current_link_width,
        "max_link_speed": recorded.max_link_speed,
        "max_link_width": recorded.max_link_width,
    }


def _predicted_document(view: View, function: Function) -> dict[str, object]:
    group = view.grouping.of(function.bdf)
    return {
        "iommu_group": group.id,
        "members": [str(bdf) for bdf in group.members],
        "why": view.grouping.why(function.bdf).text(),
        "uncertain": view.is_uncertain(function),
    }


def _bar_documents(function: Function) -> list[dict[str, object]]:
    from vfiokit.pci.bar import bars, windows

    return [
        {
            "index": bar.index,
            "kind": bar.kind,
            "prefetchable": bar.prefetchable,
            "address": bar.address,
            "size": bar.size,
            "windows": [window._asdict() for window in windows(function, bar)],
        }
        for bar in bars(function)
    ]

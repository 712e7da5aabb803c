"""The topology as a graph in DOT, the language of graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vfiokit.web.inventory import Inventory, Item
from vfiokit.web.palette import LIGHT, hue_of_groups

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def document(inventory: Inventory, title: str) -> str:
    """The whole graph: a cluster for every NUMA node, an edge for every bus and link."""
    return "\n".join(_lines(inventory, title)) + "\n"


def quoted(text: str) -> str:
    """``text`` as a quoted DOT string, shown literally: no escape of graphviz takes effect."""
    clean = _CONTROL.sub("\ufffd", text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lines(inventory: Inventory, title: str) -> Iterator[str]:
    yield f"digraph {quoted(title)} {{"
    yield "  rankdir=LR;"
    yield "  nodesep=0.08;"
    yield f'  node [shape=box, fontname="Helvetica", fontsize=10, color="{LIGHT["strong"]}"];'
    yield '  edge [arrowhead=none, fontname="Helvetica", fontsize=9];'
    nodes = sorted(
        {host.numa_node for host in inventory.hosts}, key=lambda node: (node is None, node)
    )
    for node in nodes:
        inside = [at for at, host in enumerate(inventory.hosts) if host.numa_node == node]
        if node is None:
            yield from _hosts(inventory, inside, "  ")
            continue
        yield f"  subgraph cluster_{node} {{"
        yield f'    label={quoted(f"NUMA node {node}")}; color="{LIGHT["line"]}";'
        yield from _hosts(inventory, inside, "    ")
        yield "  }"
    yield from _edges(inventory)
    yield "}"


def _hosts(inventory: Inventory, hosts: list[int], indent: str) -> Iterator[str]:
    hues = hue_of_groups({group.id: len(group.members) for group in inventory.groups})
    for number in hosts:
        name = inventory.hosts[number].name
        yield (
            f"{indent}{quoted(name)} [style=filled, fillcolor={quoted(LIGHT['text'])}, "
            f"fontcolor={quoted(LIGHT['page'])}];"
        )
        for item in inventory.items:
            if item.host == number:
                yield f"{indent}{_node(item, hues)}"


def _node(item: Item, hues: dict[int, int]) -> str:
    lines = [f"{item.address} {item.role}", item.name]
    if item.port:
        lines[1:] = [item.acs_text]
    lines.append(f"group {item.group}" + (f", {item.driver}" if item.driver else ""))
    # A line break of graphviz is the one escape that is meant.
    label = "\\n".join(quoted(line)[1:-1] for line in lines)
    parts = [f'label="{label}"', f"tooltip={quoted(item.title.replace(chr(10), '; '))}"]
    hue = hues.get(item.group)
    if hue is not None and item.certain:
        parts.append(f'style=filled, fillcolor="{LIGHT[f"hue{hue}"]}"')
    elif not item.certain:
        parts.append("style=dashed")
    return f"{quoted(str(item.bdf))} [{', '.join(parts)}];"


def _edges(inventory: Inventory) -> Iterator[str]:
    for item in inventory.items:
        above = inventory.hosts[item.host].name
        label = ""
        if item.physfn is not None:
            above, label = str(inventory.items[item.physfn].bdf), ' [style=dashed, label="VF"]'
        elif item.parent is not None:
            port = inventory.items[item.parent]
            above = str(port.bdf)
            link = port.link or item.link
            if link is not None and port.port != "USP":
                label = f" [label={quoted(link.text)}]"
        yield f"  {quoted(above)} -> {quoted(str(item.bdf))}{label};"

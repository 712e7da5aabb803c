"""The report: one HTML file that needs nothing else, and reaches for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vfiokit import __version__
from vfiokit.p2p.code import LEGEND
from vfiokit.web.inventory import KINDS, PEER_KINDS, GroupItem, Inventory, Item
from vfiokit.web.pairs import sibling_words
from vfiokit.web.palette import hue_of_groups, style_sheet
from vfiokit.web.svg import asset, element, escape

if TYPE_CHECKING:
    from vfiokit.assign.doctor import Finding
    from vfiokit.web.advice import Advice
    from vfiokit.web.pairs import Pairs

MATRIX_WITHOUT_SCRIPT = 32
"""Most functions of the table that is shown where no script runs."""
_GLYPHS = {
    "bus-addr": ("direct", "●", "direct, by bus address"),
    "thru-host-bridge": ("through", "▲", "through the host bridge"),
    "not-supported": ("none", "×", "refused by the kernel"),
    "unknown": ("unknown", "?", "not known"),
}
"""Map types: style, mark, words."""


class Content(NamedTuple):
    """Everything the page says."""

    host: str
    """What the host is called."""
    inventory: Inventory
    pairs: Pairs
    advice: Advice
    findings: tuple[Finding, ...] = ()
    limits: tuple[str, ...] = ()
    """What the description of the host cannot tell."""


def page(content: Content) -> str:
    """The HTML document.

    Text of the host is escaped by the template, script and style are allowed by their hashes only,
    and the policy forbids every request.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = lambda text: Markup(escape(str(text)))
    style = style_sheet() + asset("drawing.css") + asset("page.css")
    script = asset("pairs.js") + asset("matrix.js") + asset("page.js")
    inventory = content.inventory
    return environment.get_template("page.html").render(
        content=content,
        inventory=inventory,
        version=__version__,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        drawing=Markup(element(inventory)),
        data=Markup(_json(_data(content))),
        kinds=_kinds(inventory),
        glyphs=_GLYPHS,
        groups=_group_rows(inventory),
        table=_table(content),
        findings=[finding for finding in content.findings if finding.severity != "ok"],
        facts=_facts(inventory),
    )


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    from base64 import b64encode
    from hashlib import sha256

    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _json(value: object) -> str:
    """JSON that no HTML parser can leave: it holds none of the characters that could end it."""
    import json

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Words:
    """A list of texts, each held once."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))

    def listed(self) -> list[str]:
        return list(self.known)


def _data(content: Content) -> dict[str, object]:
    """What the script needs; the order of a function's fields is that of ``page.js``."""
    words = _Words()
    inventory, pairs = content.inventory, content.pairs
    functions = [
        [
            str(item.bdf),
            words.number(item.kind),
            words.number(item.name),
            words.number(item.driver),
            words.number(item.role),
            words.number(item.acs_text if item.port or item.acs_control is not None else ""),
            item.group,
            -1 if item.parent is None else item.parent,
            item.host,
            -1 if item.physfn is None else item.physfn,
            pairs.redirects[item.number],
            pairs.class_of[item.number],
            content.advice.translating[item.number],
        ]
        for item in inventory.items
    ]
    return {
        "words": words.listed(),
        "functions": functions,
        "short": all(item.address != str(item.bdf) for item in inventory.items),
        "hosts": [[host.name, host.numa_node] for host in inventory.hosts],
        "classes": pairs.classes,
        "blocks": pairs.blocks,
        "far": pairs.far,
        "stories": pairs.stories,
        "changes": content.advice.changes,
        "outcomes": content.advice.outcomes,
        "siblings": sibling_words(),
        "codes": LEGEND,
        "labels": dict(KINDS),
    }


def _kinds(inventory: Inventory) -> list[tuple[str, str, int, bool]]:
    """Kinds for the matrix to show: name, label, how many, whether from the start."""
    counts: dict[str, int] = {}
    for item in inventory.endpoints():
        counts[item.kind] = counts.get(item.kind, 0) + 1
    peers = sum(counts.get(kind, 0) for kind in PEER_KINDS)
    found: list[tuple[str, str, int, bool]] = []
    for kind, label in (*KINDS, ("other", "other")):
        if kind in counts:
            chosen = kind in PEER_KINDS if peers else True
            found.append((kind, label, counts[kind], chosen))
    return found


class _GroupRow(NamedTuple):
    group: GroupItem
    hue: int | None
    members: tuple[Item, ...]
    whys: tuple[str, ...]
    recorded: str


def _group_rows(inventory: Inventory) -> list[_GroupRow]:
    """Groups in id order, each reason told once."""
    hues = hue_of_groups({group.id: len(group.members) for group in inventory.groups})
    rows: list[_GroupRow] = []
    for group in inventory.groups:
        members = tuple(inventory.items[number] for number in group.members)
        recorded = {item.recorded_group for item in members if item.recorded_group is not None}
        rows.append(
            _GroupRow(
                group,
                hues.get(group.id) if group.certain else None,
                members,
                _reasons(group.why),
                ", ".join(str(number) for number in sorted(recorded)),
            )
        )
    return rows


def _reasons(whys: Sequence[str]) -> tuple[str, ...]:
    """The sentences; of those that differ in who joins only, the first, and how many more."""
    told: dict[str, list[str]] = {}
    for why in whys:
        subject = why.partition(" ")[0]
        cause = why.partition(" because ")[2] or why
        told.setdefault(cause.replace(subject, ""), []).append(why)
    return tuple(
        same[0] + (f" The same holds for {len(same) - 1} more." if len(same) > 1 else "")
        for same in told.values()
    )


class _Cell(NamedTuple):
    style: str
    text: str
    title: str


def _table(content: Content) -> list[tuple[Item, list[_Cell]]]:
    """The matrix of the devices shown from the start, for where no script runs; may be empty."""
    chosen = {kind for kind, _label, _count, on in _kinds(content.inventory) if on}
    items = [item for item in content.inventory.endpoints() if item.kind in chosen]
    if len(items) > MATRIX_WITHOUT_SCRIPT:
        items = [item for item in items if item.physfn is None]
    if len(items) > MATRIX_WITHOUT_SCRIPT:
        return []
    rows: list[tuple[Item, list[_Cell]]] = []
    for provider in items:
        cells: list[_Cell] = []
        for client in items:
            story = content.pairs.story(provider.number, client.number)
            style, _mark, words = _GLYPHS[story.map_type]
            same = provider is client
            cells.append(_Cell("" if same else style, story.code, "itself" if same else words))
        rows.append((provider, cells))
    return rows


def _facts(inventory: Inventory) -> list[tuple[str, str]]:
    """The host in a few numbers."""
    shared = sum(1 for group in inventory.groups if len(group.members) > 1)
    known = any(group.certain for group in inventory.groups) or not inventory.groups
    groups = f"{len(inventory.groups)}, {shared} shared" if known else "unknown"
    nodes = {host.numa_node for host in inventory.hosts if host.numa_node is not None}
    facts = [
        (_plural(len(inventory.items), "function"), str(len(inventory.items))),
        ("root bus" if len(inventory.hosts) == 1 else "root buses", str(len(inventory.hosts))),
        ("IOMMU groups", groups),
    ]
    if nodes:
        facts.append((_plural(len(nodes), "NUMA node"), str(len(nodes))))
    return facts


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"

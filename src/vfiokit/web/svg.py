"""The topology as SVG: part of the page, or a file of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape as escape_markup
from importlib.resources import files

from vfiokit.web.inventory import KINDS, Inventory, Item
from vfiokit.web.layout import (
    BOX,
    CAPTION,
    CHARACTER,
    CHIP_HEIGHT,
    CHIP_WIDTH,
    Drawing,
    Placed,
    Wire,
    chip_place,
    draw,
    has_link,
    link_of,
)
from vfiokit.web.palette import hue_of_groups, style_sheet

_LABELS = dict(KINDS)
_NAME_CHARACTER = 6.5
"""Room for a character of a name at 11 px."""
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def escape(text: str) -> str:
    """``text`` as character data of XML or HTML; what neither may hold becomes U+FFFD."""
    return escape_markup(_NOT_XML.sub("\ufffd", text))


def asset(name: str) -> str:
    """A file of ``assets/``."""
    return files("vfiokit.web").joinpath("assets", name).read_text(encoding="utf-8")


def document(inventory: Inventory, title: str) -> str:
    """A standalone SVG file; ``title`` names the machine."""
    style = style_sheet() + asset("drawing.css")
    head = f"<title>{escape(title)}</title><style>{style}</style>"
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + "".join(_svg(inventory, head)) + "\n"


def element(inventory: Inventory) -> str:
    """The ``svg`` element for a page that has the style sheets already."""
    return "".join(_svg(inventory, ""))


def _svg(inventory: Inventory, head: str) -> Iterator[str]:
    drawing = draw(inventory)
    width, height = f"{drawing.width:.0f}", f"{drawing.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" id="drawing" class="drawing" role="tree" '
        f'aria-label="PCI topology" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{head}'
    )
    if head:
        yield f'<rect class="ground" width="{width}" height="{height}"/>'
    yield from _bands(drawing)
    yield '<g class="wires">'
    for wire in drawing.wires:
        yield _wire(inventory, wire)
    yield "</g>"
    painter = _Painter(inventory)
    for box in drawing.boxes:
        yield painter.box(box)
    yield "</svg>"


def _bands(drawing: Drawing) -> Iterator[str]:
    for band in drawing.bands:
        yield (
            f'<g class="band"><rect x="4" y="{band.y:.0f}" width="{drawing.width - 8:.0f}" '
            f'height="{band.height:.0f}" rx="5"/>'
            f'<text x="16" y="{band.y + 13:.0f}">{escape(band.title)}</text></g>'
        )


def _wire(inventory: Inventory, wire: Wire) -> str:
    parent, child = wire.parent, wire.child
    middle = parent.y + BOX / 2
    chips = child.node.kind == "chips"
    end = child.y + (CAPTION + CHIP_HEIGHT / 2 if chips else BOX / 2)
    virtual = parent.node.kind == "function"
    start = (
        f"M{parent.x + 14:.0f} {parent.y + BOX:.0f}"
        if virtual
        else f"M{parent.x + parent.width:.0f} {middle:.1f}H{wire.turn_x:.0f}"
    )
    path = f"{start}V{end:.1f}H{child.x:.0f}"
    names = ["wire"]
    label = ""
    item = link_of(inventory, parent.node) if has_link(inventory, parent.node) else None
    if item is not None and item.link is not None:
        names.append(_weight(item.link.rate))
        names += ["slow"] if item.link.best else []
        if wire.labelled:
            label = (
                f'<text class="link{" slow" if item.link.best else ""}" '
                f'x="{parent.x + parent.width + 4:.0f}" y="{middle - 3:.1f}">'
                f"{escape(item.link.text)}</text>"
            )
    if virtual:
        names.append("virtual")
    target = f"{'c' if chips else 'f'}{child.node.number}"
    return f'<path class="{" ".join(names)}" d="{path}" data-to="{target}"/>{label}'


def _weight(rate: float) -> str:
    """How thick a link is drawn: its GT/s over all lanes in three steps."""
    return "w3" if rate >= 256 else "w2" if rate >= 64 else "w1"


class _Painter:
    """Boxes as markup."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.hues = hue_of_groups({group.id: len(group.members) for group in inventory.groups})
        wide = max((len(item.address) for item in inventory.items), default=7)
        self.address_width = wide * CHARACTER

    def box(self, placed: Placed) -> str:
        """One box, its children not included."""
        kind = placed.node.kind
        if kind == "host":
            return self._host(placed)
        if kind == "chips":
            return self._chips(placed)
        return self._function(placed)

    def _host(self, placed: Placed) -> str:
        host = self.inventory.hosts[placed.node.number]
        numa = "" if host.numa_node is None else f", NUMA node {host.numa_node}"
        return (
            f'<g class="host" id="h{placed.node.number}"><title>root complex {escape(host.name)}'
            f"{numa}</title>{_rect(placed, 'box')}"
            f'<text x="{placed.x + 8:.0f}" y="{placed.y + 13:.0f}">{escape(host.name)}</text></g>'
        )

    def _open(self, item: Item, kind: str) -> str:
        names = [kind, self._hue(item)]
        if item.redirects:
            names.append("redirects")
        label = f"{item.bdf} {item.role}, {item.name}, group {item.group}"
        return (
            f'<g class="{" ".join(name for name in names if name)}" id="f{item.number}" '
            f'role="treeitem" tabindex="-1" aria-label="{escape(label)}">'
            f"<title>{escape(item.title)}</title>"
        )

    def _hue(self, item: Item) -> str:
        if not item.certain:
            return "uncertain"
        hue = self.hues.get(item.group)
        return "" if hue is None else f"hue{hue}"

    def _function(self, placed: Placed) -> str:
        item = placed.node.items[0]
        parts = [self._open(item, placed.node.kind), _rect(placed, "box")]
        y = f"{placed.y + 13:.0f}"
        left, right = placed.x + 8, placed.x + placed.width - 6
        parts.append(f'<text class="address" x="{left:.0f}" y="{y}">{escape(item.address)}</text>')
        left += self.address_width + 8
        if item.port:
            parts.append(self._port_words(placed, item, left, right, y))
        else:
            parts.append(self._device_words(item, left, right, y))
        parts.append("</g>")
        return "".join(parts)

    def _port_words(self, placed: Placed, item: Item, left: float, right: float, y: str) -> str:
        badge, state = "ACS", "on"
        if not item.acs_known:
            badge, state = "ACS ?", "absent"
        elif not item.acs_control:
            badge, state = item.acs_text, "absent" if item.acs_control is None else "off"
        return (
            f'<text class="kind" x="{left:.0f}" y="{y}">{item.port}</text>'
            f'<rect class="badge {state}" x="{right - 40:.0f}" y="{placed.y + 3:.0f}" '
            f'width="42" height="{BOX - 6}" rx="2"/>'
            f'<text class="badge {state}" x="{right - 19:.0f}" y="{placed.y + 12.5:.1f}">'
            f"{badge}</text>"
        )

    def _device_words(self, item: Item, left: float, right: float, y: str) -> str:
        group = f"{item.group}" if item.certain else f"{item.group}?"
        parts = [f'<text class="group" x="{right:.0f}" y="{y}">{group}</text>']
        right -= 34
        if item.driver:
            driver = _cut(item.driver, 14)
            parts.append(f'<text class="driver" x="{right:.0f}" y="{y}">{escape(driver)}</text>')
            right -= len(driver) * CHARACTER + 8
        label = _LABELS.get(item.kind, "")
        if label:
            parts.append(f'<text class="kind" x="{left:.0f}" y="{y}">{label}</text>')
            left += 40
        room = int((right - left) / _NAME_CHARACTER)
        words = _cut(item.device or item.class_name, room)
        parts.append(f'<text class="name" x="{left:.0f}" y="{y}">{escape(words)}</text>')
        return "".join(parts)

    def _chips(self, placed: Placed) -> str:
        caption = escape(placed.node.caption)
        parts = [
            f'<g class="chips" id="c{placed.node.number}" role="group" aria-label="{caption}">'
            f'<text class="caption" x="{placed.x:.0f}" y="{placed.y + 9:.0f}">{caption}</text>'
        ]
        for index, item in enumerate(placed.node.items):
            dx, dy = chip_place(index)
            x, y = placed.x + dx, placed.y + dy
            parts.append(
                f'{self._open(item, "chip")}<rect class="box" x="{x:.0f}" y="{y:.0f}" '
                f'width="{CHIP_WIDTH}" height="{CHIP_HEIGHT}" rx="2"/>'
                f'<text x="{x + CHIP_WIDTH / 2:.0f}" y="{y + 11:.0f}">'
                f"{item.bdf.device:02x}.{item.bdf.function}</text></g>"
            )
        parts.append("</g>")
        return "".join(parts)


def _rect(placed: Placed, name: str) -> str:
    return (
        f'<rect class="{name}" x="{placed.x:.0f}" y="{placed.y:.0f}" '
        f'width="{placed.width:.0f}" height="{placed.height:.0f}" rx="3"/>'
    )


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 1, 1)].rstrip() + "…"

"""Where everything goes in the picture: a layered tree that grows to the right.

Root complexes stand at the left, ports in the middle, functions at the right; every function has a
row. What nobody looks for one by one (the many functions of a root complex, virtual functions,
ports with nothing below) is drawn as small chips, several to a row, so that a server fits a page.
All lengths are in pixels of the picture at its natural size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.web.inventory import Inventory, Item

ROW = 22
"""Height of a row; a box is lower by 4."""
BOX = 18
CHIP_WIDTH, CHIP_HEIGHT, CHIP_GAP = 40, 15, 3
CHIPS_A_ROW = 8
CAPTION = 13
"""Height of the line above chips."""
CHARACTER = 6.6
"""Advance of a monospace character at 11 px, rounded up."""
CAPTION_CHARACTER = 5.4
"""The same of a caption at 9.5 px."""
SHORT_STUB, LINK_STUB = 30, 82
"""Length of a wire, without and with the text of a link."""
FUNCTION_WIDTH = 372
HOST_WIDTH = 104
MARGIN = 16
BAND_TITLE = 18
BAND_GAP = 10

_SHOWN_KINDS = ("gpu", "nic", "nvme", "accelerator", "sata")
_MANY = 8
"""So many plain functions below one bridge become chips."""


class Node(NamedTuple):
    """A box of the picture, and what hangs from it."""

    kind: str
    """``host``, ``port``, ``function`` or ``chips``."""
    number: int
    """Of the host or the function; of the first function for chips."""
    caption: str
    items: tuple[Item, ...]
    children: tuple[Node, ...]


class Placed(NamedTuple):
    """A box with its place; the origin is the upper left corner."""

    node: Node
    x: float
    y: float
    width: float
    height: float


class Wire(NamedTuple):
    """From a box to one that hangs from it: right, up or down, right."""

    parent: Placed
    child: Placed
    turn_x: float
    labelled: bool
    """Whether this is the first wire of a link, which carries its text."""


class Band(NamedTuple):
    """The root complexes of one NUMA node."""

    title: str
    y: float
    height: float


class Drawing(NamedTuple):
    """Everything placed."""

    width: float
    height: float
    bands: tuple[Band, ...]
    boxes: tuple[Placed, ...]
    """In reading order: a parent before its children."""
    wires: tuple[Wire, ...]


def draw(inventory: Inventory) -> Drawing:
    """Place every function of ``inventory``; each is in exactly one box."""
    return _Layout(inventory).run()


def chip_place(index: int) -> tuple[float, float]:
    """Where chip ``index`` lies within its box."""
    row, column = divmod(index, CHIPS_A_ROW)
    return column * (CHIP_WIDTH + CHIP_GAP), CAPTION + row * (CHIP_HEIGHT + CHIP_GAP)


def has_link(inventory: Inventory, node: Node) -> bool:
    """Whether what hangs from ``node`` hangs from a link, and not from a bus inside a chip."""
    if node.kind != "port":
        return False
    port = inventory.items[node.number]
    return port.port != "USP" and link_of(inventory, node) is not None


def link_of(inventory: Inventory, node: Node) -> Item | None:
    """Whose link status tells the link below a port: the port's own, else that of its child."""
    candidates = [inventory.items[node.number]]
    candidates += [inventory.items[child.number] for child in node.children]
    return next((item for item in candidates if item.link is not None), None)


class _Layout:
    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.below: dict[int, list[Item]] = {}
        self.virtual: dict[int, list[Item]] = {}
        self.roots: dict[int, list[Item]] = {}
        for item in inventory.items:
            if item.physfn is not None:
                self.virtual.setdefault(item.physfn, []).append(item)
            elif item.parent is not None:
                self.below.setdefault(item.parent, []).append(item)
            else:
                self.roots.setdefault(item.host, []).append(item)
        self.boxes: list[Placed] = []
        self.wires: list[Wire] = []
        wide = max((len(item.address) for item in inventory.items), default=7)
        self.address_width = wide * CHARACTER

    def run(self) -> Drawing:
        bands: list[Band] = []
        y = float(MARGIN)
        for title, hosts in self._by_numa_node():
            top = y
            y += BAND_TITLE if title else 0
            for number in hosts:
                y = self._place(self._host(number), MARGIN, y)[1] + 6
            if title:
                bands.append(Band(title, top, y - top))
            y += BAND_GAP
        right = max((box.x + box.width for box in self.boxes), default=0.0)
        return Drawing(right + MARGIN, y, tuple(bands), tuple(self.boxes), tuple(self.wires))

    def _by_numa_node(self) -> Iterator[tuple[str, list[int]]]:
        together: dict[int, list[int]] = {}
        for number, host in enumerate(self.inventory.hosts):
            node = host.numa_node if host.numa_node is not None else -1
            together.setdefault(node, []).append(number)
        for node in sorted(together, key=lambda node: (node < 0, node)):
            title = f"NUMA node {node}" if node >= 0 else ""
            if not title and len(together) > 1:
                title = "NUMA node not known"
            yield title, together[node]

    def _host(self, number: int) -> Node:
        host = self.inventory.hosts[number]
        # The root complex of a description without NUMA nodes may have functions of no box.
        children = self._arrange(self.roots.get(number, []), on_root=True)
        return Node("host", number, host.name, (), children)

    def _arrange(self, items: list[Item], *, on_root: bool) -> tuple[Node, ...]:
        """Boxes for functions of one bus; the plain ones as chips after the others."""
        boxes: list[Node] = []
        plain: list[Item] = []
        empty: list[Item] = []
        for item in items:
            children = self._children(item)
            if item.port and not children:
                empty.append(item)
            elif item.port or children or item.kind in _SHOWN_KINDS or not on_root:
                kind = "port" if item.port else "function"
                boxes.append(Node(kind, item.number, "", (item,), children))
            else:
                plain.append(item)
        loose = [box for box in boxes if box.kind == "function" and not box.children]
        if sum(box.items[0].kind not in _SHOWN_KINDS for box in loose) > _MANY:
            moved = [box for box in loose if box.items[0].kind not in _SHOWN_KINDS]
            plain += [box.items[0] for box in moved]
            boxes = [box for box in boxes if box not in moved]
        if empty:
            boxes.append(_chips(empty, "ports with nothing below"))
        if plain:
            boxes.append(_chips(plain, "functions of the root complex" if on_root else "functions"))
        return tuple(boxes)

    def _children(self, item: Item) -> tuple[Node, ...]:
        children = self._arrange(self.below.get(item.number, []), on_root=False)
        virtual = self.virtual.get(item.number)
        return (*children, _chips(virtual, "virtual functions")) if virtual else children

    def _width(self, node: Node) -> float:
        if node.kind == "host":
            return max(HOST_WIDTH, len(node.caption) * CHARACTER + 20)
        if node.kind == "port":
            return self.address_width + 104
        if node.kind == "function":
            return self.address_width + FUNCTION_WIDTH - 7 * CHARACTER
        caption = len(node.caption) * CAPTION_CHARACTER
        return max(min(len(node.items), CHIPS_A_ROW) * (CHIP_WIDTH + CHIP_GAP), caption)

    def _place(self, node: Node, x: float, y: float) -> tuple[Placed, float]:
        """Place ``node`` with its upper edge at ``y``; returns where the next may begin."""
        width, height = self._width(node), float(BOX)
        if node.kind == "chips":
            rows = (len(node.items) + CHIPS_A_ROW - 1) // CHIPS_A_ROW
            height = CAPTION + rows * (CHIP_HEIGHT + CHIP_GAP) - CHIP_GAP
        placed = Placed(node, x, y, width, height)
        self.boxes.append(placed)
        linked = has_link(self.inventory, node)
        child_x = x + width + (LINK_STUB if linked else SHORT_STUB)
        if node.kind == "function":  # its virtual functions go below it
            child_x = x + 24
        bottom = y + height + ROW - BOX
        below = bottom if node.kind == "function" else y
        edge, widest = below, 0.0
        for index, child in enumerate(node.children):
            # Chips that end before the ports beside them do fit below the last of these.
            tucked = child.kind == "chips" and self._width(child) <= widest + SHORT_STUB - 10
            box, end = self._place(child, child_x, edge if tucked else below)
            self.wires.append(Wire(placed, box, child_x - 10, linked and index == 0))
            below, edge, widest = max(below, end), box.y + box.height + ROW - BOX, box.width
        return placed, max(below, bottom)


def _chips(items: list[Item], caption: str) -> Node:
    number = len(items)
    words = caption if number > 1 else caption.replace("functions", "function")
    words = words.replace("ports", "port") if number == 1 else words
    return Node("chips", items[0].number, f"{number} {words}", tuple(items), ())

"""The text form of a :class:`~vfiokit.pci.blueprint.Blueprint`.

::

    blueprint = [item {"," item}]
    item      = word [":" name] {option} ["(" [item {"," item}] ")"]
    word      = a kind, or a kind and a number, which then is the name: rp0 is rp:rp0
    option    = flag | key "=" value

Blanks and line breaks separate words, ``#`` starts a comment. Kinds and their options:

========================  =====================================================================
``hb``                    another host bridge: ``bus=0x40``, ``ids=8086:2020``
``rp``                    root port: ``acs`` (default) or ``noacs``, ``speed=16``, ``width=8``
``sw``                    switch: ``acs`` or ``noacs`` (default) for all its ports; each child is
                          below a downstream port of its own
``port``                  such a port, to say more about one: ``acs``, ``noacs``, ``speed=``, …
``slot``                  one device of several functions
``pcie-pci-bridge``       PCI Express to conventional PCI bridge
``pci-bridge``            conventional bridge
``edu``                   ``dma_bits=28``
``nvme``                  ``size=64M``, ``cmb=16M``, ``vfs=4``
``igb``, ``e1000e``       Ethernet, igb with 7 VFs
``virtio-net``            modern virtio, DMA through the IOMMU
``virtio-blk``            ``size=64M``
``pci-testdev``           ``membar=1M``
``ivshmem``               ``size=1M``
========================  =====================================================================

Everything on a root or conventional bus takes ``at=1c``, a device number in hex; endpoints and
ports take ``ids=8086:1234``. Sizes are in MiB, or carry ``K``, ``M`` or ``G``. Items outside any
``hb`` are on the first host bridge. Nodes without a name get one: the kind and a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vfiokit.pci.blueprint import (
    DEFAULTS,
    MIB,
    SIZE_OPTIONS,
    Blueprint,
    BlueprintError,
    Bridge,
    BridgeKind,
    Child,
    DownstreamPort,
    Endpoint,
    HostBridge,
    Ids,
    Model,
    Node,
    RootPort,
    Slot,
    Switch,
    children,
)

_TOKEN = re.compile(r"\s+|#[^\n]*|(?P<mark>[(),])|(?P<word>[^\s(),#]+)")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MODELS = {str(model) for model in Model}
_BRIDGES = {str(kind) for kind in BridgeKind}
_PORT_OPTIONS = {"acs", "noacs", "ids", "speed", "width"}

OPTIONS: dict[str, set[str]] = {
    "hb": {"bus", "ids"},
    "rp": {*_PORT_OPTIONS, "at"},
    "sw": {"acs", "noacs"},
    "port": _PORT_OPTIONS,
    "slot": {"at"},
    **{kind: {"at"} for kind in _BRIDGES},
    **{str(model): {"at", "ids", *options} for model, options in DEFAULTS.items()},
}
"""Options by kind."""

MAX_DEPTH = 64
MAX_TEXT = 1 << 20


@dataclass(slots=True)
class _Item:
    """An item as written, before it has a meaning."""

    kind: str
    name: str
    column: int
    options: dict[str, str] = field(default_factory=dict)
    items: list[_Item] = field(default_factory=list)


# -- reading --------------------------------------------------------------------------------------


def parse(text: str) -> Blueprint:
    """Read ``text``; raises :class:`BlueprintError` with the place of the first mistake."""
    if len(text) > MAX_TEXT:
        raise BlueprintError(f"a topology of {len(text)} characters is too long")
    reader = _Reader(text)
    items = reader.items(0)
    reader.require_end()
    _make_ports_explicit(items)
    _give_names(items)
    try:
        return Blueprint(tuple(_host_bridges(items)))
    except BlueprintError as error:
        if not error.hint:
            error.hint = "'vfiokit lab run --help' shows the grammar"
        raise


class _Reader:
    """Tokens to items."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [
            (match.group().strip(), match.start())
            for match in _TOKEN.finditer(text)
            if match["mark"] or match["word"]
        ]
        self._next = 0

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _fail(self, message: str, at: int | None = None) -> BlueprintError:
        offset = at
        if offset is None:
            past = self._next >= len(self._tokens)
            offset = len(self._text) if past else self._tokens[self._next][1]
        line = self._text.count("\n", 0, offset) + 1
        column = offset - (self._text.rfind("\n", 0, offset) + 1) + 1
        where = f"line {line}, column {column}" if "\n" in self._text else f"column {column}"
        return BlueprintError(f"topology, {where}: {message}")

    def require_end(self) -> None:
        """Fail unless everything was read."""
        if self._peek():
            raise self._fail(f"{self._peek()!r} where the text should end")

    def items(self, depth: int) -> list[_Item]:
        """Items separated by commas, up to a closing parenthesis or the end."""
        if depth > MAX_DEPTH:
            raise self._fail(f"nested more than {MAX_DEPTH} deep")
        found: list[_Item] = []
        if self._peek() in ("", ")"):
            return found
        while True:
            found.append(self._item(depth))
            if self._peek() != ",":
                return found
            self._next += 1

    def _item(self, depth: int) -> _Item:
        word = self._peek()
        if word in ("", "(", ")", ","):
            raise self._fail(f"a device or bridge is missing before {word or 'the end'!r}")
        item = self._head(word)
        self._next += 1
        while self._peek() not in ("", "(", ")", ","):
            self._option(item, self._peek())
            self._next += 1
        if self._peek() == "(":
            if item.kind in _MODELS:
                raise self._fail(f"nothing can be below {item.kind}")
            self._next += 1
            item.items = self.items(depth + 1)
            if self._peek() != ")":
                raise self._fail(f"the parenthesis of {item.kind} is not closed")
            self._next += 1
        return item

    def _head(self, word: str) -> _Item:
        column = self._tokens[self._next][1]
        kind, colon, name = word.partition(":")
        if colon and not name:
            raise self._fail(f"{word!r}: a name is missing after the colon")
        if kind not in OPTIONS and not colon:
            kind, name = word.rstrip("0123456789"), word
        if kind not in OPTIONS:
            raise self._fail(f"{word!r} is none of {', '.join(OPTIONS)}")
        return _Item(kind, name, column)

    def _option(self, item: _Item, word: str) -> None:
        key, equals, value = word.partition("=")
        if key not in OPTIONS[item.kind]:
            known = ", ".join(sorted(OPTIONS[item.kind]))
            raise self._fail(f"{item.kind} has no option {key!r}: {known}")
        flag = key in ("acs", "noacs")
        if flag == bool(equals) or (equals and not value):
            raise self._fail(f"write {key}" if flag else f"write {key}=value")
        if key in item.options or (flag and {"acs", "noacs"} & set(item.options)):
            raise self._fail(f"{key} is given twice")
        try:
            _value(key, value)
        except ValueError:
            raise self._fail(f"{value!r} is no value for {key}=") from None
        item.options[key] = value


def _value(key: str, text: str) -> int | str | Ids:
    """The value of one option; ``ValueError`` when it makes no sense."""
    if key in SIZE_OPTIONS:
        unit = _UNITS.get(text[-1:].upper(), 0)
        number = _number(text[:-1] if unit else text) * (unit or MIB)
        if number > 1 << 50:
            raise ValueError(text)
        return number
    if key == "ids":
        vendor, _colon, device = text.partition(":")
        numbers = Ids(_number(vendor, 16), _number(device, 16))
        if max(numbers) > 0xFFFF:
            raise ValueError(text)
        return numbers
    if key == "at":
        return _number(text, 16)
    if key == "bus":
        return _number(text, 16) if not text.startswith("0x") else _number(text[2:], 16)
    return text if key in ("speed", "acs", "noacs") else _number(text)


def _number(text: str, base: int = 10) -> int:
    digits = "0-9a-fA-F" if base == 16 else "0-9"
    if not re.fullmatch(f"[{digits}]{{1,16}}", text):
        raise ValueError(text)
    return int(text, base)


def _make_ports_explicit(items: Sequence[_Item]) -> None:
    """Wrap the children of switches that are no ports into ports."""
    pending = list(items)
    while pending:
        item = pending.pop()
        if item.kind == "sw":
            default = "acs" if "acs" in item.options else "noacs"
            item.items = [_as_port(child, default) for child in item.items]
        pending.extend(item.items)


def _as_port(item: _Item, default: str) -> _Item:
    if item.kind != "port":
        return _Item("port", "", item.column, {default: ""}, [item])
    if not {"acs", "noacs"} & set(item.options):
        item.options[default] = ""
    return item


def _walk(items: Sequence[_Item]) -> Iterator[tuple[_Item, _Item | None]]:
    pending: list[tuple[_Item, _Item | None]] = [(item, None) for item in reversed(items)]
    while pending:
        item, parent = pending.pop()
        yield item, parent
        pending.extend((child, item) for child in reversed(item.items))


def _give_names(items: Sequence[_Item]) -> None:
    """Name the nameless: kind and number, ports after their switch."""
    taken = {item.name for item, _parent in _walk(items) if item.name}
    # The first host bridge is there even when nobody writes it.
    numbers: dict[str, int] = {"hb": 1}
    for item, parent in _walk(items):
        if item.name:
            continue
        if item.kind == "port" and parent is not None:
            item.name = _port_name(parent.name, parent.items.index(item))
            continue
        if item.kind == "hb" and _bus(item) == 0:
            item.name = "hb0"
            continue
        number = numbers.get(item.kind, 0)
        while f"{item.kind}{number}" in taken:
            number += 1
        numbers[item.kind] = number + 1
        item.name = f"{item.kind}{number}"


def _port_name(switch: str, index: int) -> str:
    return f"{switch}.{index}"


def _bus(item: _Item) -> int | None:
    text = item.options.get("bus")
    value = _value("bus", text) if text else None
    return value if isinstance(value, int) else None


def _host_bridges(items: Sequence[_Item]) -> Iterator[HostBridge]:
    """Split the top level into host bridges, the first one on bus 0."""
    loose = [item for item in items if item.kind != "hb"]
    bridges = [item for item in items if item.kind == "hb"]
    first = next((item for item in bridges if _bus(item) == 0), None)
    if first is not None:
        bridges.remove(first)
        if loose:
            raise BlueprintError(f"{loose[0].name} belongs into the parentheses of {first.name}")
        loose = first.items
    name = first.name if first else "hb0"
    yield HostBridge(name, _root_items(loose), 0, _ids(first) if first else None)
    step = 0x40 if len(bridges) < 4 else 0x100 // (len(bridges) + 1)
    placed = []
    for index, item in enumerate(bridges):
        bus = _bus(item)
        placed.append(
            HostBridge(
                item.name,
                _root_items(item.items),
                step * (index + 1) if bus is None else bus,
                _ids(item),
            )
        )
    yield from sorted(placed, key=lambda bridge: bridge.bus)


def _root_items(items: Sequence[_Item]) -> tuple[RootPort | Slot | Bridge | Endpoint, ...]:
    found: list[RootPort | Slot | Bridge | Endpoint] = []
    for item in items:
        node = _node(item)
        if not isinstance(node, RootPort | Slot | Bridge | Endpoint):
            raise BlueprintError(
                f"{item.name}: {item.kind} cannot sit on a root bus",
                hint="put it below a root port: rp(...)",
            )
        found.append(node)
    return tuple(found)


def _node(item: _Item) -> Node:
    """The node that ``item`` and everything below it stand for."""
    at = _option(item, "at")
    if item.kind in _MODELS:
        return _endpoint(item, at)
    if item.kind == "rp":
        return RootPort(
            item.name, _child(item), "noacs" not in item.options, at, _ids(item), *_link(item)
        )
    if item.kind == "port":
        return DownstreamPort(
            item.name, _child(item), "acs" in item.options, _ids(item), *_link(item)
        )
    below = tuple(_node(child) for child in item.items)
    if item.kind == "sw":
        return Switch(item.name, tuple(node for node in below if isinstance(node, DownstreamPort)))
    if item.kind == "slot":
        functions = [node for node in below if isinstance(node, Endpoint | RootPort)]
        _refuse_others(item, len(functions), "functions and root ports")
        return Slot(item.name, tuple(functions), at)
    if item.kind in _BRIDGES:
        items = [node for node in below if isinstance(node, Endpoint | Slot | Bridge)]
        _refuse_others(item, len(items), "endpoints, slots and bridges")
        return Bridge(BridgeKind(item.kind), item.name, tuple(items), at)
    raise BlueprintError(f"{item.name}: {item.kind} stands at the top of a topology only")


def _refuse_others(item: _Item, kept: int, what: str) -> None:
    if kept != len(item.items):
        raise BlueprintError(f"{item.name}: {item.kind} holds {what} only")


def _child(item: _Item) -> Child | None:
    if not item.items:
        return None
    if len(item.items) > 1:
        raise BlueprintError(
            f"{item.name}: a link leads to one device, not {len(item.items)}",
            hint="several functions of it go into slot(...), several devices below a switch, sw()",
        )
    node = _node(item.items[0])
    if not isinstance(node, Endpoint | Slot | Switch | Bridge):
        raise BlueprintError(f"{node.name}: {item.items[0].kind} cannot be below {item.name}")
    return node


def _option(item: _Item, key: str) -> int | None:
    text = item.options.get(key)
    value = _value(key, text) if text is not None else None
    return value if isinstance(value, int) else None


def _ids(item: _Item) -> Ids | None:
    text = item.options.get("ids")
    value = _value("ids", text) if text else None
    return value if isinstance(value, Ids) else None


def _link(item: _Item) -> tuple[str, int]:
    return item.options.get("speed", ""), _option(item, "width") or 0


def _endpoint(item: _Item, at: int | None) -> Endpoint:
    model = Model(item.kind)
    numbers = {option: _option(item, option) or 0 for option in DEFAULTS[model]}
    return Endpoint(model, item.name, at, _ids(item), **numbers)


# -- writing --------------------------------------------------------------------------------------


def render(blueprint: Blueprint) -> str:
    """The shortest text that :func:`parse` reads as ``blueprint``."""
    parts: list[str] = []
    for bridge in blueprint.host_bridges:
        items = [_render(item) for item in bridge.items]
        if bridge.bus == 0 and bridge.name == "hb0" and bridge.ids is None:
            parts += items
            continue
        words = [_head("hb", bridge.name), f"bus={bridge.bus:#x}", *_words_of(bridge)]
        parts.append(" ".join(words) + f"({', '.join(items)})")
    return ", ".join(parts)


def _head(kind: str, name: str) -> str:
    return name if re.fullmatch(rf"{re.escape(kind)}[0-9]+", name) else f"{kind}:{name}"


def _words_of(node: Node) -> list[str]:
    """Options of ``node`` that differ from the defaults, ACS aside."""
    words: list[str] = []
    at = getattr(node, "at", None)
    if at is not None:
        words.append(f"at={at:x}")
    ids = getattr(node, "ids", None)
    if ids is not None:
        words.append(f"ids={ids}")
    if isinstance(node, Endpoint):
        for option, default in DEFAULTS[node.model].items():
            value = getattr(node, option)
            if value != default:
                words.append(f"{option}={_amount(option, value)}")
    if isinstance(node, RootPort | DownstreamPort):
        words += [f"speed={node.speed}"] if node.speed else []
        words += [f"width={node.width}"] if node.width else []
    return words


def _amount(option: str, value: int) -> str:
    if option not in SIZE_OPTIONS:
        return str(value)
    for letter in ("G", "M", "K"):
        if value % _UNITS[letter] == 0:
            return f"{value // _UNITS[letter]}{letter}"
    raise AssertionError(f"{option} is no multiple of 4096")


_KINDS: dict[type, str] = {RootPort: "rp", DownstreamPort: "port", Switch: "sw", Slot: "slot"}


def _render(node: Node) -> str:
    if isinstance(node, Switch):
        return _render_switch(node)
    if isinstance(node, Endpoint):
        kind = str(node.model)
    elif isinstance(node, Bridge):
        kind = str(node.kind)
    else:
        kind = _KINDS[type(node)]
    words = [_head(kind, node.name)]
    if isinstance(node, RootPort) and not node.acs:
        words.append("noacs")
    words += _words_of(node)
    below = ", ".join(_render(child) for child in children(node))
    return " ".join(words) + (f"({below})" if below else "")


def _render_switch(switch: Switch) -> str:
    acs = bool(switch.ports) and switch.ports[0].acs
    parts: list[str] = []
    for index, port in enumerate(switch.ports):
        words = _words_of(port)
        if port.acs != acs:
            words.insert(0, "acs" if port.acs else "noacs")
        plain = port.name == _port_name(switch.name, index) and not words
        below = _render(port.child) if port.child is not None else ""
        if plain:
            parts.append(below or "port")
            continue
        head = "port" if port.name == _port_name(switch.name, index) else _head("port", port.name)
        parts.append(" ".join([head, *words]) + (f"({below})" if below else ""))
    flag = " acs" if acs else ""
    return f"{_head('sw', switch.name)}{flag}({', '.join(parts)})"

"""NCCL and RCCL topology files: read into a tree of nodes, a PCI topology, and written back.

The format is what ``NCCL_TOPO_FILE`` takes and ``NCCL_TOPO_DUMP_FILE`` gives::

    <system version="1">
      <cpu numaid="0" arch="x86_64" …>
        <pci busid="0000:10:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="16">
          <pci busid="0000:11:00.0" …> <gpu dev="0" …> <nvlink …/> </gpu> </pci>
          <pci busid="0000:12:00.0" …> <nic> <net name="mlx5_0" …/> </nic> </pci>

Source: NCCL ``src/graph/xml.cc``; RCCL writes version 2, and ``xgmi`` for ``nvlink``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.errors import AddressError, FormatError, UsageError
from vfiokit.host.partial import HEADER_SIZE, PartialTopology, Registers
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Bus, Function, HostBridge, Identity, Recorded

if TYPE_CHECKING:
    from xml.parsers.expat import XMLParserType

MAX_DEPTH = 64
"""Most elements inside one another."""
MAX_NODES = 1 << 16
"""Most elements of a file."""
VERSIONS = ("1", "2")
"""Of the format: NCCL's and RCCL's."""

_UNKNOWN_ID = 0xFFFF
_CLASS_BRIDGE = 0x0604
_LIMITS = (
    "an NCCL topology holds GPUs, network cards and the switches above them, and nothing else",
    "levels of switches may be left out, and addresses of bridges invented",
    "there is no configuration space in it: ACS is unknown, and so is every IOMMU group",
)
_SPEED = re.compile(r"(\d{1,4}(?:\.\d{1,4})?) ?GT/s(?: PCIe)?")
_WIDTH = re.compile("[1-9][0-9]?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class Node(NamedTuple):
    """One element, whatever its name; comments and text between elements are not kept."""

    tag: str
    attributes: Mapping[str, str]
    children: tuple[Node, ...] = ()

    def walk(self) -> Iterator[Node]:
        """The node itself and everything inside, in the order of the file."""
        yield self
        for child in self.children:
            yield from child.walk()

    def inside(self, tag: str) -> tuple[Node, ...]:
        """The children called ``tag``."""
        return tuple(child for child in self.children if child.tag == tag)


class NcclSystem:
    """A topology file as it is; equal when the nodes are."""

    def __init__(self, root: Node) -> None:
        self.root = root
        """The ``system`` element."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NcclSystem) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    @property
    def version(self) -> str:
        """Of the format; empty where the file does not say."""
        return self.root.attributes.get("version", "")

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What NCCL itself would stumble over, a sentence each."""
        found: list[str] = []
        if self.version not in VERSIONS:
            found.append(f"version {self.version!r} is none that NCCL or RCCL is known to take")
        for cpu in self.root.inside("cpu"):
            where = f"the cpu with numaid {cpu.attributes.get('numaid', '(none)')}"
            if "arch" not in cpu.attributes:
                found.append(f"{where} has no arch: NCCL refuses the file")
            if "numaid" not in cpu.attributes:
                found.append(f"{where} has no NUMA node")
        return tuple(found)

    @property
    def limits(self) -> tuple[str, ...]:
        """What the file cannot tell, and what is wrong with it."""
        return (*_LIMITS, *self.notes)

    def topology(self) -> NcclTopology:
        """The PCI functions of the file, below the ones that the file puts them below."""
        functions: list[Function] = []
        parents: dict[Bdf, Bdf] = {}
        for cpu in (self.root, *self.root.inside("cpu")):
            for node in cpu.inside("pci"):
                _collect(node, None, _numa_node(cpu), functions, parents)
        return NcclTopology(functions, parents)


class NcclTopology(PartialTopology):
    """The tree that the file states; it need not agree with the bus numbers."""

    def __init__(self, functions: list[Function], parents: Mapping[Bdf, Bdf]) -> None:
        super().__init__(functions)
        self._stated = dict(parents)
        self._parents = {bdf: self.functions[parent] for bdf, parent in parents.items()}
        self._below: dict[Bdf, Bus] = {}
        self._buses_of: dict[Bdf, Bus] = {}
        self.buses = {}
        together: dict[tuple[int, int, Bdf | None], list[Function]] = {}
        for function in self:
            key = (function.bdf.domain, function.bdf.bus, parents.get(function.bdf))
            together.setdefault(key, []).append(function)
        for (domain, number, parent), members in together.items():
            bridge = None if parent is None else self.functions[parent]
            bus = Bus(domain, number, tuple(members), bridge, None)
            self._buses_of.update((function.bdf, bus) for function in members)
            if (domain, number) not in self.buses or bridge is None:
                self.buses[domain, number] = bus
            if parent is not None:
                known = self._below.get(parent)
                others = known.functions if known is not None else ()
                first = known.number if known is not None else number
                self._below[parent] = Bus(domain, first, (*others, *members), bridge, None)
        self.host_bridges = tuple(
            HostBridge(bus.domain, bus.number) for bus in self.buses.values() if bus.is_root
        )

    def with_functions(self, functions: Iterable[Function]) -> NcclTopology:
        """The same tree of other functions; those that the file does not name have no parent."""
        kept = {function.bdf: function for function in functions}
        parents = {
            bdf: parent for bdf, parent in self._stated.items() if bdf in kept and parent in kept
        }
        return NcclTopology(list(kept.values()), parents)

    def bus_of(self, function: Function) -> Bus:
        """The functions of the same bus number that share a parent."""
        return self._buses_of[function.bdf]

    def upstream_bridge(self, function: Function) -> Function | None:
        """The function that the file puts ``function`` below."""
        return self._parents.get(function.bdf)

    def secondary(self, bridge: Function) -> Bus | None:
        """Everything that the file puts below ``bridge``, as one bus."""
        return self._below.get(bridge.bdf)


def _collect(
    node: Node,
    parent: Bdf | None,
    numa_node: int | None,
    functions: list[Function],
    parents: dict[Bdf, Bdf],
) -> None:
    function = _function(node, numa_node)
    functions.append(function)
    if parent is not None:
        parents[function.bdf] = parent
    for child in node.inside("pci"):
        _collect(child, function.bdf, numa_node, functions, parents)


def _function(node: Node, numa_node: int | None) -> Function:
    ids = {
        name: _hex(node.attributes.get(name))
        for name in ("vendor", "device", "class", "subsystem_vendor", "subsystem_device")
    }
    class_code = ids["class"] or 0
    identity = Identity(
        _UNKNOWN_ID if ids["vendor"] is None else ids["vendor"],
        _UNKNOWN_ID if ids["device"] is None else ids["device"],
        class_code,
        0,
        ids["subsystem_vendor"] or 0,
        ids["subsystem_device"] or 0,
    )
    registers = Registers()
    if ids["class"] is not None:
        registers.put(0x09, 3, class_code)
    if class_code >> 8 == _CLASS_BRIDGE:
        registers.put(0x0E, 1, 1)
    speed = _SPEED.fullmatch(node.attributes.get("link_speed", ""))
    width = node.attributes.get("link_width", "")
    return Function(
        Bdf.parse(node.attributes["busid"]),
        registers.config(HEADER_SIZE),
        identity,
        recorded=Recorded(
            numa_node=numa_node,
            max_link_speed=f"{float(speed[1]):.1f} GT/s PCIe" if speed is not None else None,
            max_link_width=int(width) if _WIDTH.fullmatch(width) else None,
            names=_names(node),
        ),
    )


def _names(node: Node) -> dict[str, str]:
    """``gpu``: its number for NCCL; ``net``: the names of its network interfaces."""
    found: dict[str, str] = {}
    gpus = [gpu.attributes["dev"] for gpu in node.inside("gpu") if "dev" in gpu.attributes]
    nets = [
        net.attributes["name"]
        for nic in node.inside("nic")
        for net in nic.inside("net")
        if "name" in net.attributes
    ]
    if _hex(node.attributes.get("vendor")) in (None, 0, _UNKNOWN_ID):
        found["device"] = "not identified"
    if gpus:
        found["gpu"] = ", ".join(gpus)
    if nets:
        found["net"] = ", ".join(nets)
    return found


def _numa_node(cpu: Node) -> int | None:
    text = cpu.attributes.get("numaid", "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _hex(text: str | None) -> int | None:
    """``0x10de``; ``None`` where it is absent."""
    return None if text is None else int(text, 16)


def read(source: str | bytes, path: str = "") -> NcclSystem:
    """The topology in ``source``; ``path`` names it in errors.

    Document type declarations, and with them entities of any kind, are refused. Raises
    :class:`FormatError` with the line for anything that is no topology file: bad XML, another
    root, a ``pci`` without a good ``busid`` or with one used before, ids that are no hex.
    """
    return NcclSystem(_Reader(path).read(source.encode() if isinstance(source, str) else source))


class _Reader:
    """Builds nodes while expat goes through the file, so that errors have a line."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._first_line = 0
        self._count = 0
        self._open: list[tuple[str, dict[str, str], list[Node]]] = []
        self._root: Node | None = None
        self._busids: set[Bdf] = set()
        self._parser: XMLParserType | None = None

    def read(self, data: bytes) -> Node:
        from xml.parsers import expat

        text = data.lstrip()
        self._first_line = data.count(b"\n", 0, len(data) - len(text))
        parser = self._parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        try:
            parser.Parse(text, True)
        except expat.ExpatError as failure:
            words = expat.errors.messages.get(failure.code, "bad XML")
            raise self._error(f"not well-formed XML: {words}", failure.lineno) from failure
        except (LookupError, ValueError, UnicodeError) as failure:  # an encoding nobody knows
            if isinstance(failure, FormatError):
                raise
            raise self._error(f"XML that cannot be decoded: {failure}", 1) from failure
        assert self._root is not None  # expat has seen one element at least
        return self._root

    def _error(self, message: str, line: int | None = None) -> FormatError:
        if line is None:
            assert self._parser is not None
            line = self._parser.CurrentLineNumber
        return FormatError(message, path=self._path, line=self._first_line + line)

    def _refuse(self, *_: object) -> None:
        raise self._error("a document type declaration: no topology needs one, and none is read")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_NODES or len(self._open) >= MAX_DEPTH:
            raise self._error(f"more than {MAX_NODES} elements, or {MAX_DEPTH} inside one another")
        if not self._open and tag != "system":
            raise self._error(f"an XML file, but no NCCL topology: it starts with <{tag}>")
        for name in (tag, *attributes):
            if not _NAME.fullmatch(name):
                raise self._error(f"{name[:40]!r} is no name that a topology has")
        if tag == "pci":
            self._check(attributes)
        self._open.append((tag, attributes, []))

    def _check(self, attributes: Mapping[str, str]) -> None:
        try:
            bdf = Bdf.parse(attributes.get("busid", ""))
        except AddressError as failure:
            raise self._error(f"a pci element whose busid is no address: {failure}") from None
        if bdf in self._busids:
            raise self._error(f"there are two pci elements with busid {bdf}")
        self._busids.add(bdf)
        for name in ("class", "vendor", "device", "subsystem_vendor", "subsystem_device"):
            text = attributes.get(name)
            digits = 6 if name == "class" else 4
            if text is not None and not re.fullmatch(rf"0[xX][0-9a-fA-F]{{1,{digits}}}", text):
                raise self._error(
                    f"{name} of {bdf} is no hex number of {digits} digits: {text[:40]!r}"
                )

    def _end(self, _tag: str) -> None:
        tag, attributes, children = self._open.pop()
        node = Node(tag, attributes, tuple(children))
        if self._open:
            self._open[-1][2].append(node)
        else:
            self._root = node


def write(system: NcclSystem) -> str:
    """The file that says what ``system`` says, laid out as NCCL does; :func:`read` takes it back.

    :class:`UsageError` for a name or value that XML cannot carry.
    """
    return "\n".join(_lines(system.root, "")) + "\n"


def _lines(node: Node, indent: str) -> Iterator[str]:
    for name in (node.tag, *node.attributes):
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for XML")
    attributes = "".join(f' {name}="{_quoted(text)}"' for name, text in node.attributes.items())
    if not node.children:
        yield f"{indent}<{node.tag}{attributes}/>"
        return
    yield f"{indent}<{node.tag}{attributes}>"
    for child in node.children:
        yield from _lines(child, indent + "  ")
    yield f"{indent}</{node.tag}>"


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _quoted(text: str) -> str:
    if _NOT_XML.search(text):
        raise UsageError(f"{text!r} cannot be written as XML")
    return re.sub('[&<>"\t\n\r]', lambda match: _ESCAPES.get(match[0], f"&#{ord(match[0])};"), text)

"""The PCI topology that a host's sysfs shows.

Source: Linux ``Documentation/ABI/testing/sysfs-bus-pci``, ``drivers/pci/pci-sysfs.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from vfiokit.errors import AddressError, SourceError
from vfiokit.host.tree import RecordedTree, Tree, resolve
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Resource, Topology

DEVICES = "/sys/bus/pci/devices"
"""Where every PCI function is linked by its address."""

# A host bridge's folder, wherever it hangs: /sys/devices, below a platform device, or below the
# function of another domain (VMD).
_HOST_BRIDGE = re.compile(r"/pci([0-9a-f]{4,8}):([0-9a-f]{2})(?=/)")

_NAMES = {
    "ID_VENDOR_FROM_DATABASE": "vendor",
    "ID_MODEL_FROM_DATABASE": "device",
    "ID_PCI_CLASS_FROM_DATABASE": "class",
    "ID_PCI_SUBCLASS_FROM_DATABASE": "class",  # the closer name wins: it comes later
}


def read_topology(tree: Tree) -> Topology:
    """Every PCI function under ``/sys/bus/pci/devices``, and the root buses they hang from.

    A file that is missing or unreadable leaves its fact unknown. A tree that can change is read
    at once, so that the topology is one moment of it; of a :class:`RecordedTree` only what
    grouping needs is read now, and the rest when asked for. Raises :class:`SourceError` when the
    folder of functions is there and cannot be read.
    """
    try:
        names = tree.list(DEVICES)
    except (FileNotFoundError, NotADirectoryError):
        names = []  # a host without PCI
    except OSError as failure:
        raise SourceError(f"cannot list {DEVICES}: {failure.strerror}") from failure
    functions: list[Function] = []
    root_buses: set[tuple[int, int]] = set()
    for name in names:
        try:
            bdf = Bdf.parse(name)
        except AddressError:
            continue
        folder = resolve(tree, f"{DEVICES}/{name}")
        function = _SysfsFunction(_Attributes(tree, folder), bdf)
        if not isinstance(tree, RecordedTree):
            _ = function.identity, function.resources, function.recorded
        functions.append(function)
        bridges = _HOST_BRIDGE.findall(folder)
        if bridges:
            root_buses.add((int(bridges[-1][0], 16), int(bridges[-1][1], 16)))
    return Topology(functions, root_buses or None)


class _Attributes:
    """The files and links of one function's folder; what cannot be read is ``None``."""

    def __init__(self, tree: Tree, folder: str) -> None:
        self._tree = tree
        self._folder = folder
        self._peek = tree.peek if isinstance(tree, RecordedTree) else None
        self.immutable = self._peek is not None
        """Whether an answer stays the same, so that it may be had later."""

    def content(self, name: str) -> bytes | None:
        """Bytes of a file."""
        if self._peek is not None:
            found = self._peek(self._folder, name)
            return found if isinstance(found, bytes) else None
        try:
            return self._tree.read(f"{self._folder}/{name}")
        except OSError:
            return None

    def target(self, name: str) -> str | None:
        """Last component of where a link leads."""
        if self._peek is not None:
            found = self._peek(self._folder, name)
            link = found if isinstance(found, str) else ""
        else:
            try:
                link = self._tree.readlink(f"{self._folder}/{name}")
            except OSError:
                link = ""
        return link.rpartition("/")[2] or None

    def number(self, name: str, base: int = 10) -> int | None:
        """A number from a one-line file; hex may carry its ``0x``."""
        content = self.content(name)
        if content is None:
            return None
        try:
            return int(content, base)
        except ValueError:
            return None

    def text(self, name: str) -> str | None:
        """A one-line file without its newline."""
        content = self.content(name)
        return None if content is None else content.decode("utf-8", "replace").strip()


class _SysfsFunction(Function):
    """A function whose identity, resources and recorded facts are read at their first use."""

    # No call of Function.__init__: an attribute it would set is looked up in __getattr__.
    def __init__(self, attributes: _Attributes, bdf: Bdf) -> None:
        self._attributes = attributes
        self.bdf = bdf
        self.config = ConfigSpace(attributes.content("config") or b"")
        physfn = attributes.target("physfn")
        try:
            self.physfn = None if physfn is None else Bdf.parse(physfn)
        except AddressError:
            self.physfn = None

    def __getattr__(self, name: str) -> object:
        value: object
        if name == "identity":
            value = self.identity = _identity(self._attributes, self.config)
        elif name == "resources":
            value = self.resources = _resources(self._attributes)
        elif name == "recorded":
            value = self.recorded = _recorded(self._attributes)
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value


def _identity(attributes: _Attributes, config: ConfigSpace) -> Identity:
    """From the attribute files; VFs have all ones where others keep their ids.

    A capture without those files still has the registers.
    """
    vendor_id = attributes.number("vendor", 16)
    device_id = attributes.number("device", 16)
    if vendor_id is None or device_id is None:
        return Function(Bdf(0, 0, 0, 0), config).identity
    return Identity(
        vendor_id,
        device_id,
        attributes.number("class", 16) or 0,
        attributes.number("revision", 16) or 0,
        attributes.number("subsystem_vendor", 16) or 0,
        attributes.number("subsystem_device", 16) or 0,
    )


def _resources(attributes: _Attributes) -> tuple[Resource, ...]:
    content = attributes.content("resource") or b""
    found: list[Resource] = []
    for index, line in enumerate(content.splitlines()):
        try:
            start, end, flags = (int(field, 16) for field in line.split())
        except ValueError:
            break
        found.append(Resource(index, start, end, flags))
    return tuple(found)


def _recorded(attributes: _Attributes) -> Recorded:
    group = attributes.target("iommu_group")
    numa_node = attributes.number("numa_node")
    reset_method = attributes.text("reset_method")
    enabled = attributes.number("enable")
    override = attributes.text("driver_override")
    return Recorded(
        driver=attributes.target("driver"),
        iommu_group=int(group) if group is not None and group.isdecimal() else None,
        numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
        irq=attributes.number("irq"),
        reset_methods=None if reset_method is None else tuple(reset_method.split()),
        current_link_speed=_link_speed(attributes.text("current_link_speed")),
        current_link_width=_link_width(attributes.number("current_link_width")),
        max_link_speed=_link_speed(attributes.text("max_link_speed")),
        max_link_width=_link_width(attributes.number("max_link_width")),
        power_state=attributes.text("power_state"),
        enabled=None if enabled is None else enabled > 0,
        driver_override=None if override in ("(null)", "") else override,
        names=_Names(attributes) if attributes.immutable else _names(attributes),
    )


def _link_speed(speed: str | None) -> str | None:
    """``8.0 GT/s PCIe``; ``None`` where the kernel says Unknown, as it does without a link."""
    return None if not speed or speed.startswith("Unknown") else speed


def _link_width(width: int | None) -> int | None:
    """Lanes; ``None`` for the kernel's "unknown", 0 or 255 (``PCIE_LNK_WIDTH_UNKNOWN``)."""
    return None if width in (0, 0xFF) else width


def _names(attributes: _Attributes) -> dict[str, str]:
    """Names that udev's database gave, where the record kept them among the properties."""
    uevent = attributes.content("uevent") or b""
    if b"_FROM_DATABASE=" not in uevent:
        return {}
    found: dict[str, str] = {}
    for line in uevent.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        if key in _NAMES:
            found[_NAMES[key]] = value
    return found


class _Names(Mapping[str, str]):
    """The same, read when someone asks for a name: most commands do not."""

    def __init__(self, attributes: _Attributes) -> None:
        self._attributes = attributes

    @cached_property
    def _found(self) -> dict[str, str]:
        return _names(self._attributes)

    def __getitem__(self, key: str) -> str:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return repr(self._found)

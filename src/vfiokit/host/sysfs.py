"""The PCI topology that a host's sysfs shows.

Source: Linux ``Documentation/ABI/testing/sysfs-bus-pci``, ``drivers/pci/pci-sysfs.c``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

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
        function = _SysfsFunction(tree, folder, bdf)
        if not isinstance(tree, RecordedTree):
            _ = function.identity, function.resources, function.recorded
        functions.append(function)
        bridges = _HOST_BRIDGE.findall(folder)
        if bridges:
            root_buses.add((int(bridges[-1][0], 16), int(bridges[-1][1], 16)))
    return Topology(functions, root_buses or None)


class _SysfsFunction(Function):
    """A function whose identity, resources and recorded facts are read at their first use."""

    # No call of Function.__init__: an attribute it would set is looked up in __getattr__.
    def __init__(self, tree: Tree, folder: str, bdf: Bdf) -> None:
        self._tree = tree
        self._folder = folder
        self.bdf = bdf
        try:
            self.config = ConfigSpace(tree.read(f"{folder}/config"))
        except OSError:
            self.config = ConfigSpace(b"")
        physfn = _target(tree, f"{folder}/physfn")
        try:
            self.physfn = None if physfn is None else Bdf.parse(physfn)
        except AddressError:
            self.physfn = None

    def __getattr__(self, name: str) -> object:
        value: object
        if name == "identity":
            value = self.identity = _identity(self._tree, self._folder, self.config)
        elif name == "resources":
            value = self.resources = _resources(self._tree, self._folder)
        elif name == "recorded":
            value = self.recorded = _recorded(self._tree, self._folder)
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value


def _bytes(tree: Tree, path: str) -> bytes | None:
    try:
        return tree.read(path)
    except OSError:
        return None


def _number(tree: Tree, path: str, base: int = 10) -> int | None:
    """A number from a one-line file; hex may carry its ``0x``."""
    content = _bytes(tree, path)
    if content is None:
        return None
    try:
        return int(content, base)
    except ValueError:
        return None


def _text(tree: Tree, path: str) -> str | None:
    content = _bytes(tree, path)
    return None if content is None else content.decode("utf-8", "replace").strip()


def _target(tree: Tree, path: str) -> str | None:
    """Last component of where a link leads."""
    try:
        return posixpath.basename(tree.readlink(path)) or None
    except OSError:
        return None


def _identity(tree: Tree, folder: str, config: ConfigSpace) -> Identity:
    """From the attribute files; VFs have all ones where others keep their ids.

    A capture without those files still has the registers.
    """
    vendor_id = _number(tree, f"{folder}/vendor", 16)
    device_id = _number(tree, f"{folder}/device", 16)
    if vendor_id is None or device_id is None:
        return Function(Bdf(0, 0, 0, 0), config).identity
    return Identity(
        vendor_id,
        device_id,
        _number(tree, f"{folder}/class", 16) or 0,
        _number(tree, f"{folder}/revision", 16) or 0,
        _number(tree, f"{folder}/subsystem_vendor", 16) or 0,
        _number(tree, f"{folder}/subsystem_device", 16) or 0,
    )


def _resources(tree: Tree, folder: str) -> tuple[Resource, ...]:
    content = _bytes(tree, f"{folder}/resource") or b""
    found: list[Resource] = []
    for index, line in enumerate(content.splitlines()):
        try:
            start, end, flags = (int(field, 16) for field in line.split())
        except ValueError:
            break
        found.append(Resource(index, start, end, flags))
    return tuple(found)


def _recorded(tree: Tree, folder: str) -> Recorded:
    group = _target(tree, f"{folder}/iommu_group")
    numa_node = _number(tree, f"{folder}/numa_node")
    reset_method = _text(tree, f"{folder}/reset_method")
    enabled = _number(tree, f"{folder}/enable")
    override = _text(tree, f"{folder}/driver_override")
    return Recorded(
        driver=_target(tree, f"{folder}/driver"),
        iommu_group=int(group) if group is not None and group.isdecimal() else None,
        numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
        irq=_number(tree, f"{folder}/irq"),
        reset_methods=None if reset_method is None else tuple(reset_method.split()),
        current_link_speed=_link_speed(tree, f"{folder}/current_link_speed"),
        current_link_width=_link_width(tree, f"{folder}/current_link_width"),
        max_link_speed=_link_speed(tree, f"{folder}/max_link_speed"),
        max_link_width=_link_width(tree, f"{folder}/max_link_width"),
        power_state=_text(tree, f"{folder}/power_state"),
        enabled=None if enabled is None else enabled > 0,
        driver_override=None if override in ("(null)", "") else override,
        names=_names(tree, folder),
    )


def _link_speed(tree: Tree, path: str) -> str | None:
    """``8.0 GT/s PCIe``; ``None`` where the kernel says Unknown, as it does without a link."""
    speed = _text(tree, path)
    return None if not speed or speed.startswith("Unknown") else speed


def _link_width(tree: Tree, path: str) -> int | None:
    """Lanes; ``None`` for the kernel's "unknown", 0 or 255 (``PCIE_LNK_WIDTH_UNKNOWN``)."""
    width = _number(tree, path)
    return None if width in (0, 0xFF) else width


def _names(tree: Tree, folder: str) -> Mapping[str, str]:
    """Names that udev's database gave, where the record kept them among the properties."""
    content = _bytes(tree, f"{folder}/uevent") or b""
    if b"_FROM_DATABASE=" not in content:
        return {}
    found: dict[str, str] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        if key in _NAMES:
            found[_NAMES[key]] = value
    return found

"""Disks below a PCI function and what the host keeps on them: partitions, stacks, mounts, swap.

Everything comes from the file tree. Sources: Linux ``block/genhd.c`` (``holders/``,
``slaves/``, ``hidden``), ``block/partitions/core.c`` (``partition``), ``drivers/md/dm-sysfs.c``
(``dm/name``), ``drivers/nvme/host/multipath.c`` (namespaces below a virtual subsystem),
``fs/btrfs/sysfs.c``; ``proc_pid_mountinfo(5)``, ``swapon(8)``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.host.tree import Tree, read_text, resolve

SECTOR = 512
"""Bytes in a unit of the sysfs attribute ``size``, whatever the disk's logical block is."""

BOOT_MOUNT_POINTS = frozenset({"/", "/boot", "/boot/efi", "/efi", "/usr", "/var"})
"""Mount points that a running host cannot lose."""

_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_OCTAL = re.compile(r"\\([0-7]{3})")
_NVME_NAMESPACE = re.compile(r"nvme\d+n\d+")
# Folders that hold attributes and never a device worth a walk.
_ATTRIBUTE_FOLDERS = frozenset(
    {
        *("bdi", "dca", "dma", "holders", "hwmon", "i2c", "inflight", "integrity", "mq"),
        *("mdev_supported_types", "msi_irqs", "power", "ptp", "queue", "queues", "slaves"),
        *("statistics", "trace", "vfio-dev", "wakeup"),
    }
)
_DEPTH = 16


class Mount(NamedTuple):
    """One mounted file system."""

    point: str
    kind: str
    """File system type."""
    source: str
    """Device path as the kernel shows it, such as ``/dev/mapper/root``."""
    device_number: str
    """``major:minor``; empty when only ``/proc/mounts`` was readable."""


class HostDisks(NamedTuple):
    """What the host mounts and swaps on; ``None`` where the tree cannot tell."""

    mounts: tuple[Mount, ...] | None
    swaps: tuple[str, ...] | None
    """Device paths in use as swap."""
    btrfs: tuple[frozenset[str], ...] = ()
    """Names of the block devices of each mounted btrfs."""


class Disk(NamedTuple):
    """A whole disk and everything stacked on it."""

    name: str
    path: str
    """Its folder in ``/sys/devices``."""
    model: str
    size: int | None
    """Bytes; ``None`` where not recorded."""
    partitions: tuple[str, ...]
    stack: tuple[str, ...]
    """Devices built on it (dm, md, bcache, …), nearest first."""
    mounts: tuple[tuple[Mount, str], ...] | None
    """Mounted file systems, each with the device of this disk that carries it."""
    swaps: tuple[str, ...] | None
    """Devices of this disk in use as swap."""
    other_paths: tuple[str, ...] = ()
    """NVMe controllers that reach the same namespace by another way."""


def optional_text(tree: Tree, path: str) -> str | None:
    """The stripped text of an attribute; ``None`` when it is absent or unreadable."""
    try:
        return read_text(tree, path).strip()
    except OSError:
        return None


def names(tree: Tree, path: str) -> list[str]:
    """Names in a folder; none when it is absent or no folder."""
    try:
        return tree.list(path)
    except OSError:
        return []


def folders_below(
    tree: Tree, path: str, *, depth: int = _DEPTH, whole: bool = False
) -> Iterator[str]:
    """Every real folder below ``path``, parents first.

    Links, attribute folders and other PCI functions are left out; but a function that is a host
    bridge itself (Intel VMD) owns everything in its PCI domain (``whole``).
    """
    if depth == 0:
        return
    for name in names(tree, path):
        child = posixpath.join(path, name)
        if name in _ATTRIBUTE_FOLDERS or _is_link(tree, child):
            continue
        if _BDF.fullmatch(name) and not whole:
            continue
        try:
            tree.list(child)
        except OSError:
            continue
        yield child
        inside = whole or _HOST_BRIDGE.fullmatch(name) is not None
        yield from folders_below(tree, child, depth=depth - 1, whole=inside)


def host_disks(tree: Tree) -> HostDisks:
    """Read mounts, swap and btrfs members of the host."""
    swaps = optional_text(tree, "/proc/swaps")
    btrfs = [
        frozenset(members)
        for name in names(tree, "/sys/fs/btrfs")
        if (members := names(tree, f"/sys/fs/btrfs/{name}/devices"))
    ]
    return HostDisks(
        _mounts(tree),
        None if swaps is None else tuple(_unescape(line.split()[0]) for line in _rows(swaps)),
        tuple(btrfs),
    )


def disks_below(tree: Tree, folders: list[str], host: HostDisks) -> tuple[Disk, ...]:
    """The disks among ``folders``, which are all the folders below a device."""
    found: dict[str, tuple[str, ...]] = {}
    for folder in folders:
        parent, name = posixpath.split(folder)
        kind = posixpath.basename(parent)
        in_nvme = posixpath.basename(posixpath.dirname(parent)) == "nvme"
        if kind == "block" or (in_nvme and _NVME_NAMESPACE.fullmatch(name)):
            if optional_text(tree, f"{folder}/hidden") != "1":
                found.setdefault(folder, ())
        elif kind == "nvme":
            found.update(_multipath_namespaces(tree, name))
    return tuple(_disk(tree, folder, others, host) for folder, others in found.items())


def _disk(tree: Tree, path: str, other_paths: tuple[str, ...], host: HostDisks) -> Disk:
    name = posixpath.basename(path)
    partitions = tuple(
        child for child in names(tree, path) if tree.exists(f"{path}/{child}/partition")
    )
    members = {name: path, **{child: f"{path}/{child}" for child in partitions}}
    stack: list[str] = []
    queue = list(members.values())
    while queue:
        base = queue.pop(0)
        for holder in names(tree, f"{base}/holders"):
            if holder not in members:
                members[holder] = resolve(tree, f"{base}/holders/{holder}")
                stack.append(holder)
                queue.append(members[holder])
    known_as = {alias: device for device, at in members.items() for alias in _aliases(tree, at)}
    size = optional_text(tree, f"{path}/size")
    return Disk(
        name,
        path,
        _model(tree, path),
        int(size) * SECTOR if size and size.isdecimal() else None,
        partitions,
        tuple(stack),
        _mounts_on(known_as, host),
        None
        if host.swaps is None
        else tuple(known_as[swap] for swap in host.swaps if swap in known_as),
        other_paths,
    )


def _mounts_on(known_as: dict[str, str], host: HostDisks) -> tuple[tuple[Mount, str], ...] | None:
    if host.mounts is None:
        return None
    aliases = dict(known_as)
    for members in host.btrfs:
        # A file system over several disks is mounted by the name of one of them.
        ours = sorted(members.intersection(known_as.values()))
        if ours:
            aliases.update({f"/dev/{member}": ours[0] for member in members - set(ours)})
    found: dict[str, tuple[Mount, str]] = {}
    for mount in host.mounts:
        device = aliases.get(mount.device_number) or aliases.get(mount.source)
        if device is not None:
            found[mount.point] = (mount, device)
    return tuple(found.values())


def _aliases(tree: Tree, path: str) -> Iterator[str]:
    """Names under which mounts and swaps may speak of a block device."""
    yield f"/dev/{posixpath.basename(path).replace('!', '/')}"
    number = optional_text(tree, f"{path}/dev")
    if number:
        yield number
    mapped = optional_text(tree, f"{path}/dm/name")
    if mapped:
        yield f"/dev/mapper/{mapped}"


def _model(tree: Tree, path: str) -> str:
    device = resolve(tree, f"{path}/device")
    if device == f"{path}/device" and not tree.exists(device):
        device = posixpath.dirname(path)
    vendor = optional_text(tree, f"{device}/vendor") or ""
    model = optional_text(tree, f"{device}/model") or ""
    # "ATA" is libata's stand-in for a vendor; a number is the PCI or virtio id of the device.
    return f"{'' if vendor == 'ATA' or vendor.startswith('0x') else vendor} {model}".strip()


def _multipath_namespaces(tree: Tree, controller: str) -> dict[str, tuple[str, ...]]:
    """Namespaces of an NVMe controller that hang from its subsystem, with the other paths."""
    root = "/sys/devices/virtual/nvme-subsystem"
    found: dict[str, tuple[str, ...]] = {}
    for subsystem in names(tree, root):
        entries = names(tree, f"{root}/{subsystem}")
        if controller not in entries:
            continue
        others = tuple(
            name for name in entries if re.fullmatch(r"nvme\d+", name) and name != controller
        )
        for name in entries:
            if _NVME_NAMESPACE.fullmatch(name):
                found[f"{root}/{subsystem}/{name}"] = others
    return found


def _mounts(tree: Tree) -> tuple[Mount, ...] | None:
    # This process may live in a mount namespace of its own; the first one holds the host's.
    texts = [optional_text(tree, f"/proc/{process}/mountinfo") for process in ("1", "self")]
    lines = [line for text in texts if text is not None for line in text.splitlines()]
    if lines or any(text is not None for text in texts):
        return tuple(filter(None, (_mountinfo_line(line) for line in dict.fromkeys(lines))))
    text = optional_text(tree, "/proc/mounts")
    if text is None:
        return None
    rows = (line.split() for line in text.splitlines())
    return tuple(
        Mount(_unescape(row[1]), row[2], _unescape(row[0]), "") for row in rows if len(row) >= 3
    )


def _mountinfo_line(line: str) -> Mount | None:
    left, separator, right = line.partition(" - ")
    fields, tail = left.split(), right.split()
    if not separator or len(fields) < 5 or len(tail) < 2:
        return None
    return Mount(_unescape(fields[4]), tail[0], _unescape(tail[1]), fields[2])


def _rows(text: str) -> list[str]:
    """Lines below a heading."""
    return [line for line in text.splitlines()[1:] if line.strip()]


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _is_link(tree: Tree, path: str) -> bool:
    try:
        tree.readlink(path)
    except OSError:
        return False
    return True

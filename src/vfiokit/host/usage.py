"""What on the host depends on a PCI function: what it loses when the function is given away.

Read from the file tree only. A tree without ``/proc`` (a record) cannot tell whether a disk is
mounted or a link carries the default route; then :attr:`Use.in_use` is ``None``, never a guess.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vfiokit.host.block import (
    BOOT_MOUNT_POINTS,
    Disk,
    HostDisks,
    disks_below,
    folders_below,
    host_disks,
    names,
    optional_text,
)
from vfiokit.host.netdev import Interface, default_route_interfaces, read_interface
from vfiokit.host.tree import Tree, resolve
from vfiokit.pci.quantity import size_text
from vfiokit.pci.topology import Function

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_USB_DEVICE = re.compile(r"\d+-\d+(\.\d+)*")


class Use(NamedTuple):
    """One thing of the host that depends on a function."""

    kind: str
    """``disk``, ``mount``, ``swap``, ``network``, ``default-route``, ``display``, ``console``,
    ``sound``, ``usb``, ``rdma``, ``sriov`` or ``mdev``."""
    name: str
    """As the host calls it: ``nvme0n1``, ``/boot``, ``eno1``, ``card0``."""
    detail: str
    critical: bool
    """The host as a whole suffers: root file system, swap, default route, only console."""
    in_use: bool | None
    """Whether something uses it now; ``None`` when the tree cannot tell."""
    loss: str
    """What giving the function away does, a sentence without its full stop."""
    nodes: tuple[str, ...] = ()
    """Device nodes through which programs may hold it open."""


class Opener(NamedTuple):
    """A process that holds a device node open."""

    pid: int
    command: str
    node: str


def uses(tree: Tree, function: Function) -> tuple[Use, ...]:
    """Everything on the host that depends on ``function``, disks first.

    A bridge has no uses of its own here: the functions below it have theirs.
    """
    path = resolve(tree, f"/sys/bus/pci/devices/{function.bdf}")
    folders = list(folders_below(tree, path))
    return (
        *_disk_uses(tree, folders),
        *_network_uses(tree, path, folders),
        *_display_uses(tree, path, folders, function),
        *_named_uses(tree, folders),
        *_usb_uses(tree, folders),
        *_virtual_uses(tree, path, folders),
    )


def openers(tree: Tree, nodes: Iterable[str]) -> tuple[Opener, ...] | None:
    """Processes that hold one of the device ``nodes`` open.

    ``None`` when the tree shows no processes. Processes of other users are invisible without
    privilege.
    """
    wanted = frozenset(nodes)
    processes = [name for name in names(tree, "/proc") if name.isdecimal()]
    if not processes:
        return None
    found: dict[tuple[int, str], Opener] = {}
    for process in processes if wanted else ():
        for fd in names(tree, f"/proc/{process}/fd"):
            try:
                target = tree.readlink(f"/proc/{process}/fd/{fd}")
            except OSError:
                continue
            if target in wanted:
                command = optional_text(tree, f"/proc/{process}/comm") or "?"
                found[int(process), target] = Opener(int(process), command, target)
    return tuple(found.values())


def _disk_uses(tree: Tree, folders: list[str]) -> Iterator[Use]:
    host = host_disks(tree)
    for disk in disks_below(tree, folders, host):
        mounts = disk.mounts or ()
        boot = any(mount.point in BOOT_MOUNT_POINTS for mount, _ in mounts)
        label = _disk_label(disk)
        yield Use(
            "disk",
            disk.name,
            _disk_detail(disk),
            boot and not disk.other_paths,
            _disk_in_use(disk, host),
            f"loses one of {len(disk.other_paths) + 1} paths to disk {label}"
            if disk.other_paths
            else f"loses disk {label}",
            tuple(f"/dev/{name}" for name in (disk.name, *disk.partitions)),
        )
        for mount, device in mounts:
            yield Use(
                "mount",
                mount.point,
                f"{mount.kind} on {device}",
                mount.point in BOOT_MOUNT_POINTS and not disk.other_paths,
                True,
                f"the file system at {mount.point} loses disk {disk.name}",
            )
        for swap in disk.swaps or ():
            yield Use(
                "swap",
                swap,
                f"on {disk.name}",
                not disk.other_paths,
                True,
                f"swap on {swap} loses disk {disk.name}; pages in it are gone",
            )


def _disk_in_use(disk: Disk, host: HostDisks) -> bool | None:
    if disk.mounts or disk.swaps or disk.stack:
        return True
    if disk.mounts is None or disk.swaps is None:
        return None
    # A ZFS pool opens its disks without a trace in sysfs.
    return None if any(mount.kind == "zfs" for mount in host.mounts or ()) else False


def _disk_label(disk: Disk) -> str:
    facts = ", ".join(
        fact for fact in (disk.model, "" if disk.size is None else size_text(disk.size)) if fact
    )
    return f"{disk.name} ({facts})" if facts else disk.name


def _disk_detail(disk: Disk) -> str:
    parts = [disk.model, "" if disk.size is None else size_text(disk.size)]
    if disk.partitions:
        parts.append(f"{len(disk.partitions)} partition{'s' if len(disk.partitions) > 1 else ''}")
    if disk.stack:
        parts.append(f"carries {', '.join(disk.stack)}")
    if disk.mounts:
        parts.append(f"mounted at {', '.join(mount.point for mount, _ in disk.mounts)}")
    if disk.swaps:
        parts.append("in use as swap")
    if disk.other_paths:
        parts.append(f"also reached by {', '.join(disk.other_paths)}")
    if disk.mounts is None:
        parts.append("mounts unknown")
    return ", ".join(part for part in parts if part)


def _network_uses(tree: Tree, path: str, folders: list[str]) -> Iterator[Use]:
    routes = default_route_interfaces(tree)
    at = [each for each in folders if posixpath.basename(posixpath.dirname(each)) == "net"]
    for folder in at:
        interface = read_interface(tree, folder, routes)
        yield Use(
            "network",
            interface.name,
            _interface_detail(interface),
            bool(interface.default_route),
            _interface_in_use(interface),
            f"loses network interface {interface.name}"
            + (f" under {', '.join(interface.uppers)}" if interface.uppers else ""),
        )
        if interface.default_route:
            yield Use(
                "default-route",
                interface.default_route,
                f"over {interface.name}",
                True,
                True,
                f"loses the default route over {interface.default_route}: "
                "remote logins may be cut off",
            )
    if not at and f"{path}/net" in folders:
        # The folder stays while an interface lives in another network namespace.
        yield Use(
            "network",
            posixpath.basename(path),
            "its interface is in another network namespace",
            False,
            None,
            "another network namespace, such as a container, loses its interface",
        )


def _interface_in_use(interface: Interface) -> bool | None:
    if interface.uppers or interface.default_route:
        return True
    if interface.up is None and not interface.state:
        return None
    # Drivers that report no carrier state leave operstate at "unknown" while they work.
    return interface.up is not False and interface.state in ("up", "unknown", "")


def _interface_detail(interface: Interface) -> str:
    parts = [interface.address, f"link {interface.state}" if interface.state else ""]
    if interface.uppers:
        parts.append(f"below {', '.join(interface.uppers)}")
    if interface.default_route:
        parts.append("carries the default route")
    elif interface.default_route is None:
        parts.append("routes unknown")
    return ", ".join(part for part in parts if part)


def _display_uses(tree: Tree, path: str, folders: list[str], function: Function) -> Iterator[Use]:
    boot_vga = optional_text(tree, f"{path}/boot_vga") == "1"
    framebuffers = _children_of(folders, "graphics")
    cards = [name for name in _children_of(folders, "drm") if re.fullmatch(r"card\d+", name)]
    renderers = [name for name in _children_of(folders, "drm") if name.startswith("renderD")]
    nodes = [f"/dev/dri/{name}" for name in (*cards, *renderers)]
    nodes += [f"/dev/{name}" for name in framebuffers]
    nodes += _nvidia_nodes(tree, function)
    if cards or renderers:
        lit = _lit_connectors(tree, folders)
        yield Use(
            "display",
            (cards or renderers)[0],
            f"displays on {', '.join(lit)}" if lit else "no display connected",
            False,
            bool(lit),
            f"loses graphics device {(cards or renderers)[0]}; programs that draw on it fail",
            tuple(nodes),
        )
    elif nodes and not framebuffers:
        yield Use(
            "display", nodes[0].rpartition("/")[2], "compute device", False, None,
            f"loses {nodes[0]}; programs that use it fail", tuple(nodes),
        )  # fmt: skip
    if boot_vga or framebuffers:
        others = _other_consoles(tree, path)
        what = ", ".join([*(["boot display"] if boot_vga else []), *framebuffers])
        yield Use(
            "console",
            str(function.bdf),
            f"{what}; {'also: ' + ', '.join(others) if others else 'the only one'}",
            not others,
            True,
            "loses the boot console"
            if others
            else "loses the only console: the screen goes dark until the function comes back",
        )


def _lit_connectors(tree: Tree, folders: list[str]) -> list[str]:
    return [
        posixpath.basename(folder)
        for folder in folders
        if re.fullmatch(r"card\d+-.+", posixpath.basename(folder))
        and optional_text(tree, f"{folder}/status") == "connected"
    ]


def _other_consoles(tree: Tree, path: str) -> list[str]:
    """Other functions with a framebuffer or a graphics card of the kernel."""
    found = []
    for name in names(tree, "/sys/bus/pci/devices"):
        other = resolve(tree, f"/sys/bus/pci/devices/{name}")
        if other == path:
            continue
        if names(tree, f"{other}/graphics") or any(
            re.fullmatch(r"card\d+", card) for card in names(tree, f"{other}/drm")
        ):
            found.append(name)
    return found


def _nvidia_nodes(tree: Tree, function: Function) -> list[str]:
    text = optional_text(tree, f"/proc/driver/nvidia/gpus/{function.bdf}/information") or ""
    match = re.search(r"^Device Minor:\s*(\d+)", text, re.MULTILINE)
    return [f"/dev/nvidia{match[1]}"] if match else []


def _named_uses(tree: Tree, folders: list[str]) -> Iterator[Use]:
    for card in _children_of(folders, "sound"):
        if re.fullmatch(r"card\d+", card):
            folder = next(each for each in folders if each.endswith(f"/sound/{card}"))
            label = optional_text(tree, f"{folder}/id") or ""
            nodes = [
                f"/dev/snd/{name}"
                for name in names(tree, folder)
                if re.match(r"(pcm|control|hw|midi)C\d", name)
            ]
            yield Use(
                "sound", card, label, False, None if nodes else False,
                f"loses sound card {card}{f' ({label})' if label else ''}", tuple(nodes),
            )  # fmt: skip
    for device in _children_of(folders, "infiniband"):
        yield Use("rdma", device, "", False, None, f"loses RDMA device {device}")


def _usb_uses(tree: Tree, folders: list[str]) -> Iterator[Use]:
    for controller in folders:
        bus = posixpath.basename(controller)
        if not re.fullmatch(r"usb\d+", bus):
            continue
        devices = [
            folder
            for folder in folders
            if folder.startswith(f"{controller}/")
            and _USB_DEVICE.fullmatch(posixpath.basename(folder))
        ]
        products = [
            optional_text(tree, f"{folder}/product") or posixpath.basename(folder)
            for folder in devices
        ]
        count = f"{len(devices)} USB device{'' if len(devices) == 1 else 's'}"
        listed = f" ({', '.join(products)})" if products else ""
        yield Use("usb", bus, f"{count}{listed}", False, bool(devices), f"loses {count}{listed}")


def _virtual_uses(tree: Tree, path: str, folders: list[str]) -> Iterator[Use]:
    enabled = optional_text(tree, f"{path}/sriov_numvfs") or "0"
    if enabled.isdecimal() and int(enabled):
        yield Use(
            "sriov",
            posixpath.basename(path),
            f"{enabled} VFs enabled",
            False,
            True,
            f"its {enabled} virtual functions disappear",
        )
    for folder in folders:
        name = posixpath.basename(folder)
        if _UUID.fullmatch(name):
            yield Use("mdev", name, "", False, True, f"mediated device {name} disappears")


def _children_of(folders: list[str], kind: str) -> list[str]:
    """Names of the folders whose parent folder is called ``kind``."""
    return [
        posixpath.basename(folder)
        for folder in folders
        if posixpath.basename(posixpath.dirname(folder)) == kind
    ]

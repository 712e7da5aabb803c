"""What a capture of a host holds: tables of files, and the walk that finds them.

Only files that are harmless to read are named here. Left out on purpose: ``rom`` and
``resourceN`` (reading them is an access to the device), ``remove``, ``rescan``, ``reset`` and
everything else that acts, and counters that say nothing about a device's place or use.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections.abc import Callable, Iterator

from vfiokit.host.sysfs import DEVICES
from vfiokit.host.tar import Member
from vfiokit.host.tree import Tree, resolve

_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def _names(*lines: str) -> re.Pattern[str]:
    return re.compile("|".join(word for line in lines for word in line.split()))


DEVICE_FILES = _names(
    # Documentation/ABI/testing/sysfs-bus-pci: identity and registers
    "config resource vendor device class revision subsystem_vendor subsystem_device modalias vpd",
    "uevent label index acpi_index serial_number",
    # place, power and interrupts
    "irq msi_bus numa_node local_cpus local_cpulist power_state d3cold_allowed enable boot_vga",
    "dma_mask_bits consistent_dma_mask_bits broken_parity_status reset_method driver_override",
    # PCI Express; sriov_vf_msix_count can only be written
    r"ari_enabled (current|max)_link_(speed|width) sriov_(?!vf_msix_count)\w+",
    r"aer_(dev|rootport)_\w+ resource[0-5]_resize",
)
"""Files of a PCI function's own folder, whole names."""

CHILD_FILES = _names(
    "uevent dev size ro removable hidden partition start model vendor rev state type name id",
    # disks and what is stacked on them
    "transport address firmware_rev cntlid cntrltype nsid numa_node subsysnqn raid_disks level",
    "array_state backing_file suspended",
    # network
    "operstate carrier flags ifindex iflink mtu speed duplex dev_id dev_port phys_port_name",
    "mode slaves active_slave mii_status",
    # displays, sound, USB, RDMA, mediated devices, P2P memory
    "status enabled number product manufacturer id(Vendor|Product) bDeviceClass busnum devnum",
    "configuration node_type fw_ver board_id available_instances device_api available published",
    # IOMMU units
    r"cap ecap version domains_(supported|used) features",
    r"[0-9]+",  # msi_irqs/105
)
"""Files of the folders below a PCI function and of virtual devices, whole names."""

SKIPPED_FOLDERS = frozenset(
    {"power", "statistics", "queue", "queues", "mq", "trace", "wakeup", "hwmon", "integrity"}
    | {"inflight", "thermal", "thermal_zone", "events", "format"}
)
"""Folders below a device that say nothing about its place or use."""

HOST_FILES = (
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/driver/nvidia/gpus/*/information",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/mounts",
    "/proc/net/ipv6_route",
    "/proc/net/route",
    "/proc/self/mountinfo",
    "/proc/swaps",
    "/proc/sys/kernel/modules_disabled",
    "/proc/sys/kernel/osrelease",
    "/proc/version",
    "/sys/bus/pci/drivers_autoprobe",
    "/sys/bus/pci/slots/*/address",
    "/sys/bus/pci/slots/*/cur_bus_speed",
    "/sys/bus/pci/slots/*/max_bus_speed",
    "/sys/devices/platform/*-framebuffer.0/uevent",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/node/node*/cpulist",
    "/sys/devices/system/node/node*/distance",
    "/sys/devices/system/node/node*/hugepages/*/free_hugepages",
    "/sys/devices/system/node/node*/hugepages/*/nr_hugepages",
    "/sys/devices/system/node/online",
    # firmware and model; serial numbers and the UUID stand beside them and are left out
    "/sys/devices/virtual/dmi/id/bios_date",
    "/sys/devices/virtual/dmi/id/bios_vendor",
    "/sys/devices/virtual/dmi/id/bios_version",
    "/sys/devices/virtual/dmi/id/board_name",
    "/sys/devices/virtual/dmi/id/board_vendor",
    "/sys/devices/virtual/dmi/id/product_name",
    "/sys/devices/virtual/dmi/id/sys_vendor",
    "/sys/firmware/acpi/tables/DMAR",
    "/sys/firmware/acpi/tables/IORT",
    "/sys/firmware/acpi/tables/IVRS",
    "/sys/firmware/acpi/tables/VIOT",
    "/sys/kernel/iommu_groups/*/name",
    "/sys/kernel/iommu_groups/*/reserved_regions",
    "/sys/kernel/iommu_groups/*/type",
    "/sys/kernel/irq/*/chip_name",
    "/sys/kernel/mm/hugepages/*/free_hugepages",
    "/sys/kernel/mm/hugepages/*/nr_hugepages",
    "/sys/kernel/security/lockdown",
    "/sys/module/iommufd/parameters/*",
    "/sys/module/kvm*/parameters/*",
    "/sys/module/vfio*/parameters/*",
    "/sys/module/vfio*/refcnt",
)
"""Files besides those of devices; ``*`` stands for any part of one component."""

HOST_LINKS = (
    "/sys/block/*",
    "/sys/bus/pci/devices/*",
    "/sys/bus/pci/drivers/*/*",
    "/sys/class/block/*",
    "/sys/class/dmi/id",
    "/sys/class/drm/*",
    "/sys/class/infiniband/*",
    "/sys/class/iommu/*",
    "/sys/class/net/*",
    "/sys/class/nvme/*",
    "/sys/class/nvme-subsystem/*",
    "/sys/class/pci_bus/*",
    "/sys/class/vfio/*",
    "/sys/class/vfio-dev/*",
    "/sys/fs/btrfs/*/devices/*",
    "/sys/kernel/iommu_groups/*/devices/*",
)
"""Links besides those of devices."""

NODES = (
    "/dev/iommu",
    "/dev/kvm",
    "/dev/vfio/*",
    "/dev/vfio/devices/*",
    "/sys/firmware/acpi/tables/*",
)
"""Device nodes, and tables for root only, whose presence is noted, as empty files."""

VIRTUAL_FOLDERS = (
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/net",
    "/sys/devices/virtual/nvme-subsystem",
)
"""Devices without hardware that are stacked on devices that have some."""

# Not there after all, a folder, or an attribute without a value now (a link that is down).
_NO_VALUE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA}
)

_DEPTH = 16  # a partition of a SCSI disk sits 9 folders below its function


def stays_inside(name: str, target: str) -> bool:
    """Whether the link ``name`` (relative to the top) to ``target`` cannot leave its tree.

    With ``..`` only at the front, where it climbs the real parents of the link, no other link
    can change what the target means. All links of sysfs are of this form.
    """
    rest = target
    up = 0
    while rest == ".." or rest.startswith("../"):
        rest = rest[3:].lstrip("/")
        up += 1
    return (
        target != ""
        and not target.startswith("/")
        and "\0" not in target
        and ".." not in rest.split("/")
        and up <= name.count("/")
    )


class Walk:
    """One pass over a host: yields members, and remembers what could not be read.

    ``progress`` is called with the functions done so far and their number.
    """

    def __init__(self, tree: Tree, progress: Callable[[int, int], None] | None = None) -> None:
        self._tree = tree
        self._progress = progress
        self._seen: set[str] = set()
        self.unreadable: dict[str, str] = {}
        """Path and reason of every file that is there and would not be read."""
        self.short_config: list[str] = []
        """Addresses of functions of which only 64 bytes of configuration space were shown."""
        self.functions = 0
        """PCI functions found."""

    def members(self) -> Iterator[Member]:
        """Everything that belongs in a capture, each path once."""
        names = [name for name in self._list(DEVICES) if _BDF.fullmatch(name)]
        for done, name in enumerate(names):
            if self._progress is not None:
                self._progress(done, len(names))
            yield from self._folder(resolve(self._tree, f"{DEVICES}/{name}"), DEVICE_FILES, 0)
            self.functions += 1
        if self._progress is not None:
            self._progress(len(names), len(names))
        for folder in (*VIRTUAL_FOLDERS, *self._iommu_units()):
            yield from self._folder(folder, CHILD_FILES, 0)
        for pattern in HOST_FILES:
            for path in self._matches(pattern):
                yield from self._file(path)
        for pattern in HOST_LINKS:
            for path in self._matches(pattern):
                yield from self._link(path)
        for pattern in NODES:
            for path in self._matches(pattern):
                if not self._list(path):  # /dev/vfio/devices is a folder
                    yield from self._once(path, b"")

    def _iommu_units(self) -> Iterator[str]:
        for name in self._list("/sys/class/iommu"):
            yield resolve(self._tree, f"/sys/class/iommu/{name}")

    def _folder(self, path: str, wanted: re.Pattern[str], depth: int) -> Iterator[Member]:
        """Links and wanted files of a device's folder, and of the folders below it."""
        for name in self._list(path):
            child = f"{path}/{name}"
            target = self._target(child)
            if target is not None:
                # Also one that was met before: a unit of AMD's IOMMU lies below its PCI function.
                yield from self._once(child, target)
            elif wanted.fullmatch(name):
                yield from self._file(child)
            elif name not in SKIPPED_FOLDERS and not _BDF.fullmatch(name) and depth < _DEPTH:
                yield from self._folder(child, CHILD_FILES, depth + 1)

    def _matches(self, pattern: str) -> Iterator[str]:
        """Paths that ``pattern`` names; without a ``*`` whether it exists is left to the reader."""
        start, star, rest = pattern.partition("*")
        if not star:
            if self._tree.exists(pattern):
                yield pattern
            return
        folder, _, prefix = start.rpartition("/")
        tail, slash, rest = rest.partition("/")
        for name in self._list(folder):
            if name.startswith(prefix) and name.endswith(tail):
                yield from self._matches(f"{folder}/{name}{slash}{rest}")

    def _list(self, path: str) -> list[str]:
        try:
            return self._tree.list(path)
        except OSError:
            return []

    def _link(self, path: str) -> Iterator[Member]:
        target = self._target(path)
        if target is not None:
            yield from self._once(path, target)

    def _target(self, path: str) -> str | None:
        """What a link says; ``None`` for no link, and for one that leads out of the tree."""
        try:
            target = self._tree.readlink(path)
        except OSError:
            return None
        return target if stays_inside(path[1:], target) else None

    def _file(self, path: str) -> Iterator[Member]:
        try:
            content = self._tree.read(path)
        except OSError as failure:
            if failure.errno not in _NO_VALUE:
                self.unreadable[path] = os.strerror(failure.errno or errno.EIO)
            return
        if path.endswith("/config") and len(content) == 64:
            self.short_config.append(posixpath.basename(posixpath.dirname(path)))
        yield from self._once(path, content)

    def _once(self, path: str, content: bytes | str) -> Iterator[Member]:
        if path not in self._seen:
            self._seen.add(path)
            yield Member(path[1:], content)

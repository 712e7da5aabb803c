"""What a kernel does when it comes up on a machine: ACS, groups, sysfs, drivers.

Source: Linux ``drivers/pci/pci.c:pci_enable_acs``, ``drivers/iommu/iommu.c``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping

from vfiokit.host.tree import Tree, resolve
from vfiokit.isolation.alias import aliases
from vfiokit.machine.fabric import Fabric
from vfiokit.machine.iommu.vtd import VtdUnit
from vfiokit.machine.kernel.pci_device import bar_resources
from vfiokit.machine.kernel.vfs import DeviceNode, File, FileSystem, Link
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
GROUPS = "/sys/kernel/iommu_groups"

_REQUIRED = (
    Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
)


def enable_acs(fabric: Fabric) -> None:
    """``pci_enable_acs`` for every function below a host bridge with an IOMMU."""
    for function in fabric.functions.values():
        if function.acs is None or fabric.host_bridge_of(function).iommu is None:
            continue
        at = function.acs.offset
        supported = function.config_read(at + 4, 2)
        control = function.config_read(at + 6, 2)
        function.config_write(at + 6, 2, control | supported & _REQUIRED)


def topology_of(fabric: Fabric) -> Topology:
    """What the kernel reads when it scans the buses of a machine."""
    functions = [
        Function(
            bdf,
            ConfigSpace(bytes(function.config.data)),
            resources=bar_resources(function),
            physfn=function.physfn,
        )
        for bdf, function in fabric.functions.items()
    ]
    return Topology(functions, tuple(fabric.host_bridges))


def unit_of(fabric: Fabric, bdf: Bdf) -> VtdUnit | None:
    """The IOMMU that the requests of a function pass."""
    iommu = fabric.host_bridge_of(fabric.functions[bdf]).iommu
    return iommu if isinstance(iommu, VtdUnit) else None


def requester_ids(fabric: Fabric, topology: Topology, bdf: Bdf) -> tuple[int, ...]:
    """Every requester ID under which the DMA of a function may arrive at its IOMMU."""
    found = {alias.requester_id for alias in aliases(topology, topology[bdf])}
    found.add(fabric.wire_id(bdf.requester_id, bdf.domain))
    return tuple(sorted(found))


def predicted_groups(fabric: Fabric, topology: Topology) -> dict[Bdf, int]:
    """IOMMU group of every function behind an IOMMU."""
    from vfiokit.isolation.group import predict

    if not any(bridge.iommu is not None for bridge in fabric.host_bridges.values()):
        return {}
    return {
        bdf: group.id
        for group in predict(topology).groups
        for bdf in group.members
        if unit_of(fabric, bdf) is not None
    }


def folders(topology: Topology, base: Tree | None) -> dict[Bdf, str]:
    """Folder of every function in sysfs: as recorded, or as the hierarchy has it."""
    found: dict[Bdf, str] = {}
    for function in topology:
        path = f"{DEVICES}/{function.bdf}"
        real = path
        if base is not None:
            try:
                real = resolve(base, path)
            except OSError:
                real = path
        if real == path:
            chain = [str(bridge.bdf) for bridge in reversed(topology.path_to_root(function))]
            real = "/".join(
                ("/sys/devices", str(topology.host_bridge_of(function)), *chain, str(function.bdf))
            )
        found[function.bdf] = real
    return found


def relative(link: str, target: str) -> str:
    """Text of a link at ``link`` that leads to ``target``, as the kernel writes it."""
    return posixpath.relpath(target, posixpath.dirname(link))


def add_link(files: FileSystem, link: str, target: str) -> None:
    """Make a relative link, unless something is there."""
    try:
        files.lookup(link, follow=False)
    except OSError:
        files.add(link, Link(relative(link, target)))


def add_groups(
    files: FileSystem,
    groups: Mapping[Bdf, int],
    places: Mapping[Bdf, str],
    kinds: Mapping[int, File],
) -> None:
    """``/sys/kernel/iommu_groups`` and the links to it, as far as they were not recorded.

    ``kinds`` is the attribute ``type`` of each group.
    """
    for bdf, number in groups.items():
        folder = f"{GROUPS}/{number}"
        add_link(files, f"{places[bdf]}/iommu_group", folder)
        add_link(files, f"{folder}/devices/{bdf}", places[bdf])
    for number, kind in kinds.items():
        regions = File(b"0x00000000fee00000 0x00000000feefffff msi\n")
        for name, file in (("type", kind), ("reserved_regions", regions)):
            if not files.exists(f"{GROUPS}/{number}/{name}"):
                files.add(f"{GROUPS}/{number}/{name}", file)


def reserved_regions(files: FileSystem, number: int) -> list[tuple[int, int]]:
    """IOVA ranges of a group that cannot be mapped, from its ``reserved_regions``.

    Regions that may be relaxed do not count (``vfio_iommu_type1.c:vfio_iommu_has_sw_msi`` and
    ``vfio_iommu_resv_exclude``).
    """
    try:
        text = files.read(f"{GROUPS}/{number}/reserved_regions").decode("ascii", "replace")
    except OSError:
        return []
    found: list[tuple[int, int]] = []
    for line in text.splitlines():
        first, last, kind = (*line.split(), "", "", "")[:3]
        if kind and kind != "direct-relaxable":
            found.append((int(first, 16), int(last, 16)))
    return found


def add_iommus(files: FileSystem, fabric: Fabric, places: Mapping[Bdf, str]) -> None:
    """``/sys/class/iommu`` and each function's link to its unit, as far as not recorded."""
    for unit in {id(b.iommu): b.iommu for b in fabric.host_bridges.values()}.values():
        if not isinstance(unit, VtdUnit):
            continue
        folder = f"/sys/devices/virtual/iommu/{unit.name}"
        add_link(files, f"/sys/class/iommu/{unit.name}", folder)
        if files.exists(folder):
            continue
        for name, value in (
            ("address", unit.address),
            ("cap", unit.cap),
            ("ecap", unit.ecap),
        ):
            files.add(f"{folder}/intel-iommu/{name}", File(f"{value:x}\n".encode()))
    for bdf, place in places.items():
        served = unit_of(fabric, bdf)
        if served is not None:
            add_link(files, f"{place}/iommu", f"/sys/devices/virtual/iommu/{served.name}")


def add_iommufd(files: FileSystem, opener: Callable[[], object]) -> None:
    """``/dev/iommu`` and its place in sysfs."""
    files.add("/dev/iommu", DeviceNode(opener))
    folder = "/sys/devices/virtual/misc/iommu"
    if not files.exists(folder):
        files.add(f"{folder}/dev", File(b"10:258\n"))
        uevent = b"MAJOR=10\nMINOR=258\nDEVNAME=iommu\nDEVMODE=0660\n"
        files.add(f"{folder}/uevent", File(uevent))
    add_link(files, "/sys/class/misc/iommu", folder)


def add_modules(files: FileSystem, live: Mapping[str, File]) -> None:
    """``/sys/module`` of the VFIO modules; ``live`` parameters by ``module/name``."""
    for path, file in {"vfio_pci/nointxmask": File(b"N\n"), **live}.items():
        module, _slash, name = path.partition("/")
        files.add(f"/sys/module/{module}/parameters/{name}", file)

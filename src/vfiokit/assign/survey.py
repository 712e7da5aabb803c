"""What a plan must know of the host: groups, losses, and every reason not to go ahead."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vfiokit.assign.binding import DEVICES, DRIVERS
from vfiokit.assign.document import Blocker, Loss
from vfiokit.host.block import names, optional_text
from vfiokit.host.tree import FolderTree, RecordedTree, Tree
from vfiokit.host.usage import Use, openers, uses
from vfiokit.isolation.group import Group, predict
from vfiokit.isolation.viability import manages_own_dma
from vfiokit.kernel.recording import ReadOnlyTree
from vfiokit.pci.topology import Function, Topology

_GROUPS = "/sys/kernel/iommu_groups"
_NOIOMMU = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"

# Kind of use → first part of the blocker's id, what is said, what to do about it.
_REASONS = {
    "disk": (
        "disk-in-use",
        "{name} on {bdf} is in use: {detail}",
        "unmount its file systems and stop what is built on it",
    ),
    "network": (
        "link-in-use",
        "{name} on {bdf} is in use: {detail}",
        "take it down first: ip link set {name} down",
    ),
    "default-route": (
        "default-route",
        "the default route over {name} runs through {bdf}: remote logins may be cut off",
        "give the host another default route first",
    ),
    "console": (
        "console",
        "{bdf} is the only console of the host: {detail}",
        "make sure that the host can be reached over the network or a serial line",
    ),
    "mdev": ("mediated-device", "{bdf} carries the mediated device {name}", "remove it first"),
}


class Findings(NamedTuple):
    """What speaks against a plan: reasons to refuse, and reasons to think twice."""

    blockers: tuple[Blocker, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: object) -> Findings:
        """Both together, in order."""
        if not isinstance(other, Findings):
            return NotImplemented
        return Findings(self.blockers + other.blockers, self.warnings + other.warnings)


class GroupMap:
    """The IOMMU group of every function: as the kernel recorded it, else as it would form it."""

    def __init__(self, topology: Topology) -> None:
        members: dict[int, list[Function]] = {}
        for function in topology:
            number = function.recorded.iommu_group
            if number is not None:
                members.setdefault(number, []).append(function)
        self._topology = topology
        self._recorded = {
            number: Group(number, tuple(function.bdf for function in found))
            for number, found in members.items()
        }
        self.is_predicted = not members
        self._predicted = predict(topology) if self.is_predicted else None

    def of(self, function: Function) -> Group | None:
        """The group of ``function``; ``None`` when the kernel gave groups to others only."""
        if self._predicted is not None:
            return self._predicted.of(function.bdf)
        number = function.recorded.iommu_group
        return None if number is None else self._recorded[number]


def uses_vfio(driver: str) -> bool:
    """Whether functions on ``driver`` are opened through VFIO, which needs an IOMMU group."""
    return manages_own_dma(driver) and "vfio" in driver


def is_capture(tree: Tree) -> bool:
    """Whether ``tree`` is a copy of a host, so that what it lacks may have been there."""
    return isinstance(tree, RecordedTree | ReadOnlyTree) or (
        isinstance(tree, FolderTree) and tree.root != "/"
    )


def host_fingerprint(tree: Tree) -> str:
    """A stable mark of the host that does not reveal its machine id; ``""`` where it has none."""
    machine_id = optional_text(tree, "/etc/machine-id")
    if not machine_id:
        return ""
    # machine-id(5) asks that the id itself be kept confidential.
    return hashlib.sha256(f"vfiokit:{machine_id}".encode()).hexdigest()[:32]


def boot_id(tree: Tree) -> str:
    """The random id of the running boot (``random(4)``); ``""`` where there is none."""
    return optional_text(tree, "/proc/sys/kernel/random/boot_id") or ""


def examine_driver(tree: Tree, driver: str) -> Findings:
    """Whether the kernel has ``driver`` at all."""
    if tree.exists(f"{DRIVERS}/{driver}"):
        return Findings()
    if is_capture(tree):
        return Findings(
            warnings=(f"the capture does not tell whether the driver {driver} was loaded",)
        )
    return Findings(
        (
            Blocker(
                "no-vfio-driver" if driver == "vfio-pci" else f"no-driver:{driver}",
                f"the kernel has no PCI driver {driver}",
                False,
                f"modprobe {driver}",
            ),
        )
    )


def examine_function(
    tree: Tree, topology: Topology, function: Function, driver: str, group: Group | None
) -> Findings:
    """What the kernel itself has against binding ``function`` to ``driver``."""
    blockers: list[Blocker] = []
    warnings: list[str] = []
    bdf = function.bdf
    enabled = optional_text(tree, f"{DEVICES}/{bdf}/sriov_numvfs") or "0"
    if enabled not in ("0", "") and uses_vfio(driver):
        text = f"{bdf} has {enabled} virtual functions enabled; {driver} refuses such a function"
        hint = f"disable them first: echo 0 > {DEVICES}/{bdf}/sriov_numvfs"
        blockers.append(Blocker(f"vfs-enabled:{bdf}", text, False, hint))
    if function.header_type != 0 and uses_vfio(driver):
        text = f"{bdf} is a bridge; {driver} takes endpoints only"
        hint = "name the functions below it; the bridge itself may keep its driver"
        blockers.append(Blocker(f"bridge:{bdf}", text, False, hint))
    if uses_vfio(driver):
        found = _examine_iommu(tree, topology, function, group)
        found += _examine_reset(tree, topology, function)
        blockers += found.blockers
        warnings += found.warnings
    return Findings(tuple(blockers), tuple(warnings))


def _examine_iommu(
    tree: Tree, topology: Topology, function: Function, group: Group | None
) -> Findings:
    bdf = function.bdf
    if function.recorded.iommu_group is not None:
        return Findings()
    if group is not None and is_capture(tree) and not tree.exists(_GROUPS):
        return Findings(
            warnings=(
                f"the capture holds no IOMMU groups; that {bdf} would share one with "
                f"{len(group.members) - 1} other function(s) is a prediction",
            )
        )
    if optional_text(tree, _NOIOMMU) == "Y":
        return Findings(
            warnings=(
                f"{bdf} has no IOMMU group and vfio runs in its unsafe no-IOMMU mode: "
                "the device will reach all of memory",
            )
        )
    if function.recorded.driver is None and any(
        other.recorded.iommu_group is not None for other in topology
    ):
        # An IOMMU driver that is a module makes the group of a function when a driver binds.
        return Findings(
            warnings=(
                f"{bdf} has no IOMMU group yet, others on this host have: it may get one when "
                "it is bound",
            )
        )
    return Findings(
        (
            Blocker(
                f"no-iommu-group:{bdf}",
                f"{bdf} has no IOMMU group: the IOMMU is off, or does not serve this function",
                False,
                "enable VT-d or AMD-Vi in the firmware; on Intel boot with intel_iommu=on",
            ),
        )
    )


def _examine_reset(tree: Tree, topology: Topology, function: Function) -> Findings:
    """Linux shows ``reset`` and ``reset_method`` only where some method works."""
    folder = f"{DEVICES}/{function.bdf}"
    methods = optional_text(tree, f"{folder}/reset_method")
    if methods or (methods is None and tree.exists(f"{folder}/reset")):
        return Findings()
    known = methods is not None or not is_capture(tree)
    if known or any(tree.exists(f"{DEVICES}/{each.bdf}/reset_method") for each in topology):
        return Findings(
            (
                Blocker(
                    f"no-reset:{function.bdf}",
                    f"the kernel has no way to reset {function.bdf}: it keeps its state, and "
                    "whatever a guest left in it, until the machine is power-cycled",
                    True,
                ),
            )
        )
    return Findings(warnings=(f"the capture does not tell how {function.bdf} can be reset",))


def examine_uses(tree: Tree, functions: Iterable[Function]) -> tuple[tuple[Loss, ...], Findings]:
    """What the host loses with ``functions``, and which of that forbids it."""
    losses: list[Loss] = []
    findings = Findings()
    nodes: list[str] = []
    for function in functions:
        for use in uses(tree, function):
            losses.append(Loss(function.bdf, *use[:5], use.loss))
            findings += _judge(use, function)
            nodes += use.nodes
        nodes += vfio_nodes(tree, function)
    return tuple(losses), findings + Findings(tuple(examine_openers(tree, nodes)))


def vfio_nodes(tree: Tree, function: Function) -> list[str]:
    """Device nodes through which programs open a function that is on a VFIO driver now."""
    if not uses_vfio(function.recorded.driver or ""):
        return []
    group = function.recorded.iommu_group
    found = [] if group is None else [f"/dev/vfio/{group}", f"/dev/vfio/noiommu-{group}"]
    devices = names(tree, f"{DEVICES}/{function.bdf}/vfio-dev")
    return found + [f"/dev/vfio/devices/{name}" for name in devices]


def examine_openers(tree: Tree, nodes: Iterable[str]) -> Iterator[Blocker]:
    """A blocker per device node that a process holds open: unbinding may wait for it forever."""
    by_node: dict[str, list[str]] = {}
    for opener in openers(tree, nodes) or ():
        by_node.setdefault(opener.node, []).append(f"{opener.command} ({opener.pid})")
    for node, processes in by_node.items():
        yield Blocker(
            f"held-open:{node}",
            f"{node} is held open by {', '.join(processes)}; unbinding could hang",
            True,
            "stop these programs first",
        )


def _judge(use: Use, function: Function) -> Findings:
    """What follows from one use of a function that is to be taken away."""
    if use.in_use is None and use.kind in ("disk", "network"):
        detail = f" ({use.detail})" if use.detail else ""
        return Findings(warnings=(f"cannot tell whether {use.kind} {use.name} is in use{detail}",))
    if use.kind == "display" and use.in_use:
        return Findings(warnings=(f"{use.name} of {function.bdf} shows a picture: {use.detail}",))
    # A link below the default route is spoken for by the route.
    stands = use.critical != (use.kind == "network") or use.kind in ("disk", "mdev")
    if not use.in_use or not stands or use.kind not in _REASONS:
        return Findings()
    name, text, hint = _REASONS[use.kind]
    if use.kind == "disk" and use.critical:
        name = "boot-disk"
    subject = str(function.bdf) if use.kind == "console" else use.name
    facts = {"name": use.name, "bdf": function.bdf, "detail": use.detail}
    return Findings(
        (Blocker(f"{name}:{subject}", text.format(**facts), True, hint.format(**facts)),)
    )

"""QEMU's devices for a blueprint.

What QEMU cannot express is an error, never something else built silently:

* ACS of a switch port: ``xio3130-downstream`` has none, so a port with ACS is a ``pcie-root-port``
  below the switch's upstream port, which Linux takes for what it is meant to be;
* the link speed and width of a port without ACS (of a switch port: in every version; of a root
  port: where the model with ACS cannot lose it and ``ioh3420`` takes its place);
* endpoints and conventional bridges directly below a further host bridge: ``pxb-pcie`` takes
  root ports only;
* vendor and device ids: models have the ids they have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from vfiokit.lab import io_space
from vfiokit.lab.failure import UnsupportedError
from vfiokit.lab.preset import Features
from vfiokit.pci.blueprint import (
    DEFAULTS,
    LAST_DEVICE,
    MIB,
    Blueprint,
    Bridge,
    BridgeKind,
    DownstreamPort,
    Endpoint,
    HostBridge,
    Model,
    Node,
    RootPort,
    Slot,
    Switch,
    device_numbers,
)

NVME_SPARE_QUEUES = 2
"""Queue resources per virtual function that an nvme with SR-IOV offers."""


class Disk(NamedTuple):
    """A file to create before QEMU starts."""

    path: str
    size: int
    """Bytes."""


class Hardware(NamedTuple):
    """What a blueprint becomes."""

    arguments: tuple[str, ...]
    disks: tuple[Disk, ...]


def build(blueprint: Blueprint, qemu: Features, folder: str) -> Hardware:
    """Arguments for ``blueprint``; disks are files in ``folder``.

    Raises :class:`UnsupportedError` for what QEMU, or this version of it, cannot express.
    """
    return _Builder(qemu, folder).build(blueprint)


def qemu_id(name: str) -> str:
    """QEMU's id for a node; the prefix keeps it apart from names that QEMU gives its own parts."""
    return f"dev-{name}"


class _Builder:
    def __init__(self, qemu: Features, folder: str) -> None:
        self._qemu = qemu
        self._folder = folder
        self._arguments: list[str] = []
        self._disks: list[Disk] = []
        self._chassis = 0

    def build(self, blueprint: Blueprint) -> Hardware:
        io_space.check(blueprint)
        blueprint.places()  # Are there numbers enough for all buses and devices?
        first, *others = blueprint.host_bridges
        self._refuse_ids(first)
        taken = {number for number, _item in device_numbers(first)}
        free = (number for number in range(LAST_DEVICE, 0, -1) if number not in taken)
        for bridge in others:
            self._expander(bridge, next(free))
        for bridge in blueprint.host_bridges:
            bus = "pcie.0" if bridge is first else qemu_id(bridge.name)
            for number, item in device_numbers(bridge):
                self._device(item, bus, number)
        return Hardware(tuple(self._arguments), tuple(self._disks))

    def _add(self, model: str, node: Node, bus: str, address: str, *properties: str) -> None:
        self._qemu.require(model, node.name)
        self._refuse_ids(node)
        words = [model, f"id={qemu_id(node.name)}", f"bus={bus}", f"addr={address}", *properties]
        self._arguments += ["-device", ",".join(words)]

    def _refuse_ids(self, node: Node) -> None:
        ids = getattr(node, "ids", None)
        if ids is not None:
            raise UnsupportedError(
                f"{node.name}: QEMU cannot give a device other ids ({ids})",
                hint="the software machine can",
            )

    def _expander(self, bridge: HostBridge, number: int) -> None:
        for item in bridge.items:
            functions = item.functions if isinstance(item, Slot) else (item,)
            for function in functions:
                if not isinstance(function, RootPort):
                    raise UnsupportedError(
                        f"{function.name}: QEMU's pxb-pcie, {bridge.name}, takes root ports only",
                        hint="put it below a root port: rp(...)",
                    )
        self._add("pxb-pcie", bridge, "pcie.0", f"{number:02x}.0", f"bus_nr={bridge.bus}")

    def _device(self, item: Node, bus: str, device: int) -> None:
        if not isinstance(item, Slot):
            self._node(item, bus, f"{device:02x}.0")
            return
        for number, function in enumerate(item.functions):
            shared = ("multifunction=on",) if len(item.functions) > 1 else ()
            self._node(function, bus, f"{device:02x}.{number}", *shared)

    def _node(self, node: Node, bus: str, address: str, *shared: str) -> None:
        match node:
            case RootPort():
                self._root_port(node, bus, address, *shared)
            case Bridge():
                self._bridge(node, bus, address)
            case Switch():
                self._switch(node, bus, address)
            case Endpoint():
                self._endpoint(node, bus, address, *shared)
            case _:
                raise AssertionError(node)

    def _root_port(
        self, port: RootPort | DownstreamPort, bus: str, address: str, *shared: str
    ) -> None:
        properties = [*self._chassis_and_slot(), *shared]
        model = "pcie-root-port"
        if not port.acs:
            if self._qemu.has_property(model, "disable-acs"):
                properties.append("disable-acs=on")
            else:
                model = "ioh3420"
        if (port.speed or port.width) and not self._qemu.has_property(model, "x-speed"):
            raise UnsupportedError(
                f"{port.name}: ports without ACS have one speed and width in QEMU "
                f"{self._qemu.version}",
                hint="leave speed= and width= out, or give the port acs",
            )
        if port.speed:
            properties.append(f"x-speed={port.speed.replace('.', '_')}")
        if port.width:
            properties.append(f"x-width={port.width}")
        self._add(model, port, bus, address, *properties)
        if port.child is not None:
            self._device(port.child, qemu_id(port.name), 0)

    def _chassis_and_slot(self) -> list[str]:
        self._chassis += 1
        if self._chassis > 0xFF:
            raise UnsupportedError("QEMU can tell 255 ports apart at most")
        return [f"chassis={self._chassis}", f"slot={self._chassis}"]

    def _switch(self, switch: Switch, bus: str, address: str) -> None:
        self._add("x3130-upstream", switch, bus, address)
        bus_below = qemu_id(switch.name)
        for number, port in enumerate(switch.ports):
            if port.acs:
                self._root_port(port, bus_below, f"{number:02x}.0")
                continue
            if port.speed or port.width:
                raise UnsupportedError(
                    f"{port.name}: QEMU's switch ports without ACS have one speed and width",
                    hint="leave speed= and width= out, or give the port acs",
                )
            slot = self._chassis_and_slot()
            self._add("xio3130-downstream", port, bus_below, f"{number:02x}.0", *slot)
            if port.child is not None:
                self._device(port.child, qemu_id(port.name), 0)

    def _bridge(self, bridge: Bridge, bus: str, address: str) -> None:
        properties: list[str] = []
        if bridge.kind is BridgeKind.PCI_TO_PCI:
            self._chassis += 1
            properties = [f"chassis_nr={self._chassis}"]
        self._add(str(bridge.kind), bridge, bus, address, *properties)
        for number, item in device_numbers(bridge):
            self._device(item, qemu_id(bridge.name), number)

    # -- endpoints ----------------------------------------------------------------------------

    def _endpoint(self, endpoint: Endpoint, bus: str, address: str, *shared: str) -> None:
        model, properties = _MODELS[endpoint.model]
        extra = list(properties)
        match endpoint.model:
            case Model.NVME:
                extra += self._nvme(endpoint)
            case Model.VIRTIO_BLK:
                extra.append(f"drive={self._disk(endpoint)}")
            case Model.IVSHMEM:
                extra.append(f"memdev={self._memory(endpoint)}")
            case Model.PCI_TESTDEV if endpoint.membar:
                extra.append(f"membar={endpoint.membar}")
            case Model.EDU if endpoint.dma_bits != DEFAULTS[Model.EDU]["dma_bits"]:
                extra.append(f"dma_mask={(1 << endpoint.dma_bits) - 1:#x}")
        self._add(model, endpoint, bus, address, *extra, *shared)
        if endpoint.vfs:
            # A controller in a subsystem takes no drive of its own: its namespace is a device.
            namespace = f"nvme-ns,bus={qemu_id(endpoint.name)},drive={self._disk(endpoint)}"
            self._arguments += ["-device", namespace]

    def _nvme(self, endpoint: Endpoint) -> Iterator[str]:
        yield f"serial={endpoint.name[:20]}"
        if endpoint.cmb:
            if endpoint.cmb % MIB:
                raise UnsupportedError(
                    f"{endpoint.name}: QEMU counts a controller memory buffer in MiB"
                )
            yield f"cmb_size_mb={endpoint.cmb // MIB}"
        if endpoint.vfs:
            self._qemu.require("nvme-subsys", endpoint.name)
            subsystem = f"lab-subsys-{endpoint.name}"
            self._arguments += ["-device", f"nvme-subsys,id={subsystem}"]
            queues = NVME_SPARE_QUEUES * endpoint.vfs
            yield f"subsys={subsystem}"
            yield f"sriov_max_vfs={endpoint.vfs}"
            yield f"sriov_vq_flexible={queues}"
            yield f"sriov_vi_flexible={endpoint.vfs}"
            yield f"max_ioqpairs={queues + NVME_SPARE_QUEUES}"
            yield f"msix_qsize={endpoint.vfs + NVME_SPARE_QUEUES + 1}"
        else:
            yield f"drive={self._disk(endpoint)}"

    def _disk(self, endpoint: Endpoint) -> str:
        """Add a block device; returns its node name."""
        name = f"lab-disk{len(self._disks)}"
        path = f"{self._folder}/{name}"
        self._disks.append(Disk(path, endpoint.size))
        node = {
            "driver": "raw",
            "node-name": name,
            "cache": {"no-flush": True},
            "file": {"driver": "file", "filename": path},
        }
        self._arguments += ["-blockdev", json.dumps(node)]
        return name

    def _memory(self, endpoint: Endpoint) -> str:
        name = f"lab-memory-{endpoint.name}"
        backing = f"memory-backend-ram,id={name},size={endpoint.size},share=on"
        self._arguments += ["-object", backing]
        return name


_MODELS: dict[Model, tuple[str, tuple[str, ...]]] = {
    Model.EDU: ("edu", ()),
    Model.NVME: ("nvme", ()),
    # No option ROM: the firmware would spend time in it.
    Model.IGB: ("igb", ("romfile=",)),
    Model.E1000E: ("e1000e", ("romfile=",)),
    # Without iommu_platform a virtio device goes around the IOMMU.
    Model.VIRTIO_NET: (
        "virtio-net-pci",
        ("romfile=", "disable-legacy=on", "iommu_platform=on"),
    ),
    Model.VIRTIO_BLK: ("virtio-blk-pci", ("disable-legacy=on", "iommu_platform=on")),
    Model.PCI_TESTDEV: ("pci-testdev", ()),
    Model.IVSHMEM: ("ivshmem-plain", ()),
}
"""QEMU's model and its fixed properties."""

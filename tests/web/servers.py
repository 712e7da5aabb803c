"""Machines for tests of the report, built from configuration bytes."""

from __future__ import annotations

from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

ACS_ON = 0x1D
"""SV RR CR UF: what Linux sets with an IOMMU on."""
HOST_BRIDGE = (0x8086, 0x09A2)
"""Ice Lake and later: on the kernel's list of host bridges that forward between peers."""
SWITCH = (0x1000, 0xC030)
SWITCH_BUSES = (0x08, 0x26, 0x3D, 0x54, 0x82, 0xA1, 0xB9, 0xD1)
"""Upstream ports of the switches, as on a real server of eight H100."""


def function(
    address: str,
    *,
    ids: tuple[int, int],
    class_code: int,
    port: PortType | None = PortType.ENDPOINT,
    acs: int | None = None,
    ats: int | None = None,
    secondary: int = 0,
    physfn: str | None = None,
    driver: str | None = None,
    numa_node: int | None = None,
    link: tuple[str, int] | None = None,
    names: dict[str, str] | None = None,
) -> Function:
    """One function with as many registers as a report looks at."""
    raw = bytearray(4096)
    raw[0x00:0x04] = ids[0].to_bytes(2, "little") + ids[1].to_bytes(2, "little")
    raw[0x09:0x0C] = class_code.to_bytes(3, "little")
    if secondary:
        raw[0x0E] = 1
        raw[0x19] = raw[0x1A] = secondary
    if port is not None:
        raw[0x06], raw[0x34] = 0x10, 0x40
        raw[0x40:0x44] = bytes((0x10, 0x00, port << 4 | 2, 0x00))
    if acs is not None:
        raw[0x100:0x108] = (0x0001000D).to_bytes(4, "little") + bytes((0x5F, 0, acs, 0))
    if ats is not None:  # instead of ACS, at the start of the extended list
        raw[0x100:0x108] = (0x0001000F).to_bytes(4, "little") + bytes((0, 0, 0, ats))
    speed, width = link if link is not None else (None, None)
    return Function(
        Bdf.parse(address),
        ConfigSpace(bytes(raw)),
        Identity(ids[0], ids[1], class_code),
        physfn=Bdf.parse(physfn) if physfn else None,
        recorded=Recorded(
            driver=driver,
            numa_node=numa_node,
            current_link_speed=speed,
            current_link_width=width,
            max_link_speed=speed,
            max_link_width=width,
            names=names or {},
        ),
    )


def gpu_server(*, acs: tuple[int, ...] = (ACS_ON,) * 4 + (0,) * 4) -> Topology:
    """Eight switches, each with a NIC, a GPU and an NVMe drive; ACS is on in the first four."""
    functions: list[Function] = []
    for index, (bus, control) in enumerate(zip(SWITCH_BUSES, acs, strict=True)):
        node = index // 4
        root, down, fast = bus - 1, bus + 1, ("32.0 GT/s PCIe", 16)
        functions += [
            function(f"{root:02x}:00.0", ids=HOST_BRIDGE, class_code=0x088000, numa_node=node,
                     port=PortType.RC_INTEGRATED_ENDPOINT,
                     names={"vendor": "Intel Corporation", "device": "Ice Lake Memory Map/VT-d"}),
            function(f"{root:02x}:01.0", ids=(0x8086, 0x352A), class_code=0x060400,
                     port=PortType.ROOT_PORT, secondary=bus, acs=ACS_ON, numa_node=node,
                     driver="pcieport", link=fast,
                     names={"vendor": "Intel Corporation", "device": "PCIe Root Port"}),
            function(f"{bus:02x}:00.0", ids=SWITCH, class_code=0x060400, numa_node=node,
                     port=PortType.UPSTREAM, secondary=down, driver="pcieport", link=fast,
                     names={"vendor": "Broadcom / LSI", "device": "PEX890xx PCIe Gen 5 Switch"}),
        ]  # fmt: skip
        cards = (
            ((0x15B3, 0x1021), 0x020700, "mlx5_core", "Mellanox Technologies",
             "MT2910 Family [ConnectX-7]", fast),
            ((0x10DE, 0x2330), 0x030200, "nvidia", "NVIDIA Corporation",
             "GH100 [H100 SXM5 80GB]", fast),
            ((0x144D, 0xA824), 0x010802, "nvme", "Samsung Electronics Co Ltd",
             "NVMe SSD Controller PM173X", ("16.0 GT/s PCIe", 4)),
        )  # fmt: skip
        for slot, (ids, class_code, driver, vendor, device, link) in enumerate(cards):
            below = down + 1 + slot
            functions += [
                function(f"{down:02x}:{slot:02x}.0", ids=SWITCH, class_code=0x060400,
                         port=PortType.DOWNSTREAM, secondary=below, acs=control, link=link,
                         driver="pcieport", numa_node=node,
                         names={"vendor": "Broadcom / LSI",
                                "device": "PEX890xx PCIe Gen 5 Switch"}),
                function(f"{below:02x}:00.0", ids=ids, class_code=class_code, driver=driver,
                         numa_node=node, link=link, names={"vendor": vendor, "device": device},
                         ats=None if driver == "nvme" else 0),
            ]  # fmt: skip
    return Topology(functions)


def repeated(topology: Topology, times: int) -> Topology:
    """The functions of ``topology`` in as many PCI domains."""
    functions: list[Function] = []
    for domain in range(times):
        for one in topology:
            physfn = None if one.physfn is None else one.physfn._replace(domain=domain)
            functions.append(
                Function(
                    one.bdf._replace(domain=domain),
                    one.config,
                    one.identity,
                    resources=one.resources,
                    physfn=physfn,
                    recorded=one.recorded._replace(iommu_group=None),
                )
            )
    roots = [(domain, bridge.bus) for domain in range(times) for bridge in topology.host_bridges]
    return Topology(functions, roots)

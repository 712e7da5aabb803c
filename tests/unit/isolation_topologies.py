"""Machines for isolation tests, built from configuration bytes."""

from __future__ import annotations

from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

FULL = (0x1F, 0x1D)
"""An ACS capability (supported, enabled) as Linux leaves it."""
OFF = (0x1F, 0x00)
BARE = (0x00, 0x00)
"""A capability that offers no bit."""


def bdf(text: str) -> Bdf:
    return Bdf.parse(text)


def config_bytes(
    *,
    vendor: int,
    device: int,
    class_code: int,
    header: int,
    port: PortType | None,
    acs: tuple[int, int] | None,
    acs_dwords: tuple[int, int] | None,
    secondary: int,
    size: int | None,
) -> bytes:
    raw = bytearray(4096 if port is not None else 256)
    raw[0x00:0x04] = vendor.to_bytes(2, "little") + device.to_bytes(2, "little")
    raw[0x09:0x0C] = class_code.to_bytes(3, "little")
    raw[0x0E] = header
    if header & 0x7F:
        raw[0x19] = raw[0x1A] = secondary
    if port is not None:
        raw[0x06] = 0x10
        raw[0x34] = 0x40
        raw[0x40:0x44] = bytes((0x10, 0x00, port << 4 | 2, 0x00))
    if acs is not None:
        raw[0x100:0x104] = (0x0001000D).to_bytes(4, "little")
        raw[0x104:0x106] = acs[0].to_bytes(2, "little")
        raw[0x106:0x108] = acs[1].to_bytes(2, "little")
    if acs_dwords is not None:
        raw[0x100:0x104] = (0x0001000D).to_bytes(4, "little")
        raw[0x104:0x108] = acs_dwords[0].to_bytes(4, "little")
        raw[0x108:0x10C] = acs_dwords[1].to_bytes(4, "little")
    return bytes(raw[:size])


class Builder:
    """Collects functions; every method returns the new function's address."""

    def __init__(self) -> None:
        self.functions: list[Function] = []

    def add(
        self,
        address: str,
        port: PortType | None = None,
        *,
        ids: tuple[int, int] = (0x1AF4, 0x1000),
        multifunction: bool = False,
        acs: tuple[int, int] | None = None,
        acs_dwords: tuple[int, int] | None = None,
        below: int | None = None,
        bridge_header: int = 1,
        class_code: int | None = None,
        subsystem: tuple[int, int] = (0, 0),
        physfn: str | None = None,
        driver: str | None = None,
        group: int | None = None,
        size: int | None = None,
    ) -> Bdf:
        header = (bridge_header if below is not None else 0) | (0x80 if multifunction else 0)
        if class_code is None:
            class_code = 0x060400 if below is not None else 0x020000
        raw = config_bytes(
            vendor=0xFFFF if physfn else ids[0],
            device=0xFFFF if physfn else ids[1],
            class_code=class_code,
            header=header,
            port=port,
            acs=acs,
            acs_dwords=acs_dwords,
            secondary=below or 0,
            size=size,
        )
        self.functions.append(
            Function(
                bdf(address),
                ConfigSpace(raw),
                Identity(*ids, class_code, 0, *subsystem),
                physfn=bdf(physfn) if physfn else None,
                recorded=Recorded(driver=driver, iommu_group=group),
            )
        )
        return self.functions[-1].bdf

    def root_port(self, address: str, below: int, acs=FULL, **more) -> Bdf:
        return self.add(address, PortType.ROOT_PORT, below=below, acs=acs, **more)

    def upstream(self, address: str, below: int, **more) -> Bdf:
        return self.add(address, PortType.UPSTREAM, below=below, **more)

    def downstream(self, address: str, below: int, acs=None, **more) -> Bdf:
        return self.add(address, PortType.DOWNSTREAM, below=below, acs=acs, **more)

    def endpoint(self, address: str, **more) -> Bdf:
        return self.add(address, PortType.ENDPOINT, **more)

    def virtual(self, address: str, physfn: str, **more) -> Bdf:
        return self.add(address, PortType.ENDPOINT, physfn=physfn, **more)

    def topology(self, root_buses=None) -> Topology:
        return Topology(self.functions, root_buses)


def switch(builder: Builder, *, acs_a=None, acs_b=None) -> None:
    """A root port, a switch with two downstream ports, an endpoint below each."""
    builder.root_port("00:01.0", 1)
    builder.upstream("01:00.0", 2)
    builder.downstream("02:00.0", 3, acs_a)
    builder.downstream("02:01.0", 4, acs_b)
    builder.endpoint("03:00.0")
    builder.endpoint("04:00.0")

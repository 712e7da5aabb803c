"""Machines with devices on vfio-pci, for tests that ask who reaches whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vfiokit.machine.assembly import Assembly, assemble
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device, open_address_space, open_device

SWITCHES = """
hb bus=0x20 ids=8086:2020 (
  rp0(sw:sw0(nvme:a cmb=2M, nvme:b cmb=2M)),
  rp1(sw:sw1 acs(nvme:c cmb=2M, nvme:d cmb=2M)),
  rp2(nvme:e cmb=2M)
),
hb bus=0x40 ids=8086:2f00 (rp3(nvme:f cmb=2M))
"""
"""Below one switch without ACS, below one with it, alone; on a trusted host bridge. And behind a
host bridge that is trusted for its own peers only."""


def bind(assembly: Assembly, *functions: Bdf) -> None:
    """Give functions to vfio-pci."""
    tree = assembly.kernel.tree
    for bdf in functions:
        place = f"/sys/bus/pci/devices/{bdf}"
        tree.write(f"{place}/driver_override", b"vfio-pci")
        if tree.exists(f"{place}/driver"):
            tree.write(f"{place}/driver/unbind", str(bdf).encode())
        tree.write("/sys/bus/pci/drivers_probe", str(bdf).encode())


@contextmanager
def opened(assembly: Assembly, *names: str) -> Iterator[dict[str, Device]]:
    """Devices by name, open."""
    places = {name: assembly[name] for name in names}
    bind(assembly, *places.values())
    with ExitStack() as stack:
        # One address space: functions of one group need it.
        space = open_address_space(assembly.kernel, *places.values())
        stack.callback(space.close)
        yield {
            name: stack.enter_context(open_device(assembly.kernel, bdf, address_space=space))
            for name, bdf in places.items()
        }


def build(text: str = SWITCHES) -> Assembly:
    """A machine with its kernel up, ports and drives by the names of ``text``."""
    return assemble(text)

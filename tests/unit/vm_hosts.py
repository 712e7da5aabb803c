"""Hosts for the tests of guest plans: random trees, and some with a story."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from vfiokit.host.processor import Cpu
from vfiokit.machine.assembly import Assembly, assemble
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.edit import with_acs_control
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

INTEL, ZEN = Cpu("GenuineIntel", 6, 0x55), Cpu("AuthenticAMD", 0x17, 1)

SWITCH = "rp0(sw0(nvme:a, nvme:b)), rp1(nvme:c)"
REDIRECTING = "rp0(sw0 acs(nvme:a, nvme:b)), rp1(nvme:c)"
SPREAD = "rp0(sw0(nvme:a, nvme:b)), hb:far bus=40(rp1(sw1(nvme:c)), rp2(nvme:d))"
MIXED = "rp0 noacs(slot(nvme:a, nvme:b)), rp1(sw0(port acs(nvme:c), port(sw1(nvme:d))))"


def _ports(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    port = st.builds("port {}({})".format, st.sampled_from(["acs", "noacs"]), items)
    return st.lists(port, min_size=1, max_size=3).map(lambda ports: f"sw({', '.join(ports)})")


_DEVICE = st.sampled_from(["nvme", "nvme", "slot(nvme, nvme)", "slot(nvme, nvme, nvme)", "edu"])
_CHILD = st.recursive(_DEVICE, _ports, max_leaves=4)
_ROOT = st.builds("rp {}({})".format, st.sampled_from(["acs", "acs", "noacs"]), _CHILD)


@st.composite
def host_texts(draw: st.DrawFn) -> str:
    """Topologies of one or two host bridges, with at least one function."""
    first = draw(st.lists(_ROOT, min_size=1, max_size=3))
    far = draw(st.lists(_ROOT, max_size=2))
    return ", ".join(first) + (f", hb bus=80({', '.join(far)})" if far else "")


class Host:
    """A software machine's topology, and its functions in the order of the text."""

    def __init__(self, text: str, numa: bool = False, **changes: Identity) -> None:
        self.assembly: Assembly = assemble(text)
        found = self.assembly.topology()
        self.names = {
            node.name: self.assembly[node.name] for node in self.assembly.blueprint.endpoints()
        }
        by_address = {self.assembly[name]: identity for name, identity in changes.items()}
        rebuilt = [
            Function(
                each.bdf,
                each.config,
                by_address.get(each.bdf, each.identity),
                resources=each.resources,
                recorded=Recorded(numa_node=int(each.bdf.bus >= 0x40) if numa else None),
            )
            for each in found
        ]
        self.topology = Topology(rebuilt, [(0, each.bus) for each in found.host_bridges])

    @property
    def functions(self) -> list[Function]:
        return [self.topology[bdf] for bdf in self.names.values()]

    def __getitem__(self, name: str) -> Bdf:
        return self.assembly[name]

    def set_acs(self, controls: Mapping[str, int]) -> None:
        self.topology = with_acs_control(
            self.topology, {self[name]: Acs(value) for name, value in controls.items()}
        )


GPU = Identity(0x10DE, 0x2330, 0x030200)
NIC = Identity(0x15B3, 0x1021, 0x020000)

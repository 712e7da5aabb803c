"""The scenarios of the P2P table: which machines, and what is changed in each before asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import p2p_guest

from vfiokit.lab import Lab, Scenario
from vfiokit.pci.blueprint import Blueprint

MCH = "0000:00:00.0"
"""What Linux asks about the first host bridge."""

SWITCHES = (
    "rp0(sw0 acs(nvme:a cmb=2, nvme:b cmb=2)), rp1(sw1(nvme:c cmb=2, nvme:d)), rp2(nvme:e cmb=2)"
)
PAINTED_SWITCHES = f"{SWITCHES}, edu:painter dma_bits=64"
SPREAD = (
    "nvme:a cmb=2, nvme:b cmb=2, rp0(nvme:c cmb=2), edu:painter dma_bits=64, "
    "hb:far bus=40(rp1(nvme:d cmb=2), rp2(nvme:e)), hb:farther bus=80(rp3(nvme:f cmb=2))"
)
NESTED = (
    "rp0(slot(nvme:a cmb=2, nvme:b cmb=2)), rp1 noacs(slot(nvme:c cmb=2, nvme:d)), "
    "rp2(sw0(port(sw1 acs(nvme:e cmb=2, nvme:f)), port(nvme:g cmb=2)))"
)
VIRTUAL = "rp0(nvme:p vfs=2), rp1(sw0(nvme:q vfs=1, nvme:m cmb=2)), rp2(nvme:n cmb=2)"
DEEP = (
    "rp0(sw0 acs(sw1 acs(sw2 acs(sw3 acs(sw4 acs(nvme:a cmb=2)))), "
    "sw5 acs(sw6 acs(sw7 acs(sw8 acs(nvme:b cmb=2))))))"
)
"""Ten ports with ACS between the drives: one more than the kernel's message has room for."""


@dataclass(frozen=True)
class Phase:
    """What is changed, from the state after boot."""

    title: str
    acs: Mapping[str, int] = field(default_factory=dict)
    """ACS Control by name of the port."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """What the kernel is made to take a function for."""
    remove: tuple[str, ...] = ()
    """Functions unplugged from here on."""

    def call(self) -> dict[str, Any]:
        numbers = {name: int(text.replace(":", ""), 16) for name, text in self.ids.items()}
        return {"acs": dict(self.acs), "ids": numbers, "remove": list(self.remove)}


AS_BOOTED = Phase("as booted")


@dataclass(frozen=True)
class Boot:
    """One guest, asked once for each phase."""

    title: str
    topology: str
    cpu: str
    iommu: str
    parameters: tuple[str, ...] = ()
    """For the kernel; ``{name}`` stands for a function's address."""
    phases: tuple[Phase, ...] = (AS_BOOTED,)
    vfs: Mapping[str, int] = field(default_factory=dict)

    @property
    def painter(self) -> str:
        return "painter" if any(phase.ids for phase in self.phases) else ""

    def command_line(self) -> list[str]:
        places = Blueprint.parse(self.topology).places()
        where = {name.replace(".", "_"): str(place.bdf) for name, place in places.items()}
        given = [parameter.format(**where) for parameter in self.parameters]
        if self.painter:
            given.append("nokaslr")
        if self.vfs:
            # A namespace seen through several functions would be one block device.
            given.append("nvme_core.multipath=N")
        return given


def _acs(title: str, **control: int) -> Phase:
    return Phase(title, acs={name.replace("_", "."): value for name, value in control.items()})


def _ids(**ids: str) -> Phase:
    named = {MCH if name == "mch" else name: text for name, text in ids.items()}
    return Phase(", ".join(f"{name} is {text}" for name, text in named.items()), ids=named)


BIT_BY_BIT = (
    AS_BOOTED,
    _acs("Request Redirect on one port", sw0_0=0x04),
    _acs("Completion Redirect on the other port", sw0_1=0x08),
    _acs("both redirects on both ports", sw0_0=0x0C, sw0_1=0x0C),
    _acs("Source Validation, Translation Blocking", sw0_0=0x03, sw0_1=0x03),
    _acs("Upstream Forwarding, Direct Translated P2P", sw0_0=0x50, sw0_1=0x50),
    _acs("ports above both switches", rp0=0x1D, rp1=0x1D),
    _acs("everything everywhere", rp0=0x5F, rp1=0x5F, rp2=0x5F, sw0_0=0x5F, sw0_1=0x5F),
)

INTEL_BRIDGES = (
    AS_BOOTED,
    _ids(mch="8086:2020"),
    _ids(mch="8086:2033"),
    _ids(mch="8086:3c00"),
    _ids(mch="8086:2f01"),
    _ids(mch="8086:09a2"),
    _ids(mch="8086:0b25"),
    _ids(mch="8086:4940"),
    _ids(mch="8086:1216"),
    _ids(mch="1ae0:0001"),
    _ids(mch="8086:2021"),
    _ids(mch="1022:1480"),
    _ids(rp1="8086:2030"),
    _ids(mch="8086:2020", rp1="8086:2030", rp3="1ae0:1f05"),
    _ids(mch="8086:3c00", rp1="8086:3c00", rp3="8086:2f00"),
    _ids(mch="8086:2020", rp1="8086:3c01"),
    # The first function is an endpoint then, of which the kernel makes nothing, whatever its ids.
    Phase("no 00.0 on the first bus", ids={"a": "8086:2020", "rp1": "8086:2030"}, remove=(MCH,)),
)

CONFIG_ACS = "pci=config_acs=0010001@{sw0_0};0010001@{sw0_1}"

BOOTS = (
    Boot("acs bit by bit", SWITCHES, "zen", "none", phases=BIT_BY_BIT),
    Boot("acs bit by bit", SWITCHES, "intel", "none", phases=BIT_BY_BIT),
    Boot(
        "acs of an IOMMU", SWITCHES, "zen", "intel",
        phases=(AS_BOOTED, _acs("no redirect on both ports", sw0_0=0x11, sw0_1=0x11)),
    ),
    Boot(
        "acs of an IOMMU", SWITCHES, "intel", "intel",
        phases=(AS_BOOTED, _acs("no redirect on one port", sw0_0=0x11)),
    ),
    Boot("acs of an IOMMU", SWITCHES, "zen", "intel-pt"),
    Boot(
        "acs of an IOMMU", PAINTED_SWITCHES, "intel", "intel-pt",
        phases=(
            AS_BOOTED,
            _ids(mch="8086:2020"),
            # The first function is a root port then, which the kernel takes for the host bridge.
            Phase("no 00.0, rp0 is 8086:2020", ids={"rp0": "8086:2020"}, remove=(MCH,)),
        ),
    ),
    Boot("acs of an IOMMU", SWITCHES, "zen", "virtio"),
    Boot("acs of an IOMMU", SWITCHES, "intel", "virtio"),
    Boot(
        "redirect off by parameter", SWITCHES, "intel", "intel",
        ("pci=disable_acs_redir={sw0_0};{sw0_1}",),
    ),
    Boot(
        "redirect off by parameter, one port", SWITCHES, "intel", "intel",
        ("pci=disable_acs_redir={sw0_0}",),
    ),
    Boot(
        "redirect off by parameter, by ids", SWITCHES, "intel", "intel",
        ("pci=disable_acs_redir=pci:1b36:000c",),
    ),
    Boot("acs by parameter", SWITCHES, "intel", "intel", (CONFIG_ACS,)),
    Boot("acs by parameter", SWITCHES, "zen", "virtio", (CONFIG_ACS,)),
    Boot(
        "acs by parameter, no IOMMU", SWITCHES, "intel", "none",
        ("pci=config_acs=0001100@pci:1b36:000c",),
    ),
    Boot("another CPU", SWITCHES, "pre-zen", "none"),
    Boot("another CPU", SWITCHES, "EPYC,vendor=HygonGenuine", "none"),
    Boot("another CPU", SWITCHES, "EPYC,vendor=GenuineIntel", "none"),
    Boot("another CPU", SWITCHES, "Skylake-Server,vendor=AuthenticAMD,family=25", "none"),
    Boot("host bridges", SPREAD, "intel", "none", phases=INTEL_BRIDGES),
    Boot("host bridges", SPREAD, "zen", "none"),
    Boot("host bridges", SPREAD, "zen", "intel"),
    Boot("host bridges", SPREAD, "pre-zen", "intel"),
    Boot("nested", NESTED, "intel", "intel"),
    Boot("nested", NESTED, "zen", "intel"),
    Boot(
        "nested", NESTED, "intel", "none",
        phases=(
            AS_BOOTED,
            _acs("redirect at the common port of two functions", rp0=0x04),
            _acs("redirect inside a cascade", sw1_0=0x08),
            _acs("redirect above a cascade", rp2=0x0C),
        ),
    ),
    Boot("virtual functions", VIRTUAL, "zen", "none", vfs={"p": 2, "q": 1}),
    Boot(
        "virtual functions", VIRTUAL, "intel", "none", vfs={"p": 2, "q": 1},
        phases=(AS_BOOTED, _acs("redirect above the switch", rp1=0x0C)),
    ),
    Boot("virtual functions", VIRTUAL, "zen", "intel", vfs={"p": 2, "q": 1}),
    Boot("ten redirects in a row", DEEP, "intel", "intel"),
)  # fmt: skip


def run(lab: Lab, boot: Boot) -> list[dict[str, Any]]:
    """What the kernel answered, a record for each phase; see :func:`p2p_guest.record`."""
    changed = lab.with_changes(
        topology=boot.topology, cpu=boot.cpu, iommu=boot.iommu, append=boot.command_line()
    )
    phases = [phase.call() for phase in boot.phases]
    scenario = Scenario(p2p_guest.record, (phases, dict(boot.vfs), boot.painter), timeout_s=200)
    (outcome,) = changed.run_batch([scenario])
    records: list[dict[str, Any]] = outcome.require()
    return records

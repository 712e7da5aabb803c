"""The doctor on functions that are made by hand: registers that no healthy machine shows."""

from __future__ import annotations

import pytest
from doctor_host import of, worst

from vfiokit.assign.doctor import Finding, Severity, examine
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import RecordedTree
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

NOTHING = RecordedTree({}, {})
GPU, VF = "0000:08:00.0", "0000:08:00.4"


def config(
    *, pin: int = 0, capability: int = 0, extended: tuple[int, bytes] | None = None
) -> ConfigSpace:
    raw = bytearray(4096 if extended else 256)
    raw[0:4] = bytes.fromhex("de10 3423")
    raw[0x3D] = pin
    if capability:
        raw[0x06] = 0x10
        raw[0x34] = 0x40
        raw[0x40] = capability
    if extended:
        raw[0x06] = 0x10
        raw[0x34] = 0x40
        raw[0x40:0x44] = bytes.fromhex("10000200")
        raw[0x100:0x104] = (1 << 16 | extended[0]).to_bytes(4, "little")
        raw[0x104 : 0x104 + len(extended[1])] = extended[1]
    return ConfigSpace(bytes(raw))


def function(bdf: str, space: ConfigSpace, **recorded: object) -> Function:
    identity = Identity(0x10DE, 0x2334, 0x030200)
    return Function(Bdf.parse(bdf), space, identity, recorded=Recorded(**recorded))


def asked(*functions: Function) -> tuple[Finding, ...]:
    return examine(NOTHING, Topology(functions), functions[:1])


def test_a_function_behind_vmd_is_not_assignable() -> None:
    findings = asked(function("10000:01:00.0", config(pin=1)))
    (finding,) = of(findings, "assignable")
    assert finding.severity is Severity.PROBLEM
    assert "VMD" in finding.what


@pytest.mark.parametrize(
    ("space", "irq", "severity", "words"),
    [
        (config(), 11, Severity.NOTE, "no interrupts"),
        (config(pin=1), 11, Severity.WARNING, "shares its line with 0000:00:02.0"),
        (config(pin=1), 12, Severity.OK, "an INTx line of its own"),
        (config(pin=1), None, Severity.OK, "an INTx line of its own"),
        (config(pin=1, capability=0x05), 11, Severity.OK, "message signalled"),
        (config(capability=0x11), 11, Severity.OK, "message signalled"),
    ],
)
def test_interrupts_of_every_kind(
    space: ConfigSpace, irq: int | None, severity: Severity, words: str
) -> None:
    other = function("0000:00:02.0", config(pin=1), irq=11)
    (finding,) = of(asked(function("0000:00:01.0", space, irq=irq), other), "interrupts")
    assert finding.severity is severity
    assert words in finding.what


def rebar(sizes: int, size: int, count: int = 1) -> ConfigSpace:
    control = 1 | count << 5 | size << 8
    return config(
        extended=(0x15, (sizes << 4).to_bytes(4, "little") + control.to_bytes(4, "little"))
    )


def test_a_bar_that_could_be_larger_is_noted_with_what_to_write() -> None:
    # 256 MiB, 512 MiB and 16 GiB are offered; it is 256 MiB now.
    sizes = 1 << 8 | 1 << 9 | 1 << 14
    (finding,) = of(asked(function("0000:00:01.0", rebar(sizes, 8))), "resizable-bar")
    assert finding.what.startswith("BAR 1 of 0000:00:01.0 is 256 MiB and could be 16 GiB")
    assert "echo 14 > " in finding.remedy
    assert finding.remedy.endswith("resource1_resize")


def test_a_bar_at_its_largest_is_not_mentioned() -> None:
    assert not of(asked(function("0000:00:01.0", rebar(1 << 8 | 1 << 9, 9))), "resizable-bar")
    assert not of(asked(function("0000:00:01.0", rebar(0, 0))), "resizable-bar")


@pytest.mark.parametrize("size", [0x104, 0x108, 0x10A, 0x10C])
def test_a_resizable_bar_that_is_cut_off_is_no_error(size: int) -> None:
    whole = rebar(1 << 14, 8, count=6).data
    assert asked(function("0000:00:01.0", ConfigSpace(whole[:size])))


def server(driver: str | None) -> tuple[Finding, ...]:
    """What is said of a VF of the recorded server when its PF has another driver."""
    tree = open_tree("demo")
    assert isinstance(tree, RecordedTree)
    place = tree.real_path(f"/sys/bus/pci/devices/{GPU}")
    links = dict(tree.links())
    del links[f"{place}/driver"]
    if driver is not None:
        links[f"{place}/driver"] = f"../../../../bus/pci/drivers/{driver}"
    changed = RecordedTree(dict(tree.files()), links)
    topology = read_topology(changed)
    return examine(changed, topology, [topology[Bdf.parse(VF)]])


def test_a_virtual_function_depends_on_the_driver_of_its_pf() -> None:
    assert worst(server("nvidia"), "sriov") is Severity.OK
    assert worst(server(None), "sriov") is Severity.WARNING
    (token,) = of(server("vfio-pci"), "vf-token")
    assert token.severity is Severity.NOTE
    assert GPU in token.evidence[0].source


def test_a_function_that_reads_all_ones_is_not_mistaken_for_a_healthy_one() -> None:
    findings = asked(function("0000:00:01.0", ConfigSpace(b"\xff" * 256)))
    assert worst(findings, "answering") is Severity.PROBLEM

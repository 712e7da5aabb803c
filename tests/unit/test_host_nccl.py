"""NCCL topology files: read, understood as PCI, written back; nothing else gets in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import FormatError, UsageError
from vfiokit.host.nccl import MAX_DEPTH, NcclSystem, Node, read, write
from vfiokit.host.source import open_host
from vfiokit.isolation import predict
from vfiokit.p2p.what_if import change
from vfiokit.pci.address import Bdf
from vfiokit.pci.edit import without

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared"))

SMALL = """\
<?xml version="1.0"?>
<!-- by hand -->
<system version="1">
  <cpu numaid="1" affinity="ff" arch="x86_64" vendor="AuthenticAMD" familyid="25" modelid="17">
    <pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">
      <pci busid="0003:00:00.0" class="0x030200" vendor="0x10de" device="0x2330"
           link_speed="32.0 GT/s PCIe" link_width="16"> <!-- GPU -->
        <gpu dev="0" sm="90"><nvlink target="0003:00:00.0" count="18" tclass="0x068000"/></gpu>
      </pci>
      <pci busid="0103:00:00.0" class="0x020700" link_speed="fast" link_width="0">
        <nic><net name="mlx5_0" dev="0" speed="400000"/><net name="a&amp;b&#10;&quot;&lt;"/></nic>
      </pci>
    </pci>
  </cpu>
</system>
"""


def files() -> list[Path]:
    folder = SHARED / "data" / "nccl"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing")
        pytest.skip(f"{folder} is not here")
    return sorted(folder.glob("*.xml"))


def test_an_edited_tree_is_still_the_one_that_the_file_states() -> None:
    topology = read(SMALL).topology()
    again = topology.with_functions(iter(topology))
    for function in topology:
        bridge, same = topology.upstream_bridge(function), again.upstream_bridge(function)
        assert (bridge and bridge.bdf) == (same and same.bdf)
    leaf = next(each for each in topology if topology.secondary(each) is None)
    fewer = without(topology, [leaf.bdf])
    assert set(fewer.functions) == set(topology.functions) - {leaf.bdf}
    for function in fewer:
        bridge, same = topology.upstream_bridge(function), fewer.upstream_bridge(function)
        assert (bridge and bridge.bdf) == (same and same.bdf)


def test_another_host_bridge_can_be_put_above_a_stated_tree() -> None:
    made = change(read(SMALL).topology(), None, ["bridge=8086:09a2@pciffff:ff", "cpu=intel"])
    bridge, gpu = Bdf.parse("ffff:ff:01.0"), Bdf.parse("0003:00:00.0")
    assert made.topology[bridge].identity[:2] == (0x8086, 0x09A2)
    above = made.topology.upstream_bridge(made.topology[gpu])
    assert above is not None
    assert above.bdf == bridge


@pytest.mark.parametrize("name", [":numaid", "numaïd", "a:b", "é"])
def test_names_that_no_topology_has_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="no name"):
        read(SMALL.replace("numaid", name))
    with pytest.raises(UsageError, match="no name"):
        write(NcclSystem(Node("system", {name: "1"}, ())))


def test_facts_of_a_file_become_functions() -> None:
    topology = read(SMALL).topology()
    switch, gpu, nic = (
        topology[Bdf.parse(text)] for text in ("ffff:ff:01.0", "0003:00:00.0", "0103:00:00.0")
    )
    assert gpu.identity == (0x10DE, 0x2330, 0x030200, 0, 0, 0)
    assert (gpu.recorded.max_link_speed, gpu.recorded.max_link_width) == ("32.0 GT/s PCIe", 16)
    assert (nic.recorded.max_link_speed, nic.recorded.max_link_width) == (None, None)
    assert switch.recorded.max_link_speed == "16.0 GT/s PCIe"
    assert {item.recorded.numa_node for item in topology} == {1}
    assert (gpu.recorded.names["gpu"], nic.recorded.names["net"]) == ("0", 'mlx5_0, a&b\n"<')
    assert (switch.is_bridge, gpu.is_bridge) == (True, False)
    assert nic.identity[:2] == (0xFFFF, 0xFFFF)  # the file has no ids of it


def test_the_tree_is_the_file_s_whatever_the_bus_numbers() -> None:
    topology = read(SMALL).topology()
    switch, gpu, nic = (
        topology[Bdf.parse(text)] for text in ("ffff:ff:01.0", "0003:00:00.0", "0103:00:00.0")
    )
    assert topology.path_to_root(nic) == (switch,)
    assert topology.secondary(switch).functions == (gpu, nic)
    assert topology.secondary(gpu) is None
    assert [str(bridge) for bridge in topology.host_bridges] == ["pciffff:ff"]
    assert str(topology.host_bridge_of(gpu)) == "pciffff:ff"
    assert topology.bus_of(gpu).bridge is switch


def test_no_group_of_it_is_called_certain() -> None:
    topology = read(SMALL).topology()
    assert set(predict(topology).uncertain) == set(topology.functions)
    assert any("every IOMMU group" in limit for limit in read(SMALL).limits)


def test_public_files_read_and_written_are_the_same() -> None:
    assert len(files()) == 5
    for path in files():
        system = read(path.read_bytes(), str(path))
        assert read(write(system)) == system, path
        assert write(read(write(system))) == write(system)
        assert system.notes == ()
        topology = open_host(str(path)).topology()
        assert len(topology) == path.read_text().count("<pci ")
        gpus = [item for item in topology if item.identity.class_code == 0x030200]
        assert len(gpus) == 8, path
        for gpu in gpus:
            assert topology.path_to_root(gpu), "every GPU is below a switch"
        assert predict(topology).uncertain == tuple(topology.functions)


def test_a_cpu_without_arch_is_pointed_out() -> None:
    system = read(SMALL.replace(' arch="x86_64"', ""))
    (note,) = system.notes
    assert "no arch" in note
    assert "refuses" in note
    assert note in system.limits
    assert read(SMALL).notes == ()


@pytest.mark.parametrize(("old", "new", "word"), [
    ('version="1"', 'version="9"', "version '9'"),
    (' version="1">', ">", "version ''"),
    ('numaid="1" ', "", "no NUMA node"),
])  # fmt: skip
def test_other_oddities_are_notes(old: str, new: str, word: str) -> None:
    text = SMALL.replace('<?xml version="1.0"?>\n', "").replace(old, new)
    assert any(word in note for note in read(text).notes)


@pytest.mark.parametrize(
    ("text", "word", "line"),
    [
        ("<graphs version='1'/>", "starts with <graphs>", 1),
        ("\n\n<system>\n<cpu>", "not well-formed", 4),
        ("<system></system><system/>", "not well-formed", 1),
        ("", "not well-formed", 1),
        ("<system>\n<pci/></system>", "busid", 2),
        ('<system>\n<pci busid="x"/></system>', "busid", 2),
        ('<system>\n<pci busid="0:1.0"/>\n<pci busid="00:01.0"/></system>', "two pci", 3),
        ('<system><pci busid="0:1.0" class="display"/></system>', "hex", 1),
        ('<system><pci busid="0:1.0" vendor="0x"/></system>', "hex", 1),
        ('<system a="1" a="2"/>', "not well-formed", 1),
        ("<system>" * 65, "inside one another", 1),
        ('<?xml version="1.0" encoding="klingon"?><system/>', "XML", 1),
        ("<system>&undefined;</system>", "not well-formed", 1),
    ],
)
def test_what_is_no_topology_is_an_error_with_its_line(text: str, word: str, line: int) -> None:
    with pytest.raises(FormatError, match=word) as caught:
        read(text, "topo.xml")
    assert str(caught.value).startswith(f"topo.xml:{line}: ")


@pytest.mark.parametrize(
    "declaration",
    [
        "<!DOCTYPE system>",
        '<!DOCTYPE system SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE s [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE s [<!ENTITY % p SYSTEM "http://example.org/"> %p;]>',
    ],
)
def test_declarations_and_entities_are_refused(declaration: str) -> None:
    with pytest.raises(FormatError, match="document type declaration"):
        read(f"{declaration}\n<system><cpu numaid='&a;'/></system>")


def test_a_hundred_thousand_elements_are_refused() -> None:
    with pytest.raises(FormatError, match="more than 65536 elements"):
        read("<system>" + "<cpu/>" * 100_000 + "</system>")


@pytest.mark.parametrize("bad", ["\x00", "\ufffe", "\ud800"])
def test_what_xml_cannot_carry_is_not_written(bad: str) -> None:
    with pytest.raises(UsageError):
        write(NcclSystem(Node("system", {"version": bad})))
    with pytest.raises(UsageError):
        write(NcclSystem(Node("sys tem", {})))


names = st.sampled_from(["cpu", "nic", "net", "gpu", "nvlink", "c2c", "xgmi", "x-y"])
values = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]) | st.sampled_from("\t\n\r"))
attributes = st.dictionaries(st.sampled_from(["dev", "count", "name", "a.b"]), values, max_size=3)
nodes = st.recursive(
    st.builds(Node, names, attributes, st.just(())),
    lambda inner: st.builds(
        Node, names, attributes, st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


@given(attributes, st.lists(nodes, max_size=4))
def test_any_tree_written_reads_back(own, children) -> None:
    system = NcclSystem(Node("system", own, tuple(children)))
    assert read(write(system)) == system


@given(st.integers(0, len(SMALL)), st.integers(0, 8), st.text(max_size=4))
def test_damaged_files_are_read_or_refused(at: int, cut: int, added: str) -> None:
    try:
        system = read((SMALL[:at] + added + SMALL[at + cut :]).encode("utf-8", "replace"))
    except FormatError:
        return
    system.topology()
    assert read(write(system)) == system


def test_depth_is_what_it_says() -> None:
    read("<system>" + "<x>" * (MAX_DEPTH - 1) + "</x>" * (MAX_DEPTH - 1) + "</system>")

"""Decoded lspci text: facts it carries are there, others are unknown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_dumps import SHARED, dumps

from vfiokit.errors import ConfigRangeError, FormatError
from vfiokit.host.lspci import LspciHost, read
from vfiokit.host.lspci_text import Detail, read_facts, read_head
from vfiokit.host.source import open_host
from vfiokit.isolation import predict
from vfiokit.pci.address import Bdf
from vfiokit.pci.bar import bars
from vfiokit.pci.capability.acs import Acs
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function

CONTROL = (
    "Control: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- "
    "SERR- FastB2B- DisINTx+"
)
STATUS = (
    "Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- "
    ">SERR- <PERR- INTx-"
)

ROOT_PORT = f"""\
00:1c.0 PCI bridge [0604]: Intel Corporation Some Root Port [1234:8d10] (rev d5) (prog-if 00)
	{CONTROL}
	{STATUS}
	Bus: primary=00, secondary=01, subordinate=04, sec-latency=0
	Capabilities: [40] Express (v2) Root Port (Slot+), MSI 00
		LnkCap:	Port #1, Speed 16GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 8GT/s (downgraded), Width x4 (downgraded)
		DevCtl2: Completion Timeout: 260ms to 900ms, TimeoutDis- LTR- OBFF Disabled, ARIFwd+
	Capabilities: [100 v1] Advanced Error Reporting
	Capabilities: [148 v1] Access Control Services
		ACSCap:	SrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
		ACSCtl:	SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
	Kernel driver in use: pcieport

"""
UPSTREAM = f"""\
01:00.0 PCI bridge [0604]: PLX Technology, Inc. Switch [10b5:8747] (prog-if 00)
	{CONTROL}
	{STATUS}
	Bus: primary=01, secondary=02, subordinate=04, sec-latency=0
	Capabilities: [68] Express (v2) Upstream Port, MSI 00
	Capabilities: [100 v1] Device Serial Number 00-00
	Kernel driver in use: pcieport

"""
ENDPOINT = f"""\
01:00.0 Ethernet controller [0200]: Red Hat, Inc. Virtio network device [1af4:1041]
	{CONTROL}
	{STATUS}
	Capabilities: [40] Express (v2) Endpoint, MSI 00
	Capabilities: [100 v1] Advanced Error Reporting

"""
GPU = f"""\
0000:02:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2330] (rev a1)
	Subsystem: NVIDIA Corporation Device [10de:16c1]
	Physical Slot: 3
	{CONTROL}
	{STATUS}
	Latency: 0, Cache Line Size: 64 bytes
	Interrupt: pin A routed to IRQ 43
	NUMA node: 1
	IOMMU group: 14
	Region 0: Memory at 93000000 (32-bit, non-prefetchable) [size=16M]
	Region 1: Memory at 39000000000 (64-bit, prefetchable) [size=16G]
	Region 3: Memory at <unassigned> (64-bit, prefetchable) [disabled] [size=32M]
	Region 5: I/O ports at e000 [size=128]
	Expansion ROM at 94000000 [virtual] [disabled] [size=512K]
	Capabilities: [60] MSI: Enable- Count=2/8 Maskable+ 64bit+
		Address: 0000000000000000  Data: 0000
	Capabilities: [78] Express (v2) Endpoint, IntMsgNum 0
		LnkSta:	Speed unknown, Width x0
	Capabilities: [c8] MSI-X: Enable+ Count=6 Masked-
		Vector table: BAR=0 offset=00b90000
		PBA: BAR=0 offset=00ba0000
	Capabilities: [100 v1] Virtual Channel
	Kernel driver in use: vfio-pci
	Kernel modules: nouveau, nvidia
"""


def machine(*parts: str) -> LspciHost:
    return read(["".join(parts).encode()])


def function(text: str) -> Function:
    return next(iter(machine(text).topology))


def capabilities(found: Function) -> list[tuple[int, int]]:
    return [(item.offset, item.id) for item in found.capabilities]


@pytest.mark.parametrize(
    ("text", "code", "ids", "name", "revision"),
    [
        ("0600: 8086:2f00 (rev 02)", 0x060000, (0x8086, 0x2F00), "", 2),
        ("0108: 144d:a808 (prog-if 02 [NVM Express])", 0x010802, (0x144D, 0xA808), "", 0),
        ("Class 0604: Device 10b5:9716 (rev aa)", 0x060400, (0x10B5, 0x9716), "", 0xAA),
        ("Class [0604]: Device [10b5:9716]", 0x060400, (0x10B5, 0x9716), "", 0),
        ("Host bridge: Intel Xeon (rev 02)", 0x060000, None, "Intel Xeon", 2),
        (
            "3D controller [0302]: NVIDIA Corporation GA107GL [A2 / A16] [10de:25b6] (rev a1)",
            0x030200,
            (0x10DE, 0x25B6),
            "NVIDIA Corporation GA107GL [A2 / A16]",
            0xA1,
        ),
        (
            "PCI bridge [0604]: Intel Corporation Device [8086:b002] (prog-if 00 [Normal decode])",
            0x060400,
            (0x8086, 0xB002),
            "Intel Corporation",
            0,
        ),
        ("Unassigned class [ff00]: Intel Device 0d93", 0xFF0000, None, "Intel Device 0d93", 0),
        ("PIC [0800]: Long & [8086... (rev 02)", 0x080000, (0x8086, 0xFFFF), "Long &", 2),
        ("Nobody knows: IBM: Unknown device 00e0", None, None, "IBM: Unknown device 00e0", 0),
        ("", None, None, "", 0),
    ],
)  # fmt: skip
def test_first_lines_are_taken_apart(text, code, ids, name, revision) -> None:
    head = read_head(text)
    assert (head.class_code, head.ids, head.name, head.revision) == (code, ids, name, revision)


def test_everything_that_a_full_text_says_is_there() -> None:
    gpu = machine(ROOT_PORT, UPSTREAM, GPU).topology[Bdf.parse("02:00.0")]
    assert gpu.identity == (0x10DE, 0x2330, 0x030000, 0xA1, 0x10DE, 0x16C1)
    recorded = gpu.recorded
    assert (recorded.driver, recorded.iommu_group, recorded.numa_node) == ("vfio-pci", 14, 1)
    assert (recorded.irq, recorded.current_link_speed) == (43, None)
    assert recorded.names == {"class": "VGA compatible controller", "device": "NVIDIA Corporation"}
    assert capabilities(gpu) == [(0x60, 5), (0x78, 0x10), (0xC8, 0x11), (0x100, 2)]
    found = {
        item.index: (item.address, item.size, item.kind, item.prefetchable) for item in bars(gpu)
    }
    assert found == {
        0: (0x93000000, 16 << 20, "memory32", False),
        1: (0x39000000000, 16 << 30, "memory64", True),
        3: (0, 32 << 20, "memory64", True),
        5: (0xE000, 128, "io", False),
    }
    assert [item.size for item in gpu.resources if item.index == 6] == [512 << 10]
    msix = gpu.capabilities.find(0x11).decode()
    assert msix["vector_table"]["offset"] == 0xB90000
    assert gpu.capabilities.find(0x05).decode()["registers"]["control"]["value"] == 0x196


def test_ports_have_their_place_type_link_and_acs() -> None:
    topology = machine(ROOT_PORT, UPSTREAM, GPU).topology
    port = topology[Bdf.parse("00:1c.0")]
    assert (port.port_type, port.header_type) == (PortType.ROOT_PORT, 1)
    assert (port.secondary_bus, port.subordinate_bus) == (1, 4)
    assert (port.acs_capability, port.acs_control) == (Acs(0x1F), Acs(0x1D))
    assert port.recorded.max_link_speed == "16.0 GT/s PCIe"
    assert (port.recorded.current_link_speed, port.recorded.current_link_width) == (
        "8.0 GT/s PCIe",
        4,
    )
    path = topology.path_to_root(topology[Bdf.parse("02:00.0")])
    assert [str(item.bdf) for item in path] == ["0000:01:00.0", "0000:00:1c.0"]
    assert port.express.raw(0x28, 2) == 0x29  # ARI forwarding, timeout code 9


def test_registers_that_the_text_leaves_out_cannot_be_read() -> None:
    gpu = function(GPU)
    for offset, width in (
        (0x10, 4),
        (0x0C, 1),
        (0x7C, 4),
        (0x104, 4),
        (0x200, 1),
        (-1, 1),
        (4095, 2),
    ):
        assert not gpu.config.has(offset, width)
        with pytest.raises(ConfigRangeError):
            gpu.config.read(offset, width)
    assert gpu.config.u16(0) == 0x10DE


def test_bar_registers_are_known_where_the_kernel_added_nothing() -> None:
    text = re.sub(r" \[size=\w+\]", "", GPU)
    gpu = function(text)
    assert [(item.index, item.address, item.size, item.kind) for item in bars(gpu)] == [
        (0, 0x93000000, None, "memory32"),
        (1, 0x39000000000, None, "memory64"),
        (3, 0, None, "memory64"),
        (5, 0xE000, None, "io"),
    ]
    assert [gpu.config.u32(at) for at in range(0x10, 0x28, 4)] == [
        *(0x93000000, 0xC, 0x390, 0xC, 0, 0xE001),
    ]
    virtual = function(text.replace("Region 1: Memory", "Region 1: [virtual] Memory"))
    assert virtual.config.has(0x10, 4)
    assert not virtual.config.has(0x14, 4)
    assert not virtual.config.has(0x24, 4)


def test_a_port_with_acs_in_full_text_is_certain() -> None:
    host = machine(ROOT_PORT, ENDPOINT)
    grouping = predict(host.topology)
    assert grouping.uncertain == ()
    assert len(grouping.groups) == 2
    assert host.limits  # of what the text never has


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (lambda text: re.sub(r"\t\tACS(Cap|Ctl).*\n", "", text), None),
        (lambda text: re.sub(r" DirectTrans-", "", text), None),
        (lambda text: re.sub(r"\tCapabilities: \[1.*\n(\t\tACS.*\n)*", "", text), None),
        (
            lambda text: re.sub(
                r"\tCap(.|\n)*\t\tACSCtl.*\n", "\tCapabilities: <access denied>\n", text
            ),
            "needs root",
        ),
        (lambda text: text.replace(" [1234:8d10]", "").replace(" [0604]", ""), "without ids"),
        (lambda text: text.splitlines()[0] + "\n", "without details"),
    ],
    ids=["no-acs-lines", "cut-acs-line", "no-extended", "denied", "names", "list"],
)
def test_a_port_whose_acs_is_not_shown_is_uncertain(change, limit) -> None:
    text = change(ROOT_PORT)
    assert text != ROOT_PORT
    host = machine(text, "\n", ENDPOINT)
    assert Bdf(0, 0, 0x1C, 0) in predict(host.topology).uncertain
    assert limit is None or any(limit in line for line in host.limits)


def test_a_port_shown_by_v_has_no_acs_settings() -> None:
    text = """\
00:1c.0 PCI bridge [0604]: Intel Corporation Some Root Port [1234:8d10] (rev d5)
	Flags: bus master, fast devsel, latency 0, IRQ 25, NUMA node 1, IOMMU group 7
	Bus: primary=00, secondary=01, subordinate=01, sec-latency=0
	Capabilities: [40] Express Root Port (Slot+), MSI 00
	Capabilities: [148] Access Control Services
"""
    host = machine(text, "\n", ENDPOINT)
    port = host.topology[Bdf(0, 0, 0x1C, 0)]
    assert (port.port_type, port.secondary_bus, port.acs) == (PortType.ROOT_PORT, 1, None)
    assert (port.recorded.irq, port.recorded.numa_node, port.recorded.iommu_group) == (25, 1, 7)
    assert predict(host.topology).undecided == (port.bdf,)
    assert predict(host.topology).uncertain == (port.bdf, Bdf(0, 1, 0, 0))
    assert any("'lspci -v'" in line for line in host.limits)


def test_an_upstream_port_alone_in_its_slot_is_uncertain_unless_its_neighbours_show() -> None:
    # Linux asks it for ACS if bit 7 of its header type is set, which lspci does not print.
    port = Bdf.parse("01:00.0")
    assert port in predict(machine(ROOT_PORT, UPSTREAM).topology).uncertain
    with_neighbour = machine(ROOT_PORT, UPSTREAM, UPSTREAM.replace("01:00.0", "01:00.1"))
    assert with_neighbour.topology.is_multifunction(with_neighbour.topology[port])
    assert port not in predict(with_neighbour.topology).uncertain


def test_functions_of_a_bare_list_are_all_uncertain() -> None:
    host = machine("00:00.0 0600: 8086:2f00\n00:1c.0 0604: 8086:8d10\n01:00.0 0200: 8086:1521\n")
    assert predict(host.topology).uncertain == tuple(host.topology.functions)


def test_endpoints_below_a_port_that_is_not_shown_are_pointed_out() -> None:
    assert any("leads to bus 0000:02" in line for line in machine(ROOT_PORT, GPU).limits)
    assert not any("leads to bus" in line for line in machine(ROOT_PORT, UPSTREAM, GPU).limits)


SRIOV = """\
	Capabilities: [160 v1] Single Root I/O Virtualization (SR-IOV)
		IOVCap:	Migration- 10BitTagReq- Interrupt Message Number: 000
		IOVCtl:	Enable+ Migration- Interrupt- MSE+ ARIHierarchy+ 10BitTagReq-
		Initial VFs: 8, Total VFs: 8, Number of VFs: 2, Function Dependency Link: 00
		VF offset: 4, stride: 2, Device ID: 10ed
"""


def with_virtual_functions(capability: str) -> LspciHost:
    head = "02:00.{} 0200: 8086:{}\n\t" + CONTROL + "\n\t" + STATUS + "\n"
    express = "\tCapabilities: [40] Express (v2) Endpoint, MSI 00\n"
    virtual = express + "\tCapabilities: [100 v1] Advanced Error Reporting\n\n"
    return machine(
        head.format(0, "10fb") + express + capability + "\n",
        head.format(4, "10ed") + virtual,
        head.format(6, "10ed") + virtual,
    )


def test_virtual_functions_are_found_through_the_text_of_their_pf() -> None:
    host = with_virtual_functions(SRIOV)
    physfns = [item.physfn for item in host.topology]
    assert physfns == [None, Bdf(0, 2, 0, 0), Bdf(0, 2, 0, 0)]
    assert not host.topology.is_multifunction(host.topology[Bdf(0, 2, 0, 0)])


def test_functions_that_may_be_virtual_ones_are_uncertain() -> None:
    host = with_virtual_functions(SRIOV.splitlines(keepends=True)[0])
    assert [item.physfn for item in host.topology] == [None] * 3
    assert len(predict(host.topology).uncertain) == 3


def test_text_and_bytes_of_one_function_complete_each_other() -> None:
    rows = "".join(f"{at:02x}: {bytes(range(at, at + 16)).hex(' ')}\n" for at in range(0, 64, 16))
    found = function(GPU + rows)
    assert found.config.data == bytes(range(64))
    assert found.recorded.driver == "vfio-pci"
    assert found.resources[0].size == 16 << 20


def test_a_list_and_details_of_one_function_are_one() -> None:
    (found,) = machine("02:00.0 0300: 10de:2330 (rev a1)\n\n", GPU).topology
    assert found.recorded.driver == "vfio-pci"
    with pytest.raises(FormatError, match="no PCI function"):
        machine("nothing\n")


def test_each_public_dump_and_its_decoded_text_agree() -> None:
    if shutil.which("lspci") is None:
        if os.environ.get("CI"):
            pytest.fail("lspci is not installed; apt-get install pciutils")
        pytest.skip("lspci is not installed (pciutils)")
    dumps()
    known = 0
    for path in sorted((SHARED / "data/lspci").iterdir()):
        bytes_ = open_host(str(path)).topology()
        decoded = subprocess.run(
            ["lspci", "-F", str(path), "-nvvv"], capture_output=True, check=True
        ).stdout
        text = read([decoded]).topology
        assert text.functions.keys() == bytes_.functions.keys()
        for ours in text:
            theirs = bytes_[ours.bdf]
            assert ours.port_type == theirs.port_type, (path, ours)
            assert ours.header_type == theirs.header_type
            assert ours.secondary_bus == theirs.secondary_bus
            known += compare_registers(ours, theirs)
    assert known > 3000


def compare_registers(ours: Function, theirs: Function) -> int:
    """Every known byte, what lspci 3.9 does not print left out; how many there were."""
    masks = {0x0E: 0x7F}  # the multifunction bit
    for item in ours.capabilities:
        if item.id == 0x05 and not item.extended:
            masks[item.offset + 3] = 0x01  # extended message data
        if item.id == 0x02 and item.extended:
            masks[item.offset] = 0  # both ids of Virtual Channel print alike
    known = [offset for offset in range(4096) if ours.config.has(offset, 1)]
    for offset in known:
        mask = masks.get(offset, 0xFF)
        assert ours.config.u8(offset) & mask == theirs.config.u8(offset) & mask, (ours, offset)
    return len(known)


LINES = [line.strip() for line in (ROOT_PORT + UPSTREAM + GPU + SRIOV).splitlines() if line.strip()]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(LINES),
            st.sampled_from(LINES).flatmap(
                lambda line: st.integers(0, len(line)).map(lambda at: line[:at])
            ),
            st.text(max_size=30),
        ),
        max_size=25,
    ),
    st.sampled_from(LINES) | st.text(max_size=40),
)
def test_no_mixture_of_lines_raises_or_lies_about_what_is_known(lines, head) -> None:
    facts = read_facts(head, lines)
    found = Function(Bdf(0, 0, 0, 0), facts.config, facts.identity, resources=facts.resources)
    for capability in found.capabilities:
        capability.decode()
    bars(found)
    assert found.acs is None or found.acs.config.has(found.acs.offset + 6, 2)
    if facts.detail is Detail.LIST:
        assert not list(found.capabilities)

"""The fuzz targets of descriptions without files, on mutations of small ones."""

from __future__ import annotations

import random
from collections.abc import Callable

import fuzz_lspci
import fuzz_nccl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_files import mutate

ROWS = "".join(f"{at:02x}: {bytes(range(at, at + 16)).hex(' ')}\n" for at in range(0, 64, 16))
TEXT = f"""\
bug report

00:1c.0 PCI bridge [0604]: Some Root Port [8086:8d10] (rev d5) (prog-if 00 [Normal decode])
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+
\tStatus: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
\tBus: primary=00, secondary=01, subordinate=01, sec-latency=0
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00
\tCapabilities: [100 v1] Access Control Services
\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-

01:00.0 Ethernet controller [0200]: Some NIC [8086:10fb]
\tFlags: bus master, fast devsel, latency 0, IRQ 25, NUMA node 1, IOMMU group 7
\tMemory at 94700000 (64-bit, non-prefetchable) [size=16K]
\tCapabilities: [a0] Express Endpoint, MSI 00
\tCapabilities: [160] Single Root I/O Virtualization (SR-IOV)
\t\tIOVCtl:\tEnable+ Migration- Interrupt- MSE+ ARIHierarchy+ 10BitTagReq-
\t\tInitial VFs: 64, Total VFs: 64, Number of VFs: 2, Function Dependency Link: 00
\t\tVF offset: 128, stride: 2, Device ID: 10ed
{ROWS}
01:10.0 0200: 8086:10ed
{ROWS}
"""  # noqa: E501
XML = """\
<system version="1"><cpu numaid="0" arch="x86_64">
<pci busid="ffff:ff:01.0" class="0x060400" link_speed="8 GT/s" link_width="16">
<pci busid="0000:10:1c.0" class="0x030200" vendor="0x10de"><gpu dev="0"/></pci>
<pci busid="0000:10:1b.0" class="0x020000"><nic><net name="a"/></nic></pci></pci></cpu></system>
"""

SEEDS = [(fuzz_lspci.one_input, TEXT.encode()), (fuzz_nccl.one_input, XML.encode())]


@pytest.mark.parametrize("one_input", [seed[0] for seed in SEEDS], ids=["lspci", "nccl"])
@given(data=st.binary(max_size=512) | st.text(max_size=200).map(str.encode))
def test_any_bytes_keep_the_invariant(one_input: Callable[[bytes], None], data: bytes) -> None:
    one_input(data)


@pytest.mark.parametrize(("one_input", "seed"), SEEDS, ids=["lspci", "nccl"])
def test_mutations_of_a_description_keep_the_invariant(
    one_input: Callable[[bytes], None], seed: bytes
) -> None:
    noise = random.Random(2)
    one_input(seed)
    one_input(seed.replace(b"\n", b"\r\n"))
    for _ in range(1500):
        one_input(mutate(seed, noise))

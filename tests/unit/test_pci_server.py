"""Conclusions from configuration bytes against what a real server's own kernel recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfiokit.host import umockdev
from vfiokit.host.sysfs import read_topology
from vfiokit.pci.bar import bars, windows
from vfiokit.pci.base_address import base_addresses
from vfiokit.pci.capability import sriov
from vfiokit.pci.topology import Topology

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGED = REPOSITORY / "src/vfiokit/data/hpe-gen9-vgpu-node.umockdev.zst"


@pytest.fixture(scope="module")
def server() -> Topology:
    if PACKAGED.exists():
        import zstandard

        with PACKAGED.open("rb") as stream:
            record = zstandard.ZstdDecompressor().stream_reader(stream).read()
    else:
        shared = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared"))
        path = shared / "data/hosts/hpe-gen9-vgpu-node.umockdev"
        if not path.exists():
            if os.environ.get("CI"):
                pytest.fail(f"{path} is missing")
            pytest.skip(f"{path} is not here")
        record = path.read_bytes()
    return read_topology(umockdev.read(record, "hpe-gen9-vgpu-node.umockdev"))


def with_vfs(server: Topology):
    return [function for function in server if server.virtual_functions(function)]


def test_vfs_are_where_offset_and_stride_put_them(server):
    assert with_vfs(server)
    for physfn in with_vfs(server):
        capability = physfn.capabilities.find_extended(0x10)
        recorded = [virtual.bdf for virtual in server.virtual_functions(physfn)]
        assert capability.value(sriov.NUM_VFS) == len(recorded)
        assert recorded == [
            sriov.vf_address(capability, physfn.bdf, index) for index in range(len(recorded))
        ]


def test_vf_bars_follow_each_other_at_their_size(server):
    for physfn in with_vfs(server):
        capability = physfn.capabilities.find_extended(0x10)
        expected = sriov.vf_base_addresses(capability)
        for number, virtual in enumerate(server.virtual_functions(physfn)):
            found = bars(virtual)
            assert [bar[:3] for bar in found] == [bar[:3] for bar in expected]
            for bar, first in zip(found, expected, strict=True):
                assert bar.size is not None
                assert bar.address == first.address + number * bar.size


def test_registers_and_the_kernel_agree_on_every_assigned_bar(server):
    checked = 0
    for function in server:
        if function.is_virtual or function.header_type:
            continue
        registers = [function.config.u32(0x10 + 4 * index) for index in range(6)]
        written = {found.index: tuple(found) for found in base_addresses(registers)}
        for bar in bars(function):
            if bar.address:
                assert written[bar.index] == bar[:4], function.bdf
                checked += 1
    assert checked >= 20


def test_every_msix_table_is_trapped_exactly(server):
    checked = 0
    for function in server:
        capability = function.capabilities.find(0x11)
        if capability is None or not capability.registers():
            continue
        table = capability.decode()["vector_table"]
        for bar in bars(function):
            trapped = [
                (window.offset, window.length)
                for window in windows(function, bar)
                if window.reason == "MSI-X table"
            ]
            here = bar.index == table["bar"]
            assert trapped == ([(table["offset"], table["length"])] if here else [])
            checked += here
    assert checked >= 20

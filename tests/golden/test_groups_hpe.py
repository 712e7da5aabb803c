"""The groups of a real server, predicted from its bytes and compared with its kernel's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vfiokit.host import umockdev
from vfiokit.host.sysfs import read_topology
from vfiokit.isolation import Rule, compare, predict
from vfiokit.isolation.viability import blockers
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGED = REPOSITORY / "src/vfiokit/data/hpe-gen9-vgpu-node.umockdev.zst"


def record() -> bytes:
    if PACKAGED.exists():
        import zstandard

        with PACKAGED.open("rb") as stream:
            return zstandard.ZstdDecompressor().stream_reader(stream).read()
    shared = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared"))
    path = shared / "data/hosts/hpe-gen9-vgpu-node.umockdev"
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is missing")
        pytest.skip(f"{path} is not here")
    return path.read_bytes()


@pytest.fixture(scope="module")
def server() -> Topology:
    return read_topology(umockdev.read(record(), "hpe-gen9-vgpu-node.umockdev"))


def test_every_recorded_group_is_predicted(server):
    assert len(server) == 226
    result = compare(predict(server), server)
    assert (result.total, result.agree, result.differences) == (106, 106, ())


def test_ids_come_out_as_recorded(server):
    grouping = predict(server)
    for function in server:
        assert grouping.of(function.bdf).id == function.recorded.iommu_group


def test_registers_alone_fall_well_short(server):
    result = compare(predict(server, quirks=False), server)
    assert result.total == 106
    assert result.agree < 90


def test_legacy_device_behind_the_pch_shares_by_function(server):
    grouping = predict(server)
    why = grouping.why(Bdf.parse("01:00.4"))
    assert why.rule is Rule.MULTIFUNCTION
    assert why.others == (Bdf.parse("01:00.0"),)
    told = "\n".join(step.text() for step in grouping.steps(Bdf.parse("01:00.4")))
    assert "root port 0000:00:1c.2 is isolated by a kernel quirk (Intel PCH root port)" in told


def test_virtual_functions_of_the_gpu_have_groups_of_their_own(server):
    grouping = predict(server)
    virtual = [function.bdf for function in server if function.is_virtual]
    assert len(virtual) == 16
    assert all(grouping.of(bdf).members == (bdf,) for bdf in virtual)


def test_machine_without_switches_leaks_nothing_and_leaves_no_doubt(server):
    grouping = predict(server)
    assert grouping.leaks(server) == ()
    assert grouping.uncertain == ()


def test_host_drivers_block_the_management_controller(server):
    group = predict(server).of(Bdf.parse("01:00.0"))
    assert set(blockers(server, group).values()) == {"hpwdt", "mgag200", "hpilo", "uhci_hcd"}


def best_of(count, call):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def fresh(topology: Topology, copies: int) -> Topology:
    """Copies in PCI domains of their own, with nothing cached."""
    return Topology(
        Function(
            function.bdf._replace(domain=copy),
            function.config,
            function.identity,
            physfn=function.physfn and function.physfn._replace(domain=copy),
        )
        for copy in range(copies)
        for function in topology
    )


@pytest.mark.slow
def test_prediction_takes_milliseconds(server):
    machines = iter([fresh(server, 1) for _ in range(5)])
    assert best_of(5, lambda: predict(next(machines))) < 0.015


@pytest.mark.slow
def test_ten_thousand_functions_take_less_than_a_second(server):
    machines = iter([fresh(server, 45) for _ in range(3)])
    assert best_of(3, lambda: predict(next(machines))) < 1.0

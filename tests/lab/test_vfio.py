"""vfiokit itself on a real kernel: assignment, VFIO, drivers, and topologies as promised."""

from __future__ import annotations

import errno

import pytest
import vfio_scenarios as scenarios

from lab_equipment import MissingError, kernel, skip_or_fail
from vfiokit.lab import Lab, LabError, Scenario
from vfiokit.pci.blueprint import Blueprint, DownstreamPort, Endpoint, Model, RootPort

pytestmark = pytest.mark.slow

MIB = 1 << 20
IOMMUS = [("lab", "intel"), ("lab", "virtio")] + [
    ("newer_lab", iommu) for iommu in ("intel", "intel-fsts", "amd", "virtio")
]
LARGE = [("lab", "intel"), ("newer_lab", "amd")]
BACKENDS = ["group", "cdev"]


@pytest.mark.parametrize(("qemu", "iommu"), IOMMUS)
def test_drivers_move_data_through_the_iommu(
    request: pytest.FixtureRequest, qemu: str, iommu: str
) -> None:
    lab: Lab = request.getfixturevalue(qemu)
    changed = lab.with_changes(iommu=iommu)
    # How much makes no difference to what translates it: once is enough for much.
    length = 16 * MIB if (qemu, iommu) in LARGE else MIB
    outcomes = changed.run_batch(
        scenario for backend in BACKENDS for scenario in _driver_scenarios(backend, length)
    )
    for backend, first in zip(BACKENDS, (0, 4), strict=True):
        edu, nvme, fault, errors = outcomes[first : first + 4]
        _check_edu(edu.require())
        stored = nvme.require()
        assert (stored["same"], stored["witnessed"]) == (True, True)
        assert sum(stored["msix_signals"]) > 0, "no interrupt came through an eventfd"
        assert stored["driver_afterwards"] == "nvme"
        assert fault.require() == {"held": "original"}
        mapped = errors.require()
        assert (mapped["first"], mapped["twice"]) == (0, errno.EEXIST), backend
        assert mapped["unaligned"] == errno.EINVAL
        if iommu.startswith("intel"):
            assert mapped["msi window"] == errno.EINVAL


def test_iommufd_can_stand_in_for_the_container(lab: Lab) -> None:
    try:
        compatible = kernel("bzImage-iommufd-compat")
    except MissingError as reason:
        skip_or_fail(reason)
    outcomes = lab.with_changes(kernel=compatible).run_batch(_driver_scenarios("group", MIB))
    _check_edu(outcomes[0].require())
    assert outcomes[1].require()["witnessed"]


def _driver_scenarios(backend: str, length: int) -> list[Scenario]:
    return [
        Scenario(scenarios.edu_dma_with_msi, (backend,)),
        Scenario(scenarios.nvme_write_and_read, (backend, "nvme0", length)),
        Scenario(scenarios.dma_to_unmapped_iova_is_refused, (backend,)),
        Scenario(scenarios.map_errors, (backend,)),
    ]


def _check_edu(moved: dict[str, object]) -> None:
    assert int(str(moved.pop("iova"))) < 1 << 28
    assert moved == {
        "alive": True,
        "factorial": 3628800,
        "interrupt": 4,
        "msi": 1,
        "came_back": "through an IOMMU",
        "driver_afterwards": "",
    }


TOPOLOGIES = [
    "rp0(sw acs(nvme:a cmb=16, nvme:b)), rp1(edu)",
    "rp(sw(port(sw acs(edu, e1000e)), edu, port)), edu, rp noacs(edu)",
    "slot(edu, pci-testdev membar=1), rp(slot(virtio-net, virtio-blk)), ivshmem size=4 at=10",
    "rp(pcie-pci-bridge(edu, pci-bridge(edu, slot(edu, edu)))), pci-bridge(edu)",
    "rp(edu), hb(rp(nvme), slot(rp(edu), rp)), hb bus=c0(rp(sw(edu)))",
    "slot(rp(edu), rp noacs(edu), rp)",
]

VENDOR_AND_DEVICE = {
    Model.EDU: ["0x1234", "0x11e8"],
    Model.NVME: ["0x1b36", "0x0010"],
    Model.IGB: ["0x8086", "0x10c9"],
    Model.E1000E: ["0x8086", "0x10d3"],
    Model.VIRTIO_NET: ["0x1af4", "0x1041"],
    Model.VIRTIO_BLK: ["0x1af4", "0x1042"],
    Model.PCI_TESTDEV: ["0x1b36", "0x0005"],
    Model.IVSHMEM: ["0x1af4", "0x1110"],
}


@pytest.mark.parametrize("text", TOPOLOGIES)
def test_every_function_is_where_its_blueprint_says(lab: Lab, text: str) -> None:
    blueprint = Blueprint.parse(text)
    ports = [node for node in blueprint.walk() if isinstance(node, RootPort | DownstreamPort)]
    found, *acs = lab.with_changes(topology=blueprint).run_batch(
        [
            scenarios.addresses,
            *(Scenario(scenarios.acs_capability, (port.name,)) for port in ports),
        ]
    )
    where = found.require()
    assert set(where) == set(blueprint.places())
    for node in blueprint.walk():
        if isinstance(node, Endpoint):
            assert where[node.name] == VENDOR_AND_DEVICE[node.model], node.name
        elif node.name in where:
            assert where[node.name] != ["missing", "missing"], node.name
    assert {port.name: outcome.require() for port, outcome in zip(ports, acs, strict=True)} == {
        port.name: port.acs for port in ports
    }


def test_acs_decides_who_shares_a_group(lab: Lab) -> None:
    with_acs, without = (
        lab.with_changes(topology=f"rp0{flag}(slot(edu:a, edu:b))").run_python(scenarios.groups)
        for flag in ("", " noacs")
    )
    assert with_acs["a"] == with_acs["b"] != with_acs["rp0"]
    assert without["a"] == without["b"] == without["rp0"]


def test_sr_iov_is_there_where_qemu_has_it(lab: Lab) -> None:
    changed = lab.with_changes(topology="rp(nvme:drive vfs=3)")
    assert changed.run_python(scenarios.total_vfs, "drive") == 3


@pytest.mark.parametrize("iommu", ["intel", "amd"])
def test_virtual_functions_of_a_network_card_open(newer_lab: Lab, iommu: str) -> None:
    changed = newer_lab.with_changes(topology="rp(igb:nic)", iommu=iommu)
    total, opened = changed.run_batch(
        [
            Scenario(scenarios.total_vfs, ("nic",)),
            Scenario(scenarios.virtual_functions_move_into_vfio, ("nic", 3)),
        ]
    )
    assert total.require() == 7
    assert opened.require() == {"groups": 4, "ids": ["8086", "10ca"], "regions": [0x4000, 0x4000]}


def test_no_iommu_is_what_the_kernel_calls_unsafe(lab: Lab) -> None:
    answer = lab.with_changes(iommu="noiommu").run(
        ["sh", "-c", "cat /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"]
    )
    assert answer.text == "Y\n"


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("rp(edu ids=1234:5678)", "cannot give a device other ids"),
        ("rp(sw(port speed=8(edu)))", "one speed and width"),
        ("hb(edu)", "takes root ports only"),
        ("rp(nvme cmb=4K)", "in MiB"),
    ],
)
def test_what_qemu_cannot_express_is_said(lab: Lab, topology: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        lab.with_changes(topology=topology).run(["true"])


@pytest.mark.parametrize("qemu", ["lab", "newer_lab"])
def test_as_many_io_windows_as_the_firmware_has_boot(
    request: pytest.FixtureRequest, qemu: str
) -> None:
    lab: Lab = request.getfixturevalue(qemu)
    topology = ", ".join(["rp(e1000e)"] * 7), ", ".join(["rp(pcie-pci-bridge)"] * 7)
    changed = lab.with_changes(topology=f"{topology[0]}, hb({topology[1]})", iommu="none")
    assert changed.run(["true"]).status == 0

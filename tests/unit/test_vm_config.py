"""What is written for each hypervisor: golden files, libvirt's schemas, and what cannot be said.

``VFIOKIT_UPDATE_GOLDEN=1`` writes the golden files anew; look at the difference before committing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm_hosts import GPU, INTEL, MIXED, NIC, REDIRECTING, SPREAD, Host, host_texts

from vfiokit.assign.vmconfig import cloud_hypervisor, crosvm, libvirt, qemu, xen
from vfiokit.assign.vmconfig.settings import GIB, MIB, Settings
from vfiokit.assign.vmconfig.writing import TARGETS, machine_of, render
from vfiokit.errors import UsageError
from vfiokit.p2p.guest import LIBVIRT, MACHINES, GuestPlan, Viommu, flat
from vfiokit.p2p.guest_tree import replicated

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vm"
SCHEMAS = Path("/usr/share/libvirt/schemas")
TREE = (
    "rp0(sw0 acs(nvme:a, nvme:b)), rp1 noacs(slot(nvme:c, nvme:d)), hb:far bus=40(rp2(sw1(nvme:e)))"
)


def host() -> Host:
    return Host(TREE, numa=True, a=GPU, b=GPU, c=NIC, d=NIC, e=GPU)


def large(given: Host) -> Settings:
    cliques = {given["a"]: 0, given["b"]: 0}
    return Settings("training", 64 * GIB, 16, GIB, hole64=512 * GIB, cliques=cliques)


def small(given: Host) -> Settings:
    return Settings(memory=4 * GIB, cpus=2)


def planned(given: Host, variant: str, target: str, viommu: Viommu = Viommu.NONE) -> GuestPlan:
    machine = machine_of(target)
    if variant == "flat":
        return flat(given.functions, machine=machine, viommu=viommu)
    seed = variant == "seed"
    return replicated(given.topology, given.functions, machine=machine, viommu=viommu, seed=seed)


CASES = {
    "qemu-flat.sh": ("qemu", "flat", Viommu.NONE, small),
    "qemu-replicated.sh": ("qemu", "replicated", Viommu.INTEL_PT, large),
    "qemu-seed.sh": ("qemu", "seed", Viommu.NONE, small),
    "qemu-virtio-iommu.sh": ("qemu", "flat", Viommu.VIRTIO, small),
    "libvirt-flat.xml": ("libvirt", "flat", Viommu.VIRTIO, small),
    "libvirt-replicated.xml": ("libvirt", "replicated", Viommu.INTEL, large),
    "cloud-hypervisor.sh": ("cloud-hypervisor", "flat", Viommu.VIRTIO, large),
    "crosvm.sh": ("crosvm", "flat", Viommu.NONE, small),
    "xl.cfg": ("xl", "flat", Viommu.NONE, small),
    "nccl-replicated.xml": ("nccl", "replicated", Viommu.NONE, large),
    "nccl-flat.xml": ("nccl", "flat", Viommu.NONE, small),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_what_was_looked_at(name: str) -> None:
    target, variant, viommu, make = CASES[name]
    given = host()
    plan = planned(given, variant, target, viommu)
    text = render(target, plan, make(given), given.topology, INTEL)
    path = GOLDEN / name
    if os.environ.get("VFIOKIT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_is_compared() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)
    assert {target for target, *_ in CASES.values()} == set(TARGETS)


# -- QEMU -------------------------------------------------------------------------------------


def device_lines(text: str) -> list[dict[str, str]]:
    words = shlex.split(text.replace("\\\n", " "))
    found = []
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option == "-device":
            model, *rest = value.split(",")
            found.append({"model": model, **dict(each.split("=", 1) for each in rest)})
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(host_texts(), st.sampled_from(["flat", "replicated", "seed"]))
def test_every_device_of_a_command_line_has_a_place_of_its_own(text: str, variant: str) -> None:
    given = Host(text)
    devices = device_lines(qemu.render(planned(given, variant, "qemu"), Settings()))
    ids = [each["id"] for each in devices]
    assert len(set(ids)) == len(ids)
    places = [(each["bus"], each["addr"]) for each in devices]
    assert len(set(places)) == len(places)
    for number, each in enumerate(devices):
        assert each["bus"] == "pcie.0" or each["bus"] in ids[:number], "bus before what is on it"
    chassis = [each["chassis"] for each in devices if "chassis" in each]
    assert len(set(chassis)) == len(chassis)
    assigned = [each["host"] for each in devices if each["model"] == "vfio-pci"]
    assert sorted(assigned) == sorted(str(function.bdf) for function in given.functions)


def test_functions_go_through_iommufd_when_asked() -> None:
    given = host()
    text = qemu.render(flat(given.functions), Settings(iommufd=True))
    assert "-object iommufd,id=iommufd0" in text
    assert text.count(",iommufd=iommufd0") == 5


@pytest.mark.parametrize("viommu", [Viommu.NONE, Viommu.INTEL, Viommu.VIRTIO], ids=str)
def test_the_machine_s_own_qemu_takes_the_arguments(viommu: Viommu) -> None:
    """The whole command line with stand-ins; QEMU builds the machine and stops."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no qemu-system-x86_64")
        pytest.skip("no qemu-system-x86_64; apt install qemu-system-x86")
    given = Host(SPREAD, numa=True)
    plan = replicated(given.topology, given.functions, viommu=viommu)
    stand_ins = {bdf: qemu.StandIn("edu") for bdf in plan.functions.values()}
    settings = Settings(memory=GIB, cpus=4, hole64=256 * GIB)
    words = [
        # No KVM, and none of the host's NUMA nodes.
        word.replace("accel=kvm", "accel=tcg").replace(",host-nodes=1,policy=bind", "")
        for word in qemu.arguments(plan, settings, stand_ins)
    ]
    words[words.index("-cpu") + 1] = "max"
    done = subprocess.run(
        [program, *words, "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"],
        input="info qtree\ninfo numa\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in plan.places:
        assert f'id "{name}"' in done.stdout
    assert "node 1 size: 512 MB" in done.stdout


# -- libvirt ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def is_valid() -> Callable[[str], object]:
    from lxml import etree

    path = SCHEMAS / "domain.rng"
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail("libvirt's schemas are missing: apt install libvirt0")
        pytest.skip("libvirt's schemas are missing: apt install libvirt0")
    schema = etree.RelaxNG(etree.parse(str(path)))

    def check(text: str) -> object:
        schema.assertValid(etree.fromstring(text.encode()))
        return etree.fromstring(text.encode())

    return check


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    host_texts(),
    st.booleans(),
    st.sampled_from(Viommu),
    st.sampled_from([0, 2 * MIB, GIB]),
    st.booleans(),
)
def test_every_domain_is_valid_by_libvirt_s_own_schema(
    is_valid: Callable[[str], object],
    text: str,
    is_flat: bool,
    viommu: Viommu,
    pages: int,
    numa: bool,
) -> None:
    given = Host(text, numa=numa)
    plan = planned(given, "flat" if is_flat else "replicated", "libvirt", viommu)
    cliques = {given.functions[0].bdf: 15}
    document = is_valid(
        libvirt.render(plan, Settings("a-b.c", 8 * GIB, 4, pages, hole64=GIB, cliques=cliques))
    )
    controllers = document.findall(".//controller")
    indices = [int(each.get("index")) for each in controllers]
    assert indices == list(range(len(indices)))
    addresses = [
        tuple(sorted(address.items()))
        for address in [*document.findall("devices/controller/address"),
                        *document.findall("devices/hostdev/address")]
    ]  # fmt: skip
    assert len(set(addresses)) == len(addresses)
    assert all(int(dict(each)["bus"], 16) in indices for each in addresses)
    assert len(document.findall("devices/hostdev")) == len(given.functions)
    assert len(document.findall(".//{*}property[@name='x-nv-gpudirect-clique']")) == 1


def test_domains_of_golden_files_are_valid(is_valid: Callable[[str], object]) -> None:
    for path in GOLDEN.glob("libvirt-*.xml"):
        is_valid(path.read_text(encoding="utf-8"))


def test_a_root_port_without_acs_takes_an_override() -> None:
    given = Host(MIXED)
    text = libvirt.render(planned(given, "replicated", "libvirt"), Settings())
    assert text.count("name='disable-acs' type='bool' value='true'") == 1


# -- what cannot be said ----------------------------------------------------------------------


def test_what_a_hypervisor_cannot_express_is_an_error() -> None:
    given = Host(REDIRECTING)
    for variant in ("flat", "replicated"):
        plan = planned(given, variant, "qemu")
        for renderer in (cloud_hypervisor, crosvm, xen):
            with pytest.raises(UsageError, match="no PCI ports"):
                renderer.render(plan, Settings())
    with pytest.raises(UsageError, match="seed variant"):
        libvirt.render(planned(given, "seed", "libvirt"), Settings())
    with pytest.raises(UsageError, match="iommufd"):
        libvirt.render(planned(given, "flat", "libvirt"), Settings(iommufd=True))
    for target, renderer in (("cloud-hypervisor", cloud_hypervisor), ("crosvm", crosvm)):
        with pytest.raises(UsageError, match="virtio"):
            renderer.render(planned(given, "flat", target, Viommu.INTEL), Settings())
    with pytest.raises(UsageError, match="no IOMMU"):
        xen.render(planned(given, "flat", "xl", Viommu.VIRTIO), Settings())
    with pytest.raises(UsageError, match="huge pages"):
        xen.render(planned(given, "flat", "xl"), Settings(hugepages=GIB))


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(UsageError, match="is none of qemu, libvirt"):
        machine_of("bhyve")


def test_every_hypervisor_has_a_machine() -> None:
    assert set(MACHINES) == set(TARGETS) - {"nccl"}
    assert machine_of("libvirt") is LIBVIRT


def test_spread_functions_keep_their_order_in_every_target() -> None:
    given = Host(SPREAD)
    for target in ("cloud-hypervisor", "crosvm", "xl"):
        text = render(target, planned(given, "flat", target), Settings(), given.topology, None)
        order = [text.index(str(given[name])) for name in "abcd"]
        assert order == sorted(order)

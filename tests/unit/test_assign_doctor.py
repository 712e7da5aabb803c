"""Every question of the doctor, on a host where the answer is yes and on one where it is no."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import pytest
from doctor_host import ADDRESS, DEVICES, HEALTHY, IOMMU, Host, of, worst
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.assign.doctor import Finding, Severity, Verdict, examine, verdict
from vfiokit.assign.doctor.unit import Unit, decode_amd, decode_intel
from vfiokit.host.archive import read_capture, write_capture
from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import RecordedTree
from vfiokit.machine.twin import build_twin

PROBLEM, WARNING, NOTE = Severity.PROBLEM, Severity.WARNING, Severity.NOTE
OK, UNKNOWN = Severity.OK, Severity.UNKNOWN
GIB = 1 << 30
DRIVE = f"{DEVICES}/{{drive}}"
NET = f"{DEVICES}/{{net}}"
ONE = f"{DEVICES}/{{one}}"
Changes = Mapping[str, bytes | str | None]

NO_GROUPS: Changes = {
    "/sys/kernel/iommu_groups": None,
    "/sys/class/iommu": None,
    **{f"{DEVICES}/{address}/iommu_group": None for address in ADDRESS.values()},
}
"""What an IOMMU that is off leaves, for the functions that tests choose."""


def everything_without_iommu() -> Host:
    host = Host(NO_GROUPS)
    links = {p: t for p, t in host.tree.links() if not p.endswith(("/iommu_group", "/iommu"))}
    made = Host()
    made.tree = RecordedTree(dict(host.tree.files()), links)
    made.topology = read_topology(made.tree)
    return made


def cmdline(words: str) -> Changes:
    return {"/proc/cmdline": f"root=/dev/sda1 {words} quiet\n".encode()}


def hex_cap(
    *, width: int = 48, sagaw: int = 0x4, caching: bool = False, posted: bool = True
) -> bytes:
    value = sagaw << 8 | (width - 1) << 16 | caching << 7 | posted << 59
    return f"{value:x}\n".encode()


def test_a_host_in_order_is_ready() -> None:
    findings = Host().examine("drive", memory_size=8 * GIB)
    assert verdict(findings) is Verdict.READY
    assert {each.severity for each in findings} <= {OK, NOTE}
    assert {each.id for each in findings if each.severity is NOTE} == {"identical"}


# question, changes that answer it with no, functions, what it becomes, and on the healthy host
CASES: list[tuple[str, Changes, tuple[str, ...], Severity, Severity | None]] = [
    # IOMMU
    ("iommu-mode", {"/sys/kernel/iommu_groups/6/type": b"identity\n"}, ("drive",), NOTE, OK),
    ("iommu-mode", {"/sys/kernel/iommu_groups/6/type": b"DMA-FQ\n"}, ("drive",), NOTE, OK),
    ("iommu-group", {"/sys/kernel/iommu_groups/6/name": b"vfio-noiommu\n"}, ("drive",), PROBLEM,
     None),
    ("iommu-group", {f"{DRIVE}/iommu_group": None}, ("drive",), PROBLEM, None),
    ("firmware-mapping", {"/sys/kernel/iommu_groups/6/reserved_regions":
                          b"0x00000000bdf6f000 0x00000000bdf6ffff direct\n"
                          b"0x00000000fee00000 0x00000000feefffff msi\n"}, ("drive",), PROBLEM,
     None),
    ("firmware-mapping", {"/sys/kernel/iommu_groups/6/reserved_regions":
                          b"0x00000000bdf6f000 0x00000000bdf6ffff direct-relaxable\n"},
     ("drive",), None, None),  # type: ignore[list-item]
    ("firmware-mapping", {"/sys/kernel/iommu_groups/6/reserved_regions": None}, ("drive",),
     UNKNOWN, None),
    ("device-nodes", {"/boot/config-6.12.0-test": b"CONFIG_VFIO_PCI=m\n"}, (), NOTE, None),
    ("device-nodes", {"/boot/config-6.12.0-test": b"CONFIG_VFIO_DEVICE_CDEV=y\n"}, (), None, None),  # type: ignore[list-item]
    ("iommu-coherency", {f"{IOMMU}/ecap": b"f0205f\n"}, (), NOTE, None),
    ("iommu-emulated", {f"{IOMMU}/cap": hex_cap(caching=True)}, (), NOTE, None),
    ("iommu-unit", {f"{IOMMU}/cap": b"nonsense", f"{IOMMU}/ecap": b""}, (), UNKNOWN, OK),
    # interrupts
    ("interrupt-remapping", {"/sys/kernel/irq/24/chip_name": b"PCI-MSI\n"}, (), PROBLEM, OK),
    ("interrupt-remapping", {"/sys/kernel/irq/24/chip_name": b"ITS-MSI\n"}, (), OK, OK),
    ("interrupt-remapping", {"/sys/kernel/irq": None}, (), UNKNOWN, OK),
    ("interrupt-remapping", {"/sys/kernel/irq": None, f"{IOMMU}/ecap": b"f020d7\n"}, (), PROBLEM,
     OK),
    ("interrupt-remapping", {"/sys/kernel/irq": None, **cmdline("intremap=off")}, (), PROBLEM, OK),
    ("interrupt-remapping",
     {"/sys/kernel/irq/24/chip_name": b"PCI-MSI\n",
      "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": b"Y\n"}, (), WARNING, OK),
    ("unsafe-interrupts",
     {"/sys/module/iommufd/parameters/allow_unsafe_interrupts": b"Y\n"}, (), WARNING, None),
    # options
    *(("kernel-options", cmdline(words), (), severity, OK) for words, severity in (
        ("intel_iommu=off", PROBLEM), ("intel_iommu=on,sm_on", OK), ("amd_iommu=off", PROBLEM),
        ("iommu=soft", PROBLEM), ("iommu=pt", OK), ("intremap=nosid", WARNING),
        ("pcie_acs_override=downstream,multifunction", WARNING),
        ("pci=noaer,config_acs=101xx@pci:0:0", WARNING),
        ("pci=disable_acs_redir=pci:8086:1;00:01.0", WARNING), ("pci=noats", NOTE),
        ("pci=noacs", NOTE), ("amd_iommu=on", NOTE), ("intel_iommu=on,igfx_off", NOTE),
        ("vfio-iommu-type1.allow_unsafe_interrupts=1", WARNING),
        ("vfio_iommu_type1.allow_unsafe_interrupts=0", OK),
        ("vfio.enable_unsafe_noiommu_mode=Y", WARNING), ("-- intel_iommu=off", OK),
    )),
    ("kernel-options", {"/proc/cmdline": None}, (), UNKNOWN, OK),
    ("noiommu-mode", {"/sys/module/vfio/parameters/enable_unsafe_noiommu_mode": b"Y\n"}, (),
     WARNING, None),
    ("lockdown", {"/sys/kernel/security/lockdown": b"none [integrity] confidentiality\n"}, (),
     NOTE, None),
    # kernel
    ("address-spaces", {"/dev/iommu": None}, (), NOTE, OK),
    ("address-spaces", {"/dev/vfio/vfio": None}, (), NOTE, OK),
    ("address-spaces", {"/dev/vfio/vfio": None, "/dev/iommu": None}, (), WARNING, OK),
    ("mapping-limit", {"/sys/module/vfio_iommu_type1/parameters/dma_entry_limit": b"100\n"}, (),
     NOTE, None),
    ("device-node", {f"{DRIVE}/driver": "../../../../bus/pci/drivers/vfio-pci"}, ("drive",),
     PROBLEM, None),
    ("device-node", {f"{DRIVE}/driver": "../../../../bus/pci/drivers/vfio-pci",
                     "/dev/vfio/6": b""}, ("drive",), OK, None),
    # isolation
    ("group", {f"{DEVICES}/{{two}}/driver": "../../../../bus/pci/drivers/igb"}, ("one",), WARNING,
     OK),
    # reset and power
    ("reset", {f"{DRIVE}/reset_method": None, f"{DRIVE}/reset": None}, ("drive",), PROBLEM, OK),
    ("reset", {f"{DRIVE}/reset_method": b"pm\n"}, ("drive",), WARNING, OK),
    ("reset", {f"{DRIVE}/reset_method": None}, ("drive",), OK, OK),
    ("power", {f"{DRIVE}/power_state": b"D3cold\n"}, ("drive",), WARNING, None),
    ("answering", {f"{DRIVE}/config": b"\xff" * 256}, ("drive",), PROBLEM, None),
    # the device
    ("sriov", {f"{DRIVE}/sriov_numvfs": b"4\n"}, ("drive",), PROBLEM, None),
    ("sriov", {f"{DRIVE}/sriov_numvfs": b"0\n"}, ("drive",), None, None),  # type: ignore[list-item]
    ("bar", {f"{DRIVE}/resource": b"0x0 0x3fff 0x20140204\n"}, ("drive",), PROBLEM, None),
    ("large-bars", {f"{DRIVE}/resource": b"0x800000000 0xbffffffff 0x14220c\n"}, ("drive",), NOTE,
     None),
    ("assignable", {f"{DRIVE}/vendor": b"0x8086\n", f"{DRIVE}/device": b"0x37c8\n"}, ("drive",),
     PROBLEM, None),
    ("assignable", {f"{DRIVE}/vendor": b"0x8086\n", f"{DRIVE}/device": b"0x37c8\n",
                    "/sys/module/vfio_pci/parameters/disable_denylist": b"Y\n"}, ("drive",),
     None, None),  # type: ignore[list-item]
    ("numa", {"/sys/devices/system/node/online": b"0-1\n"}, ("drive",), NOTE, None),
    ("numa", {"/sys/devices/system/node/online": b"0-1\n", f"{DRIVE}/numa_node": b"1\n"},
     ("drive",), OK, None),
    # its driver
    ("driver", {f"{DRIVE}/driver": "../../../../bus/pci/drivers/amdgpu"}, ("drive",), WARNING, OK),
    ("boot-display", {f"{DRIVE}/boot_vga": b"1\n",
                      "/sys/devices/platform/efi-framebuffer.0/uevent": b""}, ("drive",), WARNING,
     None),
    ("boot-display", {f"{DRIVE}/boot_vga": b"1\n"}, ("drive",), None, None),  # type: ignore[list-item]
    ("bind-by-id", cmdline("vfio-pci.ids=1b36:0010,10de:1"), (), WARNING, None),
    ("bind-by-id", {"/sys/module/vfio_pci/parameters/ids": b"1b36:0010\n"}, (), WARNING, None),
    ("bind-by-id", cmdline("vfio-pci.ids=8086:10c9"), (), None, None),  # type: ignore[list-item]
    # memory, without a size
    ("memlock", {"/proc/self/limits": None}, (), UNKNOWN, OK),
    ("memory", {}, (), None, None),  # type: ignore[list-item]
    ("hugepages", {"/sys/kernel/mm/hugepages": None}, (), UNKNOWN, OK),
    ("address-width", {"/proc/cpuinfo": None}, (), UNKNOWN, OK),
    ("address-width", {f"{IOMMU}/cap": hex_cap(width=39, sagaw=0x2)}, (), WARNING, OK),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "devices", "severity", "healthy"),
    CASES,
    ids=[f"{index}-{case[0]}-{case[3]}" for index, case in enumerate(CASES)],
)
def test_a_question_is_answered_both_ways(
    name: str,
    changes: Changes,
    devices: tuple[str, ...],
    severity: Severity | None,
    healthy: Severity | None,
) -> None:
    assert worst(Host().examine(*devices), name) is healthy
    findings = Host(changes).examine(*devices)
    assert worst(findings, name) is severity
    for finding in findings:
        assert finding.what
        assert not finding.what.endswith(".")
        if finding.severity in (PROBLEM, UNKNOWN):
            assert finding.remedy, finding
            assert finding.evidence, finding


GUESTS: list[tuple[str, Changes, int, Severity]] = [
    ("memory", {}, 64 * GIB, OK),
    ("memory", {}, 124 * GIB, WARNING),
    ("memory", {}, 256 * GIB, PROBLEM),
    ("memory", {"/proc/meminfo": None}, GIB, UNKNOWN),
    ("hugepages", {}, 16 * GIB, OK),
    ("hugepages", {}, 17 * GIB, NOTE),
    ("memlock", {"/proc/self/limits": b"Max locked memory  8388608  8388608  bytes\n"}, 8 << 20,
     WARNING),
    ("memlock", {"/proc/self/limits": b"Max locked memory  4294967296  4294967296  bytes\n"},
     2 * GIB, OK),
    ("memlock", {"/proc/self/limits": b"Max locked memory  8388608  8388608  bytes\n"}, GIB,
     PROBLEM),
    ("memlock", {"/proc/self/limits": b"Max locked memory  8388608  8388608  bytes\n",
                 "/proc/self/status": b"CapEff:\t000001ffffffffff\n"}, GIB, NOTE),
    ("memory-cgroup", {"/proc/self/cgroup": b"0::/vm.slice/a.scope\n",
                       "/sys/fs/cgroup/vm.slice/memory.max": b"1073741824\n"}, 2 * GIB, PROBLEM),
    ("address-width", {f"{IOMMU}/cap": hex_cap(width=36, sagaw=0x2)}, 61 * GIB, PROBLEM),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "size", "severity"), GUESTS)
def test_a_guest_s_memory_is_held_against_the_host(
    name: str, changes: Changes, size: int, severity: Severity
) -> None:
    assert worst(Host(changes).examine(memory_size=size), name) is severity


def test_remedy_for_huge_pages_makes_enough_free_ones() -> None:
    files = {
        "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": b"3\n",
        "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": b"16\n",
    }
    (finding,) = of(Host(files).examine(memory_size=20 * GIB), "hugepages")
    # 13 are in use and stay so.
    assert finding.remedy.startswith("echo 33 > ")


def test_huge_pages_are_counted_on_the_node_of_the_device() -> None:
    node = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB"
    files = {
        f"{DRIVE}/numa_node": b"1\n",
        f"{node}/free_hugepages": b"0\n",
        f"{node}/nr_hugepages": b"0\n",
    }
    (finding,) = of(Host(files).examine("drive", memory_size=8 * GIB), "hugepages")
    assert finding.severity is NOTE
    assert f"echo 4096 > {node}/nr_hugepages" == finding.remedy


# --- the IOMMU that is off ---


def test_iommu_off_is_blamed_on_the_kernel_when_the_firmware_offers_one() -> None:
    host = everything_without_iommu()
    (finding,) = of(host.examine(), "iommu")
    assert finding.severity is PROBLEM
    assert finding.remedy.endswith("intel_iommu=on")
    assert verdict(host.examine()) is Verdict.NOT_READY


def test_iommu_off_is_blamed_on_a_kernel_that_was_built_without() -> None:
    host = everything_without_iommu()
    files = {**dict(host.tree.files()), "/boot/config-6.12.0-test": b"CONFIG_PCI=y\n"}
    host.tree = RecordedTree(files, dict(host.tree.links()))
    (finding,) = of(host.examine(), "iommu")
    assert finding.remedy.endswith("built with CONFIG_INTEL_IOMMU")


def test_iommu_off_is_blamed_on_the_option_that_turned_it_off() -> None:
    host = everything_without_iommu()
    files = {**dict(host.tree.files()), "/proc/cmdline": b"quiet intel_iommu=off\n"}
    host.tree = RecordedTree(files, dict(host.tree.links()))
    (finding,) = of(host.examine(), "iommu")
    assert finding.remedy.startswith("take intel_iommu=off out")


def test_iommu_off_is_blamed_on_the_firmware_when_it_has_no_table() -> None:
    host = everything_without_iommu()
    files = {p: c for p, c in host.tree.files() if not p.endswith("/DMAR")}
    files["/sys/firmware/acpi/tables/APIC"] = b""
    host.tree = RecordedTree(files, dict(host.tree.links()))
    (finding,) = of(host.examine(), "iommu")
    assert finding.severity is PROBLEM
    assert "VT-d" in finding.remedy


def test_iommu_that_is_not_recorded_is_unknown_and_nobody_calls_the_host_ready() -> None:
    host = everything_without_iommu()
    findings = host.examine(complete=False)
    assert worst(findings, "iommu") is UNKNOWN
    assert verdict(findings) is Verdict.UNKNOWN


def test_dmar_flags_explain_why_interrupts_are_not_remapped() -> None:
    files: Changes = {
        "/sys/kernel/irq/24/chip_name": b"PCI-MSI\n",
        "/sys/firmware/acpi/tables/DMAR": b"DMAR".ljust(36, b"\0") + bytes((45, 0x03)),
    }
    (finding,) = of(Host(files).examine(), "interrupt-remapping")
    assert finding.remedy.startswith("boot with intremap=no_x2apic_optout")
    assert any("flags 0x03" in each.content for each in finding.evidence)


# --- modules ---

NO_VFIO: Changes = {
    "/sys/bus/pci/drivers/vfio-pci": None,
    "/sys/module/vfio_pci": None,
    "/proc/modules": b"nvme 1 0 - Live 0x0\n",
}
MODULES = "/lib/modules/6.12.0-test"


@pytest.mark.parametrize(
    ("more", "severity", "word"),
    [
        ({f"{MODULES}/modules.dep": b"kernel/drivers/vfio/pci/vfio-pci.ko.zst: x\n"}, WARNING,
         "yet"),
        ({f"{MODULES}/modules.builtin": b"kernel/drivers/vfio/pci/vfio-pci.ko\n"}, WARNING, "yet"),
        ({f"{MODULES}/modules.dep": b"kernel/a/b.ko:\n"}, PROBLEM, "has no vfio-pci"),
        ({"/boot/config-6.12.0-test": b"CONFIG_VFIO_PCI=m\n"}, WARNING, "yet"),
        ({"/boot/config-6.12.0-test": b"# CONFIG_VFIO_PCI is not set\n"}, PROBLEM, "no vfio-pci"),
        ({"/proc/config.gz": gzip.compress(b"CONFIG_VFIO_PCI=y\n")}, WARNING, "yet"),
        ({"/proc/config.gz": b"not packed"}, WARNING, "not known"),
        ({"/proc/sys/kernel/modules_disabled": b"1\n"}, PROBLEM, "loads no more"),
        (cmdline("nomodule"), PROBLEM, "loads no more"),
        ({}, WARNING, "not known"),
    ],
)  # fmt: skip
def test_a_missing_vfio_pci_is_explained(more: Changes, severity: Severity, word: str) -> None:
    (finding,) = of(Host({**NO_VFIO, **more}).examine(), "vfio-pci")
    assert finding.severity is severity
    assert word in finding.what


def test_vfio_pci_of_a_capture_without_modules_is_unknown() -> None:
    findings = Host({**NO_VFIO, "/proc/modules": None}).examine(complete=False)
    assert worst(findings, "vfio-pci") is UNKNOWN


# --- isolation and reset ---


def test_companions_are_named_with_the_reason() -> None:
    changes = {f"{DEVICES}/{{two}}/driver": "../../../../bus/pci/drivers/igb"}
    (finding,) = of(Host(changes).examine("one"), "group")
    assert f"{ADDRESS['two']} (igb)" in finding.what
    assert finding.evidence[-1].source == "by the registers"
    assert finding.evidence[-1].content.startswith(f"{ADDRESS['two']} shares group 7 with")
    # Named together, nobody is taken along by surprise.
    assert worst(Host(changes).examine("one", "two"), "group") is OK


def test_isolation_that_only_an_option_makes_is_not_believed() -> None:
    path = f"{DEVICES}/{{two}}/iommu_group"
    changes = {path: "../../../../kernel/iommu_groups/90", **cmdline("pcie_acs_override=id:1:2")}
    (finding,) = of(Host(changes).examine("one"), "acs-belief")
    assert "pcie_acs_override=id:1:2" in finding.what
    assert ADDRESS["two"] in finding.what
    assert not of(Host().examine("one"), "acs-belief")


def test_a_switch_that_forwards_between_its_ports_is_a_leak_for_those_below_it() -> None:
    assert worst(Host().examine("left"), "peer-leak") is WARNING
    assert worst(Host().examine("drive"), "peer-leak") is None


def test_a_group_with_the_boot_disk_is_a_problem() -> None:
    two = f"{DEVICES}/{{two}}"
    folder = f"{two}/nvme/nvme9/nvme9n1"
    changes: Changes = {
        f"{two}/driver": "../../../../bus/pci/drivers/nvme",
        f"{folder}/dev": b"259:7\n",
        f"{folder}/size": b"2048\n",
        f"{folder}/subsystem": "../../../../../../../../class/block",
        "/proc/mounts": b"/dev/nvme9n1 / ext4 rw 0 0\n",
        "/proc/self/mountinfo": b"22 1 259:7 / / rw shared:1 - ext4 /dev/nvme9n1 rw\n",
    }
    host = Host(changes)
    at = f"{host.tree.real_path(two.format(**ADDRESS))}/nvme/nvme9/nvme9n1"
    links = {**dict(host.tree.links()), "/sys/class/block/nvme9n1": f"../../..{at}"}
    host.tree = RecordedTree(dict(host.tree.files()), links)
    assert worst(host.examine("one"), "group") is PROBLEM
    assert worst(host.examine("two"), "in-use") is PROBLEM


def test_bus_reset_names_functions_outside_the_group() -> None:
    host = Host({f"{DEVICES}/{{two}}/iommu_group": "../../../../kernel/iommu_groups/90"})
    (finding,) = of(host.examine("one"), "hot-reset")
    assert finding.severity is NOTE
    assert ADDRESS["two"] in finding.evidence[0].content
    assert worst(Host().examine("one"), "hot-reset") is OK
    assert worst(Host().examine("drive"), "hot-reset") is None


def test_acs_that_cannot_be_read_is_unknown() -> None:
    config = dict(Host().tree.files())
    port = f"{DEVICES}/0000:00:02.0"
    real = Host().tree.real_path(port)
    host = Host({f"{port}/config": config[f"{real}/config"][:64]})
    (finding,) = of(host.examine("drive"), "acs")
    assert finding.severity is UNKNOWN
    assert finding.remedy.startswith("sudo ")


def test_a_bridge_cannot_be_assigned() -> None:
    host = Host()
    bridge = next(each for each in host.topology if each.is_bridge)
    findings = examine(host.tree, host.topology, [bridge], complete=True)
    assert worst(findings, "assignable") is PROBLEM


# --- registers of IOMMU units, decoded by hand ---


def test_haswell_registers_decode_as_the_datasheet_says() -> None:
    unit = decode_intel(Unit("dmar0", "intel"), 0xD2078C106F0466, 0xF020DF)
    assert unit.address_bits == 48
    assert (unit.interrupt_remapping, unit.snoop_control, unit.coherent_walks) == (True,) * 3
    assert (unit.pasid, unit.nested, unit.posted_interrupts, unit.caching_mode) == (False,) * 4


def test_a_client_processor_s_unit_has_39_bits() -> None:
    assert decode_intel(Unit("dmar0", "intel"), 0x1C0000C40660462, 0x19E2FF0505E).address_bits == 39
    assert decode_intel(Unit("dmar0", "intel"), 0x1C0000C40660462, None).snoop_control is None


def test_amd_features_give_the_levels_of_the_host_tables() -> None:
    assert decode_amd(Unit("ivhd0", "amd"), 0, 0).address_bits == 48
    assert decode_amd(Unit("ivhd0", "amd"), 0, 2 << 10).address_bits == 64
    assert decode_amd(Unit("ivhd0", "amd"), 0, 3 << 10).address_bits is None
    assert decode_amd(Unit("ivhd0", "amd"), 0, None).interrupt_remapping is True


def test_amd_units_are_read_from_their_files() -> None:
    changes: Changes = {
        "/sys/class/iommu/dmar0": None,
        "/sys/class/iommu/ivhd0/amd-iommu/cap": b"90000000\n",
        "/sys/class/iommu/ivhd0/amd-iommu/features": b"25bf732fa2295afe:1d\n",
        "/proc/cpuinfo": b"vendor_id : AuthenticAMD\naddress sizes\t: 52 bits physical, 57 v\n",
    }
    findings = Host(changes).examine()
    (unit,) = of(findings, "iommu-unit")
    # HATS is 10b: six levels.
    assert "64-bit IOVAs" in unit.what
    assert worst(findings, "address-width") is OK


# --- whole hosts ---


def test_findings_come_worst_first() -> None:
    ranks = [each.severity.rank for each in Host(cmdline("iommu=off pci=noats")).examine("drive")]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0


def test_the_recorded_server_is_not_judged_by_guesses() -> None:
    tree = open_tree("demo")
    topology = read_topology(tree)
    drive = next(each for each in topology if str(each.bdf) == "0000:05:00.0")
    findings = examine(tree, topology, [drive])
    assert worst(findings, "iommu") is OK
    assert worst(findings, "reset") is OK
    for name in ("interrupt-remapping", "memlock", "kernel-options", "vfio-pci", "in-use"):
        assert worst(findings, name) is UNKNOWN, name
    assert not [each for each in findings if each.severity is PROBLEM]
    assert verdict(findings) is Verdict.UNKNOWN


def test_every_function_of_the_recorded_server_can_be_examined() -> None:
    tree = open_tree("demo")
    topology = read_topology(tree)
    findings = examine(tree, topology, list(topology))
    told = {each.device for each in findings}
    assert all(function.bdf in told for function in topology)
    # The A2 has its 16 virtual functions enabled.
    assert any(each.id == "sriov" and each.severity is PROBLEM for each in findings)


def test_the_twin_answers_what_its_software_knows() -> None:
    twin = build_twin(open_tree("demo"))
    topology = twin.topology()
    drive = next(each for each in topology if str(each.bdf) == "0000:05:00.0")
    before = twin.kernel.snapshot()
    findings = examine(twin.kernel.tree, topology, [drive])
    assert worst(findings, "vfio-pci") is OK
    assert worst(findings, "address-spaces") is OK
    assert worst(findings, "iommu-mode") is NOTE
    assert twin.kernel.snapshot() == before


def captured(tree: RecordedTree, folder: Path) -> RecordedTree:
    return read_capture(write_capture(tree, str(folder / "host.tar.zst")).path)


def test_a_capture_gets_the_same_answers_as_its_host(tmp_path: Path) -> None:
    host = Host(cmdline("pcie_acs_override=downstream"))
    tree = captured(host.tree, tmp_path)
    topology = read_topology(tree)
    chosen = [topology[each.bdf] for each in host.topology if str(each.bdf) == ADDRESS["drive"]]
    here = {(each.id, each.severity, each.what) for each in host.examine("drive")}
    there = {(each.id, each.severity, each.what) for each in examine(tree, topology, chosen)}
    # The limits of whoever captures are not those of whoever runs a guest.
    assert {name for name, _, _ in here ^ there} == {"memlock"}


def test_a_capture_of_a_host_without_iommu_says_so(tmp_path: Path) -> None:
    host = everything_without_iommu()
    tree = captured(host.tree, tmp_path)
    findings = examine(tree, read_topology(tree))
    (finding,) = of(findings, "iommu")
    assert finding.severity is PROBLEM
    assert finding.remedy.endswith("intel_iommu=on")


HOST_PATHS = sorted(path for path in dict(Host().tree.files()) if "/pci0000:00/" not in path)
"""Every file of the healthy host that is not a function's own."""


@given(gone=st.sets(st.sampled_from(HOST_PATHS), max_size=len(HOST_PATHS)), guest=st.booleans())
def test_files_that_a_capture_lacks_never_make_a_problem(gone: set[str], guest: bool) -> None:
    whole = Host()
    files = {path: data for path, data in whole.tree.files() if path not in gone}
    whole.tree = RecordedTree(files, dict(whole.tree.links()))
    whole.topology = read_topology(whole.tree)
    findings = whole.examine("drive", "one", memory_size=GIB if guest else None, complete=False)
    assert not [each for each in findings if each.severity is PROBLEM]
    for finding in findings:
        if finding.severity is UNKNOWN:
            assert finding.remedy
            assert finding.evidence


@given(
    st.dictionaries(
        st.sampled_from(HOST_PATHS),
        st.binary(max_size=20) | st.sampled_from([b"Y\n", b"-1\n", b"9" * 30, b"DMAR", b"0x\n"]),
        max_size=8,
    )
)
def test_garbled_files_raise_nothing(noise: dict[str, bytes]) -> None:
    findings = Host(noise).examine("drive", "one", memory_size=GIB)
    assert {each.id for each in findings} >= {"iommu", "interrupt-remapping", "reset"}


def test_odd_content_raises_nothing() -> None:
    noise = {path: b"\xff\x00 \x01no\n" for path in HEALTHY if not path.endswith("ecap")}
    findings: tuple[Finding, ...] = Host(noise).examine("drive", "one", memory_size=GIB)
    assert findings

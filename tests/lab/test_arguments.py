"""What a topology and an IOMMU become on QEMU's command line."""

from __future__ import annotations

import pytest

from vfiokit.errors import UsageError
from vfiokit.lab.failure import UnsupportedError
from vfiokit.lab.preset import Iommu, cpu_model, iommu_setup, parse_iommu
from vfiokit.lab.qemu_arguments import Disk, build
from vfiokit.pci.blueprint import Blueprint


class OldQemu:
    """Knows every model and only the properties of Debian 12's QEMU that matter."""

    version = "7.2.22"
    properties = frozenset({("pcie-root-port", "disable-acs"), ("pcie-root-port", "x-speed")})
    lacks = frozenset({"igb"})

    def has_property(self, device: str, name: str) -> bool:
        return (device, name) in self.properties

    def require(self, device: str, what: str) -> None:
        if device in self.lacks:
            raise UnsupportedError(f"{what}: no {device}")


class NewQemu(OldQemu):
    version = "11.1.3"
    properties = frozenset(
        {
            ("pcie-root-port", "x-speed"),
            ("intel-iommu", "fsts"),
            ("intel-iommu", "scalable-mode"),
            ("amd-iommu", "dma-remap"),
        }
    )
    lacks = frozenset()


def devices(text: str, qemu: OldQemu | None = None) -> list[str]:
    words = build(Blueprint.parse(text), qemu or OldQemu(), "/disks").arguments
    return [words[index + 1] for index, word in enumerate(words) if word == "-device"]


def test_a_switch_with_acs_has_root_ports_for_downstream_ports() -> None:
    assert devices("rp0(sw acs(edu:a, edu:b)), rp1(edu)") == [
        "pcie-root-port,id=dev-rp0,bus=pcie.0,addr=02.0,chassis=1,slot=1",
        "x3130-upstream,id=dev-sw0,bus=dev-rp0,addr=00.0",
        "pcie-root-port,id=dev-sw0.0,bus=dev-sw0,addr=00.0,chassis=2,slot=2",
        "edu,id=dev-a,bus=dev-sw0.0,addr=00.0",
        "pcie-root-port,id=dev-sw0.1,bus=dev-sw0,addr=01.0,chassis=3,slot=3",
        "edu,id=dev-b,bus=dev-sw0.1,addr=00.0",
        "pcie-root-port,id=dev-rp1,bus=pcie.0,addr=03.0,chassis=4,slot=4",
        "edu,id=dev-edu0,bus=dev-rp1,addr=00.0",
    ]


def test_a_switch_without_acs_has_the_ports_that_lack_it() -> None:
    assert devices("rp0(sw(edu, port))")[2:] == [
        "xio3130-downstream,id=dev-sw0.0,bus=dev-sw0,addr=00.0,chassis=2,slot=2",
        "edu,id=dev-edu0,bus=dev-sw0.0,addr=00.0",
        "xio3130-downstream,id=dev-sw0.1,bus=dev-sw0,addr=01.0,chassis=3,slot=3",
    ]


def test_a_root_port_loses_acs_as_this_qemu_can() -> None:
    assert devices("rp noacs")[0].endswith("slot=1,disable-acs=on")
    assert devices("rp noacs", NewQemu())[0].startswith("ioh3420,id=dev-rp0")


def test_slots_bridges_and_host_bridges() -> None:
    assert devices("slot(edu, pci-testdev membar=1), hb(rp(pcie-pci-bridge(edu)))") == [
        "pxb-pcie,id=dev-hb1,bus=pcie.0,addr=1c.0,bus_nr=64",
        "edu,id=dev-edu0,bus=pcie.0,addr=02.0,multifunction=on",
        "pci-testdev,id=dev-pci-testdev0,bus=pcie.0,addr=02.1,membar=1048576,multifunction=on",
        "pcie-root-port,id=dev-rp0,bus=dev-hb1,addr=01.0,chassis=1,slot=1",
        "pcie-pci-bridge,id=dev-pcie-pci-bridge0,bus=dev-rp0,addr=00.0",
        "edu,id=dev-edu1,bus=dev-pcie-pci-bridge0,addr=01.0",
    ]


def test_link_speed_and_width_are_qemus_words() -> None:
    assert devices("rp speed=2.5 width=8")[0].endswith("x-speed=2_5,x-width=8")


def test_storage_gets_a_file_of_its_size() -> None:
    hardware = build(Blueprint.parse("rp(nvme:a size=8M cmb=16), rp(virtio-blk)"), OldQemu(), "/d")
    assert hardware.disks == (Disk("/d/lab-disk0", 8 << 20), Disk("/d/lab-disk1", 64 << 20))
    nvme = next(word for word in hardware.arguments if word.startswith("nvme,"))
    assert nvme.endswith("serial=a,cmb_size_mb=16,drive=lab-disk0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rp(igb)", "no igb"),
        ("rp(edu ids=1234:5678)", "other ids"),
        ("hb bus=0 ids=8086:2020(rp)", "other ids"),
        ("rp(sw(port width=4))", "one speed and width"),
        ("hb(edu)", "takes root ports only"),
        ("rp(nvme cmb=8K)", "in MiB"),
    ],
)
def test_what_cannot_be_expressed_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        devices(text)


def test_presets_carry_what_has_to_be_known() -> None:
    old, new = OldQemu(), NewQemu()
    assert "caching-mode=on" in iommu_setup(Iommu.INTEL, old).arguments[1]
    assert iommu_setup(Iommu.INTEL_PT, old).append == ("intel_iommu=on", "iommu=pt")
    assert "fsts=on" in iommu_setup(Iommu.INTEL_FSTS, new).arguments[1]
    assert "dma-remap=on" in iommu_setup(Iommu.AMD, new).arguments[1]
    virtio = iommu_setup(Iommu.VIRTIO, old)
    assert "vfio_iommu_type1.allow_unsafe_interrupts=1" in virtio.append
    assert virtio.modules == ("virtio_iommu",)
    assert iommu_setup(Iommu.NONE, old) == ((), (), (), ())
    assert iommu_setup(Iommu.NOIOMMU, old).options == ("VFIO_NOIOMMU",)
    with pytest.raises(UnsupportedError, match="translates no DMA"):
        iommu_setup(Iommu.AMD, old)
    with pytest.raises(UnsupportedError, match=r"QEMU 10\.0"):
        iommu_setup(Iommu.INTEL_FSTS, old)
    with pytest.raises(UsageError, match="none of intel"):
        parse_iommu("smmu")
    assert (cpu_model("pre-zen"), cpu_model("max")) == ("EPYC,family=21", "max")


@pytest.mark.parametrize(
    ("fits", "too_many"),
    [
        (["rp(e1000e)"] * 14, ["rp(e1000e)"]),
        (["pci-bridge"] * 14, ["rp(pcie-pci-bridge)"]),
        # A bridge below a bridge shares its window; ports of one switch do not.
        (["pci-bridge(pci-bridge(pci-testdev, pci-testdev))"] * 14, ["pci-bridge"]),
        (["rp(sw(e1000e, e1000e, pci-testdev, pci-testdev, e1000e, e1000e, edu))"] * 2,
         ["rp(sw(e1000e, e1000e, e1000e))"]),
        (["rp(nvme)"] * 20 + ["rp(sw(edu, virtio-net))"], ["rp(e1000e)"] * 15),
        (["e1000e"] * 5 + ["rp(slot(e1000e, pci-testdev))"] * 14, ["slot(rp(edu), rp(igb))"]),
    ],
)  # fmt: skip
def test_more_io_windows_than_the_firmware_has_are_refused(
    fits: list[str], too_many: list[str]
) -> None:
    build(Blueprint.parse(", ".join(fits)), NewQemu(), "/disks")
    with pytest.raises(UnsupportedError, match=r"windows of 4 KiB of I/O ports .*the firmware has"):
        build(Blueprint.parse(", ".join([*fits, *too_many])), NewQemu(), "/disks")

"""Presets for IOMMU and CPU, with what has to be known about each built in."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

from vfiokit.errors import UsageError
from vfiokit.lab.failure import UnsupportedError

CPUS: dict[str, str] = {
    "zen": "EPYC",
    "intel": "Skylake-Server",
    "pre-zen": "EPYC,family=21",
}
"""CPU presets by what Linux's P2PDMA makes of them: AMD from family 17h on may always cross host
bridges, Intel needs a listed bridge, older AMD may not. (QEMU's own family 15h models hang in its
emulation, hence a dressed-up EPYC.)"""

VIRTIO_IOMMU_DEVICE = 0x1D
"""Device number of the virtio-iommu on bus 0."""


class Iommu(StrEnum):
    """What translates DMA in the guest."""

    INTEL = "intel"
    INTEL_FSTS = "intel-fsts"
    INTEL_PT = "intel-pt"
    AMD = "amd"
    VIRTIO = "virtio"
    NONE = "none"
    NOIOMMU = "noiommu"


class Features(Protocol):
    """What must be known of a QEMU; see :class:`vfiokit.lab.qemu.Qemu`."""

    @property
    def version(self) -> str:
        """Such as ``7.2.22``."""
        ...

    def has_property(self, device: str, name: str) -> bool:
        """Whether a device model takes a property."""
        ...

    def require(self, device: str, what: str) -> None:
        """Raise unless the model exists."""
        ...


class IommuSetup(NamedTuple):
    """What a preset adds."""

    arguments: tuple[str, ...]
    """To QEMU's command line."""
    append: tuple[str, ...]
    """To the kernel's."""
    options: tuple[str, ...]
    """Kernel options needed, without ``CONFIG_``."""
    modules: tuple[str, ...]
    """Modules to load before any other, where they are no part of the kernel."""


def cpu_model(name: str) -> str:
    """QEMU's ``-cpu`` for a preset of :data:`CPUS`, or ``name`` itself."""
    return CPUS.get(name, name)


def parse_iommu(text: str) -> Iommu:
    """The preset named ``text``; raises :class:`UsageError` with the list."""
    try:
        return Iommu(text)
    except ValueError:
        raise UsageError(f"IOMMU {text!r} is none of {', '.join(Iommu)}") from None


def iommu_setup(iommu: Iommu, qemu: Features) -> IommuSetup:
    """What ``iommu`` needs with this QEMU; raises :class:`UnsupportedError`."""
    match iommu:
        case Iommu.NONE:
            return IommuSetup((), (), (), ())
        case Iommu.NOIOMMU:
            append = ("vfio.enable_unsafe_noiommu_mode=1",)
            return IommuSetup((), append, ("VFIO_NOIOMMU",), ())
        case Iommu.AMD:
            return _amd(qemu)
        case Iommu.VIRTIO:
            return _virtio(qemu)
        case _:
            return _intel(iommu, qemu)


def _intel(iommu: Iommu, qemu: Features) -> IommuSetup:
    qemu.require("intel-iommu", f"--iommu {iommu}")
    device = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"
    append = ["intel_iommu=on"]
    if iommu is Iommu.INTEL_PT:
        append.append("iommu=pt")
    if iommu is Iommu.INTEL_FSTS:
        names = [name for name in ("fsts", "x-flts") if qemu.has_property("intel-iommu", name)]
        if not names:
            raise UnsupportedError(
                f"--iommu {iommu}: the intel-iommu of QEMU {qemu.version} has no first-stage "
                "translation; it needs QEMU 10.0 or newer"
            )
        mode = next(
            name
            for name in ("scalable-mode", "x-scalable-mode")
            if qemu.has_property("intel-iommu", name)
        )
        device += f",{mode}=on,{names[0]}=on"
    return IommuSetup(("-device", device), tuple(append), ("INTEL_IOMMU", "IRQ_REMAP"), ())


def _amd(qemu: Features) -> IommuSetup:
    qemu.require("amd-iommu", "--iommu amd")
    if not qemu.has_property("amd-iommu", "dma-remap"):
        # Without it the driver loads, says nothing, and DMA goes where no mapping sent it.
        raise UnsupportedError(
            f"--iommu amd: the amd-iommu of QEMU {qemu.version} translates no DMA",
            hint="use a QEMU whose amd-iommu has the property dma-remap, or --iommu intel",
        )
    device = "amd-iommu,intremap=on,dma-remap=on"
    return IommuSetup(("-device", device), (), ("AMD_IOMMU", "IRQ_REMAP"), ())


def _virtio(qemu: Features) -> IommuSetup:
    qemu.require("virtio-iommu-pci", "--iommu virtio")
    device = f"virtio-iommu-pci,id=lab-iommu,addr={VIRTIO_IOMMU_DEVICE:02x}.0"
    # It remaps no interrupts, so VFIO refuses it unless told that this is known.
    append = (
        "vfio_iommu_type1.allow_unsafe_interrupts=1",
        "iommufd.allow_unsafe_interrupts=1",
    )
    return IommuSetup(("-device", device), append, ("VIRTIO_IOMMU",), ("virtio_iommu",))

"""What a lab works with: QEMU, kernel and IOMMU, found, checked and put into a command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vfiokit.errors import UsageError
from vfiokit.lab import guest_system
from vfiokit.lab.guest_device import DEVICES_VARIABLE, OUTPUT_VARIABLE
from vfiokit.lab.kernel import Kernel, Need
from vfiokit.lab.module import Module
from vfiokit.lab.preset import Iommu, IommuSetup, cpu_model, iommu_setup, parse_iommu
from vfiokit.lab.qemu import Qemu
from vfiokit.lab.qemu_arguments import Hardware
from vfiokit.pci.blueprint import Blueprint

if TYPE_CHECKING:
    from vfiokit.lab.laboratory import Lab

KERNEL_ARGUMENTS = (
    "console=ttyS0",
    # Results come from the command; of the kernel's messages the warnings matter.
    "quiet",
    "loglevel=5",
    "panic=-1",
    # A loaded host delays the timer interrupt that the kernel checks for at boot.
    "no_timer_check",
)

CHANNEL = "channel"
"""What the guest sends back where it sees none of the host's files."""

SHARE_DEVICE = "virtio-9p-pci"
_SHARING = "security_model=none,multidevs=remap"


def escape(path: Path) -> str:
    """A path inside an option of QEMU's, where a comma is written twice."""
    return str(path).replace(",", ",,")


class Root(StrEnum):
    """Which files a guest sees."""

    AUTO = "auto"
    """The host's where the kernel can, else an image."""
    HOST = "host"
    """The host's, over 9p."""
    IMAGE = "image"
    """The few that were put into its initial RAM file system."""


class RootChoice(NamedTuple):
    """What became of :class:`Root`."""

    shared: bool
    """The host's files over 9p."""
    reason: str
    """Why not; empty when they are, or when an image was asked for."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """Everything found and decided before a guest is built."""

    lab: Lab
    blueprint: Blueprint
    qemu: Qemu
    iommu: IommuSetup
    kernel: Kernel
    root: RootChoice

    def guest_variables(self) -> dict[str, str]:
        """What the command is told about its guest."""
        places = self.blueprint.places()
        devices = " ".join(f"{name}={place.bdf}" for name, place in places.items())
        return {DEVICES_VARIABLE: devices, OUTPUT_VARIABLE: guest_system.OUTPUT}

    def command_line(self) -> tuple[str, ...]:
        """The kernel's parameters."""
        return (*KERNEL_ARGUMENTS, *self.iommu.append, *self.lab.append)

    def qemu_command(self, hardware: Hardware, work: Path, serial: str) -> tuple[str, ...]:
        """QEMU's command line for a guest whose files are in ``work``."""
        lab = self.lab
        if lab.memory_mib < 128 or lab.smp < 1:
            raise UsageError("a guest needs at least 128 MiB and 1 CPU")
        furniture: tuple[str, ...] = (
            *("-fsdev", f"local,id=lab-root,path=/,{_SHARING},readonly=on"),
            *("-device", f"virtio-9p-pci,fsdev=lab-root,mount_tag={guest_system.ROOT_TAG}"
              ",addr=1e.0,multifunction=on"),
            *("-fsdev", f"local,id=lab-share,path={escape(work / 'share')},{_SHARING}"),
            *("-device", f"virtio-9p-pci,fsdev=lab-share,mount_tag={guest_system.SHARE_TAG}"
              ",addr=1e.1"),
        )  # fmt: skip
        if not self.root.shared:
            furniture = ("-serial", f"file:{escape(work / CHANNEL)}")
        return (
            *self.qemu.command,
            *("-machine", "q35", "-accel", "tcg", "-cpu", cpu_model(lab.cpu)),
            *("-m", str(lab.memory_mib), "-smp", str(lab.smp)),
            *("-nodefaults", "-vga", "none", "-display", "none", "-no-reboot"),
            *("-serial", serial),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-kernel", str(self.kernel.image), "-initrd", str(work / "initrd")),
            *("-append", " ".join(self.command_line())),
            *self.iommu.arguments,
            *furniture,
            *hardware.arguments,
            *lab.qemu_arguments,
        )

    def modules(self) -> tuple[Module, ...]:
        """Modules that the guest loads, in order; none where everything is part of the kernel."""
        wanted = (need.lower() for need in self.lab.needs)
        names = guest_system.module_names(
            self.blueprint, self.iommu.modules, shared=self.root.shared
        )
        return self.kernel.modules.resolve((*names, *wanted))


def find(lab: Lab) -> Equipment:
    """Find QEMU and kernel and check that both can do what ``lab`` asks for.

    Raises :class:`~vfiokit.lab.failure.LabError` and :class:`UsageError`.
    """
    blueprint = lab.blueprint()
    iommu = parse_iommu(str(lab.iommu))
    qemu = Qemu.find(lab.qemu)
    setup = iommu_setup(iommu, qemu)
    kernel = Kernel.find(str(lab.kernel), str(lab.modules))
    root = choose_root(str(lab.root), kernel, qemu)
    kernel.require(_needs(lab, iommu, setup, shared=root.shared))
    if root.shared:
        qemu.require(SHARE_DEVICE, "the host's files")
    return Equipment(lab, blueprint, qemu, setup, kernel, root)


def choose_root(wanted: str, kernel: Kernel, qemu: Qemu) -> RootChoice:
    """The host's files where kernel and QEMU can share them, unless told otherwise."""
    try:
        root = Root(wanted)
    except ValueError:
        raise UsageError(f"root {wanted!r} is none of {', '.join(Root)}") from None
    if root is not Root.AUTO:
        return RootChoice(root is Root.HOST, "")
    lacking = kernel.lacking(guest_system.SHARE_NEEDS)
    if lacking:
        listed = ", ".join(f"CONFIG_{need.option}" for need in lacking)
        return RootChoice(False, f"the kernel lacks {listed}")
    if qemu.properties(SHARE_DEVICE) is None:
        return RootChoice(False, f"QEMU {qemu.version} lacks {SHARE_DEVICE}")
    return RootChoice(True, "")


def _needs(lab: Lab, iommu: Iommu, setup: IommuSetup, *, shared: bool) -> Iterator[Need]:
    yield from guest_system.BASE_NEEDS
    if shared:
        yield from guest_system.SHARE_NEEDS
    for option in setup.options:
        yield Need(option, f"--iommu {iommu}", option.lower() if setup.modules else "")
    for option in lab.needs:
        name = option.removeprefix("CONFIG_")
        yield Need(name, "asked for", name.lower())

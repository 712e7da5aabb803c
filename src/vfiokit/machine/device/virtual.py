"""SR-IOV virtual functions: what the hardware shows while its PF has them enabled.

Configuration space as the specification has it: no ids, no BARs, no memory enable bit of its own.
Source: PCI Express Base Specification 6.0 §9.3.4 (VF configuration space), §9.3.3.14 (VF BARs).
"""

from __future__ import annotations

from typing import Final

from vfiokit.errors import MachineError
from vfiokit.machine.build import MsixLayout, endpoint_config
from vfiokit.machine.config import ConfigModel
from vfiokit.machine.device.nvme import NvmeFunction
from vfiokit.machine.device.passive import PassiveFunction
from vfiokit.machine.function import COMMAND, COMMAND_MASTER, Function
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability import Capability
from vfiokit.pci.capability import sriov as registers

_ID: Final = 0x10
_ENABLED: Final = 0x0009  # VF Enable, VF Memory Space Enable
_BARS: Final = 0x24


def capability_of(physical: Function) -> Capability | None:
    """The SR-IOV capability of a PF; ``None`` for every other function."""
    return physical.capabilities().find_extended(_ID)


class _Virtual(Function):
    """The part of a VF that is the same for every model; mixed in before the model."""

    _physical: Function | None = None
    _sriov = 0
    _index = 0

    def become(self, physical: Function, sriov: int, index: int) -> None:
        """Belong to ``physical``, whose capability is at ``sriov``, as VF ``index`` (0-based)."""
        self._physical, self._sriov, self._index = physical, sriov, index
        self.physfn = physical.bdf
        config = self.config
        config.data[0:4] = b"\xff" * 4
        for first, end in ((0x10, 0x28), (0x3C, 0x3E)):
            config.data[first:end] = config.write_mask[first:end] = bytes(end - first)
        config.write_mask[COMMAND : COMMAND + 2] = COMMAND_MASTER.to_bytes(2, "little")
        config.remember()

    @property
    def memory_enabled(self) -> bool:
        """Decoding is the PF's to enable."""
        physical = self._physical
        if physical is None or self.power_state or physical.power_state:
            return False
        return physical.config.read(self._sriov + 8, 2) & _ENABLED == _ENABLED

    def bar_address(self, index: int) -> int:
        """The VF's share of what the PF's VF BAR covers."""
        if self._physical is None:
            return 0
        bar = self.bars[index]
        base = self._physical.config.read(self._sriov + _BARS + 4 * index, 8 if bar.wide else 4)
        return base and (base & ~0xF) + self._index * bar.size


class VirtualNvme(_Virtual, NvmeFunction):
    """An NVMe controller of its own on the medium of its PF."""


class VirtualPassive(_Virtual, PassiveFunction):
    """A VF without behaviour."""


def virtual_function(physical: Function, index: int) -> Function:
    """VF ``index`` (0-based) of ``physical``, not plugged in yet.

    Raises :class:`MachineError` when ``physical`` has no SR-IOV capability.
    """
    sriov = capability_of(physical)
    if sriov is None:
        raise MachineError(f"{physical.bdf} has no SR-IOV capability")
    bdf = registers.vf_address(sriov, physical.bdf, index)
    config = _config(physical, sriov)
    made: VirtualNvme | VirtualPassive | None = None
    if isinstance(physical, NvmeFunction):
        made = _nvme(physical, bdf, config)
    if made is None:
        made = VirtualPassive(bdf, config, physical.virtual_bars)
    made.become(physical, sriov.offset, index)
    return made


def _nvme(physical: NvmeFunction, bdf: Bdf, config: ConfigModel) -> VirtualNvme | None:
    """A controller, if the VF's BAR can hold its registers."""
    controller = physical.controller
    try:
        return VirtualNvme(
            bdf,
            config,
            physical.virtual_bars,
            backing=controller.namespace.store,
            block_size=1 << controller.namespace.block_shift,
            model=controller.identity.model,
            serial=controller.identity.serial,
            firmware=controller.identity.firmware,
            mdts=controller.identity.mdts,
        )
    except MachineError:
        return None


def _config(physical: Function, sriov: Capability) -> ConfigModel:
    """An endpoint with FLR, and the PF's MSI-X layout where the VF's BARs have room for it."""
    config = physical.config
    layout, msix = None, physical.msix
    if msix is not None:
        ends = {
            msix.table_bar: msix.table_offset + msix.table_size,
            msix.pending_bar: msix.pending_offset + msix.pending_size,
        }
        sizes = {bar.index: bar.size for bar in physical.virtual_bars}
        if all(end <= sizes.get(bar, 0) for bar, end in ends.items()):
            layout = MsixLayout(
                msix.count,
                msix.table_bar,
                msix.table_offset,
                msix.pending_offset,
                msix.pending_bar,
            )
    return endpoint_config(
        config.read(0, 2),
        sriov.raw(registers.VF_DEVICE_ID.offset, 2),
        config.read(0x09, 2) | config.read(0x0B, 1) << 16,
        revision=config.read(0x08, 1),
        subsystem_vendor_id=config.read(0x2C, 2),
        subsystem_id=config.read(0x2E, 2),
        msix=layout,
        ari=True,
    )

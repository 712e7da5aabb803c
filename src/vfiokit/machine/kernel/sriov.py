"""SR-IOV: the attributes of a PF, and virtual functions that come and go with them.

Source: Linux ``drivers/pci/iov.c``, ``vfio_pci_core.c`` (``vfio_pci_core_sriov_configure``,
``vfio_pci_bus_notifier``), ``pci-driver.c`` (``pci_device_can_probe``).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from vfiokit.machine.device.virtual import virtual_function
from vfiokit.machine.fabric import Fabric
from vfiokit.machine.kernel import parameter
from vfiokit.machine.kernel.device import VfioPciDevice
from vfiokit.machine.kernel.driver import PciBus
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import PciDevice, bar_resources
from vfiokit.machine.kernel.vfio_bus import NAME as VFIO_PCI
from vfiokit.machine.kernel.vfs import Dir, File
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity

_SRIOV = 0x10
_CONTROL, _TOTAL, _NUMBER, _OFFSET, _STRIDE, _DEVICE = 0x08, 0x0E, 0x10, 0x14, 0x16, 0x1A
_ENABLE, _MEMORY_ENABLE = 0x0001, 0x0008
_U16 = re.compile(r"\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_WITHOUT_SRIOV = frozenset({"pcieport", "e1000e"})
"""Native drivers without ``sriov_configure``."""


class Host(Protocol):
    """What SR-IOV needs of the kernel around it."""

    bus: PciBus

    @property
    def enable_sriov(self) -> bool:
        """Module parameter of ``vfio_pci``."""
        ...

    def vfio_device(self, device: PciDevice) -> VfioPciDevice | None:
        """The vfio-pci state of a function; ``None`` when it is bound to something else."""
        ...

    def virtual_functions(self, device: PciDevice) -> list[PciDevice]:
        """The VFs of a PF, in the order of their numbers."""
        ...

    def appear(self, functions: Sequence[Function]) -> list[PciDevice]:
        """Functions that were plugged in just now: groups and files for them, no driver yet."""
        ...

    def vanish(self, device: PciDevice) -> None:
        """Take the driver of a function away (EBUSY while it is open), and all trace of it."""
        ...

    def link_virtual(self, device: PciDevice, index: int) -> None:
        """``virtfnN`` of the PF, and ``physfn``."""
        ...


class VirtualFunctions:
    """SR-IOV of every PF of the machine."""

    def __init__(self, fabric: Fabric, host: Host) -> None:
        self._fabric = fabric
        self._host = host
        self._autoprobe: dict[Bdf, bool] = {}
        self._totals: dict[Bdf, int] = {}
        """Where it is not what the capability says: drivers may allow less."""

    def files(self, device: PciDevice, present: Dir, *, recorded: bool) -> dict[str, File]:
        """The attributes of a PF by name; none without the capability.

        With ``recorded`` only those of ``present`` that can change.
        """
        at = device.find_extended(_SRIOV)
        if not at or device.is_virtual:
            return {}

        def register(offset: int, form: str = "{}") -> Callable[[], bytes]:
            return lambda: f"{form.format(device.read(at + offset, 2))}\n".encode()

        chosen = parameter.flag(
            lambda: self._autoprobe.get(device.bdf, True),
            lambda value: self._autoprobe.update({device.bdf: value}),
        )
        live = {
            "sriov_numvfs": File(
                lambda: b"%d\n" % len(self._host.virtual_functions(device)),
                lambda data: self._write_number(device, data),
            ),
            "sriov_drivers_autoprobe": File(
                lambda: b"%d\n" % self._autoprobe.get(device.bdf, True), chosen.on_write
            ),
        }
        if recorded:
            self._totals[device.bdf] = _recorded_number(present, "sriov_totalvfs")
            self._autoprobe[device.bdf] = bool(_recorded_number(present, "sriov_drivers_autoprobe"))
            return {name: file for name, file in live.items() if present.get(name) is not None}
        return {
            **live,
            "sriov_totalvfs": File(register(_TOTAL)),
            "sriov_offset": File(register(_OFFSET)),
            "sriov_stride": File(register(_STRIDE)),
            "sriov_vf_device": File(register(_DEVICE, "{:x}")),
            "sriov_vf_total_msix": File(b"0\n"),
        }

    # -- sriov_numvfs -------------------------------------------------------------------------

    def _write_number(self, device: PciDevice, data: bytes) -> None:
        """``sriov_numvfs_store``.

        EINVAL for no 16-bit number, ERANGE beyond the total, nothing for the present number,
        ENOENT without a driver that can, EBUSY to get from one number to another but 0.
        """
        text = data.decode("ascii", "replace").removesuffix("\n")
        match = _U16.fullmatch(text)
        count = _number(match[1]) if match else -1
        if not 0 <= count < 1 << 16:
            raise failure(errno.EINVAL, f"{text!r} is no 16-bit number")
        total = self._totals.get(device.bdf)
        if total is None:
            total = device.read(device.find_extended(_SRIOV) + _TOTAL, 2)
        if count > total:
            raise failure(errno.ERANGE, f"{device.bdf} can have {total} virtual functions")
        present = len(self._host.virtual_functions(device))
        if count == present:
            return
        if device.driver is None or device.driver in _WITHOUT_SRIOV:
            raise failure(errno.ENOENT, f"{device.bdf} has no driver that enables VFs")
        if device.driver == VFIO_PCI and not self._host.enable_sriov:
            raise failure(errno.ENOENT, "vfio-pci was loaded without enable_sriov")
        if count and present:
            raise failure(errno.EBUSY, f"{present} virtual functions are enabled: write 0 first")
        if count:
            self._enable(device, count)
        else:
            self.disable(device)

    def _enable(self, device: PciDevice, count: int) -> None:
        """``pci_enable_sriov``: ENOMEM when the last VF's bus number leads elsewhere."""
        made = [virtual_function(device.function, index) for index in range(count)]
        bridge = self._fabric.parent(device.function)
        last = made[-1].bdf.bus
        if last < device.bdf.bus or last > (bridge.subordinate if bridge else device.bdf.bus):
            raise failure(errno.ENOMEM, f"bus {last:02x} of the last VF is out of range")
        if any(each.bdf in self._fabric.functions for each in made):
            raise failure(errno.EBUSY, "another function has the address of a VF")
        captured = self._host.vfio_device(device)
        if captured is not None:
            captured.stay_awake(True)
        at = device.find_extended(_SRIOV)
        device.write(at + _NUMBER, 2, count)
        device.update(at + _CONTROL, 2, set_bits=_ENABLE | _MEMORY_ENABLE)
        device.restore_virtual = lambda: self._restore(device, count)
        for each in made:
            self._fabric.plug(each)
        values = [
            Function(
                each.bdf,
                ConfigSpace(bytes(each.config.data)),
                self._identity(device, at),
                resources=bar_resources(each),
                physfn=device.bdf,
            )
            for each in made
        ]
        for index, virtual in enumerate(self._host.appear(values)):
            virtual.may_probe = lambda: self._autoprobe.get(device.bdf, True)
            if captured is not None:
                virtual.driver_override = VFIO_PCI
            self._host.link_virtual(virtual, index)
            if self._host.bus.autoprobe:
                self._host.bus.probe(virtual)

    def disable(self, device: PciDevice) -> None:
        """``pci_disable_sriov``; EBUSY, and nothing changed, while one of the VFs is open."""
        present = self._host.virtual_functions(device)
        if not present:
            return
        # What is open refuses to go: it comes first, so that the others stay too.
        for virtual in sorted(present, key=lambda each: not self._is_open(each)):
            self._host.vanish(virtual)
        at = device.find_extended(_SRIOV)
        device.restore_virtual = None
        device.update(at + _CONTROL, 2, clear=_ENABLE | _MEMORY_ENABLE)
        device.write(at + _NUMBER, 2, 0)
        captured = self._host.vfio_device(device)
        if captured is not None:
            captured.stay_awake(False)

    def _is_open(self, device: PciDevice) -> bool:
        state = self._host.vfio_device(device)
        return state is not None and bool(state.open_count)

    def _restore(self, device: PciDevice, count: int) -> None:
        """``sriov_restore_state``: what a reset of the PF switched off."""
        at = device.find_extended(_SRIOV)
        if not device.read(at + _CONTROL, 2) & _ENABLE:
            device.write(at + _NUMBER, 2, count)
            device.update(at + _CONTROL, 2, set_bits=_ENABLE | _MEMORY_ENABLE)

    def _identity(self, device: PciDevice, at: int) -> Identity:
        """A VF's ids: its PF's, but for the device ID that the capability tells."""
        return Identity(
            device.vendor_id,
            device.read(at + _DEVICE, 2),
            device.class_code,
            device.read(0x08, 1),
            device.subsystem_vendor_id,
            device.subsystem_device_id,
        )


def _recorded_number(present: Dir, name: str) -> int:
    """What a recorded attribute says; 0 where it was not recorded."""
    file = present.get(name)
    text = file.read().strip() if isinstance(file, File) else b""
    return int(text) if text.isdigit() else 0


def _number(digits: str) -> int:
    """What ``kstrtou16`` with base 0 makes of digits."""
    if digits.lower().startswith("0x"):
        return int(digits, 16)
    return int(digits, 8 if digits.startswith("0") else 10)

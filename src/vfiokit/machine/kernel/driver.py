"""The PCI driver model: which driver takes which function, binding and unbinding.

Source: Linux ``drivers/pci/pci-driver.c``, ``drivers/base/{bus,dd,driver}.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import IommuGroup
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.pci.address import Bdf

ANY = 0xFFFF_FFFF
PAGE_SIZE = 4096


class DeviceId(NamedTuple):
    """``struct pci_device_id``; :data:`ANY` matches everything."""

    vendor: int = ANY
    device: int = ANY
    subvendor: int = ANY
    subdevice: int = ANY
    class_code: int = 0
    class_mask: int = 0
    override_only: bool = False
    """Matches only a function whose ``driver_override`` is set."""

    def matches(self, device: PciDevice) -> bool:
        """``pci_match_one_device``."""
        return (
            self.vendor in (ANY, device.vendor_id)
            and self.device in (ANY, device.device_id)
            and self.subvendor in (ANY, device.subsystem_vendor_id)
            and self.subdevice in (ANY, device.subsystem_device_id)
            and not (self.class_code ^ device.class_code) & self.class_mask
        )


class PciDriver:
    """A registered driver.

    ``probe`` takes a function over (``OSError`` to refuse), ``remove`` gives it back.
    """

    def __init__(
        self,
        name: str,
        ids: Iterable[DeviceId],
        probe: Callable[[PciDevice], None],
        remove: Callable[[PciDevice], None],
        *,
        managed_dma: bool = False,
    ) -> None:
        self.name = name
        self.ids = tuple(ids)
        self.dynamic_ids: list[DeviceId] = []
        self.managed_dma = managed_dma
        """``driver_managed_dma``: it claims no DMA by binding (vfio-pci, pcieport)."""
        self.probe = probe
        self.remove = remove

    def match(self, device: PciDevice) -> bool:
        """``pci_match_device``."""
        override = device.driver_override
        if override is not None:
            return override == self.name
        if any(entry.matches(device) for entry in self.dynamic_ids):
            return True
        return any(entry.matches(device) and not entry.override_only for entry in self.ids)


class PciBus:
    """All functions and drivers, and the writes to ``/sys/bus/pci`` that bring them together.

    ``changed`` is called with a function after its driver changed.
    """

    def __init__(
        self,
        devices: dict[Bdf, PciDevice],
        group_of: Callable[[PciDevice], IommuGroup | None],
        changed: Callable[[PciDevice, str | None], None],
    ) -> None:
        self._devices = devices
        self._group_of = group_of
        self._changed = changed
        self.drivers: dict[str, PciDriver] = {}
        self.autoprobe = True

    def register(self, driver: PciDriver) -> None:
        """Add a driver without binding anything."""
        self.drivers[driver.name] = driver

    # -- binding ------------------------------------------------------------------------------

    def attach(self, driver: PciDriver, device: PciDevice) -> None:
        """Bind: EBUSY when bound already, or while a user owns the group.

        ENODEV for a VF that its PF keeps drivers away from.
        """
        if device.driver is not None:
            raise failure(errno.EBUSY, f"{device.bdf} is bound to {device.driver}")
        if device.driver_override is None and not device.may_probe():
            raise failure(errno.ENODEV, "sriov_drivers_autoprobe of its PF is off")
        group = self._group_of(device)
        claims = group is not None and not driver.managed_dma
        if group is not None and claims:
            group.use_default_domain()
        try:
            driver.probe(device)
        except OSError:
            if group is not None and claims:
                group.unuse_default_domain()
            raise
        device.driver = driver.name
        self._changed(device, None)

    def detach(self, device: PciDevice) -> None:
        """Unbind whatever drives ``device``."""
        driver = self.drivers[device.driver or ""]
        driver.remove(device)
        device.driver = None
        group = self._group_of(device)
        if group is not None and not driver.managed_dma:
            group.unuse_default_domain()
        self._changed(device, driver.name)

    def probe(self, device: PciDevice) -> None:
        """``device_attach``: let the first matching driver that accepts it have the function."""
        if device.driver is not None:
            return
        for driver in self.drivers.values():
            if driver.match(device):
                try:
                    self.attach(driver, device)
                except OSError:
                    continue
                return

    # -- attributes ---------------------------------------------------------------------------

    def write_bind(self, name: str, data: bytes) -> None:
        """``drivers/NAME/bind``: ENODEV when there is no such function or it does not match."""
        driver, device = self.drivers[name], self._find(data)
        if device is None or not driver.match(device):
            raise failure(errno.ENODEV, f"{name} does not match {_text(data)!r}")
        self.attach(driver, device)

    def write_unbind(self, name: str, data: bytes) -> None:
        """``drivers/NAME/unbind``: ENODEV when the function is not bound to that driver."""
        device = self._find(data)
        if device is None or device.driver != name:
            raise failure(errno.ENODEV, f"{_text(data)!r} is not bound to {name}")
        self.detach(device)

    def write_drivers_probe(self, data: bytes) -> None:
        """``drivers_probe``: ENODEV when there is no such function."""
        device = self._find(data)
        if device is None:
            raise failure(errno.ENODEV, f"no function {_text(data)!r}")
        self.probe(device)

    def write_autoprobe(self, data: bytes) -> None:
        """``drivers_autoprobe``."""
        self.autoprobe = data[:1] != b"0"

    def write_override(self, device: PciDevice, data: bytes) -> None:
        """``driver_override``: a line feed alone, or nothing, clears it."""
        if len(data) >= PAGE_SIZE - 1:
            raise failure(errno.EINVAL, f"{len(data)} bytes are too many")
        text = data.split(b"\n", 1)[0].split(b"\0", 1)[0].decode("utf-8", "replace")
        device.driver_override = text or None

    def write_new_id(self, name: str, data: bytes) -> None:
        """``drivers/NAME/new_id``: EINVAL for fewer than two numbers, EEXIST for a known id.

        Unbound functions that match are bound at once.
        """
        fields = _numbers(data)
        if len(fields) < 2:
            raise failure(errno.EINVAL, "at least vendor and device are needed")
        driver = self.drivers[name]
        entry = _device_id(fields)
        if len(fields) < 7:
            known = [item for item in driver.ids if not item.override_only] + driver.dynamic_ids
            if any(_covers(item, entry) for item in known):
                raise failure(errno.EEXIST, f"{name} knows this id")
        elif fields[6]:
            raise failure(errno.EINVAL, "driver_data is not in the driver's table")
        driver.dynamic_ids.append(entry)
        for device in tuple(self._devices.values()):
            if device.driver is None and driver.match(device):
                try:
                    self.attach(driver, device)
                except OSError:
                    continue  # as driver_attach: the write succeeds, the probe failed

    def write_remove_id(self, name: str, data: bytes) -> None:
        """``drivers/NAME/remove_id``: ENODEV for an id that was not added."""
        fields = _numbers(data)
        if len(fields) < 2:
            raise failure(errno.EINVAL, "at least vendor and device are needed")
        entry = _device_id(fields)
        driver = self.drivers[name]
        for known in driver.dynamic_ids:
            if known == entry:
                driver.dynamic_ids.remove(known)
                return
        raise failure(errno.ENODEV, f"no such id was added to {name}")

    def _find(self, data: bytes) -> PciDevice | None:
        # The kernel compares names (sysfs_streq), so that other spellings are not the function.
        name = _text(data)
        for bdf, device in self._devices.items():
            if str(bdf) == name:
                return device
        return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").removesuffix("\n")


def _numbers(data: bytes) -> list[int]:
    """What ``sscanf("%x %x ...")`` reads: numbers up to the first word that is none."""
    found: list[int] = []
    for word in data.decode("utf-8", "replace").split()[:7]:
        try:
            found.append(int(word, 16))
        except ValueError:
            break
    return found


def _device_id(fields: list[int]) -> DeviceId:
    """An id of two to six numbers: vendor, device, subsystem ids, class, class mask."""
    vendor, device, *rest = fields[:6]
    subvendor, subdevice, class_code, class_mask = (*rest, *(ANY, ANY, 0, 0)[len(rest) :])
    return DeviceId(vendor, device, subvendor, subdevice, class_code, class_mask)


def _covers(known: DeviceId, entry: DeviceId) -> bool:
    """Whether a function with exactly the ids of ``entry`` would match ``known``."""
    return (
        known.vendor in (ANY, entry.vendor)
        and known.device in (ANY, entry.device)
        and known.subvendor in (ANY, entry.subvendor)
        and known.subdevice in (ANY, entry.subdevice)
        and not (known.class_code ^ entry.class_code) & known.class_mask
    )

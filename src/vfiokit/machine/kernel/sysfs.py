"""The files of a function in sysfs: those that change with it, and, for a machine that was not
built from a recording, all the others.

Source: Linux ``drivers/pci/pci-sysfs.c``, ``Documentation/ABI/testing/sysfs-bus-pci``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.abi import pci_regs as regs
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.pci_device import PciDevice
from vfiokit.machine.kernel.vfs import Dir, File, Node

_SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
_POWER_STATES = ("D0", "D1", "D2", "D3hot")
_RESOURCES = 13


class ConfigFile(File):
    """``config``: reads and writes the hardware, at any offset."""

    __slots__ = ("_device", "_shown")

    def __init__(self, device: PciDevice, shown: int) -> None:
        super().__init__(self._bytes, lambda data: self.write_at(data, 0))
        self._device = device
        self._shown = shown

    def _bytes(self) -> bytes:
        return bytes(self._device.function.config.data[: self._shown])

    def write_at(self, data: bytes, offset: int) -> None:
        """A write of any length, in naturally aligned pieces."""
        end = min(offset + len(data), self._shown)
        at = offset
        while at < end:
            width = next(w for w in (4, 2, 1) if not at % w and at + w <= end)
            piece = data[at - offset : at - offset + width]
            self._device.write(at, width, int.from_bytes(piece, "little"))
            at += width


def live_files(
    device: PciDevice,
    present: Dir,
    shown: int,
    write_override: Callable[[PciDevice, bytes], None],
) -> dict[str, File]:
    """The attributes of ``device`` that change, by name.

    ``present`` holds what was recorded: an attribute keeps its recorded text for as long as the
    state behind it is what it was. ``shown`` is the length of ``config``.
    """
    files: dict[str, File] = {
        "config": ConfigFile(device, shown),
        "driver_override": File(
            lambda: f"{device.driver_override or '(null)'}\n".encode(),
            lambda data: write_override(device, data),
        ),
        "enable": _kept(present, "enable", lambda: f"{device.enable_count}\n"),
        "uevent": File(_uevent(device, present)),
    }
    if device.find_capability(regs.PCI_CAP_ID_PM) or present.get("power_state") is not None:
        files["power_state"] = _kept(
            present, "power_state", lambda: f"{_POWER_STATES[device.power_state]}\n"
        )
    if device.reset_methods:
        files["reset"] = File(None, lambda data: _reset(device, data))
        files["reset_method"] = File(
            lambda: (" ".join(device.reset_methods) + "\n").encode(),
            lambda data: device.choose_reset_methods(data.decode("utf-8", "replace")),
        )
    return files


def _kept(present: Dir, name: str, now: Callable[[], str]) -> File:
    """A file that shows its recorded text until what ``now`` says changes."""
    recorded, first = present.get(name), now()

    def content() -> bytes:
        text = now()
        if text == first and isinstance(recorded, File):
            return recorded.read()
        return text.encode()

    return File(content)


def _uevent(device: PciDevice, present: Dir) -> Callable[[], bytes]:
    recorded = present.get("uevent")

    def content() -> bytes:
        base = recorded.read() if isinstance(recorded, File) else _synthetic_uevent(device)
        lines = base.splitlines(keepends=True)
        place = next(
            (index for index, line in enumerate(lines) if line.startswith(b"DRIVER=")), None
        )
        if place is not None:
            del lines[place]
        if device.driver is not None:
            lines.insert(place or 0, f"DRIVER={device.driver}\n".encode())
        return b"".join(lines)

    return content


def _reset(device: PciDevice, data: bytes) -> None:
    try:
        value = int(data.decode("ascii", "replace").strip(), 0)
    except ValueError:
        value = 0
    if value != 1:
        raise failure(errno.EINVAL, "write 1 to reset")
    device.reset()


# --- Functions without a recording ---


def static_files(device: PciDevice, numa_node: int = -1) -> dict[str, Node]:
    """Every attribute that does not change, for a function that nothing was recorded of."""
    config = device.function.config
    texts = {
        "vendor": f"0x{device.vendor_id:04x}",
        "device": f"0x{device.device_id:04x}",
        "class": f"0x{device.class_code:06x}",
        "revision": f"0x{config.read(regs.PCI_REVISION_ID, 1):02x}",
        "subsystem_vendor": f"0x{device.subsystem_vendor_id:04x}",
        "subsystem_device": f"0x{device.subsystem_device_id:04x}",
        "irq": f"{config.read(regs.PCI_INTERRUPT_LINE, 1)}",
        "numa_node": f"{numa_node}",
        "modalias": _modalias(device),
        "msi_bus": "1",
        "broken_parity_status": "0",
        "d3cold_allowed": "1",
        "dma_mask_bits": "64",
        "consistent_dma_mask_bits": "64",
        "ari_enabled": "0",
        "local_cpulist": "0",
        "local_cpus": "1",
        "resource": _resource_text(device),
        **_link_texts(device),
    }
    if device.header_type == regs.PCI_HEADER_TYPE_BRIDGE:
        texts["secondary_bus_number"] = f"{config.read(regs.PCI_SECONDARY_BUS, 1)}"
        texts["subordinate_bus_number"] = f"{config.read(regs.PCI_SUBORDINATE_BUS, 1)}"
    power = Dir()
    power.set("control", File(b"on\n"))
    power.set("runtime_status", File(b"active\n"))
    files: dict[str, Node] = {name: File(f"{text}\n".encode()) for name, text in texts.items()}
    files["power"] = power
    return files


def _modalias(device: PciDevice) -> str:
    code = device.class_code
    return (
        f"pci:v{device.vendor_id:08X}d{device.device_id:08X}"
        f"sv{device.subsystem_vendor_id:08X}sd{device.subsystem_device_id:08X}"
        f"bc{code >> 16:02X}sc{code >> 8 & 0xFF:02X}i{code & 0xFF:02X}"
    )


def _synthetic_uevent(device: PciDevice) -> bytes:
    return (
        f"PCI_CLASS={device.class_code:X}\n"
        f"PCI_ID={device.vendor_id:04X}:{device.device_id:04X}\n"
        f"PCI_SUBSYS_ID={device.subsystem_vendor_id:04X}:{device.subsystem_device_id:04X}\n"
        f"PCI_SLOT_NAME={device.bdf}\n"
        f"MODALIAS={_modalias(device)}\n"
    ).encode()


def _resource_text(device: PciDevice) -> str:
    lines: list[str] = []
    for index in range(_RESOURCES):
        each = device.resource(index)
        lines.append(f"0x{each.start:016x} 0x{each.end:016x} 0x{each.flags:016x}")
    return "\n".join(lines)


def _link_texts(device: PciDevice) -> dict[str, str]:
    at = device.find_capability(regs.PCI_CAP_ID_EXP)
    if not at:
        return {}
    capable, status = device.read(at + regs.PCI_EXP_LNKCAP, 4), device.read(at + 0x12, 2)
    return {
        "max_link_speed": _speed(capable & regs.PCI_EXP_LNKCAP_SLS),
        "max_link_width": str((capable & regs.PCI_EXP_LNKCAP_MLW) >> 4),
        "current_link_speed": _speed(status & regs.PCI_EXP_LNKSTA_CLS),
        "current_link_width": str((status & regs.PCI_EXP_LNKSTA_NLW) >> 4),
    }


def _speed(code: int) -> str:
    return f"{_SPEEDS[code]} GT/s PCIe" if code in _SPEEDS else "Unknown"

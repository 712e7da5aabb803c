"""Kernels to boot: where they are, what they were built with, which modules they have.

Sources: Linux ``Documentation/arch/x86/boot.rst`` (image header), ``kernel/configs.c`` (the
configuration inside an image).
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from vfiokit.errors import VfiokitError
from vfiokit.lab.failure import KernelLacksError, KernelMissingError
from vfiokit.lab.module import ModuleFolder

VARIABLE = "VFIOKIT_LAB_KERNEL"
MODULES_VARIABLE = "VFIOKIT_LAB_MODULES"
INSTALL = (
    "install linux-image-amd64, from trixie-backports for VFIO with P2PDMA, and "
    "qemu-system-x86 (Debian), or name a kernel with --kernel or in " + VARIABLE
)
_BOOT = Path("/boot")
_MODULES = Path("/lib/modules")


class Kernel:
    """A kernel image with its configuration and modules."""

    def __init__(self, image: Path, modules: Path | None = None) -> None:
        self.image = image
        data = _read(image)
        self.release = _release(data)
        """As ``uname -r`` prints it; empty when the image does not say."""
        self._data: bytes | None = data
        self._config: Mapping[str, str] | None = None
        folder = modules if modules is not None else _MODULES / self.release
        if modules is not None and (modules / "lib/modules" / self.release).is_dir():
            folder = modules / "lib/modules" / self.release
        elif modules is not None and self.release and (modules / self.release).is_dir():
            folder = modules / self.release
        self.modules = ModuleFolder(folder)

    def __repr__(self) -> str:
        return f"<Kernel {self.image} {self.release}>"

    @classmethod
    def find(cls, named: str = "", modules: str = "") -> Kernel:
        """The kernel that ``named`` or ``VFIOKIT_LAB_KERNEL`` leads to, else the host's own.

        The host's own is the running one if it lies in ``/boot`` and has VFIO, else the newest
        there that has. Raises :class:`KernelMissingError`.
        """
        wanted = named or os.environ.get(VARIABLE, "")
        folder = modules or os.environ.get(MODULES_VARIABLE, "")
        if folder and not Path(folder).is_dir():
            raise KernelMissingError(f"{folder} is no folder of modules")
        if wanted:
            return cls(Path(wanted), Path(folder) if folder else None)
        running = _BOOT / f"vmlinuz-{platform.release()}"
        others = sorted(_BOOT.glob("vmlinuz-*"), key=_by_version, reverse=True)
        seen: list[str] = []
        for image in dict.fromkeys([running, *others]):
            if not os.access(image, os.R_OK):
                if image.exists():
                    seen.append(f"{image} (not readable)")
                continue
            kernel = cls(image, Path(folder) if folder else None)
            if kernel.option("VFIO_PCI") and (kernel.option("VFIO_PCI") == "y" or kernel.modules):
                return kernel
            seen.append(str(image))
        listed = f": {', '.join(seen)}" if seen else ""
        raise KernelMissingError(
            f"this host has no kernel with VFIO and its modules in /boot{listed}", hint=INSTALL
        )

    @property
    def config(self) -> Mapping[str, str]:
        """Options without ``CONFIG_`` and their values; empty when nothing tells them.

        From ``config-*`` beside the image or in ``/boot``, else from inside the image.
        """
        if self._config is None:
            self._config = parse_config(self._config_text())
            self._data = None
        return self._config

    def option(self, name: str) -> str:
        """``y``, ``m`` or a value; empty when the option is off or nothing is known."""
        return self.config.get(name, "")

    def _config_text(self) -> str:
        suffix = self.image.name.partition("-")[2]
        beside = [self.image.with_name(f"config-{suffix}")] if suffix else []
        beside.append(self.image.with_name(".config"))
        if self.release:
            beside += [
                self.image.with_name(f"config-{self.release}"),
                _BOOT / f"config-{self.release}",
                self.modules.path / "config",
            ]
        for path in beside:
            if path.is_file() and os.access(path, os.R_OK):
                return path.read_text(encoding="utf-8", errors="replace")
        return embedded_config(self._data or b"")

    def require(self, needs: Iterable[Need]) -> None:
        """Raise :class:`KernelLacksError` naming every need that is not met.

        A kernel that does not tell its configuration passes: it may have everything.
        """
        lacking = self.lacking(needs)
        if not lacking:
            return
        modular = [need for need in lacking if self.option(need.option) == "m"]
        listed = "; ".join(f"CONFIG_{need.option} ({need.why})" for need in lacking)
        name = f"{self.image} ({self.release})" if self.release else str(self.image)
        if modular and len(modular) == len(lacking):
            raise KernelLacksError(
                f"{name} has these as modules, and {self.modules.path} lacks them: {listed}",
                tuple(need.option for need in lacking),
                hint="name the folder with its modules with --modules or in " + MODULES_VARIABLE,
            )
        raise KernelLacksError(
            f"{name} was built without {listed}",
            tuple(need.option for need in lacking),
            hint=INSTALL,
        )

    def lacking(self, needs: Iterable[Need]) -> list[Need]:
        """Those of ``needs`` that are not met; none where the configuration is not known."""
        return [need for need in needs if not self._meets(need)] if self.config else []

    def _meets(self, need: Need) -> bool:
        value = self.option(need.option)
        if value == "m":
            return bool(need.module) and need.module in self.modules
        return bool(value)


class Need:
    """A kernel option that something needs; ``module`` is its module's name, if it can be one."""

    __slots__ = ("module", "option", "why")

    def __init__(self, option: str, why: str, module: str = "") -> None:
        self.option = option
        self.why = why
        self.module = module


def _by_version(path: Path) -> list[int]:
    digits = "".join(character if character.isdigit() else " " for character in path.name)
    return [int(number) for number in digits.split()]


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise KernelMissingError(
            f"{image}: {error.strerror}",
            hint="vmlinuz is often readable by root only: sudo chmod +r it, or copy it"
            if isinstance(error, PermissionError)
            else INSTALL,
        ) from error


def _release(image: bytes) -> str:
    """The version in the header of a bzImage (boot protocol 2.00 on)."""
    if image[0x202:0x206] != b"HdrS":
        return ""
    (offset,) = struct.unpack_from("<H", image, 0x20E)
    text = image[offset + 0x200 : offset + 0x200 + 128].split(b"\0")[0]
    return text.split(b" ")[0].decode("ascii", "replace") if offset else ""


def parse_config(text: str) -> dict[str, str]:
    """Options of a ``.config``, without ``CONFIG_``; those not set are left out."""
    pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name.removeprefix("CONFIG_"): value.strip('"') for name, _equals, value in pairs}


def embedded_config(image: bytes) -> str:
    """The configuration inside an image (``CONFIG_IKCONFIG``), or an empty text."""
    from vfiokit.host.compression import decompress

    # The marker alone also turns up in compressed kernels; with gzip's magic it does not.
    for candidate in (image, _payload(image)):
        start = candidate.find(b"IKCFG_ST\x1f\x8b\x08")
        if start < 0:
            continue
        try:
            return decompress(candidate[start + 8 :]).decode("utf-8", "replace")
        except VfiokitError:
            continue
    return ""


def _payload(image: bytes) -> bytes:
    """The kernel proper inside a bzImage, where we can unpack it (boot protocol 2.08 on)."""
    from vfiokit.host.compression import decompress

    if image[0x202:0x206] != b"HdrS":
        return b""
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    try:
        return decompress(image[start : start + length])
    except VfiokitError:
        return b""

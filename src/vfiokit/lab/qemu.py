"""Find QEMU and learn what it can do.

``VFIOKIT_LAB_QEMU`` names an executable or the root folder of an unpacked system whose QEMU is run
through that system's own dynamic loader; otherwise ``qemu-system-x86_64`` comes from ``PATH``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from vfiokit.lab.failure import QemuMissingError, UnsupportedError

PROGRAM = "qemu-system-x86_64"
VARIABLE = "VFIOKIT_LAB_QEMU"
INSTALL = "install it: apt install qemu-system-x86 (Debian, Ubuntu), or name one in " + VARIABLE

_PROPERTY = re.compile(r"^\s+([\w.-]+)=<", re.MULTILINE)

SINCE: dict[str, str] = {
    "igb": "8.0",
    "pxb-pcie": "2.4",
    "virtio-iommu-pci": "5.0",
    "nvme-subsys": "6.0",
    "edu": "2.3",
}
"""QEMU releases in which devices appeared, for error messages."""


class Qemu:
    """A QEMU for x86-64 and its features, asked for once."""

    def __init__(
        self, command: tuple[str, ...], environment: Mapping[str, str], program: str = ""
    ) -> None:
        self.command = command
        """How to start it: the program and the options it needs to find its own files."""
        self.program = program or command[0]
        """The program itself, where a loader starts it."""
        self.environment = dict(environment)
        """Variables to add to the environment."""
        self._version: str | None = None
        self._properties: dict[str, frozenset[str] | None] = {}

    def __repr__(self) -> str:
        return f"<Qemu {' '.join(self.command)}>"

    @classmethod
    def find(cls, named: str = "") -> Qemu:
        """The QEMU that ``named``, ``VFIOKIT_LAB_QEMU`` or ``PATH`` leads to.

        Raises :class:`QemuMissingError`.
        """
        wanted = named or os.environ.get(VARIABLE, "")
        if not wanted:
            found = shutil.which(PROGRAM)
            if found is None:
                raise QemuMissingError(f"there is no {PROGRAM} in PATH", hint=INSTALL)
            return cls((found,), {})
        path = Path(wanted)
        if path.is_dir():
            return cls._of_root(path)
        program = shutil.which(wanted)
        if program is None:
            raise QemuMissingError(
                f"{wanted} is neither an executable nor the root of an unpacked system",
                hint=INSTALL,
            )
        return cls((program,), {})

    @classmethod
    def _of_root(cls, root: Path) -> Qemu:
        program = root / "usr/bin" / PROGRAM
        loaders = sorted(root.glob("usr/lib*/ld-linux-x86-64.so.2"))
        loaders += sorted(root.glob("usr/lib/*/ld-linux-x86-64.so.2"))
        if not program.exists() or not loaders:
            raise QemuMissingError(
                f"{root} holds no usr/bin/{PROGRAM} with its dynamic loader", hint=INSTALL
            )
        libraries = root / "usr/lib/x86_64-linux-gnu"
        search = f"{libraries}:{libraries}/pulseaudio"
        firmware = [
            word
            for folder in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
            for word in ("-L", str(root / folder))
        ]
        command = (str(loaders[0]), "--library-path", search, str(program), *firmware)
        return cls(command, {"QEMU_MODULE_DIR": str(libraries / "qemu")}, str(program))

    def _ask(self, *arguments: str) -> str:
        try:
            answer = subprocess.run(
                [*self.command, *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise QemuMissingError(f"{self.command[0]} does not run: {error}") from error
        if answer.returncode not in (0, 1):
            raise QemuMissingError(
                f"{' '.join(self.command)} {' '.join(arguments)} fails: {answer.stderr.strip()}",
                hint=INSTALL,
            )
        return answer.stdout

    @property
    def version(self) -> str:
        """Such as ``7.2.22``; empty when QEMU does not say."""
        if self._version is None:
            found = re.search(r"version (\d+(?:\.\d+)+)", self._ask("--version"))
            self._version = found[1] if found else ""
        return self._version

    def properties(self, device: str) -> frozenset[str] | None:
        """Properties of a device model; ``None`` when there is no such model.

        One model at a time: listing all makes QEMU load every module it has, and one unpacked
        beside another version finds the other's.
        """
        if device not in self._properties:
            answer = self._ask("-device", f"{device},help")
            found = frozenset(_PROPERTY.findall(answer)) if answer.strip() else None
            self._properties[device] = found
        return self._properties[device]

    def has_property(self, device: str, name: str) -> bool:
        """Whether ``-device`` of this model takes ``name=``."""
        return name in (self.properties(device) or ())

    def require(self, device: str, what: str) -> None:
        """Raise :class:`UnsupportedError` unless the model exists; ``what`` needs it."""
        if self.properties(device) is not None:
            return
        since = SINCE.get(device)
        needs = f"needs QEMU {since} or newer" if since else "needs a QEMU that has it"
        raise UnsupportedError(
            f"{what}: QEMU {self.version} has no device {device}; it {needs}",
            hint=f"name a newer QEMU in {VARIABLE}",
        )

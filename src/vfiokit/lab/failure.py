"""Errors of the lab::

LabError
├── QemuMissingError        no QEMU, or not the file named
├── KernelMissingError      no kernel with VFIO, or not the file named
├── KernelLacksError        the kernel was built without something needed; carries its options
├── UnsupportedError        this QEMU cannot express the machine asked for
├── GuestFailedError        the guest ended without a result; carries the console's last lines
│   └── GuestTimeoutError   … because its time was over
└── ScenarioError           a function run in the guest raised; carries the guest's traceback
"""

from __future__ import annotations

from vfiokit.errors import VfiokitError

TAIL_LINES = 25


class LabError(VfiokitError):
    """The lab could not do its work; says nothing about the command it was given."""


class QemuMissingError(LabError):
    """There is no QEMU to use."""


class KernelMissingError(LabError):
    """There is no kernel to boot."""


class KernelLacksError(LabError):
    """The kernel was built without something that is needed; ``options`` names it."""

    def __init__(self, message: str, options: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.options = options


class UnsupportedError(LabError):
    """QEMU, or this version of it, cannot express the machine asked for."""


class GuestFailedError(LabError):
    """The guest ended without a result; ``console`` is all that its console said."""

    def __init__(self, message: str, console: str, *, hint: str = "") -> None:
        lines = [line.rstrip() for line in console.splitlines() if line.strip()]
        tail = "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])
        said = f"; the console's last lines:\n{tail}" if tail else "; the console said nothing"
        super().__init__(message + said, hint=hint)
        self.console = console


class GuestTimeoutError(GuestFailedError, TimeoutError):
    """The guest was stopped because its time was over."""


class ScenarioError(LabError):
    """A function run in the guest raised; ``traceback`` is the guest's."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(f"{message}\n{traceback}" if traceback else message)
        self.traceback = traceback

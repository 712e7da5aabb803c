"""Driver binding of a PCI function through sysfs: its state, and the three writes that change it.

Source: Linux ``drivers/base/bus.c`` (``bind_store``: ENODEV when the driver does not match,
EBUSY when another is bound; ``unbind_store``: ENODEV when the function is bound to something
else), ``drivers/base/driver.c`` (``driver_set_override``: a line feed alone clears it),
``drivers/pci/pci-sysfs.c`` (an unset ``driver_override`` prints ``(null)``).
"""

from __future__ import annotations

import errno
import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from vfiokit.errors import AssignError, DeviceNotFoundError, UsageError
from vfiokit.host.tree import Tree, read_text
from vfiokit.kernel.port import WritableTree
from vfiokit.pci.address import Bdf

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"

_DRIVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.!-]*")


class Binding(NamedTuple):
    """Which driver a function has, and which one it insists on."""

    driver: str | None
    driver_override: str | None


class Action(StrEnum):
    """What a change does to a function."""

    SET_OVERRIDE = "set-override"
    UNBIND = "unbind"
    BIND = "bind"


@dataclass(frozen=True, slots=True)
class Change:
    """One write to sysfs, and the state it leads to.

    ``name`` is the driver to bind or to unbind from, or the override (``None`` clears it).
    Path and bytes follow from these, so that a plan read from a file can name no other file.
    """

    action: Action
    bdf: Bdf
    name: str | None

    @property
    def path(self) -> str:
        """The file written."""
        if self.action is Action.SET_OVERRIDE:
            return f"{DEVICES}/{self.bdf}/driver_override"
        return f"{DRIVERS}/{self.name}/{self.action}"

    @property
    def data(self) -> bytes:
        """The bytes written, in one ``write(2)``."""
        if self.action is Action.SET_OVERRIDE:
            return (self.name or "\n").encode()
        return str(self.bdf).encode()

    def needed(self, now: Binding) -> bool:
        """Whether this write would change a function whose state is ``now``.

        Unbinding is needed only from its own driver: from any other the kernel refuses.
        """
        if self.action is Action.SET_OVERRIDE:
            return now.driver_override != self.name
        if self.action is Action.UNBIND:
            return now.driver == self.name
        return now.driver != self.name

    def reached(self, now: Binding) -> bool:
        """Whether ``now`` is what this change was to bring about."""
        if self.action is Action.UNBIND:
            return now.driver != self.name
        return not self.needed(now)

    def describe(self) -> str:
        """The change in words."""
        if self.action is Action.SET_OVERRIDE:
            return (
                f"let only {self.name} bind {self.bdf}"
                if self.name
                else f"let any matching driver bind {self.bdf}"
            )
        if self.action is Action.UNBIND:
            return f"unbind {self.bdf} from {self.name}"
        return f"bind {self.bdf} to {self.name}"


def check_driver_name(name: str) -> str:
    """``name`` itself; :class:`UsageError` when it cannot be a folder of ``drivers/``."""
    if not _DRIVER_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a kernel driver")
    return name


def read_binding(tree: Tree, bdf: Bdf) -> Binding:
    """The present state of a function; :class:`DeviceNotFoundError` when it is not there."""
    folder = f"{DEVICES}/{bdf}"
    if not tree.exists(folder):
        raise DeviceNotFoundError(f"there is no PCI function {bdf} on this host")
    try:
        driver = posixpath.basename(tree.readlink(f"{folder}/driver"))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        driver = None
    try:
        override = read_text(tree, f"{folder}/driver_override")
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        override = ""
    return Binding(driver, None if override in ("", "(null)") else override)


def perform(tree: WritableTree, change: Change) -> bool:
    """Make one change and read it back; ``False`` when there was nothing to change.

    Raises ``OSError`` as the kernel does, and :class:`AssignError` when the kernel accepted the
    write and the state did not follow.
    """
    if not change.needed(read_binding(tree, change.bdf)):
        return False
    tree.write(change.path, change.data)
    now = read_binding(tree, change.bdf)
    if not change.reached(now):
        raise AssignError(
            f"the kernel accepted {change.data!r} in {change.path}, but {change.bdf} is now "
            f"bound to {now.driver or 'nothing'} with driver_override {now.driver_override or '-'}",
            hint="look into the kernel log: the driver's probe may have failed",
        )
    return True


def explain(change: Change, error: OSError) -> str:
    """What to do about the kernel's refusal of a change; empty when nothing is known."""
    if change.action is Action.BIND and error.errno in (errno.ENODEV, errno.EINVAL):
        return f"the probe of {change.name} refused it; the kernel log says why"
    if change.action is Action.BIND and error.errno == errno.EBUSY:
        return "another driver holds it, or a member of its IOMMU group is in use"
    if error.errno == errno.ENOENT and change.action is not Action.SET_OVERRIDE:
        return f"load the driver first: modprobe {change.name}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "writing to sysfs needs root"
    return ""

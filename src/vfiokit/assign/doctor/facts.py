"""What the checks may read: the host's files, and why an answer is missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from vfiokit.assign.doctor.finding import Evidence
from vfiokit.assign.survey import GroupMap
from vfiokit.host.archive import MANIFEST
from vfiokit.host.tree import FolderTree, Tree, read_text
from vfiokit.isolation.group import Grouping, predict
from vfiokit.pci.topology import Function, Topology

DEVICES = "/sys/bus/pci/devices"
GROUPS = "/sys/kernel/iommu_groups"
MODULES = "/sys/module"
_CAPTURED = (GROUPS, "/sys/class/iommu", "/dev/iommu", "/dev/vfio")
"""What every capture holds where the host has it, root or not."""


class Reading(NamedTuple):
    """One attempt to read a file."""

    path: str
    text: str | None
    """Its content without the last newline; ``None`` when it could not be had."""
    missing: str = ""
    """Why there is no text."""
    absent: bool = False
    """Whether the host itself has no such file: that is an answer too."""

    @property
    def evidence(self) -> Evidence:
        """The file, and what it said or why it said nothing."""
        if self.text is None:
            return Evidence(self.path, f"({self.missing})")
        return Evidence(self.path, shortened(self.text))


def shortened(text: str, length: int = 160) -> str:
    """The first line of ``text``, cut to ``length`` characters."""
    first, _, rest = text.partition("\n")
    return first if len(first) <= length and not rest else f"{first[: length - 1]}…"


class Facts:
    """A host as the checks see it."""

    def __init__(
        self,
        tree: Tree,
        topology: Topology,
        devices: tuple[Function, ...] = (),
        *,
        memory: int | None = None,
        complete: bool | None = None,
    ) -> None:
        self.tree = tree
        self.topology = topology
        self.devices = devices
        self.memory = memory
        """Bytes of memory that the guest shall have."""
        live = isinstance(tree, FolderTree) and tree.root == "/" and not tree.prefix
        self.complete = live if complete is None else complete
        """Whether what the tree lacks is not there on the host either."""

    def tells_of(self, path: str) -> bool:
        """Whether the host has no ``path`` when the tree has none.

        Of a live host that is so, and of what each capture looks for: an empty folder leaves no
        trace in one.
        """
        return self.complete or (self._is_capture and path.startswith(_CAPTURED))

    @cached_property
    def _is_capture(self) -> bool:
        return self.tree.exists(MANIFEST)

    def read(self, path: str) -> Reading:
        """Read a text file, and remember why not."""
        try:
            return Reading(path, read_text(self.tree, path).strip())
        except OSError as failure:
            code = failure.errno or errno.EIO
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
            if self.tells_of(path):
                return Reading(path, None, "there is no such file", absent=True)
            return Reading(path, None, "not in this description of the host")
        return Reading(path, None, os.strerror(code))

    def names(self, path: str) -> list[str] | None:
        """Names in a folder; ``None`` when it cannot be told, ``[]`` when the host has no such."""
        try:
            return self.tree.list(path)
        except OSError as failure:
            gone = failure.errno in (errno.ENOENT, errno.ENOTDIR)
            return [] if gone and self.tells_of(path) else None

    def exists(self, path: str) -> bool | None:
        """Whether the host has ``path``; ``None`` when this description of it does not tell."""
        return True if self.tree.exists(path) else False if self.tells_of(path) else None

    def attribute(self, function: Function, name: str) -> Reading:
        """A file of a function's own folder."""
        return self.read(f"{DEVICES}/{function.bdf}/{name}")

    def parameter(self, module: str, name: str) -> Reading:
        """A parameter of a loaded or built-in kernel module."""
        return self.read(f"{MODULES}/{module}/parameters/{name}")

    @cached_property
    def command_line(self) -> Reading:
        """``/proc/cmdline``."""
        return self.read("/proc/cmdline")

    def options(self, *names: str) -> Iterator[tuple[str, str]]:
        """``(name, value)`` of every word of the command line that sets one of ``names``.

        As the kernel does, ``-`` and ``_`` are one, and words after ``--`` are for init.
        """
        wanted = {name.replace("-", "_") for name in names}
        for word in (self.command_line.text or "").split():
            if word == "--":
                return
            name, _, value = word.partition("=")
            if name.replace("-", "_") in wanted:
                yield name, value.strip('"')

    @cached_property
    def group_map(self) -> GroupMap:
        """Groups as recorded, else as predicted."""
        return GroupMap(self.topology)

    @cached_property
    def grouping(self) -> Grouping:
        """Groups as the registers give them."""
        return predict(self.topology)

    @cached_property
    def units(self) -> list[str] | None:
        """Names of the IOMMU units: ``dmar0``, ``ivhd0``; ``None`` when not known."""
        found = self.names("/sys/class/iommu")
        # A test kernel's mock translates nothing.
        return found and [name for name in found if not name.startswith("iommufd_selftest")]

    @cached_property
    def vendor(self) -> str | None:
        """``intel``, ``amd``, or ``None``: who made the processor."""
        text = self.read("/proc/cpuinfo").text or ""
        if "GenuineIntel" in text:
            return "intel"
        if "AuthenticAMD" in text or "HygonGenuine" in text:
            return "amd"
        roots = [each for each in self.topology if (each.bdf.bus, each.bdf.devfn) == (0, 0)]
        makers = {0x8086: "intel", 0x1022: "amd", 0x1D94: "amd"}
        return makers.get(roots[0].identity.vendor_id) if roots else None

    @cached_property
    def is_x86(self) -> bool:
        """Whether the processor is known to be an x86."""
        return self.vendor is not None

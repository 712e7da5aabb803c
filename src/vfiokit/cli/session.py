"""Which machine a command talks to.

Outside a software machine that is what ``--host`` names; at the prompt of ``vfiokit machine`` it
is the twin, whatever the command line says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vfiokit.host.tree import Tree
    from vfiokit.kernel.port import Kernel
    from vfiokit.pci.topology import Topology


class Session:
    """The host behind a command: its files, its kernel, its topology."""

    def __init__(
        self,
        host: str = "live",
        kernel: Kernel | None = None,
        journal_folder: Path | None = None,
    ) -> None:
        self.host = host
        """``live``, ``demo``, or the path of a capture."""
        self.journal_folder = journal_folder
        """Where journals go unless the command line says otherwise; ``None``: the default."""
        self._kernel = kernel
        self._tree: Tree | None = None

    @property
    def tree(self) -> Tree:
        """The host's files."""
        if self._kernel is not None:
            return self._kernel.tree
        if self._tree is None:
            from vfiokit.host.source import open_tree

            self._tree = open_tree(self.host)
        return self._tree

    @property
    def kernel(self) -> Kernel:
        """The host's kernel: live, or a read-only recording."""
        if self._kernel is None:
            if self.host == "live":
                from vfiokit.kernel.linux import LinuxKernel

                self._kernel = LinuxKernel()
            else:
                from vfiokit.kernel.recording import RecordingKernel

                self._kernel = RecordingKernel(self.tree)
        return self._kernel

    def topology(self) -> Topology:
        """The host's PCI functions as they are now."""
        from vfiokit.host.sysfs import read_topology

        return read_topology(self.tree)

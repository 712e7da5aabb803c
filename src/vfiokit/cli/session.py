"""Which machine a command talks to.

Outside a software machine that is what ``--host`` names; at the prompt of ``vfiokit machine`` it
is the twin, whatever the command line says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vfiokit.host.source import Host
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
        """``live``, ``demo``, or the path of a capture or another description of a host."""
        self.journal_folder = journal_folder
        """Where journals go unless the command line says otherwise; ``None``: the default."""
        self.is_machine = kernel is not None
        """Whether this is the twin at the prompt of a machine; there it is what is live."""
        self._kernel = kernel
        self._opened: Host | None = None
        self._limits_said = False

    @property
    def tree(self) -> Tree:
        """The host's files; :class:`~vfiokit.errors.SourceError` where ``--host`` has none."""
        if self._kernel is not None:
            return self._kernel.tree
        return self._description.files()

    @property
    def _description(self) -> Host:
        """What ``--host`` names."""
        if self._opened is None:
            from vfiokit.host.source import open_host

            self._opened = open_host(self.host)
        return self._opened

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
        if self._kernel is None:
            self._say_limits()
            return self._description.topology()
        from vfiokit.host.sysfs import read_topology

        return read_topology(self._kernel.tree)

    @property
    def limits(self) -> tuple[str, ...]:
        """What the description of the host cannot tell; empty for a machine or this host."""
        return () if self._kernel is not None else self._description.limits

    def _say_limits(self) -> None:
        """Once, and on standard error: what a description without files cannot tell."""
        if self._description.tree is not None or self._limits_said:
            return
        from vfiokit.cli.render import note

        self._limits_said = True
        for limit in self._description.limits:
            note(f"note: {limit}")

"""What commands that list or show functions look at: the topology, and answers found once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from vfiokit.errors import SourceError

if TYPE_CHECKING:
    from vfiokit.cli.session import Session
    from vfiokit.host.tree import Tree
    from vfiokit.isolation.group import Grouping
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.topology import Function, Topology


class View:
    """A host's functions, with its predicted groups and its files when they are asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.topology: Topology = session.topology()

    @cached_property
    def grouping(self) -> Grouping:
        """The predicted IOMMU groups."""
        from vfiokit.isolation.group import predict

        return predict(self.topology)

    @cached_property
    def _uncertain(self) -> frozenset[Bdf]:
        return frozenset(self.grouping.uncertain)

    def is_uncertain(self, function: Function) -> bool:
        """Whether bytes that decide the group of ``function`` are missing, here or above it."""
        return function.bdf in self._uncertain

    @cached_property
    def has_recorded_groups(self) -> bool:
        """Whether the host's own kernel told any group."""
        return any(function.recorded.iommu_group is not None for function in self.topology)

    @cached_property
    def has_recorded_drivers(self) -> bool:
        """Whether the source tells drivers: a function without one then has none."""
        return any(function.recorded.driver is not None for function in self.topology)

    @cached_property
    def _tree(self) -> Tree | None:
        try:
            return self._session.tree
        except SourceError:
            return None

    def iommu(self, function: Function) -> str | None:
        """The IOMMU that translates for ``function``, by its name in ``/sys/class/iommu``."""
        target = self._link(function, "iommu")
        return target.rpartition("/")[2] if target else None

    def vital_product_data(self, function: Function) -> bytes:
        """The content of the function's ``vpd`` file; empty where there is none to read."""
        from vfiokit.host.sysfs import DEVICES

        if self._tree is None:
            return b""
        try:
            return self._tree.read(f"{DEVICES}/{function.bdf}/vpd")
        except OSError:
            return b""

    def _link(self, function: Function, name: str) -> str:
        from vfiokit.host.sysfs import DEVICES

        if self._tree is None:
            return ""
        try:
            return self._tree.readlink(f"{DEVICES}/{function.bdf}/{name}")
        except OSError:
            return ""

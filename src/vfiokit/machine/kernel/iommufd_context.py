"""What an open ``/dev/iommu`` holds: objects by id, and whom it counts memory to.

Source: Linux ``drivers/iommu/iommufd/main.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.iommu_group import Iommus
from vfiokit.machine.kernel.locked_memory import LockedMemory
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.pages import Account
from vfiokit.machine.kernel.process import AddressSpace


class IommufdObject:
    """Something with an id."""

    kind = "object"
    """What it is, for messages."""

    def __init__(self) -> None:
        self.id = 0
        """Its number, from 1; 0 while it is in no table."""
        self.users = 0
        """Other objects that need this one."""

    def __repr__(self) -> str:
        return f"<{self.kind} {self.id}>"

    def destroyed(self) -> None:
        """It was taken out of the table: let go of what it needs."""


Kind = TypeVar("Kind", bound=IommufdObject)


class ObjectTable:
    """Objects of all kinds by id; the lowest free id is given next."""

    def __init__(self) -> None:
        self._objects: dict[int, IommufdObject] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def add(self, made: IommufdObject) -> int:
        """Give ``made`` an id."""
        number = 1
        while number in self._objects:
            number += 1
        self._objects[number] = made
        made.id = number
        return number

    def get(self, number: int, kind: type[Kind]) -> Kind:
        """The object ``number``; ENOENT when there is none, or one of another kind."""
        found = self._objects.get(number)
        if not isinstance(found, kind):
            raise failure(errno.ENOENT, f"no {kind.kind} has the id {number}")
        return found

    def of(self, kind: type[Kind]) -> list[Kind]:
        """All objects of a kind, by id."""
        return [each for _number, each in sorted(self._objects.items()) if isinstance(each, kind)]

    def destroy(self, number: int) -> None:
        """``IOMMU_DESTROY``: ENOENT, or EBUSY while it is needed."""
        found = self.get(number, IommufdObject)
        if found.users:
            raise failure(errno.EBUSY, f"{found.kind} {number} is in use")
        self.remove(found)

    def remove(self, old: IommufdObject) -> None:
        """Take an object away, whoever uses it."""
        del self._objects[old.id]
        old.id = 0
        old.destroyed()

    def clear(self) -> None:
        """Take everything away, users first."""
        while self._objects:
            for each in list(self._objects.values()):
                if each.id and not each.users:
                    self.remove(each)


class Surroundings(NamedTuple):
    """The kernel around the iommufds."""

    process: AddressSpace
    iommus: Iommus
    locked: LockedMemory
    file_of: Callable[[int], OpenFile]
    """Open file of a descriptor; EBADF."""
    install: Callable[[OpenFile], int]
    """Gives an open file a descriptor."""
    unsafe_interrupts: Callable[[], bool]
    """Whether devices without isolated MSI may be bound: ``allow_unsafe_interrupts``."""


class IommufdContext(OpenFile):
    """An open ``/dev/iommu``. Bound devices hold it open."""

    name = "an iommufd"

    def __init__(self, around: Surroundings) -> None:
        super().__init__()
        self.around = around
        self.objects = ObjectTable()
        self.account = Account(around.locked)
        self.compat_ioas: IommufdObject | None = None
        """What VFIO's container requests act on."""
        self.no_iommu = False
        """It stands in for a container of groups without IOMMU."""
        self.groups: dict[int, object] = {}
        """State of every IOMMU group with a bound device, by number."""

    def release(self) -> None:
        """Nobody is left: everything goes."""
        self.objects.clear()

"""Questions to an iommufd and to device nodes, and what Linux 7.2 answers.

Asked of the fake by ``test_vfio_iommufd.py`` and of a real kernel by
``tests/lab/test_iommufd.py``: one table of answers for both.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from vfiokit.errors import UsageError
from vfiokit.kernel.port import Kernel
from vfiokit.vfio import (
    CdevBackend,
    FaultQueue,
    Hwpt,
    Ioas,
    Iommufd,
    IovaRange,
    hardware_info,
    open_device,
)

PAGE = 4096
MSI = IovaRange(0xFEE00000, 0xFEEFFFFF)


def ask(question: Callable[[], object]) -> object:
    """The answer, or the name of the error; address spaces and devices are closed again."""
    try:
        answer = question()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except UsageError:
        return "UsageError"
    if hasattr(answer, "close"):
        answer.close()
        return "opened"
    return answer


def alone(kernel: Kernel, bdf: str) -> dict[str, object]:
    """An IOAS without a device, and devices that do not fit it."""
    memory = kernel.allocate(16 * PAGE)
    vaddr = memory.vaddr
    file = os.memfd_create("mapped")
    os.ftruncate(file, 4 * PAGE)
    with Iommufd.open(kernel) as iommufd:
        answers = {
            "account by process": ask(lambda: iommufd.account_by_process()),
            "accounts by process": iommufd.accounts_by_process,
            "destroy 0": ask(lambda: iommufd.destroy(0)),
            "container's ioas": iommufd.container_ioas_id,
        }
        with Ioas.create(iommufd) as space, Ioas.create(iommufd) as other:
            questions: dict[str, Callable[[], object]] = {
                "account too late": lambda: iommufd.account_by_process(False),
                "ranges": lambda: [tuple(one) for one in space.iova_ranges],
                "map": lambda: space.map(vaddr, PAGE, iova=0x10000),
                "map again": lambda: space.map(vaddr, PAGE, iova=0x10000),
                "overlap": lambda: space.map(vaddr, 4 * PAGE, iova=0x10000 - PAGE),
                "map the last page": lambda: space.map(vaddr, PAGE, iova=(1 << 64) - PAGE),
                "open beyond aperture": lambda: open_device(kernel, bdf, address_space=space),
                "unmap the last page": lambda: space.unmap((1 << 64) - PAGE, PAGE),
                "odd length": lambda: space.map(vaddr, 100, iova=0x30000),
                "open with odd length": lambda: open_device(kernel, bdf, address_space=space),
                "unmap odd length": lambda: space.unmap(0x30000, 100),
                "odd length, any iova": lambda: space.map(vaddr, 100),
                "unmapped vaddr": lambda: space.map(0x1000, PAGE, iova=0x40000),
                "open with that": lambda: open_device(kernel, bdf, address_space=space),
                "unmap that": lambda: space.unmap(0x40000, PAGE),
                "unmap twice": lambda: space.unmap(0x40000, PAGE),
                "map msi window": lambda: space.map(vaddr, PAGE, iova=MSI.start),
                "open over msi": lambda: open_device(kernel, bdf, address_space=space),
                "unmap all": space.unmap_all,
                "unmap all again": space.unmap_all,
                "mappings left": lambda: space.mappings,
                "allow one byte": lambda: space.allow_iovas([IovaRange(5, 5)]),
                "allow overlapping": lambda: space.allow_iovas(
                    [IovaRange(0, 0xFFFF), IovaRange(0x8000, 0x1FFFF)]
                ),
                "allow msi": lambda: space.allow_iovas([MSI]),
                "open over allowed msi": lambda: open_device(kernel, bdf, address_space=space),
                "allow anything": lambda: space.allow_iovas([]),
                "two areas": lambda: [
                    space.map(vaddr, 2 * PAGE, iova=0x40000),
                    space.map(vaddr + 2 * PAGE, 2 * PAGE, iova=0x42000),
                ],
                "copy over both": lambda: other.copy_from(space, 0x41000, 2 * PAGE, iova=0x90000),
                "copy of a hole": lambda: other.copy_from(space, 0x43000, 2 * PAGE),
                "unmap a part": lambda: space.unmap(0x41000, 2 * PAGE),
                "both are left": lambda: sorted(space.mappings),
                "unmap both": lambda: space.unmap(0x40000, 4 * PAGE),
                "copy is left": lambda: sorted(other.mappings),
                "file": lambda: space.map_file(file, 2 * PAGE, start=PAGE, iova=0x50000),
                "no file": lambda: space.map_file(9999, PAGE),
                "change process": iommufd.change_process,
            }
            answers |= {name: ask(question) for name, question in questions.items()}
    os.close(file)
    memory.close()
    return answers


ALONE: dict[str, object] = {
    "account by process": None,
    "accounts by process": True,
    "destroy 0": "ENOENT",
    "container's ioas": None,
    "account too late": "EBUSY",
    "ranges": [(0, (1 << 64) - 1)],
    "map": 0x10000,
    "map again": "EEXIST",
    "overlap": "EEXIST",
    "map the last page": (1 << 64) - PAGE,
    "open beyond aperture": "EADDRINUSE",
    "unmap the last page": None,
    "odd length": 0x30000,
    "open with odd length": "EADDRINUSE",
    "unmap odd length": None,
    "odd length, any iova": "UsageError",
    "unmapped vaddr": 0x40000,
    "open with that": "EFAULT",
    "unmap that": None,
    "unmap twice": "ENOENT",
    "map msi window": MSI.start,
    "open over msi": "EADDRINUSE",
    "unmap all": None,
    "unmap all again": None,
    "mappings left": {},
    "allow one byte": "EINVAL",
    "allow overlapping": "EINVAL",
    "allow msi": None,
    "open over allowed msi": "EADDRINUSE",
    "allow anything": None,
    "two areas": [0x40000, 0x42000],
    "copy over both": 0x90000,
    "copy of a hole": "ENOENT",
    "unmap a part": "ENOENT",
    "both are left": [0x40000, 0x42000],
    "unmap both": None,
    "copy is left": [0x90000],
    "file": 0x50000,
    "no file": "EBADF",
    "change process": "EINVAL",
}


def attached(kernel: Kernel, bdf: str) -> dict[str, object]:
    """An IOAS with a device on an IOMMU that neither nests nor tracks."""
    memory = kernel.allocate(PAGE)
    vaddr = memory.vaddr
    with Iommufd.open(kernel) as iommufd, Ioas.create(iommufd) as space:
        with open_device(kernel, bdf, address_space=space) as device:
            backend = device.backend
            assert isinstance(backend, CdevBackend)
            number = backend.cdev.device_id

            def with_table(**wishes: bool) -> list[object]:
                with Hwpt.create(space, number, **wishes) as table:
                    backend.attach(table)
                    seen = [ask(table.close)]
                    backend.attach(space)
                return seen

            def plain_table(question: Callable[[Hwpt], object]) -> object:
                with Hwpt.create(space, number) as table:
                    return ask(lambda: question(table))

            def queue() -> object:
                with FaultQueue.create(iommufd) as faults:
                    return faults.fileno() >= 0

            questions: dict[str, Callable[[], object]] = {
                "device": lambda: number,
                "ranges are cut": lambda: (
                    space.iova_ranges[0] == (0, MSI.start - 1)
                    and space.iova_ranges[1].start == MSI.last + 1
                ),
                "page size": lambda: space.page_size,
                "close used": space.close,
                "odd length": lambda: space.map(vaddr, 100, iova=0x30000),
                "msi window": lambda: space.map(vaddr, PAGE, iova=MSI.start),
                "unmapped vaddr": lambda: space.map(0x1000, PAGE),
                "allow msi": lambda: space.allow_iovas([MSI]),
                "map": lambda: space.map(vaddr, PAGE, iova=0x10000),
                "no large pages": lambda: space.use_large_pages(False),
                "hardware": lambda: hardware_info(iommufd, number).type,
                "hardware of an AMD": lambda: hardware_info(iommufd, number, 4),
                "hardware of nothing": lambda: hardware_info(iommufd, 777),
                "page table": with_table,
                "page table for PASIDs": lambda: Hwpt.create(space, number, pasid=True),
                "nesting parent": lambda: with_table(nest_parent=True),
                "dirty tracking": lambda: with_table(dirty_tracking=True),
                "track": lambda: plain_table(lambda table: table.start_dirty_tracking()),
                "bitmap": lambda: plain_table(lambda table: table.dirty_bitmap(0x10000, PAGE)),
                "invalidate": lambda: plain_table(lambda table: table.invalidate(0, bytes(24), 24)),
                "nested": lambda: plain_table(lambda table: Hwpt.create(table, number)),
                "fault queue": queue,
                "pasid of an ioas": lambda: backend.attach(space, pasid=5),
                "detach pasid": lambda: backend.detach(pasid=5),
                "bind twice": lambda: backend.cdev.bind(iommufd),
                "open again": lambda: open_device(kernel, bdf, address_space=space),
                "open in another": lambda: open_device(kernel, bdf, backend="cdev"),
                "open by group": lambda: open_device(kernel, bdf, backend="group"),
                "detach": backend.detach,
                "detach again": backend.detach,
                "ranges are whole": lambda: [tuple(one) for one in space.iova_ranges],
                "unaligned now": lambda: space.map(vaddr, 100, iova=0x30000),
                "unmap it": lambda: space.unmap(0x30000, 100),
                "attach": lambda: backend.attach(space) > 0,
            }
            answers = {name: ask(question) for name, question in questions.items()}
        answers["ranges afterwards"] = [tuple(one) for one in space.iova_ranges]
        answers["mapping stays"] = space.mappings
    memory.close()
    return answers


ATTACHED: dict[str, object] = {
    "device": 2,
    "ranges are cut": True,
    "page size": PAGE,
    "close used": "EBUSY",
    "odd length": "EINVAL",
    "msi window": "EINVAL",
    "unmapped vaddr": "EFAULT",
    "allow msi": "EADDRINUSE",
    "map": 0x10000,
    "no large pages": "EINVAL",
    "hardware": 1,
    "hardware of an AMD": "ENOTSUP",
    "hardware of nothing": "ENOENT",
    "page table": ["EBUSY"],
    "page table for PASIDs": "opened",
    "nesting parent": "ENOTSUP",
    "dirty tracking": "ENOTSUP",
    "track": "ENOTSUP",
    "bitmap": "ENOTSUP",
    "invalidate": "EINVAL",
    "nested": "ENOTSUP",
    "fault queue": True,
    "pasid of an ioas": "EINVAL",
    "detach pasid": None,
    "bind twice": "EINVAL",
    "open again": "EINVAL",
    "open in another": "EINVAL",
    "open by group": "EBUSY",
    "detach": None,
    "detach again": None,
    "ranges are whole": [(0, (1 << 64) - 1)],
    "unaligned now": 0x30000,
    "unmap it": None,
    "attach": True,
    "ranges afterwards": [(0, (1 << 64) - 1)],
    "mapping stays": {0x10000: PAGE},
}

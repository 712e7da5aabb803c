"""What ``test_iommufd.py`` does inside a guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import iommufd_answers
from iommufd_answers import ask

from vfiokit.driver.edu import MAX_IOVA, Edu
from vfiokit.errors import KernelError
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.lab import guest_devices
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Cdev, CdevBackend, Hwpt, Ioas, IovaRange, open_device
from vfiokit.vfio.feature import Features
from vfiokit.vfio.migration import Migration, MigrationState

PAGE = 4096
DEVICES = "/sys/bus/pci/devices"
MTTY = "/sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-1/create"


def unbind(kernel: LinuxKernel, bdf: Bdf) -> None:
    if os.path.exists(f"{DEVICES}/{bdf}/driver"):
        kernel.tree.write(f"{DEVICES}/{bdf}/driver/unbind", str(bdf).encode())


def on_vfio(*names: str) -> tuple[LinuxKernel, list[Bdf]]:
    """Functions by their names in the topology, bound to vfio-pci."""
    kernel = LinuxKernel()
    bdfs = [guest_devices()[name] for name in names]
    for bdf in bdfs:
        unbind(kernel, bdf)
        kernel.tree.write(f"{DEVICES}/{bdf}/driver_override", b"vfio-pci")
        kernel.tree.write("/sys/bus/pci/drivers_probe", str(bdf).encode())
    return kernel, bdfs


@contextmanager
def refusal(found: dict[str, object], name: str) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        found[name] = [type(error).__name__, error.errno, error.hint]


def answers() -> list[dict[str, object]]:
    kernel, (bdf,) = on_vfio("edu0")
    return [
        iommufd_answers.alone(kernel, str(bdf)),
        iommufd_answers.attached(kernel, str(bdf)),
    ]


def page_table_of_one_s_own() -> str:
    """DMA through a page table made by hand, put in place of the automatic one."""
    kernel, (bdf,) = on_vfio("edu0")
    with open_device(kernel, bdf, backend="cdev") as device, Edu(device) as edu:
        backend, space = device.backend, device.address_space
        assert isinstance(backend, CdevBackend)
        assert isinstance(space, Ioas)
        with edu.allocate() as buffer, Hwpt.create(space, backend.cdev.device_id) as table:
            buffer.view[:4] = b"hwpt"
            backend.attach(table)
            edu.to_device(buffer.iova, 4)
            buffer.view[:4] = bytes(4)
            backend.attach(space)
            edu.from_device(buffer.iova, 4)
            return bytes(buffer.view[:4]).decode()


def peer_to_peer() -> dict[str, object]:
    """edu writes into an NVMe drive's controller memory buffer by way of a dma-buf."""
    kernel, (edu_bdf, nvme_bdf) = on_vfio("edu0", "nvme0")
    found: dict[str, object] = {}
    with (
        Ioas.open(kernel) as space,
        open_device(kernel, nvme_bdf, address_space=space) as peer,
        open_device(kernel, edu_bdf, address_space=space) as device,
        Edu(device) as edu,
        edu.allocate() as buffer,
    ):
        peer.set_memory_enabled(True)
        region = peer.region(2)
        window = region.map(0, PAGE)
        with peer.export(2, 0, 16 * PAGE) as export:
            iova = space.map_file(export.fileno(), export.length, max_iova=MAX_IOVA)
            buffer.view[:8] = b"peertope"
            edu.to_device(buffer.iova, 8)
            edu.from_device(iova + 0x100, 8)
            found["landed"] = window.read64(0x100).to_bytes(8, "little").decode()
            found["map of no memory"] = ask(lambda: space.map_file(kernel.eventfd(), PAGE))
        with peer.export(2, 0, 16 * PAGE) as export:
            beyond = export.length + PAGE
            found["map beyond"] = ask(lambda: space.map_file(export.fileno(), beyond))
            peer.set_memory_enabled(False)
            found["map revoked"] = ask(lambda: space.map_file(export.fileno(), export.length))
            peer.set_memory_enabled(True)
            again = space.map_file(export.fileno(), export.length)
            found["map again"] = again > 0
        found["unaligned"] = ask(lambda: peer.export(2, 5, 5))
        found["config space"] = ask(lambda: peer.export(7))
    return found


def dirty_pages_of_a_container() -> dict[str, object]:
    kernel, (bdf,) = on_vfio("edu0")
    with open_device(kernel, bdf, backend="group") as device:
        space = device.address_space
        buffer = space.allocate(70 * PAGE, iova=0x100000)
        early = ask(lambda: space.dirty_bitmap(0x100000, 70 * PAGE))
        space.start_dirty_tracking()
        ranges = list(space.dirty_bitmap(0x100000, 70 * PAGE).ranges())
        part = ask(lambda: space.dirty_bitmap(0x100000, PAGE))
        last = len(space.unmap_dirty(0x100000, 70 * PAGE))
        left = space.mappings
        buffer.close()
        space.stop_dirty_tracking()
    with open_device(kernel, bdf, iommu_type=1) as device:
        version_1 = ask(device.address_space.start_dirty_tracking)
    return {
        "early": early,
        "ranges": [(one.start, one.last) for one in ranges],
        "part": part,
        "last": last,
        "left": left,
        "version 1": version_1,
    }


def vf_tokens() -> dict[str, object]:
    kernel, (bdf,) = on_vfio("drive")
    token = uuid4()
    found: dict[str, object] = {}
    with open_device(kernel, bdf) as device:
        device.features.set_vf_token(token)
        kernel.tree.write(f"{DEVICES}/{bdf}/sriov_numvfs", b"1")
        vf = Path(f"{DEVICES}/{bdf}/virtfn0").resolve().name

        def vendor(backend: str, given: UUID | str | None) -> object:
            with open_device(kernel, vf, backend=backend, vf_token=given) as function:
                return function.config.u16(0)

        for backend in ("cdev", "group"):
            given = {"none": None, "wrong": UUID(int=7), "right": token, "as text": str(token)}
            found[backend] = {
                name: ask(lambda backend=backend, one=one: vendor(backend, one))
                for name, one in given.items()
            }
    return found


def refusals() -> dict[str, object]:
    """Two functions of one group, and who may open which."""
    kernel, (first, second) = on_vfio("a", "b")
    found: dict[str, object] = {}
    with (
        open_device(kernel, first, backend="group"),
        refusal(found, "node while group is open"),
    ):
        open_device(kernel, second, backend="cdev")
    with open_device(kernel, first, backend="cdev") as device:
        space = device.address_space
        assert isinstance(space, Ioas)
        with refusal(found, "group while node is open"):
            open_device(kernel, second, backend="group")
        with refusal(found, "another iommufd"):
            open_device(kernel, second, backend="cdev")
        with Ioas.create(space.iommufd) as other, refusal(found, "another ioas"):
            open_device(kernel, second, address_space=other)
        with open_device(kernel, second, address_space=space) as twin:
            found["shared"] = twin.address_space is space
            found["affected"] = [one.owned for one in device.hot_reset_affects()]
            device.hot_reset()
    unbind(kernel, second)
    kernel.tree.write(f"{DEVICES}/{second}/driver_override", b"\n")
    with refusal(found, "no driver"):
        open_device(kernel, second, backend="cdev")
    return found


def host_driver_in_the_group() -> dict[str, object]:
    kernel, (bdf,) = on_vfio("a")
    found: dict[str, object] = {}
    for backend in ("cdev", "group"):
        try:
            open_device(kernel, bdf, backend=backend)
        except KernelError as error:
            found[backend] = [type(error).__name__, getattr(error, "blockers", None)]
    return found


def no_isolated_msi() -> dict[str, object]:
    kernel, (bdf,) = on_vfio("edu0")
    for module in ("iommufd", "vfio_iommu_type1"):
        kernel.tree.write(f"/sys/module/{module}/parameters/allow_unsafe_interrupts", b"0")
    found: dict[str, object] = {}
    for backend in ("cdev", "group"):
        with refusal(found, backend):
            open_device(kernel, bdf, backend=backend)
    return found


def without_iommu() -> dict[str, object]:
    kernel, (bdf,) = on_vfio("edu0")
    found: dict[str, object] = {}
    with open_device(kernel, bdf) as device, Edu(device) as edu:
        found["factorial"] = edu.factorial(5)
        found["interrupt"] = edu.raise_interrupt()
        with refusal(found, "map"):
            edu.allocate()
    with refusal(found, "node"):
        open_device(kernel, bdf, backend="cdev")
    return found


def compatible_container() -> dict[str, object]:
    """A container that iommufd stands in for knows its ranges once the device is open."""
    kernel, (bdf,) = on_vfio("edu0")
    with open_device(kernel, bdf, backend="group") as device, Edu(device) as edu:
        space = device.address_space
        with edu.allocate() as buffer:
            edu.to_device(buffer.iova, 4)
        return {
            "ranges": [tuple(one) for one in space.iova_ranges],
            "dirty": ask(space.start_dirty_tracking),
        }


def migration_of_a_sample_device() -> dict[str, object]:
    """The kernel's mtty sample migrates: 24 bytes and 36 per port."""
    kernel = LinuxKernel()
    name = str(uuid4())
    kernel.tree.write(MTTY, name.encode())
    (node,) = Path(f"/sys/bus/mdev/devices/{name}/vfio-dev").iterdir()
    fd = kernel.open(f"/dev/vfio/devices/{node.name}")
    with Ioas.open(kernel) as space, Cdev(kernel, fd, Bdf.parse("0000:00:00.0")) as cdev:
        cdev.bind(space.iommufd)
        cdev.attach(space)
        migration = Migration(Features(kernel, fd, name))
        found: dict[str, object] = {
            "abilities": int(migration.abilities),
            "state": int(migration.state),
            "size": migration.stop_copy_size,
        }
        with migration.set_state(MigrationState.PRE_COPY) as stream:
            found["info"] = tuple(stream.precopy_info())
            before = os.read(stream.fileno(), 4096)
            migration.set_state(MigrationState.STOP_COPY)
            found["info too late"] = ask(stream.precopy_info)
            state = before + os.read(stream.fileno(), 4096)
            found["read"] = [len(state), len(os.read(stream.fileno(), 4096))]
        found["no way"] = ask(lambda: migration.set_state(MigrationState.PRE_COPY))
        found["state after"] = int(migration.state)
        with migration.set_state(MigrationState.RESUMING) as stream:
            found["written"] = os.write(stream.fileno(), state)
        found["running"] = migration.set_state(MigrationState.RUNNING)
    return found


def features_of_edu() -> dict[str, object]:
    kernel, (bdf,) = on_vfio("edu0")
    with open_device(kernel, bdf) as device:
        probe = device.features.probe
        return {
            "get": [number for number in range(13) if probe(number, get=True)],
            "set": [number for number in range(13) if probe(number, set=True)],
            "abilities": int(device.migration.abilities),
            "log": ask(lambda: device.dma_log.start([IovaRange(0, PAGE - 1)])),
            "low power": device.low_power.supported,
            "token": ask(lambda: device.features.set_vf_token(UUID(int=1))),
        }

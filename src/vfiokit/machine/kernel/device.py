"""A function bound to vfio-pci: opening it, its file, its ioctls.

Source: Linux ``vfio_pci_core.c`` (``vfio_pci_core_enable``, ``_disable``, ``_ioctl``).
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeAlias

from vfiokit.abi import pci_regs as regs
from vfiokit.abi import vfio as abi
from vfiokit.machine.clock import Clock
from vfiokit.machine.kernel import hot_reset
from vfiokit.machine.kernel.argument import Argument, append_chain, buffer_of, fetch, store
from vfiokit.machine.kernel.atomic import enable_atomics
from vfiokit.machine.kernel.config_space import VirtualConfig
from vfiokit.machine.kernel.container import VfioGroup
from vfiokit.machine.kernel.dma_buf import Exports
from vfiokit.machine.kernel.event import Event, EventWatch
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.feature import device_feature
from vfiokit.machine.kernel.ioeventfd import IoEventfds
from vfiokit.machine.kernel.iommu_group import IommuGroup
from vfiokit.machine.kernel.iommufd_compat import compat_ioas
from vfiokit.machine.kernel.iommufd_context import IommufdContext
from vfiokit.machine.kernel.iommufd_device import IommufdDevice, bind
from vfiokit.machine.kernel.irq import ERR, MSI, REQ, Irqs, msix_place
from vfiokit.machine.kernel.message import Interrupts
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.pci_device import D0, D3HOT, PciDevice
from vfiokit.machine.kernel.process import AddressSpace
from vfiokit.machine.kernel.region import COUNT, DeviceMapping, Regions

_SRIOV = 0x10


class Host(Protocol):
    """What an opened function needs of the kernel around it."""

    @property
    def clock(self) -> Clock:
        """Virtual time."""
        ...

    @property
    def process(self) -> AddressSpace:
        """Memory of the calling process."""
        ...

    @property
    def interrupts(self) -> Interrupts:
        """The interrupt system."""
        ...

    @property
    def watch(self) -> EventWatch:
        """Eventfds that the kernel acts on."""
        ...

    @property
    def vfio_requests(self) -> VfioRequests:
        """What loaded modules answer beyond vfio-pci."""
        ...

    @property
    def buses(self) -> hot_reset.Buses:
        """The PCI core."""
        ...

    def file_of(self, fd: int) -> OpenFile:
        """The open file of a descriptor; EBADF."""
        ...

    def install(self, file: OpenFile) -> int:
        """Give an open file a descriptor."""
        ...

    def group_of(self, device: PciDevice) -> IommuGroup | None:
        """The IOMMU group of a function."""
        ...

    def vfio_device(self, device: PciDevice) -> VfioPciDevice | None:
        """The same function's vfio-pci state; ``None`` when it is bound to something else."""
        ...


class VfioPciDevice:
    """A function bound to vfio-pci (``struct vfio_pci_core_device``)."""

    def __init__(self, device: PciDevice, host: Host, *, idle_in_d3: bool = True) -> None:
        self.device = device
        self.host = host
        self._idle_in_d3 = idle_in_d3
        self.open_count = 0
        self.token: str | None = None
        self.physical: Callable[[], VfioPciDevice | None] = lambda: None
        """The PF's state, for a VF whose PF is on vfio-pci too."""
        self.virtual_users: Callable[[], int] = lambda: 0
        """How many VFs of this PF are open."""
        self.binding: IommufdDevice | None = None
        """What it is in the iommufd that owns it."""
        self._opened: Opened | None = None
        self._idle_state: dict[tuple[int, int], int] | None = None
        self._stays_awake = False
        self.at_last_close: list[Callable[[], None]] = []
        """Called, and forgotten, when nobody uses it any more."""

    # -- binding ------------------------------------------------------------------------------

    def bound(self) -> None:
        """Just bound: a PF gets a random VF token, and the idle function goes to D3hot."""
        if self.device.find_extended(_SRIOV):
            self.token = str(uuid.uuid4())
        self._idle()

    def _idle(self) -> None:
        """Nobody uses the function: to D3hot, unless ``disable_idle_d3`` was set."""
        if not self._idle_in_d3 or self._stays_awake:
            return
        self._idle_state = self.device.save()
        self.device.set_power(D3HOT)

    def unbound(self) -> None:
        """About to be unbound; the function is idle."""
        self._wake()

    def _wake(self) -> None:
        if self._idle_state is not None:
            self.device.set_power(D0)
            self.device.restore(self._idle_state)
            self._idle_state = None

    def stay_awake(self, on: bool) -> None:
        """A PF with VFs stays in D0 while nobody uses it."""
        self._stays_awake = on
        if self._opened is None:
            if on:
                self._wake()
            else:
                self._idle()

    def request(self) -> bool:
        """Ask the user to let go (REQ); whether anybody listens."""
        return self._opened is not None and self._opened.irqs.signal_single(REQ)

    # -- group --------------------------------------------------------------------------------

    def check_token(self, token: str | None) -> None:
        """The rules for VF tokens (``vfio_pci_validate_vf_token``)."""
        if self.device.is_virtual:
            owner = self.physical()
            if owner is None or owner.token is None:
                if token is not None:
                    raise failure(errno.EINVAL, "the PF is not on vfio-pci: no token is needed")
            elif token is None:
                raise failure(errno.EACCES, "the PF is on vfio-pci: a VF token is needed")
            elif token != owner.token:
                raise failure(errno.EACCES, "wrong VF token")
        elif self.token is None and token is not None:
            raise failure(errno.EINVAL, "a VF token is for PFs and VFs")
        elif self.token is not None and self.virtual_users() and token != self.token:
            raise failure(errno.EACCES, "VFs are in use: the token must be theirs")
        elif token is not None:
            self.token = token

    def start(self, context: IommufdContext | None = None) -> Opened:
        """One user more; the first one binds it to ``context``, enables and resets it.

        EPERM when its group is used by others, without isolated MSI.
        """
        if self._opened is None:
            if context is not None:
                group = self.host.group_of(self.device)
                assert group is not None
                self.binding = bind(context, self.device, group)
            try:
                self._wake()
                self._opened = Opened(self, self.host)
            except OSError:
                self._unbind()
                raise
        self.open_count += 1
        return self._opened

    def open(self, group: VfioGroup) -> OpenFile:
        """A new open file of the group; with an iommufd as container it is attached to its IOAS."""
        context = None if group.iommu.noiommu else group.iommufd
        opened = self.start(context)
        if context is not None and self.binding is not None and not self.binding.is_attached:
            try:
                self.binding.attach(compat_ioas(context).id)
            except OSError:
                self.closed()
                raise
        return GroupDeviceFile(self, opened, group)

    def closed(self) -> None:
        """One user less; the last one resets and restores the function."""
        self.open_count -= 1
        if not self.open_count and self._opened is not None:
            while self.at_last_close:
                self.at_last_close.pop()()
            opened, self._opened = self._opened, None
            opened.close()
            self._idle()
            self._unbind()

    def _unbind(self) -> None:
        if self.binding is not None:
            binding, self.binding = self.binding, None
            binding.unbind()

    def report_error(self) -> None:
        """An uncorrectable error of the function: signal ERR."""
        if self._opened is not None:
            self._opened.irqs.signal_single(ERR)

    def was_reset(self) -> None:
        """The bus of the function was reset while it was open."""
        if self._opened is not None:
            self._opened.was_reset()


VfioRequests: TypeAlias = dict[int, Callable[[VfioPciDevice, Argument], int]]
"""Requests of an open device, by number."""


class Opened:
    """What exists while at least one descriptor of the function is open."""

    def __init__(self, owner: VfioPciDevice, host: Host) -> None:
        device = owner.device
        self.owner = owner
        self.device = device
        self.host = host
        self.power_state = D0
        self.low_power = False
        self._wakeup: Event | None = None
        self._before_d3: dict[tuple[int, int], int] | None = None
        device.set_master(False)
        device.enable()
        try:
            self.reset_works = self._try_reset()
        except OSError:
            device.disable()
            raise
        command = device.read(regs.PCI_COMMAND, 2)
        if command & regs.PCI_COMMAND_INTX_DISABLE:
            device.update(regs.PCI_COMMAND, 2, clear=regs.PCI_COMMAND_INTX_DISABLE)
        self._saved = device.save()
        self.msix = msix_place(device)
        self.config = VirtualConfig(device, self, has_intx=True)
        self.irqs = Irqs(device, host.interrupts, host.watch, self.config)
        device.restore_msi = self.irqs.restore_messages
        self.regions = Regions(device, self, host.clock, host.process)
        self.ioeventfds = IoEventfds(device, self, host.watch)
        self.exports = Exports(device)

    def _try_reset(self) -> bool:
        try:
            self.device.reset()
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise
            return False
        return True

    def close(self) -> None:
        """Quiesce, reset, restore (``vfio_pci_core_disable``)."""
        device = self.device
        device.set_master(False)
        self.exports.close()
        self.irqs.close()
        self.ioeventfds.close()
        self._drop_wakeup()
        device.restore_msi = None
        device.set_power(D0)
        device.write(regs.PCI_COMMAND, 2, regs.PCI_COMMAND_INTX_DISABLE)
        if self.reset_works:
            with suppress(OSError):
                device.reset()
        device.restore(self._saved)
        device.disable()

    # -- what the emulated configuration space sets off ---------------------------------------

    @property
    def memory_accessible(self) -> bool:
        """Whether the user may touch memory BARs."""
        return self.power_state < D3HOT and not self.low_power and self.config.memory_enabled

    @property
    def msi_enabled(self) -> bool:
        """Whether MSI is the active kind of interrupt."""
        return self.irqs.active == MSI

    @property
    def msi_qmax(self) -> int:
        """Logarithm of the enabled MSI vectors."""
        return self.irqs.msi_qmax

    def set_intx_disabled(self, disabled: bool) -> None:
        """The user's INTx Disable bit."""
        self.irqs.intx.set_user_disabled(disabled)

    def reset_by_write(self) -> None:
        """A reset by writing the FLR bit; failures are not reported."""
        self.exports.revoke()
        with suppress(OSError):
            self.device.reset()
            self.power_state = D0
        self.decoding_changed()

    def decoding_changed(self) -> None:
        """Whether memory can be reached may have changed."""
        if self.memory_accessible:
            self.exports.restore()
        else:
            self.exports.revoke()

    def reset(self) -> None:
        """``VFIO_DEVICE_RESET``."""
        self.exports.revoke()
        self.device.reset()
        self.was_reset()

    def was_reset(self) -> None:
        """The function was reset, by itself or with its bus."""
        self.power_state = D0
        self.exports.revoke()
        self.decoding_changed()

    def set_power_state(self, state: int) -> None:
        """PMCSR written; a return from D3hot restores what the transition lost."""
        if state == self.power_state:
            return
        lossy = self.device.loses_state_in_d3
        if state == D3HOT and lossy:
            self._before_d3 = self.device.save()
        came_back = self.power_state == D3HOT and state < D3HOT
        self.device.set_power(state)
        self.power_state = state
        if came_back and lossy and self._before_d3 is not None:
            self.device.restore(self._before_d3)
        self.decoding_changed()

    # -- features -----------------------------------------------------------------------------

    @property
    def has_token(self) -> bool:
        """Whether it is a PF with a VF token."""
        return self.owner.token is not None

    def set_token(self, token: str) -> None:
        """``VFIO_DEVICE_FEATURE_PCI_VF_TOKEN``."""
        self.owner.token = token

    def enter_low_power(self, wakeup: Event | None) -> None:
        """``VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY``."""
        self.exports.revoke()
        if self.low_power:
            if wakeup is not None:
                wakeup.close()
            raise failure(errno.EINVAL, "in low power already")
        self.low_power = True
        self._wakeup = wakeup

    def leave_low_power(self) -> None:
        """``VFIO_DEVICE_FEATURE_LOW_POWER_EXIT``."""
        self.low_power = False
        self._drop_wakeup()
        self.decoding_changed()

    def export(self, payload: bytes) -> int:
        """``VFIO_DEVICE_FEATURE_DMA_BUF``."""
        made = self.exports.add(payload, accessible=self.memory_accessible)
        return self.host.install(made)

    def touched(self) -> None:
        """An access resumed the function; with a wakeup eventfd that ends low power."""
        if self.low_power and self._wakeup is not None:
            self._wakeup.signal()
            self.leave_low_power()

    def _drop_wakeup(self) -> None:
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None


class DeviceFile(OpenFile):
    """An open device descriptor."""

    name = "a VFIO device"

    def __init__(self, owner: VfioPciDevice) -> None:
        super().__init__()
        self._owner = owner
        self._started: Opened | None = None
        self._requests: dict[int, Callable[[Argument], int]] = {}

    @property
    def owner(self) -> VfioPciDevice:
        """The function's state."""
        return self._owner

    @property
    def started(self) -> bool:
        """Whether the descriptor gives access."""
        return self._started is not None

    @property
    def _opened(self) -> Opened:
        """The function in use; EINVAL while the descriptor gives no access yet."""
        if self._started is None:
            raise failure(errno.EINVAL, "the device is not bound to an iommufd yet")
        return self._started

    def _begin(self, opened: Opened) -> None:
        self._started = opened
        self._requests = {
            abi.VFIO_DEVICE_GET_INFO: self._get_info,
            abi.VFIO_DEVICE_GET_REGION_INFO: opened.regions.get_info,
            abi.VFIO_DEVICE_GET_IRQ_INFO: opened.irqs.get_info,
            abi.VFIO_DEVICE_SET_IRQS: opened.irqs.set_irqs,
            abi.VFIO_DEVICE_RESET: self._reset,
            abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: self._hot_reset_info,
            abi.VFIO_DEVICE_PCI_HOT_RESET: self._hot_reset,
            abi.VFIO_DEVICE_IOEVENTFD: opened.ioeventfds.set,
            abi.VFIO_DEVICE_FEATURE: lambda argument: device_feature(opened, argument),
        }

    def ioctl(self, request: int, argument: Argument) -> int:
        """A ``VFIO_DEVICE_*`` request; EINVAL before the descriptor gives access."""
        opened = self._opened
        action = self._requests.get(request)
        if action is None:
            added = self._owner.host.vfio_requests.get(request)
            if added is None:
                return super().ioctl(request, argument)
            return added(self._owner, argument)
        if request != abi.VFIO_DEVICE_FEATURE:
            opened.touched()
        return action(argument)

    def pread(self, length: int, offset: int) -> bytes:
        """Read a region."""
        self._opened.touched()
        return self._opened.regions.pread(length, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write a region."""
        self._opened.touched()
        return self._opened.regions.pwrite(data, offset)

    def mmap(self, length: int, offset: int, protection: int) -> DeviceMapping:
        """Map a BAR. The mapping holds the device open, as on Linux."""
        mapping = self._opened.regions.mmap(length, offset, protection)
        self.hold()
        mapping.on_close = self.drop
        return mapping

    def release(self) -> None:
        """The last descriptor and mapping are gone."""
        if self._started is not None:
            self._started = None
            self._owner.closed()

    def _get_info(self, argument: Argument) -> int:
        kind = abi.vfio_device_info
        info, view = fetch(kind, argument, kind.OFFSETS["cap_offset"])
        asked = info.argsz
        info.flags = abi.VFIO_DEVICE_FLAGS_PCI
        if self._opened.reset_works:
            info.flags |= abi.VFIO_DEVICE_FLAGS_RESET
        info.num_regions, info.num_irqs = COUNT, abi.VFIO_PCI_NUM_IRQS
        info.cap_offset = 0
        widths = enable_atomics(self._opened.device, self._opened.host.buses)
        if widths:
            info.flags |= abi.VFIO_DEVICE_FLAGS_CAPS
            capability = abi.vfio_device_info_cap_pci_atomic_comp(
                id=abi.VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP, version=1, flags=widths
            )
            info.cap_offset, info.argsz = append_chain(
                [bytes(capability.pack())], view, asked, kind.SIZE
            )
        store(info, view, min(asked, kind.SIZE))
        return 0

    def _reset(self, argument: Argument) -> int:
        del argument
        if not self._opened.reset_works:
            raise failure(errno.EINVAL, "the function cannot be reset")
        self._opened.reset()
        return 0

    @property
    def _ownership(self) -> hot_reset.ByIommufd | None:
        """How a hot reset learns what the user owns; ``None``: by groups."""
        return None

    def _hot_reset_info(self, argument: Argument) -> int:
        opened = self._opened
        return hot_reset.get_info(opened.device, opened.host.buses, argument, self._ownership)

    def _hot_reset(self, argument: Argument) -> int:
        host = self._opened.host

        def after(device: PciDevice) -> None:
            owner = host.vfio_device(device)
            if owner is not None:
                owner.was_reset()

        return hot_reset.reset(
            self._opened.device,
            host.buses,
            argument,
            self._ownership or hot_reset.ByGroups(host.file_of),
            lambda device: host.vfio_device(device) is not None,
            after,
        )


class GroupDeviceFile(DeviceFile):
    """A device opened through its group."""

    def __init__(self, owner: VfioPciDevice, opened: Opened, group: VfioGroup) -> None:
        super().__init__(owner)
        self._group = group
        self._begin(opened)

    def ioctl(self, request: int, argument: Argument) -> int:
        """A ``VFIO_DEVICE_*`` request; EINVAL for binding, which is for nodes of devices."""
        if request == abi.VFIO_DEVICE_BIND_IOMMUFD:
            buffer_of(argument, 4)
            raise failure(errno.EINVAL, "the device was opened through its group")
        return super().ioctl(request, argument)

    def release(self) -> None:
        """The last descriptor and mapping are gone."""
        super().release()
        self._group.device_closed()

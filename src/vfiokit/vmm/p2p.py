"""Answers for a guest that asks whether two of its functions can do peer-to-peer DMA.

Two of the three ways of "PCI P2P inside VM" (Linux Plumbers Conference 2022) end here: a hypercall
with two guest addresses, which the host's kernel resolves by what the hypervisor registered, and a
virtio device, for which the hypervisor resolves them and asks about its own devices. The third, a
replicated topology, asks nobody. ``docs/virtio-p2p.md`` has the numbers.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol

from vfiokit.abi import vfio_p2p as abi
from vfiokit.errors import KernelError, VfiokitError
from vfiokit.kernel.port import Kernel
from vfiokit.p2p.number import MAP_TYPES
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device
from vfiokit.vmm.guest_function import GuestFunction
from vfiokit.vmm.machine import Hypercall, VirtualMachine
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.vcpu import Vcpu

HYPERCALL = 0x7032
"""Number of the hypercall; KVM has given it to nobody."""

_KVM_ENOSYS, _KVM_EPERM, _KVM_EINVAL = 1000, errno.EPERM, errno.EINVAL
_ADDRESS_LIMIT = 1 << 32


class Outcome(IntEnum):
    """What became of a question; the numbers are the virtio device's."""

    OK = 0
    NO_FUNCTION = 1
    """The guest has no assigned function there. A function of another guest, an emulated one and
    none at all look alike."""
    DENIED = 2
    """The host does not tell this guest."""
    BAD_REQUEST = 3
    """Unknown command, or flags."""
    BAD_VERSION = 4
    FAILED = 5
    """The host could not find out."""


class Reply(NamedTuple):
    """The answer to one question."""

    outcome: Outcome
    map_type: int = abi.VFIO_P2P_UNKNOWN
    distance: int = 0


class PeerSource(Protocol):
    """Whoever answers a guest."""

    @property
    def enabled(self) -> bool:
        """Whether this guest is told anything."""
        ...

    def ask(self, provider: int, client: int) -> Reply:
        """Map type and distance of two guest addresses, as :func:`guest_address` makes them."""
        ...


def guest_address(bdf: Bdf) -> int:
    """Domain ``[31:16]`` and requester ID ``[15:0]`` as one number."""
    return bdf.domain << 16 | bdf.requester_id


class Assignments:
    """Which functions on a guest's bus are devices of the host."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus
        self._devices: dict[GuestFunction, Device] = {}

    def add(self, function: GuestFunction, device: Device) -> None:
        """``function`` is ``device``."""
        self._devices[function] = device

    def remove(self, function: GuestFunction) -> None:
        """``function`` is gone; nothing when it never was there."""
        self._devices.pop(function, None)

    def by_address(self) -> dict[int, Device]:
        """Devices by the guest address at which the guest reaches them now.

        Bus numbers are the guest's to give, so this changes; what it has cut off is left out.
        """
        found: dict[int, Device] = {}
        for function, device in self._devices.items():
            if function.bus is not self._bus or device.closed:
                continue
            bdf = self._bus.guest_address(function)
            if self._bus.find(bdf.bus, bdf.devfn) is function:
                found[guest_address(bdf)] = device
        return found


class RegisteredPeers:
    """The host's kernel resolves guest addresses: what a hypercall asks.

    The hypervisor registers every device it assigns, and again whenever the guest renumbers buses.
    Needs a kernel with ``/dev/vfio-p2p`` (:class:`KernelError` ENOENT elsewhere).
    """

    def __init__(self, kernel: Kernel, bus: PciBus) -> None:
        self._kernel = kernel
        self._bus = bus
        self._assignments = Assignments(bus)
        self._registered: dict[int, Device] = {}
        self.enabled = True
        """Whether this guest is told anything."""
        try:
            self._fd = kernel.open(abi.VFIO_P2P_NODE)
        except OSError as error:
            raise KernelError(
                "open",
                abi.VFIO_P2P_NODE,
                error.errno or errno.EIO,
                hint="this kernel does not answer for guests; the virtio device needs no such node",
            ) from error
        bus.observers.append(self._configuration_seen)

    def assign(self, function: GuestFunction, device: Device) -> None:
        """Register ``device`` as ``function``."""
        self._assignments.add(function, device)
        self.register()

    def remove(self, function: GuestFunction) -> None:
        """``function`` left the guest."""
        self._assignments.remove(function)
        self.register()

    def _configuration_seen(
        self, bdf: Bdf, offset: int, width: int, write: bool, value: int
    ) -> None:
        """Bus numbers of bridges, where other functions have BARs that change nothing here."""
        del bdf, value
        if write and offset < 0x1B and offset + width > 0x18:
            # What the guest does may not stop its machine: it is not told of a device then.
            with contextlib.suppress(KernelError):
                self.register()

    def register(self) -> None:
        """Tell the kernel what changed since the last time; also after a state was loaded.

        Raises :class:`KernelError` for the first device that it refuses, when all were tried.
        """
        wanted = self._assignments.by_address()
        moved = [
            address
            for address, device in self._registered.items()
            if wanted.get(address) is not device
        ]
        for address in moved:
            device = self._registered.pop(address)
            if not device.closed:
                # The kernel forgets a device that closed, and so may have done it first.
                with contextlib.suppress(OSError):
                    self._tell(device, address, abi.VFIO_GUEST_ADDRESS_CLEAR)
        refused: list[KernelError] = []
        for address, device in wanted.items():
            if address not in self._registered:
                try:
                    self._tell(device, address, abi.VFIO_GUEST_ADDRESS_SET)
                except KernelError as error:
                    refused.append(error)
                else:
                    self._registered[address] = device
        if refused:
            raise refused[0]

    def _tell(self, device: Device, address: int, flags: int) -> None:
        request = abi.vfio_device_guest_address(
            flags=flags, vm_fd=self._fd, guest_address=address, argsz=16
        )
        try:
            self._kernel.ioctl(device.fileno(), abi.VFIO_DEVICE_GUEST_ADDRESS, request.pack())
        except OSError as error:
            name = "VFIO_DEVICE_GUEST_ADDRESS"
            raise KernelError(name, device.name, error.errno or errno.EIO) from error

    def ask(self, provider: int, client: int) -> Reply:
        """What the kernel answers for two guest addresses."""
        if not self.enabled:
            return Reply(Outcome.DENIED)
        request = abi.vfio_p2p_guest_distance(argsz=24, provider=provider, client=client).pack()
        try:
            self._kernel.ioctl(self._fd, abi.VFIO_P2P_GUEST_DISTANCE, request)
        except OSError as error:
            unknown = error.errno == errno.ENODEV
            return Reply(Outcome.NO_FUNCTION if unknown else Outcome.FAILED)
        found = abi.vfio_p2p_guest_distance.unpack_from(request)
        return Reply(Outcome.OK, found.map_type, found.distance)

    def close(self) -> None:
        """Give the virtual machine back to the kernel. Idempotent."""
        if self._configuration_seen in self._bus.observers:
            self._bus.observers.remove(self._configuration_seen)
            self._kernel.close(self._fd)


class DevicePeers:
    """The hypervisor resolves guest addresses and asks about its own devices: the virtio device.

    Where the kernel does not know the request, as no released one does, the rule is computed here,
    on what sysfs shows at the first question.
    """

    def __init__(self, kernel: Kernel, bus: PciBus) -> None:
        self._kernel = kernel
        self._assignments = Assignments(bus)
        self._enabled = True
        self.listeners: list[Callable[[], None]] = []
        """Called when answers given before may be wrong now."""
        self.asks_kernel = True
        """Whether the kernel has answered so far, or was not asked yet."""
        self._rule: _HostRule | None = None

    @property
    def enabled(self) -> bool:
        """Whether this guest is told anything."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        self._changed()

    def assign(self, function: GuestFunction, device: Device) -> None:
        """``device`` is ``function`` of the guest."""
        self._assignments.add(function, device)
        self._changed()

    def remove(self, function: GuestFunction) -> None:
        """``function`` left the guest."""
        self._assignments.remove(function)
        self._changed()

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()

    def ask(self, provider: int, client: int) -> Reply:
        """Resolve both addresses, and ask the kernel or compute."""
        if not self.enabled:
            return Reply(Outcome.DENIED)
        known = self._assignments.by_address()
        ends = known.get(provider), known.get(client)
        if ends[0] is None or ends[1] is None:
            return Reply(Outcome.NO_FUNCTION)
        try:
            if self.asks_kernel:
                return self._ask_kernel(ends[0], ends[1])
        except OSError as error:
            if error.errno != errno.ENOTTY:
                return Reply(Outcome.FAILED)
            self.asks_kernel = False
        try:
            if self._rule is None:
                self._rule = _HostRule(self._kernel)
        except (OSError, VfiokitError):
            return Reply(Outcome.FAILED)  # a host whose sysfs cannot be read
        return self._rule.ask(ends[0], ends[1])

    def _ask_kernel(self, provider: Device, client: Device) -> Reply:
        request = abi.vfio_device_p2p_distance(argsz=20, client_fd=client.fileno()).pack()
        self._kernel.ioctl(provider.fileno(), abi.VFIO_DEVICE_P2P_DISTANCE, request)
        found = abi.vfio_device_p2p_distance.unpack_from(request)
        return Reply(Outcome.OK, found.map_type, found.distance)


class _HostRule:
    """The kernel's rule, computed on the host's sysfs."""

    def __init__(self, kernel: Kernel) -> None:
        from vfiokit.host.processor import read_cpu
        from vfiokit.host.sysfs import read_topology
        from vfiokit.p2p.peers import Peers

        self._peers = Peers(read_topology(kernel.tree), cpu=read_cpu(kernel.tree))

    def ask(self, provider: Device, client: Device) -> Reply:
        """The answer for two devices, by their addresses on the host."""
        ends = Bdf.parse(provider.name), Bdf.parse(client.name)
        if any(end not in self._peers.topology for end in ends):
            return Reply(Outcome.FAILED)  # plugged in since sysfs was read
        verdict = self._peers.verdict(*ends)
        return Reply(Outcome.OK, MAP_TYPES[verdict.map_type], verdict.distance)


def hypercall(source: PeerSource) -> Hypercall:
    """The hypercall: RBX and RCX are the guest addresses of provider and client, RDX is 0.

    The result is ``distance << 8 | map type``, or a negative error of KVM's: EINVAL for an address
    that is no assigned function of this guest and for what has to be 0, EPERM when the host does
    not tell, ENOSYS when it cannot find out.
    """

    def answer(machine: VirtualMachine, vcpu: Vcpu, arguments: tuple[int, ...]) -> int:
        del machine, vcpu
        padded = (*arguments, 0, 0, 0)
        provider, client, flags = padded[:3]
        if flags or not (0 <= provider < _ADDRESS_LIMIT and 0 <= client < _ADDRESS_LIMIT):
            return -_KVM_EINVAL
        reply = source.ask(provider, client)
        if reply.outcome is Outcome.OK:
            return reply.distance << 8 | reply.map_type
        refusals = {Outcome.DENIED: _KVM_EPERM, Outcome.FAILED: _KVM_ENOSYS}
        return -refusals.get(reply.outcome, _KVM_EINVAL)

    return answer

"""What a kernel with P2P answers for guests adds to vfio-pci; Linux has none of it.

Loaded by :func:`load` as a module is: the node ``/dev/vfio-p2p``, each open file of which stands
for a virtual machine, and two requests of devices. Source of the design: "PCI P2P inside VM" (Linux
Plumbers Conference 2022), proposals 2 and 3; of the answers, Linux ``calc_map_type_and_dist``, on
ACS Control as it reads at that moment.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from vfiokit.abi import vfio_p2p as abi
from vfiokit.host.processor import Cpu, read_cpu
from vfiokit.machine.kernel.argument import Argument, fetch, store
from vfiokit.machine.kernel.device import DeviceFile, VfioPciDevice
from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.open_file import OpenFile
from vfiokit.machine.kernel.vfs import DeviceNode
from vfiokit.p2p.answer import Verdict
from vfiokit.p2p.number import MAP_TYPES
from vfiokit.p2p.peers import Peers
from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Topology

if TYPE_CHECKING:
    from vfiokit.machine.fabric import Fabric
    from vfiokit.machine.kernel.surface import SoftwareKernel


def load(kernel: SoftwareKernel, *, cpu: Cpu | None = None) -> GuestPeers:
    """Load the module into ``kernel``, once. ``cpu`` is for kernels that have no
    ``/proc/cpuinfo``.
    """
    found = kernel.modules.get("vfio_p2p")
    if not isinstance(found, GuestPeers):
        found = kernel.modules["vfio_p2p"] = GuestPeers(kernel, cpu)
        kernel.files.add(abi.VFIO_P2P_NODE, DeviceNode(found.open))
        kernel.vfio_requests[abi.VFIO_DEVICE_GUEST_ADDRESS] = found.set_address
        kernel.vfio_requests[abi.VFIO_DEVICE_P2P_DISTANCE] = found.distance
    return found


class GuestPeers:
    """The module's state: which device is which function of which virtual machine."""

    def __init__(self, kernel: SoftwareKernel, cpu: Cpu | None) -> None:
        self._file_of: Callable[[int], OpenFile] = kernel.file_of
        self._fabric = kernel.machine.fabric
        self._cpu = read_cpu(kernel.files) or cpu
        self._places: dict[VfioPciDevice, tuple[VirtualMachineFile, int]] = {}

    def open(self) -> VirtualMachineFile:
        """A virtual machine without functions."""
        return VirtualMachineFile(self)

    def verdict(self, provider: VfioPciDevice, client: VfioPciDevice) -> Verdict:
        """Map type and distance now."""
        ends = (provider.device.bdf, client.device.bdf)
        return Peers(ways_up(self._fabric, ends), cpu=self._cpu).verdict(*ends)

    # -- requests of devices ------------------------------------------------------------------

    def set_address(self, owner: VfioPciDevice, argument: Argument) -> int:
        """``VFIO_DEVICE_GUEST_ADDRESS``.

        EINVAL for unknown flags, or a descriptor that is no virtual machine; EBUSY when the device
        is another machine's; EEXIST when another device has that address; ENOENT to clear nothing.
        """
        request, _view = fetch(abi.vfio_device_guest_address, argument)
        machine = self._file_of(request.vm_fd)
        if not isinstance(machine, VirtualMachineFile):
            raise failure(errno.EINVAL, f"{machine.name} is no virtual machine")
        held = self._places.get(owner)
        if held is not None and held[0] is not machine:
            raise failure(errno.EBUSY, f"{owner.device.bdf} belongs to another virtual machine")
        if request.flags == abi.VFIO_GUEST_ADDRESS_CLEAR:
            if held is None:
                raise failure(errno.ENOENT, f"{owner.device.bdf} has no address in a guest")
            self._forget(owner)
        elif request.flags == abi.VFIO_GUEST_ADDRESS_SET:
            other = machine.functions.get(request.guest_address)
            if other is not None and other is not owner:
                raise failure(errno.EEXIST, f"guest address {request.guest_address:#x} is taken")
            self._forget(owner)
            if held is None:
                owner.at_last_close.append(lambda: self._forget(owner))
            self._places[owner] = machine, request.guest_address
            machine.functions[request.guest_address] = owner
        else:
            raise failure(errno.EINVAL, f"flags {request.flags:#x}: SET or CLEAR")
        return 0

    def _forget(self, owner: VfioPciDevice) -> None:
        held = self._places.pop(owner, None)
        if held is not None:
            held[0].functions.pop(held[1], None)

    def machine_closed(self, machine: VirtualMachineFile) -> None:
        """The last descriptor of a virtual machine is gone: its devices are nobody's."""
        for owner in tuple(machine.functions.values()):
            self._forget(owner)

    def distance(self, owner: VfioPciDevice, argument: Argument) -> int:
        """``VFIO_DEVICE_P2P_DISTANCE``: EINVAL for flags, or a client that is no open device."""
        request, view = fetch(abi.vfio_device_p2p_distance, argument)
        if request.flags:
            raise failure(errno.EINVAL, f"unknown flags {request.flags:#x}")
        client = self._file_of(request.client_fd)
        if not isinstance(client, DeviceFile) or not client.started:
            raise failure(errno.EINVAL, f"{client.name} is no VFIO device that gives access")
        verdict = self.verdict(owner, client.owner)
        request.map_type, request.distance = MAP_TYPES[verdict.map_type], verdict.distance
        store(request, view)
        return 0


class VirtualMachineFile(OpenFile):
    """An open ``/dev/vfio-p2p``: one virtual machine, as KVM would know it."""

    name = "a virtual machine"

    def __init__(self, module: GuestPeers) -> None:
        super().__init__()
        self._module = module
        self.functions: dict[int, VfioPciDevice] = {}
        """Devices by guest address."""

    def ioctl(self, request: int, argument: Argument) -> int:
        """``VFIO_P2P_GUEST_DISTANCE``, what a hypercall does: ENODEV for an address at which this
        machine has no device, EINVAL for flags.
        """
        if request != abi.VFIO_P2P_GUEST_DISTANCE:
            return super().ioctl(request, argument)
        query, view = fetch(abi.vfio_p2p_guest_distance, argument)
        if query.flags:
            raise failure(errno.EINVAL, f"unknown flags {query.flags:#x}")
        ends = [self.functions.get(address) for address in (query.provider, query.client)]
        provider, client = ends
        if provider is None or client is None:
            raise failure(errno.ENODEV, "this virtual machine has no device there")
        verdict = self._module.verdict(provider, client)
        query.map_type, query.distance = MAP_TYPES[verdict.map_type], verdict.distance
        store(query, view)
        return 0

    def release(self) -> None:
        """The last descriptor is gone."""
        self._module.machine_closed(self)


def ways_up(fabric: Fabric, ends: tuple[Bdf, ...]) -> Topology:
    """``ends`` with the bridges above them, and who stands for each host bridge: all that decides.

    Registers as they are now; the kernel reads ACS Control anew for every pair.
    """
    wanted = set()
    for bridge in fabric.host_bridges.values():
        # The rule looks at the first function of a root bus alone; virtual ones come last.
        first = [each.bdf for each in fabric.root_functions(bridge) if each.physfn is None]
        wanted |= {min(first)} if first else set()
    for end in ends:
        function = fabric.functions[end]
        physical = () if function.physfn is None else (function.physfn,)
        wanted |= {end, *physical, *(above.bdf for above in fabric.root_path(function))}
    found = []
    for bdf in wanted:
        modelled = fabric.functions[bdf]
        config = ConfigSpace(bytes(modelled.config.data))
        found.append(Function(bdf, config, physfn=modelled.physfn))
    return Topology(found, tuple(fabric.host_bridges))

"""The virtio device that answers whether two functions of the guest can do peer-to-peer DMA.

One queue; the driver puts ``{provider, client}`` in, the device ``{map type, distance}``. The
specification, with versions, is ``docs/virtio-p2p.md``.
"""

from __future__ import annotations

import struct
from enum import IntFlag

from vfiokit.pci.address import Bdf
from vfiokit.vmm.machine import VirtualMachine
from vfiokit.vmm.p2p import DevicePeers, Outcome, PeerSource, Reply
from vfiokit.vmm.virtio_pci import VirtioFunction
from vfiokit.vmm.virtio_queue import Chain, QueueError, SplitQueue

DEVICE_TYPE = 0x3F
"""The last type that has a PCI device id; OASIS has given it to nobody."""
VERSION = 1
QUERY = 1
"""The command that there is."""
QUEUE_SIZE = 64

REQUEST = struct.Struct("<HHIII")
"""Version, command, flags (0), guest address of the provider, of the client."""
REPLY = struct.Struct("<HHII4x")
"""Outcome, version of the device, map type, distance."""
_CONFIGURATION = struct.Struct("<HHHHII")


class Flag(IntFlag):
    """Flags in the configuration registers."""

    ANSWERS = 1
    """The host tells this guest; otherwise every reply is a refusal."""


class VirtioP2p:
    """The device behind a :class:`~vfiokit.vmm.virtio_pci.VirtioFunction`."""

    device_type = DEVICE_TYPE
    features = 0
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, source: PeerSource) -> None:
        self._source = source
        self.generation = 0
        """Grows when answers given before may be wrong now; see :meth:`outdate`."""
        self.served = 0
        """Requests answered, refusals among them."""

    def configuration(self) -> bytes:
        """Version, sizes of request and reply, flags, generation of the answers."""
        flags = Flag.ANSWERS if self._source.enabled else Flag(0)
        return _CONFIGURATION.pack(
            VERSION, REQUEST.size, REPLY.size, flags, self.generation & 0xFFFF_FFFF, 0
        )

    def outdate(self) -> None:
        """Answers given before may be wrong now: a function came, left, or changed its place."""
        self.generation += 1

    def serve(self, index: int, queue: SplitQueue, chain: Chain) -> int:
        """Answer one request. A chain that cannot hold request and reply breaks the queue."""
        del index
        if chain.request_size != REQUEST.size:
            raise QueueError(f"a request of {chain.request_size} bytes, not {REQUEST.size}")
        if chain.reply_room < REPLY.size:
            raise QueueError(f"room for {chain.reply_room} bytes of a reply of {REPLY.size}")
        reply = self.answer(queue.gather(chain, REQUEST.size))
        self.served += 1
        packed = REPLY.pack(reply.outcome, VERSION, reply.map_type, reply.distance)
        return queue.scatter(chain, packed)

    def answer(self, request: bytes) -> Reply:
        """The reply to the bytes of a request."""
        version, command, flags, provider, client = REQUEST.unpack(request)
        if version != VERSION:
            return Reply(Outcome.BAD_VERSION)
        if command != QUERY or flags:
            return Reply(Outcome.BAD_REQUEST)
        if not self._source.enabled:
            return Reply(Outcome.DENIED)
        return self._source.ask(provider, client)

    def reset(self) -> None:
        """Nothing is kept between requests."""


def plug(vm: VirtualMachine, source: DevicePeers, device: int | None = None) -> VirtioFunction:
    """Put the device on the root bus, at ``device`` or the first that is free.

    The guest is told whenever functions come or go, and when ``source`` is switched on or off.
    Raises :class:`~vfiokit.errors.UsageError` when the place is taken.
    """
    if device is None:
        taken = {devfn >> 3 for devfn in vm.pci.root.functions}
        device = next(number for number in range(32) if number not in taken)
    model = VirtioP2p(source)
    function = VirtioFunction(Bdf(0, 0, device, 0), vm.memory, model, name="virtio-p2p")

    def changed() -> None:
        model.outdate()
        function.configuration_changed()

    vm.pci.add(function)
    source.listeners.append(changed)
    return function

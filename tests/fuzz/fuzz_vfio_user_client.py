"""Whatever bytes and descriptors a server sends, its client raises what it promises and leaves
nothing behind.

The first byte says how many descriptors come with the first byte of the answers, which are the
rest, after a version that is agreed on. Run as ``fuzz_vfio_user.py``.
"""

from __future__ import annotations

import os
import socket

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Everything that the server will ever say is there before the client asks."""
    from vfiokit.errors import DeviceTimeoutError, KernelError, ProtocolError, UsageError
    from vfiokit.vfio_user import wire
    from vfiokit.vfio_user.client import Client
    from vfiokit.vfio_user.kernel import SocketBackend, SocketKernel
    from vfiokit.vfio_user.payload import DmaUnmap, Feature, SetIrqs
    from vfiokit.vfio_user.session import Capabilities, Version
    from vfiokit.vfio_user.wire import Command

    if not data:
        return
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with theirs:
        agreed = Version(capabilities=Capabilities(8))
        theirs.send(wire.Message(0, int(Command.VERSION), 1, 0, agreed.pack()).pack())
        client = Client(ours, offer=Capabilities(16), timeout=0.5)
        if data[1:]:
            socket.send_fds(theirs, [data[1:]], [0] * (data[0] % 4))
        theirs.shutdown(socket.SHUT_WR)
        backend = SocketBackend(SocketKernel(client))
        calls = (
            client.device_info,
            lambda: backend.kernel.region(0),
            lambda: client.region_io_fds(0),
            lambda: client.irq_info(2),
            lambda: client.region_read(0, 0, 4),
            lambda: client.region_read(0, 0, 300),
            lambda: client.region_write(0, 0, b"data"),
            lambda: client.set_irqs(SetIrqs(0x21, 2, 0, 0)),
            lambda: client.dma_unmap(DmaUnmap(0, 4096)),
            lambda: client.feature(Feature(0x10001, bytes(8))),
            lambda: client.migration_read(64),
        )
        for call in calls:
            try:
                made = call()
                if isinstance(made, tuple) and made and isinstance(made[-1], tuple):
                    for fd in made[-1]:
                        os.close(fd)
            except (KernelError, ProtocolError, DeviceTimeoutError):
                pass
            except (UsageError, OSError):
                assert client.closed
        backend.close()
    assert len(os.listdir("/proc/self/fd")) == before


if __name__ == "__main__":
    fuzz(one_input)

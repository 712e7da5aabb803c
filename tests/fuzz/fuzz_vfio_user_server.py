"""Whatever bytes and descriptors a client sends, its server ends with it and leaves nothing behind.

The first byte says which device, whether a version is agreed on first, and how many descriptors
come with the first byte; the rest is sent as it is. Run as ``fuzz_vfio_user.py``.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from fuzzing import fuzz

_PREPARED: dict[str, Any] = {}


def _prepare() -> dict[str, Any]:
    from vfiokit.kernel import linux
    from vfiokit.vfio_user import wire
    from vfiokit.vfio_user.catalogue import edu, nvme
    from vfiokit.vfio_user.server import Server
    from vfiokit.vfio_user.session import Capabilities, Version
    from vfiokit.vfio_user.wire import Command

    offer = Version(capabilities=Capabilities(max_msg_fds=16, write_multiple=True)).pack()
    return {
        "servers": [Server(edu(), dma_timeout=1.0), Server(nvme(size=1 << 20), dma_timeout=1.0)],
        "version": wire.request(0, Command.VERSION, offer).pack(),
        "info": wire.request(1, Command.DEVICE_GET_INFO, bytes([16, *bytes(15)])).pack(),
        "fds": [linux.memory_file("fuzz", 8192), linux.eventfd()],
    }


def _serve(server: Any, data: bytes, fds: list[int]) -> bytes:
    """Everything that the server answered to a client that says ``data`` and leaves."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        socket.send_fds(theirs, [data], fds)
        theirs.shutdown(socket.SHUT_WR)
        server.serve(ours)
        theirs.setblocking(False)
        answered = b""
        while piece := theirs.recv(1 << 20):
            answered += piece
    return answered


def one_input(data: bytes) -> None:
    """Serve one client that sends ``data``, then a well-behaved one."""
    if not _PREPARED:
        _PREPARED.update(_prepare())
    if len(data) < 2:
        return
    head, body = data[0], data[1 : 1 << 16]
    server = _PREPARED["servers"][head & 1]
    fds = [_PREPARED["fds"][number & 1] for number in range(head >> 2 & 7)]
    before = len(os.listdir("/proc/self/fd"))
    _serve(server, (_PREPARED["version"] if head & 2 else b"") + body, fds)
    assert len(os.listdir("/proc/self/fd")) == before
    answered = _serve(server, _PREPARED["version"] + _PREPARED["info"], [])
    assert answered.endswith(b"\x09\0\0\0\x05\0\0\0")  # nine regions, five interrupts


if __name__ == "__main__":
    fuzz(one_input)

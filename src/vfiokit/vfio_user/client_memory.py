"""Is the memory that a client shares the memory that it uses?

A hypervisor whose guest memory is mapped privately still passes the file: what the guest writes
never gets there, and a device reads zeros. The client's own map of its memory tells: a private
mapping of the file has a ``p`` where a shared one has an ``s``.

Source: ``proc_pid_maps(5)``; the file is recognised by device and inode.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("iII")
_LOOKS: Final = 16
"""Files of one client that are looked up at most."""
_log = logging.getLogger(__name__)


class MemoryWatch:
    """Warns, once for each kind, of memory that will not work well or at all."""

    def __init__(self, sock: socket.socket) -> None:
        self._process = _peer_process(sock)
        self._looked: set[tuple[int, int]] = set()
        self._messages_said = False

    def mapped(self, fd: int, iova: int) -> None:
        """The client has given much of the file ``fd`` at ``iova``."""
        if self._process <= 0 or len(self._looked) >= _LOOKS:
            return
        facts = os.fstat(fd)
        file = (facts.st_dev, facts.st_ino)
        if file in self._looked:
            return
        self._looked.add(file)
        if is_private(self._process, *file):
            _log.warning(
                "the client's memory at IOVA %#x is private to it: the device will read zeros, and "
                "nothing that it writes arrives; with QEMU say share=on at the memory backend",
                iova,
            )

    def by_message(self, iova: int) -> None:
        """The device reached for memory that came without a file."""
        if not self._messages_said:
            self._messages_said = True
            _log.warning(
                "the client gave no file for its memory at IOVA %#x: DMA goes by message, which is "
                "slower; with QEMU use -object memory-backend-memfd with share=on",
                iova,
            )


def _peer_process(sock: socket.socket) -> int:
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return 0
    return int(_CREDENTIALS.unpack(packed)[0])


def is_private(process: int, device: int, inode: int) -> bool:
    """Whether ``process`` has mapped the file, and privately only.

    False where nobody can say: the process is gone, another user's, or in another namespace.
    """
    try:
        with open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as lines:
            found = {
                words[1][3]
                for words in map(str.split, lines)
                if len(words) > 4 and words[4] == str(inode) and _device(words[3]) == device
            }
    except OSError:
        return False
    return found == {"p"}


def _device(text: str) -> int:
    major, _colon, minor = text.partition(":")
    return os.makedev(int(major, 16), int(minor, 16))

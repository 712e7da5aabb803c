"""Is the memory that a client shares the memory that it uses?

A hypervisor whose guest memory is mapped privately still passes the file: what the guest writes
never gets there, and a device would read zeros. The client's own map of its memory tells: a private
mapping of the file has a ``p`` where a shared one has an ``s``. Such a file is left alone, and the
client is asked for its memory by message.

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
        self._looked: dict[tuple[int, int], bool] = {}
        self._messages_said = False

    def is_useless(self, fd: int, iova: int) -> bool:
        """Whether the file ``fd``, much of which the client has given at ``iova``, is not what it
        has its memory in.
        """
        if self._process <= 0:
            return False
        facts = os.fstat(fd)
        file = (facts.st_dev, facts.st_ino)
        if file in self._looked:
            return self._looked[file]
        if len(self._looked) >= _LOOKS:
            return False
        private = self._looked[file] = is_private(self._process, *file)
        if private:
            self._messages_said = True
            _log.warning(
                "the client's memory at IOVA %#x is private to it, and the file that it gave of no "
                "use: DMA goes by message, which is slower; with QEMU say share=on at the memory "
                "backend",
                iova,
            )
        return private

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

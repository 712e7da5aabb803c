"""Runs in a guest that sees no file of the host: runs the command and sends back what it leaves.

``python guest_agent.py run|send``: the job is described in :data:`JOB`. ``run`` runs the command
first; ``send`` follows one that had the terminal. What comes back are files, as they grow, in
frames on the second serial port: :data:`HEADER`, a name relative to the share, a piece of content.
Nothing is imported but the standard library, and little of it: the guest is emulated.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import termios
import time
import tty
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

JOB = "/vfiokit-lab.json"
PORT = "/dev/ttyS1"
HEADER = struct.Struct("<4sHHQIII")
"""Magic, length of the name, mode of the file, offset of the piece in it, its length as sent
(compressed by zlib where the name's length has :data:`COMPRESSED` set), and CRC-32s: of the bytes
sent, and of name and numbers before."""
MAGIC = b"VLAB"
COMPRESSED = 0x8000
PIECE = 1 << 16
_POLL_S = 0.02
_CANNOT_RUN = 127


def frame(name: str, mode: int, offset: int, data: bytes) -> bytes:
    """One piece of a file."""
    encoded = os.fsencode(name)
    packed = zlib.compress(data, 1)
    smaller = len(packed) < len(data)
    sent = packed if smaller else data
    length = len(encoded) | (COMPRESSED if smaller else 0)
    sums = zlib.crc32(sent), zlib.crc32(encoded)
    return HEADER.pack(MAGIC, length, mode, offset, len(sent), *sums) + encoded + sent


class Mirror:
    """Sends what is new in the files of a folder."""

    def __init__(self, share: str, send: Callable[[bytes], object]) -> None:
        self._share = share
        self._send = send
        self._sent: dict[str, int] = {}

    def send_new(self, folder: str) -> None:
        """Send what was appended to regular files of ``folder`` and below since the last time."""
        for place, _folders, names in os.walk(os.path.join(self._share, folder)):
            for name in sorted(names):
                if not name.endswith(".part"):
                    self._send_file(os.path.join(place, name))

    def _send_file(self, path: str) -> None:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return
        name = os.path.relpath(path, self._share)
        offset = self._sent.get(name)
        if offset is not None and status.st_size <= offset:
            return
        with open(path, "rb", buffering=0) as file:
            file.seek(offset or 0)
            while data := file.read(PIECE):
                self._send(frame(name, stat.S_IMODE(status.st_mode), offset or 0, data))
                offset = (offset or 0) + len(data)
        if offset is None:
            self._send(frame(name, stat.S_IMODE(status.st_mode), 0, b""))
        self._sent[name] = offset or 0


def _run(job: dict[str, Any], mirror: Mirror) -> None:
    """Run the command, its output on its way while it does."""
    control = job["control"]
    for name in ("stdout", "stderr", "started"):
        with open(f"{control}/{name}", "ab"):
            pass
    mirror.send_new(control)
    with (
        open(f"{control}/stdin", "rb") as stdin,
        open(f"{control}/stdout", "ab") as stdout,
        open(f"{control}/stderr", "ab") as stderr,
    ):
        try:
            child = subprocess.Popen(
                job["argv"],
                cwd=job["folder"],
                env=job["environment"],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
        except OSError as error:
            stderr.write(f"{job['argv'][0]}: {error.strerror}\n".encode())
            code = _CANNOT_RUN
        else:
            while (ended := child.poll()) is None:
                mirror.send_new(control)
                time.sleep(_POLL_S)
            code = ended
    status = -code if code < 0 else code << 8
    with open(f"{control}/status.part", "wb") as file:
        file.write(status.to_bytes(4, "little"))
    os.rename(f"{control}/status.part", f"{control}/status")
    mirror.send_new(control)
    if job["fetch"]:
        subprocess.run(job["fetch"], cwd=job["folder"], env=job["environment"], check=False)


def main(what: str) -> int:
    """Exit status 0: the host was told everything."""
    with open(JOB, encoding="utf-8") as file:
        job = json.load(file)
    with open(PORT, "wb", buffering=0) as port:
        tty.setraw(port.fileno())
        mirror = Mirror(job["share"], lambda data: _send(port, data))
        if what == "run":
            _run(job, mirror)
        for folder in (job["control"], job["output"]):
            mirror.send_new(folder)
        with open(f"{job['control']}/finished", "wb"):
            pass
        mirror.send_new(job["control"])
        termios.tcdrain(port)
    return 0


def _send(port: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[port.write(left) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

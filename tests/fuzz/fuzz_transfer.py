"""Whatever a guest writes to its serial port, files stay below one folder, or it is a LabError.

Run with ``python tests/fuzz/fuzz_transfer.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Take the bytes as they are, and as the content of a frame that is right, and of a program."""
    from vfiokit.lab.elf import read_linkage
    from vfiokit.lab.failure import LabError
    from vfiokit.lab.guest_agent import frame
    from vfiokit.lab.transfer import Receiver

    read_linkage(b"\x7fELF\x02\x01" + data)
    name, _zero, content = data.partition(b"\0")
    with tempfile.TemporaryDirectory() as folder:
        channel, share = Path(folder) / "channel", Path(folder) / "share"
        channel.write_bytes(frame(name.decode("latin-1"), 0o644, 0, content[:60000]) + data)
        with contextlib.suppress(LabError):
            Receiver(channel, share).poll()
        assert {path.name for path in Path(folder).iterdir()} <= {"channel", "share"}


if __name__ == "__main__":
    fuzz(one_input)

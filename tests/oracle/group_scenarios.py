"""What the groups oracle does inside a guest."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from vfiokit.host.archive import write_capture
from vfiokit.kernel.linux import LinuxTree
from vfiokit.lab import guest_devices

DEVICES = Path("/sys/bus/pci/devices")


def capture(vfs: dict[str, int]) -> str:
    """Turn on virtual functions by name of their drive; the capture of the host, in base 64."""
    for name, count in vfs.items():
        folder = DEVICES / str(guest_devices()[name])
        # Nobody has given the virtual functions queues: a driver would wait for them in vain.
        (folder / "sriov_drivers_autoprobe").write_text("0")
        (folder / "sriov_numvfs").write_text(str(count))
    path = "/tmp/capture.tar.zst"
    summary = write_capture(LinuxTree("/"), path)
    assert not summary.unreadable, summary.unreadable
    assert not summary.short_config, summary.short_config
    content = Path(path).read_bytes()
    os.unlink(path)
    return base64.b64encode(content).decode()

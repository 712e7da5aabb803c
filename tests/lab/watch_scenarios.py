"""What the test of ``vfiokit watch`` does inside a guest."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from vfiokit.lab import guest_devices

DRIVERS = Path("/sys/bus/pci/drivers")


def _lines(pipe: int, wanted: int, timeout_s: float) -> list[str]:
    """Lines of a pipe, until ``wanted`` of them are there."""
    data, deadline = b"", time.monotonic() + timeout_s
    while data.count(b"\n") < wanted and time.monotonic() < deadline:
        if select.select([pipe], [], [], 0.1)[0]:
            data += os.read(pipe, 65536)
    return data.decode().splitlines()


def bind_and_unbind_while_watching(name: str) -> dict[str, object]:
    """Give a function to vfio-pci and back; what the watch said, and how it ended."""
    bdf = str(guest_devices()[name])
    place = Path(f"/sys/bus/pci/devices/{bdf}")
    command = [sys.executable, "-m", "vfiokit", "watch", "--json", "--interval", "0.5"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watch.stdout is not None
    assert watch.stderr is not None
    begun = _lines(watch.stderr.fileno(), 1, 60)
    had = (place / "driver").exists()
    if had:
        (place / "driver" / "unbind").write_text(bdf)
    (place / "driver_override").write_text("vfio-pci")
    (DRIVERS / "vfio-pci" / "bind").write_text(bdf)
    time.sleep(1.5)
    (DRIVERS / "vfio-pci" / "unbind").write_text(bdf)
    (place / "driver_override").write_text("\n")
    lines = _lines(watch.stdout.fileno(), 4 + had, 10)
    time.sleep(1)
    watch.send_signal(signal.SIGINT)
    rest, _ = watch.communicate(timeout=30)
    return {
        "bdf": bdf,
        "begun": begun[0] if begun else "",
        "events": [json.loads(line) for line in (*lines, *rest.decode().splitlines())],
        "status": watch.returncode,
    }


def doctor(name: str) -> dict[str, object]:
    """What the doctor of this kernel says about a function."""
    bdf = str(guest_devices()[name])
    command = [sys.executable, "-m", "vfiokit", "doctor", bdf, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"status": done.returncode, "document": json.loads(done.stdout)}


def doctor_and_truth(name: str) -> dict[str, object]:
    """What the doctor says before anything is done, and whether the kernel then goes along."""
    from vfiokit.errors import VfiokitError
    from vfiokit.kernel.linux import LinuxKernel
    from vfiokit.vfio import open_device

    said = doctor(name)
    bdf = guest_devices()[name]
    place = Path(f"/sys/bus/pci/devices/{bdf}")
    (place / "driver_override").write_text("vfio-pci")
    trouble = ""
    try:
        (DRIVERS / "vfio-pci" / "bind").write_text(str(bdf))
        with open_device(LinuxKernel(), bdf) as device:
            assert device.config
    except (OSError, VfiokitError) as error:
        trouble = str(error)
    return {**said, "trouble": trouble}
